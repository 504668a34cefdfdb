"""What rooms send to sessions by, on a session whose credit and room the test grants."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gwt.errors import SessionClosed, StreamStopped
from gwt.net.waiting import Signal
from gwt.protocol.messages import MessageReader
from gwt.session_outlets import MessageOutlet, StreamOutlet

LIMIT = 1000


class Stream:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.data = b""
        self.bytes_sent = 0
        self.over = self.stopped = self.reset_ = False
        self._callbacks: list[Any] = []

    def _check(self) -> None:
        if self.session.is_closed:
            raise SessionClosed(0, "", True)
        if self.stopped:
            raise StreamStopped(0)

    def _take(self, data: bytes) -> None:
        self.data += data
        self.bytes_sent += len(data)
        self.session.room -= len(data)

    def try_write(self, data: bytes, *, end: bool = False) -> bool:
        self._check()
        if len(data) > self.session.room:
            return False
        self._take(data)
        if end:
            self.finish()
        return True

    def write(self, data: bytes) -> None:
        while data:
            self._check()
            part, data = data[: self.session.room], data[self.session.room :]
            self._take(part)
            if data:
                self.session.changed.wait()

    def write_all(self, data: bytes) -> None:
        self.write(data)
        self.finish()

    def finish(self) -> None:
        self.over = True

    def reset(self) -> None:
        self.reset_ = True
        self.end()

    def end(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def on_end(self, callback: Any) -> None:
        self._callbacks.append(callback)


class Session:
    id = "fake"

    def __init__(self) -> None:
        self.is_closed = False
        self.credit = self.room = 0
        self.opened: list[Stream] = []
        self.changed = Signal()
        self.streams = self

    @property
    def is_ready(self) -> bool:
        return not self.is_closed

    def add_stream(self, stream: Stream) -> None:
        assert stream in self.opened

    def open_now(self, unidirectional: bool) -> Stream | None:
        assert unidirectional
        if self.is_closed:
            raise SessionClosed(0, "", True)
        if not self.credit:
            return None
        self.credit -= 1
        self.opened.append(Stream(self))
        return self.opened[-1]

    def wait_credit(self, deadline: Any) -> None:
        self.changed.wait(deadline)

    def grant(self, credit: int = 0, room: int = 0) -> None:
        self.credit += credit
        self.room += room
        self.changed.notify()

    def end(self) -> None:
        self.is_closed = True
        for stream in self.opened:
            stream.end()
        self.changed.notify()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.one_of(st.text(max_size=300), st.binary(max_size=300))),
        st.tuples(st.just("later"), st.one_of(st.text(max_size=300), st.binary(max_size=300))),
        st.tuples(st.just("send"), st.none()),
        st.tuples(st.just("room"), st.integers(1, 700)),
        st.tuples(st.just("credit"), st.integers(1, 3)),
        st.tuples(st.just("run"), st.none()),
        st.tuples(st.just("acknowledge"), st.none()),
    ),
    max_size=60,
)


def play(outlet: Any, session: Session, steps: Any) -> list[Any]:
    """Do what is drawn; return the messages that were accepted, and check what was said of each."""
    accepted, size = [], 0
    for what, value in steps:
        match what:
            case "offer" | "later":
                frame = outlet.encode_for(outlet.kind, value)
                offer = outlet.offer if what == "offer" else outlet.offer_later
                outcome = offer(frame, LIMIT)
                assert outcome in ("sent", "queued", "full")
                if outcome != "full":
                    accepted.append(value)
                    size += len(frame)
                if outcome == "sent":
                    # So was all before it.
                    assert sum(len(stream.data) for stream in session.opened) == size
            case "send":
                outlet.send_offered()
            case "room":
                session.grant(room=value)
            case "credit":
                session.grant(credit=value)
            case "run":
                gevent.sleep(0)
            case "acknowledge":
                for stream in session.opened:
                    if stream.over:
                        stream.end()
    # Now the turn ends, and the peer takes everything.
    outlet.send_offered()
    while outlet._writer is not None:
        session.grant(credit=1, room=1000)
        for stream in session.opened:
            if stream.over:
                stream.end()
        gevent.sleep(0)
    return accepted


@settings(deadline=None)
@given(STEPS)
def test_what_was_accepted_arrives_in_order_on_one_stream(steps):
    session = Session()
    outlet = MessageOutlet(session)
    accepted = play(outlet, session, steps)
    assert len(session.opened) <= 1
    data = b"".join(stream.data for stream in session.opened)
    assert MessageReader(None).feed(data) == accepted
    assert outlet._queued == 0
    outlet.stop()
    assert all(stream.over and not stream.reset_ for stream in session.opened)


@settings(deadline=None)
@given(STEPS)
def test_what_was_accepted_has_a_stream_each(steps):
    session = Session()
    outlet = StreamOutlet(session)
    accepted = play(outlet, session, steps)
    payloads = [each.encode() if isinstance(each, str) else each for each in accepted]
    assert [stream.data for stream in session.opened] == payloads
    assert all(stream.over for stream in session.opened)
    assert outlet._queued == 0
    for stream in session.opened:
        stream.end()
    assert outlet._unacknowledged == 0
    outlet.stop()


KINDS = pytest.mark.parametrize("kind", [MessageOutlet, StreamOutlet])


@KINDS
@pytest.mark.parametrize("size", [0, 1, 100])
def test_no_more_waits_than_the_limit_however_small_it_is(kind, size):
    session = Session()
    outlet = kind(session)
    frame = outlet.encode_for(outlet.kind, bytes(size))
    outcomes = [outlet.offer(frame, LIMIT) for _ in range(100)]
    waiting = outcomes.count("queued")
    assert 2 < waiting <= LIMIT / 64 + 1
    assert outcomes == ["queued"] * waiting + ["full"] * (100 - waiting)
    outlet.stop()
    gevent.sleep(0)


@KINDS
@pytest.mark.parametrize("credit", [0, 1])
def test_the_end_of_a_session_ends_the_writer(kind, credit):
    session = Session()
    session.grant(credit=credit)
    outlet = kind(session)
    assert outlet.offer(b"message", LIMIT) == "queued"
    gevent.sleep(0)
    session.end()
    gevent.sleep(0)
    assert outlet.is_closed and outlet._writer is None and not outlet._queue
    assert outlet.offer(b"message", LIMIT) == "closed"
    outlet.stop()


@KINDS
def test_leaving_while_it_is_slow_gives_up_what_it_has_not_read(kind):
    session = Session()
    session.grant(credit=1, room=3)
    outlet = kind(session)
    assert outlet.offer(b"message", LIMIT) == "queued"
    gevent.sleep(0)
    outlet.stop()
    gevent.sleep(0)
    assert [stream.reset_ for stream in session.opened] == [True]
    assert outlet.offer(b"message", LIMIT) == "closed"


def test_what_is_offered_in_one_turn_leaves_by_one_write():
    session = Session()
    session.grant(credit=1, room=1000)
    outlet = MessageOutlet(session)
    assert outlet.offer(b"a", LIMIT) == "sent"
    assert [outlet.offer_later(b"b", LIMIT), outlet.offer_later(b"c", LIMIT)] == ["queued"] * 2
    # Of another turn, but not before those.
    assert outlet.offer(b"d", LIMIT) == "queued"
    assert session.opened[0].data == b"a"
    outlet.send_offered()
    assert session.opened[0].data == b"abcd" and outlet._writer is None
    assert outlet.offer(b"e", LIMIT) == "sent"
    assert outlet.offer_later(b"f", LIMIT) == "queued"
    outlet.stop()
    # What was offered before it left goes, too.
    assert session.opened[0].data == b"abcdef" and session.opened[0].over


def test_small_messages_that_are_not_acknowledged_take_few_streams():
    session = Session()
    session.grant(credit=1000, room=1000)
    outlet = StreamOutlet(session)
    outcomes = [outlet.offer(b"x", 2**20) for _ in range(100)]
    assert outcomes == ["sent"] * 64 + ["queued"] * 36
    gevent.sleep(0)
    assert len(session.opened) == 64
    for stream in list(session.opened):
        stream.end()
    gevent.sleep(0)
    gevent.sleep(0)
    assert len(session.opened) == 100
    outlet.stop()
