"""
Descriptors: how many this process may have open, and more of them.

Asks the operating system; knows nothing of what they are for.
"""

from __future__ import annotations

import errno
import resource

__all__ = ["explained", "raise_descriptor_limit"]


def raise_descriptor_limit() -> int:
    """
    Raise this process's limit on open descriptors as far as it may, and return it.

    Many systems begin with 1,024, which is the soft limit; every process may raise it up to the
    hard one. Each WebSocket is a descriptor; WebTransport sessions of clients share some sockets.
    Children inherit the limit; select.select() fails for descriptors above 1,023. Never waits.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # What the kernel allows may be less than what "unlimited" says.
        wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
        if soft != resource.RLIM_INFINITY and soft < wanted:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return wanted
            except (OSError, ValueError):
                pass
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


def explained(exc: BaseException) -> str:
    """Return what an error says; of a want of descriptors also what there is, and what to do."""
    text = str(getattr(exc, "strerror", None) or exc)
    if isinstance(exc, OSError) and exc.errno == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        more = (
            "more processes have more"
            if soft == hard
            else (f"gwt.raise_descriptor_limit() raises that to {hard}")
        )
        text += f" ({soft} descriptors are this process's limit; {more})"
    return text
