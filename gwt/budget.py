"""
The account of unacknowledged bytes that all connections of a hub share.

One number and where it is kept; what it limits is decided in protocol/streams.py.
"""

from __future__ import annotations

from gevent.hub import get_hub

from .protocol.seam import SendBudget

__all__ = ["send_budget"]


def send_budget() -> SendBudget:
    """Return the account that all connections of the current hub share."""
    hub = get_hub()
    budget: SendBudget | None = getattr(hub, "gwt_send_budget", None)
    if budget is None:
        budget = hub.gwt_send_budget = SendBudget()
    return budget
