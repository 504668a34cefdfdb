"""
WebSocketManager: the WebSockets of an application, their rooms, and the greenlets that serve them.

What a member must offer stands in members.py. Rooms are rooms.py's, sending is broadcast.py's.

Greenlets: ``gwt-member <id>`` for each handler of track() and each member with received_message(),
in the pool; ``gwt-closer <id>`` while a member that has no begin_close() is being closed;
``gwt-room-writer <id>`` while messages wait for one whose send() waits; ``gwt-room-waiter <id>``
while a broadcast waits for a slow member.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import gevent
from gevent.pool import Pool

from ..errors import ConfigError, GwtError, LocalProtocolError, PoolExhausted
from ..net.waiting import Deadline, Signal
from .broadcast import Broadcaster
from .members import GOING_AWAY, INTERNAL_ERROR, NORMAL, Members
from .registry import CLOSE_TIMEOUT, GRACE
from .rooms import BroadcastResult, Member, Rooms, RoomsView, UnknownMember

__all__ = ["NODE", "WebSocketManager"]

logger = logging.getLogger("gwt.manager")

# The name of this process among those that share rooms; there are no others yet.
NODE = "local"

_POLICIES = ("close", "drop", "block")


class WebSocketManager(Members):
    """
    WebSockets by id, in rooms. What is sent to a room is encoded once, and waits for nobody.

    At most `max_connections` members, `max_room_size` in a room. `outbox_bytes` is what may wait
    for one member; then `slow_consumer` says what becomes of it: "close" (1013), "drop" (the
    message), "block" (the broadcast waits for it, at most `block_timeout` seconds, and then it is
    closed). Members whose peers were silent for `idle_timeout` seconds are closed with 1001. `pool`
    is a size, or a gevent Pool: where handlers run. Belongs to the hub that uses it.
    """

    def __init__(
        self,
        *,
        max_connections: int | None = None,
        max_room_size: int | None = None,
        outbox_bytes: int = 2**20,
        slow_consumer: str = "close",
        block_timeout: float | None = 5.0,
        backplane: None = None,
        idle_timeout: float | None = None,
        pool: int | Pool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for field, value in (
            ("max_connections", max_connections),
            ("max_room_size", max_room_size),
            ("outbox_bytes", outbox_bytes),
            ("pool", pool if isinstance(pool, int) else None),
        ):
            if value is None and field != "outbox_bytes":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(
                    f"{field} must be at least 1, not {value!r}.", field=field, value=value
                )
        if slow_consumer not in _POLICIES:
            raise ConfigError(
                f'slow_consumer must be "close", "drop" or "block", not {slow_consumer!r}.',
                field="slow_consumer",
                value=slow_consumer,
            )
        if backplane is not None:
            raise ConfigError(
                "There is no backplane yet: rooms are of one process.",
                field="backplane",
                value=backplane,
            )
        super().__init__(max_connections, Rooms(max_room_size), idle_timeout, clock)
        self._pool = pool if isinstance(pool, Pool) else Pool(pool)
        self._broadcaster = Broadcaster(
            outbox_bytes,
            slow_consumer,
            block_timeout,
            close=self._close_slow,
            gone=self._gone,
            failed=self._member_failed,
        )

        # Members whose messages are read here, and by which greenlet while it waits for one.
        self._readers: dict[Member, gevent.Greenlet | None] = {}

        # Whether start() was called, and not stop() since.
        self.running = False
        self._stopped = Signal()

        # What became of broadcasts: a sum of their results.
        self._counts = dict.fromkeys(BroadcastResult._fields, 0)
        self.broadcasts = 0

    def __repr__(self) -> str:
        return f"<WebSocketManager members={len(self._members)} rooms={len(self._rooms)}>"

    # Rooms

    def join_room(self, connection_id: Hashable, room: Hashable, *, reliable: bool = True) -> None:
        """
        Let a member into a room, which is made if need be. Idempotent.

        `reliable` is for members that can do otherwise; to a WebSocket everything is. Raises
        KeyError for an unknown id, as of one that has ended, LimitExceeded if the room is full.
        """
        self._check_thread()
        member = self._members.get(connection_id)
        if member is None:
            # A GwtError: a peer that has ended already fails no handler by that.
            raise UnknownMember(f"There is no member with the id {connection_id!r}.")
        self._rooms.join(member, room, reliable)

    def leave_room(self, connection_id: Hashable, room: Hashable) -> None:
        """Let a member out of a room. Idempotent; an unknown id or room is nothing to do."""
        self._check_thread()
        member = self._members.get(connection_id)
        if member is not None:
            self._rooms.leave(member, room)

    def get_room_connections(self, room: Hashable) -> set[Hashable]:
        """Return the ids of who is in a room, as a set of its own."""
        return self._rooms.ids(room)

    def get_connection_rooms(self, connection_id: Hashable) -> set[Hashable]:
        """Return the rooms that a member is in, as a set of its own."""
        member = self._members.get(connection_id)
        return set() if member is None else set(member.rooms)

    @property
    def rooms(self) -> Mapping[Hashable, frozenset[Hashable]]:
        """The ids of who is in each room, by name; read-only, and always as it is now."""
        return RoomsView(self._rooms)

    def presence(self, room: Hashable) -> dict[Hashable, str]:
        """Return who is in a room, in all processes: ids, and the node that each is on."""
        return dict.fromkeys(self._rooms.ids(room), NODE)

    # Sending

    def broadcast_to_room(
        self, room: Hashable, message: Any, *, exclude: Iterable[Any] = ()
    ) -> BroadcastResult:
        """
        Send a message, str or bytes-like, to all in a room but those in `exclude`: ids or members.

        Lets the loop run now and then if they are many, waits for broadcasts that were begun
        before, and with "block" for slow members; never for the network. Raises TypeError for what
        is no message, LocalProtocolError for text that is not Unicode; a member never raises.
        """
        return self._broadcast(self._rooms.members(room), message, exclude)

    def broadcast_to_all(self, message: Any, *, exclude: Iterable[Any] = ()) -> BroadcastResult:
        """Send a message to all members; see broadcast_to_room()."""
        return self._broadcast(list(self._members.values()), message, exclude)

    def broadcast(self, message: Any, binary: bool = False) -> BroadcastResult:
        """Send a message to all members, text as binary if `binary`; see broadcast_to_room()."""
        if binary and isinstance(message, str):
            _check_text(message)
            message = message.encode()
        return self.broadcast_to_all(message)

    def _broadcast(
        self, members: list[Member], message: Any, exclude: Iterable[Any]
    ) -> BroadcastResult:
        self._check_thread()
        if isinstance(message, str):
            if not message.isascii():
                _check_text(message)
        elif not isinstance(message, bytes):
            try:
                message = bytes(memoryview(message))
            except TypeError:
                raise TypeError(
                    f"A message is text or bytes, not {type(message).__name__}."
                ) from None
        if id(exclude) in self._known:
            # One member: to go through it would be to wait for its messages.
            exclude = (exclude,)
        if exclude:
            left_out = self._ids(exclude)
            members = [member for member in members if member.id not in left_out]
        self.broadcasts += 1
        result = self._broadcaster.deliver(members, message)
        for name, number in result._asdict().items():
            self._counts[name] += number
        return result

    def _ids(self, exclude: Iterable[Any]) -> set[Hashable]:
        # A string is one id, not its letters.
        ids = set()
        for item in (exclude,) if isinstance(exclude, (str, bytes)) else exclude:
            member = self._known.get(id(item))
            ids.add(item if member is None else member.id)
        return ids

    # Handlers

    def track(
        self,
        ws: Any,
        handler: Callable[[Any], object],
        connection_id: Hashable | None = None,
        *,
        replace: bool = False,
    ) -> gevent.Greenlet:
        """
        Take a WebSocket in, and run ``handler(ws)`` in the pool; returns that greenlet.

        When the handler returns the WebSocket is removed and closed; if it raises, which is logged,
        with 1011. Raises what add() raises, above all PoolExhausted: this does not wait.
        """
        self._check_pool(1 + hasattr(ws, "received_message"))
        key = self.add(ws, connection_id, replace=replace)
        return self._spawn(key, self._handle, key, ws, handler)

    def _check(self, ws: Any) -> None:
        if hasattr(ws, "received_message"):
            self._check_pool()

    def _added(self, member: Member) -> None:
        if hasattr(member.member, "received_message"):
            self._readers[member] = None
            self._spawn(member.id, self._read, member)

    def _removed(self, member: Member) -> None:
        # In the midst of a callback it is not killed, and ends after that.
        reader = self._readers.pop(member, None)
        if reader is not None:
            reader.kill(block=False)

    def _check_pool(self, needed: int = 1) -> None:
        if self._pool.size is not None and self._pool.free_count() < needed:
            raise PoolExhausted(
                f"All {self._pool.size} greenlets of the pool are in use.", limit=self._pool.size
            )

    def _spawn(self, key: Hashable, function: Callable[..., object], *args: Any) -> gevent.Greenlet:
        greenlet = self._pool.spawn(function, *args)
        greenlet.name = f"gwt-member {key}"
        self._greenlets.add(greenlet)
        return greenlet

    def _handle(self, key: Hashable, ws: Any, handler: Callable[[Any], object]) -> None:
        code, reason = GOING_AWAY, ""
        try:
            handler(ws)
            code = NORMAL
        except (Exception, gevent.Timeout) as exc:
            # Boundary to user code: a handler. That the WebSocket ended under it is no failure.
            code, reason = INTERNAL_ERROR, "internal error"
            if isinstance(exc, GwtError) and ws.is_closed:
                logger.debug("Member %s ended: %s", key, exc)
            else:
                self.errors += 1
                logger.exception("The handler of member %r failed.", key)
        finally:
            self.remove(ws)
            if not ws.is_closed:
                self._close_soon(ws, code, reason)

    def _read(self, member: Member) -> None:
        ws, readers = member.member, self._readers
        try:
            messages = iter(ws)
            while member in readers:
                readers[member] = gevent.getcurrent()
                try:
                    message = next(messages)
                except StopIteration:
                    self._gone(member)
                    break
                if member in readers:
                    readers[member] = None
                ws.received_message(message)
        except (Exception, gevent.Timeout) as exc:
            # Boundary to user code: a callback of a member.
            if isinstance(exc, GwtError) and ws.is_closed:
                logger.debug("Member %s ended: %s", member.id, exc)
                self._drop(member)
            else:
                self._callback_failed(member, "received_message()", exc)
        finally:
            readers.pop(member, None)

    # Life

    def start(self) -> None:
        """Have run() and join() wait for stop(); accept members again. Never waits; idempotent."""
        self.running = True
        self._shut = self._halted = False
        if self._members:
            self._enlist()

    def stop(self) -> None:
        """End the manager's own work and whoever is in run(); closes nobody. Idempotent."""
        self._check_thread()
        self.running = False
        self._halted = True
        self._discharge()
        self._stopped.notify()

    def join(self, timeout: float | None = None) -> None:
        """Wait until stop() was called, and handlers have ended; raises TimeoutError."""
        deadline = Deadline(timeout)
        while self.running:
            self._stopped.wait(deadline)
        ours = [each for each in self._greenlets if each is not gevent.getcurrent()]
        gevent.joinall(ours, timeout=deadline.remaining())
        if any(not each.dead for each in ours):
            raise TimeoutError(f"{len(self._greenlets)} handlers were still running.")

    def run(self) -> None:
        """Start, and wait until another greenlet calls stop()."""
        self.start()
        self.join()

    def shutdown(self, *, timeout: float = CLOSE_TIMEOUT) -> None:
        """Close all and stop; handlers that do not end within `timeout` seconds are killed."""
        self._shut = True
        deadline = Deadline(timeout)
        try:
            self.close_all(timeout=timeout)
        finally:
            self.stop()
            try:
                self.join(deadline.remaining())
            except TimeoutError:
                ours = [each for each in self._greenlets if each is not gevent.getcurrent()]
                gevent.killall(ours, timeout=GRACE)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.shutdown()

    def stats(self) -> dict[str, Any]:
        """Return counters: members, rooms, and what became of broadcasts."""
        return {
            "members": len(self._members),
            "rooms": len(self._rooms),
            "total_created": self.total_created,
            "total_closed": self.total_closed,
            "broadcasts": self.broadcasts,
            **self._counts,
            "slow_closed": self.slow_closed,
            "errors": self.errors,
        }


def _check_text(text: str) -> None:
    # Here, once, and not where it would look like a member that fails.
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"Text cannot be sent as UTF-8: {exc}.") from exc
