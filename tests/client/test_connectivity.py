"""test_client_connectivity(): which stage failed, and why; it never raises, and leaves nothing."""

from __future__ import annotations

import datetime
import json
import socket
from contextlib import contextmanager

import gevent
import gevent.socket
import pytest

import gwt
from gwt import certificates
from gwt.client import names
from gwt.client.sockets import ClientHub
from gwt.client.target import parse_url
from gwt.net.waiting import Deadline
from tests.helpers import eventually, spawn
from tests.helpers.live import echo, serving, url
from tests.helpers.raw import DRAFT16_SERVER
from tests.helpers.strangeserver import close, reset, silence, status, strange, udp
from tests.helpers.websockets import answering, proxying, redirect
from tests.helpers.websockets import serving as serving_websockets
from tests.helpers.websockets import url as websocket_url

ORIGINAL = {"success", "connect_time", "client_stats", "error"}


def check(there, *, timeout=10.0, **options):
    """Check a server, and what holds of every answer."""
    config = gwt.ClientConfig(**options)
    result = gwt.test_client_connectivity(there, config=config, timeout=timeout)
    assert set(result) == ORIGINAL | {"stage", "reason", "stages", "address", "details"}
    json.dumps(result)
    oks = [stage["ok"] for stage in result["stages"].values()]
    counted = result["client_stats"]["connections"]
    assert counted["attempted"] == 1
    if result["success"]:
        assert result["error"] is result["reason"] is result["stage"] is None
        assert set(oks) == {True} and counted["successful"] == 1
        assert 0 < result["connect_time"] <= sum(s["seconds"] for s in result["stages"].values())
    else:
        assert result["connect_time"] is result["address"] is result["details"] is None
        assert result["reason"].startswith(result["error"])
        assert counted["failed"] == 1
        names = list(result["stages"])
        failed = names.index(result["stage"])
        # What came before was passed, and what comes behind was not reached.
        assert oks == [True] * failed + [False] + [None] * (len(names) - failed - 1)
    return result


def failed(result, stage, *words):
    assert not result["success"] and result["stage"] == stage, result
    for word in words:
        assert word in result["reason"], result["reason"]


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    made = certificates.generate()
    cert, key = certificates.write(tmp_path_factory.mktemp("identity"), made)
    return {"certfile": cert, "keyfile": key}


def test_pytest_does_not_take_it_for_a_test():
    assert gwt.test_client_connectivity.__test__ is False


class TestSuccess:
    def test_of_webtransport(self):
        app = gwt.App()
        app.webtransport("/", subprotocols=["b"])(echo)
        with serving(app) as server:
            hashes = [server.certificate_hash]
            result = check(url(server), server_certificate_hashes=hashes, subprotocols=["a", "b"])
            assert result["address"] == server.address
            details = result["details"]
            assert details.pop("max_datagram_size") > 1000 and 0 < details.pop("rtt") < 10
            assert details == {
                "protocol": "webtransport",
                "draft": 16,
                "subprotocol": "b",
                "tls": "TLSv1.3",
            }
            assert list(result["stages"]) == [
                "url",
                "config",
                "resolve",
                "connect",
                "tls",
                "http3",
                "webtransport",
            ]
            # The session was closed, and is not there any more.
            eventually(lambda: not len(server.sessions))

    @pytest.mark.parametrize("scheme", ["ws", "wss"])
    def test_of_a_websocket(self, scheme, identity):
        secure = identity if scheme == "wss" else {}
        with serving_websockets(subprotocols=["chat"], **secure) as server:
            there = websocket_url(server, scheme=scheme)
            result = check(there, cafile=identity["certfile"], subprotocols=["chat"])
            assert result["address"] == server.address
            assert result["details"] == {
                "protocol": "websocket",
                "draft": None,
                "subprotocol": "chat",
                "tls": "TLSv1.3" if secure else None,
                "max_datagram_size": None,
                "rtt": None,
            }
            between = ["tls"] if secure else []
            expected = ["url", "config", "resolve", "connect", *between, "websocket"]
            assert list(result["stages"]) == expected
            eventually(lambda: not server.stats()["handlers"])

    def test_where_the_server_accepts_and_closes(self):
        with serving(lambda session: None) as server:
            result = check(url(server), server_certificate_hashes=[server.certificate_hash])
        assert result["success"]

    def test_where_the_peer_does_not_answer_the_close(self):
        def answer(quic, stream_id):
            status(200)(quic, stream_id)
            # Its answer leaves, and nothing is heard any more.
            quic.receive_datagram = lambda *_: None

        with strange(answer=answer) as deaf:
            result = check(deaf.url, server_certificate_hashes=deaf.hashes, timeout=1.0)
        assert result["success"]

    def test_after_a_redirect_to_tls(self, identity):
        with serving_websockets(**identity) as server:
            where = redirect(websocket_url(server, scheme="wss"))
            with answering(where) as (base, _):
                result = check(base, cafile=identity["certfile"])
        assert result["details"]["tls"] == "TLSv1.3" and "tls" in result["stages"]


