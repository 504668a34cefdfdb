"""A WebSocket whose peer breaks rules, stops, or vanishes: real sockets, with TLS, at both ends."""

from __future__ import annotations

import logging
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import gevent.event
import gevent.socket
import pytest
from gevent import monkey, ssl

import gwt
from gwt import certificates, websocket_driver
from gwt.net.waiting import Deadline
from gwt.protocol.websocket import WebSocketProtocol
from gwt.protocol.wsframes import encode_frame
from gwt.protocol.wshandshake import accept_key

_sleep = monkey.get_original("time", "sleep")

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
REQUEST = (
    "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
)

DEFLATE = (
    "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
    "client_no_context_takeover\r\n"
)


class Tls(NamedTuple):
    cert: Path
    key: Path
    server: Any
    client: Any


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> Tls:
    cert, key = certificates.write(tmp_path_factory.mktemp("tls"), certificates.generate())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    return Tls(cert, key, server, client)


def eventually(condition) -> None:
    deadline = Deadline(5)
    while not condition():
        assert not deadline.expired
        gevent.sleep(0.001)


def until(sock: Any, wanted: bytes) -> bytes:
    """Read until something has come; return what came behind it."""
    data = b""
    while wanted not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    return data.partition(wanted)[2]


def rest(sock: Any) -> bytes:
    """Read to the end."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


class Peer:
    """The other end: a socket behind its handshake, and frames as that side writes them."""

    def __init__(self, sock: Any, masks: bool) -> None:
        self.sock = sock
        self.masks = masks

    def frame(self, first: int, payload: bytes = b"", *, wrongly: bool = False) -> bytes:
        return encode_frame(first, payload, self.masks is not wrongly)

    def announcement(self, size: int) -> bytes:
        return b"\x82" + (b"\xff" if self.masks else b"\x7f") + struct.pack("!Q", size)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def close_frame(self) -> tuple[int, str]:
        """Read to the end, where a close frame is all that came."""
        data = rest(self.sock)
        size = data[1] & 0x7F
        if data[1] & 0x80:
            key, payload = data[2:6], data[6:]
            payload = bytes(byte ^ key[i & 3] for i, byte in enumerate(payload))
        else:
            payload = data[2:]
        assert (data[0], size) == (0x88, len(payload))
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def vanish(self) -> None:
        """Reset the connection."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@contextmanager
def server_with(handler: Any, tls: Tls | None = None, **options: Any) -> Iterator[gwt.Server]:
    app = gwt.App()
    app.websocket("/ws")(handler)
    if tls is not None:
        options |= {"certfile": tls.cert, "keyfile": tls.key}
    options.setdefault("stop_timeout", 0.5)
    with gwt.Server(app, "127.0.0.1:0", http3=False, **options) as server:
        yield server


@contextmanager
def dialled(server: gwt.Server, tls: Tls | None = None, **sizes: int) -> Iterator[Any]:
    sock = gevent.socket.socket()
    if sizes:
        # Before connecting, or the window is larger already.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, sizes["receive_buffer"])
    sock.settimeout(5)
    with sock:
        sock.connect(server.address)
        if tls is None:
            yield sock
        else:
            with tls.client.wrap_socket(sock) as wrapped:
                yield wrapped


@contextmanager
def hostile_client(
    tls: Tls | None = None, extensions: str = "", sizes: Any = (), **options: Any
) -> Iterator[tuple[gwt.WebSocket, Peer]]:
    """A WebSocket of a server, and who opened it."""
    accepted = gevent.event.AsyncResult()

    def handler(ws: gwt.WebSocket) -> None:
        accepted.set(ws)
        ws.wait_closed()

    with (
        server_with(handler, tls, **options) as server,
        dialled(server, tls, **dict(sizes)) as sock,
    ):
        sock.sendall((REQUEST + extensions + "\r\n").encode())
        until(sock, b"\r\n\r\n")
        yield accepted.get(timeout=5), Peer(sock, True)


