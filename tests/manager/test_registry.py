"""What all managers have in common, over the plain Registry and over each manager."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwt.errors import GwtError, SessionError, StreamError
from gwt.manager import ConnectionManager, SessionManager, StreamManager
from gwt.manager.connection import ManagerInactive
from gwt.manager.registry import Registry, pick_closed, value_of
from tests.helpers import Task, eventually

from .fakes import BrokenMember, FakeMember, RaisingMember, SilentMember, StuckMember


class Plain(Registry):
    """A Registry with the methods that a manager gives names to."""

    __slots__ = ()

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(limit=limit, cleanup_interval=None)

    def add(self, member: Any) -> Hashable:
        return self._add(member)

    def remove(self, key: Hashable) -> Any:
        return self._remove(key)


def streams() -> StreamManager:
    return StreamManager(stream_factory=lambda _: 0, session_factory=lambda: None)


MANAGERS: list[tuple[Callable[[], Any], str, type[GwtError]]] = [
    (ConnectionManager, "connection", ManagerInactive),
    (SessionManager, "session", SessionError),
    (streams, "stream", StreamError),
]
EACH = pytest.mark.parametrize(("make", "kind", "error"), MANAGERS)


class Colour(enum.Enum):
    RED = "red"


class Shade(enum.StrEnum):
    DARK = "dark"


@pytest.mark.parametrize(
    ("state", "text"), [("open", "open"), (Colour.RED, "red"), (Shade.DARK, "dark"), (None, "None")]
)
def test_a_state_is_an_enum_or_a_text(state: object, text: str) -> None:
    assert value_of(state) == text


def test_pick_closed_chooses_the_closed_and_reports_the_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed, alive, broken_one = FakeMember("c"), FakeMember("o"), BrokenMember("b")
    closed.is_closed = True
    monkeypatch.setattr(BrokenMember, "broken", True)
    broken: list[Exception] = []
    members: list[tuple[Hashable, Any]] = [("c", closed), ("o", alive), ("b", broken_one)]
    assert pick_closed(members, broken) == [("c", closed)]
    assert [str(exc) for exc in broken] == ["is_closed is broken"]


@EACH
def test_not_activated_adding_raises_and_getters_are_empty(
    make: Callable[[], Any], kind: str, error: type[GwtError]
) -> None:
    manager = make()
    with pytest.raises(error, match="has not been activated"):
        getattr(manager, f"add_{kind}")(FakeMember(1))
    assert manager.get_resource(1) is None
    assert manager.get_all_resources() == []
    assert manager.get_stats() == {}
    assert manager.cleanup_closed_resources() == 0
    assert getattr(manager, f"remove_{kind}")(1) is None
    assert len(manager) == 0
    assert list(manager) == []
    manager.shutdown()


@EACH
def test_names_work_by_position_and_by_keyword(
    make: Callable[[], Any], kind: str, error: type[GwtError]
) -> None:
    with make() as manager:
        one, two = FakeMember(1), FakeMember(2)
        getattr(manager, f"add_{kind}")(one)
        getattr(manager, f"add_{kind}")(**{kind: two})
        assert manager.get_resource(1) is one
        assert manager.get_resource(resource_id=2) is two
        assert manager.get_all_resources() == [one, two]
        assert getattr(manager, f"remove_{kind}")(1) is one
        assert getattr(manager, f"remove_{kind}")(**{f"{kind}_id": 2}) is two
        assert getattr(manager, f"remove_{kind}")(2) is None
        assert one.closes == two.closes == []


@EACH
def test_stats_have_the_keys_of_the_original(
    make: Callable[[], Any], kind: str, error: type[GwtError]
) -> None:
    with make() as manager:
        stats = manager.get_stats()
        assert set(stats) >= {
            "total_created",
            "total_closed",
            "current_count",
            "max_concurrent",
            "active",
            f"max_{kind}s",
            "states",
        }
        assert stats["active"] == stats["current_count"]


@EACH
def test_leaving_with_closes_everybody_and_it_can_be_entered_again(
    make: Callable[[], Any], kind: str, error: type[GwtError]
) -> None:
    manager = make()
    for round in (1, 2):
        with manager:
            members = [FakeMember(i) for i in range(3)]
            for member in members:
                getattr(manager, f"add_{kind}")(member)
        assert all(len(member.closes) == 1 for member in members)
        assert len(manager) == 0
        assert manager.total_closed == 3 * round
        assert not manager.active


def test_a_member_that_ends_is_gone_at_once() -> None:
    with Plain() as registry:
        member = FakeMember()
        registry.add(member)
        member.end()
        assert len(registry) == 0
        assert registry.get_stats()["total_closed"] == 1


def test_the_end_of_an_old_member_does_not_remove_a_new_one_with_its_id() -> None:
    with Plain() as registry:
        old, new = FakeMember("a"), FakeMember("a")
        registry.add(old)
        registry.remove("a")
        registry.add(new)
        old.end()
        assert registry.get_resource("a") is new
        assert registry.get_stats()["total_closed"] == 0


def test_removing_does_not_count_as_closed_nor_does_the_end_after_it() -> None:
    with Plain() as registry:
        member = FakeMember()
        registry.add(member)
        assert registry.remove("a") is member
        member.end()
        stats = registry.get_stats()
        assert (stats["total_created"], stats["total_closed"]) == (1, 0)


def test_a_member_added_removed_and_added_again_ends_once() -> None:
    with Plain() as registry:
        member = FakeMember()
        registry.add(member)
        registry.remove("a")
        registry.add(member)
        member.end()
        assert registry.total_closed == 1


def test_the_same_member_again_is_ignored_and_another_with_its_id_refused() -> None:
    with Plain(limit=1) as registry:
        member = FakeMember("a")
        assert registry.add(member) == "a"
        assert registry.add(member) == "a"
        with pytest.raises(ValueError, match="id 'a' is already managed"):
            registry.add(FakeMember("a"))
        assert registry.get_resource("a") is member
        assert registry.total_created == 1


@pytest.mark.parametrize("make", [FakeMember, SilentMember])
def test_a_closed_member_is_counted_and_gone_at_once(make: type[FakeMember]) -> None:
    with Plain() as registry:
        member = make()
        member.is_closed = True
        assert registry.add(member) == "a"
        stats = registry.get_stats()
        assert (stats["total_created"], stats["total_closed"]) == (1, 1)
        assert (stats["current_count"], stats["max_concurrent"]) == (0, 0)


def test_a_member_whose_notification_raises_is_not_taken_in() -> None:
    class Refusing(FakeMember):
        def on_end(self, callback: Any) -> None:
            raise RuntimeError("no")

    with Plain() as registry:
        with pytest.raises(RuntimeError):
            registry.add(Refusing())
        assert len(registry) == 0
        assert registry.total_created == 0


def test_members_that_never_tell_are_found_by_the_cleanup() -> None:
    with Plain() as registry:
        one, two = SilentMember(1), SilentMember(2)
        registry.add(one)
        registry.add(two)
        one.end()
        assert len(registry) == 2
        assert registry.cleanup_closed_resources() == 1
        assert registry.cleanup_closed_resources() == 0
        assert list(registry) == [two]
        assert registry.total_closed == 1


def test_a_member_that_ends_while_others_are_iterated_disturbs_nobody() -> None:
    with Plain() as registry:
        members = [FakeMember(i) for i in range(3)]
        for member in members:
            registry.add(member)
        for member in registry:
            member.end()
        assert len(registry) == 0


def test_in_knows_ids_and_members() -> None:
    with Plain() as registry:
        member = FakeMember("a")
        registry.add(member)
        assert "a" in registry
        assert member in registry
        assert FakeMember("a") not in registry
        assert "b" not in registry
        assert [] not in registry


def test_max_concurrent_is_the_most_at_a_time() -> None:
    with Plain() as registry:
        members = [FakeMember(i) for i in range(3)]
        for member in members:
            registry.add(member)
        for member in members:
            member.end()
        registry.add(FakeMember(9))
        assert registry.get_stats()["max_concurrent"] == 3


def test_states_are_counted_by_their_text() -> None:
    with Plain() as registry:
        registry.add(FakeMember(1, state=Colour.RED))
        registry.add(FakeMember(2, state="red"))
        registry.add(FakeMember(3, state=Shade.DARK))
        assert registry.get_stats()["states"] == {"red": 2, "dark": 1}


def test_a_raising_property_is_counted_logged_once_and_harms_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Plain() as registry:
        silent = SilentMember("s")
        registry.add(BrokenMember("b"))
        registry.add(silent)
        monkeypatch.setattr(BrokenMember, "broken", True)
        silent.is_closed = True
        assert registry.cleanup_closed_resources() == 1
        stats = registry.get_stats()
        assert stats["states"] == {"unknown": 1}
        assert registry.errors == 2
        assert len(caplog.records) == 1
        monkeypatch.setattr(BrokenMember, "broken", False)


def test_shutdown_closes_everybody_at_the_same_time() -> None:
    registry = Plain()
    registry.start()
    members = [StuckMember(i) for i in range(5)]
    for member in members:
        registry.add(member)
    stopping = Task(registry.shutdown)
    for member in members:
        assert member.closing.wait(5.0)
    assert not stopping.done
    with pytest.raises(GwtError):
        registry.add(FakeMember("late"))
    assert registry.get_all_resources() == []
    for member in members:
        member.release.set()
    stopping.get()
    assert registry.total_closed == 5
    assert not any(member.aborted for member in members)


def test_shutdown_aborts_who_is_not_closed_by_the_deadline() -> None:
    registry = Plain()
    registry.start()
    stuck, quick = StuckMember("stuck"), FakeMember("quick")
    registry.add(stuck)
    registry.add(quick)
    registry.shutdown(timeout=0.0)
    assert stuck.aborted
    assert not quick.aborted
    assert len(registry) == 0
    assert registry.total_closed == 2


def test_shutdown_survives_a_member_that_can_be_neither_closed_nor_aborted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = Plain()
    registry.start()
    raising, good = RaisingMember("r"), FakeMember("g")
    registry.add(raising)
    registry.add(good)
    registry.shutdown()
    assert len(raising.closes) == len(good.closes) == 1
    assert len(registry) == 0
    assert registry.total_closed == 1
    assert registry.errors >= 1
    assert len(caplog.records) == 1


def test_a_timeout_that_leaks_from_close_ends_neither_closer_nor_shutdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Leaking(FakeMember):
        def close(self, **kwargs: Any) -> None:
            raise gevent.Timeout(1.0)

    registry = Plain()
    registry.start()
    member = Leaking()
    registry.add(member)
    registry.shutdown()
    assert member.aborted
    assert registry.errors == 1


def test_shutdown_interrupted_by_its_callers_timeout_leaves_nobody() -> None:
    registry = Plain()
    registry.start()
    stuck = StuckMember()
    registry.add(stuck)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
        registry.shutdown()
    assert stuck.aborted
    assert len(registry) == 0


def test_a_close_that_shuts_the_manager_down_does_not_wait_for_itself() -> None:
    registry = Plain()

    class Recursive(FakeMember):
        def close(self, **kwargs: Any) -> None:
            registry.shutdown()
            super().close(**kwargs)

    registry.start()
    members = [Recursive(1), Recursive(2)]
    for member in members:
        registry.add(member)
    registry.shutdown()
    assert [len(member.closes) for member in members] == [1, 1]


def test_members_added_after_a_restart_during_shutdown_stay() -> None:
    registry = Plain()
    registry.start()
    stuck = StuckMember("old")
    registry.add(stuck)
    stopping = Task(registry.shutdown)
    assert stuck.closing.wait(5.0)
    registry.start()
    new = FakeMember("new")
    registry.add(new)
    stuck.release.set()
    stopping.get()
    assert list(registry) == [new]
    assert new.closes == []
    registry.shutdown()
    assert len(new.closes) == 1


def test_a_second_shutdown_during_the_first_leaves_its_members_to_that() -> None:
    registry = Plain()
    registry.start()
    old, new = StuckMember("old"), FakeMember("new")
    registry.add(old)
    first = Task(registry.shutdown)
    assert old.closing.wait(5.0)
    registry.start()
    registry.add(new)
    registry.shutdown()
    assert not first.done
    old.release.set()
    first.get()
    assert len(new.closes) == 1
    assert len(registry) == 0


def test_stop_closes_nobody_and_ends_are_still_counted() -> None:
    registry = Plain()
    registry.start()
    member = FakeMember()
    registry.add(member)
    registry.stop()
    assert member.closes == []
    member.end()
    assert (len(registry), registry.total_closed) == (0, 1)


def test_repr_says_what_a_test_wants_to_know() -> None:
    with Plain(limit=7) as registry:
        registry.add(FakeMember())
        assert repr(registry) == "<Plain active members=1 limit=7 created=1 closed=0>"


def test_ends_may_be_told_from_the_hub() -> None:
    with Plain() as registry:
        member = FakeMember()
        registry.add(member)
        gevent.get_hub().loop.run_callback(member.end)
        eventually(lambda: len(registry) == 0)


# A name of what happens, and the number of the member that it happens to.
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "end", "close silently", "remove", "cleanup", "restart"]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(OPERATIONS, st.integers(1, 4))
def test_any_order_of_events_agrees_with_a_simple_model(
    operations: list[tuple[str, int]], limit: int
) -> None:
    registry = Plain(limit)
    registry.start()
    members = {i: FakeMember(i) for i in range(6)}
    here: dict[int, FakeMember] = {}
    created = closed = most = 0
    for operation, i in operations:
        member = members[i]
        match operation:
            case "add" if here.get(i, member) is not member:
                with pytest.raises(ValueError):
                    registry.add(member)
            case "add" if i not in here and len(here) == limit:
                with pytest.raises(GwtError):
                    registry.add(member)
            case "add":
                registry.add(member)
                if i not in here:
                    created += 1
                    if member.is_closed:
                        closed += 1
                    else:
                        here[i] = member
                        most = max(most, len(here))
            case "end":
                member.end()
                if here.get(i) is member:
                    del here[i]
                    closed += 1
                # Another one with the same id comes along.
                members[i] = FakeMember(i)
            case "close silently":
                member.is_closed = True
            case "remove":
                assert registry.remove(i) is here.pop(i, None)
            case "cleanup":
                gone = [i for i, member in here.items() if member.is_closed]
                assert registry.cleanup_closed_resources() == len(gone)
                for i in gone:
                    del here[i]
                closed += len(gone)
            case "restart":
                registry.stop()
                registry.start()
        assert dict(registry._members) == here
        assert list(registry) == list(here.values())
        assert registry.total_created == created
        assert registry.total_closed == closed
        assert registry.max_concurrent == most
    registry.stop()
