"""
What tests of every floor share: waiting for a condition, greenlets that keep their errors.

Helpers for one part of gwt live in a module of their own beside this one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gevent

__all__ = ["Browser", "Task", "eventually", "find_autobahn", "find_browser", "spawn", "until"]

ROOT = Path(__file__).resolve().parents[2]

T = TypeVar("T")


def eventually(predicate: Callable[[], T], timeout: float = 5.0) -> T:
    """Run the hub until the predicate is true, and return what it returned; else AssertionError."""
    deadline = time.monotonic() + timeout
    pause = 0.0
    while not (result := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"{predicate!r} was not true within {timeout} seconds: {result!r}")
        # The first turns are free, for what only waits for its greenlet; then the clock must go on.
        gevent.sleep(pause)
        # libuv warns of less than a millisecond.
        pause = min(pause + 0.001, 0.02)
    return result


def until(sock: Any, wanted: bytes) -> bytes:
    """Read from a TCP socket until something has come; return all that came."""
    data = b""
    while wanted not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
    return data


class Task:
    """A greenlet whose result, or error, waits for get(); the hub does not report the error."""

    def __init__(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._error: BaseException | None = None
        self.greenlet = gevent.spawn(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except (Exception, gevent.Timeout) as exc:
            self._error = exc
            return None

    @property
    def done(self) -> bool:
        return bool(self.greenlet.ready())

    def get(self, timeout: float = 10.0) -> Any:
        """Wait for the end; return what the function returned, or raise what it raised."""
        self.greenlet.join(timeout)
        if not self.done:
            raise AssertionError(f"{self.greenlet!r} did not end within {timeout} seconds")
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.greenlet.value

    def kill(self) -> None:
        self.greenlet.kill()


def spawn(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Task:
    """Run a function in a greenlet of the test's; its error comes out of get()."""
    return Task(fn, *args, **kwargs)


class Browser(NamedTuple):
    """Paths of a Chromium and of the driver that speaks WebDriver to it."""

    chromium: str
    chromedriver: str


def find_browser() -> Browser | None:
    """Find Chromium and its driver on PATH, or None if one of them is missing."""
    chromium = shutil.which("chromium")
    chromedriver = shutil.which("chromedriver")
    return Browser(chromium, chromedriver) if chromium and chromedriver else None


def find_autobahn() -> Path | None:
    """Find the Python that has Autobahn's test suite, where tools/autobahn looks for it."""
    named = os.environ.get("GWT_AUTOBAHN")
    python = Path(named) if named else ROOT / ".peers" / "autobahn" / "bin" / "python"
    return python if os.access(python, os.X_OK) else None
