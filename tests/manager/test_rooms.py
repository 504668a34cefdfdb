"""WebSocketManager with members that do as told: who is in, who hears what, who is closed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import gevent
import gevent.queue
import pytest
from gevent.event import Event
from gevent.pool import Pool
from hypothesis import given
from hypothesis import strategies as st

import gwt
from gwt import manager as managers
from gwt.manager import BroadcastResult
from gwt.manager.broadcast import let_the_loop_run
from gwt.net.waiting import Deadline, Signal

from .fakes import FakeMember, HandClock


class WebSocketManager(managers.WebSocketManager):
    """One that is stopped behind its test: it has work for the reaper as long as it has members."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        made.append(self)


made: list[WebSocketManager] = []


@pytest.fixture(autouse=True)
def _stopped():
    yield
    while made:
        made.pop().stop()


class Outlet(FakeMember):
    """A member that takes what is offered, as a WebSocket does, while it has room."""

    kind: Any = "kind"

    def __init__(self, id: Any = "a", **kwargs: Any) -> None:
        super().__init__(id, **kwargs)
        self.got: list[Any] = []
        self.box: list[Any] = []
        self.encoded = 0
        self.full = False
        self.drained = Signal()

    def encode_for(self, kind: Any, message: Any) -> Any:
        self.encoded += 1
        return message

    def offer(self, frame: Any, limit: int) -> str:
        if self.is_closed:
            return "closed"
        if self.full:
            return "full"
        self.got.append(frame)
        return "sent"

    def offer_later(self, frame: Any, limit: int) -> str:
        if self.is_closed:
            return "closed"
        if self.full:
            return "full"
        self.box.append(frame)
        return "queued"

    def send_offered(self) -> None:
        self.got += self.box
        self.box = []

    def wait_room(self, deadline: Deadline) -> None:
        if self.full:
            self.drained.wait(deadline)

    def begin_close(self, code: int = 1000, reason: str = "") -> None:
        self.closes.append({"code": code, "reason": reason})
        self.end()


class Sender:
    """What the contract asks of any member, and a send() that may wait."""

    state = "open"
    is_closed = False
    last_active = 0.0

    def __init__(self, id: Any) -> None:
        self.id = id
        self.got: list[Any] = []
        self.closes: list[Any] = []
        self.may_send = Event()
        self.may_send.set()

    def send(self, message: Any) -> None:
        self.may_send.wait()
        self.got.append(message)

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))
        self.is_closed = True


def members(count: int, kind: type = Outlet) -> list[Any]:
    return [kind(f"m{number}") for number in range(count)]


def manager_of(*outlets: Any, room: str = "r", **options: Any) -> WebSocketManager:
    manager = WebSocketManager(**options)
    for each in outlets:
        manager.join_room(manager.add(each), room)
    return manager


def turn() -> None:
    gevent.sleep(0.001)


