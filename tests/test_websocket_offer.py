"""What a WebSocket offers to rooms: whatever is mixed with it, the peer gets all, in order."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import gwt
from gwt.protocol.deflate import Compression, DeflateParams
from gwt.protocol.websocket import WebSocketProtocol
from gwt.protocol.wsevents import Closed, Message
from gwt.protocol.wshandshake import Agreement
from gwt.request import Request

LIMIT = 300


class Wire:
    """A connection whose socket takes as much as it is told to."""

    remote_address = local_address = None
    broken = False

    def __init__(self) -> None:
        self.taken = b""
        self.waiting = b""
        self.room = 0
        self.closing = False

    @property
    def queued(self) -> int:
        return len(self.waiting)

    def send(self, data: bytes) -> bool:
        assert data
        if self.closing:
            return False
        blocked = bool(self.waiting)
        self.waiting += data
        if not blocked:
            self.push()
        return True

    def write(self, pieces: list[bytes]) -> None:
        self.send(b"".join(pieces))

    def push(self) -> None:
        sent = min(self.room, len(self.waiting))
        self.taken += self.waiting[:sent]
        self.waiting = self.waiting[sent:]
        self.room -= sent

    def start(self, receiver: Any) -> None:
        pass

    pause = resume = lambda self: None

    def close(self, *, done: bool = False) -> None:
        self.room = 10**9
        self.push()
        self.closing = True

    abort = close


TAKEOVER = Agreement(deflate=DeflateParams())
ALONE = Agreement(deflate=DeflateParams(True, True))
ROLES = [(Agreement(), False), (ALONE, False), (TAKEOVER, False), (Agreement(), True)]

TEXT = st.text("ab é", max_size=80)
OFFER = st.tuples(st.sampled_from(["offer", "later"]), TEXT)
QUIET = st.one_of(
    OFFER, st.tuples(st.just("room"), st.integers(0, 400)), st.tuples(st.just("ping"))
)
STEP = st.one_of(
    QUIET,
    st.tuples(st.just("flush")),
    st.tuples(st.just("send"), TEXT),
    st.tuples(st.just("fragments"), st.lists(st.one_of(QUIET, st.tuples(st.just("flush"))))),
)


@settings(max_examples=300)
@given(st.sampled_from(ROLES), st.lists(STEP, max_size=40), st.booleans())
def test_everything_that_was_taken_arrives_in_order(role, steps, closes):
    agreement, is_client = role
    compression = Compression(threshold=10)
    wire = Wire()
    ours, theirs = (
        WebSocketProtocol(
            each,
            agreement=agreement,
            compression=compression,
            ping_interval=None,
            max_size=None,
            now=0.0,
        )
        for each in (is_client, not is_client)
    )
    request = Request.at(
        "/",
        method="GET",
        protocol="websocket",
        authority="x",
        origin=None,
        headers={},
        subprotocols=(),
        remote_address=None,
    )
    ws = gwt.WebSocket(wire, ours, request)  # type: ignore[arg-type]
    ws.start()
    expected: list[str] = []
    held: list[str] = []

    def do(step: str, *args: Any, within: bool = False) -> None:
        if step in ("offer", "later"):
            (text,) = args
            frame = text if ws.kind is None else ws.encode_for(ws.kind, text)
            before = wire.queued
            outcome = (ws.offer if step == "offer" else ws.offer_later)(frame, LIMIT)
            assert outcome in ("sent", "queued", "full")
            if outcome == "full":
                assert before or ws._boxed
            else:
                (held if within else expected).append(text)
            if outcome == "sent":
                assert not wire.queued
        elif step == "room":
            wire.room = args[0]
            wire.push()
            if not wire.queued:
                ws.drained()
        elif step == "ping":
            ws.ping()
        elif step == "flush":
            ws.send_offered()

    for step, *args in steps:
        if step == "send":
            ws.send(args[0])
            expected.append(args[0])
        elif step == "fragments":

            def pieces(inner: list[Any] = args[0]) -> Any:
                yield "begin"
                for step, *args in inner:
                    do(step, *args, within=True)
                    yield step

            ws.send(pieces())
            expected.append("begin" + "".join(inner[0] for inner in args[0]))
            expected += held
            held.clear()
        else:
            do(step, *args)
        # What waits is bounded: what was allowed to, and one message more of each sort.
        assert ws._boxed <= LIMIT + 200 or not ws._box
    if closes:
        ws.begin_close()
        assert ws.offer(b"late", LIMIT) == ws.offer_later(b"late", LIMIT) == "closed"
    ws.send_offered()
    wire.room = 10**9
    wire.push()
    events = theirs.receive_data(wire.taken, 0.0, limit=10**6)
    assert [each.data for each in events if isinstance(each, Message)] == expected
    assert closes is any(isinstance(each, Closed) for each in events)
    assert ws.stats()["messages_sent"] == len(expected)
    ws.abort()
