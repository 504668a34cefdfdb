"""
Rooms: who hears whom. An index in both directions, and nothing that sends or waits.

A room is a name and the members that joined it; it exists as long as there is one. Leaving one
room, or all, costs as much as there are own rooms, however many others exist.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import GwtError, LimitExceeded

__all__ = ["BroadcastResult", "Member", "Rooms", "RoomsView", "UnknownMember"]


class UnknownMember(GwtError, KeyError):
    """Nobody has this id: it never was a member, or has ended and left."""

    # Not KeyError's, which shows the text quoted.
    __str__ = Exception.__str__


class BroadcastResult(NamedTuple):
    """What became of a broadcast; the sum is the number of members that it was addressed to."""

    # Taken by the kernel, or by QUIC.
    sent: int

    # Waits for its turn, or for a member that is slow.
    queued: int

    # Not sent, because too much waits for the member, or because it fits in no datagram.
    dropped: int

    # Members that are gone, or were closed because they are slow.
    closed: int


class Member:
    """One member of a manager: its id, what sends to it, its rooms."""

    __slots__ = (
        "_unreliable",
        "blocked",
        "ended",
        "id",
        "kind",
        "member",
        "outlet",
        "rooms",
        "turn",
    )

    def __init__(self, id: Hashable, member: Any, outlet: Any) -> None:
        self.id = id
        self.member = member

        # What sends to it without waiting (outlets.py), and how messages are encoded for that.
        self.outlet = outlet
        self.kind = outlet.kind

        # Its rooms, and whether what is sent there has to arrive.
        self.rooms: dict[Hashable, bool] = {}

        # What its end calls.
        self.ended: Callable[[Any], object] | None = None

        # The turn in which something was offered to it last (broadcast.py).
        self.turn = -1

        # Broadcasts that wait for it to have room, in their order; nobody's tuple while none does.
        self.blocked: tuple[object, ...] = ()

        # The same member for rooms in which what is sent need not arrive.
        self._unreliable: Member | None = None

    def by(self, reliable: bool) -> Member:
        """Return what a room keeps of this member: itself, or one with an unreliable outlet."""
        if reliable or not hasattr(self.outlet, "unreliable"):
            return self
        if self._unreliable is None:
            self._unreliable = Member(self.id, self.member, self.outlet.unreliable)
        return self._unreliable

    def __repr__(self) -> str:
        return f"<Member {self.id!r} rooms={len(self.rooms)}>"


class Rooms:
    """The rooms of a manager, by name."""

    __slots__ = ("_rooms", "max_size")

    def __init__(self, max_size: int | None = None) -> None:
        # Members by id, by the name of their room; none is empty.
        self._rooms: dict[Hashable, dict[Hashable, Member]] = {}
        self.max_size = max_size

    def __len__(self) -> int:
        return len(self._rooms)

    def names(self) -> list[Hashable]:
        """Return the names of all rooms, as a list of its own."""
        return list(self._rooms)

    def members(self, room: Hashable) -> list[Member]:
        """Return who is in a room now, as a list of its own; an unknown room is an empty one."""
        return list(self._rooms.get(room, {}).values())

    def ids(self, room: Hashable) -> set[Hashable]:
        """Return the ids of who is in a room, as a set of its own."""
        return set(self._rooms.get(room, ()))

    def join(self, member: Member, room: Hashable, reliable: bool) -> None:
        """Let a member in; again only changes `reliable`. Raises LimitExceeded."""
        members = self._rooms.get(room)
        if members is None:
            members = {}
        elif self._full(members) and member.id not in members:
            raise LimitExceeded(
                f"The room {room!r} is full: it has {self.max_size} members.", limit=self.max_size
            )
        members[member.id] = member.by(reliable)
        self._rooms[room] = members
        member.rooms[room] = reliable

    def _full(self, members: dict[Hashable, Member]) -> bool:
        return self.max_size is not None and len(members) >= self.max_size

    def leave(self, member: Member, room: Hashable) -> None:
        """Let a member out, if it is in there."""
        if member.rooms.pop(room, None) is None:
            return
        members = self._rooms[room]
        del members[member.id]
        if not members:
            del self._rooms[room]

    def leave_all(self, member: Member) -> None:
        """Let a member out of all its rooms."""
        for room in list(member.rooms):
            self.leave(member, room)


class RoomsView(Mapping[Hashable, frozenset[Hashable]]):
    """Rooms as a mapping: their names, and the ids of who is in there now."""

    __slots__ = ("_rooms",)

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def __getitem__(self, room: Hashable) -> frozenset[Hashable]:
        ids = self._rooms.ids(room)
        if not ids:
            raise KeyError(room)
        return frozenset(ids)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._rooms.names())

    def __len__(self) -> int:
        return len(self._rooms)

    def __repr__(self) -> str:
        return f"<RoomsView {len(self)} rooms>"