class TestMembers:
    def test_come_by_their_own_id_or_another(self):
        a, b = members(2)
        manager = WebSocketManager()
        assert manager.add(a) == "m0"
        assert manager.add_connection("other", b) == "other"
        assert dict(manager.connections) == {"m0": a, "other": b} == dict(manager.websockets)
        assert len(manager) == 2 and list(manager) == [a, b]
        assert a in manager and "other" in manager and "m1" not in manager and [] not in manager

    def test_the_connections_are_read_only(self):
        manager = manager_of(*members(1))
        with pytest.raises(TypeError):
            manager.connections["x"] = 1  # type: ignore[index]
        with pytest.raises((TypeError, AttributeError)):
            manager.rooms["r"] = 1  # type: ignore[index]

    def test_the_same_one_again_is_ignored(self):
        (a,) = members(1)
        manager = manager_of(a)
        assert manager.add(a) == "m0"
        assert manager.total_created == 1
        with pytest.raises(ValueError, match="member already"):
            manager.add(a, "another")

    def test_an_id_in_use_is_an_error(self):
        a, b = Outlet("x"), Outlet("x")
        manager = manager_of(a)
        with pytest.raises(ValueError, match="'x'"):
            manager.add(b)
        assert manager.connections["x"] is a and not a.closes

    def test_a_replaced_one_is_closed_and_the_new_one_does_not_get_its_rooms(self):
        # Of the original: the new socket inherited the old one's rooms, which stayed open, lost.
        a, b = Outlet("x"), Outlet("x")
        manager = manager_of(a)
        manager.add(b, replace=True)
        assert a.closes == [{"code": 1000, "reason": "replaced"}]
        assert manager.get_connection_rooms("x") == set()
        assert dict(manager.rooms) == {}
        assert manager.connections["x"] is b

    def test_the_end_of_a_replaced_one_does_not_touch_the_new_one(self):
        a, b = Sender("x"), Outlet("x")
        manager = WebSocketManager()
        manager.add(a)
        manager.add(b, replace=True)
        manager.remove(a)
        assert manager.connections["x"] is b
        manager.join()
        assert a.closes == [(1000, "replaced")]

    def test_a_closed_one_leaves_by_itself_with_all_its_rooms(self):
        a, b = members(2)
        manager = manager_of(a, b)
        manager.join_room("m0", "alone")
        a.end()
        assert list(manager) == [b]
        assert dict(manager.rooms) == {"r": frozenset({"m1"})}
        assert manager.total_closed == 1

    def test_joining_after_the_end_is_joining_of_an_unknown_id(self):
        (a,) = members(1)
        manager = manager_of(a)
        a.end()
        with pytest.raises(KeyError):
            manager.join_room("m0", "r")
        # A race that the caller cannot see.
        assert manager.add(a) == "m0"
        assert len(manager) == 0

    def test_removing_is_idempotent_closes_nobody_and_takes_ids_and_members(self):
        a, b = members(2)
        manager = manager_of(a, b)
        for _ in range(2):
            manager.remove(a)
            manager.remove_connection("m1")
            manager.remove_connection("never")
        assert len(manager) == 0 and not a.closes and not b.closes
        assert manager.total_closed == 0

    def test_the_limit(self):
        a, b, c = members(3)
        manager = manager_of(a, b, max_connections=2)
        with pytest.raises(gwt.TooManyConnections) as caught:
            manager.add(c)
        assert caught.value.limit == 2
        # One that takes another's place needs none of its own.
        manager.add(c, "m0", replace=True)

    def test_what_cannot_be_sent_to_is_refused(self):
        with pytest.raises(TypeError, match="send"):
            WebSocketManager().add(FakeMember())

    def test_opened_is_called_and_if_it_raises_that_one_is_closed(self, caplog):
        class Opened(Outlet):
            def opened(self):
                self.got.append("opened")
                if self.id == "m1":
                    raise RuntimeError("no")

        a, b = members(2, Opened)
        manager = WebSocketManager()
        manager.add(a)
        manager.add(b)
        assert a.got == ["opened"]
        assert b.closes == [{"code": 1011, "reason": "internal error"}]
        assert list(manager) == [a] and manager.errors == 1
        assert "opened()" in caplog.text

    def test_one_without_a_notification_is_found_by_the_cleanup(self):
        a = Sender("a")
        manager = manager_of(a)
        a.is_closed = True
        assert manager.cleanup_closed() == 1
        assert len(manager) == 0 and manager.total_closed == 1

    @pytest.mark.parametrize(
        "options",
        [
            {"slow_consumer": "wait"},
            {"outbox_bytes": 0},
            {"max_connections": 0},
            {"max_room_size": -1},
            {"max_room_size": "10"},
            {"outbox_bytes": None},
            {"pool": 0},
            {"pool": True},
            {"backplane": "redis://"},
        ],
        ids=str,
    )
    def test_options_are_checked(self, options):
        with pytest.raises(gwt.ConfigError) as caught:
            WebSocketManager(**options)
        assert caught.value.field == next(iter(options))

    def test_a_removed_one_is_not_kept_alive(self):
        manager = manager_of(Outlet("a"))
        gone = weakref.ref(manager.connections["a"])
        manager.broadcast_to_all("1")
        manager.broadcast_to_all("2")
        manager.remove_connection("a")
        turn()
        gc.collect()
        assert gone() is None


