"""gwt.protocol.flow: when session flow control is on, and its arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwt.protocol import codes
from gwt.protocol.flow import SessionFlow, flow_is_on

DATA = codes.SETTING_WT_INITIAL_MAX_DATA
BIDI = codes.SETTING_WT_INITIAL_MAX_STREAMS_BIDI
UNI = codes.SETTING_WT_INITIAL_MAX_STREAMS_UNI
SESSIONS = codes.SETTING_WT_MAX_SESSIONS
BY_NUMBER = {draft.number: draft for draft in codes.DRAFTS}


@pytest.mark.parametrize(
    "number, local, peer, on",
    [
        (16, {DATA: 1}, {DATA: 1}, True),
        (16, {DATA: 1}, {UNI: 5}, True),
        (16, {BIDI: 1}, {}, False),
        (16, {}, {DATA: 1}, False),
        (16, {DATA: 0}, {DATA: 1}, False),
        (16, {SESSIONS: 9}, {SESSIONS: 9}, False),
        (14, {SESSIONS: 2}, {SESSIONS: 2}, True),
        (14, {SESSIONS: 2}, {SESSIONS: 1}, False),
        (14, {SESSIONS: 2, DATA: 1}, {SESSIONS: 1, DATA: 1}, True),
        (14, {SESSIONS: 1, DATA: 1}, {SESSIONS: 1}, False),
        (14, {SESSIONS: 1, DATA: 1}, {SESSIONS: 5}, True),
        (14, {SESSIONS: 5}, {SESSIONS: 1, UNI: 1}, True),
        (16, {SESSIONS: 5}, {SESSIONS: 1, UNI: 1}, False),
        (12, {DATA: 1}, {DATA: 1}, True),
        (12, {DATA: 1}, {}, False),
        (2, {DATA: 1}, {DATA: 1}, False),
    ],
)
def test_flow_control_is_on_when_the_draft_says_so(number, local, peer, on):
    assert flow_is_on(BY_NUMBER[number], local, peer) is on


def flow(data=1000, bidi=4, uni=2, *, peer=None):
    mine = {DATA: data, BIDI: bidi, UNI: uni}
    return SessionFlow(mine, mine if peer is None else peer)


def test_peer_that_sent_no_limits_gives_no_credit_until_it_raises_them():
    # pywebtransport#7: WT_MAX_STREAMS was ignored when the initial limits were 0.
    session = flow(peer={})
    assert session.room() == 0
    assert not session.may_open(True)
    assert not session.may_open(False)
    assert session.raise_data(10)
    assert session.raise_streams(True, 1)
    assert session.raise_streams(False, 2)
    assert session.room() == 10
    assert session.may_open(True)
    assert session.may_open(False)


def test_room_is_what_the_limit_leaves_and_never_negative():
    session = flow()
    session.sent = 999
    assert session.room() == 1
    session.sent = 1001
    assert session.room() == 0


@pytest.mark.parametrize("limit, taken", [(1001, True), (1000, False), (0, False)])
def test_data_limit_must_grow(limit, taken):
    session = flow()
    assert session.raise_data(limit) is taken
    assert session.peer_max_data == max(1000, limit)


@pytest.mark.parametrize(
    "limit, taken", [(5, True), (4, False), (3, False), (2**60, True), (2**60 + 1, False)]
)
def test_stream_limit_must_grow_and_be_expressible(limit, taken):
    session = flow()
    assert session.raise_streams(False, limit) is taken
    assert session.peer_max_streams == [limit if taken else 4, 2]


def test_overrun_of_bytes_and_streams_is_noticed_at_the_first_too_many():
    session = flow()
    assert session.receive(1000)
    assert not session.receive(1)
    assert all(session.receive_stream(False) for _ in range(4))
    assert not session.receive_stream(False)
    assert all(session.receive_stream(True) for _ in range(2))
    assert not session.receive_stream(True)


def close(session, unidirectional):
    session.streams_closed[unidirectional] += 1
    return session.stream_limit(unidirectional)


def test_new_data_limit_is_due_when_it_grew_by_a_step():
    session = flow()
    assert session.consume(99, 100) is None
    assert session.consume(1, 100) == 1100
    assert session.consume(99, 100) is None
    assert session.consume(101, 100) == 1300


def test_stream_limit_can_be_due_when_a_stream_comes():
    session = flow(bidi=128)
    for _ in range(70):
        session.receive_stream(False)
    assert all(close(session, False) is None for _ in range(50))
    limits = []
    for _ in range(58):
        session.receive_stream(False)
        limits.append(session.stream_limit(False))
    assert [limit for limit in limits if limit] == [178]


def test_new_stream_limit_is_due_before_the_peer_runs_dry():
    session = flow(bidi=4)
    for _ in range(4):
        session.receive_stream(False)
    assert close(session, False) == 5
    session.receive_stream(False)
    assert close(session, False) == 6
    assert session.max_streams == [6, 2]


def test_streams_that_live_long_do_not_hold_the_credit_of_short_ones_back():
    session = flow(bidi=4)
    for _ in range(3):
        session.receive_stream(False)
    limits = []
    for _ in range(50):
        session.receive_stream(False)
        assert session.streams_received[0] <= session.max_streams[0]
        limits.append(close(session, False))
    assert limits[-1] == session.max_streams[0] == 54


@given(st.lists(st.integers(0, 700), max_size=60), st.integers(1, 1000))
def test_reader_that_keeps_up_always_leaves_a_writer_half_a_window(sizes, window):
    session = flow(data=window)
    for size in sizes:
        size = min(size, session.max_data - session.received)
        assert session.receive(size)
        before = session.max_data
        limit = session.consume(size, window // 2)
        assert limit is None or limit > before
        assert session.max_data - session.received >= window // 2
