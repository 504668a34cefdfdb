"""
Members: who is in a manager, by id; how they come, leave, and are closed.

Duck-typed: ``id``, ``state``, ``is_closed``, ``last_active``, ``close(code, reason)``, an end
notification ``on_end(callback)``, and something that sends (outlets.py); ``accept()``,
``opened()``, ``begin_close()`` and ``abort()`` are used where there are any. Rooms and handlers are
websocket.py's. Nothing here waits but close_all().
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import gevent
from gevent.pool import Group

from ..errors import TooManyConnections
from ..net.waiting import Deadline, Signal, native_thread
from .broadcast import SLICE, STEP, let_the_loop_run
from .connection import ManagerInactive, pick_idle
from .outlets import outlet_of
from .reaper import Job, Reaper, discharge, enlist
from .registry import CLOSE_TIMEOUT, every, pick_closed
from .rooms import Member, Rooms

__all__ = ["GOING_AWAY", "INTERNAL_ERROR", "NORMAL", "TRY_AGAIN_LATER", "Members"]

logger = logging.getLogger("gwt.manager")

# Close codes (RFC 6455 7.4.1; 1013 is registered): the same numbers for sessions.
NORMAL, GOING_AWAY, INTERNAL_ERROR, TRY_AGAIN_LATER = 1000, 1001, 1011, 1013

# How long what waits in a member's outlet may take before it is closed all the same.
OUTBOX_TIMEOUT = CLOSE_TIMEOUT / 4

CLEANUP_INTERVAL = 30.0
IDLE_CHECK_INTERVAL = 5.0


class Members:
    """The members of a WebSocketManager: a limit, ids, and the end of each."""

    def __init__(
        self,
        limit: int | None,
        rooms: Rooms,
        idle_timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._rooms = rooms
        self._idle_timeout = idle_timeout or 0.0
        self._clock = clock

        # Members, by id, and by the id() of what they stand for.
        self._members: dict[Hashable, Member] = {}
        self._connections: dict[Hashable, Any] = {}
        self._known: dict[int, Member] = {}

        # Whether no members may be added any more, and whether stop() has ended periodic work.
        self._shut = self._halted = False

        # The native thread of our members; each belongs to the hub of one.
        self._thread: int | None = None

        # Members whose end close_all() waits for, and its coming.
        self._leaving: set[Member] = set()
        self._all_left = Signal()

        # The periodic work that the hub's reaper has with us, while there are members.
        self._enlisted: tuple[tuple[Reaper, float, Job], ...] = ()
        self._checked_at = 0.0

        # Our greenlets.
        self._greenlets = Group()

        # Members ever added, and those that ended while they were here; those closed because they
        # were too slow; failures of members' own code.
        self.total_created = self.total_closed = self.slow_closed = self.errors = 0

    # Members

    def add(
        self,
        ws: Any,
        connection_id: Hashable | None = None,
        *,
        replace: bool = False,
        framing: str = "messages",
    ) -> Hashable:
        """
        Take a WebSocket or a WebTransport session in, and return its id: `connection_id`, or its
        own ``id``. Never waits.

        A session gets its messages in order on one unidirectional stream, which
        ``gwt.read_messages()`` reads; with `framing` "stream" on a stream each. To a WebSocket
        that makes no difference.

        One that was not accepted yet is. Then its ``opened()`` is called, and, if it has
        ``received_message()``, its messages are read in the pool and given to that. It leaves by
        itself when it has ended. The same one again is ignored. Raises ValueError if another one
        has this id, unless `replace`: then that one leaves all its rooms, and is closed. Raises
        TooManyConnections, PoolExhausted, ManagerInactive after shutdown(), TypeError for
        what can not be sent to.
        """
        self._check_thread()
        if self._shut:
            raise ManagerInactive("The WebSocketManager was shut down; start() opens it again.")
        key: Hashable = ws.id if connection_id is None else connection_id
        known = self._known.get(id(ws))
        if known is not None:
            if known.id != key:
                raise ValueError(f"{ws!r} is a member already, with the id {known.id!r}.")
            return key
        present = self._members.get(key)
        if present is not None and not replace:
            raise ValueError(f"Another member has the id {key!r}.")
        if self._limit is not None and len(self._members) - bool(present) >= self._limit:
            raise TooManyConnections(f"There are {self._limit} members already.", limit=self._limit)
        self._check(ws)
        outlet = outlet_of(ws, self._send_failed, framing)
        if getattr(ws.state, "value", ws.state) == "connecting" and hasattr(ws, "accept"):
            ws.accept()
        if present is not None:
            self._ended(present)
            self._close_soon(present.member, NORMAL, "replaced")
        member = Member(key, ws, outlet)
        self._members[key] = member
        self._connections[key] = ws
        self._known[id(ws)] = member
        self.total_created += 1
        on_end = getattr(ws, "on_end", None)
        try:
            if on_end is not None:
                member.ended = partial(self._ended, member)
                on_end(member.ended)
        except Exception:
            # Boundary to user code: without its notification it is not taken in.
            self._drop(member)
            raise
        if ws.is_closed:
            self._ended(member)
            return key
        self._enlist()
        if hasattr(ws, "opened"):
            try:
                ws.opened()
            except Exception as exc:
                # Boundary to user code: a callback of a member.
                self._callback_failed(member, "opened()", exc)
                return key
        if self._members.get(key) is member:
            self._added(member)
        return key

    def _check_thread(self) -> None:
        thread = native_thread()
        if not self._members:
            self._thread = thread
        elif thread != self._thread:
            raise RuntimeError(
                "These members belong to the hub of another thread; use server.call() to reach it."
            )

    def _check(self, ws: Any) -> None:
        """Raise if one may not be added; for subclasses."""

    def _added(self, member: Member) -> None:
        """One has been added, and is open; for subclasses."""

    def _removed(self, member: Member) -> None:
        """One was taken out, and may be open; for subclasses."""

    def add_connection(
        self,
        connection_id: Hashable,
        ws: Any,
        *,
        replace: bool = False,
        framing: str = "messages",
    ) -> Hashable:
        """Take a WebSocket or a session in with an id; see add()."""
        return self.add(ws, connection_id, replace=replace, framing=framing)

    def remove(self, ws: Any) -> None:
        """
        Take a member out of all rooms and of the manager, without closing it. Idempotent.

        What it receives from then on is its owner's again, also if it has ``received_message()``.
        """
        self._check_thread()
        member = self._known.get(id(ws))
        if member is not None:
            self._drop(member)
            self._removed(member)

    def remove_connection(self, connection_id: Hashable) -> None:
        """Take the member with this id out; see remove()."""
        self._check_thread()
        member = self._members.get(connection_id)
        if member is not None:
            self._drop(member)
            self._removed(member)

    @property
    def connections(self) -> Mapping[Hashable, Any]:
        """The members by id; read-only, and always as it is now."""
        return MappingProxyType(self._connections)

    websockets = connections

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over a snapshot of the members: they may come and go meanwhile."""
        return iter(list(self._connections.values()))

    def __contains__(self, item: object) -> bool:
        """Tell whether a member, or an id, is here."""
        if id(item) in self._known:
            return True
        try:
            return item in self._members
        except TypeError:
            # Not hashable, so no id.
            return False

    def __bool__(self) -> bool:
        return True

    # Leaving

    def _drop(self, member: Member) -> bool:
        """Take a member out, if it is in. The only place where members leave."""
        present = self._members.get(member.id)
        if present is None or present.member is not member.member:
            return False
        # Rooms may know it as one with another outlet.
        member = present
        del self._members[member.id], self._connections[member.id]
        del self._known[id(member.member)]
        self._rooms.leave_all(member)
        if hasattr(member.member, "off_end"):
            # Who comes and goes often must not be remembered each time.
            member.member.off_end(member.ended)
        stop = getattr(member.outlet, "stop", None)
        if member.outlet is not member.member and stop is not None:
            stop()
        if not self._members:
            self._discharge()
        if self._leaving:
            self._leaving.discard(member)
            if not self._leaving:
                self._all_left.notify()
        return True

    def _ended(self, member: Member, _: object = None) -> None:
        if self._drop(member):
            self.total_closed += 1

    def _callback_failed(self, member: Member, what: str, exc: BaseException) -> None:
        self.errors += 1
        logger.error("%s of member %r failed", what, member.id, exc_info=exc)
        self._ended(member)
        self._close_soon(member.member, INTERNAL_ERROR, "internal error")

    def _gone(self, member: Member) -> None:
        """One took nothing: it leaves now if it has ended, which it may never have told."""
        try:
            if member.member.is_closed or getattr(member.outlet, "is_closed", False):
                self._ended(member)
        except Exception as exc:
            # Boundary to user code: a property of a member.
            self._failed("is_closed", exc)

    def _close_slow(self, member: Member) -> None:
        # Not again, if several broadcasts waited for it.
        self.slow_closed += self._members.get(member.id) is member
        self._ended(member)
        self._close_soon(member.member, TRY_AGAIN_LATER, "too slow")

    def _member_failed(self, member: Member, exc: Exception) -> None:
        self._failed("sending to a member", exc)
        self._ended(member)
        self._close_soon(member.member, INTERNAL_ERROR, "internal error")

    def _send_failed(self, ws: Any, exc: Exception) -> None:
        member = self._known.get(id(ws))
        if member is not None:
            self._member_failed(member, exc)

    def _close_soon(self, ws: Any, code: int, reason: str) -> None:
        """Tell a member that it is over; who is told that by waiting has a greenlet for it."""
        if hasattr(ws, "begin_close"):
            try:
                ws.begin_close(code, reason)
            except Exception as exc:
                # Boundary to user code: a member of somebody's.
                self._failed("begin_close()", exc)
                self._abort(ws)
        else:
            closer = gevent.spawn(self._close, ws, code, reason)
            closer.name = f"gwt-closer {ws.id}"
            self._greenlets.add(closer)

    def _close(self, ws: Any, code: int, reason: str) -> None:
        try:
            with gevent.Timeout(CLOSE_TIMEOUT, False):
                member = self._known.get(id(ws))
                if member is not None and hasattr(member.outlet, "wait_sent"):
                    with suppress(TimeoutError):
                        member.outlet.wait_sent(Deadline(OUTBOX_TIMEOUT))
                if not ws.is_closed:
                    ws.close(code, reason)
                member = self._known.get(id(ws))
                if member is not None:
                    self._gone(member)
                return
        except (Exception, gevent.Timeout) as exc:
            # Boundary to user code. A Timeout here is one that leaked out of close().
            self._failed("close()", exc)
        self._abort(ws)

    def _abort(self, ws: Any) -> None:
        try:
            if not ws.is_closed and hasattr(ws, "abort"):
                ws.abort()
        except Exception as exc:
            # Boundary to user code: it must not wait, so a Timeout here is the caller's own.
            self._failed("abort()", exc)

    def _failed(self, what: str, exc: BaseException) -> None:
        # Who fails does so in every broadcast: all are counted, the first is logged.
        self.errors += 1
        if self.errors == 1:
            logger.error(
                "%s failed; further failures are only counted, in stats()", what, exc_info=exc
            )

    # The idle, and the dead

    def _enlist(self) -> None:
        if self._enlisted or self._halted:
            return
        work = every(CLEANUP_INTERVAL, self.cleanup_closed)
        if self._idle_timeout > 0:
            self._checked_at = self._clock()
            work += every(self._idle_interval, self._check_idle)
        self._enlisted = tuple((enlist(interval, job), interval, job) for interval, job in work)

    def _discharge(self) -> None:
        for reaper, interval, job in self._enlisted:
            discharge(reaper, interval, job)
        self._enlisted = ()

    @property
    def _idle_interval(self) -> float:
        return min(IDLE_CHECK_INTERVAL, self._idle_timeout / 2)

    def _check_idle(self) -> None:
        # After a stall nobody's peer has been heard yet: such a pass would close the living.
        moment = self._clock()
        late = moment - self._checked_at - self._idle_interval
        self._checked_at = moment
        if late < self._idle_timeout / 4:
            self.close_idle(moment)

    def close_idle(self, now: float | None = None) -> int:
        """Begin to close idle members, and return how many. Never waits; scans all members."""
        broken: list[Exception] = []
        moment = self._clock() if now is None else now
        idle = pick_idle(self._connections.values(), moment, self._idle_timeout, broken)
        for exc in broken:
            self._failed("last_active or is_closed", exc)
        for ws in idle:
            self._ended(self._known[id(ws)])
            self._close_soon(ws, GOING_AWAY, "Idle timeout")
        return len(idle)

    def cleanup_closed(self) -> int:
        """Remove members that are closed and did not tell; returns how many. Scans all members."""
        broken: list[Exception] = []
        # A snapshot, but no 20,000 tuples: zip() uses its one again.
        closed = pick_closed(zip(list(self._connections), self, strict=True), broken)
        for exc in broken:
            self._failed("is_closed", exc)
        for key, _ in closed:
            self._ended(self._members[key])
        return len(closed)

    def close_all(
        self,
        code: int = GOING_AWAY,
        message: str = "Server is shutting down",
        *,
        timeout: float = CLOSE_TIMEOUT,
    ) -> None:
        """
        Tell all members that it is over, and wait until they have closed, too.

        Those that have not after `timeout` seconds are aborted. Afterwards none of them is left.
        """
        self._check_thread()
        leaving = list(self._members.values())
        self._leaving.update(leaving)
        until = self._clock() + SLICE
        for number, member in enumerate(leaving):
            self._close_soon(member.member, code, message)
            if number % STEP == STEP - 1 and self._clock() >= until:
                let_the_loop_run()
                until = self._clock() + SLICE
        deadline = Deadline(timeout)
        try:
            with suppress(TimeoutError):
                while not self._leaving.isdisjoint(leaving):
                    self._all_left.wait(deadline)
        finally:
            self._leaving.difference_update(leaving)
            self._all_left.notify()
            for member in leaving:
                if self._members.get(member.id) is member:
                    self._abort(member.member)
                    self._drop(member)
