"""
One asyncio loop a hub, hosted in a greenlet, for coroutines among greenlets.

The loop runs in the greenlet ``gwt-asyncio``, from the first borrow() to the last give_back().
While it waits, other greenlets run and see no running loop, so that asyncio and gevent do not
notice each other. Its futures and tasks may be touched by any greenlet of the hub: whatever is
scheduled wakes it. What blocks a greenlet inside a coroutine blocks all coroutines of the hub;
in_greenlet() is for that. Nothing here knows what the coroutines do.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import sys
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, NoReturn, TypeVarTuple, Unpack

import gevent
from gevent import get_hub
from gevent.hub import Hub

from .waiting import Deadline, Signal

__all__ = ["AioSignal", "HostedLoop", "borrow", "in_greenlet", "is_cancelled", "leave"]

logger = logging.getLogger("gwt.net")

_Ts = TypeVarTuple("_Ts")

# How long tasks that nobody waits for any more may take to be cancelled when the loop ends, and
# then its generators.
_LAST_WORDS: Final = 1.0

# The loop of each hub that has one which is not ending.
_loops: dict[Hub, HostedLoop] = {}


class _Selector(selectors.SelectSelector):
    """Waits in the hub. Its base keeps the list of files, and opens no descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self._loop: Any = get_hub().loop
        self._watchers: dict[int, Any] = {}

        # What has happened, by descriptor, and was not told yet. Its watcher rests meanwhile:
        # what is not read at once would fire it in every turn of the hub.
        self._happened: dict[int, int] = {}
        self._resting: set[int] = set()
        self._signal = Signal()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        # READ is 1 and WRITE is 2, here as there.
        self._watchers[key.fd] = watcher = self._loop.io(key.fd, events)
        watcher.start(self._happens, key.fd, pass_events=True)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        watcher = self._watchers.pop(key.fd)
        watcher.stop()
        watcher.close()
        self._happened.pop(key.fd, None)
        self._resting.discard(key.fd)
        return key

    def close(self) -> None:
        # What transports left registered that nobody closed.
        for key in list(self.get_map().values()):
            self.unregister(key.fileobj)
        super().close()

    def _happens(self, events: int, fd: int) -> None:
        watcher = self._watchers.get(fd)
        if watcher is None:
            return
        watcher.stop()
        self._resting.add(fd)
        # An error is told to whoever waits for either.
        self._happened[fd] = events if events > 0 else selectors.EVENT_READ | selectors.EVENT_WRITE
        self._signal.notify()

    def wake(self) -> None:
        """Make select() return, if it waits."""
        self._signal.notify()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        for fd in self._resting - self._happened.keys():
            self._resting.discard(fd)
            self._watchers[fd].start(self._happens, fd, pass_events=True)
        # Others run now, and asyncio keeps both of these by thread.
        loop, hooks = asyncio.get_running_loop(), sys.get_asyncgen_hooks()
        asyncio._set_running_loop(None)
        sys.set_asyncgen_hooks(None, None)
        try:
            if self._happened or (timeout is not None and timeout <= 0):
                # Coroutines that never wait are to leave the others their turn all the same.
                gevent.sleep(0)
            else:
                self._signal.wait(Deadline(timeout))
        except TimeoutError:
            pass
        finally:
            asyncio._set_running_loop(loop)
            sys.set_asyncgen_hooks(*hooks)
        happened, self._happened = self._happened, {}
        files = self.get_map()
        return [
            (key, events & key.events)
            for fd, events in happened.items()
            if (key := files.get(fd)) is not None and events & key.events
        ]