class TestRooms:
    def test_joining_and_leaving_are_idempotent(self):
        manager = manager_of(*members(2))
        for _ in range(2):
            manager.join_room("m0", "s")
        assert manager.get_connection_rooms("m0") == {"r", "s"}
        for _ in range(2):
            manager.leave_room("m0", "s")
            manager.leave_room("m0", "never")
            manager.leave_room("never", "r")
        assert manager.get_connection_rooms("m0") == {"r"}

    def test_empty_rooms_do_not_exist(self):
        # Of the original: they stayed for ever.
        manager = manager_of(*members(2))
        for number in range(100):
            manager.join_room("m0", number)
        assert len(manager.rooms) == 101
        manager.remove_connection("m0")
        assert dict(manager.rooms) == {"r": frozenset({"m1"})}
        manager.leave_room("m1", "r")
        assert len(manager.rooms) == 0 and "r" not in manager.rooms

    def test_an_unknown_id_is_a_key_error(self):
        # Of the original: joining did nothing, without a word.
        with pytest.raises(KeyError):
            WebSocketManager().join_room("never", "r")
        assert WebSocketManager().get_connection_rooms("never") == set()

    def test_an_unknown_room_is_an_empty_one(self):
        manager = WebSocketManager()
        assert manager.get_room_connections("never") == set()
        assert manager.broadcast_to_room("never", "x") == (0, 0, 0, 0)
        assert manager.presence("never") == {}
        assert len(manager.rooms) == 0

    @pytest.mark.parametrize("room", ["", "a/b\n", "🎉", "x" * 10000, 7, None, ("a", 1)], ids=repr)
    def test_odd_names_are_names(self, room):
        (a,) = members(1)
        manager = manager_of(a, room=room)
        assert manager.broadcast_to_room(room, "x").sent == 1
        assert manager.rooms[room] == {"m0"}

    def test_a_name_that_cannot_be_one_changes_nothing(self):
        manager = manager_of(*members(1))
        with pytest.raises(TypeError):
            manager.join_room("m0", [])
        assert manager.get_connection_rooms("m0") == {"r"}

    def test_sets_are_copies(self):
        manager = manager_of(*members(1))
        manager.get_room_connections("r").clear()
        manager.get_connection_rooms("m0").clear()
        assert manager.rooms["r"] == {"m0"}

    def test_a_room_has_at_most_its_size(self):
        manager = manager_of(*members(2), max_room_size=2)
        manager.add(Outlet("c"))
        with pytest.raises(gwt.LimitExceeded):
            manager.join_room("c", "r")
        manager.join_room("m0", "r")
        manager.join_room("c", "s")
        assert manager.get_connection_rooms("c") == {"s"}

    def test_presence_names_who_is_there(self):
        manager = manager_of(*members(2))
        assert set(manager.presence("r")) == {"m0", "m1"}

    def test_leaving_looks_at_own_rooms_only(self):
        # Of the original: it walked through all rooms. Counted, not timed.
        looked = 0

        class Name(str):
            __slots__ = ()
            __hash__ = str.__hash__

            def __eq__(self, other):
                nonlocal looked
                looked += 1
                return str.__eq__(self, other)

        manager = manager_of(*members(2))
        for number in range(1000):
            manager.join_room("m1", Name(f"room {number}"))
        looked = 0
        manager.remove_connection("m0")
        assert looked < 10


