"""
What every peer of a bench tells about its process, and how: one JSON object a line.

A peer imports this, what lies beside it, and what it measures, so that it can run in an
environment of its own. It is driven on its stdin, answers each line there with one on stdout,
and leaves when stdin ends.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from typing import Any

__all__ = ["measure", "reply"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


def measure(what: str) -> dict[str, float] | None:
    """
    Return the answer to a question about this process, or None if `what` is none.

    ``usage`` is ``{"cpu": seconds of CPU so far}``, ``memory`` is ``{"rss": bytes resident}``.
    """
    if what == "usage":
        spent = resource.getrusage(resource.RUSAGE_SELF)
        return {"cpu": spent.ru_utime + spent.ru_stime}
    if what == "memory":
        gc.collect()
        with open("/proc/self/statm") as file:
            return {"rss": int(file.read().split()[1]) * _PAGE}
    return None


def reply(answer: dict[str, Any]) -> None:
    """Answer a command."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
