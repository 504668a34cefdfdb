"""
Calls that another greenlet may end: what close() of a client does to those who connect.

A greenlet that is killed would be gone, and not every caller is one of gevent's; here only the call
ends, by an exception that its wrapper turns into an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import gevent

__all__ = ["Calls", "Interrupted"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Interrupted(BaseException):
    """Raised in a call that was interrupted, as gevent.Timeout is; users do not see it."""


class Calls:
    """The calls that are under way."""

    def __init__(self) -> None:
        self._callers: dict[Interrupted, Any] = {}

    def run(self, function: Callable[_P, _T], *args: _P.args, **options: _P.kwargs) -> _T:
        """Call a function, in which interrupt() may raise Interrupted, once."""
        interrupted = Interrupted()
        self._callers[interrupted] = gevent.getcurrent()
        try:
            return function(*args, **options)
        finally:
            self._callers.pop(interrupted, None)

    def interrupt(self) -> None:
        """End the calls that are still under way when the hub runs next. Does not switch."""
        for interrupted in self._callers:
            gevent.get_hub().loop.run_callback(self._throw, interrupted)

    def _throw(self, interrupted: Interrupted) -> None:
        caller = self._callers.pop(interrupted, None)
        if caller is not None:
            caller.throw(interrupted)
