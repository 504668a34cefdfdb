"""
The other end of every peer: frames that are masked beforehand, on non-blocking sockets.

It is not measured, so it is written to cost little and to treat all alike: one process, one epoll
loop, replies that are counted rather than parsed. That a peer really sends back what it got is
checked once for each connection, when it is opened. control.py says what it is asked.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from answers import measure, reply
from control import allow_descriptors

# How long any peer may take for one answer.
PATIENCE = 30.0

KEY = b"\x12\x34\x56\x78"
REQUEST = (
    b"GET /echo HTTP/1.1\r\n"
    b"Host: 127.0.0.1\r\n"
    b"User-Agent: tools/bench\r\n"
    b"Connection: Upgrade\r\n"
    b"Upgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
    b"\r\n"
)
TEXT, BINARY, CLOSE = 0x81, 0x82, 0x88

# Where everything is read into that is counted only.
_buffer = bytearray(256 * 1024)


def frame(kind: int, payload: bytes, masked: bool) -> bytes:
    """Return a final frame of at most 64 KiB, as a client or a server sends it."""
    bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        header = bytes([kind, bit | size])
    else:
        header = bytes([kind, bit | 126]) + size.to_bytes(2, "big")
    if not masked:
        return header + payload
    key = (KEY * (size // 4 + 1))[:size]
    return header + KEY + bytes(a ^ b for a, b in zip(payload, key, strict=True))


def message(size: int, text: bool) -> tuple[bytes, bytes]:
    """Return a frame to send, and what comes back."""
    kind = TEXT if text else BINARY
    payload = (bytes(range(32, 127)) * (size // 95 + 1))[:size]
    return frame(kind, payload, True), frame(kind, payload, False)


GOODBYE = frame(CLOSE, (1000).to_bytes(2, "big"), True)


def read_until(sock: socket.socket, complete: Callable[[bytes], bool]) -> bytes:
    """Read from a blocking socket until what came is complete."""
    data = b""
    while not complete(data):
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError(f"The server closed after {data[:200]!r}.")
        data += piece
    return data


def connect(
    port: int, tls: ssl.SSLContext | None = None, request: bytes = REQUEST
) -> socket.socket:
    """Return a connection that has asked for a WebSocket; blocking."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        sock = tls.wrap_socket(sock, server_hostname="localhost")
    sock.sendall(request)
    return sock


