"""How much of a turn of the loop is for reading, and how many things begin in one."""

from __future__ import annotations

import socket
from itertools import pairwise

import gevent
import pytest

from gwt.net.turns import Pace, ReadingTime
from gwt.net.udp import UdpEndpoint
from gwt.net.waiting import Deadline
from tests.helpers import spawn
from tests.helpers.arrival import arrived

# A time no test waits for.
LONG = 0.016


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def time(clock):
    yield ReadingTime(lambda: clock[0])
    # The turn's end is a callback of the loop.
    gevent.sleep(0)


def test_all_sockets_share_the_time_of_a_turn(time, clock):
    assert time.until() == 100.004 and not time.spent
    clock[0] = 100.003
    assert time.until() == 100.004 and not time.spent
    clock[0] = 100.004
    assert time.spent
    # Who comes late reads a little all the same.
    assert time.until() == pytest.approx(100.0045)


def test_the_next_turn_has_its_own(time, clock):
    time.until()
    clock[0] = 100.005
    assert time.spent
    gevent.sleep(0)
    assert not time.spent
    assert time.until() == 100.009


def test_a_turn_that_does_not_end_keeps_nobody_from_reading(time, clock):
    time.until()
    clock[0] = 100.004 + LONG
    assert not time.spent
    assert time.until() == pytest.approx(clock[0] + 0.004)


def test_there_is_one_for_a_hub():
    assert ReadingTime.current() is ReadingTime.current()


@pytest.fixture
def endpoint(clock):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    endpoint = UdpEndpoint(sock, route=lambda *_: None, clock=lambda: clock[0])
    yield endpoint
    endpoint.close()
    gevent.sleep(0)


def test_an_endpoint_catches_up_while_there_is_time(endpoint, clock):
    endpoint.catch_up()
    endpoint.catch_up()
    assert endpoint.stats["wakeups"] == 2 and not endpoint.behind
    clock[0] += 0.005
    endpoint.catch_up()
    # Its socket was empty in this turn: a thousand late timers need not wait for the next one.
    assert endpoint.stats["wakeups"] == 2 and not endpoint.behind
    gevent.sleep(0)
    endpoint.catch_up()
    assert endpoint.stats["wakeups"] == 3 and not endpoint.behind


def test_an_endpoint_looks_once_although_others_have_used_up_the_time(endpoint, clock):
    endpoint._time.until()
    clock[0] += 0.005
    for _ in range(3):
        endpoint.catch_up()
    assert endpoint.stats["wakeups"] == 1 and not endpoint.behind


def test_an_endpoint_that_is_behind_remains_so_until_the_next_turn(endpoint, clock):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(100):
            sender.sendto(b"noise", endpoint.address)
        arrived(endpoint._sock, 100)
    endpoint.catch_up()
    assert endpoint.behind
    clock[0] += 0.005
    endpoint.catch_up()
    assert endpoint.stats["wakeups"] == 1 and endpoint.behind
    gevent.sleep(0)
    endpoint.catch_up()
    assert endpoint.stats["datagrams_received"] == 100 and not endpoint.behind


class TestPace:
    def test_so_many_begin_in_a_turn_and_in_order(self):
        pace, begun, turns = Pace(3), [], []

        def count():
            while len(begun) < 20:
                turns.append(len(begun))
                gevent.get_hub().wait(gevent.get_hub().loop.timer(0))

        def begin(number):
            pace.wait(Deadline(5))
            begun.append(number)

        counter = spawn(count)
        greenlets = [spawn(begin, number) for number in range(20)]
        for each in [*greenlets, counter]:
            each.get()
        assert begun == list(range(20))
        steps = [after - before for before, after in pairwise(turns)]
        # What the counter sees of a turn is what began since its own last one.
        assert len(turns) >= 6 and max(steps) <= 6

    def test_a_lone_one_does_not_wait(self):
        Pace(1).wait(Deadline(0))

    def test_the_deadline_is_kept(self):
        pace = Pace(1)
        pace.wait()
        with pytest.raises(TimeoutError):
            pace.wait(Deadline(0))
        pace.wait(Deadline(5))

    def test_one_that_leaves_takes_nobodys_place(self):
        pace, begun = Pace(1), []
        pace.wait()
        first = spawn(pace.wait)
        second = spawn(lambda: begun.append(pace.wait()))
        gevent.sleep(0)
        first.kill()
        second.get()
        assert begun == [None]