class HostedLoop(asyncio.SelectorEventLoop):
    """
    The asyncio loop of a hub. Made by borrow(); it ends with the give_back() of its last user.

    call_soon() and all that rests on it (create_task, Future.set_result, Task.cancel) may be used
    by every greenlet of the hub, and never switches.
    """

    def __init__(self) -> None:
        self._hosted = _Selector()
        super().__init__(self._hosted)
        self._ending = False

        # How many borrowed it and have not given it back.
        self.users = 0

        self.greenlet = gevent.Greenlet(self._host)
        self.greenlet.name = "gwt-asyncio"

    def call_soon(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        self._hosted.wake()
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        self._hosted.wake()
        return handle

    def _check_thread(self) -> None:
        # Only asyncio's debug mode asks, and by an ident that every greenlet of a patched process
        # has of its own.
        pass

    def give_back(self) -> None:
        """Take back one borrow(). Never waits: the loop ends behind what is due in it."""
        self.users -= 1
        if not self.users:
            _forget(self)
            self._ending = True
            if self.is_running():
                # Else it would stop what _end() runs.
                self.call_soon(self.stop)

    def join(self) -> None:
        """
        Wait until the loop has ended, if it is ending: a few seconds at most.

        Not from one of its coroutines.
        """
        if self._ending:
            self.greenlet.join()

    def _host(self) -> None:
        try:
            while not self._ending:
                self._run_once_more()
            self._end()
        finally:
            # Also if somebody killed the greenlet: the next borrow() makes another loop.
            _forget(self)
            self.close()

    def _run_once_more(self) -> None:
        try:
            self.run_forever()
        except (Exception, SystemExit):
            # Boundary to user code: asyncio lets SystemExit of a task through to here.
            logger.exception("A task ended the loop that it shares with others; it goes on.")
        except KeyboardInterrupt as exc:
            # Ctrl-C, which Python raised in whoever ran: as from every greenlet, it goes to the
            # main one.
            get_hub().handle_system_error(KeyboardInterrupt, exc)

    def _end(self) -> None:
        orphans = asyncio.all_tasks(self)
        for task in orphans:
            task.cancel()
        # What they still raise is told by asyncio, since nobody asks for it.
        self._within(self._settled(orphans))
        self._within(self.shutdown_asyncgens())
        # Threads of run_in_executor() are not waited for: that would block, and not this
        # greenlet alone. close() tells them to end.

    async def _settled(self, tasks: set[asyncio.Task[Any]]) -> None:
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WORDS)

    def _within(self, work: Any) -> None:
        try:
            self.run_until_complete(asyncio.wait_for(work, _LAST_WORDS))
        except TimeoutError:
            logger.warning("What ends an asyncio loop took too long, and was given up: %r", work)
        except (Exception, SystemExit, KeyboardInterrupt):
            # Boundary to user code: the ends of generators and tasks.
            logger.exception("What ends an asyncio loop failed.")


def _forget(loop: HostedLoop) -> None:
    for hub, known in list(_loops.items()):
        if known is loop:
            del _loops[hub]


def borrow() -> HostedLoop:
    """Return this hub's loop, running from now on. Every borrow() needs a give_back()."""
    hub = get_hub()
    loop = _loops.get(hub)
    if loop is None:
        loop = _loops[hub] = HostedLoop()
        loop.greenlet.start()
    loop.users += 1
    return loop


class AioSignal:
    """A Signal for coroutines: what wait() awaits, any greenlet of the hub may notify()."""

    __slots__ = ("_loop", "_waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiters: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Wait until notify()."""
        future = self._loop.create_future()
        self._waiters.append(future)
        try:
            await future
        finally:
            # Not there any more if it was notified.
            if future in self._waiters:
                self._waiters.remove(future)

    def notify(self) -> None:
        """Make everybody ready who waits now. Does not switch."""
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)


async def in_greenlet(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """
    Call a function that may block in a greenlet of its own; return or raise what it does.

    A coroutine that is cancelled meanwhile kills the greenlet.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    greenlet = gevent.Greenlet(_call, future, function, args)
    greenlet.name = name
    # Killed before it began, too.
    greenlet.rawlink(lambda _: future.cancel())
    greenlet.start()
    try:
        return await future
    finally:
        greenlet.kill(block=False)


def _call(future: asyncio.Future[Any], function: Callable[..., Any], args: Any) -> None:
    try:
        result = function(*args)
    except BaseException as exc:
        # Boundary to user code: it is raised where the future is awaited.
        if isinstance(exc, gevent.GreenletExit):
            raise
        if isinstance(exc, StopIteration):
            # Not even a future can hold it.
            exc = RuntimeError(f"A function raised {exc!r}.")
        if not future.done():
            future.set_exception(exc)
    else:
        if not future.done():
            future.set_result(result)


def is_cancelled(error: BaseException) -> bool:
    """Tell whether an error is the answer of the current task to a request to cancel it."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and bool(task and task.cancelling())


async def leave(delay: float) -> NoReturn:
    """Wait, and raise CancelledError, in a task that goes on although what it was for is over."""
    await asyncio.sleep(delay)
    raise asyncio.CancelledError
