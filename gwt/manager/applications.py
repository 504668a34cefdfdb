"""
One application instance: its input queue, and its greenlet or asyncio task.

An instance knows its queue and how to start, kill, and tell that it has ended. Which instances
there are, which one goes, and who hears of it, is stateless.py's. Nothing here waits, except an
application in its own receive(), and a writer in put() while a queue is full.
"""

from __future__ import annotations

import inspect
import queue
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import gevent

from ..errors import ApplicationClosed
from ..net.waiting import Deadline, Signal

if TYPE_CHECKING:
    from ..net.aioloop import HostedLoop

__all__ = ["ApplicationInstance", "ApplicationQueue", "InGreenlet", "InLoop", "is_async"]

# What receive() waits before it tells an instance that is gone that it is: one that does not
# listen, and asks again and again, must not keep everybody else from running.
_LATE: Final = 0.1

Send = Callable[[Any], Any]


class _Notice(Protocol):
    def notify(self) -> None: ...


def is_async(application: Any) -> bool:
    """Tell whether calling an application gives a coroutine: ``async def``, also ``__call__``."""
    while isinstance(application, partial):
        application = application.func
    return inspect.iscoroutinefunction(application) or inspect.iscoroutinefunction(
        type(application).__call__
    )


class ApplicationQueue:
    """
    The messages that an application instance has not received yet.

    Once the instance is gone, evicted or finished, every put raises ApplicationClosed: a message
    is never put where nobody reads it.
    """

    __slots__ = ("_arrived", "_instance", "_messages", "_room", "_taken", "_used", "maxsize")

    def __init__(
        self,
        instance: ApplicationInstance,
        maxsize: int | None,
        used: Callable[[ApplicationInstance], None],
        taken: Callable[[Any], None] | None,
        arrived: _Notice,
    ) -> None:
        # The most messages that wait; None is no limit.
        self.maxsize = maxsize

        self._messages: deque[Any] = deque()
        # None once the instance is gone.
        self._instance: ApplicationInstance | None = instance
        self._used = used
        self._taken = taken
        self._arrived = arrived
        self._room = Signal()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<ApplicationQueue {state} messages={len(self._messages)} of {self.maxsize}>"

    @property
    def closed(self) -> bool:
        """Whether the instance is gone."""
        return self._instance is None or self._instance.done()

    def qsize(self) -> int:
        """Return how many messages wait."""
        return len(self._messages)

    def empty(self) -> bool:
        """Tell whether no message waits."""
        return not self._messages

    def full(self) -> bool:
        """Tell whether `maxsize` messages wait."""
        return self.maxsize is not None and len(self._messages) >= self.maxsize

    def put(self, message: Any, timeout: float | None = None) -> None:
        """
        Append a message; wait while the queue is full.

        Raises ApplicationClosed once the instance is gone, also while waiting, and the builtin
        TimeoutError after `timeout` seconds.
        """
        deadline = None
        while self.full() and not self.closed:
            deadline = deadline or Deadline(timeout)
            self._room.wait(deadline)
        self.put_nowait(message)

    def put_nowait(self, message: Any) -> None:
        """Append a message. Never waits; raises ApplicationClosed, or queue.Full."""
        instance = self._instance
        if instance is None or instance.done():
            raise ApplicationClosed(
                "The application instance of this queue is gone: get another one."
            )
        if self.full():
            raise queue.Full
        self._used(instance)
        self._messages.append(message)
        self._arrived.notify()

    def get_nowait(self) -> Any:
        """Remove and return the oldest message; raises queue.Empty. The application's side."""
        if not self._messages:
            raise queue.Empty
        message = self._messages.popleft()
        self._room.notify()
        if self._taken is not None:
            self._taken(message)
        return message

    def close(self) -> list[Any]:
        """Let nothing in any more, and return what nobody received. Never waits; idempotent."""
        pending = list(self._messages)
        self._messages.clear()
        self._instance = None
        if self._taken is not None:
            for message in pending:
                self._taken(message)
        self._arrived.notify()
        self._room.notify()
        return pending


