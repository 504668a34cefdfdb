"""
Registry: who is alive, counted and bounded. What the three managers have in common.

Members are duck-typed: an id, ``state``, ``is_closed``, ``close()`` and, if they have one, the
end notification ``on_end(callback)``: it calls ``callback(member)`` once when the member has
ended, at once if it already has, from any greenlet or the hub. A member leaves by that; the
periodic cleanup is the safety net for members that never tell. ``abort()``, which must not
wait, is used where close() took too long. Everything but shutdown() never waits and is O(1),
unless its docstring says that it scans. Nothing here knows what goes over the wire.
"""

from __future__ import annotations

import enum
import logging
import math
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self

import gevent
from gevent.pool import Pool

from ..errors import GwtError, LimitExceeded
from .reaper import Job, Reaper, discharge, enlist

__all__ = ["Member", "Registry", "every", "pick_closed", "value_of"]

logger = logging.getLogger("gwt.manager")

# Duck-typed: the module's docstring lists what is asked of one.
Member = Any

# How many members of one manager are being closed at a time. A waiting greenlet takes about
# 10 KB, so this is 10 MB, and closes 20,000 peers that answer within 100 ms in 2 seconds.
CLOSERS = 1000

# How long a close() may take before the member is aborted: the same as stopping a server.
CLOSE_TIMEOUT = 10.0

# What close() and abort() get on top to return, once they were interrupted.
GRACE = 1.0


def value_of(state: object) -> str:
    """Return the plain text of a state or direction, which may be an enum or a str."""
    return str(state.value if isinstance(state, enum.Enum) else state)


def pick_closed(
    members: Iterable[tuple[Hashable, Member]], broken: list[Exception]
) -> list[tuple[Hashable, Member]]:
    """Choose the members that are closed; what raises is not, and its error goes to `broken`."""
    closed = []
    for key, member in members:
        try:
            if member.is_closed:
                closed.append((key, member))
        except Exception as exc:
            # Boundary to user code: a property of a member.
            broken.append(exc)
    return closed


def every(interval: float | None, job: Job) -> list[tuple[float, Job]]:
    """Return the periodic work that an option asks for: None, 0 and infinity are none."""
    return [(interval, job)] if interval is not None and 0 < interval < math.inf else []


