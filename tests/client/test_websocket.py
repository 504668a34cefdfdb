"""connect() for ws:// and wss://: addresses, TLS, redirects, refusals, and time."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import gevent
import gevent.event
import gevent.server
import gevent.socket
import pytest
from gevent import ssl
from OpenSSL import SSL

import gwt
from gwt import certificates
from gwt.client import names as names_module
from tests.helpers.websockets import answering, deaf, redirect, serving, switched, url


class TestRequests:
    def test_say_what_was_asked_for(self):
        with answering(switched) as (base, asked):
            ws = gwt.connect(
                f"{base}/a%20b?q=ü#".rstrip("#"),
                headers={"Authorization": "Bearer x", "Cookie": "a=b"},
                origin="https://page.test",
                subprotocols=["one", "two"],
                user_agent_header="tester",
            )
            ws.wait_closed(timeout=5)
        lines = asked[0].split("\r\n")
        assert lines[0] == "GET /a%20b?q=%C3%BC HTTP/1.1"
        for line in (
            f"Host: {base[5:]}",
            "Authorization: Bearer x",
            "Cookie: a=b",
            "Origin: https://page.test",
            "Sec-WebSocket-Protocol: one, two",
            "User-Agent: tester",
        ):
            assert line in lines
        assert any(
            line.startswith("Sec-WebSocket-Extensions: permessage-deflate") for line in lines
        )

    def test_what_came_with_the_answer_is_not_lost(self):
        with answering(switched) as (base, _):
            ws = gwt.connect(base, compression=None)
            assert list(ws) == ["early"]
            assert ws.close_code == 1000

    def test_headers_that_cannot_be_sent(self):
        with serving() as server:
            for headers in ({"X": "a\r\nb"}, {"Host": "other"}, {"ü": "x"}, {"X": "☃"}):
                with pytest.raises(gwt.ConfigError):
                    gwt.connect(url(server), headers=headers)

    @pytest.mark.parametrize("text", ["ws://", "ws://h:0", "wss://h/#x", "ws:h", "w://h"])
    def test_urls_that_are_none(self, text):
        with pytest.raises(gwt.ConfigError):
            gwt.connect(text)

    @pytest.mark.parametrize("text", ["http://name.test/", "name.test", "", "unix:/x"])
    def test_urls_of_other_schemes_are_told_which_there_are(self, text):
        with pytest.raises(gwt.ConfigError, match='"https://" or "ws://" or "wss://" is needed'):
            gwt.connect(text)

    def test_unknown_options_are_refused(self):
        with pytest.raises(gwt.UnknownOption):
            gwt.connect("ws://localhost", pings=3)


class TestRefusals:
    def test_have_a_status_headers_and_a_body(self):
        answer = b"HTTP/1.1 403 No\r\nX-Why: because\r\nContent-Length: 4\r\n\r\nno!\n"
        rejected = pytest.raises(gwt.SessionRejected, match="403")
        with answering(answer) as (base, _), rejected as caught:
            gwt.connect(base)
        error = caught.value
        assert (error.status, error.headers["x-why"], error.body) == (403, "because", b"no!\n")
        assert error.stage == "websocket"

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"SSH-2.0-OpenSSH_9\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 100_000,
        ],
    )
    def test_answers_that_are_none(self, answer):
        with answering(answer) as (base, _), pytest.raises(gwt.HandshakeError) as caught:
            gwt.connect(base)
        assert caught.value.stage == "websocket"
        assert not isinstance(caught.value, gwt.SessionRejected)

    def test_nobody_answers(self):
        with gevent.socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
            with pytest.raises(gwt.HandshakeError, match=f"127.0.0.1 port {port}") as caught:
                gwt.connect(f"ws://127.0.0.1:{port}")
        assert caught.value.stage == "connect"
        assert isinstance(caught.value, ConnectionError)


class TestTime:
    def test_a_silent_server(self):
        with answering(None) as (base, _), pytest.raises(TimeoutError, match="accept") as caught:
            gwt.connect(base, timeout=0.3)
        assert "0.3 s" in str(caught.value)

    def test_a_silent_tls_server(self):
        with gevent.socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
            with pytest.raises(TimeoutError, match="TLS"):
                gwt.connect(f"wss://127.0.0.1:{port}", timeout=0.05)

    def test_a_slot_is_waited_for(self):
        with answering(None, switched) as (base, _):

            def in_vain():
                with pytest.raises(TimeoutError):
                    gwt.connect(base, timeout=0.5, max_connecting=1)

            first = gevent.spawn(in_vain)
            gevent.sleep(0.05)
            with pytest.raises(TimeoutError, match="queued, while waiting for a free"):
                gwt.connect(base, timeout=0.1, max_connecting=1)
            first.get(timeout=5)

    def test_a_silent_address_does_not_keep_the_next_one_waiting(self, monkeypatch):
        with serving() as server, deaf() as silent:
            found = [(int(socket.AF_INET), each) for each in (silent, server.address)]
            monkeypatch.setattr(names_module, "_addresses", lambda host, port: found)
            ws = gwt.connect("ws://name.test/ws", attempt_delay=0.05)
            assert ws.remote_address == server.address
            ws.close()


class TestRedirects:
    def test_are_followed(self):
        with (
            serving() as server,
            answering(redirect(url(server, scheme="http"), 307)) as (base, _),
            gwt.connect(base) as ws,
        ):
            ws.send("here")
            assert ws.recv(timeout=5) == "here"
            assert ws.path == "/ws"

    def test_keep_secrets_to_the_place_they_are_for(self):
        headers = {"Authorization": "x", "Cookie": "y", "X-Other": "z"}
        with (
            answering(switched) as (there, second),
            answering(redirect("/again"), redirect(f"{there}/b")) as (here, first),
        ):
            gwt.connect(here, headers=headers).close()
        assert first[1].startswith("GET /again ")
        assert "Authorization: x" in first[1]
        assert "Authorization" not in second[0] and "Cookie" not in second[0]
        assert "X-Other: z" in second[0]

    def test_end(self):
        with answering(*[redirect("/")] * 11) as (base, asked):
            with pytest.raises(gwt.HandshakeError, match="more than 10 times"):
                gwt.connect(base)
            assert len(asked) == 11

    @pytest.mark.parametrize("location", ["ftp://there/", "//[x"])
    def test_to_what_is_no_websocket(self, location):
        with answering(redirect(location)) as (base, _), pytest.raises(gwt.HandshakeError):
            gwt.connect(base)


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    certificate = certificates.generate()
    return certificate, *certificates.write(tmp_path_factory.mktemp("identity"), certificate)


class TestTls:
    def test_is_verified_unless_told_otherwise(self, identity):
        certificate, cert, key = identity
        with serving(certfile=cert, keyfile=key) as server:
            secure = url(server, scheme="wss")
            with pytest.raises(gwt.CertificateError):
                gwt.connect(secure)
            with pytest.raises(gwt.CertificateError):
                gwt.connect(secure, server_certificate_hashes=["00" * 32])
            with pytest.raises(gwt.CertificateError, match=r"other\.test[^.]*'\.$|127\.0\.0\.1"):
                gwt.connect(secure, cafile=cert, server_name="other.test")
            for options in (
                {"verify": False},
                {"cafile": cert},
                {"server_certificate_hashes": [certificate.sha256]},
            ):
                with gwt.connect(secure, **options) as ws:
                    ws.send("x")
                    assert ws.recv(timeout=5) == "x"

    def test_with_a_context_of_ones_own(self, identity):
        _, cert, key = identity
        context = ssl.create_default_context(cafile=str(cert))
        with serving(certfile=cert, keyfile=key) as server:
            gwt.connect(url(server, scheme="wss"), ssl=context).close()
        with pytest.raises(gwt.ConfigError, match="ssl"):
            gwt.connect("wss://localhost", ssl=object())

    def test_that_a_server_negotiates_again_does_not_keep_the_hub_busy(self, identity):
        _, cert, key = identity
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        context.use_certificate_file(str(cert))
        context.use_privatekey_file(str(key))
        asked, done = gevent.event.Event(), gevent.event.Event()

        def handle(sock: Any, _: object) -> None:
            # pyOpenSSL's own sockets would block: the bytes are carried here.
            tls = SSL.Connection(context, None)
            tls.set_accept_state()
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                tls.bio_write(sock.recv(65536))
                with suppress(SSL.WantReadError):
                    tls.do_handshake()
                    request += tls.recv(65536)
                with suppress(SSL.WantReadError):
                    sock.sendall(tls.bio_read(65536))
            tls.send(switched(request.decode()).partition(b"\x81")[0])
            tls.renegotiate()
            with suppress(SSL.WantReadError):
                tls.do_handshake()
            sock.sendall(tls.bio_read(65536))
            # Whatever it is: the client has read it.
            sock.recv(65536)
            asked.set()
            done.wait()

        server = gevent.server.StreamServer(("127.0.0.1", 0), handle)
        server.start()
        try:
            ws = gwt.connect(f"wss://127.0.0.1:{server.server_port}", verify=False)
            assert asked.wait(5)
            ws.send("on its way")
            assert ws.stats()["bytes_unsent"] == 0
            ws.abort()
        finally:
            done.set()
            server.stop()

    def test_where_none_is_spoken(self):
        with serving() as server, pytest.raises(gwt.HandshakeError) as caught:
            gwt.connect(url(server, scheme="wss"), verify=False)
        assert caught.value.stage == "tls"

    def test_large_messages_both_ways_at_once(self, identity):
        _, cert, key = identity
        data = bytes(range(256)) * 4000
        with (
            serving(certfile=cert, keyfile=key) as server,
            gwt.connect(url(server, scheme="wss"), verify=False, compression=None) as ws,
        ):
            sender = gevent.spawn(lambda: [ws.send(data) for _ in range(20)])
            assert [ws.recv(timeout=5) for _ in range(20)] == [data] * 20
            sender.get(timeout=5)


class TestSockets:
    def test_of_ones_own(self):
        with serving() as server:
            sock = socket.create_connection(server.address)
            with gwt.connect("ws://elsewhere.test/ws", sock=sock) as ws:
                ws.send("x")
                assert ws.recv(timeout=5) == "x"

    def test_of_unix(self):
        ours, theirs = gevent.socket.socketpair()

        def serve():
            data = b""
            while b"\r\n\r\n" not in data:
                data += theirs.recv(65536)
            theirs.sendall(switched(data.decode()))
            while theirs.recv(65536):
                pass
            theirs.close()

        server = gevent.spawn(serve)
        with gwt.connect("ws://localhost/", sock=ours, compression=None) as ws:
            assert list(ws) == ["early"]
        server.get(timeout=5)
