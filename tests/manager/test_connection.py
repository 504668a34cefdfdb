"""ConnectionManager: its limit, and the closing of connections that fell silent."""

from __future__ import annotations

import inspect
import time
from typing import Any

import pytest

from gwt.errors import GwtError, TooManyConnections
from gwt.manager import ConnectionManager, connection
from gwt.manager.connection import pick_idle
from tests.helpers import eventually

from .fakes import BrokenMember, FakeMember, HandClock, RaisingMember, StuckMember


@pytest.mark.parametrize(
    ("last_active", "now", "timeout", "closed", "idle"),
    [
        (0.0, 59.9, 60.0, False, False),
        (0.0, 60.0, 60.0, False, True),
        (0.0, 1000.0, 60.0, False, True),
        (0.0, 1000.0, 60.0, True, False),
        (0.0, 1000.0, 0.0, False, False),
        (0.0, 1000.0, -1.0, False, False),
        (70.0, 60.0, 60.0, False, False),
    ],
)
def test_pick_idle(
    last_active: float, now: float, timeout: float, closed: bool, idle: bool
) -> None:
    member = FakeMember(last_active=last_active)
    member.is_closed = closed
    assert pick_idle([member], now, timeout) == ([member] if idle else [])


def test_pick_idle_passes_over_members_whose_properties_raise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, good = BrokenMember(), FakeMember(last_active=0.0)
    monkeypatch.setattr(BrokenMember, "broken", True)
    broken: list[Exception] = []
    assert pick_idle([bad, good], 100.0, 60.0, broken) == [good]
    assert pick_idle([bad, good], 100.0, 60.0) == [good]
    assert len(broken) == 1


def test_defaults_are_those_of_the_original() -> None:
    parameters = inspect.signature(ConnectionManager).parameters
    assert {name: p.default for name, p in parameters.items() if name != "clock"} == {
        "max_connections": 3000,
        "connection_cleanup_interval": 30.0,
        "connection_idle_check_interval": 5.0,
        "connection_idle_timeout": 60.0,
    }


def test_over_the_limit_is_refused_and_defect_1_nobody_else_is_harmed() -> None:
    # specified-behaviour.md, defect 1: the third client with max_connections=2 killed the server.
    with ConnectionManager(max_connections=2) as manager:
        members = [FakeMember(str(i)) for i in range(3)]
        manager.add_connection(members[0])
        manager.add_connection(members[1])
        with pytest.raises(TooManyConnections) as caught:
            manager.add_connection(members[2])
        assert str(caught.value) == "Maximum connections (2) exceeded"
        assert caught.value.limit == 2
        assert isinstance(caught.value, GwtError)
        assert isinstance(caught.value, ConnectionError)
        assert manager.active
        assert manager.get_all_resources() == members[:2]
        assert all(member.closes == [] for member in members)
        members[0].end()
        assert manager.add_connection(members[2]) == "2"


def test_no_limit_is_none() -> None:
    with ConnectionManager(max_connections=None) as manager:
        manager.add_connection(FakeMember())
        assert manager.get_stats()["max_connections"] is None


def test_adding_without_activation_is_a_connection_error() -> None:
    with pytest.raises(ConnectionError, match="has not been activated") as caught:
        ConnectionManager().add_connection(FakeMember())
    assert isinstance(caught.value, GwtError)


def test_idle_connections_are_closed_with_their_reason_and_active_ones_are_not() -> None:
    clock = HandClock()
    with ConnectionManager(clock=clock) as manager:
        idle, busy = FakeMember("idle"), FakeMember("busy")
        manager.add_connection(idle)
        manager.add_connection(busy)
        clock.turn(59.0)
        assert manager.close_idle() == 0
        busy.last_active = clock()
        clock.turn(1.0)
        assert manager.close_idle() == 1
        eventually(lambda: idle.closes)
        assert idle.closes == [{"reason": "Idle timeout"}]
        assert busy.closes == []
        assert manager.get_all_resources() == [busy]
        assert manager.get_stats()["total_closed"] == 1
        assert manager.close_idle(now=clock() + 59.0) == 1
        eventually(lambda: busy.closes)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_an_idle_timeout_of_zero_or_less_is_off(timeout: float) -> None:
    clock = HandClock()
    with ConnectionManager(connection_idle_timeout=timeout, clock=clock) as manager:
        manager.add_connection(FakeMember())
        clock.turn(1e9)
        assert manager.close_idle() == 0


