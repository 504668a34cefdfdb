"""create_connection(): the options of `websocket-client`, translated."""

from __future__ import annotations

import socket

import gevent.socket
import pytest
from gevent import ssl

import gwt
from gwt import certificates
from tests.helpers.websockets import answering, proxying, redirect, serving, switched, url


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    identity = certificates.generate(["localhost", "name.test"])
    return certificates.write(tmp_path_factory.mktemp("identity"), identity)


def lines(request: str) -> list[str]:
    return request.rstrip().split("\r\n")


def talks(ws: gwt.WebSocket) -> bool:
    assert type(ws) is gwt.WebSocket
    with ws:
        ws.send("x")
        return ws.recv(timeout=5) == "x"


class TestRequests:
    @pytest.mark.parametrize(
        "header", [["X-One: 1", "X-Two:2:3"], {"X-One": "1", "X-Two": "2:3", "X-Three": None}]
    )
    def test_have_what_was_asked_for(self, header):
        with answering(switched) as (base, asked):
            gwt.create_connection(
                f"{base}/path",
                5,
                header=header,
                cookie="a=b; c=d",
                host="name.test:81",
                subprotocols=["one", "two"],
                enable_multithread=False,
            ).close()
        sent = lines(asked[0])
        for line in (
            "X-One: 1",
            "X-Two: 2:3",
            "Cookie: a=b; c=d",
            "Host: name.test:81",
            "Sec-WebSocket-Protocol: one, two",
            # As that library does: of the URL.
            f"Origin: http://{base[5:]}",
        ):
            assert sent.count(line) == 1
        assert "X-Three" not in asked[0]
        assert len([line for line in sent if line.startswith("Host:")]) == 1

    @pytest.mark.parametrize(
        ("options", "origin"),
        [
            ({"origin": "https://page.test"}, ["Origin: https://page.test"]),
            ({"header": ["origin: https://page.test"]}, ["origin: https://page.test"]),
            ({"suppress_origin": True}, []),
            ({"suppress_origin": True, "origin": "https://page.test"}, []),
        ],
    )
    def test_have_an_origin(self, options, origin):
        with answering(switched) as (base, asked):
            gwt.create_connection(base, **options).close()
        assert [line for line in lines(asked[0]) if line.lower().startswith("origin")] == origin

    def test_take_the_options_of_connect_too(self):
        with serving() as server:
            ws = gwt.create_connection(url(server), max_size=100, compression=None)
            assert talks(ws)

    @pytest.mark.parametrize(
        "options",
        [
            {"fire_cont_frame": True},
            {"skip_utf8_validation": True},
            {"proxy_type": "socks5"},
            {"header": ["no colon"]},
            {"header": "X: y"},
            {"sslopt": {"tls": 1}},
        ],
    )
    def test_refuse_what_is_not_understood(self, options):
        with pytest.raises(gwt.ConfigError) as caught:
            gwt.create_connection("wss://name.test/", **options)
        assert caught.value.field == next(iter(options))

    @pytest.mark.parametrize("value", [5, None, "http://name.test/"])
    def test_need_a_url(self, value):
        with pytest.raises(gwt.ConfigError) as caught:
            gwt.create_connection(value, suppress_origin=True)
        assert caught.value.field == "url"

    def test_end_in_time(self):
        with answering(None) as (base, _), pytest.raises(TimeoutError, match=r"0\.05 s"):
            gwt.create_connection(base, timeout=0.05)

    def test_follow_redirects_up_to_a_limit(self):
        with answering(*[redirect("/x")] * 4) as (base, asked):
            with pytest.raises(gwt.HandshakeError, match="more than 3 times"):
                gwt.create_connection(base)
            assert len(asked) == 4
        with answering(redirect("/x")) as (base, _), pytest.raises(gwt.SessionRejected):
            gwt.create_connection(base, redirect_limit=0)


