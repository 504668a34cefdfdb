"""Members that do what they are told, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.event import Event


class HandClock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


class FakeMember:
    """Connection, session and stream at once: members are asked for attributes only."""

    def __init__(self, id: Any = "a", *, last_active: float = 1000.0, state: Any = "open") -> None:
        self.id = id
        self.session_id = id
        self.stream_id = id
        self.state = state
        self.direction: Any = "bidirectional"
        self.last_active = last_active
        self.is_closed = False
        self.closes: list[dict[str, Any]] = []
        self.aborted = False
        self._callbacks: list[Callable[[Any], object]] = []

    def on_end(self, callback: Callable[[Any], object]) -> None:
        if self.is_closed:
            callback(self)
        else:
            self._callbacks.append(callback)

    def end(self) -> None:
        self.is_closed = True
        self.state = "closed"
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def close(self, **kwargs: Any) -> None:
        self.closes.append(kwargs)
        self.end()

    def abort(self, code: int = 0) -> None:
        self.aborted = True
        self.end()


class SilentMember(FakeMember):
    """Never tells that it ended: only the cleanup finds out."""

    on_end = None  # type: ignore[assignment]


class StuckMember(FakeMember):
    """Its close() waits until `release` is set."""

    def __init__(self, id: Any = "a", **kwargs: Any) -> None:
        super().__init__(id, **kwargs)
        self.closing = Event()
        self.release = Event()

    def close(self, **kwargs: Any) -> None:
        self.closes.append(kwargs)
        self.closing.set()
        self.release.wait()
        self.end()


class RaisingMember(FakeMember):
    """Its close() and abort() raise."""

    def close(self, **kwargs: Any) -> None:
        self.closes.append(kwargs)
        raise RuntimeError("close is broken")

    def abort(self, code: int = 0) -> None:
        raise RuntimeError("abort is broken")


class BrokenMember(FakeMember):
    """Once `broken`, its properties raise."""

    broken = False

    def __getattribute__(self, name: str) -> Any:
        if name in ("is_closed", "last_active", "state") and type(self).broken:
            raise RuntimeError(f"{name} is broken")
        return super().__getattribute__(name)
