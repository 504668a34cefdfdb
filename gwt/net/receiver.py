"""
Who is behind a UdpEndpoint, as the endpoint sees it: an interface, and a word for who may come.

No code but a bound: udp.py calls it, and floor 3 has what implements it.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

from gwt.net.udpsocket import Address

__all__ = ["NEWCOMER", "TURN", "NewcomerType", "Receiver"]

# How long one receiver looks at datagrams in a turn: a packet of QUIC can hold hundreds of frames.
TURN: Final = 0.002


class Receiver(Protocol):
    """Who gets datagrams: quiet, hashable by identity, and written not to raise."""

    def receive(
        self, datagrams: list[bytes], address: Address, local: str | None
    ) -> list[bytes] | None:
        """
        Take datagrams from `address` to our address `local` (None: the bound one).

        Returns those that it has no time for now: they come again behind everybody else's.
        """

    def flush(self) -> None:
        """Send what there is to send, once."""


class NewcomerType(enum.Enum):
    """The type of NEWCOMER, which route() returns for a datagram that may begin something."""

    NEWCOMER = "newcomer"


NEWCOMER: Final = NewcomerType.NEWCOMER
