"""The schedule of periodic work, decided purely, and the one greenlet of a hub that does it."""

from __future__ import annotations

import gc
import logging

import gevent
import pytest
from gevent.event import Event

from gwt.manager import ConnectionManager, SessionManager, StreamManager
from gwt.manager.reaper import Reaper, due, next_due
from tests.helpers import eventually

from .fakes import FakeMember, HandClock


def reapers() -> list[gevent.Greenlet]:
    return [
        g
        for g in gc.get_objects()
        if isinstance(g, gevent.Greenlet) and g.name == "gwt-reaper" and not g.dead
    ]


@pytest.mark.parametrize(
    ("schedule", "now", "expected"),
    [
        ({}, 10.0, []),
        ({5.0: 11.0}, 10.0, []),
        ({5.0: 10.0}, 10.0, [5.0]),
        ({5.0: 9.0, 30.0: 11.0}, 10.0, [5.0]),
        ({5.0: 9.0, 30.0: 8.0}, 10.0, [30.0, 5.0]),
    ],
)
def test_due_intervals_come_most_overdue_first(
    schedule: dict[float, float], now: float, expected: list[float]
) -> None:
    assert due(schedule, now) == expected


@pytest.mark.parametrize(
    ("schedule", "expected"), [({}, None), ({5.0: 7.0}, 7.0), ({5.0: 7.0, 1.0: 6.0}, 6.0)]
)
def test_next_due_is_the_earliest_tick(
    schedule: dict[float, float], expected: float | None
) -> None:
    assert next_due(schedule) == expected


def test_jobs_run_once_an_interval() -> None:
    clock = HandClock(0.0)
    reaper = Reaper(clock)
    ran: list[float] = []
    reaper.add(5.0, lambda: ran.append(clock()))
    for now in range(0, 17):
        clock.now = float(now)
        reaper.reap(clock())
    assert ran == [5.0, 10.0, 15.0]


def test_a_stall_is_not_caught_up_with() -> None:
    clock = HandClock(0.0)
    reaper = Reaper(clock)
    ran: list[float] = []
    reaper.add(5.0, lambda: ran.append(clock()))
    clock.turn(1000.0)
    assert reaper.reap(clock()) == 1005.0
    assert ran == [1000.0]


def test_a_job_that_raises_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    reaper = Reaper(HandClock(0.0))
    ran: list[int] = []

    def broken() -> None:
        raise RuntimeError("broken job")

    reaper.add(5.0, broken)
    reaper.add(5.0, lambda: ran.append(1))
    assert reaper.reap(5.0) == 10.0
    assert ran == [1]
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


def test_a_job_may_remove_another_one_of_its_tick() -> None:
    reaper = Reaper(HandClock(0.0))
    ran: list[str] = []

    def second() -> None:
        ran.append("second")

    def first() -> None:
        ran.append("first")
        reaper.remove(5.0, second)

    reaper.add(5.0, first)
    reaper.add(5.0, second)
    reaper.reap(5.0)
    assert ran == ["first"]


def test_removing_is_idempotent_and_forgets_the_interval() -> None:
    reaper = Reaper(HandClock(0.0))

    def job() -> None:
        raise AssertionError("it was removed")

    reaper.add(5.0, job)
    reaper.remove(7.0, job)
    reaper.remove(5.0, reapers)
    assert reaper.schedule == {5.0: 5.0}
    reaper.remove(5.0, job)
    reaper.remove(5.0, job)
    assert reaper.reap(100.0) is None


def test_all_managers_of_a_hub_share_one_greenlet_and_the_last_takes_it_away() -> None:
    assert reapers() == []
    connections, sessions = ConnectionManager(), SessionManager()
    streams = StreamManager(stream_factory=lambda _: 0, session_factory=lambda: None)
    connections.start()
    (reaper,) = reapers()
    with sessions, streams:
        assert reapers() == [reaper]
    assert reapers() == [reaper]
    connections.shutdown()
    assert reapers() == []
    with sessions:
        assert len(reapers()) == 1
    assert reapers() == []


def test_stop_ends_the_reaper_without_waiting() -> None:
    manager = SessionManager()
    manager.start()
    (reaper,) = reapers()
    manager.stop()
    eventually(lambda: reaper.dead)


def test_manager_that_is_activated_again_at_once_has_a_reaper() -> None:
    manager = SessionManager()
    manager.start()
    manager.stop()
    manager.start()
    eventually(lambda: len(reapers()) == 1)
    manager.shutdown()
    assert reapers() == []


def test_start_and_shutdown_are_idempotent() -> None:
    manager = ConnectionManager()
    manager.start()
    manager.start()
    assert len(reapers()) == 1
    manager.shutdown()
    manager.shutdown()
    assert reapers() == []


@pytest.mark.parametrize("interval", [None, 0, -1.0, float("inf")])
def test_without_an_interval_there_is_no_greenlet(interval: float | None) -> None:
    streams = StreamManager(
        stream_factory=lambda _: 0, session_factory=lambda: None, stream_cleanup_interval=interval
    )
    with streams:
        assert reapers() == []


def test_a_shorter_interval_wakes_the_reaper_that_sleeps_for_a_longer_one() -> None:
    with SessionManager(session_cleanup_interval=1000.0) as slow:
        (reaper,) = reapers()
        gevent.idle()
        closed = Event()

        class Idle(FakeMember):
            def close(self, **kwargs: object) -> None:
                super().close(**kwargs)
                closed.set()

        clock = HandClock()
        with ConnectionManager(connection_idle_check_interval=0.001, clock=clock) as manager:
            assert reapers() == [reaper]
            idle = Idle()
            manager.add_connection(idle)
            clock.turn(60.0)
            assert closed.wait(5.0)
            assert idle.closes == [{"reason": "Idle timeout"}]
            assert len(manager) == 0
        assert slow.active


def test_the_reaper_lets_others_run_while_it_has_much_to_do() -> None:
    clock = HandClock(0.0)
    reaper = Reaper(clock)
    turns: list[str] = []

    def slow_job(name: str) -> None:
        turns.append(name)
        clock.turn(0.01)

    reaper.add(5.0, lambda: slow_job("one"))
    reaper.add(5.0, lambda: slow_job("two"))
    other = gevent.spawn(turns.append, "other")
    reaper.reap(5.0)
    other.join()
    assert turns == ["one", "other", "two"]