class TestInput:
    @pytest.mark.parametrize(
        ("there", "word"),
        [
            (None, "no string"),
            (5, "no string"),
            (b"https://localhost/", "no string"),
            ("", "is needed"),
            ("localhost", "is needed"),
            ("http://localhost/", '"https://"'),
            ("https://", "no host"),
            ("https://user:secret@localhost/", "user names"),
            ("https://localhost:0/", "port 0"),
            ("https://[::1/", ""),
            ("wss://a b/#c", ""),
        ],
    )
    def test_that_is_no_url(self, there, word):
        result = check(there)
        failed(result, "url", word)
        assert "secret" not in result["reason"]

    @pytest.mark.parametrize("config", [5, "x", {}, gwt.ServerConfig(), gwt.ClientConfig])
    def test_that_is_no_config(self, config):
        result = gwt.test_client_connectivity("https://localhost/", config=config)
        failed(result, "config", "ClientConfig")

    @pytest.mark.parametrize("timeout", ["x", 0, -1, float("nan"), True, object()])
    def test_that_is_no_timeout(self, timeout):
        result = gwt.test_client_connectivity("ws://localhost/", timeout=timeout)
        failed(result, "config", "connect_timeout")

    def test_that_cannot_be_sent(self):
        failed(check("https://127.0.0.1:1/", headers={"bad name": "x"}), "config", "bad name")

    def test_that_trusts_nobody(self, tmp_path):
        (tmp_path / "empty.pem").touch()
        for scheme in ("https", "wss"):
            result = check(f"{scheme}://127.0.0.1:1/", cafile=tmp_path / "empty.pem")
            failed(result, "config", "empty.pem")

    def test_that_asks_for_a_proxy(self):
        failed(check("https://127.0.0.1:1/", proxy="http://127.0.0.1:1"), "config", "proxy")


class TestNames:
    @pytest.mark.parametrize("scheme", ["https", "wss", "ws"])
    def test_that_do_not_exist(self, scheme):
        result = check(f"{scheme}://no-such-host.invalid/")
        failed(result, "resolve", "no-such-host.invalid", "spelt right")

    def test_that_have_moved_are_asked_for_again(self, monkeypatch):
        moved = []
        with both() as (closed, _), udp() as silent:
            for there in (closed, silent):
                port = int(there.rpartition(":")[2].rstrip("/"))
                moved.append([(int(socket.AF_INET), ("127.0.0.1", port))])
            monkeypatch.setattr(names, "_addresses", lambda host, port: moved[0])
            # Somebody has asked before, and knows the answer still.
            key = parse_url("https://name.test/")
            ClientHub.current().names.resolve(key, Deadline(1))
            moved.pop(0)
            failed(check("https://name.test/", timeout=0.2), "connect", "shaking hands")

    @pytest.mark.parametrize("scheme", ["https", "ws"])
    def test_that_are_not_answered(self, scheme, monkeypatch):
        monkeypatch.setattr(names, "_addresses", lambda host, port: gevent.sleep(60))
        result = check(f"{scheme}://name.test/", timeout=0.1)
        failed(result, "resolve", "resolving 'name.test'", "DNS server")


@contextmanager
def both():
    """A port where nobody listens by UDP; (its URL, a socket that is bound to its TCP)."""
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        yield f"https://127.0.0.1:{tcp.getsockname()[1]}/", tcp