class TestBroadcast:
    def test_is_counted_for_each(self):
        a, b, c = members(3)
        manager = manager_of(a, b, c)
        b.is_closed = True
        c.full = True
        result = manager.broadcast_to_room("r", "x")
        assert isinstance(result, BroadcastResult)
        assert result == (1, 0, 0, 2) and sum(result) == 3
        assert manager.stats()["sent"] == 1 and manager.stats()["closed"] == 2

    def test_one_dead_member_costs_nobody_else_anything(self):
        # Of the original: "Set changed size during iteration", and one of three was delivered.
        a, b, c = members(3)
        manager = manager_of(a, b, c)
        b.is_closed = True
        assert manager.broadcast_to_room("r", "x") == (2, 0, 0, 1)
        assert a.got == c.got == ["x"]
        assert manager.rooms["r"] == {"m0", "m2"}

    def test_one_that_raises_is_closed_and_logged_once(self, caplog):
        class Raising(Outlet):
            def offer(self, frame, limit):
                raise RuntimeError("broken")

        bad = members(5, Raising)
        good = Outlet("good")
        manager = manager_of(*bad, good)
        assert manager.broadcast_to_room("r", "x") == (1, 0, 0, 5)
        assert [each.closes[0]["code"] for each in bad] == [1011] * 5
        assert manager.errors == 5
        assert len(caplog.records) == 1
        assert list(manager) == [good]

    def test_encodes_once_a_kind(self):
        class Other(Outlet):
            kind = "other"

        class Alone(Outlet):
            kind = None

        all_of_them = members(10) + [Other(f"o{n}") for n in range(10)]
        alone = Alone("alone")
        all_of_them.insert(5, alone)
        manager = manager_of(*all_of_them)
        assert manager.broadcast_to_all("x").sent == 21
        assert sum(each.encoded for each in all_of_them) == 2
        assert alone.got == ["x"]

    def test_leaves_out_ids_and_members(self):
        a, b, c = members(3)
        manager = manager_of(a, b, c)
        assert sum(manager.broadcast_to_room("r", "x", exclude=["m0", b])) == 1
        assert sum(manager.broadcast_to_all("x", exclude="m1")) == 2
        assert sum(manager.broadcast_to_all("x", exclude=["never"])) == 3
        # A member alone, whose messages are not what is meant.
        assert sum(manager.broadcast_to_room("r", "x", exclude=b)) == 2

    def test_takes_text_and_bytes_like_things_only(self):
        (a,) = members(1)
        manager = manager_of(a)
        manager.broadcast(bytearray(b"1"))
        turn()
        manager.broadcast("2", binary=True)
        turn()
        manager.broadcast(memoryview(b"3"))
        turn()
        assert a.got == [b"1", b"2", b"3"]
        assert {type(each) for each in a.got} == {bytes}
        for wrong in (None, 1, ["x"], {"a": 1}):
            with pytest.raises(TypeError):
                manager.broadcast_to_all(wrong)
        with pytest.raises(gwt.LocalProtocolError):
            manager.broadcast_to_all("\ud800")
        with pytest.raises(gwt.LocalProtocolError):
            manager.broadcast("\ud800", binary=True)
        assert list(manager) == [a]

    def test_later_ones_of_a_turn_wait_for_its_end(self):
        a, b = members(2)
        manager = manager_of(a, b)
        assert manager.broadcast_to_all("1") == (2, 0, 0, 0)
        assert manager.broadcast_to_all("2") == (0, 2, 0, 0)
        assert a.got == ["1"] and a.box == ["2"]
        turn()
        assert a.got == b.got == ["1", "2"]
        assert manager.broadcast_to_all("3") == (2, 0, 0, 0)

    def test_many_members_let_the_loop_run_and_all_hear_the_same_order(self):
        clock = HandClock()

        class Slow(Outlet):
            def offer(self, frame, limit):
                clock.turn(0.001)
                return super().offer(frame, limit)

        all_of_them = members(500, Slow)
        manager = manager_of(*all_of_them)
        manager._broadcaster._clock = clock
        turns = 0

        def count():
            nonlocal turns
            while True:
                turns += 1
                let_the_loop_run()

        counting = gevent.spawn(count)
        senders = [gevent.spawn(manager.broadcast_to_room, "r", n) for n in map(str, range(5))]
        gevent.joinall(senders)
        counting.kill()
        assert [sum(each.get()) for each in senders] == [500] * 5
        assert turns > 5
        turn()
        while any(each.box for each in all_of_them):
            turn()
        assert {tuple(each.got) for each in all_of_them} == {("0", "1", "2", "3", "4")}

    def test_joins_leaves_and_ends_during_it_are_safe(self):
        clock = HandClock()

        class Slow(Outlet):
            def offer(self, frame, limit):
                clock.turn(0.001)
                return super().offer(frame, limit)

        all_of_them = members(300, Slow)
        manager = manager_of(*all_of_them)
        manager._broadcaster._clock = clock
        sender = gevent.spawn(manager.broadcast_to_room, "r", "x")
        while not all_of_them[0].got:
            gevent.sleep(0)
        for each in all_of_them[100:]:
            each.end()
        manager.join_room(manager.add(Outlet("late")), "r")
        assert sender.get() == (
            100 + sum(bool(m.got) for m in all_of_them[100:]),
            0,
            0,
            300 - sum(bool(m.got) for m in all_of_them),
        )
        assert len(manager) == 101

    def test_one_that_is_killed_gives_its_place_to_the_next(self):
        clock = HandClock()

        class Slow(Outlet):
            def offer(self, frame, limit):
                clock.turn(0.01)
                return super().offer(frame, limit)

        all_of_them = members(200, Slow)
        manager = manager_of(*all_of_them)
        manager._broadcaster._clock = clock
        first = gevent.spawn(manager.broadcast_to_room, "r", "1")
        second = gevent.spawn(manager.broadcast_to_room, "r", "2")
        third = gevent.spawn(manager.broadcast_to_room, "r", "3")
        while not all_of_them[0].got:
            gevent.sleep(0)
        second.kill()
        first.kill()
        assert sum(third.get()) == 200
        turn()
        assert all_of_them[-1].got == ["3"] and all_of_them[0].got == ["1", "3"]
        assert manager.broadcast_to_all("4").sent >= 1

    def test_from_the_hub_it_does_not_wait(self):
        a, b = members(2)
        manager = manager_of(a, b, slow_consumer="block")
        b.full = True
        results: list[Any] = []
        gevent.get_hub().loop.run_callback(lambda: results.append(manager.broadcast_to_all("x")))
        turn()
        assert results == [(1, 0, 1, 0)]

    def test_from_another_thread_it_is_refused(self):
        (a,) = members(1)
        manager = manager_of(a)
        manager.join_room(a.id, "r")
        before = manager.stats()

        def elsewhere() -> None:
            for call in (
                lambda: manager.broadcast_to_all("x"),
                lambda: manager.add(Outlet("b")),
                lambda: manager.join_room(a.id, "other"),
                lambda: manager.leave_room(a.id, "r"),
                lambda: manager.remove(a),
                lambda: manager.remove_connection(a.id),
                manager.close_all,
                manager.stop,
            ):
                with pytest.raises(RuntimeError, match="thread"):
                    call()

        gevent.get_hub().threadpool.apply(elsewhere)
        assert manager.stats() == before and a in manager and a.closes == []


