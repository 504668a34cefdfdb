"""
The end of aioquic's connection: what a dead one would hold until the garbage collector comes.

Part of the seam of quic.py. A connection of aioquic's is a knot of references to itself, 80 KiB
of it keys, TLS and buffers that the collector does not see the weight of.
"""

from __future__ import annotations

from aioquic.quic.connection import QuicConnectionState

from .quicconnection import Connection

__all__ = ["release"]


def release(connection: Connection) -> None:
    """Cut the knot and drop what is heavy. What is asked of it later has an answer all the same."""
    connection._state = QuicConnectionState.TERMINATED
    # It may go before its closing period is over: nothing is due any more.
    connection._close_at = None
    for space in connection._spaces.values():
        # Each names who is to hear of its acknowledgement.
        space.sent_packets.clear()
    connection._loss.spaces = []
    connection._loss._send_probe = _nothing
    connection._short_keys = connection._short_space = None
    for held in (
        connection._cryptos,
        connection._cryptos_initial,
        connection._crypto_buffers,
        connection._crypto_streams,
        connection._spaces,
        connection._streams,
        connection._limits_due,
    ):
        held.clear()
    connection._streams_queue.clear()
    if hasattr(connection, "tls"):
        del connection.tls


def _nothing() -> None:
    pass