class TestReaching:
    def test_a_closed_port(self):
        with both() as (there, _):
            result = check(there)
            failed(result, "connect", "Nobody answers on UDP", "refused", "TCP gets no further")
            assert result["stages"]["resolve"]["ok"] is True
            failed(check(there.replace("https", "ws")), "connect", "refused", "port right?")

    def test_a_port_where_only_tcp_is_served(self):
        with both() as (there, tcp):
            tcp.listen()
            failed(check(there), "connect", "refused", "TCP answers", "is HTTP/3 served")

    def test_a_port_that_says_nothing_by_udp(self):
        with udp() as there:
            failed(check(there, timeout=0.3), "connect", "shaking hands", "TCP gets no further")
            port = int(there.rpartition(":")[2].rstrip("/"))
            with socket.socket() as tcp:
                try:
                    tcp.bind(("127.0.0.1", port))
                except OSError:
                    return  # Somebody else has it: they answer as well.
                tcp.listen()
                failed(check(there, timeout=0.3), "connect", "shaking hands", "TCP answers")

    def test_a_place_that_says_nothing_at_all(self, monkeypatch):
        connected = gevent.socket.socket.connect

        def connect(self, address):
            # As where a firewall drops packets: the kernel would try for minutes.
            if self.type == socket.SOCK_STREAM:
                gevent.sleep(60)
            return connected(self, address)

        with udp() as there:
            monkeypatch.setattr(gevent.socket.socket, "connect", connect)
            failed(check(there, timeout=0.3), "connect", "no answer from there either", "firewall")
            there = there.replace("https", "ws")
            failed(check(there, timeout=0.1), "connect", "connecting to", "firewall")

    def test_a_service_that_is_not_quic(self):
        with udp(b"garbage" * 10) as there:
            failed(check(there, timeout=0.3), "connect", "not by QUIC", "port")

    def test_a_server_that_is_full(self):
        with serving(echo, max_connections=1) as server:
            hashes = [server.certificate_hash]
            with gwt.connect(url(server), server_certificate_hashes=hashes):
                result = check(url(server), server_certificate_hashes=hashes)
        failed(result, "connect", "refused the connection", "try later")

    def test_without_a_slot(self):
        slots = ClientHub.current().slots(3)
        for _ in range(3):
            slots.acquire()
        result = gwt.test_client_connectivity(
            "https://127.0.0.1:1/", config=gwt.ClientConfig(max_connecting=3), timeout=0.1
        )
        for _ in range(3):
            slots.release()
        assert result["stage"] == "connect" and "free handshake slot" in result["reason"]
        assert result["stages"]["resolve"]["ok"] is None


def of(hosts=("localhost", "127.0.0.1"), days_ago=0):
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
    return certificates.generate(list(hosts), now=moment)


class TestTls:
    @pytest.mark.parametrize(
        ("made", "trusted", "words"),
        [
            (of(days_ago=60), "cafile", ["needs a new one", "clock"]),
            (of(days_ago=60), "hash", ["expired", "needs a new one"]),
            (of(days_ago=-60), "cafile", ["Is the clock right"]),
            (of(days_ago=-60), "hash", ["not valid before", "Is the clock right"]),
            (of(["other.example"]), "cafile", ["127.0.0.1", "server_name="]),
            (of(), "nothing", ["self-signed", "cafile=", "server_certificate_hashes="]),
            (of(), "another", ["SHA-256", "another server answers"]),
        ],
        ids=["expired", "expired-hash", "early", "early-hash", "name", "untrusted", "not-pinned"],
    )
    @pytest.mark.parametrize("scheme", ["https", "wss"])
    def test_a_certificate_that_is(self, made, trusted, words, scheme, tmp_path):
        cert, key = certificates.write(tmp_path, made)
        options = {
            "cafile": {"cafile": cert},
            "hash": {"server_certificate_hashes": [made.sha256]},
            "nothing": {},
            "another": {"server_certificate_hashes": ["00" * 32]},
        }[trusted]
        app = gwt.App()
        app.websocket("/")(lambda ws: None)
        app.webtransport("/")(echo)
        with serving(app, certfile=cert, keyfile=key) as server:
            there = url(server).replace("https", scheme)
            failed(check(there, **options), "tls", *words)
            assert check(there, verify=False)["success"]

    def test_where_none_is_spoken(self):
        with serving_websockets() as server:
            result = check(websocket_url(server, scheme="wss"))
        failed(result, "tls", "not by TLS", "the port of a server with TLS")

    def test_that_never_ends(self):
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            result = check(f"wss://127.0.0.1:{mute.getsockname()[1]}/", timeout=0.2)
        failed(result, "tls", "shaking hands by TLS", "does not finish")