class TestSlowMembers:
    def test_are_closed(self):
        a, b = members(2)
        manager = manager_of(a, b)
        b.full = True
        assert manager.broadcast_to_all("x") == (1, 0, 0, 1)
        assert b.closes == [{"code": 1013, "reason": "too slow"}]
        assert list(manager) == [a] and manager.slow_closed == 1

    def test_or_lose_the_message(self):
        a, b = members(2)
        manager = manager_of(a, b, slow_consumer="drop")
        b.full = True
        assert manager.broadcast_to_all("x") == (1, 0, 1, 0)
        b.full = False
        turn()
        assert manager.broadcast_to_all("y") == (2, 0, 0, 0)
        assert b.got == ["y"]

    def test_or_are_waited_for_in_the_order_of_broadcasts_and_hold_up_nobody_else(self):
        a, b = members(2)
        manager = manager_of(a, b, slow_consumer="block")
        b.full = True
        senders = [gevent.spawn(manager.broadcast_to_all, text) for text in "123"]
        turn()
        assert a.got == ["1", "2", "3"] and not any(each.ready() for each in senders)
        b.full = False
        b.drained.notify()
        last = manager.broadcast_to_all("4")
        assert [each.get(timeout=5).sent + each.get().queued for each in senders] == [2] * 3
        assert sum(last) == 2
        turn()
        assert b.got + b.box == ["1", "2", "3", "4"]

    def test_one_that_goes_on_does_not_wait_for_one_that_does_not(self):
        a, b = members(2)
        manager = manager_of(a, b, slow_consumer="block")
        a.full = b.full = True
        sender = gevent.spawn(manager.broadcast_to_all, "x")
        turn()
        b.full = False
        b.drained.notify()
        turn()
        assert b.got == ["x"] and not sender.ready()
        sender.kill()
        a.full = False
        assert manager.broadcast_to_all("y") == (2, 0, 0, 0)
        assert a.got == ["y"]

    def test_who_is_waited_for_in_vain_is_closed(self):
        a, b = members(2)
        manager = manager_of(a, b, slow_consumer="block", block_timeout=0.01)
        b.full = True
        assert manager.broadcast_to_all("x") == (1, 0, 0, 1)
        assert b.closes[0]["code"] == 1013

    def test_who_ends_while_it_is_waited_for_is_closed(self):
        (b,) = members(1)
        manager = manager_of(b, slow_consumer="block")
        b.full = True
        sender = gevent.spawn(manager.broadcast_to_all, "x")
        turn()
        b.end()
        b.drained.notify()
        assert sender.get(timeout=5) == (0, 0, 0, 1)


