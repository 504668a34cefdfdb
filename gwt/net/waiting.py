"""
What a greenlet can block on: a signal, a deadline, a queue of bytes, and the guard of a reader.

`notify` and `feed` are called in the quiet zone: they mark greenlets ready and never switch.
Only `wait` blocks, and only the greenlet that calls it.
"""

from __future__ import annotations

import time
from typing import Any, Final

from gevent import monkey
from gevent.hub import Waiter, get_hub

from ..errors import ConcurrencyError

__all__ = ["ByteQueue", "Deadline", "ReadGuard", "Signal", "check_thread", "native_thread"]

# Which native thread, and so which hub, runs: in a monkey-patched process threading.get_ident()
# tells greenlets apart instead.
native_thread = monkey.get_original("_thread", "get_ident")

_EXPIRED: Final = object()


def check_thread(home: int, what: str) -> None:
    """Raise RuntimeError, which names `what`, in another native thread than `home`."""
    if native_thread() != home:
        raise RuntimeError(f"This {what} belongs to the hub of another thread.")


class Deadline:
    """A moment until which to wait; made from a timeout in seconds, or None for no limit."""

    __slots__ = ("at", "timeout")

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.at = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Return the seconds left, at least 0, or None for no limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at


class Signal:
    """
    A place where greenlets wait until something has changed.

    It carries no value and remembers nothing: a waiter tests its condition, waits, and tests
    again.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        # No list while nobody waits: there are many of these.
        self._waiters: list[Any] | tuple[()] = ()

    @property
    def awaited(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    def wait(self, deadline: Deadline | None = None) -> None:
        """Block until notify(); raises the builtin TimeoutError at the deadline."""
        hub = get_hub()
        waiter = Waiter(hub)
        if self._waiters:
            self._waiters.append(waiter)
        else:
            self._waiters = [waiter]
        if deadline is None or deadline.at is None:
            try:
                waiter.get()
            except BaseException:
                self._forget(waiter)
                raise
            return
        remaining = deadline.remaining()
        if remaining:
            # libuv warns of less than a millisecond, as gwt.net.timers knows.
            remaining = max(remaining, hub.loop.approx_timer_resolution)
        timer = hub.loop.timer(remaining)
        try:
            timer.start(waiter.switch, _EXPIRED, update=True)
            result = waiter.get()
        finally:
            timer.stop()
            timer.close()
            self._forget(waiter)
        if result is _EXPIRED:
            raise TimeoutError(f"timed out after {deadline.timeout:g} s")

    def _forget(self, waiter: Any) -> None:
        # Not there any more if it was notified.
        if self._waiters and waiter in self._waiters:
            self._waiters.remove(waiter)

    def notify(self) -> None:
        """Make everybody ready who waits now. Does not switch."""
        waiters = self._waiters
        if waiters:
            self._waiters = ()
            run_callback = get_hub().loop.run_callback
            for waiter in waiters:
                run_callback(waiter.switch, None)


class ByteQueue:
    """
    Bytes that arrived and were not read.

    One bytearray: what is held costs what it weighs, however small the pieces were in which a
    peer sent it.
    """

    __slots__ = ("_buffer", "_scanned")

    def __init__(self) -> None:
        self._buffer = bytearray()
        # How far find() has looked, for the separator it looked for.
        self._scanned = (b"", 0)

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append."""
        self._buffer += data

    def take(self, size: int) -> bytes:
        """Remove and return up to `size` bytes."""
        buffer = self._buffer
        self._scanned = (b"", 0)
        if size >= len(buffer):
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[:size])
            del buffer[:size]
        return data

    def find(self, separator: bytes) -> int:
        """Return the position behind the first separator, or -1; looks at each byte once."""
        last, start = self._scanned
        if last != separator:
            start = 0
        found = self._buffer.find(separator, start)
        if found < 0:
            self._scanned = (separator, max(0, len(self._buffer) - len(separator) + 1))
            return -1
        return found + len(separator)


class ReadGuard:
    """Lets one greenlet read at a time, as a context manager: two would each get half."""

    __slots__ = ("_busy", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._busy = False

    @property
    def busy(self) -> bool:
        """Whether somebody reads, or is in the middle of it."""
        return self._busy

    def __enter__(self) -> None:
        if self._busy:
            raise ConcurrencyError(f"Another greenlet is already reading from this {self._what}.")
        self._busy = True

    def __exit__(self, *_: object) -> None:
        self._busy = False