HTTP3 = {name: value for name, value in DRAFT16_SERVER.items() if name == 0x33}


class TestHttp3:
    def test_another_application_on_quic(self):
        with strange(alpn=["hq-interop"]) as server:
            result = check(server.url, server_certificate_hashes=server.hashes)
        failed(result, "http3", "QUIC, but no HTTP/3")

    def test_a_server_that_opens_no_stream(self):
        with strange(settings=None) as server:
            result = check(server.url, server_certificate_hashes=server.hashes, timeout=0.5)
        failed(result, "http3", "after 0.5 s", "settings", "another service")

    @pytest.mark.parametrize("settings", [{}, HTTP3])
    def test_a_server_without_webtransport(self, settings):
        with strange(settings=settings) as server:
            result = check(server.url, server_certificate_hashes=server.hashes)
        failed(result, "webtransport", "no WebTransport", "switched on")
        assert result["stages"]["http3"]["ok"] is True


class TestAnswers:
    @pytest.mark.parametrize(
        ("code", "word"),
        [
            (400, "this protocol"),
            (401, "credentials"),
            (403, "origin="),
            (404, "path right"),
            (405, "not for this protocol"),
            (421, "other host names"),
            (429, "later"),
            (418, "URL right"),
            (503, "later"),
        ],
    )
    def test_that_refuse(self, code, word):
        with strange(answer=status(code)) as server:
            result = check(server.url, server_certificate_hashes=server.hashes)
            failed(result, "webtransport", f"status {code}", word)
        answer = f"HTTP/1.1 {code} No\r\nContent-Length: 0\r\n\r\n".encode()
        with answering(answer) as (base, _):
            failed(check(base), "websocket", f"status {code}", word)

    def test_that_redirect(self):
        with strange(answer=status(308, (b"location", b"https://else.where/"))) as server:
            result = check(server.url, server_certificate_hashes=server.hashes)
        failed(result, "webtransport", "status 308", "https://else.where/")

    def test_that_reset_or_close(self):
        for answer, word in ((reset(0x10B), "no more sessions"), (close(0x100, "bye"), "bye")):
            with strange(answer=answer) as server:
                result = check(server.url, server_certificate_hashes=server.hashes)
            failed(result, "webtransport", word, "log")

    def test_that_never_come(self):
        with strange(answer=silence) as server:
            result = check(server.url, server_certificate_hashes=server.hashes, timeout=0.5)
        failed(result, "webtransport", "after 0.5 s", "does not answer")
        with answering(None) as (base, _):
            failed(check(base, timeout=0.2), "websocket", "after 0.2 s", "does not answer")

    def test_that_are_no_http(self):
        with answering(b"SSH-2.0-OpenSSH\r\n\r\n") as (base, _):
            failed(check(base), "websocket", "WebSocket server that listens")


class TestProxies:
    def test_that_refuse(self):
        with proxying(answer=b"HTTP/1.1 403 Forbidden\r\n\r\n") as (place, _):
            result = check("ws://name.test/", proxy=f"http://{place}")
        failed(result, "connect", "The proxy", "HTTP status 403", "proxy=None")

    def test_that_are_not_there(self):
        with both() as (there, _):
            result = check("ws://name.test/", proxy=there.replace("https", "http"))
        failed(result, "connect", "The proxy", "cannot be reached", "proxy=None")

    def test_that_lead_there(self):
        with serving_websockets() as server, proxying(leads_to=server.address) as (place, asked):
            assert check("ws://name.test/ws", proxy=f"http://{place}")["success"]
        assert asked


class TestLimits:
    def test_a_timeout_of_the_callers_and_a_kill_pass_and_leave_nothing(self):
        def sockets():
            return any(ClientHub.current()._sockets.values())

        with udp() as there:
            limit = gevent.Timeout(0.05)
            with pytest.raises(gevent.Timeout) as caught, limit:
                gwt.test_client_connectivity(there)
            assert caught.value is limit
            job = spawn(gwt.test_client_connectivity, there)
            gevent.sleep(0)
            job.kill()
            eventually(lambda: not sockets())

    def test_whatever_happens_it_is_an_answer(self, monkeypatch):
        def fail(*_):
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(names, "_addresses", fail)
        for scheme in ("https", "ws"):
            failed(check(f"{scheme}://name.test/"), "resolve", "a bug")
