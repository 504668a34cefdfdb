"""Rooms of WebSockets over real loopback sockets: what arrives, in which order, and who is slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

import gwt
from gwt.net.waiting import Deadline


@contextmanager
def room(count: int = 3, **options: Any) -> Iterator[tuple[Any, list[gwt.WebSocket]]]:
    """A server whose WebSockets all join the room "r", in the order of their clients' numbers."""
    client = options.pop("client", {})
    manager = options.pop("manager", None)
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
                clients.append(gwt.connect(f"ws://{host}:{port}/{number}", **client))
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