class Registry:
    """
    Members by id, with a limit, statistics, and removal of those that ended.

    A registry accepts members while it is activated: between start() and stop() or shutdown(),
    which ``with`` calls. It may be activated again. Belongs to the hub that activated it.
    """

    __slots__ = (
        "__weakref__",
        "_closing_all",
        "_enlisted",
        "_interval",
        "_limit",
        "_members",
        "active",
        "errors",
        "max_concurrent",
        "total_closed",
        "total_created",
    )

    # What members are called, in texts and in the key of the limit in get_stats().
    kind = "resource"

    def __init__(self, *, limit: int | None, cleanup_interval: float | None) -> None:
        self._limit = limit

        # Seconds between two cleanups; None or <= 0: members are trusted to tell their end.
        self._interval = cleanup_interval

        self._members: dict[Hashable, Member] = {}

        # True between start() and stop().
        self.active = False

        # The periodic work that this registry has with the hub's reaper, while activated.
        self._enlisted: tuple[tuple[Reaper, float, Job], ...] = ()

        # True while shutdown() closes members.
        self._closing_all = False

        # Members ever added; members that ended while they were here; the most at a time;
        # failures of members' own code.
        self.total_created = 0
        self.total_closed = 0
        self.max_concurrent = 0
        self.errors = 0

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {'active' if self.active else 'inactive'}"
            f" members={len(self._members)} limit={self._limit}"
            f" created={self.total_created} closed={self.total_closed}>"
        )

    # Life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    def start(self) -> None:
        """Accept members, and have the reaper clean up. Never waits; idempotent."""
        if not self.active:
            self.active = True
            self._enlisted = tuple(
                (enlist(interval, job), interval, job) for interval, job in self._periodic()
            )

    def set_limit(self, limit: int | None) -> None:
        """Allow another number of members from now on; those that are here stay."""
        self._limit = limit

    def stop(self) -> None:
        """
        Accept no more members and end the periodic work; close nobody. Never waits; idempotent.

        Members that are left still leave, and are counted, when they end.
        """
        self.active = False
        for reaper, interval, job in self._enlisted:
            discharge(reaper, interval, job)
        self._enlisted = ()

    def shutdown(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """
        Stop, and close all members at the same time. Idempotent.

        Waits until they are closed, at most `timeout` seconds; those that are not by then are
        aborted. Afterwards nobody is left, and no greenlet of the manager's. While another
        greenlet is in here, as when a member's close() calls it, it returns at once.
        """
        reapers = {reaper for reaper, _, _ in self._enlisted}
        self.stop()
        if self._closing_all:
            return
        self._closing_all = True
        try:
            # More than once only if it was started and stopped again meanwhile.
            while self._members and not self.active:
                self._close_all(list(self._members.items()), timeout)
        finally:
            self._closing_all = False
        for reaper in reapers:
            reaper.join(GRACE)

    def _periodic(self) -> list[tuple[float, Job]]:
        return every(self._interval, self.cleanup_closed_resources)

    # Members

    def get_resource(self, resource_id: Hashable) -> Member | None:
        """Return the member with this id, or None."""
        return self._members.get(resource_id) if self.active else None

    def get_all_resources(self) -> list[Member]:
        """Return all members, as a list of its own."""
        return list(self._members.values()) if self.active else []

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        """Iterate over a snapshot: members may come and go meanwhile."""
        return iter(list(self._members.values()))

    def __contains__(self, item: object) -> bool:
        """Tell whether an id, or a member, is here."""
        try:
            if item in self._members:
                return True
        except TypeError:
            # Not hashable, so no id.
            pass
        try:
            key = self._key(item)
        except AttributeError:
            return False
        return self._members.get(key) is item

    def cleanup_closed_resources(self) -> int:
        """Remove the members that are closed, and return their number. Scans all members."""
        # A snapshot, but no 20,000 tuples: zip() uses its one again.
        return self._cleanup(zip(list(self._members), self, strict=True))

    def get_stats(self) -> dict[str, Any]:
        """Return totals, the limit, and the members by state. Scans all members."""
        if not self.active:
            return {}
        return {
            "total_created": self.total_created,
            "total_closed": self.total_closed,
            "current_count": len(self._members),
            "max_concurrent": self.max_concurrent,
            "active": len(self._members),
            f"max_{self.kind}s": self._limit,
            "errors": self.errors,
            "states": self._breakdown("state"),
        }

    def _breakdown(self, attribute: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for member in self:
            counts[self._value(member, attribute)] += 1
        return dict(counts)

    def _value(self, member: Member, attribute: str) -> str:
        try:
            return value_of(getattr(member, attribute))
        except Exception as exc:
            # Boundary to user code: a property of a member.
            self._failed(attribute, exc)
            return "unknown"

    # For the managers

    def _key(self, member: Member) -> Hashable:
        key: Hashable = member.id
        return key

    def _inactive(self) -> GwtError:
        return GwtError(self._inactive_text())

    def _inactive_text(self) -> str:
        return (
            f"{type(self).__name__} has not been activated: use it in a with statement, "
            "or call start()."
        )

    def _over_limit(self) -> GwtError:
        return LimitExceeded(self._over_limit_text(), limit=self._limit)

    def _over_limit_text(self) -> str:
        return f"Maximum {self.kind}s ({self._limit}) exceeded"

    def _add(self, member: Member) -> Hashable:
        """
        Take a member in. The same one again is ignored, another one with its id a ValueError.

        One that is already closed is counted as created and closed, and is gone at once: the
        caller cannot know, so a race must not be an error.
        """
        if not self.active:
            raise self._inactive()
        key = self._key(member)
        present = self._members.get(key)
        if present is member:
            return key
        if present is not None:
            raise ValueError(f"Another {self.kind} with the id {key!r} is already managed.")
        if self._limit is not None and len(self._members) >= self._limit:
            raise self._over_limit()
        self._insert(key, member)
        return key

    def _insert(self, key: Hashable, member: Member) -> None:
        closed = member.is_closed
        self._members[key] = member
        on_end = getattr(member, "on_end", None)
        if on_end is not None:
            try:
                on_end(partial(self._ended, key))
            except Exception:
                # Boundary to user code: without its notification it is not taken in.
                self._members.pop(key, None)
                raise
        self.total_created += 1
        if closed:
            self._ended(key, member)
        elif len(self._members) > self.max_concurrent:
            self.max_concurrent = len(self._members)

    def _ended(self, key: Hashable, member: Member) -> bool:
        # The notification of a member that was removed, and whose id another one has now,
        # must not touch that one.
        if self._members.get(key) is not member:
            return False
        self._drop(key)
        self.total_closed += 1
        return True

    def _cleanup(self, members: Iterable[tuple[Hashable, Member]]) -> int:
        broken: list[Exception] = []
        closed = pick_closed(members, broken)
        for exc in broken:
            self._failed("is_closed", exc)
        return sum(self._ended(key, member) for key, member in closed)

    def _remove(self, key: Hashable) -> Member | None:
        if not self.active or key not in self._members:
            return None
        return self._drop(key)

    def _drop(self, key: Hashable) -> Member:
        """Take out a member that is in. The only place where members leave."""
        return self._members.pop(key)

    # Closing

    def _close(self, member: Member, reason: str) -> None:
        # No code: each kind has its own for a normal end (0, or a WebSocket's 1000).
        member.close(reason=reason)

    def _close_all(self, leaving: list[tuple[Hashable, Member]], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        closers = Pool(CLOSERS)
        try:
            # The outer limit is for members that swallow the inner one.
            with gevent.Timeout(timeout + GRACE, False):
                for key, member in leaving:
                    closer = closers.spawn(self._close_by, member, "Shutting down", deadline)
                    closer.name = f"gwt-closer {key}"
                closers.join()
        finally:
            closers.kill(timeout=GRACE)
            for key, member in leaving:
                self._abort(member)
                # Even that did not end it: it goes uncounted.
                if not self._cleanup([(key, member)]) and self._members.get(key) is member:
                    self._drop(key)

    def _close_by(self, member: Member, reason: str, deadline: float) -> None:
        """Close a member, or abort it at `deadline`. The root of a greenlet."""
        try:
            with gevent.Timeout(max(0.0, deadline - time.monotonic()), False):
                if not member.is_closed:
                    self._close(member, reason)
                return
        except (Exception, gevent.Timeout) as exc:
            # Boundary to user code. A Timeout here is one that leaked out of close().
            self._failed("close()", exc)
        self._abort(member)

    def _abort(self, member: Member) -> None:
        try:
            if not member.is_closed and hasattr(member, "abort"):
                member.abort()
        except Exception as exc:
            # Boundary to user code. It must not wait, so a Timeout here is the caller's own.
            self._failed("abort()", exc)

    def _failed(self, what: str, exc: BaseException) -> None:
        # A member that fails does so in every pass: all are counted, the first is logged.
        self.errors += 1
        if self.errors == 1:
            logger.error(
                "%s of a %s failed; further failures are only counted, in get_stats()",
                what,
                self.kind,
                exc_info=exc,
            )
