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


def test_all_that_do_not_fit_any_more_are_dropped_wherever_they_wait():
    waiting: deque[bytes] = deque()
    queue = DatagramQueue(waiting, 9, 1.0)
    sizes = (10, 60, 20, 50, 51, 30)
    for size in sizes[:3]:
        queue.push(bytes(size))
    queue.before_sending(0.0, 100)
    for size in sizes[3:]:
        queue.push(bytes(size))
    queue.before_sending(0.5, 50)
    assert [len(data) for data in waiting] == [10, 20, 50, 30]
    assert queue.dropped == 2
    # Each keeps its age.
    queue.before_sending(1.2, 100)
    assert [len(data) for data in waiting] == [50, 30]
    # What is pushed when more fits again is looked at as well.
    queue.push(bytes(60))
    queue.before_sending(1.3, 40)
    assert [len(data) for data in waiting] == [30]
    assert queue.dropped == 6
