"""
The slots of one key of a PooledClient: which sessions are idle, what is taken, who waits. No I/O.

A slot is a session that lives, idle ones too, or a connect under way. Whoever waits does so only
while no session is idle and no slot is free; what becomes free is given to the first, which finds
it when it runs. Nothing here waits but the greenlet in ``Waiter.wait()``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from ..net.waiting import Deadline, Signal
from .target import parse_url
from .websocket import SCHEMES

__all__ = ["CLOSED", "SLOT", "Key", "Place", "Waiter", "key_of"]

# What a waiter is given instead of a session: leave to connect, or the news that it is all over.
SLOT: Final = object()
CLOSED: Final = object()

# What sessions have to have in common to be anybody's.
Key = tuple[Any, ...]


def key_of(url: str) -> Key:
    """Return the origin, zone, credentials and path, with the query; raises ConfigError."""
    scheme = url.partition(":")[0].lower() if isinstance(url, str) else ""
    target = parse_url(url, {"https": 443, **SCHEMES}, users=scheme in SCHEMES)
    return *target.place, target.zone, target.authorization, target.path


class Waiter:
    """A greenlet that waits, and what it was given: a session, SLOT or CLOSED; None so far."""

    __slots__ = ("_signal", "given")

    def __init__(self) -> None:
        self.given: Any = None
        self._signal = Signal()

    def give(self, what: Any) -> None:
        """Does not switch."""
        self.given = what
        self._signal.notify()

    def wait(self, deadline: Deadline) -> None:
        """Wait until something is given; raises TimeoutError at the deadline."""
        while self.given is None:
            self._signal.wait(deadline)


class Place:
    """The sessions of one key."""

    __slots__ = ("connecting", "idle", "key", "size", "taken", "waiting")

    def __init__(self, key: Key, size: int) -> None:
        self.key = key
        self.size = size

        # When each came back, the last one last.
        self.idle: dict[Any, float] = {}

        # Slots; and how many of them are connects.
        self.taken = 0
        self.connecting = 0
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()

    def __str__(self) -> str:
        """Return the URL, with the port, and without credentials."""
        scheme, host, port, *_, path = self.key
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{path}"

    @property
    def out(self) -> int:
        """How many sessions are with somebody, or on their way to one who waited."""
        return self.taken - self.connecting - len(self.idle)

    def debug_state(self) -> dict[str, Any]:
        """Return what there is."""
        return {
            "url": str(self),
            "out": self.out,
            "idle": len(self.idle),
            "connecting": self.connecting,
            "waiting": len(self.waiting),
        }

    def take_slot(self) -> bool:
        """Take a slot, if one is free; while somebody waits none is."""
        if self.taken >= self.size:
            return False
        self.taken += 1
        return True

    def free_slot(self) -> None:
        """Return a slot: to who waits first, if anybody does."""
        self.taken -= 1
        while self.waiting and self.take_slot():
            self.give_first(SLOT)

    def queue(self, first: bool) -> Waiter:
        """Return a new waiter, behind all others, or before them."""
        waiter = Waiter()
        self.waiting[waiter] = None
        if first:
            self.waiting.move_to_end(waiter, last=False)
        return waiter

    def give_first(self, what: Any) -> None:
        """Give something to who waits first."""
        self.waiting.popitem(last=False)[0].give(what)
