"""Tests of gwt.net.timers: real timers of the hub, against deadlines far above their delays."""

from __future__ import annotations

import gc
import weakref

import gevent
from gevent.event import Event

from gwt.net.timers import Timer, now


class Bell:
    """Note every ring, and when it was."""

    def __init__(self) -> None:
        self.rung: list[float] = []
        self.event = Event()

    def __call__(self) -> None:
        self.rung.append(now())
        self.event.set()

    def wait(self) -> None:
        assert self.event.wait(5), "the timer did not fire"
        self.event.clear()


def test_timers_fire_in_the_order_of_their_deadlines():
    order: list[str] = []
    bell = Bell()
    start = now()
    timers = [
        Timer(lambda: (order.append("late"), bell())),
        Timer(lambda: order.append("early")),
        Timer(lambda: order.append("middle")),
    ]
    for timer, delay in zip(timers, (0.03, 0.005, 0.015), strict=True):
        timer.arm(start + delay)
    bell.wait()
    assert order == ["early", "middle", "late"]


def test_timer_never_fires_before_its_deadline():
    for delay in (0.0, 0.0001, 0.0013, 0.004, 0.0101):
        bell = Bell()
        timer = Timer(bell)
        deadline = now() + delay
        timer.arm(deadline)
        bell.wait()
        assert bell.rung[0] >= deadline
        assert timer.deadline is None


def test_a_busy_hub_does_not_shorten_the_delay():
    bell = Bell()
    timer = Timer(bell)
    deadlines: list[float] = []

    def busy() -> None:
        # The loop's own idea of the time stays what it was when this callback began.
        end = now() + 0.03
        while now() < end:
            pass
        deadlines.append(now() + 0.02)
        timer.arm(deadlines[0])

    gevent.get_hub().loop.run_callback(busy)
    bell.wait()
    assert bell.rung[0] >= deadlines[0]


def test_a_clock_that_lags_behind_re_arms_instead_of_firing_early():
    times = iter([0.0, 0.004, 0.008])
    bell = Bell()
    timer = Timer(bell, clock=lambda: next(times, 0.02))
    timer.arm(0.01)
    bell.wait()
    # arm, two early awakenings and the one that counts.
    assert next(times, None) is None
    assert len(bell.rung) == 1


def test_past_deadline_fires_but_not_inside_arm():
    bell = Bell()
    timer = Timer(bell)
    timer.arm(now() - 100)
    assert bell.rung == []
    bell.wait()
    assert len(bell.rung) == 1


def test_re_arming_moves_the_deadline_and_fires_once():
    bell = Bell()
    timer = Timer(bell)
    timer.arm(now() + 60)
    deadline = now() + 0.01
    timer.arm(deadline)
    assert timer.deadline == deadline
    bell.wait()
    assert len(bell.rung) == 1 and timer.deadline is None


def test_same_deadline_changes_nothing():
    timer = Timer(lambda: None)
    timer.arm(now() + 60)
    watcher = timer._watcher
    timer.arm(timer.deadline)
    assert timer._watcher is watcher
    timer.close()


def test_callback_may_re_arm_its_own_timer():
    bell = Bell()
    done = Event()

    def ring() -> None:
        bell()
        if len(bell.rung) < 3:
            timer.arm(now() + 0.001)
        else:
            done.set()

    timer = Timer(ring)
    timer.arm(now())
    assert done.wait(5)
    assert len(bell.rung) == 3


def test_cancelled_timer_does_not_fire():
    cancelled, bell = Bell(), Bell()
    timer, other = Timer(cancelled), Timer(bell)
    timer.arm(now() + 0.001)
    other.arm(now() + 0.01)
    timer.cancel()
    timer.cancel()
    assert timer.deadline is None
    bell.wait()
    assert cancelled.rung == []


def test_arming_with_none_cancels():
    timer = Timer(lambda: None)
    timer.arm(now() + 60)
    timer.arm(None)
    assert timer.deadline is None and timer._watcher is None


def test_closed_timer_ignores_arm():
    closed, bell = Bell(), Bell()
    timer, other = Timer(closed), Timer(bell)
    timer.arm(now() + 60)
    timer.close()
    timer.close()
    timer.arm(now())
    other.arm(now() + 0.005)
    bell.wait()
    assert closed.rung == [] and timer.deadline is None
    assert repr(timer) == "<Timer closed>"


def test_closing_in_the_callback_is_allowed():
    bell = Bell()

    def ring() -> None:
        timer.close()
        bell()

    timer = Timer(ring)
    timer.arm(now())
    bell.wait()
    assert repr(timer) == "<Timer closed>"


def test_nothing_keeps_a_dropped_timer_alive():
    bell = Bell()
    timer = Timer(bell)
    reference = weakref.ref(bell)
    timer.arm(now() + 60)
    timer.close()
    del timer, bell
    gc.collect()
    assert reference() is None
