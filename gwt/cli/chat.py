"""
The demo's chat: rooms of WebSockets and WebTransport sessions, and who is there by which of them.

A peer says its name in the query (``?name=ann``) and gets JSON: ``{"type": "members", "count": 2,
"joined": "ann", "members": [{"name": "ann", "transport": "WebSocket"}, ...]}`` whenever somebody
came, or ``"left"``, and ``{"type": "message", "name": "ann", "text": "hello"}``, its own messages
included. What it says is plain text: messages of a WebSocket; of a session those on unidirectional
streams, framed as in rooms, the lines of bidirectional ones, as a terminal writes them, and
datagrams.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

from gevent import sleep
from gevent.lock import BoundedSemaphore
from gevent.pool import Group

import gwt

__all__ = ["MAX_MESSAGE", "Chat"]

# Bytes of a message, characters that are passed on of it, and characters of a name.
MAX_MESSAGE = 8192
_MAX_TEXT = 2000
_MAX_NAME = 32

# Messages that one may say at once, and a second. Who says more is read more slowly: nothing is
# lost, and flow control tells the peer.
_BURST = 100
_RATE = 20.0

# Up to how many are told by name who is there; more are only counted.
_MOST_NAMED = 50


class Chat:
    """Handles a WebSocket or a session in a room, until it has ended."""

    def __init__(self) -> None:
        # Where all are members; the server's own once there is one.
        self.rooms = gwt.WebSocketManager()

        # The members of each room by id: their names, and their transports.
        self._people: dict[str, dict[Hashable, dict[str, str]]] = {}

    def __call__(self, peer: gwt.WebSocket | gwt.WebTransportSession, room: str) -> None:
        """Let one into a room, and pass on what it says."""
        if peer.is_closed:
            return
        name = self._enter(peer, room)
        try:
            self._tell_members(room, "joined", name)
            _listen(peer, _paced(lambda text: self._tell(room, "message", name=name, text=text)))
        finally:
            self._leave(peer, room)

    def _enter(self, peer: gwt.WebSocket | gwt.WebTransportSession, room: str) -> str:
        key = self.rooms.add(peer)
        self.rooms.join_room(key, _key(room))
        people = self._people.setdefault(room, {})
        name = _free_name(_wanted_name(peer), {person["name"] for person in people.values()})
        by = "WebSocket" if isinstance(peer, gwt.WebSocket) else "WebTransport"
        people[key] = {"name": name, "transport": by}
        return name

    def _leave(self, peer: gwt.WebSocket | gwt.WebTransportSession, room: str) -> None:
        self.rooms.remove(peer)
        people = self._people[room]
        gone = people.pop(peer.id)
        if people:
            self._tell_members(room, "left", gone["name"])
        else:
            del self._people[room]

    def _tell_members(self, room: str, change: str, name: str) -> None:
        people = self._people[room]
        facts: dict[str, Any] = {"count": len(people), change: name}
        if len(people) <= _MOST_NAMED:
            facts["members"] = list(people.values())
        self._tell(room, "members", **facts)

    def _tell(self, room: str, kind: str, **facts: Any) -> None:
        text = json.dumps({"type": kind, **facts}, ensure_ascii=False)
        self.rooms.broadcast_to_room(_key(room), text)


def _key(room: str) -> str:
    # The manager's rooms are for others, too.
    return f"chat/{room}"


def _wanted_name(peer: gwt.WebSocket | gwt.WebTransportSession) -> str:
    if isinstance(peer, gwt.WebSocket):
        query = peer.request.query
    else:
        query = dict(parse_qsl(peer.path.partition("?")[2]))
    return _clean(query.get("name", ""))[:_MAX_NAME].strip() or "guest"


def _clean(text: str) -> str:
    """Return what of a text can be shown on one line; what is not Unicode is replaced."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(each if each.isprintable() else " " for each in text).strip()


def _free_name(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free


def _paced(say: Callable[[str], object]) -> Callable[[str], None]:
    """Return `say` for what a peer may say as often as it likes."""
    one_at_a_time = BoundedSemaphore()
    # When a peer that keeps to the rate would say what comes next.
    due = time.monotonic()

    def paced(text: str) -> None:
        nonlocal due
        text = _clean(text)[:_MAX_TEXT]
        if not text:
            return
        with one_at_a_time:
            now = time.monotonic()
            due = max(due, now) + 1 / _RATE
            sleep(max(0.0, due - now - _BURST / _RATE))
            say(text)

    return paced


def _listen(peer: gwt.WebSocket | gwt.WebTransportSession, say: Callable[[str], None]) -> None:
    """Hand on what a peer says, until it has ended."""
    if isinstance(peer, gwt.WebSocket):
        with suppress(gwt.WebSocketClosed):
            for message in peer:
                if isinstance(message, str):
                    say(message)
        return
    children = Group()
    try:
        children.spawn(_hear_datagrams, peer, say)
        for stream in peer:
            hear = _hear_lines if isinstance(stream, gwt.WebTransportStream) else _hear_messages
            children.spawn(_hear, hear, stream, say)
    finally:
        children.kill()


def _hear(hear: Callable[..., None], stream: Any, say: Callable[[str], None]) -> None:
    try:
        hear(stream, say)
        stream.close()
    except (gwt.StreamError, gwt.SessionError, gwt.LimitExceeded, gwt.RemoteProtocolError):
        # It was given up, or is none: the session goes on without it.
        stream.abort()


def _hear_messages(stream: gwt.WebTransportReceiveStream, say: Callable[[str], None]) -> None:
    for message in gwt.read_messages(stream, max_size=MAX_MESSAGE):
        if isinstance(message, str):
            say(message)


def _hear_lines(stream: gwt.WebTransportStream, say: Callable[[str], None]) -> None:
    while line := stream.readline(MAX_MESSAGE):
        say(line.decode(errors="replace"))


def _hear_datagrams(session: gwt.WebTransportSession, say: Callable[[str], None]) -> None:
    with suppress(gwt.SessionError):
        for data in session.incoming_datagrams():
            say(data.decode(errors="replace"))
