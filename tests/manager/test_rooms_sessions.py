"""WebTransport sessions in rooms, beside WebSockets, over real QUIC on loopback."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket

import gwt
from tests.helpers import eventually, live


class Hub:
    """A server whose sessions and WebSockets join the room "r", and its manager."""

    def __init__(self, server: gwt.Server, rooms: gwt.WebSocketManager) -> None:
        self.server = server
        self.rooms = rooms
        # The server's ends, by id.
        self.ends: dict[str, Any] = rooms.connections
        self._stack = ExitStack()

    def session(self, name: str, **options: Any) -> gwt.WebTransportSession:
        session = live.connect(self.server, f"/{name}", **options)
        self._stack.callback(session.abort)
        eventually(lambda: name in self.rooms)
        return session

    def websocket(self, name: str) -> gwt.WebSocket:
        host, port = self.server.address
        ws = gwt.connect(f"ws://{host}:{port}/{name}")
        self._stack.callback(ws.abort)
        eventually(lambda: name in self.rooms)
        return ws

    def leave(self) -> None:
        self._stack.close()


@contextmanager
def hub(
    *, framing: str = "messages", reliable: bool = True, options: Any = None, **manager: Any
) -> Iterator[Hub]:
    rooms = gwt.WebSocketManager(**manager)
    app = gwt.App()

    @app.webtransport("/<name>")
    @app.websocket("/<name>")
    def handler(member, name):
        rooms.join_room(rooms.add(member, name, framing=framing), "r", reliable=reliable)
        member.wait_closed()

    with live.serving(app, **(options or {})) as server:
        it = Hub(server, rooms)
        try:
            yield it
        finally:
            it.leave()
            rooms.shutdown(timeout=1)


def reader(session: gwt.WebTransportSession, **options: Any) -> Iterator[str | bytes]:
    return gwt.read_messages(session.accept_unidirectional_stream(timeout=5), **options)


def take(messages: Iterator[Any], count: int) -> list[Any]:
    return [next(messages) for _ in range(count)]


MESSAGES = ["text", b"\x00\xff", "Grüße " * 100, "", b"", "x" * 70_000]


class TestOneStream:
    def test_messages_come_in_order_as_what_they_are(self):
        with hub() as it:
            clients = [it.session(str(number)) for number in range(3)]
            results = [tuple(it.rooms.broadcast_to_room("r", message)) for message in MESSAGES]
            # What follows in a turn waits for its end, and leaves by one write.
            assert results == [(3, 0, 0, 0)] + [(0, 3, 0, 0)] * (len(MESSAGES) - 1)
            for client in clients:
                assert take(reader(client), len(MESSAGES)) == MESSAGES
                # One stream carried them all.
                assert client.stats()["streams_waiting"] == 0

    def test_beside_websockets_all_hear_the_same(self):
        with hub() as it:
            session, ws = it.session("session"), it.websocket("ws")
            results = [it.rooms.broadcast_to_all(message) for message in MESSAGES]
            assert all(sum(result) == 2 for result in results)
            assert take(reader(session), len(MESSAGES)) == MESSAGES
            assert [ws.recv(timeout=5) for _ in MESSAGES] == MESSAGES
            assert it.rooms.broadcast_to_room("r", "for one", exclude=["ws"]) == (1, 0, 0, 0)

    def test_what_fits_in_no_buffer_comes_whole_and_what_follows_behind_it(self):
        large = bytes(range(256)) * 4096 * 3
        with hub(outbox_bytes=2**23) as it:
            session = it.session("a")
            assert it.rooms.broadcast_to_all(large) == (0, 1, 0, 0)
            assert it.rooms.broadcast_to_all("behind") == (0, 1, 0, 0)
            messages = reader(session, max_size=None)
            assert take(messages, 2) == [large, "behind"]
            # All of it was taken: the next one needs no greenlet.
            eventually(lambda: it.rooms.broadcast_to_all("again") == (1, 0, 0, 0))
            assert next(messages) == "again"

    def test_a_room_of_nobody_opens_no_stream(self):
        with hub() as it:
            it.session("a")
            it.rooms.leave_room("a", "r")
            assert it.rooms.broadcast_to_room("r", "x") == (0, 0, 0, 0)
            assert it.ends["a"].stats()["streams_opened"] == 0

    def test_removal_ends_the_stream_and_not_the_session(self):
        with hub() as it:
            session = it.session("a")
            it.rooms.broadcast_to_all("last")
            it.rooms.remove_connection("a")
            assert list(reader(session)) == ["last"]
            assert not session.is_closed

    def test_text_that_is_not_unicode_is_the_caller_s_error(self):
        with hub() as it:
            it.session("a")
            with pytest.raises(gwt.LocalProtocolError):
                it.rooms.broadcast_to_all("\ud800")
            assert it.rooms.broadcast_to_all("fine") == (1, 0, 0, 0)

    def test_a_peer_without_credit_for_a_stream_gets_all_once_it_has_some(self):
        with hub() as it:
            session = it.session("a", max_incoming_streams=8)
            end = it.ends["a"]
            # The application has used it up.
            while (stream := end.open_now(True)) is not None:
                stream.write_all(b"own")
            assert it.rooms.broadcast_to_all("1") == (0, 1, 0, 0)
            assert it.rooms.broadcast_to_all(b"2") == (0, 1, 0, 0)
            while (incoming := session.accept_unidirectional_stream(timeout=5)).readexactly(
                3
            ) == b"own":
                assert incoming.read(timeout=5) == b""
            assert incoming.readexactly(3, timeout=5) == b"\x02\x012"


@pytest.mark.parametrize("seed", range(4))
def test_whoever_comes_and_goes_all_hear_what_they_should_in_one_order(seed):
    rng = random.Random(seed)
    names = [f"{kind}{number}" for number in range(3) for kind in ("session", "ws")]
    with hub() as it:
        clients = {
            name: it.session(name) if name.startswith("session") else it.websocket(name)
            for name in names
        }
        expected: dict[str, list[str]] = {name: [] for name in names}
        gone: set[str] = set()
        for number in range(60):
            name, room = rng.choice(names), rng.choice(["r", "s"])
            members = it.rooms.get_room_connections(room)
            match rng.choice(["join", "leave", "say", "say", "say to all", "run", "end"]):
                case "join" if name not in gone:
                    it.rooms.join_room(name, room)
                case "leave":
                    it.rooms.leave_room(name, room)
                case "say":
                    message = f"{number}" * rng.choice([1, 1, 1000])
                    result = it.rooms.broadcast_to_room(room, message, exclude=[name])
                    hearing = members - {name}
                    assert sum(result) == len(hearing) == result.sent + result.queued
                    for each in hearing:
                        expected[each].append(message)
                case "say to all":
                    assert sum(it.rooms.broadcast_to_all(f"{number}")) == len(names) - len(gone)
                    for each in set(names) - gone:
                        expected[each].append(f"{number}")
                case "run":
                    gevent.sleep(0)
                case "end" if len(gone) < 2:
                    clients[name].abort()
                    gone.add(name)
                    eventually(lambda name=name: name not in it.rooms)
        it.rooms.broadcast_to_all("the end")
        for name in set(names) - gone:
            client = clients[name]
            told = iter(client) if name.startswith("ws") else reader(client)
            assert list(iter(told.__next__, "the end")) == expected[name], name


class TestFraming:
    def test_a_stream_for_each_message_has_its_payload_and_nothing_else(self):
        with hub(framing="stream") as it:
            session = it.session("a")
            sent = [b"%d" % number * 1000 for number in range(200)]
            for message in sent:
                assert sum(it.rooms.broadcast_to_all(message)[:2]) == 1
            came = [session.accept_unidirectional_stream(timeout=5).read_all() for _ in sent]
            assert sorted(came) == sorted(sent)

    def test_what_does_not_fit_in_a_stream_s_buffer_follows(self):
        large = bytes(3 * 2**20)
        with hub(framing="stream", outbox_bytes=2**23) as it:
            session = it.session("a")
            assert it.rooms.broadcast_to_all(large) == (0, 1, 0, 0)
            stream = session.accept_unidirectional_stream(timeout=5)
            assert stream.read_all(timeout=5) == large

    def test_a_stream_that_the_peer_stops_costs_that_message_only(self):
        with hub(framing="stream", outbox_bytes=2**23) as it:
            session = it.session("a")
            it.rooms.broadcast_to_all(bytes(3 * 2**20))
            it.rooms.broadcast_to_all("next")
            session.accept_unidirectional_stream(timeout=5).stop()
            stream = session.accept_unidirectional_stream(timeout=5)
            assert stream.read_all(timeout=5) == b"next"
            assert "a" in it.rooms

    def test_a_framing_that_does_not_exist_is_refused(self):
        with hub() as it:
            it.session("a")
            session = it.ends["a"]
            it.rooms.remove(session)
            with pytest.raises(ValueError, match="framing"):
                it.rooms.add(session, framing="none")


class TestUnreliable:
    def test_datagrams_carry_the_payload(self):
        with hub(reliable=False) as it:
            session, ws = it.session("session"), it.websocket("ws")
            assert it.rooms.broadcast_to_room("r", "Grüße") == (2, 0, 0, 0)
            assert session.receive_datagram(timeout=5) == "Grüße".encode()
            assert ws.recv(timeout=5) == "Grüße"

    def test_what_is_too_large_is_dropped_and_counted(self):
        with hub(reliable=False) as it:
            session = it.session("a")
            assert it.rooms.broadcast_to_room("r", bytes(5000)) == (0, 0, 1, 0)
            largest = bytes(it.ends["a"].max_datagram_size)
            assert it.rooms.broadcast_to_room("r", largest) == (1, 0, 0, 0)
            assert session.receive_datagram(timeout=5) == largest
            assert it.rooms.stats()["dropped"] == 1

    def test_it_is_a_matter_of_the_room_and_can_be_changed(self):
        with hub(reliable=False) as it:
            session = it.session("a")
            it.rooms.join_room("a", "sure")
            assert it.rooms.broadcast_to_room("sure", "1") == (1, 0, 0, 0)
            assert it.rooms.broadcast_to_all("2") == (0, 1, 0, 0)
            it.rooms.join_room("a", "r")
            assert it.rooms.broadcast_to_room("r", "3") == (0, 1, 0, 0)
            assert take(reader(session), 3) == ["1", "2", "3"]

    def test_a_session_that_has_ended_leaves(self):
        with hub(reliable=False) as it:
            it.session("a").abort()
            eventually(lambda: "a" not in it.rooms)
            assert it.rooms.rooms == {}


def flood(it: Hub, size: int = 16384, most: int = 2000) -> gwt.BroadcastResult:
    """Broadcast until something else than "sent" and "queued" comes of it; return that."""
    for _ in range(most):
        result = it.rooms.broadcast_to_room("r", bytes(size))
        if result.dropped or result.closed:
            return result
        gevent.sleep(0)
    raise AssertionError("nobody was ever too slow")


class TestSlow:
    def test_closed_with_1013_and_forgotten_while_others_go_on(self):
        with hub(outbox_bytes=256 * 1024) as it:
            slow, ws = it.session("slow"), it.websocket("ws")
            hearing = gevent.spawn(lambda: sum(1 for _ in ws))
            try:
                server_end = it.ends["slow"]
                assert flood(it).closed == 1
                assert "slow" not in it.rooms and "ws" in it.rooms
                slow.wait_closed(timeout=5)
                assert (slow.close_code, slow.close_reason) == (1013, "too slow")
                assert it.rooms.stats()["slow_closed"] == 1
                # Nothing is kept for it.
                eventually(lambda: server_end.connection.stats()["bytes_buffered"] == 0)
                assert it.rooms.broadcast_to_all("on") != (0, 0, 0, 1)
            finally:
                hearing.kill()

    def test_dropped_messages_are_gaps_in_the_order(self):
        with hub(outbox_bytes=65536, slow_consumer="drop") as it:
            session = it.session("a")
            dropped, number = [], 0
            while len(dropped) < 20:
                message = b"%8d" % number + bytes(16384)
                if it.rooms.broadcast_to_all(message).dropped:
                    dropped.append(number)
                number += 1
                gevent.sleep(0)
            expected = [each for each in range(number) if each not in dropped]
            messages = reader(session)
            assert [int(next(messages)[:8]) for _ in expected] == expected
            eventually(lambda: it.rooms.broadcast_to_all("now") == (1, 0, 0, 0))
            assert next(messages) == "now"

    def test_blocked_until_it_reads(self):
        with hub(outbox_bytes=65536, slow_consumer="block", block_timeout=30) as it:
            session = it.session("a")

            def broadcast() -> None:
                for number in range(400):
                    assert sum(it.rooms.broadcast_to_all(b"%8d" % number + bytes(16384))[:2]) == 1

            broadcasting = gevent.spawn(broadcast)
            # No more than the buffers of both ends hold.
            broadcasting.join(timeout=0.2)
            assert not broadcasting.dead
            messages = reader(session)
            assert [int(next(messages)[:8]) for _ in range(400)] == list(range(400))
            broadcasting.get(timeout=5)

    def test_blocked_no_longer_than_asked_and_then_closed(self):
        with hub(outbox_bytes=65536, slow_consumer="block", block_timeout=0.05) as it:
            session = it.session("a")
            assert flood(it).closed == 1
            session.wait_closed(timeout=5)
            assert session.close_code == 1013

    @pytest.mark.parametrize("framing", ["messages", "stream"])
    def test_holds_no_more_than_its_bounds(self, framing):
        with hub(framing=framing, outbox_bytes=2**20, slow_consumer="drop") as it:
            it.session("a")
            assert flood(it, 1000, 10_000).dropped == 1
            stats = it.ends["a"].connection.stats()
            # The stream's send buffer; with a stream each, what may be unacknowledged on them.
            assert stats["bytes_buffered"] <= (2**20 if framing == "messages" else 300 * 1024)
            assert it.ends["a"].stats()["streams_opened"] <= 512


class TestEnd:
    def test_close_all_delivers_what_was_sent_and_tells_the_code(self):
        with hub(outbox_bytes=2**23) as it:
            session = it.session("a")
            large = bytes(3 * 2**20)
            it.rooms.broadcast_to_all(large)
            it.rooms.broadcast_to_all("last words")
            closing = gevent.spawn(it.rooms.close_all, 4000, "enough")
            assert list(reader(session, max_size=None)) == [large, "last words"]
            session.wait_closed(timeout=5)
            assert (session.close_code, session.close_reason) == (4000, "enough")
            closing.get(timeout=5)
            assert len(it.rooms) == 0

    def test_a_peer_that_wants_no_messages_leaves_and_keeps_its_session(self):
        with hub() as it:
            session = it.session("a")
            it.rooms.broadcast_to_all("x")
            session.accept_unidirectional_stream(timeout=5).stop()
            eventually(lambda: it.rooms.broadcast_to_all("y").closed == 1)
            assert "a" not in it.rooms
            assert not session.is_closed

    def test_a_dead_session_among_others_is_counted_as_closed_and_costs_nobody_anything(self):
        with hub() as it:
            dead, alive = it.session("dead"), it.session("alive")
            end = it.ends["dead"]
            it.rooms.broadcast_to_all("1")
            end.drain()
            assert it.rooms.broadcast_to_all("2") == (0, 2, 0, 0)
            end.abort()
            assert it.rooms.broadcast_to_all("3") == (0, 1, 0, 0)
            assert take(reader(alive), 3) == ["1", "2", "3"]
            dead.wait_closed(timeout=5)

    def test_end_while_a_writer_waits_leaves_nothing(self):
        with hub(outbox_bytes=2**23) as it:
            session = it.session("a")
            it.rooms.broadcast_to_all(bytes(3 * 2**20))
            session.abort()
            eventually(lambda: "a" not in it.rooms)
            # conftest sees what is left of its greenlet.
            assert it.rooms.broadcast_to_all("x") == (0, 0, 0, 0)


def test_a_peer_that_leaves_at_once_fails_no_handler(caplog):
    # Its close comes with its request: the handler finds it ended.
    upgrade = (
        b"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with hub() as it:
        with socket.create_connection(it.server.address) as sock:
            sock.sendall(upgrade + b"\x88\x80mask")
            while sock.recv(4096):
                pass
        eventually(lambda: it.rooms.stats()["total_closed"] == 1)
        eventually(lambda: it.server.stats()["handlers"] == 0)
        with pytest.raises(KeyError, match="no member with the id 'a'"):
            it.rooms.join_room("a", "r")
        assert not it.server.stats().get("handler_errors")
    assert "failed" not in caplog.text
