"""
What of gwt's is measured without a peer or a network: CPU time of this thread.

The members are WebSockets like any others, on connections that are none. Says what it is asked
for on its command line, and what it found as one JSON object.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from answers import reply

import gwt
from gwt.config import ServerConfig
from gwt.manager import ConnectionManager
from gwt.protocol.wshandshake import Agreement

CONFIG = ServerConfig()

# How often a thing is timed; the median counts.
TIMES = 25


class Quiet:
    """A connection from which nothing comes."""

    queued = 0
    remote_address = local_address = "127.0.0.1", 0

    def give_up_after(self, seconds: float) -> None:
        pass


def member() -> gwt.WebSocket:
    request: Any = None
    connection: Any = Quiet()
    return gwt.WebSocket.over(connection, Agreement(), request, CONFIG, is_client=False)


def spent(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def seconds(work: Callable[[], object]) -> float:
    """Return what a thing costs."""
    return statistics.median(spent(work) for _ in range(TIMES))


def reaper(quick: bool) -> dict[str, float]:
    """Return milliseconds for the slowest pass over 20,000 members; none is idle, or closed."""
    rooms = gwt.WebSocketManager(idle_timeout=3600.0)
    connections = ConnectionManager(max_connections=None, connection_idle_timeout=3600.0)
    connections.start()
    for _ in range(1000 if quick else 20_000):
        ws = member()
        rooms.add(ws)
        connections.add_connection(ws)
    settle()
    passes = {
        "idle": rooms.close_idle,
        "closed": rooms.cleanup_closed,
        "connections_idle": connections.close_idle,
        "connections_closed": connections.cleanup_closed_resources,
    }
    found = {name: 1000 * seconds(each) for name, each in passes.items()}
    return {**found, "ms": max(found.values())}


def joining(quick: bool) -> dict[str, float]:
    """Return microseconds for joining and leaving a room where there are few, and many."""
    own = [f"own room {number}" for number in range(100)]
    managers = {}
    for name, count in ("few", 10), ("many", 1000 if quick else 100_000):
        rooms = managers[name] = gwt.WebSocketManager()
        other = rooms.add(member())
        for number in range(count):
            rooms.join_room(other, f"room {number}")
    settle()

    def join_and_leave(rooms: gwt.WebSocketManager, key: object) -> None:
        for room in own:
            rooms.join_room(key, room)
        for room in own:
            rooms.leave_room(key, room)

    found: dict[str, list[float]] = {"few": [], "few_all": [], "many": [], "many_all": []}
    # In turn, so that whatever else the machine does hits both.
    for _ in range(TIMES):
        for name, rooms in managers.items():
            ws = member()
            key = rooms.add(ws)
            found[name].append(spent(partial(join_and_leave, rooms, key)))
            for room in own:
                rooms.join_room(key, room)
            found[f"{name}_all"].append(spent(partial(rooms.remove, ws)))
    costs = {name: 1e6 * statistics.median(each) / len(own) for name, each in found.items()}
    return {**costs, "times": max(ratio(found, ""), ratio(found, "_all"))}


def ratio(found: dict[str, list[float]], what: str) -> float:
    pairs = zip(found["many" + what], found["few" + what], strict=True)
    return statistics.median(many / few for many, few in pairs)


def instances(quick: bool) -> dict[str, float]:
    """Return microseconds for asking for an instance that is there, one of 100,000."""
    count = 1000 if quick else 100_000
    asked = [f"scope {number}" for number in range(0, count, count // 500)]
    server = gwt.StatelessServer(lambda scope, receive, send: receive(), count)
    for number in range(count):
        server.get_or_create_application_instance(f"scope {number}", {})
    settle()

    def ask() -> None:
        for scope_id in asked:
            server.get_or_create_application_instance(scope_id, {})

    return {"us": 1e6 * seconds(ask) / len(asked)}


def settle() -> None:
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    row, quick = sys.argv[1], "--quick" in sys.argv
    reply({"reaper": reaper, "joining": joining, "instances": instances}[row](quick))