def trusting() -> ssl.SSLContext:
    """Return what a client needs for TLS with a certificate that nobody vouches for."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def upgraded(answer: bytes) -> bool:
    """Return whether an answer to the request is complete; nothing but 101 will do."""
    if b"\r\n\r\n" not in answer:
        return False
    if not answer.startswith(b"HTTP/1.1 101"):
        raise ConnectionError(f"The server answered {answer[:200]!r}.")
    return True


def closed(data: bytes) -> bool:
    """
    Return whether a close came back.

    Whoever gets that closes the connection: not every server does so by itself.
    """
    return len(data) >= 2 and len(data) >= 2 + data[1]


class Load:
    """Connections to one peer, and what is done with them."""

    def __init__(self) -> None:
        self.sockets: dict[int, socket.socket] = {}
        self.poll = select.epoll()
        self.frame = self.echoed = b""

    def open(
        self, port: int, count: int, size: int, text: bool = False, tls: bool = False
    ) -> dict[str, Any]:
        context = trusting() if tls else None
        self.frame, self.echoed = message(size, text)
        for _ in range(count):
            sock = connect(port, context)
            read_until(sock, upgraded)
            sock.sendall(self.frame)
            back = read_until(sock, lambda data: len(data) >= len(self.echoed))
            if back != self.echoed:
                raise ConnectionError(f"{self.echoed[:80]!r} came back as {back[:80]!r}.")
            sock.setblocking(False)
            self.sockets[sock.fileno()] = sock
            self.poll.register(sock, select.EPOLLIN)
        return {}

    def echo(self, seconds: float) -> dict[str, Any]:
        """Send the next message on each connection as soon as the last one is back."""
        frame, size, sockets, into = self.frame, len(self.echoed), self.sockets, _buffer
        began = time.perf_counter()
        end = began + seconds
        missing = dict.fromkeys(sockets, size)
        waiting = len(missing)
        messages = 0
        for sock in sockets.values():
            self._send(sock, frame)
        while waiting:
            ready = self.poll.poll(PATIENCE)
            if not ready:
                raise TimeoutError("The server does not answer.")
            more = time.perf_counter() < end
            for number, _ in ready:
                sock = sockets[number]
                left = missing[number]
                try:
                    left -= self._read(sock, left, into)
                except ssl.SSLWantReadError:
                    continue
                if left:
                    missing[number] = left
                    continue
                missing[number] = size
                messages += 1
                if more:
                    self._send(sock, frame)
                else:
                    waiting -= 1
        return {"messages": messages, "elapsed": time.perf_counter() - began}

    @staticmethod
    def _send(sock: socket.socket, frame: bytes) -> None:
        # Nothing is under way on this connection, so it has room for a message.
        if sock.send(frame) != len(frame):
            raise BlockingIOError("A socket did not take a message.")

    @staticmethod
    def _read(sock: socket.socket, left: int, into: bytearray) -> int:
        size = sock.recv_into(into)
        if size == 0:
            raise ConnectionError("The server closed.")
        # epoll does not see what TLS has read, but not given yet.
        if isinstance(sock, ssl.SSLSocket):
            with suppress(ssl.SSLWantReadError):
                while size < left:
                    size += sock.recv_into(into)
        return size

    def close(self) -> dict[str, Any]:
        for sock in self.sockets.values():
            self.poll.unregister(sock)
            sock.setblocking(True)
            sock.settimeout(PATIENCE)
            sock.sendall(GOODBYE)
        for sock in self.sockets.values():
            read_until(sock, closed)
            sock.close()
        self.sockets.clear()
        return {}

    def handshakes(self, port: int, at_once: int, seconds: float) -> dict[str, Any]:
        """Connect, upgrade, close; again and again."""
        began = time.perf_counter()
        end = began + seconds
        poll = select.epoll()
        # What came so far, and what tells whether that is all.
        under_way: dict[int, tuple[socket.socket, bytes, Callable[[bytes], bool]]] = {}
        done = 0

        def begin() -> None:
            sock = connect(port)
            under_way[sock.fileno()] = sock, b"", upgraded
            poll.register(sock, select.EPOLLIN)

        def proceed(number: int) -> None:
            nonlocal done
            sock, data, complete = under_way[number]
            piece = sock.recv(65536)
            if not piece:
                raise ConnectionError(f"The server closed after {data[:200]!r}.")
            data += piece
            if not complete(data):
                under_way[number] = sock, data, complete
            elif complete is upgraded:
                sock.sendall(GOODBYE)
                under_way[number] = sock, b"", closed
            else:
                poll.unregister(sock)
                sock.close()
                del under_way[number]
                done += 1
                if time.perf_counter() < end:
                    begin()

        for _ in range(at_once):
            begin()
        while under_way:
            ready = poll.poll(PATIENCE)
            if not ready:
                raise TimeoutError("The server does not answer.")
            for number, _ in ready:
                proceed(number)
        poll.close()
        return {"handshakes": done, "elapsed": time.perf_counter() - began}

    def fairness(self, port: int, in_flight: int, seconds: float) -> dict[str, Any]:
        """
        Time one connection's echoes while another keeps many frames under way.

        An echo that does not come for as long again counts with that. Both stay open.
        """
        self.open(port, 2, 64)
        victim, flooder = self.sockets.values()
        size, back = len(self.frame), len(self.echoed)
        frames = memoryview(self.frame * 1000)
        poll, into = self.poll, _buffer
        # Bytes of the flood that went out, that the limit allows, and that came back.
        sent, allowed, returned = 0, in_flight * size, 0
        writable = False
        times: list[float] = []
        missing, asked = 0, 0.0
        began = now = time.perf_counter()
        # The flood has to build up first.
        due, end = began + 0.2, began + 0.2 + seconds
        while now < end or (missing and now < end + seconds):
            for number, events in poll.poll(max(0.0, due - now) if not missing else 1.0):
                if number == victim.fileno():
                    missing -= self._read(victim, missing, into)
                    if not missing:
                        now = time.perf_counter()
                        times.append(now - asked)
                        due = now + 0.001
                elif events & ~select.EPOLLOUT:
                    returned += self._read(flooder, back, into)
                    allowed = (in_flight + returned // back) * size
            now = time.perf_counter()
            if not missing and due <= now < end:
                self._send(victim, self.frame)
                missing, asked = back, now
            full = False
            if sent < allowed:
                start = sent % len(frames)
                try:
                    sent += flooder.send(frames[start : start + allowed - sent])
                except BlockingIOError:
                    full = True
            # Level-triggered: to be told of room while there is nothing to send would spin.
            if writable != (full or sent < allowed):
                writable = not writable
                poll.modify(flooder, select.EPOLLIN | (select.EPOLLOUT if writable else 0))
            now = time.perf_counter()
        if missing:
            times.append(now - asked)
        times.sort()
        return {
            "p50": times[len(times) // 2],
            "p99": times[len(times) * 99 // 100],
            "max": times[-1],
            "echoes": len(times),
            "flood": returned // back,
            "elapsed": now - began,
        }


load = Load()


def answer(command: dict[str, Any]) -> dict[str, Any]:
    do = command.pop("do")
    found = measure(do)
    if found is not None:
        return found
    result: dict[str, Any] = getattr(load, do)(**command)
    return result


if __name__ == "__main__":
    allow_descriptors()
    for line in sys.stdin:
        reply(answer(json.loads(line)))
