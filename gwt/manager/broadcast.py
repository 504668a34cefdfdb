"""
Broadcasting: one message to many members, in order, and without keeping anybody else waiting.

A message is encoded once for all members of a kind. The first one to a member in a *turn* is
offered to its outlet at once; those that follow in the same turn are kept there and leave together
when the turn ends, which is when the loop comes to it and no broadcast is under way. Broadcasts go
one after the other, so that all members of a room hear the same order. One to many lets the loop
run every few milliseconds. Nothing here knows rooms or ids; who is addressed is given, as a list.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import gevent
from gevent.hub import get_hub

from ..net.timers import Timer, now
from ..net.waiting import Deadline, Signal
from .outlets import CLOSED, DROPPED, FULL, QUEUED, SENT
from .rooms import BroadcastResult, Member

__all__ = ["SLICE", "STEP", "Broadcaster", "let_the_loop_run"]

# How long a broadcast keeps the loop at most, and after how many members it looks at the clock.
SLICE = 0.002
STEP = 64

# A turn ends after this, also while one broadcast follows another.
LONGEST_TURN = 0.2

_NO_KIND = object()


class Broadcaster:
    """
    Sends messages to members, of whom at most `limit` bytes each may wait.

    `policy` is what becomes of one who has no room: "drop", "close", or "block" and then close.
    `close(member)` closes a slow one, `gone(member)` is told who is closed, `failed(member, error)`
    whose outlet raised; none of them may wait.
    """

    __slots__ = (
        "_begun_at",
        "_block_timeout",
        "_boxed",
        "_busy",
        "_callback",
        "_clock",
        "_close",
        "_failed",
        "_gone",
        "_later",
        "_limit",
        "_policy",
        "_queue",
        "_timer",
        "_tried",
        "_unsent",
        "_until",
    )

    def __init__(
        self,
        limit: int,
        policy: str,
        block_timeout: float | None,
        *,
        close: Callable[[Member], object],
        gone: Callable[[Member], object],
        failed: Callable[[Member, Exception], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._policy = policy
        self._block_timeout = block_timeout
        self._close = close
        self._gone = gone
        self._failed = failed
        self._clock = clock

        # The marks of members to whom something was offered in this turn, once and more often; the
        # latter, and those of earlier turns whose frames have not been sent yet.
        self._tried, self._boxed = 0, 1
        self._later: list[Member] = []
        self._unsent: deque[Member] = deque()
        self._timer: Timer | None = None

        # When this turn began, whether its end is on the way, and until when the loop is kept.
        self._begun_at: float | None = None
        self._callback = False
        self._until = 0.0

        # Whether a broadcast is under way, and who waits for that.
        self._busy = False
        self._queue: deque[Signal] = deque()

    def deliver(self, members: Sequence[Member], message: str | bytes) -> BroadcastResult:
        """
        Send a message to members; returns what became of it.

        Waits for other broadcasts, for the loop between two slices, and with "block" for slow
        members. In the hub, as in a callback, it never waits: there "block" is "drop".
        """
        may_wait = gevent.getcurrent() is not get_hub()
        if may_wait:
            self._enter()
        try:
            sent, queued, dropped, closed, full = self._offer(members, message, may_wait)
        finally:
            if may_wait:
                self._leave()
        result = BroadcastResult(sent, queued, dropped, closed)
        return self._serve_slow(full, result, may_wait) if full else result

    def _serve_slow(
        self, full: list[tuple[Member, Any]], result: BroadcastResult, may_wait: bool
    ) -> BroadcastResult:
        """Do with members that have no room what the policy says; returns the whole result."""
        sent, queued, dropped, closed = result
        outcomes = [FULL] * len(full)
        if self._policy == "block" and may_wait:
            deadline = Deadline(self._block_timeout)
            # Each by itself: one that goes on again does not wait for one that does not.
            # Its place in the order is taken at once, not when its greenlet begins.
            ticket = object()
            waiting = []
            for member, frame in full:
                member.blocked += (ticket,)
                greenlet = gevent.spawn(self._wait, member, frame, ticket, deadline)
                greenlet.name = f"gwt-room-waiter {member.id}"
                waiting.append(greenlet)
            try:
                gevent.joinall(waiting)
            finally:
                gevent.killall(waiting, block=False)
                for member, _ in full:
                    _take_back(member, ticket)
            outcomes = [greenlet.value for greenlet in waiting]
        for (member, _), outcome in zip(full, outcomes, strict=True):
            if outcome == SENT:
                sent += 1
            elif outcome == QUEUED:
                queued += 1
            elif outcome == FULL and (self._policy == "drop" or not may_wait):
                dropped += 1
            else:
                closed += 1
                if outcome == FULL:
                    self._close(member)
        return BroadcastResult(sent, queued, dropped, closed)

    def _offer(
        self, members: Sequence[Member], message: str | bytes, may_wait: bool
    ) -> tuple[int, int, int, int, list[tuple[Member, Any]]]:
        """Offer to each; returns how many took it how, and who has no room for which frame."""
        sent = queued = dropped = closed = 0
        full: list[tuple[Member, Any]] = []
        frames: dict[Hashable, Any] = {None: message}
        kind: Any = _NO_KIND
        frame: Any = None
        limit, later = self._limit, self._later
        for start in range(0, len(members), STEP):
            if self._next_step(may_wait):
                later = self._later
            tried, boxed = self._tried, self._boxed
            for member in members[start : start + STEP]:
                if member.kind is not kind:
                    kind = member.kind
                    if kind not in frames:
                        frames[kind] = member.outlet.encode_for(kind, message)
                    frame = frames[kind]
                try:
                    if member.blocked:
                        outcome = FULL
                    elif member.turn < tried:
                        member.turn = tried
                        outcome = member.outlet.offer(frame, limit)
                    else:
                        if member.turn == tried:
                            member.turn = boxed
                            later.append(member)
                        outcome = member.outlet.offer_later(frame, limit)
                except Exception as exc:
                    # Boundary to user code: an outlet of somebody's.
                    self._failed(member, exc)
                    outcome = CLOSED
                if outcome == SENT:
                    sent += 1
                elif outcome == QUEUED:
                    queued += 1
                elif outcome == FULL:
                    full.append((member, frame))
                elif outcome == DROPPED:
                    dropped += 1
                else:
                    closed += 1
                    self._gone(member)
        return sent, queued, dropped, closed, full

    def _wait(self, member: Member, frame: Any, ticket: object, deadline: Deadline) -> str:
        """Offer a frame to a slow member until it has room, behind those that wait already."""
        try:
            while True:
                if member.blocked[0] is ticket:
                    outcome: str = member.outlet.offer(frame, self._limit)
                    if outcome != FULL:
                        return outcome
                else:
                    gevent.sleep(0)
                member.outlet.wait_room(deadline)
        except TimeoutError:
            return FULL
        except Exception as exc:
            # Boundary to user code: an outlet of somebody's.
            self._failed(member, exc)
            return CLOSED
        finally:
            # Not there any more if the broadcast was given up.
            _take_back(member, ticket)

    # One after the other

    def _enter(self) -> None:
        if not self._busy:
            self._busy = True
            return
        turn = Signal()
        self._queue.append(turn)
        try:
            turn.wait()
        except BaseException:
            if turn in self._queue:
                self._queue.remove(turn)
            else:
                # It was handed over already.
                self._leave()
            raise

    def _leave(self) -> None:
        if self._queue:
            self._queue.popleft().notify()
            return
        self._busy = False
        if self._begun_at is not None:
            self._end_soon()

    # Turns

    def _next_step(self, may_wait: bool) -> bool:
        """Let the loop run if it is time, and begin a turn if there is none; tells whether."""
        moment = self._clock()
        if self._begun_at is not None:
            if moment < self._until or not may_wait:
                return False
            let_the_loop_run()
            moment = self._clock()
        self._until = moment + SLICE
        if self._begun_at is None:
            self._begun_at = moment
            self._end_soon()
        return True

    def _end_soon(self) -> None:
        if not self._callback:
            self._callback = True
            get_hub().loop.run_callback(self._end_turn)

    def _end_turn(self) -> None:
        # In the hub. While a broadcast is under way, its end has us called again.
        self._callback = False
        if self._begun_at is None:
            return
        if self._busy and self._clock() < self._begun_at + LONGEST_TURN:
            return
        self._begun_at = None
        self._tried += 2
        self._boxed += 2
        self._unsent += self._later
        self._later = []
        self._send_later()

    def _send_later(self) -> None:
        until = self._clock() + SLICE
        unsent = self._unsent
        while unsent:
            for _ in range(min(STEP, len(unsent))):
                member = unsent.popleft()
                try:
                    member.outlet.send_offered()
                except Exception as exc:
                    # Boundary to user code: an outlet of somebody's.
                    self._failed(member, exc)
            if unsent and self._clock() >= until:
                if self._timer is None:
                    self._timer = Timer(self._send_later)
                # Not a callback: those of one turn run before the loop looks at anything else.
                self._timer.arm(now())
                return


def _take_back(member: Member, ticket: object) -> None:
    member.blocked = tuple(each for each in member.blocked if each is not ticket)


def let_the_loop_run() -> None:
    """Wait until the loop has looked at its sockets and timers."""
    # Not gevent.sleep(0): what becomes ready by that runs before the loop looks at sockets.
    hub = get_hub()
    with hub.loop.timer(0) as watcher:
        hub.wait(watcher)
