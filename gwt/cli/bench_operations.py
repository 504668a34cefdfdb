"""
What a client of ``gwt bench`` does over and over: one function a mode, made once for each client.

It returns when its operation has finished, and raises Unfinished when the next may follow all the
same. Answers are compared with what was sent, which costs less than not to know.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import gwt

__all__ = [
    "MODES",
    "NUMBER",
    "WEBTRANSPORT_ONLY",
    "Operation",
    "Unfinished",
    "WrongAnswer",
    "operation",
]

MODES = ("echo", "datagram", "stream", "upload", "connect")
WEBTRANSPORT_ONLY = ("datagram", "stream", "upload")

# The bytes of the number by which a datagram's answer is known.
NUMBER = 8

# What one write of an upload hands over.
_BLOCK = bytes(64 * 1024)

# The digits of the longest upload's answer, and a few.
_ANSWER = 64

Operation = Callable[[], Any]


class Unfinished(Exception):
    """An operation that was lost or failed, and does not end its client."""


class WrongAnswer(gwt.GwtError):
    """What came back is not what should have."""


def operation(connection: Any, mode: str, size: int, timeout: float, loss: float) -> Operation:
    """
    Return what a client does on its connection: `size` bytes there, and what the mode wants back.

    Each wait in it lasts at most `timeout` seconds, that for a datagram `loss`. May open a stream,
    and wait for it. Raises ConfigError if `size` is too much for a datagram.
    """
    payload = (bytes(range(256)) * (size // 256 + 1))[:size]
    if isinstance(connection, gwt.WebSocket):
        return _message_echo(connection, payload, timeout)
    match mode:
        case "echo":
            return _stream_echo(connection, payload, timeout)
        case "datagram":
            return _datagram_echo(connection, payload, loss)
        case "stream":
            return _new_stream_echo(connection, payload, timeout)
        case _:
            return _upload(connection, size, timeout)


def _wrong() -> WrongAnswer:
    return WrongAnswer("What came back is not what was sent: the URL does not lead to an echo.")


def _message_echo(ws: gwt.WebSocket, payload: bytes, timeout: float) -> Operation:
    send, recv = ws.send, ws.recv

    def once() -> None:
        send(payload, timeout=timeout)
        if recv(timeout) != payload:
            raise _wrong()

    return once


def _stream_echo(session: gwt.WebTransportSession, payload: bytes, timeout: float) -> Operation:
    stream = session.create_bidirectional_stream(timeout=timeout)
    write, read, size = stream.write, stream.readexactly, len(payload)

    def once() -> None:
        write(payload, timeout=timeout)
        if read(size, timeout=timeout) != payload:
            raise _wrong()

    return once


def _datagram_echo(session: gwt.WebTransportSession, payload: bytes, loss: float) -> Operation:
    if len(payload) > session.max_datagram_size:
        raise gwt.ConfigError(
            f"--size is {len(payload)}, but a datagram to this server may have "
            f"{session.max_datagram_size} bytes.",
            field="size",
            value=len(payload),
        )
    send, receive, rest, numbers = (
        session.send_datagram,
        session.receive_datagram,
        payload[NUMBER:],
        count(1),
    )

    def once() -> None:
        data = next(numbers).to_bytes(NUMBER, "big") + rest
        send(data)
        try:
            # What was given up may still come, and is not this one's answer.
            while (answer := receive(loss)) != data:
                if answer[NUMBER:] != rest:
                    raise _wrong()
        except TimeoutError:
            raise Unfinished from None

    return once


def _new_stream_echo(session: gwt.WebTransportSession, payload: bytes, timeout: float) -> Operation:
    def once() -> None:
        stream = session.create_bidirectional_stream(timeout=timeout)
        stream.write_all(payload, timeout=timeout)
        if stream.read_all(timeout=timeout) != payload:
            raise _wrong()

    return once


def _upload(session: gwt.WebTransportSession, size: int, timeout: float) -> Operation:
    whole, rest = divmod(size, len(_BLOCK))
    expected = str(size).encode()

    def once() -> None:
        stream = session.create_bidirectional_stream(timeout=timeout)
        for _ in range(whole):
            stream.write(_BLOCK, timeout=timeout)
        stream.write_all(_BLOCK[:rest], timeout=timeout)
        try:
            answer = stream.read_all(_ANSWER, timeout=timeout)
        except gwt.MessageTooLarge:
            answer = b""
        if answer != expected:
            raise WrongAnswer(
                "The server did not answer with the number of bytes, as the demo's /upload does."
            )

    return once