@contextmanager
def hostile_server(
    tls: Tls | None = None, extensions: str = "", **options: Any
) -> Iterator[tuple[gwt.WebSocket, Peer]]:
    """A WebSocket of a client, and who accepted it."""
    peers = gevent.event.AsyncResult()

    def serve() -> None:
        sock, _ = listener.accept()
        sock.settimeout(5)
        if tls is not None:
            sock = tls.server.wrap_socket(sock, server_side=True)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(65536)
        key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
        sock.sendall(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_key(key)}\r\n{extensions}\r\n".encode()
        )
        peers.set(Peer(sock, False))

    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        serving = gevent.spawn(serve)
        scheme = "ws" if tls is None else "wss"
        url = f"{scheme}://localhost:{listener.getsockname()[1]}/ws"
        options.setdefault("compression", None)
        ws = gwt.connect(url, verify=False, **options)
        serving.get(timeout=5)
    peer = peers.get(timeout=5)
    try:
        yield ws, peer
    finally:
        ws.abort()
        peer.sock.close()


ENDS = {
    f"{who} {how}": (make, how == "tls")
    for who, make in (("server", hostile_client), ("client", hostile_server))
    for how in ("plain", "tls")
}


@pytest.fixture(params=ENDS)
def ends(request, tls) -> Any:
    """Makes a WebSocket of ours, and its peer: ends(**options)."""
    make, secure = ENDS[request.param]
    return lambda **options: make(tls if secure else None, **options)


