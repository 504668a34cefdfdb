"""
What tools/bench clients and a peer's process say to each other: one JSON object a line.

A peer is a client, ``peer_*.py PORT SECURE CAFILE``, of two servers on 127.0.0.1: the first one's
certificate is not verified, that of the other, on port SECURE, by the authorities in CAFILE. It
answers

    {"do": "usage"}, {"do": "memory"}                   as ../answers.py has it
    {"do": "establish", "count": n, "at_once": m, "verify": v}
                                                        sessions, each on its own connection
    {"do": "close"}                                     closes what it has opened
    {"do": "hold", "kind": "session", "count": n}       opens so many and keeps them; or "websocket"
    {"do": "pooled", "count": n}                        {"seconds": CPU of one get and return}

with {} unless it says otherwise; who cannot do one leaves.
"""

from __future__ import annotations

__all__ = ["ECHO"]

# Where a session and a WebSocket are accepted.
ECHO = "/echo"