class TestSockets:
    def test_have_the_options_that_are_asked_for(self):
        found = []

        class Socket(gevent.socket.socket):
            def connect(self, address):
                found.append(self.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
                super().connect(address)

        with serving() as server, pytest.MonkeyPatch.context() as patch:
            patch.setattr(gevent.socket, "socket", Socket)
            option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert talks(gwt.create_connection(url(server), sockopt=[option]))
        assert found == [1]

    @pytest.mark.parametrize("option", [(1, 2), (socket.SOL_SOCKET, -1, 1), ("x", 1, 1)])
    def test_have_options_that_exist(self, option):
        with serving() as server, pytest.raises(gwt.HandshakeError):
            gwt.create_connection(url(server), sockopt=[option])

    def test_may_be_given(self):
        with serving() as server:
            sock = socket.create_connection(server.address)
            assert talks(gwt.create_connection("ws://name.test/ws", socket=sock))

    def test_go_through_a_proxy(self):
        with serving() as server, proxying(leads_to=server.address) as (proxy, asked):
            host, port = proxy.split(":")
            ws = gwt.create_connection(
                "ws://name.test/ws",
                http_proxy_host=host,
                http_proxy_port=port,
                http_proxy_auth=("us@er", "p:w"),
            )
            assert talks(ws)
        assert "Proxy-Authorization: Basic dXNAZXI6cDp3" in lines(asked[0])
        with pytest.raises(TypeError, match="proxy and http_proxy_host"):
            gwt.create_connection("ws://name.test/", http_proxy_host="x", proxy="http://y")


class TestTls:
    @pytest.mark.parametrize(
        "sslopt",
        [
            {"cert_reqs": ssl.CERT_NONE},
            {"cert_reqs": ssl.CERT_NONE, "check_hostname": False},
            {"cert_reqs": 0, "ca_certs": None, "ciphers": "DEFAULT"},
            {"check_hostname": False, "ca_certs": True},
            {"server_hostname": "name.test", "ca_certs": True, "cert_reqs": ssl.CERT_REQUIRED},
            {"server_hostname": "name.test", "ca_certs": True, "certfile": True, "keyfile": True},
        ],
    )
    def test_is_as_lax_as_it_was_asked_for(self, sslopt, files):
        cert, key = files
        paths = {"ca_certs": str(cert), "certfile": str(cert), "keyfile": str(key)}
        filled = {name: paths[name] if value is True else value for name, value in sslopt.items()}
        with serving(certfile=cert, keyfile=key) as server:
            there = url(server, scheme="wss")
            assert talks(gwt.create_connection(there, sslopt=filled))
        # In a plain connection it has no meaning.
        with serving() as server:
            assert talks(gwt.create_connection(url(server), sslopt=filled))

    def test_is_the_same_after_a_redirect(self, files):
        cert, key = files
        with serving(certfile=cert, keyfile=key) as server:
            location = url(server, scheme="https")
            with answering(redirect(location)) as (base, _):
                options = {"sslopt": {"cert_reqs": ssl.CERT_NONE}, "suppress_origin": True}
                assert talks(gwt.create_connection(base, **options))

    def test_takes_a_context(self, files):
        cert, key = files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cert)
        sslopt = {"context": context, "server_hostname": "name.test"}
        with serving(certfile=cert, keyfile=key) as server:
            assert talks(gwt.create_connection(url(server, scheme="wss"), sslopt=sslopt))

    @pytest.mark.parametrize("sslopt", [None, {}, {"check_hostname": True, "ca_certs": True}])
    def test_verifies_otherwise(self, sslopt, files):
        cert, key = files
        if sslopt:
            sslopt = {**sslopt, "ca_certs": str(cert)}
        with (
            serving(certfile=cert, keyfile=key) as server,
            pytest.raises(gwt.CertificateError),
        ):
            gwt.create_connection(url(server, scheme="wss"), sslopt=sslopt)
