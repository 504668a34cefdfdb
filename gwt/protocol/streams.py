"""
The state of one connection, and its streams: what they may send, and how they end.

The ground floor of webtransport.py, which has the theory of operation. It holds all state that a
peer can fill, and the bound of each part:

- first bytes of streams (`_partial`): one prefix each, streams limited by credit;
- streams before their session: `max_pending_streams`, each within its initial window, for
  `pending_timeout`; datagrams before their session: `max_pending_datagrams`;
- requests before SETTINGS (`_held`): `max_sessions_per_connection`, each within its initial window;
- ignored streams, and tunnels: limited by credit, each within its window;
- accounts of sessions that nobody has asked for (`_early_accounts`): limited by credit.
"""

from __future__ import annotations

from collections import deque

from ..config import TransportConfig
from . import capsules, codes, events
from .capsules import encode_varint
from .h3 import Http3
from .quic import Quic
from .rates import Allowance
from .records import Session, SessionPhase, Stream, Tunnel, local_settings, session_reserve

__all__ = ["Streams"]

# Requests that a client may take back, or send malformed: at once, and a second. Each costs us a
# greenlet and it nothing, and the streams for more come back at once.
_MOST_CANCELLED = 256
_CANCELLED_A_SECOND = 16.0

# Bytes of capsules that may wait to be sent or acknowledged: a thousand of them.
_MAX_CAPSULES = 16 * 1024


