"""Rooms of WebSockets over real loopback sockets: what arrives, in which order, and who is slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gwt
from gwt import certificates
from gwt.manager.broadcast import let_the_loop_run
from gwt.net.tcp import TcpConnection
from gwt.net.waiting import Deadline
from gwt.protocol import wsframes
from gwt.protocol.deflate import Compression, compress_once


@contextmanager
def room(count: int = 3, **options: Any) -> Iterator[tuple[Any, list[gwt.WebSocket]]]:
    """A server whose WebSockets all join the room "r", in the order of their clients' numbers."""
    client = options.pop("client", {})
    manager = options.pop("manager", None)
    scheme = options.pop("scheme", "ws")
    app = gwt.App()

    @app.websocket("/<name>")
    def handler(ws, name):
        hub = manager if manager is not None else server.rooms
        hub.join_room(hub.add(ws, name), "r")
        ws.wait_closed()

    options.setdefault("stop_timeout", 0.5)
    server = gwt.Server(app, "127.0.0.1:0", http3=False, **options)
    clients: list[gwt.WebSocket] = []
    with server:
        host, port = server.address
        try:
            for number in range(count):
                clients.append(gwt.connect(f"{scheme}://{host}:{port}/{number}", **client))
            rooms = manager if manager is not None else server.rooms
            eventually(lambda: len(rooms) == count)
            yield rooms, clients
        finally:
            for each in clients:
                each.abort()
            if manager is not None:
                manager.shutdown(timeout=1)


def eventually(condition: Any) -> None:
    deadline = Deadline(5)
    while not condition():
        assert not deadline.expired
        gevent.sleep(0.001)


def received(client: gwt.WebSocket, count: int) -> list[Any]:
    return [client.recv(timeout=5) for _ in range(count)]


