"""
The members of every peer's room: WebSockets that read and count, one of which speaks.

Not measured; the same process for all peers. What the speaker says is what all have to hear, it
too: that they do is checked byte by byte once, when the room is full, and counted after that. It
says the next thing when all have heard the last. bench.py says what it is asked.
"""

from __future__ import annotations

import json
import select
import ssl
import sys
import time
from typing import Any

from answers import measure, reply
from control import allow_descriptors
from load import PATIENCE, REQUEST, TEXT, Load, connect, frame, message, read_until, trusting

__all__ = ["Audience"]

ENTER = REQUEST.replace(b"/echo", b"/room")
JOINED = frame(TEXT, b"joined", False)


class Audience(Load):
    """A room's members, at one peer."""

    def enter(self, port: int, count: int, tls: bool = False) -> dict[str, Any]:
        """Connect, and wait until all are members."""
        context = trusting() if tls else None
        self.frame, self.echoed = message(64, text=True)
        for _ in range(count):
            sock = connect(port, context, ENTER)
            read_until(sock, lambda data: data.endswith(JOINED))
            self.sockets[sock.fileno()] = sock
        speaker = next(iter(self.sockets.values()))
        speaker.sendall(self.frame)
        for sock in self.sockets.values():
            heard = read_until(sock, lambda data: len(data) >= len(self.echoed))
            if heard != self.echoed:
                raise ConnectionError(f"{self.echoed[:80]!r} was heard as {heard[:80]!r}.")
            sock.setblocking(False)
            self.poll.register(sock, select.EPOLLIN)
        return {}

    def speak(self, together: int, seconds: float) -> dict[str, Any]:
        """Let the speaker say so many messages at once, again and again."""
        speaker = next(iter(self.sockets.values()))
        frames, size = self.frame * together, len(self.echoed) * together
        sockets, poll, into = self.sockets, self.poll, bytearray(65536)
        began = time.perf_counter()
        end = began + seconds
        turns = 0
        while not turns or time.perf_counter() < end:
            missing = dict.fromkeys(sockets, size)
            waiting = len(missing)
            self._send(speaker, frames)
            while waiting:
                events = poll.poll(PATIENCE)
                if not events:
                    raise TimeoutError(f"{waiting} members have not heard everything.")
                for number, _ in events:
                    try:
                        left = missing[number] - self._read(sockets[number], missing[number], into)
                    except ssl.SSLWantReadError:
                        continue
                    if left < 0:
                        raise ConnectionError("A member heard more than was said.")
                    missing[number] = left
                    waiting -= not left
            turns += 1
        deliveries = turns * together * len(sockets)
        return {"deliveries": deliveries, "turns": turns, "elapsed": time.perf_counter() - began}


audience = Audience()


def answer(command: dict[str, Any]) -> dict[str, Any]:
    do = command.pop("do")
    found = measure(do)
    if found is not None:
        return found
    result: dict[str, Any] = getattr(audience, do)(**command)
    return result


if __name__ == "__main__":
    allow_descriptors()
    for line in sys.stdin:
        reply(answer(json.loads(line)))