class TestMembersThatOnlySend:
    def test_get_their_messages_in_order_by_a_greenlet_of_their_own(self):
        a = Sender("a")
        manager = manager_of(a)
        assert manager.broadcast_to_all("1") == (0, 1, 0, 0)
        manager.broadcast_to_all("2")
        turn()
        assert a.got == ["1", "2"]

    def test_keep_nobody_waiting_and_are_bounded(self):
        a, b = Sender("a"), Outlet("b")
        manager = manager_of(a, b, slow_consumer="drop", outbox_bytes=1000)
        a.may_send.clear()
        results = [manager.broadcast_to_all("x" * 100) for _ in range(20)]
        assert sum(each.dropped for each in results) == 14
        a.may_send.set()
        turn()
        assert len(a.got) == 6
        manager.remove(a)

    def test_one_whose_send_raises_is_closed(self, caplog):
        class Raising(Sender):
            def send(self, message):
                raise OSError("broken")

        a, b = Raising("a"), Sender("b")
        manager = manager_of(a, b)
        assert manager.broadcast_to_all("x") == (0, 2, 0, 0)
        manager.broadcast_to_all("y")
        turn()
        assert a.closes == [(1011, "internal error")] and b.got == ["x", "y"]
        assert list(manager) == [b]
        assert len(caplog.records) == 1

    def test_one_that_leaves_takes_its_greenlet_along(self):
        a = Sender("a")
        manager = manager_of(a)
        a.may_send.clear()
        manager.broadcast_to_all("x")
        turn()
        manager.remove(a)
        turn()
        assert a.got == []

    def test_the_slow_one_is_waited_for_with_block(self):
        a = Sender("a")
        manager = manager_of(a, slow_consumer="block", outbox_bytes=100)
        a.may_send.clear()
        manager.broadcast_to_all("x" * 100)
        sender = gevent.spawn(manager.broadcast_to_all, "y")
        turn()
        assert not sender.ready()
        a.may_send.set()
        assert sender.get(timeout=5) == (0, 1, 0, 0)
        turn()
        assert a.got == ["x" * 100, "y"]


class Reading(Outlet):
    def __init__(self, id: Any) -> None:
        super().__init__(id)
        self.inbox: Any = gevent.queue.Queue()
        self.seen: list[Any] = []

    def __iter__(self):
        while True:
            message = self.inbox.get()
            if message is None:
                return
            yield message

    def received_message(self, message: Any) -> None:
        if message == "raise":
            raise RuntimeError("callback")
        self.seen.append(message)

    def end(self) -> None:
        super().end()
        self.inbox.put(None)


class TestHandlers:
    def test_track_runs_a_handler_and_removes_at_its_end(self):
        (a,) = members(1)
        manager = WebSocketManager(pool=1)
        go = Event()
        greenlet = manager.track(a, lambda ws: go.wait())
        assert a in manager
        turn()
        go.set()
        greenlet.join()
        assert a not in manager and a.closes == [{"code": 1000, "reason": ""}]

    def test_a_handler_that_raises_closes_with_1011_and_is_logged(self, caplog):
        (a,) = members(1)
        manager = WebSocketManager()

        def handler(ws):
            raise RuntimeError("oops")

        manager.track(a, handler).join()
        assert a.closes == [{"code": 1011, "reason": "internal error"}]
        assert a not in manager and manager.errors == 1
        assert "oops" in caplog.text

    @pytest.mark.parametrize("pool", [1, Pool(1)], ids=["size", "pool"])
    def test_a_full_pool_refuses_and_takes_nobody_in(self, pool):
        a, b = members(2)
        manager = WebSocketManager(pool=pool)
        go = Event()
        greenlet = manager.track(a, lambda ws: go.wait())
        with pytest.raises(gwt.PoolExhausted):
            manager.track(b, lambda ws: None)
        with pytest.raises(gwt.PoolExhausted):
            manager.add(Reading("r"))
        assert list(manager) == [a]
        go.set()
        greenlet.join()

    def test_received_message_gets_what_comes(self):
        a = Reading("a")
        manager = WebSocketManager()
        manager.add(a)
        a.inbox.put("1")
        a.inbox.put("2")
        turn()
        assert a.seen == ["1", "2"]
        a.end()
        manager.join(timeout=5)

    def test_one_whose_callback_raises_is_closed_and_removed(self, caplog):
        a, b = Reading("a"), Reading("b")
        manager = manager_of(a, b)
        a.inbox.put("raise")
        b.inbox.put("fine")
        turn()
        assert a.closes[0]["code"] == 1011 and list(manager) == [b] and b.seen == ["fine"]
        b.end()
        manager.join(timeout=5)

    def test_one_that_was_removed_is_not_read_any_more(self):
        a = Reading("a")
        manager = manager_of(a)
        turn()
        manager.remove(a)
        a.inbox.put("not for it")
        turn()
        assert a.seen == [] and a.inbox.get_nowait() == "not for it"
        manager.join(timeout=5)
        # Back again, it has one reader.
        manager.add(a)
        a.inbox.put("for it")
        turn()
        assert a.seen == ["for it"]
        manager.remove_connection("a")
        manager.join(timeout=5)

    def test_a_callback_that_removes_its_member_is_not_killed(self):
        a = Reading("a")
        manager = manager_of(a)
        go = Event()

        def received(message: Any) -> None:
            manager.remove(a)
            go.wait()
            a.seen.append(message)

        a.received_message = received
        a.inbox.put("1")
        a.inbox.put("2")
        turn()
        go.set()
        manager.join(timeout=5)
        assert a.seen == ["1"] and a.inbox.get_nowait() == "2"

    def test_what_came_before_the_end_is_given_to_it(self):
        a = Reading("a")
        manager = manager_of(a)
        a.inbox.put("1")
        a.inbox.put("2")
        a.end()
        manager.join(timeout=5)
        assert a.seen == ["1", "2"] and a not in manager

    def test_track_asks_for_a_reader_and_a_handler_together(self):
        a = Reading("a")
        manager = WebSocketManager(pool=1)
        with gevent.Timeout(5), pytest.raises(gwt.PoolExhausted):
            manager.track(a, lambda ws: None)
        assert a not in manager


