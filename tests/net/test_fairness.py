"""A receiver that has too much to do gives way: to other receivers, and to greenlets."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gevent

from gwt.net.timers import in_time
from tests.net.test_udp import Clock, Notebook, eventually, net

__all__ = ["net"]


def test_in_time_takes_one_at_least_and_leaves_the_rest():
    clock = Clock()
    waiting = iter(range(5))
    assert list(in_time(waiting, clock.time, clock)) == [0]
    taken = []
    for item in in_time(waiting, clock.time + 2, clock):
        taken.append(item)
        clock.time += 1
    assert taken == [1, 2]
    assert list(in_time(waiting, clock.time + 1, clock)) == [3, 4]
    assert list(waiting) == []


class Slow(Notebook):
    """Takes so many datagrams at a time."""

    def __init__(self, name: str, most: int, log: list[Any], clock: Clock) -> None:
        super().__init__(name, log)
        self.most, self.clock = most, clock

    def receive(self, datagrams: list[bytes], address: Any, local: str | None) -> list[bytes]:
        super().receive(datagrams[: self.most], address, local)
        self.clock.time += 0.003
        return datagrams[self.most :]


def test_what_a_receiver_has_no_time_for_comes_again_behind_the_others(net):
    clock, log = Clock(), []
    busy, other = Slow("busy", 4, log, clock), Slow("other", 100, log, clock)
    endpoint = net.endpoint(
        route=lambda data, *_: busy if data.startswith(b"b") else other, clock=clock
    )
    sender = net.plain()
    for number in range(10):
        sender.sendto(b"b%d" % number, endpoint.address)
    sender.sendto(b"other", endpoint.address)
    net.arrived(endpoint, 11)
    endpoint.drain()
    # Two calls took more than the time of one wake-up; the rest waits for the next turn.
    assert log == [
        ("busy", [b"b0", b"b1", b"b2", b"b3"]),
        ("busy", "flush"),
        ("other", [b"other"]),
    ]
    assert endpoint.behind
    eventually(lambda: len(busy.datagrams) == 10 and busy.flushes == 3)
    assert busy.datagrams == [b"b%d" % number for number in range(10)]
    # Nothing was read meanwhile: what comes later stays behind what came before.
    assert endpoint.stats["receiver_errors"] == 0


def test_greenlets_run_between_the_pieces_of_a_flood(net):
    clock, log = Clock(), []
    busy = Slow("busy", 1, log, clock)
    endpoint = net.endpoint(busy, clock=clock)
    sender = net.plain()
    for _ in range(32):
        sender.sendto(b"x", endpoint.address)
    net.arrived(endpoint, 32)
    endpoint.start()
    turns = []

    def tick() -> None:
        while len(busy.datagrams) < 32:
            turns.append(len(busy.datagrams))
            gevent.sleep(0)

    gevent.spawn(tick).join(timeout=5)
    # Two pieces of 3 ms are what a turn of the loop has time for.
    assert max(b - a for a, b in pairwise(turns)) <= 2