class Spawned:
    """A call in a greenlet; get() returns or raises what it did. Its error reaches no hub."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._outcome = gevent.event.AsyncResult()
        gevent.spawn(self._run, function, *args)

    def _run(self, function: Any, *args: Any) -> None:
        try:
            self._outcome.set(function(*args))
        except Exception as exc:
            self._outcome.set_exception(exc)

    def get(self, timeout: float = 5) -> Any:
        return self._outcome.get(timeout=timeout)


# What breaks a rule, and the code that it gets.
RULES: dict[str, tuple[Callable[[Peer], bytes], int]] = {
    "masked wrongly": (lambda peer: peer.frame(0x81, b"x", wrongly=True), 1002),
    "reserved bits": (lambda peer: peer.frame(0xB1, b"x"), 1002),
    "reserved opcode": (lambda peer: peer.frame(0x83, b"x"), 1002),
    "no frames": (lambda _: b"\xde\xad" * 100, 1002),
    "code that is never sent": (lambda peer: peer.frame(0x88, b"\x03\xed"), 1002),
    "2^62 bytes": (lambda peer: peer.announcement(2**62), 1009),
    "too much": (lambda peer: peer.frame(0x02, bytes(2**20)) + peer.frame(0x80, b"x"), 1009),
    "no UTF-8": (lambda peer: peer.frame(0x81, b"\xe2\x28"), 1007),
    "cut UTF-8": (lambda peer: peer.frame(0x01, b"\xe2\x82") + peer.frame(0x80), 1007),
}


class TestPeersThatBreakRules:
    @pytest.mark.parametrize("name", RULES)
    def test_are_told_and_so_is_the_caller(self, ends, name, caplog, capfd):
        data, code = RULES[name]
        caplog.set_level(logging.DEBUG)
        with ends() as (ws, peer):
            receiver = Spawned(ws.recv)
            peer.send(data(peer))
            with pytest.raises(
                gwt.WebSocketClosedError, match=f"locally with code {code}"
            ) as caught:
                receiver.get()
            error = caught.value
            assert (error.code, error.rcvd, error.remote) == (code, None, False)
            assert peer.close_frame() == (code, error.reason) == (ws.close_code, ws.close_reason)
            assert error.reason
            with pytest.raises(gwt.WebSocketClosedError, match=error.reason):
                ws.send("too late")
        assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
        assert all(record.levelno < logging.WARNING for record in caplog.records)

    def test_endless_fragments(self, ends, monkeypatch):
        monkeypatch.setitem(WebSocketProtocol.__init__.__kwdefaults__, "max_fragments", 1000)
        with ends() as (ws, peer):
            peer.send(peer.frame(0x02) + peer.frame(0x00) * 1000)
            with pytest.raises(gwt.WebSocketClosedError, match="1008: too many fragments"):
                ws.recv(timeout=5)

    def test_a_bomb(self, ends):
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = squeeze.compress(bytes(50 * 2**20)) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        options = {"compression": "deflate", "extensions": DEFLATE}
        with ends(**options) as (ws, peer):
            peer.send(peer.frame(0xC2, bomb[:-4]))
            with pytest.raises(gwt.WebSocketClosedError, match="1009"):
                ws.recv(timeout=5)
            assert peer.close_frame()[0] == 1009

    def test_bombs_behind_a_full_queue(self, ends):
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        with ends(compression="deflate", extensions=DEFLATE, **PINGS) as (ws, peer):
            peer.send(peer.frame(0x81, b"x") * 16 + peer.frame(0xC2, bomb[:-4]) * 50)
            eventually(lambda: ws.stats()["messages_unread"] == 16)
            peer.vanish()
            ws.wait_closed(timeout=5)
            assert ws.stats()["messages_unread"] == 16

    @pytest.mark.parametrize("how", ["reset", "end"])
    def test_by_vanishing(self, ends, how, caplog, capfd):
        caplog.set_level(logging.DEBUG)
        with ends() as (ws, peer):
            peer.send(peer.frame(0x81, b"before"))
            assert ws.recv(timeout=5) == "before"
            waiting = [Spawned(ws.recv), Spawned(ws.ping().wait)]
            if how == "reset":
                peer.vanish()
            else:
                peer.sock.close()
            for each in waiting:
                with pytest.raises(
                    gwt.WebSocketClosedError, match="without a close frame"
                ) as caught:
                    each.get()
                assert (caught.value.code, caught.value.rcvd, caught.value.sent) == (
                    1006,
                    None,
                    None,
                )
        assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
        assert all(record.levelno < logging.WARNING for record in caplog.records)


PINGS = {"ping_interval": 0.1, "ping_timeout": 0.2}

# More than the buffers of a socket take.
LOTS = bytes(20_000_000)


class TestPeersThatAreGone:
    """Nobody waits for ever, though nobody receives either."""

    def held(self, ws: gwt.WebSocket, peer: Peer) -> None:
        """Send more than is taken from the socket while nobody receives."""
        peer.send(peer.frame(0x81, b"unread") * 40)
        eventually(lambda: ws.stats()["messages_unread"] == 16)

    def test_one_that_ended_while_nobody_received(self, ends):
        with ends(**PINGS) as (ws, peer):
            self.held(ws, peer)
            peer.sock.close()
            ws.wait_closed(timeout=5)
            assert ws.close_code == 1006
            # By a ping that was answered with a reset, or did not leave, if not by being looked at.
            reasons = ("the peer is gone", "Connection reset by peer", "EOF occurred in violation")
            assert ws.close_reason.startswith(reasons)
            assert [ws.recv() for _ in range(16)] == ["unread"] * 16

    def test_one_that_is_there_is_waited_for(self, ends):
        with ends(**PINGS) as (ws, peer):
            self.held(ws, peer)
            with pytest.raises(TimeoutError):
                ws.wait_closed(timeout=1)
            assert [ws.recv(timeout=5) for _ in range(40)] == ["unread"] * 40
            assert not ws.closed

    def test_one_that_reads_nothing_while_nobody_receives(self, ends):
        with ends(**PINGS) as (ws, peer):
            sender = Spawned(lambda: [ws.send(LOTS), ws.send(b"blocked")])
            self.held(ws, peer)
            with pytest.raises(gwt.WebSocketClosedError):
                sender.get()

    def test_one_that_reads_nothing_and_pings(self, ends):
        with ends(**PINGS) as (ws, peer):
            sender = Spawned(lambda: [ws.send(LOTS), ws.send(b"blocked")])
            for _ in range(300):
                peer.send(peer.frame(0x89, b"x" * 125))
            with pytest.raises(gwt.WebSocketClosedError, match="ping timeout"):
                sender.get()

    def test_every_blocked_call_is_woken(self, ends):
        with ends(**PINGS) as (ws, _):

            def pieces():
                yield "a"
                yield "b"

            pings = [ws.ping() for _ in range(3)]
            waiting = [Spawned(ws.send, LOTS)]
            gevent.sleep(0)
            waiting += [Spawned(ws.send, b"x") for _ in range(50)]
            waiting += [Spawned(ws.send, pieces()) for _ in range(10)]
            waiting += [Spawned(ws.recv), *(Spawned(ping.wait) for ping in pings)]
            ended = [Spawned(ws.wait_closed) for _ in range(3)]
            assert waiting[0].get() is None
            for each in waiting[1:]:
                with pytest.raises(gwt.WebSocketClosedError, match="ping timeout"):
                    each.get()
            for each in ended:
                each.get()
            assert ws._connection.queued <= len(LOTS) + 100_000


def test_after_a_stall_what_waits_undecoded_counts_too():
    with hostile_server(ping_interval=0.05, ping_timeout=0.1, max_queue=None) as (ws, peer):
        head = peer.sock.recv(65536)
        ping = bytes(byte ^ head[2 + i] for i, byte in enumerate(head[6:10]))
        peer.send(peer.frame(0x81, b"x") * 3000 + peer.frame(0x8A, ping))
        while not ws._protocol.pending:
            gevent.sleep(0)
        _sleep(0.4)
        eventually(lambda: ws.stats()["messages_unread"] == 3000)
        assert not ws.closed


def test_after_a_stall_a_peer_in_the_same_process_can_still_answer():
    with hostile_server(ping_interval=0.05, ping_timeout=0.1) as (ws, peer):
        head = peer.sock.recv(65536)
        ping = bytes(byte ^ head[2 + i] for i, byte in enumerate(head[6:10]))
        _sleep(0.4)
        # The time-out is past, and found to be.
        gevent.sleep(0.01)
        peer.send(peer.frame(0x8A, ping))
        eventually(lambda: ws.latency > 0)
        assert not ws.closed


def test_after_a_stall_the_dead_are_still_found(monkeypatch):
    monkeypatch.setattr(websocket_driver, "_MAX_STALL_READING", 0.1)
    with hostile_server(ping_interval=0.05, ping_timeout=0.1) as (ws, peer):
        peer.sock.recv(65536)
        _sleep(0.4)
        with pytest.raises(gwt.WebSocketClosedError, match="ping timeout"):
            ws.recv(timeout=5)


class TestClosingMeanwhile:
    def test_a_message_in_pieces_does_not_spoil_the_close(self, ends):
        with ends() as (ws, peer):
            go = gevent.event.Event()

            def pieces():
                yield "a"
                go.wait()
                yield "b"

            sender = Spawned(ws.send, pieces())
            eventually(lambda: ws.stats()["bytes_sent"])
            closing = Spawned(ws.close, 1000, "enough")
            gevent.sleep(0)
            go.set()
            with pytest.raises(gwt.WebSocketClosed, match="enough"):
                sender.get()
            peer.send(peer.frame(0x88, b"\x03\xe8enough"))
            closing.get()
            assert (ws.close_code, ws.close_reason) == (1000, "enough")

    def test_who_waits_for_room_to_send_is_woken(self, ends):
        with ends() as (ws, _):
            ws.send(LOTS)
            sender = Spawned(ws.send, "blocked")
            gevent.sleep(0)
            ws.begin_close(4000, "enough")
            with pytest.raises(gwt.WebSocketClosedError, match="enough"):
                sender.get()
            assert ws.state.value == "closing"


def test_a_message_that_comes_in_part_does_not_keep_recv_beyond_its_timeout(ends):
    with ends() as (ws, peer):
        peer.send(
            peer.frame(0x01, b"one, ") + peer.frame(0x80, b"two") + peer.frame(0x01, b"three, ")
        )
        assert "".join(ws.recv_streaming()) == "one, two"
        for _ in range(2):
            with pytest.raises(TimeoutError):
                ws.recv(timeout=0.01)
        peer.send(peer.frame(0x00, b"four, "))
        with pytest.raises(TimeoutError):
            ws.recv(timeout=0.05)
        peer.send(peer.frame(0x80, b"five"))
        assert ws.recv(timeout=5) == "three, four, five"
        peer.send(peer.frame(0x81, b"six"))
        assert ws.recv(timeout=5) == "six"


class TestManyAtOnce:
    def test_messages_of_fifty_senders_are_whole(self):
        accepted = gevent.event.AsyncResult()

        def handler(ws: gwt.WebSocket) -> None:
            accepted.set(ws)
            ws.wait_closed()

        with server_with(handler) as server:
            host, port = server.address
            ours = gwt.connect(f"ws://{host}:{port}/ws")
            theirs = accepted.get(timeout=5)

            def pieces(n: int) -> Iterator[str]:
                for _ in range(5):
                    yield f"{n}:" * 500
                    gevent.sleep(0)

            senders = [Spawned(ours.send, pieces(n)) for n in range(15)]
            senders += [Spawned(ours.send, bytes([n]) * (n * 2000)) for n in range(35)]
            senders += [Spawned(lambda: ours.ping().wait(5)) for _ in range(10)]
            found = [theirs.recv(timeout=5) for _ in range(50)]
            for sender in senders:
                sender.get()
            ours.abort()
            texts = sorted(each for each in found if isinstance(each, str))
            assert texts == sorted(f"{n}:" * 2500 for n in range(15))
            data = sorted(each for each in found if isinstance(each, bytes))
            assert data == [bytes([n]) * (n * 2000) for n in range(35)]

    def test_closers_all_return_and_the_first_decides(self, ends):
        with ends() as (ws, peer):
            closers = [Spawned(ws.close, 4000 + n, f"{n}") for n in range(5)]
            gevent.sleep(0)
            peer.send(peer.frame(0x88, b"\x0f\xa00"))
            for closer in closers:
                closer.get()
            assert (ws.close_code, ws.close_reason) == (4000, "0")
            assert peer.close_frame() == (4000, "0")

    def test_what_is_killed_leaves_the_websocket_usable(self, ends):
        with ends() as (ws, peer):
            for call in (ws.recv, lambda: list(ws.recv_streaming()), ws.wait_closed):
                greenlet = gevent.spawn(call)
                gevent.sleep(0)
                greenlet.kill()
            peer.send(peer.frame(0x81, b"here"))
            assert ws.recv(timeout=5) == "here"
            closing = gevent.spawn(ws.close)
            gevent.sleep(0)
            closing.kill()
            peer.send(peer.frame(0x88, b"\x03\xe8"))
            ws.wait_closed(timeout=5)
            assert ws.close_code == 1000

    def test_a_killed_sender_of_pieces_ends_the_websocket(self, ends):
        with ends() as (ws, _):

            def pieces():
                yield "half"
                gevent.event.Event().wait()

            sender = gevent.spawn(ws.send, pieces())
            gevent.sleep(0)
            behind = Spawned(ws.send, "whole")
            sender.kill()
            with pytest.raises(gwt.WebSocketClosedError, match="1011"):
                behind.get()


def test_a_peer_that_never_reads_makes_senders_wait_and_nothing_grow(ends):
    with ends(ping_interval=None) as (ws, _):
        sent = 0

        def flood() -> None:
            nonlocal sent
            for sent in range(10_000):  # noqa: B007
                ws.send(bytes(100_000))

        flooding = Spawned(flood)
        before = -1
        while sent != before:
            before = sent
            gevent.sleep(0.05)
        for message in (b"x", iter([b"x"])):
            with pytest.raises(TimeoutError):
                ws.send(message, timeout=0)
        assert sent == before < 1000
        assert ws.stats()["bytes_unsent"] < 64 * 1024 + 100_014
        ws.close(timeout=0.05)
        assert (ws.close_code, ws.close_reason) == (1006, "no close frame came back")
        with pytest.raises(gwt.WebSocketClosed, match="locally"):
            flooding.get()


def test_recv_without_time_finds_what_is_there(ends):
    with ends() as (ws, peer):
        with pytest.raises(TimeoutError):
            ws.recv(timeout=0)
        peer.send(peer.frame(0x81, b"x") * 2)
        assert ws.recv(timeout=5) == "x"
        assert ws.recv(timeout=0) == "x"


def test_who_sends_to_one_that_is_gone_is_told(ends):
    with ends() as (ws, peer):
        peer.vanish()
        # Without a turn of the loop between, which alone could tell.
        with pytest.raises(gwt.WebSocketClosedError):
            for _ in range(10_000):
                ws.send(b"x")
        assert ws.closed and ws.close_code == 1006
