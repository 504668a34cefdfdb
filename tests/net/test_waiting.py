"""What greenlets block on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import gevent
import gevent.subprocess
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwt.errors import ConcurrencyError
from gwt.net.waiting import ByteQueue, Deadline, ReadGuard, Signal
from tests.helpers import spawn

ROOT = Path(__file__).resolve().parents[2]


def test_notify_wakes_everybody_who_waits_and_nobody_later():
    signal = Signal()
    waiting = [spawn(signal.wait) for _ in range(3)]
    gevent.idle()
    signal.notify()
    for task in waiting:
        task.get(timeout=1)
    with pytest.raises(TimeoutError):
        signal.wait(Deadline(0.01))
    assert not signal._waiters


def test_the_last_moment_of_a_deadline_is_no_warning_of_libuvs():
    pytest.importorskip("gevent.libuv.loop")
    script = """
from gevent import get_hub
from gwt.net.waiting import Deadline, Signal

get_hub()
try:
    Signal().wait(Deadline(0.0009))
except TimeoutError as exc:
    print(exc)
"""
    done = gevent.subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GEVENT_LOOP": "libuv-cffi"},
        stdout=gevent.subprocess.PIPE,
        stderr=gevent.subprocess.PIPE,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("timed out after 0.0009 s\n", "")


def test_notify_does_not_switch():
    signal = Signal()
    order = []

    def wait():
        signal.wait()
        order.append("woken")

    task = spawn(wait)
    gevent.idle()
    signal.notify()
    order.append("notified")
    task.get(timeout=1)
    assert order == ["notified", "woken"]


def test_a_timeout_says_how_long_and_leaves_nothing():
    signal = Signal()
    with pytest.raises(TimeoutError, match=r"0\.01"):
        signal.wait(Deadline(0.01))
    assert not signal._waiters


def test_a_deadline_in_the_past_is_now():
    with pytest.raises(TimeoutError):
        Signal().wait(Deadline(-1))


def test_a_killed_waiter_leaves_nothing_and_disturbs_nobody():
    signal = Signal()
    doomed = gevent.spawn(signal.wait)
    other = spawn(signal.wait)
    gevent.idle()
    signal.notify()
    doomed.kill()
    other.get(timeout=1)
    assert not signal._waiters


def test_a_waiter_that_is_timed_out_from_outside_is_not_woken_later():
    signal = Signal()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        signal.wait()
    signal.notify()
    gevent.idle()


def test_one_reader_at_a_time():
    guard = ReadGuard("stream")
    with guard, pytest.raises(ConcurrencyError, match="stream"), guard:
        pass
    with guard:
        pass


@given(st.lists(st.binary(max_size=50), max_size=20), st.lists(st.integers(0, 60), max_size=40))
def test_bytes_come_out_as_they_went_in(pieces, sizes):
    queue = ByteQueue()
    for piece in pieces:
        queue.feed(piece)
    whole = b"".join(pieces)
    assert len(queue) == len(whole)
    taken = b"".join(queue.take(size) for size in sizes)
    assert taken + queue.take(10_000) == whole
    assert len(queue) == 0


@given(
    st.lists(st.sampled_from([b"a", b"ab", b"\r", b"\n", b"\r\n", b"xyz"]), max_size=30),
    st.sampled_from([b"\n", b"\r\n", b"ab"]),
)
def test_a_separator_is_found_wherever_it_is_cut(pieces, separator):
    queue = ByteQueue()
    whole = b""
    for piece in pieces:
        queue.feed(piece)
        whole += piece
        found = whole.find(separator)
        assert queue.find(separator) == (found + len(separator) if found >= 0 else -1)


def test_many_small_pieces_weigh_what_they_weigh():
    queue = ByteQueue()
    for _ in range(10_000):
        queue.feed(b"x")
    assert queue._buffer.__sizeof__() < 20_000