class TestBroadcast:
    @pytest.mark.parametrize("options", [{}, {"compression": "deflate"}], ids=["plain", "deflate"])
    @pytest.mark.parametrize("message", ["text", b"\x00\xff", "Grüße " * 100, ""], ids=repr)
    def test_reaches_everybody_as_what_it_is(self, message, options):
        with room(3, **options) as (rooms, clients):
            assert rooms.broadcast_to_room("r", message) == (3, 0, 0, 0)
            assert [received(each, 1) for each in clients] == [[message]] * 3

    def test_later_ones_of_a_turn_are_queued_and_come_in_order(self):
        with room(3) as (rooms, clients):
            results = [rooms.broadcast_to_all(str(number)) for number in range(10)]
            assert [tuple(each) for each in results] == [(3, 0, 0, 0)] + [(0, 3, 0, 0)] * 9
            for each in clients:
                assert received(each, 10) == [str(number) for number in range(10)]

    def test_later_ones_of_a_turn_leave_in_one_write(self, monkeypatch):
        writes: list[int] = []
        send = TcpConnection.send
        monkeypatch.setattr(
            TcpConnection, "send", lambda self, data: writes.append(len(data)) or send(self, data)
        )
        with room(1) as (rooms, clients):
            writes.clear()
            for number in range(10):
                rooms.broadcast_to_all(str(number))
            assert received(clients[0], 10) == [str(number) for number in range(10)]
            assert writes == [3, 27]

    def test_compresses_once_for_all_without_context_takeover(self, monkeypatch):
        message = "the same again, " * 100
        compressed: list[bytes] = []
        monkeypatch.setattr(
            wsframes,
            "compress_once",
            lambda data, *args: compressed.append(data) or compress_once(data, *args),
        )
        with room(4, compression="deflate") as (rooms, clients):
            for _ in range(2):
                rooms.broadcast_to_all(message)
            assert [received(each, 2) for each in clients] == [[message] * 2] * 4
            assert len(compressed) == 2
            stats = next(iter(rooms)).stats()
            assert stats["messages_sent"] == 2 and stats["bytes_sent"] < 200

    def test_with_context_takeover_each_gets_its_own_in_order(self):
        option = Compression(no_context_takeover=False, threshold=0)
        texts = [f"message {number}, much like the others" for number in range(20)]
        client = {"compression": option}
        with room(3, compression=option, client=client) as (rooms, clients):
            assert {ws.kind for ws in rooms} == {None}
            for number, text in enumerate(texts):
                rooms.broadcast_to_all(text)
                for ws in rooms:
                    ws.send(f"own {number}")
            expected = [each for n, text in enumerate(texts) for each in (text, f"own {n}")]
            assert [received(each, 40) for each in clients] == [expected] * 3

    def test_of_clients_is_masked_for_each(self):
        with room(3) as (rooms, clients), gwt.WebSocketManager() as ours:
            for each in clients:
                ours.add(each)
            assert ours.broadcast("hello").sent == 3
            ours.broadcast("again")
            for ws in rooms:
                assert [ws.recv(timeout=5), ws.recv(timeout=5)] == ["hello", "again"]

    def test_is_never_overtaken_by_what_a_member_sends_itself(self):
        with room(1) as (rooms, clients):
            (ws,) = rooms
            rooms.broadcast_to_all("1")
            rooms.broadcast_to_all("2")
            ws.send("3")
            rooms.broadcast_to_all("4")
            ws.send(["5", ", in pieces"])
            rooms.broadcast_to_all("6")
            ws.ping()
            rooms.broadcast_to_all("7")
            ws.begin_close()
            assert rooms.broadcast_to_all("8") == (0, 0, 0, 1)
            assert list(clients[0]) == ["1", "2", "3", "4", "5, in pieces", "6", "7"]
            assert clients[0].close_code == 1000

    @pytest.mark.parametrize(
        "options", [{}, {"compression": Compression(no_context_takeover=False, threshold=0)}]
    )
    def test_waits_for_the_end_of_a_message_in_fragments(self, options):
        client = {"compression": options.get("compression")}
        with room(1, client=client, **options) as (rooms, clients):
            (ws,) = rooms
            go = Event()

            def pieces():
                yield "begun"
                go.wait()
                yield ", finished"

            sending = gevent.spawn(ws.send, pieces())
            gevent.sleep(0.01)
            assert rooms.broadcast_to_all("1") == (0, 1, 0, 0)
            assert rooms.broadcast_to_all("2") == (0, 1, 0, 0)
            gevent.sleep(0.01)
            go.set()
            sending.join()
            rooms.broadcast_to_all("3")
            assert received(clients[0], 4) == ["begun, finished", "1", "2", "3"]

    def test_a_message_in_fragments_that_fails_takes_what_waits_along(self):
        with room(1) as (rooms, clients):
            (ws,) = rooms

            def pieces():
                yield "begun"
                rooms.broadcast_to_all("x")
                raise ValueError("no more")

            with pytest.raises(ValueError, match="no more"):
                ws.send(pieces())
            with pytest.raises(gwt.WebSocketClosedError):
                clients[0].recv(timeout=5)
            assert clients[0].close_code == 1011

    def test_over_tls(self, tmp_path):
        files = certificates.write(tmp_path, certificates.generate())
        options = {"certfile": str(files[0]), "keyfile": str(files[1])}
        with room(2, client={"verify": False}, scheme="wss", **options) as (rooms, clients):
            for number in range(10):
                rooms.broadcast_to_all(str(number))
            big = "x" * 900_000
            rooms.broadcast_to_all(big)
            for each in clients:
                assert received(each, 11) == [*map(str, range(10)), big]

    def test_a_message_larger_than_the_outbox_goes_where_nothing_waits(self):
        manager = gwt.WebSocketManager(outbox_bytes=1000)
        with room(2, manager=manager) as (rooms, clients):
            big = b"x" * 800_000
            assert rooms.broadcast_to_all(big).closed == 0
            assert [received(each, 1) for each in clients] == [[big]] * 2

    def test_what_waits_for_the_end_of_fragments_is_bounded(self):
        manager = gwt.WebSocketManager(outbox_bytes=100, slow_consumer="drop")
        with room(1, manager=manager) as (rooms, clients):
            (ws,) = rooms
            go = Event()

            def pieces():
                yield "begun"
                go.wait()

            sending = gevent.spawn(ws.send, pieces())
            gevent.sleep(0.01)
            results = [rooms.broadcast_to_all("x" * 30) for _ in range(5)]
            assert [tuple(each) for each in results] == [(0, 1, 0, 0)] * 3 + [(0, 0, 1, 0)] * 2
            go.set()
            sending.join()
            assert received(clients[0], 4) == ["begun"] + ["x" * 30] * 3


class TestMembers:
    def test_a_websocket_that_was_not_accepted_yet_is(self):
        def application(environ, start_response):
            ws = environ["wsgi.websocket"]
            server.rooms.add(ws, "lazy")
            server.rooms.broadcast_to_all("welcome")
            ws.wait_closed()
            return []

        server = gwt.Server(application, "127.0.0.1:0", http3=False, stop_timeout=0.5)
        with server, gwt.connect("ws://{}:{}/".format(*server.address)) as client:
            assert client.recv(timeout=5) == "welcome"
            assert server.stats()["rooms"]["members"] == 1

    def test_coming_and_going_leaves_nothing_behind(self):
        with room(1) as (rooms, _):
            (ws,) = rooms
            before = len(ws._end_callbacks)
            for _ in range(100):
                rooms.remove(ws)
                rooms.join_room(rooms.add(ws, "x"), "s")
            assert len(ws._end_callbacks) == before