class Streams:
    """State of one connection, and what becomes of its streams."""

    def __init__(self, quic: Quic, config: TransportConfig) -> None:
        self.quic = quic
        self.config = config
        self.is_client = quic.is_client
        self.settings = local_settings(config, is_client=quic.is_client)

        # The draft spoken; a server decides with each request.
        self.draft: codes.Draft | None = None

        # Whether the peer's SETTINGS have arrived.
        self.ready = False

        # Sessions by the id of their CONNECT stream, until that stream is over.
        self.sessions: dict[int, Session] = {}

        # WebTransport streams by id, until both directions are over and all was consumed.
        self.streams: dict[int, Stream] = {}

        # What was dropped, by cause; part of stats().
        self.counters = {
            "streams_refused": 0,
            "streams_expired": 0,
            "datagrams_unknown_session": 0,
            "requests_malformed": 0,
            "requests_refused": 0,
            "requests_cancelled": 0,
            "sessions_broken": 0,
            "protocol_errors": 0,
        }

        # Whether we end the connection of our own accord.
        self._closing = False

        # Things that happened, in order, and not told yet.
        self._events: list[events.Event] = []

        # Requests before SETTINGS, unread, and whether they have ended; the first bytes of
        # streams; datagrams before their session.
        self._held: dict[int, tuple[bytes, bool]] = {}
        self._partial: dict[int, bytes] = {}
        self._early_datagrams: deque[tuple[int, bytes]] = deque()

        # Since when streams or datagrams wait for a session that nobody has asked for.
        self._early_since: dict[int, float] = {}
        self._early_streams = 0

        # What was refused, or given up, of sessions that nobody has asked for: streams of both
        # kinds, and bytes. Their session owes it to the peer's credit if it comes.
        self._early_accounts: dict[int, list[int]] = {}

        # Streams refused or left over, whose bytes are discarded until they end. Those of a
        # session have their record: what they send is taken from the session's account.
        self._ignored: dict[int, Stream | None] = {}

        # Streams whose writers wait for room, or until all is acknowledged; sessions that wait
        # for a stream.
        self._writers: set[int] = set()
        self._flushers: set[int] = set()
        self._openers: set[int] = set()

        # What accepted streams were granted beyond their first window; what unaccepted hold.
        self._granted = 0
        self._unaccepted = 0

        self._h3: Http3 | None = None
        self._now = 0.0
        self._cancellations = Allowance(_MOST_CANCELLED, _CANCELLED_A_SECOND)

    # Sending

    def _send_capsule(self, session: Session, kind: int, payload: bytes = b"") -> None:
        if session.phase is not SessionPhase.OPEN or self._h3 is None:
            return
        if self.quic.buffered(session.id) > _MAX_CAPSULES:
            # Each answers something of the peer's, which takes none of them.
            self.quic.close(codes.H3_EXCESSIVE_LOAD, "Capsules that are never acknowledged")
            return
        self._h3.send_data(session.id, capsules.encode_capsule(kind, payload))

    def _check_writer(self, stream: Stream) -> None:
        room, limit = self._room(stream)
        # A writer is not woken for every acknowledgement, but when a write is worth it.
        if stream.send_done or (room and room * 4 >= limit):
            self._writers.discard(stream.id)
            self._events.append(events.StreamWritable(stream.id))

    def _wake_writers(self, session: Session) -> None:
        """Look at all streams of a session again: its credit grew."""
        for stream in list(session.streams.values()):
            if stream.id in self._writers:
                self._check_writer(stream)

    def _room(self, stream: Stream) -> tuple[int, int]:
        """Return how much may be written now, and how much if nothing were buffered."""
        config, quic = self.config, self.quic
        limit = config.stream_send_buffer
        if (
            quic.buffered_total >= config.connection_send_buffer
            or quic.budget.buffered >= config.process_send_buffer
        ):
            limit = min(limit, config.stream_send_floor)
        room = max(0, limit - quic.buffered(stream.id))
        session = self.sessions.get(stream.session_id)
        if session is not None and session.flow is not None:
            # What waits for the stream's own credit must not use up the session's, which others
            # need: beyond the peer's limit a stream may take from the first half of it, and then
            # has the floor and no more.
            spare = session.flow.room() - session.flow.reserve
            end = quic.send_limit(stream.id) + max(config.stream_send_floor, spare)
            written = stream.written + (stream.prefix if stream.own else 0)
            credit = session.flow.room()
            room = min(room, credit, max(0, end - written))
            limit = min(limit, credit, max(0, end - quic.acked(stream.id)))
        return room, limit

    def _unsend(self, stream: Stream) -> None:
        """Take back from the session's account what a reset keeps from being sent."""
        session = self.sessions.get(stream.session_id)
        if session is not None and session.flow is not None:
            sent = max(0, self.quic.sent(stream.id) - (stream.prefix if stream.own else 0))
            unsent = max(0, stream.written - sent)
            stream.written -= unsent
            session.flow.sent -= unsent
            if unsent:
                self._wake_writers(session)

    # Receive credit

    def _give_credit(self, stream: Stream, size: int) -> bool:
        """Let the peer send as much again; returns whether it is told so."""
        due = self.quic.consumed(stream.id, size)
        session = self.sessions.get(stream.session_id)
        if session is not None and stream.early is None:
            return self._give_session_credit(session, size) or due
        return due

    def _widen(self, stream: Stream) -> None:
        """Let an accepted stream have its full window, once half of its first one was needed."""
        config = self.config
        if stream.granted or stream.received * 2 < config.initial_stream_window:
            return
        session = self.sessions.get(stream.session_id)
        if session is None and not isinstance(stream, Tunnel):
            return
        # What is granted cannot be taken back, so it comes out of two bounded accounts, and idle
        # streams get nothing. A stream that finds them empty keeps its first window, and so moves
        # on however others fare.
        grant = min(
            config.stream_window - config.initial_stream_window,
            config.receive_pool - self._granted,
        )
        if session is not None:
            grant = min(grant, config.session_window - session.granted)
        if grant > 0:
            stream.granted = grant
            if session is not None:
                session.granted += grant
            self._granted += grant
            self.quic.set_window(stream.id, config.initial_stream_window + grant)

    def _give_session_credit(self, session: Session, size: int) -> bool:
        # Before the session is open nothing can be said, and _open() makes up for it.
        if session.flow is None:
            return False
        if session.phase is not SessionPhase.OPEN:
            session.flow.consumed += size
            return False
        limit = session.flow.consume(size, session_reserve(self.config) // 2)
        if limit is None:
            return False
        self._send_capsule(session, capsules.MAX_DATA, encode_varint(limit))
        return True

    def _use_up(self, stream: Stream, size: int) -> None:
        """Count body bytes that nobody will read: they arrived, and are done with."""
        session = self.sessions.get(stream.session_id)
        if session is None:
            account = self._early_accounts.get(stream.session_id)
            if account is not None:
                account[2] += size
        elif session.flow is not None:
            # An overrun is noticed with the next bytes that are kept: the account is cumulative.
            session.flow.received += size
            self._give_session_credit(session, size)

    def _close_flow_stream(self, session: Session, unidirectional: bool) -> None:
        """Count a stream of the peer's that is over."""
        if session.flow is not None:
            session.flow.streams_closed[unidirectional] += 1
            self._give_stream_credit(session, unidirectional)

    def _give_stream_credit(self, session: Session, unidirectional: bool) -> None:
        # As with bytes, _open() makes up for what could not be said before.
        if session.flow is not None and session.phase is SessionPhase.OPEN:
            limit = session.flow.stream_limit(unidirectional)
            if limit is not None:
                kind = capsules.MAX_STREAMS_UNI if unidirectional else capsules.MAX_STREAMS_BIDI
                self._send_capsule(session, kind, encode_varint(limit))

    # Ends

    def _ignore(self, stream_id: int, stream: Stream | None = None) -> None:
        """Discard what still arrives on a stream."""
        self._ignored[stream_id] = stream
        if len(self._ignored) % 64 == 0:
            # Some end without a word, when their end was on its way already.
            self._ignored = {i: s for i, s in self._ignored.items() if not self.quic.gone(i)}

    def _refuse(self, stream_id: int, code: int, ended: bool, stream: Stream | None = None) -> None:
        """Turn a stream down: nothing is sent on it, and what arrives is discarded."""
        self.quic.reset(stream_id, code)
        if not ended:
            self.quic.stop(stream_id, code)
            self._ignore(stream_id, stream)

    def _finish(self, stream: Stream) -> None:
        """Forget a stream that is over in both directions, and that was accepted and read."""
        if stream.early is not None or not stream.receive_done or stream.unread > 0:
            return
        self._return_grant(stream)
        # The slot of one that nobody accepted stays taken, or a peer could fill the queue of
        # those that wait for it without a bound. Who stopped one has taken it.
        if stream.send_done and (stream.own or stream.accepted or stream.stopped):
            self._forget(stream)

    def _return_grant(self, stream: Stream) -> None:
        session = self.sessions.get(stream.session_id)
        if session is not None:
            session.granted -= stream.granted
        self._granted -= stream.granted
        stream.granted = 0

    def _forget(self, stream: Stream) -> None:
        if self.streams.pop(stream.id, None) is None:
            return
        self._return_grant(stream)
        self._writers.discard(stream.id)
        self._flushers.discard(stream.id)
        self.quic.hold(stream.id, False)
        session = self.sessions.get(stream.session_id)
        if session is None or session.streams.pop(stream.id, None) is None:
            return
        if not stream.own:
            session.incoming -= 1
            self._close_flow_stream(session, bool(stream.id & 2))

    def _abandon(self, stream: Stream, code: int) -> None:
        """Reset and stop a stream and forget it, whatever it still had."""
        if not stream.send_done:
            self._unsend(stream)
            self.quic.reset(stream.id, code)
        if not stream.receive_done:
            self.quic.stop(stream.id, code)
            self._ignore(stream.id, stream)
        if stream.early is None and not stream.accepted:
            self._unaccepted -= stream.unread
        self._give_credit(stream, stream.unread)
        if stream.early is not None:
            self._early_streams -= 1
            stream.early = None
            self._count_early(stream)
        stream.unread = 0
        stream.receive_done = stream.send_done = True
        self._forget(stream)

    def _count_early(self, stream: Stream) -> None:
        """Count a stream that its session will never see in the session's account."""
        unidirectional = bool(stream.id & 2)
        session = self.sessions.get(stream.session_id)
        if session is None:
            accounts = self._early_accounts
            if len(accounts) % 64 == 63:
                # What turned out to be no session, or is over.
                over = self.quic.sending_over
                self._early_accounts = accounts = {
                    i: account for i, account in accounts.items() if not over(i)
                }
            account = accounts.setdefault(stream.session_id, [0, 0, 0])
            account[unidirectional] += 1
            account[2] += stream.received
        elif session.flow is not None:
            session.flow.receive_stream(unidirectional)
            self._close_flow_stream(session, unidirectional)
            self._use_up(stream, stream.received)

    def _expire(self, now: float) -> None:
        """Give up on streams and datagrams whose session never came."""
        for session_id, since in list(self._early_since.items()):
            # As next_timer() computes it: another order of the same sum can round otherwise.
            if now < since + self.config.pending_timeout:
                break
            del self._early_since[session_id]
            for stream in [s for s in self.streams.values() if s.session_id == session_id]:
                self.counters["streams_expired"] += 1
                self._abandon(stream, codes.WT_BUFFERED_STREAM_REJECTED)
            waiting = [item for item in self._early_datagrams if item[0] != session_id]
            self.counters["datagrams_unknown_session"] += len(self._early_datagrams) - len(waiting)
            self._early_datagrams = deque(waiting)
