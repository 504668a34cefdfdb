"""gwt.protocol.datagrams: what the queue of outgoing datagrams drops, and when."""

from __future__ import annotations

from collections import deque

from gwt.protocol.datagrams import DatagramQueue

BIG = 10_000


def test_full_queue_drops_the_oldest_and_counts_it():
    waiting: deque[bytes] = deque()
    queue = DatagramQueue(waiting, 3, 1.0)
    for number in range(5):
        queue.push(b"%d" % number)
    assert list(waiting) == [b"2", b"3", b"4"]
    assert queue.dropped == 2


def test_datagram_is_dropped_when_it_has_waited_too_long():
    waiting: deque[bytes] = deque()
    queue = DatagramQueue(waiting, 9, 1.0)
    queue.push(b"old")
    queue.before_sending(10.0, BIG)
    queue.after_sending()
    queue.push(b"new")
    queue.before_sending(10.5, BIG)
    queue.after_sending()
    assert list(waiting) == [b"old", b"new"]
    queue.before_sending(11.2, BIG)
    assert list(waiting) == [b"new"]
    queue.before_sending(11.6, BIG)
    assert not waiting
    assert queue.dropped == 2


def test_age_is_that_of_each_datagram_while_others_are_sent():
    waiting: deque[bytes] = deque()
    queue = DatagramQueue(waiting, 9, 1.0)
    queue.push(b"a")
    queue.before_sending(0.0, BIG)
    waiting.popleft()
    queue.after_sending()
    queue.push(b"b")
    queue.before_sending(0.9, BIG)
    queue.after_sending()
    queue.before_sending(1.5, BIG)
    assert list(waiting) == [b"b"]
    assert queue.dropped == 0


def test_age_is_right_after_the_oldest_was_pushed_out():
    waiting: deque[bytes] = deque()
    queue = DatagramQueue(waiting, 2, 1.0)
    queue.push(b"a")
    queue.before_sending(0.0, BIG)
    queue.push(b"b")
    queue.before_sending(0.9, BIG)
    queue.push(b"c")
    queue.before_sending(1.5, BIG)
    assert list(waiting) == [b"b", b"c"]


def test_datagram_that_does_not_fit_any_more_does_not_hold_up_those_behind_it():
    waiting: deque[bytes] = deque()
    queue = DatagramQueue(waiting, 9, 1.0)
    queue.push(bytes(100))
    queue.push(bytes(10))
    queue.before_sending(0.0, 50)
    assert list(waiting) == [bytes(10)]
    assert queue.dropped == 1