class TestLife:
    def test_run_lasts_until_stop_which_closes_nobody(self):
        manager = manager_of(*members(2))
        running = gevent.spawn(manager.run)
        turn()
        assert manager.running and not running.ready()
        manager.stop()
        running.join()
        assert not manager.running and len(manager) == 2

    def test_join_has_a_limit(self):
        manager = WebSocketManager()
        manager.start()
        with pytest.raises(TimeoutError):
            manager.join(timeout=0.01)
        manager.stop()
        manager.join()

    def test_close_all_tells_everybody(self):
        all_of_them = members(200)
        manager = manager_of(*all_of_them)
        manager.close_all()
        assert {each.closes[0]["code"] for each in all_of_them} == {1001}
        assert {each.closes[0]["reason"] for each in all_of_them} == {"Server is shutting down"}
        assert len(manager) == 0 and len(manager.rooms) == 0

    def test_close_all_gives_up_on_who_does_not_close(self):
        class Stubborn(Outlet):
            def begin_close(self, code=1000, reason=""):
                self.closes.append(code)

        a, b = Stubborn("a"), Outlet("b")
        manager = manager_of(a, b)
        manager.close_all(timeout=0.01)
        assert a.aborted and not b.aborted and len(manager) == 0

    def test_close_all_closes_those_that_wait_at_the_same_time(self):
        class Waiting(Sender):
            def close(self, code, reason):
                together.append(self)
                while len(together) < 5:
                    gevent.sleep(0)
                super().close(code, reason)

        together: list[Any] = []
        manager = manager_of(*members(5, Waiting))
        manager.close_all(timeout=5)
        assert len(manager) == 0

    def test_leaving_with_closes_stops_and_kills_a_handler_that_never_returns(self):
        (a,) = members(1)
        never = Event()
        with WebSocketManager() as manager:
            greenlet = manager.track(a, lambda ws: never.wait())
            turn()
            manager.shutdown(timeout=0.01)
        assert greenlet.dead and a.closes[0]["code"] == 1001
        with pytest.raises(gwt.GwtError):
            manager.add(Outlet("late"))
        manager.start()
        manager.add(Outlet("late"))

    def test_a_stop_during_a_broadcast(self):
        clock = HandClock()

        class Slow(Outlet):
            def offer(self, frame, limit):
                clock.turn(0.001)
                return super().offer(frame, limit)

        all_of_them = members(300, Slow)
        manager = manager_of(*all_of_them)
        manager._broadcaster._clock = clock
        sender = gevent.spawn(manager.broadcast_to_room, "r", "x")
        while not all_of_them[0].got:
            gevent.sleep(0)
        manager.shutdown(timeout=5)
        assert sum(sender.get(timeout=5)) == 300
        assert len(manager) == 0

    def test_the_idle_are_closed(self):
        clock = HandClock()
        a, b = Outlet("a", last_active=1000.0), Outlet("b", last_active=1050.0)
        manager = WebSocketManager(idle_timeout=60, clock=clock)
        manager.add(a)
        manager.add(b)
        clock.turn(70)
        assert manager.close_idle() == 1
        assert a.closes == [{"code": 1001, "reason": "Idle timeout"}] and list(manager) == [b]

    def test_a_clock_that_jumps_closes_nobody(self):
        # As after a stall: nobody's peer has been read meanwhile.
        clock = HandClock()
        a = Outlet("a")
        manager = WebSocketManager(idle_timeout=60, clock=clock)
        manager.add(a)
        clock.turn(3600)
        manager._check_idle()
        assert a in manager
        clock.turn(-7200)
        manager._check_idle()
        assert a in manager
        a.last_active = clock.now
        for _ in range(13):
            clock.turn(5)
            manager._check_idle()
        assert a not in manager

    def test_the_reaper_is_there_while_members_are(self):
        (a,) = members(1)
        manager = WebSocketManager(idle_timeout=60)
        manager.add(a)
        assert manager._enlisted
        a.end()
        assert not manager._enlisted
        manager.stop()
        manager.add(Outlet("b"))
        assert not manager._enlisted


