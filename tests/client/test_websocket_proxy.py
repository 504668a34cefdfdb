"""connect() for WebSockets through HTTP proxies, which an option names or the environment."""

from __future__ import annotations

import socket

import pytest

import gwt
from gwt import certificates
from gwt.client import names as names_module
from tests.helpers.websockets import answering, proxying, redirect, serving, switched, url


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    identity = certificates.generate(["localhost", "127.0.0.1", "name.test"])
    return certificates.write(tmp_path_factory.mktemp("identity"), identity)


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """No name but localhost exists."""
    addresses = names_module._addresses

    def find(host, port):
        if host == "localhost":
            return addresses(host, port)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(names_module, "_addresses", find)


@pytest.fixture
def environment(monkeypatch):
    """Nothing of the machine's own, and what the test sets."""
    for name in ("http", "https", "all", "ws", "wss", "no", "socks"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    return monkeypatch.setenv


def talks(ws: gwt.WebSocket) -> bool:
    with ws:
        ws.send("x")
        return ws.recv(timeout=5) == "x"


class TestTunnels:
    @pytest.mark.parametrize("scheme", ["ws", "wss"])
    def test_lead_to_the_server(self, scheme, files):
        cert, key = files
        options = {"certfile": cert, "keyfile": key} if scheme == "wss" else {}
        with serving(**options) as server, proxying() as (proxy, asked):
            # The certificate is the server's, whose name is the URL's.
            assert talks(
                gwt.connect(url(server, scheme=scheme), proxy=f"http://{proxy}", cafile=cert)
            )
        place = "{}:{}".format(*server.address)
        first, *headers = asked[0].rstrip().split("\r\n")
        assert first == f"CONNECT {place} HTTP/1.1"
        assert f"Host: {place}" in headers
        assert not any(header.startswith("Proxy-Authorization") for header in headers)

    def test_are_the_ones_to_resolve_names(self):
        with serving(allowed_hosts=["name.test"]) as server:
            with proxying(leads_to=server.address) as (proxy, asked):
                # As curl has it, a proxy needs no scheme.
                assert talks(gwt.connect("ws://name.test/ws", proxy=proxy))
            assert asked[0].startswith("CONNECT name.test:80 ")

    def test_give_the_user_and_password_to_the_proxy_alone(self):
        with answering(switched) as (base, requests), proxying() as (proxy, asked):
            gwt.connect(base, proxy=f"http://us%40er:p%3Aw@{proxy}").close()
        # The base64 of "us@er:p:w".
        assert "Proxy-Authorization: Basic dXNAZXI6cDp3\r\n" in asked[0]
        assert "dXNAZXI6cDp3" not in requests[0]

    def test_are_asked_for_again_after_a_redirect(self):
        with answering(switched) as (there, _), answering(redirect(f"{there}/b")) as (here, _):
            with proxying() as (proxy, asked):
                gwt.connect(here, proxy=proxy).close()
            assert [each.split()[1] for each in asked] == [here[5:], there[5:]]


class TestTunnelsThroughTls:
    @pytest.mark.parametrize("scheme", ["ws", "wss"])
    def test_lead_to_the_server(self, scheme, files):
        cert, key = files
        options = {"certfile": cert, "keyfile": key}
        data = bytes(range(256)) * 4000
        with (
            serving(**(options if scheme == "wss" else {})) as server,
            proxying(files=files) as (proxy, _),
        ):
            there = url(server, scheme=scheme)
            with gwt.connect(there, proxy=f"https://{proxy}", cafile=cert) as ws:
                ws.send(data)
                assert ws.recv(timeout=5) == data
            assert ws.close_code == 1000

    def test_need_a_certificate(self, files):
        with (
            serving() as server,
            proxying(files=files) as (proxy, asked),
            pytest.raises(gwt.CertificateError),
        ):
            gwt.connect(url(server), proxy=f"https://{proxy}")
        assert not asked

    def test_end_if_the_server_is_not_trusted(self, files):
        cert, key = files
        options = {"certfile": cert, "keyfile": key}
        with (
            serving(**options) as server,
            proxying(files=files) as (proxy, _),
            pytest.raises(gwt.CertificateError, match=r"other\.test"),
        ):
            there = url(server, scheme="wss")
            gwt.connect(there, proxy=f"https://{proxy}", cafile=cert, server_name="other.test")


class TestEnvironments:
    @pytest.mark.parametrize(
        ("scheme", "name"),
        [
            ("ws", "http_proxy"),
            ("ws", "https_proxy"),
            ("ws", "ALL_PROXY"),
            ("ws", "ws_proxy"),
            ("wss", "HTTPS_PROXY"),
            ("wss", "all_proxy"),
        ],
    )
    def test_name_a_proxy(self, environment, files, scheme, name):
        cert, key = files
        options = {"certfile": cert, "keyfile": key} if scheme == "wss" else {}
        with serving(**options) as server, proxying(leads_to=server.address) as (proxy, asked):
            environment(name, f"http://{proxy}")
            assert talks(gwt.connect(f"{scheme}://name.test/ws", cafile=cert))
            assert len(asked) == 1

    def test_prefer_the_proxy_for_tls(self, environment):
        with serving() as server, proxying(leads_to=server.address) as (proxy, asked):
            environment("http_proxy", "http://127.0.0.1:1")
            environment("https_proxy", proxy)
            assert talks(gwt.connect("ws://name.test/ws"))
            assert len(asked) == 1

    @pytest.mark.parametrize("option", [None, False])
    def test_are_not_asked_if_there_shall_be_none(self, environment, option):
        environment("all_proxy", "http://127.0.0.1:1")
        with pytest.raises(gwt.HandshakeError, match=r"name.test.*resolved"):
            gwt.connect("ws://name.test/", proxy=option)

    @pytest.mark.parametrize("exception", ["name.test", ".test", "*", "other, name.test:80"])
    def test_name_exceptions(self, environment, exception):
        environment("all_proxy", "http://127.0.0.1:1")
        environment("no_proxy", exception)
        with pytest.raises(gwt.HandshakeError, match=r"name.test.*resolved"):
            gwt.connect("ws://name.test/")

    def test_are_not_about_loopback(self, environment):
        environment("all_proxy", "http://127.0.0.1:1")
        with serving() as server:
            assert talks(gwt.connect(url(server)))
            assert talks(gwt.connect(f"ws://localhost:{server.address[1]}/ws"))

    @pytest.mark.parametrize(
        ("name", "scheme"), [("all", "socks5"), ("socks", "socks5h"), ("socks", "http")]
    )
    def test_are_an_error_if_they_name_another_kind(self, environment, name, scheme):
        environment(f"{name}_proxy", f"{scheme}://user:secret@127.0.0.1:1")
        with pytest.raises(gwt.ConfigError, match=f"{name}_proxy.*proxy=None") as caught:
            gwt.connect("ws://name.test/")
        assert caught.value.field == "proxy"
        assert "secret" not in str(caught.value)


class TestFailures:
    @pytest.mark.parametrize(
        ("answer", "text"),
        [
            (
                b"HTTP/1.1 407 Who?\r\n\r\n",
                r"HTTP status 407 \(Who\?\): user and password are missing",
            ),
            (b"HTTP/1.1 403\r\n\r\n", "HTTP status 403"),
            (b"HTTP/1.1 502 No such host\r\n\r\n", r"name.test:80 .*502 \(No such host\)"),
            (b"hello\r\n\r\n", "no answer of HTTP"),
            (b"HTTP/1.1 2xx\r\n\r\n", "no answer of HTTP"),
            (b"x" * 70_000, "no answer of HTTP"),
            (b"HTTP/1.1 2", "no answer of HTTP"),
            (b"", "gave no answer"),
            (b"HTTP/1.1 299 OK\r\n\r\nmore", "more than an answer"),
        ],
    )
    def test_of_proxies_that_refuse(self, answer, text):
        with proxying(answer=answer) as (proxy, _):
            with pytest.raises(gwt.HandshakeError, match=text) as caught:
                gwt.connect("ws://name.test/", proxy=proxy)
            assert caught.value.stage == "connect"
            assert proxy in str(caught.value)

    def test_of_a_proxy_that_says_nothing(self):
        silence = pytest.raises(TimeoutError, match=r"waiting for the proxy 127.0.0.1:\d+")
        with proxying(answer=None) as (proxy, _), silence:
            gwt.connect("ws://name.test/", proxy=proxy, timeout=0.05)

    @pytest.mark.parametrize("where", ["127.0.0.1:1", "proxy.test:1"])
    def test_of_a_proxy_that_is_not_there(self, where):
        with pytest.raises(gwt.HandshakeError, match=f"proxy {where} cannot be reached"):
            gwt.connect("ws://name.test/", proxy=where)

    @pytest.mark.parametrize(
        "proxy", ["socks5://localhost", "", "http://", 5, "http://h/#x", "h:99999"]
    )
    def test_of_what_is_no_proxy(self, proxy):
        with pytest.raises(gwt.ConfigError) as caught:
            gwt.connect("ws://name.test/", proxy=proxy)
        assert caught.value.field == "proxy"

    def test_of_two_ways(self):
        with pytest.raises(TypeError, match="sock and proxy"):
            gwt.connect("ws://name.test/", proxy="http://localhost", sock=object())

    def test_of_webtransport(self):
        with pytest.raises(gwt.ConfigError, match="WebTransport"):
            gwt.connect("https://name.test/", proxy="http://localhost")
