"""
StatelessServer: exact order of use, ends that are noticed at once, hooks called exactly once.

Classes named after a defect are those that the class which gave the names has; here none may be.
Every test of an application runs blocking and as ``async def``.
"""

from __future__ import annotations

import asyncio
import logging
import queue
from collections import OrderedDict
from typing import Any

import gevent
import hypothesis
import hypothesis.strategies as st
import pytest
from gevent.event import Event

import gwt
from gwt.manager import StatelessServer
from gwt.manager.applications import InGreenlet, InLoop, is_async
from tests.helpers import eventually, spawn
from tests.manager.fakes import HandClock


class Recorder(StatelessServer):
    """Keeps what it was told; handle() waits until it is released."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[tuple[Any, Any]] = []
        self.failures: list[tuple[str, Any]] = []
        self.evictions: list[tuple[Any, Any, list[Any]]] = []
        self.handling = Event()
        self.release = Event()

    def handle(self) -> None:
        self.handling.set()
        self.release.wait()

    def application_send(self, scope, message):
        self.sent.append((scope, message))

    def application_exception(self, exception, application_details):
        self.failures.append((repr(exception), application_details["scope"]))

    def application_evicted(self, scope_id, scope, pending):
        self.evictions.append((scope_id, scope, pending))

    def get(self, scope_id: Any) -> Any:
        return self.get_or_create_application_instance(scope_id, f"scope of {scope_id}")


def blocking_echo(scope, receive, send):
    while (message := receive()) != "end":
        if isinstance(message, BaseException):
            raise message
        send(message)


async def async_echo(scope, receive, send):
    while (message := await receive()) != "end":
        if isinstance(message, BaseException):
            raise message
        await send(message)


def blocking_finally(log: list[str], pause: float = 0.0) -> Any:
    def application(scope, receive, send):
        try:
            receive()
            receive()
        finally:
            log.append("leaving")
            if pause:
                gevent.sleep(pause)
            log.append("left")

    return application


def async_finally(log: list[str], pause: float = 0.0) -> Any:
    async def application(scope, receive, send):
        try:
            await receive()
            await receive()
        finally:
            log.append("leaving")
            if pause:
                await asyncio.sleep(pause)
            log.append("left")

    return application


BOTH = pytest.mark.parametrize("echo", [blocking_echo, async_echo])
BOTH_FINALLY = pytest.mark.parametrize("make", [blocking_finally, async_finally])


@pytest.fixture
def serve():
    """Make servers that are shut down in the end."""
    made = []

    def make(*args: Any, **kwargs: Any) -> Recorder:
        server = Recorder(*args, **kwargs)
        made.append(server)
        return server

    yield make
    for server in made:
        server.shutdown()


@BOTH
class TestAnInstance:
    def test_gets_messages_in_order_and_answers(self, echo, serve):
        server = serve(echo)
        first = server.get("a")
        for number in range(3):
            first.put_nowait(number)
        server.get("b").put("other")
        eventually(lambda: len(server.sent) == 4)
        assert [m for scope, m in server.sent if scope == "scope of a"] == [0, 1, 2]
        assert ("scope of b", "other") in server.sent

    def test_is_the_same_for_the_same_id_and_keeps_its_scope(self, echo, serve):
        server = serve(echo)
        first = server.get("a")
        assert server.get_or_create_application_instance("a", "another scope") is first
        first.put(1)
        eventually(lambda: server.sent == [("scope of a", 1)])

    def test_that_finished_is_gone_at_once(self, echo, serve):
        server = serve(echo)
        first = server.get("a")
        first.put("end")
        eventually(lambda: first.closed)
        assert server.get("a") is not first
        assert server.failures == server.evictions == []
        assert server.stats()["finished"] == 1

    def test_that_crashed_is_gone_at_once_and_reported_once(self, echo, serve):
        server = serve(echo)
        server.get("a").put(ValueError("boom"))
        eventually(lambda: server.failures)
        assert "a" not in server.application_instances
        for _ in range(3):
            server.check_applications()
            gevent.sleep(0)
        assert server.failures == [("ValueError('boom')", "scope of a")]
        assert server.stats()["failed"] == 1

    def test_has_its_last_message_even_if_the_sender_goes(self, echo, serve):
        server = serve(echo)
        server.get("a").put(1)
        eventually(lambda: server.sent)

    def test_leaves_nothing_unread_unmentioned_when_it_ends_by_itself(self, echo, serve):
        server = serve(echo)
        first = server.get("a")
        for message in ("end", 1, 2):
            first.put_nowait(message)
        eventually(lambda: server.evictions)
        assert server.evictions == [("a", "scope of a", [1, 2])]
        assert server.stats()["unread_messages"] == 2


@pytest.mark.parametrize(
    "error",
    [
        ValueError("v"),
        SystemExit(3),
        gevent.Timeout(1),
        asyncio.CancelledError(),
        GeneratorExit(),
        StopIteration(1),
        RecursionError(),
        BaseException("base"),
    ],
    ids=repr,
)
@BOTH
def test_nothing_that_an_application_raises_harms_the_server(echo, error, serve):
    # Defect: an application that raised CancelledError killed the server.
    server = serve(echo)
    running = spawn(server.run)
    server.handling.wait()
    server.get("bad").put(error)
    eventually(lambda: server.failures)
    assert len(server.failures) == 1
    server.get("good").put(1)
    eventually(lambda: server.sent == [("scope of good", 1)])
    assert not running.done
    server.release.set()
    running.get()
    assert len(server.failures) == 1


def test_an_application_that_leaves_by_greenlet_exit_has_not_failed(serve):
    server = serve(blocking_echo)
    server.get("a").put(gevent.GreenletExit())
    eventually(lambda: not server.application_instances)
    gevent.sleep(0)
    assert server.failures == []


@BOTH
class TestOffByOne:
    """Defect: max_applications=2 held 3 instances."""

    def test_never_more_than_max_applications(self, echo, serve):
        server = serve(echo, 2)
        for number in range(5):
            server.get(number)
            assert len(server.application_instances) <= 2
        assert list(server.application_instances) == [3, 4]
        assert [scope_id for scope_id, _, _ in server.evictions] == [0, 1, 2]

    def test_one_is_enough(self, echo, serve):
        server = serve(echo, 1)
        first, second = server.get("a"), server.get("b")
        assert (first.closed, second.closed) == (True, False)


@pytest.mark.parametrize("number", [0, -1])
def test_a_limit_below_one_is_refused(number):
    with pytest.raises(ValueError, match="max_applications"):
        StatelessServer(blocking_echo, number)
    with pytest.raises(ValueError, match="max_queue"):
        StatelessServer(blocking_echo, max_queue=number)


@pytest.fixture(params=[(InGreenlet, blocking_echo), (InLoop, async_echo)], ids=["", "async"])
def broken_link(request, monkeypatch, serve):
    """A server whose applications tell nobody of their end."""
    kind, echo = request.param
    start = kind.start
    monkeypatch.setattr(
        kind, "start", lambda self, app, send, ended: start(self, app, send, lambda _: None)
    )
    return serve(echo, 500)


class TestDeadQueue:
    """Defect: a finished instance stayed for up to 100 ms, and its queue swallowed messages."""

    def test_a_put_raises_though_nobody_told_of_the_end(self, broken_link):
        first = broken_link.get("a")
        first.put("end")
        eventually(lambda: first.closed)
        assert "a" in broken_link.application_instances
        with pytest.raises(gwt.ApplicationClosed):
            first.put_nowait(1)
        with pytest.raises(gwt.ApplicationClosed):
            first.put(1, timeout=1)

    def test_it_is_not_handed_out_though_nobody_told_of_the_end(self, broken_link):
        first = broken_link.get("a")
        first.put(KeyError("a"))
        eventually(lambda: first.closed)
        second = broken_link.get("a")
        assert second is not first
        second.put(1)
        eventually(lambda: broken_link.sent)
        eventually(lambda: broken_link.failures)
        assert len(broken_link.failures) == 1

    def test_the_checker_finds_the_end_of_which_nobody_told(self, broken_link):
        first = broken_link.get("a")
        first.put(KeyError("a"))
        first.put("unread")
        eventually(lambda: first.closed)
        assert broken_link.failures == []
        broken_link.check_applications()
        eventually(lambda: broken_link.failures and broken_link.evictions)
        broken_link.check_applications()
        gevent.sleep(0)
        assert len(broken_link.failures) == 1
        assert broken_link.evictions == [("a", "scope of a", ["unread"])]
        assert broken_link.stats()["missed_ends"] == 1

    def test_the_checker_runs_with_run(self, broken_link):
        broken_link.application_checker_interval = 0.001
        running = spawn(broken_link.run)
        broken_link.get("a").put(KeyError("a"))
        eventually(lambda: broken_link.failures)
        broken_link.release.set()
        running.get()

    def test_an_eviction_does_not_evict_what_has_ended(self, broken_link):
        broken_link.max_applications = 1
        first = broken_link.get("a")
        first.put("end")
        eventually(lambda: first.closed)
        broken_link.get("b")
        assert broken_link.evictions == []
        assert broken_link.stats()["finished"] == 1

    def test_the_checker_finds_everyone_in_a_few_rounds(self, broken_link):
        queues = [broken_link.get(number) for number in range(300)]
        for each in queues:
            each.put("end")
        eventually(lambda: all(each.closed for each in queues))

        def nobody_left():
            broken_link.check_applications()
            return not broken_link.application_instances

        eventually(nobody_left)
        assert broken_link.stats()["missed_ends"] == 300


class TestWallClock:
    """Defect: last_used was the wall clock, and only get-or-create refreshed it."""

    @BOTH
    def test_input_and_output_are_use(self, echo, serve):
        server = serve(echo, 3)
        a = server.get("a")
        server.get("b")
        server.get("c")
        a.put(1)
        assert list(server.application_instances) == ["b", "c", "a"]
        server.get("b")
        assert list(server.application_instances) == ["c", "a", "b"]
        # The answer of "a" is use as well.
        eventually(lambda: server.sent)
        assert list(server.application_instances) == ["c", "b", "a"]

    def test_moments_are_of_the_clock_that_never_goes_back(self, serve):
        clock = HandClock()
        server = serve(blocking_echo, clock=clock)
        server.get("a")
        clock.turn(5)
        assert server.application_instances["a"].last_used == 1000.0
        server.get("a")
        assert server.application_instances["a"].last_used == 1005.0


class TestEviction:
    """Defect: unread messages vanished, old queues took more, zombies went on sending."""

    @BOTH
    def test_unread_messages_go_to_the_hook(self, echo, serve):
        server = serve(echo, 1)
        first = server.get("a")
        first.put_nowait("x")
        first.put_nowait("y")
        server.get("b")
        assert server.evictions == [("a", "scope of a", ["x", "y"])]
        gevent.sleep(0.01)
        assert server.sent == []

    @BOTH
    def test_the_old_queue_takes_nothing_more(self, echo, serve):
        server = serve(echo, 1)
        first = server.get("a")
        server.get("b")
        for put in (first.put, first.put_nowait):
            with pytest.raises(gwt.ApplicationClosed) as caught:
                put("lost")
            assert isinstance(caught.value, gwt.LimitExceeded)

    def test_late_sends_of_a_greenlet_are_dropped_and_counted(self, serve):
        held = []

        def application(scope, receive, send):
            held.append(send)
            receive()

        server = serve(application, 1)
        server.get("a")
        eventually(lambda: held)
        server.get("b")
        held[0]("late")
        assert server.sent == []
        assert server.stats()["late_sends"] == 1
        assert list(server.application_instances) == ["b"]

    def test_late_sends_of_a_task_are_dropped_and_counted(self, serve):
        started = Event()

        async def application(scope, receive, send):
            started.set()
            try:
                await receive()
            finally:
                await send("late")

        server = serve(application, grace=1.0)
        server.get("a")
        started.wait()
        server.delete_application_instance("a")
        eventually(lambda: server.stats()["late_sends"] == 1)
        assert server.sent == []

    def test_a_greenlet_that_swallows_its_end_is_killed_again(self, serve):
        swallowed = []

        def application(scope, receive, send):
            for _ in range(3):
                try:
                    receive()
                except gevent.GreenletExit:
                    swallowed.append(1)
            gevent.sleep(100)

        server = serve(application)
        server.get("a")
        gevent.sleep(0)
        server.delete_application_instance("a")
        assert server.stats()["leaving"] + server.stats()["lingering"] == 1
        eventually(lambda: server.stats()["leaving"] + server.stats()["lingering"] == 0)
        assert swallowed
        assert server.stats()["killed_again"] >= 1

    def test_a_task_that_swallows_its_end_is_cancelled_again(self, serve):
        swallowed = []

        async def application(scope, receive, send):
            try:
                await receive()
            except asyncio.CancelledError:
                swallowed.append(1)
            await asyncio.sleep(100)

        server = serve(application)
        server.get("a")
        gevent.sleep(0.001)
        server.delete_application_instance("a")
        eventually(lambda: server.stats()["leaving"] + server.stats()["lingering"] == 0)
        assert swallowed == [1]

    @BOTH_FINALLY
    def test_finally_blocks_have_the_grace(self, make, serve):
        log: list[str] = []
        server = serve(make(log, 0.01), grace=30.0)
        server.get("a").put(1)
        gevent.sleep(0.001)
        server.delete_application_instance("a")
        eventually(lambda: log == ["leaving", "left"])
        eventually(lambda: not server.stats()["leaving"])
        assert server.stats()["killed_again"] == 0

    @BOTH_FINALLY
    def test_the_grace_has_an_end(self, make, serve):
        log: list[str] = []
        server = serve(make(log, 30.0), grace=0.01)
        server.get("a").put(1)
        gevent.sleep(0.001)
        server.delete_application_instance("a")
        eventually(lambda: server.stats()["killed_again"] == 1)
        eventually(lambda: not server.stats()["lingering"])
        assert log == ["leaving"]

    @BOTH_FINALLY
    def test_run_waits_for_finally_blocks(self, make, serve):
        log: list[str] = []
        server = serve(make(log, 0.02), grace=30.0)
        running = spawn(server.run)
        server.get("a").put(1)
        gevent.sleep(0.001)
        server.release.set()
        running.get()
        assert log == ["leaving", "left"]
        assert server.evictions == [("a", "scope of a", [])]

    def test_as_many_may_be_leaving_as_there_may_be(self, serve):
        release = Event()

        def application(scope, receive, send):
            try:
                receive()
            finally:
                release.wait()

        server = serve(application, 3, grace=100.0)
        for number in range(20):
            server.get(number)
            gevent.sleep(0)
            stats = server.stats()
            assert stats["leaving"] <= 3
            # Those beyond are killed again, and end in the next turn.
            assert stats["lingering"] <= 1
        release.set()

    def test_a_hook_may_come_back_for_a_new_instance(self, serve):
        server = serve(blocking_echo, 1)

        def again(scope_id, scope, pending):
            for message in pending:
                server.get(scope_id).put_nowait(message)

        server.application_evicted = again
        server.get("a").put_nowait("x")
        second = server.get("b")
        eventually(lambda: server.sent == [("scope of a", "x")])
        assert second.closed

    def test_an_application_may_evict_itself(self, serve):
        ended = []

        def application(scope, receive, send):
            try:
                if receive() == "go":
                    server.delete_application_instance("a")
                    receive()
            finally:
                ended.append(1)

        server = serve(application)
        server.get("a").put("go")
        eventually(lambda: ended)
        assert not server.application_instances

    def test_a_failure_on_the_way_out_is_reported_once(self, serve):
        def application(scope, receive, send):
            try:
                receive()
            finally:
                raise OSError("on the way out")

        server = serve(application)
        server.get("a")
        gevent.sleep(0)
        server.delete_application_instance("a")
        eventually(lambda: server.failures)
        server.check_applications()
        assert len(server.failures) == 1


class TestNoBoundsNoHooksNoStatistics:
    """Defect: no hooks, no statistics, no bound on queues, no idle time-out."""

    @BOTH
    def test_a_full_queue(self, echo, serve):
        server = serve(echo, max_queue=2)
        first = server.get("a")
        first.put_nowait(1)
        first.put_nowait(2)
        assert first.full()
        with pytest.raises(queue.Full):
            first.put_nowait(3)
        writer = spawn(first.put, 3, timeout=5)
        writer.get()
        eventually(lambda: [m for _, m in server.sent] == [1, 2, 3])

    def test_a_put_that_waits_ends_with_its_timeout_or_its_instance(self, serve):
        server = serve(lambda scope, receive, send: gevent.sleep(100), max_queue=1)
        first = server.get("a")
        first.put(1)
        with pytest.raises(TimeoutError):
            first.put(2, timeout=0.001)
        writer = spawn(first.put, 3)
        gevent.sleep(0)
        server.delete_application_instance("a")
        with pytest.raises(gwt.ApplicationClosed):
            writer.get()
        assert server.evictions == [("a", "scope of a", [1])]

    @BOTH
    def test_idle_instances_end(self, echo, serve):
        clock = HandClock()
        server = serve(echo, idle_timeout=10.0, clock=clock)
        server.get("a").put("x")
        eventually(lambda: server.sent)
        clock.turn(6)
        server.get("b")
        clock.turn(5)
        server.check_applications()
        assert list(server.application_instances) == ["b"]
        assert server.evictions == [("a", "scope of a", [])]
        assert server.stats()["idle"] == 1

    def test_a_failing_hook_harms_nobody(self, serve, caplog):
        server = serve(blocking_echo, 1)

        def broken(*args):
            raise SystemExit("the hook is broken")

        server.application_evicted = server.application_exception = broken
        with caplog.at_level(logging.ERROR, "gwt.manager"):
            server.get("a")
            server.get("b").put(ValueError())
            eventually(lambda: server.stats()["hook_errors"] == 2)
        server.get("c").put(1)
        eventually(lambda: server.sent)
        assert len(caplog.records) == 2

    def test_statistics(self, serve):
        server = serve(blocking_echo, 7)
        server.get("a")
        server.get("b")
        server.delete_application_instance("a")
        stats = server.stats()
        assert (stats["instances"], stats["max_applications"]) == (1, 7)
        assert (stats["created"], stats["deleted"], stats["evicted"]) == (2, 1, 0)


class TestDeleting:
    def test_an_unknown_id_is_a_key_error(self, serve):
        with pytest.raises(KeyError):
            serve(blocking_echo).delete_application_instance("a")

    def test_the_oldest_of_nobody_is_a_value_error(self, serve):
        with pytest.raises(ValueError, match="no application instance"):
            serve(blocking_echo).delete_oldest_application_instance()

    def test_the_oldest_is_who_was_used_longest_ago(self, serve):
        server = serve(blocking_echo)
        server.get("a")
        server.get("b")
        server.get("a")
        server.delete_oldest_application_instance()
        assert list(server.application_instances) == ["a"]


class TestRun:
    @BOTH
    def test_returns_with_handle_and_leaves_nothing(self, echo, serve):
        server = serve(echo)
        server.handle = lambda: server.get("a").put_nowait("unread")
        server.run()
        assert not server.application_instances
        assert server.evictions == [("a", "scope of a", ["unread"])]

    def test_returns_at_keyboard_interrupt(self, serve, caplog):
        server = serve(blocking_echo)

        def handle():
            raise KeyboardInterrupt

        server.handle = handle
        with caplog.at_level(logging.INFO, "gwt.manager"):
            server.run()
        assert "Exiting due to Ctrl-C/interrupt" in caplog.text

    @BOTH
    def test_returns_at_a_keyboard_interrupt_that_hits_an_application(
        self, echo, serve, hub_errors, caplog
    ):
        server = serve(echo)

        def handle():
            server.get("a").put(KeyboardInterrupt())
            server.release.wait()

        server.handle = handle
        with caplog.at_level(logging.INFO, "gwt.manager"):
            server.run()
        assert "Exiting due to Ctrl-C/interrupt" in caplog.text
        assert server.failures == []
        hub_errors.clear()

    def test_raises_what_handle_raises_and_cleans_up(self, serve):
        server = serve(blocking_echo)

        def handle():
            server.get("a")
            raise OSError("the network is gone")

        server.handle = handle
        with pytest.raises(OSError, match="the network is gone"):
            server.run()
        assert not server.application_instances

    def test_can_be_killed(self, serve):
        server = serve(async_echo)
        running = spawn(server.run)
        server.get("a")
        server.handling.wait()
        running.kill()
        assert running.done
        assert not server.application_instances

    def test_a_failing_checker_does_not_end_it(self, serve, caplog):
        server = serve(blocking_echo)

        def broken():
            raise ValueError("the checker is broken")

        server.application_checker = broken
        running = spawn(server.run)
        server.get("a").put(1)
        eventually(lambda: server.sent)
        server.release.set()
        running.get()
        assert "the checker is broken" in caplog.text

    def test_must_be_given_handle_and_application_send(self):
        server = StatelessServer(blocking_echo)
        with pytest.raises(NotImplementedError, match=r"You must implement handle\(\)"):
            server.run()
        with pytest.raises(NotImplementedError, match=r"You must implement application_send\(\)"):
            server.application_send({}, "x")

    def test_what_sending_raises_is_the_applications(self, serve):
        server = serve(blocking_echo)

        def broken(scope, message):
            raise OSError("unreachable")

        server.application_send = broken
        server.get("a").put(1)
        eventually(lambda: server.failures)
        assert server.failures == [("OSError('unreachable')", "scope of a")]

    def test_failures_are_logged_by_default(self, caplog):
        server = StatelessServer(blocking_echo)
        server.get_or_create_application_instance("a", {}).put(ValueError("boom"))
        eventually(lambda: "boom" in caplog.text)
        assert "Exception inside application 'a'" in caplog.text
        assert "Traceback" in caplog.text
        server.shutdown()


def test_another_thread_is_refused(serve):
    server = serve(blocking_echo)
    first = server.get("a")
    errors = []

    def use():
        for attempt in (lambda: server.get("a"), lambda: first.put_nowait(1)):
            try:
                attempt()
            except RuntimeError as exc:
                errors.append(str(exc))

    gevent.get_hub().threadpool.apply(use)
    assert len(errors) == 2
    assert first.empty()


class _Nameless:
    def __str__(self):
        raise ValueError("no text")


@BOTH
def test_what_cannot_be_started_is_not_there(echo, serve):
    server = serve(echo, 1)
    server.get("a")
    with pytest.raises(ValueError, match="no text"):
        server.get_or_create_application_instance(_Nameless(), {})
    assert not server.application_instances
    assert [scope_id for scope_id, _, _ in server.evictions] == ["a"]
    with pytest.raises(TypeError):
        server.get_or_create_application_instance([], {})


class _Callable:
    async def __call__(self, scope, receive, send):
        await receive()


@pytest.mark.parametrize(
    ("application", "expected"),
    [
        (blocking_echo, False),
        (async_echo, True),
        (_Callable(), True),
        (_Callable().__call__, True),
        (lambda scope, receive, send: None, False),
        (_Callable, False),
    ],
)
def test_which_applications_are_async(application, expected):
    from functools import partial

    assert is_async(application) is expected
    assert is_async(partial(partial(application))) is expected


def test_servers_share_one_loop_which_ends_with_the_last(serve):
    loops = []

    async def application(scope, receive, send):
        loops.append(asyncio.get_running_loop())
        await receive()

    first, second = serve(application), serve(application)
    running = spawn(first.run)
    for number, server in enumerate((first, second, second), start=1):
        server.get(number).put_nowait("x")
        eventually(lambda number=number: len(loops) == number)
    second.shutdown()
    # run() keeps it, although no application is left.
    eventually(lambda: not first.application_instances)
    first.get("again")
    eventually(lambda: len(loops) == 4)
    assert len(set(loops)) == 1
    first.release.set()
    running.get()
    assert loops[0].is_closed()


def test_an_async_application_whose_sending_waits_stops_nobody(serve):
    release = Event()

    async def application(scope, receive, send):
        await send(scope)

    server = serve(application)
    sent = []

    def slow(scope, message):
        if message == "scope of slow":
            release.wait()
        sent.append(message)

    server.application_send = slow
    server.get("slow")
    server.get("quick")
    eventually(lambda: sent == ["scope of quick"])
    release.set()
    eventually(lambda: sent == ["scope of quick", "scope of slow"])


def test_an_application_that_hides_a_coroutine_is_told(serve):
    server = serve(lambda scope, receive, send: async_echo(scope, receive, send))
    server.get("a")
    eventually(lambda: server.failures)
    assert "returned a coroutine" in server.failures[0][0]


def test_details_read_like_a_mapping(serve):
    server = serve(blocking_echo)
    first = server.get("a")
    details = server.application_instances["a"]
    assert isinstance(details, InGreenlet)
    assert details["input_queue"] is first
    assert details["scope"] == "scope of a"
    assert isinstance(details["future"], gevent.Greenlet)
    assert details["last_used"] == details.last_used
    with pytest.raises(KeyError):
        details["settled"]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["get", "put", "delete", "oldest", "end", "tick"]), st.integers(0, 6)
    ),
    max_size=60,
)


@hypothesis.given(OPERATIONS, st.integers(1, 4))
def test_the_order_of_use_is_that_of_a_simple_model(operations, most):
    def application(scope, receive, send):
        while receive() != "end":
            pass

    clock = HandClock()
    server = Recorder(application, most, idle_timeout=10.0, clock=clock)
    model: OrderedDict[int, float] = OrderedDict()
    queues: dict[int, Any] = {}

    def used(key):
        model[key] = clock.now
        model.move_to_end(key)

    try:
        for operation, key in operations:
            if operation == "get":
                if key not in model and len(model) == most:
                    model.popitem(last=False)
                queues[key] = server.get(key)
                used(key)
            elif operation in ("put", "end") and key in queues:
                message = "end" if operation == "end" else key
                if key in model:
                    queues[key].put_nowait(message)
                    used(key)
                else:
                    with pytest.raises(gwt.ApplicationClosed):
                        queues[key].put_nowait(message)
                if operation == "end":
                    eventually(lambda gone=key: gone not in server.application_instances)
                    model.pop(key, None)
            elif operation == "delete":
                if model.pop(key, None) is not None:
                    server.delete_application_instance(key)
            elif operation == "oldest" and model:
                model.popitem(last=False)
                server.delete_oldest_application_instance()
            elif operation == "tick":
                clock.turn(key)
                server.check_applications()
                for old in [k for k, moment in model.items() if clock.now - moment >= 10.0]:
                    del model[old]
            assert list(server.application_instances) == list(model)
            assert len(model) <= most
        for key, each in queues.items():
            assert each.closed is (key not in model)
    finally:
        server.shutdown()
    assert server.stats()["created"] == sum(
        server.stats()[why] for why in ("finished", "evicted", "idle", "deleted", "stopped")
    )
