"""
The members of a room that are WebTransport sessions, each on a connection of its own.

What audience.py is for WebSockets. The speaker speaks by datagrams, and all hear it on the stream
that the room has to each. Not measured; gwt is the client, too.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import gevent
from answers import reply
from gevent.event import Event
from gevent.fileobject import FileObjectPosix

import gwt

PATIENCE = 30.0
MESSAGE = bytes(range(32, 96))


class Audience:
    """A room's members; how much all of them have heard is one sum."""

    def __init__(self) -> None:
        self.sessions: list[gwt.WebTransportSession] = []
        self.readers: list[gevent.Greenlet] = []
        self.heard = self.expected = 0
        self.complete = Event()

    def enter(self, port: int, count: int, tls: bool) -> dict[str, Any]:
        """Connect, and wait until all are members; the first thing that is said is checked."""
        for _ in range(count):
            session = gwt.connect(f"https://127.0.0.1:{port}/room", verify=False)
            self.sessions.append(session)
            if session.receive_datagram(timeout=PATIENCE) != b"joined":
                raise ConnectionError("A member was not told that it is one.")
        self.sessions[0].send_datagram(MESSAGE)
        for session in self.sessions:
            stream = session.accept_unidirectional_stream(timeout=PATIENCE)
            first = b""
            while not first.endswith(MESSAGE):
                first += stream.read(timeout=PATIENCE)
            self.size = len(first)
            self.readers.append(gevent.spawn(self.hear, stream))
        return {}

    def hear(self, stream: gwt.WebTransportReceiveStream) -> None:
        while data := stream.read():
            self.heard += len(data)
            if self.heard >= self.expected:
                self.complete.set()

    def speak(self, together: int, seconds: float) -> dict[str, Any]:
        began = time.perf_counter()
        end = began + seconds
        turns = 0
        while not turns or time.perf_counter() < end:
            self.complete.clear()
            self.expected = self.heard + self.size * together * len(self.sessions)
            for _ in range(together):
                self.sessions[0].send_datagram(MESSAGE)
            if not self.complete.wait(PATIENCE):
                raise TimeoutError("Not all members have heard everything.")
            turns += 1
        deliveries = turns * together * len(self.sessions)
        return {"deliveries": deliveries, "turns": turns, "elapsed": time.perf_counter() - began}

    def close(self) -> dict[str, Any]:
        gevent.killall(self.readers)
        gevent.joinall([gevent.spawn(session.close) for session in self.sessions])
        self.sessions.clear()
        self.readers.clear()
        return {}


audience = Audience()

if __name__ == "__main__":
    # Connections are kept alive between two commands.
    for line in FileObjectPosix(sys.stdin.fileno(), "rb", closefd=False):
        command = json.loads(line)
        reply(getattr(audience, command.pop("do"))(**command))