class TestEnds:
    def test_a_peer_that_leaves_leaves_its_rooms(self):
        with room(3) as (rooms, clients):
            clients[0].close()
            eventually(lambda: len(rooms) == 2)
            assert rooms.rooms["r"] == {"1", "2"}
            clients[1].abort()
            eventually(lambda: len(rooms) == 1)
            assert rooms.broadcast_to_room("r", "x") == (1, 0, 0, 0)

    def test_a_broken_connection_counts_as_closed(self):
        with room(2) as (rooms, clients):
            gone = rooms.connections["0"]
            gone._connection._raw.shutdown(2)
            assert rooms.broadcast_to_all("x") == (1, 0, 0, 1)
            eventually(lambda: len(rooms) == 1)
            assert received(clients[1], 1) == ["x"]

    def test_the_server_stops(self):
        with room(2) as (rooms, clients):
            pass
        assert len(rooms) == 0 and not rooms.running
        with pytest.raises(gwt.GwtError):
            rooms.add(clients[0])

    def test_close_all_waits_for_the_peers(self):
        with room(3) as (rooms, clients):
            rooms.close_all()
            assert len(rooms) == 0
            eventually(lambda: all(each.closed for each in clients))
            assert {each.close_code for each in clients} == {1001}
            assert {each.close_reason for each in clients} == {"Server is shutting down"}

    def test_track_serves_a_client(self):
        with room(1) as (rooms, clients), gwt.WebSocketManager() as ours:
            seen: list[Any] = []
            greenlet = ours.track(clients[0], lambda ws: seen.append(ws.recv()))
            rooms.broadcast_to_all("x")
            greenlet.join()
            assert seen == ["x"] and len(ours) == 0
            clients[0].wait_closed(timeout=5)
            assert clients[0].close_code == 1000


class TestSlowPeers:
    """Peers that do not read: their sockets are full, here and there."""

    @contextmanager
    def slow(self, **options: Any) -> Iterator[Any]:
        manager = gwt.WebSocketManager(outbox_bytes=100_000, **options)
        client = {"max_queue": 1, "ping_interval": None}
        with room(2, manager=manager, client=client, ping_interval=None) as (rooms, clients):
            quick: list[Any] = []
            reader = gevent.spawn(lambda: quick.extend(received_until_the_end(clients[1])))
            try:
                yield rooms, clients[0], quick
            finally:
                clients[1].abort()
                reader.join()

    def flood(self, rooms: Any, quick: list[Any], until: Any) -> list[gwt.BroadcastResult]:
        results: list[gwt.BroadcastResult] = []
        while not results or not until(results[-1]):
            assert len(results) < 20_000
            # As fast as the quick one reads, whom the network may still keep waiting.
            eventually(lambda: len(results) - len(quick) < 5)
            results.append(rooms.broadcast_to_all("x" * 10_000))
            let_the_loop_run()
        return results

    def test_are_closed_with_1013_and_the_others_get_everything(self):
        with self.slow() as (rooms, slow, quick):
            ws = rooms.connections["0"]
            results = self.flood(rooms, quick, lambda each: each.closed)
            assert "0" not in rooms and rooms.slow_closed == 1
            assert ws.stats()["bytes_unsent"] <= 100_000 + 64
            eventually(lambda: len(quick) == len(results))
            messages = list(received_until_the_end(slow))
            assert len(messages) == len(results) - 1
            assert slow.close_code == 1013

    def test_or_lose_messages(self):
        with self.slow(slow_consumer="drop") as (rooms, slow, quick):
            results = self.flood(rooms, quick, lambda each: each.dropped)
            eventually(lambda: len(quick) == len(results))
            for _ in range(len(results) - 1):
                slow.recv(timeout=5)
            eventually(lambda: rooms.broadcast_to_all("again").dropped == 0)
            assert slow.recv(timeout=5) == "again"

    def test_or_are_waited_for(self):
        with self.slow(slow_consumer="block", block_timeout=20) as (rooms, slow, quick):
            stop: list[bool] = []
            flooding = gevent.spawn(self.flood, rooms, quick, lambda _: stop)
            eventually(lambda: rooms._members["0"].blocked)
            stop.append(True)
            gevent.sleep(0.01)
            assert not flooding.ready()
            slow.recv(timeout=5)
            got = 1
            while not flooding.ready():
                slow.recv(timeout=5)
                got += 1
            results = flooding.get()
            assert all(each.closed == each.dropped == 0 for each in results)
            got += len(received(slow, len(results) - got))
            eventually(lambda: len(quick) == got)

    def test_who_floods_without_a_pause_closes_nobody_who_reads(self):
        # The loop has no time to find that the sockets have room: broadcasts give it some.
        manager = gwt.WebSocketManager(outbox_bytes=50_000)
        with room(2, manager=manager) as (rooms, clients):
            count = 3000
            readers = [gevent.spawn(received, each, count) for each in clients]
            for number in range(count):
                rooms.broadcast_to_all(f"{number} {'x' * 50}")
            assert rooms.slow_closed == 0
            for each in readers:
                assert [int(text.split()[0]) for text in each.get(timeout=10)] == [*range(count)]


def received_until_the_end(client: gwt.WebSocket) -> Iterator[Any]:
    try:
        while True:
            yield client.recv(timeout=5)
    except gwt.WebSocketClosed:
        return
