"""
The one Reaper greenlet of a hub: it does the periodic work of all managers.

A manager hands it an interval and a job when it is activated, and takes both back when it is
deactivated; each is O(1). The greenlet ``gwt-reaper`` starts with the first job and ends with
the last. Jobs must not wait: what may wait (closing a member) they hand to greenlets of their
own. When work is due is decided by pure functions, so tests turn the clock by hand.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping

import gevent
from gevent.event import Event
from gevent.hub import Hub

__all__ = ["Job", "Reaper", "due", "next_due"]

logger = logging.getLogger("gwt.manager")

Job = Callable[[], object]

# How long the reaper works before it lets others run. A pass over 20,000 members takes about
# this long; the managers of 20,000 sessions would take much longer.
TURN = 0.004


def due(schedule: Mapping[float, float], now: float) -> list[float]:
    """Return the intervals whose time has come, the most overdue first."""
    return sorted((i for i, when in schedule.items() if when <= now), key=lambda i: schedule[i])


def next_due(schedule: Mapping[float, float]) -> float | None:
    """Return when there is work again, or None if never."""
    return min(schedule.values(), default=None)


class Reaper:
    """
    Jobs, each called every so many seconds.

    Jobs of one interval share their ticks: a new one joins the next tick, so that its first
    wait is shorter than the interval. After a stall a tick is done once, not caught up with.
    """

    __slots__ = ("clock", "greenlet", "jobs", "schedule", "wake")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock

        # What to call, by interval. Dicts are used as ordered sets: bound methods hash fast.
        self.jobs: dict[float, dict[Job, None]] = {}

        # When each interval's next tick is. Has the same keys as jobs.
        self.schedule: dict[float, float] = {}

        # None until run_in_greenlet(). Set `wake` when the schedule changed under it.
        self.greenlet: gevent.Greenlet | None = None
        self.wake = Event()

    def __repr__(self) -> str:
        jobs = sum(map(len, self.jobs.values()))
        return f"<Reaper jobs={jobs} intervals={sorted(self.jobs)} running={bool(self.greenlet)}>"

    def add(self, interval: float, job: Job) -> None:
        """Call `job` every `interval` seconds from now on. Never waits; idempotent."""
        assert 0 < interval < math.inf
        if interval not in self.jobs:
            self.jobs[interval] = {}
            self.schedule[interval] = self.clock() + interval
            self.wake.set()
        self.jobs[interval][job] = None

    def remove(self, interval: float, job: Job) -> None:
        """Forget a job. Never waits; idempotent."""
        jobs = self.jobs.get(interval)
        if jobs is None:
            return
        jobs.pop(job, None)
        if not jobs:
            del self.jobs[interval], self.schedule[interval]
            self.wake.set()

    def reap(self, now: float) -> float | None:
        """Do all work that is due at `now`; return when there is work again, None if never."""
        for interval in due(self.schedule, now):
            jobs = self.jobs.get(interval)
            if jobs is None:
                continue
            self.schedule[interval] = now + interval
            turn_ends = self.clock() + TURN
            for job in list(jobs):
                if job not in jobs:
                    continue
                try:
                    job()
                except Exception:
                    # Safety net: one manager's failure must not end the work of the others.
                    logger.exception("A periodic job of a manager failed: %r", job)
                if self.clock() >= turn_ends:
                    gevent.sleep(0)
                    turn_ends = self.clock() + TURN
        return next_due(self.schedule)

    def run_in_greenlet(self) -> None:
        """Start the greenlet unless it runs. It ends by itself when no job is left."""
        if self.greenlet is None or self.greenlet.dead:
            self.greenlet = gevent.spawn(self._run)
            self.greenlet.name = "gwt-reaper"

    def _run(self) -> None:
        while self.jobs:
            self.wake.clear()
            when = self.reap(self.clock())
            if when is not None:
                self.wake.wait(max(0.0, when - self.clock()))

    def join(self, timeout: float | None = None) -> None:
        """Wait until the greenlet has ended, if it has no more work. Not from itself."""
        greenlet = self.greenlet
        if greenlet is not None and not self.jobs and greenlet is not gevent.getcurrent():
            greenlet.join(timeout)


# The reaper of each hub that has an activated manager. A reaper that lost its last job leaves
# at once and never comes back: whoever waits for its greenlet to end waits one turn at most.
_shared: dict[Hub, Reaper] = {}


def enlist(interval: float, job: Job) -> Reaper:
    """Have this hub's reaper call `job` every `interval` seconds; return that reaper."""
    hub = gevent.get_hub()
    reaper = _shared.get(hub)
    if reaper is None:
        reaper = _shared[hub] = Reaper()
    reaper.add(interval, job)
    reaper.run_in_greenlet()
    return reaper


def discharge(reaper: Reaper, interval: float, job: Job) -> None:
    """Take a job back from the reaper that enlist() returned. Never waits."""
    reaper.remove(interval, job)
    if not reaper.jobs:
        for hub, shared in list(_shared.items()):
            if shared is reaper:
                del _shared[hub]
