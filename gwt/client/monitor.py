"""
ClientMonitor: looks at a client's statistics from time to time, and says when they turn bad.

It knows a client by its `stats` only, so that every class of the suite can be watched. What counts
as bad is find_issues() in stats.py.
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import gevent
from gevent.event import Event

from ..net.waiting import check_thread, native_thread
from ..options import bad
from .stats import find_issues

__all__ = ["ClientMonitor"]

logger = logging.getLogger("gwt.client")

_MOST_METRICS = 120
_MOST_ALERTS = 100


class ClientMonitor:
    """
    Watch a client: metrics each `monitoring_interval` seconds, and alerts when they turn bad.

    The client is anything with `stats`, a mapping or a method that returns one. An alert is raised
    when its condition begins, and again only after it has ended. Types: low_success_rate (of more
    than 10 connects less than 90 % succeeded), slow_connections (5 seconds on average), and
    stats_failed (the client's `stats` raised). `on_alert(alert)` is called with each, in the
    monitor's greenlet or in that of check(); what it raises is logged.

    A context manager. A monitor that nobody refers to ends, and does not keep its client. `clock`
    makes the timestamps. Raises TypeError for a client without `stats`, ConfigError, a ValueError,
    for an interval that is no finite number above 0.
    """

    def __init__(
        self,
        client: Any,
        *,
        monitoring_interval: float = 30.0,
        on_alert: Callable[[dict[str, Any]], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if (
            isinstance(monitoring_interval, bool)
            or not isinstance(monitoring_interval, (int, float))
            or not 0 < monitoring_interval < math.inf
        ):
            raise bad("monitoring_interval", monitoring_interval, "a finite number above 0")
        if on_alert is not None and not callable(on_alert):
            raise TypeError(f"on_alert must be callable, not {on_alert!r}.")
        _check_client(client)
        self._client = client
        self._interval = monitoring_interval
        self._on_alert = on_alert
        self._clock = clock
        self._thread = native_thread()
        self._stop = Event()
        self._greenlet: gevent.Greenlet | None = None
        self._metrics: deque[dict[str, Any]] = deque(maxlen=_MOST_METRICS)
        self._alerts: deque[dict[str, Any]] = deque(maxlen=_MOST_ALERTS)
        # The types of alerts whose condition holds now.
        self._active: set[str] = set()

    @classmethod
    def create(cls, *, client: Any, monitoring_interval: float = 30.0) -> Self:
        """Return a monitor for a client; the same as the constructor."""
        return cls(client, monitoring_interval=monitoring_interval)

    def __repr__(self) -> str:
        state = "monitoring" if self.is_monitoring else "idle"
        return f"<ClientMonitor {state} metrics={len(self._metrics)} alerts={len(self._alerts)}>"

    @property
    def is_monitoring(self) -> bool:
        """Whether the monitor's greenlet runs."""
        return self._greenlet is not None and not self._greenlet.ready()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The last 120 metrics, oldest first: {"timestamp", "stats"} each."""
        return [_plain(each) for each in self._metrics]

    def get_metrics_summary(self) -> dict[str, Any]:
        """
        Return the latest metrics, the last 100 alerts, oldest first, and whether it monitors.

        The keys are latest_metrics, {"timestamp", "stats"} or empty; recent_alerts, a list of
        {"type", "message", "timestamp"}; is_monitoring. Never waits.
        """
        return {
            "latest_metrics": _plain(self._metrics[-1]) if self._metrics else {},
            "recent_alerts": [dict(alert) for alert in self._alerts],
            "is_monitoring": self.is_monitoring,
        }

    def start(self) -> None:
        """Take the first metrics, and go on in a greenlet. Idempotent."""
        self._check_thread()
        if self.is_monitoring:
            return
        self.check()
        stop = self._stop = Event()
        monitor = weakref.ref(self, lambda _: stop.set())
        self._greenlet = gevent.Greenlet(_run, monitor, stop, self._interval)
        self._greenlet.name = "gwt-monitor"
        self._greenlet.start()

    def close(self) -> None:
        """Stop monitoring; metrics and alerts stay. Idempotent, and may be followed by start()."""
        self._check_thread()
        self._stop.set()
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None and greenlet is not gevent.getcurrent():
            greenlet.kill()

    stop = close

    def _check_thread(self) -> None:
        check_thread(self._thread, "monitor")

    def check(self) -> list[dict[str, Any]]:
        """Take metrics now, and return the alerts that they raise. Waits if `stats` does."""
        try:
            stats = _read(self._client)
            found = find_issues(stats)
        except Exception as exc:
            # Boundary to user code: the client may be anybody's.
            return self._failed(exc)
        except gevent.Timeout as exc:
            # In a greenlet of our own it is nobody else's than the client's.
            if gevent.getcurrent() is not self._greenlet:
                raise
            return self._failed(exc)
        self._metrics.append({"timestamp": self._clock(), "stats": stats})
        return self._raise(found, ended=self._active - found.keys())

    def _failed(self, error: BaseException) -> list[dict[str, Any]]:
        """Raise the alert for figures that could not be had: of the rest nothing is known."""
        text = f"The client's stats failed: {type(error).__name__}: {error}"
        return self._raise({"stats_failed": text}, ended=set())

    def _raise(self, found: Mapping[str, str], ended: set[str]) -> list[dict[str, Any]]:
        self._active -= ended
        begun = [
            {"type": kind, "message": text, "timestamp": self._clock()}
            for kind, text in found.items()
            if kind not in self._active
        ]
        self._active.update(found)
        self._alerts.extend(begun)
        for alert in begun:
            if self._on_alert is None:
                continue
            try:
                self._on_alert(dict(alert))
            except Exception:
                # Boundary to user code: the monitor goes on.
                logger.exception("on_alert of a ClientMonitor failed.")
        return begun

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _run(monitor: weakref.ref[ClientMonitor], stop: Event, interval: float) -> None:
    """Check until the monitor is closed, or gone: between its checks nothing here holds it."""
    while not stop.wait(interval):
        found = monitor()
        if found is None:
            return
        found.check()
        del found


def _check_client(client: Any) -> None:
    try:
        stats = client.stats
    except AttributeError:
        stats = None
    except Exception:
        # Boundary to user code: it is there, and check() will report what it raises.
        return
    if not isinstance(stats, Mapping) and not callable(stats):
        raise TypeError(
            "A ClientMonitor watches clients with stats, a mapping or a method that returns one: "
            f"{client!r} has {'none' if stats is None else f'stats={stats!r}'}."
        )


def _read(client: Any) -> dict[str, Any]:
    """Return a copy of a client's figures, which later ones do not change."""
    stats = client.stats
    if callable(stats):
        stats = stats()
    if not isinstance(stats, Mapping):
        raise TypeError(f"stats must be a mapping, not {stats!r}")
    return _plain(stats)


def _plain(figures: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(name): _plain(value) if isinstance(value, Mapping) else value
        for name, value in figures.items()
    }
