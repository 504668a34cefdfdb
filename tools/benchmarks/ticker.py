"""How late a greenlet runs in a process that has other work: for the peers that have greenlets."""

from __future__ import annotations

import time

import gevent

__all__ = ["Ticker"]

# How often the greenlet wants to run while it is measured how late that is.
TICK = 0.001


class Ticker:
    """
    A greenlet that wants to run every millisecond, and by how many seconds it was late.

    Its process may have to wait for a core of the machine, so lateness is also counted in CPU time
    of its thread: the least of what was elapsed since it was due and what was spent since it slept.
    """

    def __init__(self) -> None:
        self.greenlet: gevent.Greenlet | None = None
        self.late: list[tuple[float, float]] = []

    def run(self) -> None:
        while True:
            spent, due = time.thread_time(), time.perf_counter() + TICK
            gevent.sleep(TICK)
            late = max(0.0, time.perf_counter() - due)
            self.late.append((late, min(late, time.thread_time() - spent)))

    def start(self) -> None:
        self.late.clear()
        self.greenlet = gevent.spawn(self.run)

    def stop(self) -> dict[str, float]:
        assert self.greenlet is not None
        # It may be late this very moment.
        gevent.sleep(2 * TICK)
        self.greenlet.kill()
        elapsed, cpu = (sorted(each) for each in zip(*self.late, strict=True))
        at = len(elapsed) * 99 // 100
        return {"max": elapsed[-1], "p99": elapsed[at], "cpu_max": cpu[-1], "cpu_p99": cpu[at]}
