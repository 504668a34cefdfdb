"""
StatelessServer: which application instance serves a scope, for protocols without connections.

It holds at most `max_applications` instances in exact order of use. An instance leaves the moment
it ends, or is told to go; then its queue takes nothing more, and what it still sends is dropped.
An end is noticed by the link of its greenlet (or task), by whoever looks the instance up, and by
the checker, whichever is first; it is settled once. What an instance is stands in applications.py.
Methods that a user overrides are called in greenlets, never in the hub.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import gevent
from gevent.pool import Group

from ..net.timers import Timer, in_time, now
from ..net.waiting import Deadline, Signal, native_thread
from ..observe import Counters
from .applications import ApplicationInstance, ApplicationQueue, InGreenlet, InLoop, is_async

if TYPE_CHECKING:
    from ..net.aioloop import HostedLoop

__all__ = ["StatelessServer"]

logger = logging.getLogger("gwt.manager")

# Seconds a tick of the checker may spend on looking for ends that nobody told of. A thousand
# instances take a tenth of it, and a hundred thousand a few ticks.
_SEARCH: Final = 0.001

# Seconds of evictions of idle instances before others run.
_TURN: Final = 0.004

# The least time to end: a turn of a busy hub is not to be taken for a refusal.
_LEAST: Final = 0.05

# How many are killed in one turn of the hub.
_KILLS: Final = 1000

# How often an application that does not let itself be killed is killed again.
_AGAIN: Final = 1.0


class StatelessServer:
    """
    Runs an application instance for each scope, and hands messages to it. To be subclassed.

    Override handle(), which takes in messages and puts each into the queue that
    get_or_create_application_instance() returns, and application_send(), which sends what
    applications answer; run() does the rest. An application is called as
    ``application(scope, receive, send)`` and blocks in its greenlet, or is an ``async def``, and
    runs in one asyncio loop a hub. Belongs to the hub that uses it first.
    """

    # Seconds between two rounds of application_checker().
    application_checker_interval: float = 0.1

    def __init__(
        self,
        application: Callable[..., Any],
        max_applications: int = 1000,
        *,
        idle_timeout: float | None = None,
        grace: float = 0.0,
        max_queue: int | None = None,
        clock: Callable[[], float] = now,
    ) -> None:
        """
        Take an application and limits. Raises ValueError for a limit below 1.

        `idle_timeout`: seconds without use (a get-or-create, a message in, a message out) after
        which the checker ends an instance; None and 0 are never. `grace`: how many seconds the
        ``finally:`` blocks of an instance that is told to go may wait before it is killed again;
        at least a twentieth.
        `max_queue`: messages that may wait for one instance; None is no limit.
        """
        if max_applications < 1:
            raise ValueError(f"max_applications must be at least 1, not {max_applications!r}.")
        if max_queue is not None and max_queue < 1:
            raise ValueError(f"max_queue must be at least 1, or None, not {max_queue!r}.")
        self.application = application
        self.max_applications = max_applications
        self.idle_timeout = idle_timeout
        self.grace = max(0.0, grace)
        self.max_queue = max_queue

        # The instances by scope id, the one whose last use is longest ago first.
        self.application_instances: OrderedDict[Hashable, ApplicationInstance] = OrderedDict()

        # Those that were told to go and have not ended: until when they have time, in order; and
        # those whose time is over, with the moment at which they are killed again.
        self._leaving: OrderedDict[ApplicationInstance, float] = OrderedDict()
        self._lingering: OrderedDict[ApplicationInstance, float] = OrderedDict()
        self._timer: Timer | None = None
        self._left = Signal()
        # Greenlets that tell of ends, by hooks.
        self._reports = Group()

        self._clock = clock
        self._is_async = is_async(application)
        self._thread: int | None = None
        # asyncio's loop, how many instances are in it, and whether run() keeps it.
        self._loop: HostedLoop | None = None
        self._tasks = 0
        self._running = False
        # What the checker still has to look at in its current search.
        self._search: Iterator[ApplicationInstance] = iter(())

        self.counters = Counters(
            "created", "finished", "failed", "evicted", "idle", "deleted", "stopped",
            "late_sends", "unread_messages", "missed_ends", "hook_errors", "killed_again",
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} instances={len(self.application_instances)}"
            f" of {self.max_applications} leaving={len(self._leaving) + len(self._lingering)}>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.shutdown()

    # To be overridden

    def handle(self) -> None:
        """Take in messages until there are no more; run() returns when it does. May block."""
        raise NotImplementedError("You must implement handle()")

    def application_send(self, scope: Any, message: Any) -> None:
        """
        Send what an application sends. May block, which blocks that application alone.

        What it raises is raised to the application.
        """
        raise NotImplementedError("You must implement application_send()")

    def application_exception(
        self, exception: BaseException, application_details: ApplicationInstance
    ) -> None:
        """
        Hear of an application that failed: by default it is logged. May block.

        Called once a failure, in a greenlet of its own, when the instance is gone.
        """
        logger.error(
            "Exception inside application %r: %r",
            application_details.scope_id,
            exception,
            exc_info=exception,
        )

    def application_evicted(self, scope_id: Hashable, scope: Any, pending: list[Any]) -> None:
        """
        Hear of an instance that was told to go, with the messages it had not received.

        Called once for each, and for one that ended by itself while messages were waiting. Who
        evicts waits for it: get_or_create_application_instance(), delete..., the checker.
        """

    # Life

    def run(self) -> None:
        """
        Run handle() and the checker; return when handle() does, or at KeyboardInterrupt.

        Then all instances are told to go, and are waited for as shutdown() does.
        """
        self._check_thread()
        checker = gevent.Greenlet(self._check)
        checker.name = f"gwt-application-checker {type(self).__name__}"
        self._running = True
        checker.start()
        try:
            self.handle()
        except KeyboardInterrupt:
            logger.info("Exiting due to Ctrl-C/interrupt")
        finally:
            self._running = False
            checker.kill()
            self.shutdown()

    def shutdown(self) -> None:
        """
        Tell all instances to go, and wait for their ends: `grace`, and at most a second more.

        For who does without run(). Afterwards, the server may be used again.
        """
        loop = self._loop
        while self.application_instances:
            for _ in in_time(self._everybody(), now() + _TURN):
                pass
            gevent.sleep(0)
        deadline = Deadline(self.grace + _AGAIN)
        # An application, or a hook, that shuts its own server down does not wait for itself.
        me = gevent.getcurrent()
        mine = sum(each.future is me for each in (*self._leaving, *self._lingering))
        while len(self._leaving) + len(self._lingering) > mine:
            try:
                self._left.wait(deadline)
            except TimeoutError:
                logger.warning("Applications go on although they were killed: %r", self)
                break
        if me not in self._reports:
            self._reports.join(deadline.remaining())
        self._release()
        if loop is not None and loop.greenlet is not me:
            loop.join()

    def application_checker(self) -> None:
        """
        End idle instances, and look for ends that nobody told of; for ever. Waits.

        run() has it in a greenlet. A round is bounded: with very many instances the search goes
        on in the next one.
        """
        while True:
            gevent.sleep(self.application_checker_interval)
            self.check_applications()

    def check_applications(self) -> None:
        """Do one round of the checker. Lets others run; waits for hooks only."""
        for instance in in_time(self._searched(), now() + _SEARCH):
            if instance.done() and not instance.settled:
                self.counters["missed_ends"] += 1
                self._settle(instance)
        while True:
            for _ in in_time(self._idle(), now() + _TURN):
                pass
            if self._oldest_idle() is None:
                return
            gevent.sleep(0)

    def _searched(self) -> Iterator[ApplicationInstance]:
        # The rest of the last search, and a new one. dict's own view does not follow the links
        # of the order, which are scattered over memory.
        yield from self._search
        self._search = iter(list(dict.values(self.application_instances)))
        yield from self._search

    def _everybody(self) -> Iterator[None]:
        while self.application_instances:
            self._end(next(iter(self.application_instances.values())), "stopped")
            yield

    def _oldest_idle(self) -> ApplicationInstance | None:
        if not self.idle_timeout or not self.application_instances:
            return None
        oldest = next(iter(self.application_instances.values()))
        return oldest if self._clock() - oldest.last_used >= self.idle_timeout else None

    def _idle(self) -> Iterator[None]:
        while (oldest := self._oldest_idle()) is not None:
            self._end(oldest, "idle")
            yield

    def _check(self) -> None:
        try:
            self.application_checker()
        except (Exception, SystemExit, gevent.Timeout):
            # Boundary to user code: the method may be overridden.
            logger.exception("The application checker failed; the server goes on without it.")

    # Instances

    def get_or_create_application_instance(
        self, scope_id: Hashable, scope: Any
    ) -> ApplicationQueue:
        """
        Return the input queue of a scope's instance, which is made if there is none.

        A new one takes the place of that whose last use is longest ago, if there are
        `max_applications`. Of one that is there the `scope` stays what it was. Never waits,
        except for application_evicted(). Raises RuntimeError in another thread.
        """
        instance = self.application_instances.get(scope_id)
        if instance is not None and not instance.done():
            if self._thread != native_thread():
                self._check_thread()
            instance.last_used = self._clock()
            self.application_instances.move_to_end(scope_id)
            return instance.input_queue
        self._check_thread()
        if instance is not None:
            self._settle(instance)
        evicted = []
        while len(self.application_instances) >= self.max_applications:
            oldest = next(iter(self.application_instances.values()))
            if oldest.done():
                self._settle(oldest)
            else:
                evicted.append((oldest, self._evict(oldest, "evicted")))
        # Before the hooks, which may wait, or come back here.
        try:
            return self._create(scope_id, scope).input_queue
        finally:
            for oldest, pending in evicted:
                self._tell(oldest, pending)

    def delete_oldest_application_instance(self) -> None:
        """Tell the instance to go whose last use is longest ago. Raises ValueError if none is."""
        if not self.application_instances:
            raise ValueError("There is no application instance.")
        self.delete_application_instance(next(iter(self.application_instances)))

    def delete_application_instance(self, scope_id: Hashable) -> None:
        """
        Tell an instance to go: it leaves at once, and is killed. Raises KeyError if it is unknown.

        Waits for application_evicted() only, not for the end of the application.
        """
        self._check_thread()
        self._end(self.application_instances[scope_id], "deleted")

    def stats(self) -> dict[str, Any]:
        """Return what there is now, and what has been counted."""
        return {
            "instances": len(self.application_instances),
            "max_applications": self.max_applications,
            "leaving": len(self._leaving),
            "lingering": len(self._lingering),
            **self.counters,
        }

    def _check_thread(self) -> None:
        thread = native_thread()
        if self._thread is None:
            self._thread = thread
        elif self._thread != thread:
            raise RuntimeError("This server belongs to the hub of another thread.")

    def _create(self, scope_id: Hashable, scope: Any) -> ApplicationInstance:
        instance: InGreenlet | InLoop
        if self._is_async:
            if self._loop is None:
                from ..net.aioloop import borrow

                self._loop = borrow()
            instance = InLoop(scope_id, scope, self._loop)
        else:
            instance = InGreenlet(scope_id, scope)
        instance.input_queue = ApplicationQueue(
            instance, self.max_queue, self._use, self._message_left, instance.arrived
        )
        instance.last_used = self._clock()
        # It runs in the next turn; what cannot be started (an id without a text) is not here.
        instance.start(
            self.application, partial(self._send, instance), partial(self._ended, instance)
        )
        self.application_instances[scope_id] = instance
        self._tasks += self._is_async
        self.counters["created"] += 1
        return instance

    # What a subclass of this package wants to hear: a message was received, or will never be.
    _message_left: Callable[[Any], None] | None = None

    def _use(self, instance: ApplicationInstance) -> None:
        if self._thread != native_thread():
            self._check_thread()
        instance.last_used = self._clock()
        self.application_instances.move_to_end(instance.scope_id)

    def _send(self, instance: ApplicationInstance, message: Any) -> None:
        if instance.gone:
            self.counters["late_sends"] += 1
            return
        self._use(instance)
        self.application_send(instance.scope, message)

    # Ends

    def _end(self, instance: ApplicationInstance, why: str) -> None:
        if instance.done():
            self._settle(instance)
        else:
            self._tell(instance, self._evict(instance, why))

    def _evict(self, instance: ApplicationInstance, why: str) -> list[Any]:
        """Take an instance out and have it killed; return what it had not received."""
        del self.application_instances[instance.scope_id]
        instance.evicted = True
        self.counters[why] += 1
        # First, so that it finds itself killed and not in front of a closed queue.
        instance.kill()
        pending = instance.input_queue.close()
        self.counters["unread_messages"] += len(pending)
        if not instance.settled:
            # As many may be leaving as there are others, so that a flood keeps no more of them.
            while len(self._leaving) >= self.max_applications:
                self._kill_again(next(iter(self._leaving)))
            self._leaving[instance] = self._clock() + max(self.grace, _LEAST)
            if self._timer is None or self._timer.deadline is None:
                self._arm()
        return pending

    def _tell(self, instance: ApplicationInstance, pending: list[Any]) -> None:
        self._hook(self.application_evicted, instance.scope_id, instance.scope, pending)

    def _ended(self, instance: ApplicationInstance, future: Any) -> None:
        # Called in the hub, or in asyncio's loop: nothing in _settle() waits.
        self._settle(instance)

    def _settle(self, instance: ApplicationInstance) -> None:
        """Take note of an end, once. Never waits, and calls nobody."""
        if instance.settled:
            return
        instance.settled = True
        pending: list[Any] = []
        if self.application_instances.get(instance.scope_id) is instance:
            del self.application_instances[instance.scope_id]
            pending = instance.input_queue.close()
            self.counters["unread_messages"] += len(pending)
            self.counters["finished"] += instance.error is None
        self.counters["failed"] += instance.error is not None
        self._leaving.pop(instance, None)
        self._lingering.pop(instance, None)
        self._left.notify()
        if self._timer is not None and not self._leaving and not self._lingering:
            self._timer.cancel()
        if instance.error is not None or pending:
            reporter = gevent.Greenlet(self._report, instance, pending)
            reporter.name = f"gwt-application-end {instance.scope_id}"
            self._reports.start(reporter)
        if isinstance(instance, InLoop):
            self._tasks -= 1
            self._release()

    def _report(self, instance: ApplicationInstance, pending: list[Any]) -> None:
        # Its traceback holds frames, which would be held as long as the instance.
        error, instance.error = instance.error, None
        if error is not None:
            self._hook(self.application_exception, error, instance)
        if pending:
            self._tell(instance, pending)

    def _hook(self, hook: Callable[..., Any], *args: Any) -> None:
        try:
            hook(*args)
        except (Exception, SystemExit, gevent.Timeout):
            # Boundary to user code: a hook that fails harms neither the server nor its caller.
            self.counters["hook_errors"] += 1
            logger.exception("%s() of %r failed.", getattr(hook, "__name__", hook), self)

    def _release(self) -> None:
        """Give asyncio's loop back when nothing of ours is in it."""
        loop = self._loop
        if loop is not None and not self._tasks and not self._running:
            self._loop = None
            loop.give_back()

    # Time to go

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = Timer(self._time_is_over, clock=self._clock)
        times = [next(iter(each.values())) for each in (self._leaving, self._lingering) if each]
        self._timer.arm(min(times, default=None))

    def _time_is_over(self) -> None:
        # In the hub. kill() never waits; what has ended takes itself out of both.
        moment = self._clock()
        for waiting in (self._leaving, self._lingering):
            for instance, until in list(islice(waiting.items(), _KILLS)):
                if until > moment:
                    break
                self._kill_again(instance)
        self._arm()

    def _kill_again(self, instance: ApplicationInstance) -> None:
        if instance.done():
            self._settle(instance)
            return
        self._leaving.pop(instance, None)
        self._lingering.pop(instance, None)
        self._lingering[instance] = self._clock() + _AGAIN
        self.counters["killed_again"] += 1
        instance.kill()