class ApplicationInstance:
    """
    An application at work for one scope.

    Hooks get it as ``application_details``; it can be read like the mapping ``{"scope",
    "input_queue", "future", "last_used"}``, too. ``future`` is the greenlet, or the asyncio task.
    """

    __slots__ = (
        "done",
        "error",
        "evicted",
        "future",
        "input_queue",
        "last_used",
        "scope",
        "scope_id",
        "settled",
    )

    input_queue: ApplicationQueue

    def __init__(self, scope_id: Hashable, scope: Any) -> None:
        self.scope_id = scope_id
        self.scope = scope
        self.last_used = 0.0

        self.future: Any = None
        # Tells whether it has ended. The future's own method: it is called for every message.
        self.done: Callable[[], bool] = bool

        # Told to go; its server knows it no more.
        self.evicted = False
        # Its end has been taken note of.
        self.settled = False
        # What it raised.
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        state = "done" if self.done() else "evicted" if self.evicted else "running"
        return f"<{type(self).__name__} {self.scope_id!r} {state}>"

    def __getitem__(self, key: str) -> Any:
        if key in ("scope", "input_queue", "future", "last_used"):
            return getattr(self, key)
        raise KeyError(key)

    @property
    def gone(self) -> bool:
        """Whether what it still sends is too late."""
        return self.evicted or self.done()

    def kill(self) -> None:
        """Raise GreenletExit or CancelledError in it, in the next turn. Never waits."""
        raise NotImplementedError


class InGreenlet(ApplicationInstance):
    """An application that blocks, in a greenlet of its own."""

    __slots__ = ("_arrived",)

    def __init__(self, scope_id: Hashable, scope: Any) -> None:
        super().__init__(scope_id, scope)
        self._arrived = Signal()

    @property
    def arrived(self) -> _Notice:
        return self._arrived

    def start(self, application: Any, send: Send, ended: Callable[[Any], None]) -> None:
        """Run the application; `ended` is called in the hub when it has ended."""
        self.future = gevent.Greenlet(self._run, application, send)
        self.future.name = f"gwt-application {self.scope_id}"
        self.done = self.future.ready
        self.future.rawlink(ended)
        self.future.start()

    def kill(self) -> None:
        self.future.kill(block=False)

    def _run(self, application: Any, send: Send) -> None:
        try:
            result = application(self.scope, self.receive, send)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(
                    f"{application!r} returned a coroutine: an application that is to run in "
                    "asyncio's loop must be an async function, or have an async __call__()."
                )
        except BaseException as exc:
            # Boundary to user code: an application ends nobody but itself, not even by
            # SystemExit, which the hub would raise in the main greenlet. That is where a Ctrl-C
            # belongs, which Python raises in whoever runs at the moment.
            if isinstance(exc, (gevent.GreenletExit, KeyboardInterrupt)):
                raise
            self.error = exc

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message; block until there is one, at most `timeout` seconds."""
        input_queue = self.input_queue
        deadline = None
        while input_queue.empty():
            if input_queue.closed:
                _leave()
            deadline = deadline or Deadline(timeout)
            self._arrived.wait(deadline)
        return input_queue.get_nowait()


def _leave() -> NoReturn:
    # Not an error that "except Exception" in the application's loop would take for one.
    gevent.sleep(_LATE)
    raise gevent.GreenletExit("the application instance is gone")


class InLoop(ApplicationInstance):
    """An ``async def`` application, as a task of the hub's asyncio loop."""

    __slots__ = ("_aio", "_arrived", "_loop")

    def __init__(self, scope_id: Hashable, scope: Any, loop: HostedLoop) -> None:
        super().__init__(scope_id, scope)
        # Only who has an async application needs asyncio.
        from ..net import aioloop

        self._aio: Any = aioloop
        self._loop = loop
        self._arrived = aioloop.AioSignal(loop)

    @property
    def arrived(self) -> _Notice:
        return self._arrived

    def start(self, application: Any, send: Send, ended: Callable[[Any], None]) -> None:
        """Run the application; `ended` is called in the loop when it has ended."""
        name = f"gwt-application {self.scope_id}"
        self.future = self._loop.create_task(self._run(application, send), name=name)
        self.done = self.future.done
        self.future.add_done_callback(ended)

    def kill(self) -> None:
        self.future.cancel()

    async def _run(self, application: Any, send: Send) -> None:
        async def sending(message: Any) -> None:
            # In a greenlet: application_send() may block, which would stop the loop.
            if self.gone:
                send(message)
            else:
                await self._aio.in_greenlet(f"gwt-application {self.scope_id} send", send, message)

        try:
            await application(self.scope, self.receive, sending)
        except BaseException as exc:
            # Boundary to user code: an application ends nobody but itself, not even by
            # SystemExit, for which asyncio would end the loop. A cancellation that nobody
            # asked for is a failure like any other. A Ctrl-C is the main greenlet's.
            if isinstance(exc, KeyboardInterrupt) or self._aio.is_cancelled(exc):
                raise
            self.error = exc

    async def receive(self) -> Any:
        """Return the next message; wait until there is one."""
        input_queue = self.input_queue
        while input_queue.empty():
            if input_queue.closed:
                await self._aio.leave(_LATE)
            await self._arrived.wait()
        return input_queue.get_nowait()