ID = st.sampled_from("abcd")
ROOM = st.sampled_from("rst")
STEP = st.one_of(
    st.tuples(st.just("add"), ID, st.booleans()),
    st.tuples(st.just("remove"), ID),
    st.tuples(st.just("end"), ID),
    st.tuples(st.just("full"), ID, st.booleans()),
    st.tuples(st.just("join"), ID, ROOM),
    st.tuples(st.just("leave"), ID, ROOM),
    st.tuples(st.just("broadcast"), st.none() | ROOM, st.none() | ID),
    st.tuples(st.just("turn")),
)


class TestAgainstAModel:
    @given(st.lists(STEP, max_size=60), st.sampled_from(["close", "drop"]))
    def test_joins_leaves_ends_and_broadcasts(self, steps, policy):
        manager = WebSocketManager(slow_consumer=policy)
        here: dict[str, Outlet] = {}
        rooms: dict[str, set[str]] = {}
        heard: dict[Outlet, list[str]] = {}
        number = 0

        def gone(id: str) -> None:
            here.pop(id, None)
            for name in list(rooms):
                rooms[name].discard(id)
                if not rooms[name]:
                    del rooms[name]

        for step, *args in steps:
            if step == "add":
                id, replace = args
                outlet = Outlet(id)
                if id in here and not replace:
                    with pytest.raises(ValueError, match="id"):
                        manager.add(outlet)
                    continue
                manager.add(outlet, replace=replace)
                gone(id)
                here[id] = outlet
                heard[outlet] = []
            elif step == "remove":
                manager.remove_connection(args[0])
                gone(args[0])
            elif step == "end" and args[0] in here:
                here[args[0]].end()
                gone(args[0])
            elif step == "full" and args[0] in here:
                here[args[0]].full = args[1]
            elif step == "join":
                id, room = args
                if id in here:
                    manager.join_room(id, room)
                    rooms.setdefault(room, set()).add(id)
                else:
                    with pytest.raises(KeyError):
                        manager.join_room(id, room)
            elif step == "leave":
                id, room = args
                manager.leave_room(id, room)
                if room in rooms:
                    rooms[room].discard(id)
                    if not rooms[room]:
                        del rooms[room]
            elif step == "broadcast":
                room, left_out = args
                number += 1
                to = (set(here) if room is None else rooms.get(room, set())) - {left_out}
                full = {id for id in to if here[id].full}
                exclude = () if left_out is None else (left_out,)
                if room is None:
                    result = manager.broadcast_to_all(str(number), exclude=exclude)
                else:
                    result = manager.broadcast_to_room(room, str(number), exclude=exclude)
                for id in to - full:
                    heard[here[id]].append(str(number))
                assert result.sent + result.queued == len(to - full)
                assert (result.closed if policy == "close" else result.dropped) == len(full)
                assert sum(result) == len(to)
                if policy == "close":
                    for id in full:
                        gone(id)
            elif step == "turn":
                gevent.sleep(0)
            assert set(manager.connections) == set(here)
            assert dict(manager.rooms) == rooms
            for id in here:
                assert manager.get_connection_rooms(id) == {
                    name for name, ids in rooms.items() if id in ids
                }
        turn()
        for outlet, messages in heard.items():
            assert outlet.got == messages
        manager.stop()
        for outlet in list(here.values()):
            outlet.end()
