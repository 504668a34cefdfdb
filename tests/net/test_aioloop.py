"""The hosted asyncio loop: it lets others run, is seen by coroutines only, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys

import gevent
import gevent.socket
import pytest

from gwt.net import aioloop
from tests.helpers import eventually, spawn


@pytest.fixture
def loop():
    loop = aioloop.borrow()
    yield loop
    loop.give_back()
    loop.join()
    assert loop.is_closed()


def run(loop, coroutine, timeout=10.0):
    """Run a coroutine in the hosted loop from a greenlet; return or raise what it does."""
    task = loop.create_task(coroutine)
    eventually(task.done, timeout)
    return task.result()


def test_one_loop_a_hub_until_nobody_uses_it():
    first, second = aioloop.borrow(), aioloop.borrow()
    assert first is second
    first.give_back()
    assert run(first, asyncio.sleep(0, "still here")) == "still here"
    second.give_back()
    third = aioloop.borrow()
    assert third is not first
    first.join()
    assert first.is_closed()
    assert run(third, asyncio.sleep(0, "another")) == "another"
    third.give_back()
    third.join()


def test_loop_that_is_given_back_before_it_ran_ends_in_order(caplog):
    loop = aioloop.borrow()
    task = loop.create_task(asyncio.sleep(3600))
    loop.give_back()
    loop.join()
    assert loop.is_closed()
    assert task.cancelled()
    assert not caplog.records


def test_greenlets_run_and_see_no_loop_while_coroutines_wait(loop):
    async def nap():
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0.005)
        return asyncio.get_running_loop() is loop

    task = loop.create_task(nap())
    seen = []
    while not task.done():
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        seen.append(sys.get_asyncgen_hooks().firstiter)
        gevent.sleep(0)
    assert task.result() is True
    assert set(seen) == {None}


def test_many_sleep_at_the_same_time(loop):
    async def all_of_them():
        await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(200)))
        return "slept"

    assert run(loop, all_of_them()) == "slept"


def test_a_coroutine_that_never_waits_leaves_greenlets_their_turn(loop):
    ended = False

    async def spin():
        while not ended:
            await asyncio.sleep(0)

    task = loop.create_task(spin())
    for _ in range(20):
        gevent.sleep(0.0001)
    ended = True
    eventually(task.done)


def test_a_greenlet_may_set_a_future_and_cancel_a_task(loop):
    future = loop.create_future()

    async def waiting():
        return await future

    task = loop.create_task(waiting())
    gevent.sleep(0)
    future.set_result(5)
    eventually(task.done)
    assert task.result() == 5
    sleeper = loop.create_task(asyncio.sleep(100))
    gevent.sleep(0)
    sleeper.cancel()
    eventually(sleeper.cancelled)
    called = []
    loop.call_later(0.001, called.append, 1)
    eventually(lambda: called)


def test_its_sockets_are_ready_when_they_are(loop):
    async def serve(reader, writer):
        writer.write(await reader.readexactly(1_000_000))
        await writer.drain()
        writer.close()

    async def talk():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(bytes(1_000_000))
        data = await reader.read(-1)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return len(data)

    assert run(loop, talk()) == 1_000_000


def test_threads_and_timeouts_and_context(loop):
    variable = contextvars.ContextVar("variable", default="unset")

    async def use():
        variable.set("set")
        assert await asyncio.to_thread(lambda: variable.get()) == "set"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(100), 0.001)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0, number)) for number in range(3)]
        return [task.result() for task in tasks]

    assert run(loop, use()) == [0, 1, 2]
    assert variable.get() == "unset"


class TestInGreenlet:
    def test_it_may_block_and_the_loop_goes_on(self, loop):
        def block(number):
            gevent.sleep(0.005)
            return number

        async def both():
            return await asyncio.gather(
                aioloop.in_greenlet("test", block, 1), asyncio.sleep(0.001, 2)
            )

        assert run(loop, both()) == [1, 2]

    @pytest.mark.parametrize("error", [ValueError("v"), SystemExit(1), gevent.Timeout(1)])
    def test_it_raises_what_the_function_raises(self, loop, error):
        def fail():
            raise error

        async def call():
            try:
                await aioloop.in_greenlet("test", fail)
            except BaseException as exc:
                return exc

        assert run(loop, call()) is error

    def test_a_stop_iteration_can_be_raised_as_another_error_only(self, loop):
        with pytest.raises(RuntimeError, match="StopIteration"):
            run(loop, aioloop.in_greenlet("test", next, iter(())))

    def test_who_is_cancelled_kills_it(self, loop):
        ended = []

        def block():
            try:
                gevent.sleep(100)
            finally:
                ended.append(1)

        task = loop.create_task(aioloop.in_greenlet("test", block))
        gevent.sleep(0.001)
        task.cancel()
        eventually(lambda: ended)
        assert task.cancelled()

    def test_who_is_killed_cancels(self, loop):
        task = loop.create_task(aioloop.in_greenlet("test", lambda: gevent.getcurrent().kill()))
        eventually(task.cancelled)


def test_a_task_cannot_end_it(loop, caplog):
    async def fail():
        raise SystemExit(1)

    task = loop.create_task(fail())
    eventually(task.done)
    assert isinstance(task.exception(), SystemExit)
    assert run(loop, asyncio.sleep(0, "alive")) == "alive"
    assert "A task ended the loop" in caplog.text


def test_a_keyboard_interrupt_in_a_task_is_the_main_greenlets(loop):
    async def interrupted():
        raise KeyboardInterrupt

    task = loop.create_task(interrupted())
    with pytest.raises(KeyboardInterrupt):
        eventually(lambda: False)
    assert isinstance(task.exception(), KeyboardInterrupt)
    assert run(loop, asyncio.sleep(0, "alive")) == "alive"


def test_what_is_left_in_it_is_cancelled_at_its_end(caplog):
    loop = aioloop.borrow()
    ended = []

    async def orphan():
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0)
            ended.append("task")

    async def generator():
        try:
            yield 1
            yield 2
        finally:
            ended.append("generator")

    async def start():
        tasks.append(asyncio.create_task(orphan()))
        kept.append(generator())
        await anext(kept[0])

    tasks, kept = [], []
    run(loop, start())
    loop.give_back()
    loop.join()
    assert ended == ["task", "generator"]


def test_a_task_that_does_not_let_itself_be_cancelled_is_given_up(monkeypatch, caplog):
    monkeypatch.setattr(aioloop, "_LAST_WORDS", 0.01)
    loop = aioloop.borrow()

    async def stubborn():
        while not released.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(released)

    released = loop.create_future()
    task = loop.create_task(stubborn())
    gevent.sleep(0.001)
    with caplog.at_level(logging.CRITICAL, "asyncio"):
        loop.give_back()
        loop.join()
        assert loop.is_closed()
        assert not task.done()
        task.get_coro().close()
        task._log_destroy_pending = False


def test_it_may_be_killed_and_another_one_is_made():
    first = aioloop.borrow()
    gevent.sleep(0)
    first.greenlet.kill()
    assert first.is_closed()
    second = aioloop.borrow()
    assert second is not first
    assert run(second, asyncio.sleep(0, 1)) == 1
    second.give_back()
    second.join()


def test_two_hubs_have_two_loops(loop):
    def elsewhere():
        other = aioloop.borrow()
        try:
            assert other is not loop
            return run(other, asyncio.sleep(0.001, "elsewhere"))
        finally:
            other.give_back()
            other.join()
            gevent.get_hub().destroy(destroy_loop=True)

    assert spawn(gevent.get_hub().threadpool.apply, elsewhere).get() == "elsewhere"