def test_a_close_that_waits_holds_up_neither_the_pass_nor_others_nor_is_repeated() -> None:
    clock = HandClock()
    with ConnectionManager(clock=clock) as manager:
        stuck, quick = StuckMember("stuck"), FakeMember("quick")
        manager.add_connection(stuck)
        manager.add_connection(quick)
        clock.turn(60.0)
        assert manager.close_idle() == 2
        eventually(lambda: quick.closes and stuck.closes)
        assert manager.close_idle() == 0
        assert manager.get_all_resources() == [stuck]
        stuck.release.set()
        eventually(lambda: len(manager) == 0)
        assert len(stuck.closes) == 1


def test_an_idle_connection_that_does_not_close_in_time_is_aborted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "CLOSE_TIMEOUT", 0.0)
    clock = HandClock()
    with ConnectionManager(clock=clock) as manager:
        stuck = StuckMember()
        manager.add_connection(stuck)
        clock.turn(60.0)
        manager.close_idle()
        eventually(lambda: stuck.aborted)
        assert len(manager) == 0


def test_only_so_many_are_closed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CLOSERS", 2)
    clock = HandClock()
    with ConnectionManager(clock=clock) as manager:
        members = [StuckMember(str(i)) for i in range(3)]
        for member in members:
            manager.add_connection(member)
        clock.turn(60.0)
        assert manager.close_idle() == 2
        assert manager.close_idle() == 0
        for member in members:
            member.release.set()
        eventually(lambda: len(manager) == 1)
        assert manager.close_idle() == 1
        eventually(lambda: len(manager) == 0)


def test_a_raising_close_is_counted_logged_once_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = HandClock()
    manager = ConnectionManager(clock=clock)
    with manager:
        raising, good = RaisingMember("r"), FakeMember("g")
        manager.add_connection(raising)
        manager.add_connection(good)
        clock.turn(60.0)
        manager.close_idle()
        eventually(lambda: good.closes and raising.closes)
        assert manager.get_all_resources() == [raising]
        assert manager.get_stats()["errors"] == 2
        manager.remove_connection("r")
    assert len(caplog.records) == 1


def test_a_raising_property_ends_no_pass(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()
    with ConnectionManager(clock=clock) as manager:
        good = FakeMember("g")
        manager.add_connection(BrokenMember("b"))
        manager.add_connection(good)
        monkeypatch.setattr(BrokenMember, "broken", True)
        clock.turn(60.0)
        assert manager.close_idle() == 1
        eventually(lambda: good.closes)
        assert manager.errors == 1
        assert len(caplog.records) == 1
        monkeypatch.setattr(BrokenMember, "broken", False)


def test_shutdown_leaves_no_greenlet_of_an_idle_close_that_is_stuck() -> None:
    class Immovable(StuckMember):
        def abort(self, code: int = 0) -> None:
            pass

    clock = HandClock()
    manager = ConnectionManager(clock=clock)
    manager.start()
    stuck = Immovable()
    manager.add_connection(stuck)
    clock.turn(60.0)
    manager.close_idle()
    assert stuck.closing.wait(5.0)
    manager.shutdown(timeout=0.0)
    assert all(closer.dead for closer in manager._idle_closers.values())
    assert len(manager) == 0


def test_a_member_that_shuts_the_manager_down_when_it_is_found_idle_ends_in_peace() -> None:
    clock = HandClock()
    manager = ConnectionManager(clock=clock)
    done: list[Any] = []

    class Last(FakeMember):
        def close(self, **kwargs: Any) -> None:
            super().close(**kwargs)
            manager.shutdown()
            done.append(kwargs)

    manager.start()
    manager.add_connection(Last())
    clock.turn(60.0)
    manager.close_idle()
    eventually(lambda: done)
    assert not manager.active


def test_a_pass_over_20000_connections_chooses_in_one_loop() -> None:
    # Not a measurement: it fails only if a pass were quadratic.
    clock = HandClock()
    with ConnectionManager(max_connections=None, clock=clock) as manager:
        for i in range(20_000):
            manager.add_connection(FakeMember(i))
        started = time.perf_counter()
        assert manager.close_idle() == 0
        assert manager.cleanup_closed_resources() == 0
        assert time.perf_counter() - started < 5.0
        for member in manager:
            manager.remove_connection(member.id)
