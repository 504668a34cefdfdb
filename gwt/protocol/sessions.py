"""
The sessions of one connection: requests and responses, capsules, and how sessions and their
streams end.

The state of webtransport.py, which has the theory of operation, and everything that changes
sessions as a whole. It holds all state that a peer can fill, and the bound of each part:

- first bytes of streams (`_partial`): one prefix each, streams limited by credit;
- streams before their session: `max_pending_streams`, each within its initial window, for
  `pending_timeout`; datagrams before their session: `max_pending_datagrams`;
- requests before SETTINGS: `max_sessions_per_connection`;
- ignored streams: limited by credit.
"""

from __future__ import annotations

from collections import deque

from ..config import TransportConfig
from . import capsules, codes, events, requests
from .capsules import Capsule, CapsuleError, encode_varint
from .flow import SessionFlow, flow_is_on
from .h3 import DataReceived, HeadersReceived, Http3
from .quic import Quic
from .records import Session, SessionPhase, Stream, bad_setting, local_settings

__all__ = ["Sessions"]


class Sessions:
    """State of one connection, and what its peer does to it."""

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
        }

        # Things that happened, in order, and not told yet.
        self._events: list[events.Event] = []

        # Requests before SETTINGS, the first bytes of streams, datagrams before their session.
        self._held_requests: list[tuple[int, events.Headers]] = []
        self._partial: dict[int, bytes] = {}
        self._early_datagrams: deque[tuple[int, bytes]] = deque()

        # Since when streams or datagrams wait for a session that nobody has asked for.
        self._early_since: dict[int, float] = {}
        self._early_streams = 0

        # Streams refused or left over, whose bytes are discarded until they end.
        self._ignored: set[int] = set()

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

    # QuicSink: the connection

    def quic_negotiated(self) -> None:
        self._h3 = Http3(self.quic, self.settings, self.config.max_field_section_size)

    def quic_handshake_completed(self) -> None:
        self._events.append(events.HandshakeCompleted())

    def quic_connection_id(self, connection_id: bytes, added: bool) -> None:
        kind = events.ConnectionIdAdded if added else events.ConnectionIdRetired
        self._events.append(kind(connection_id))

    def quic_ping_acknowledged(self) -> None:
        pass

    def quic_closed(self, code: int, reason: str, remote: bool, application: bool) -> None:
        for session in list(self.sessions.values()):
            if session.live:
                session.phase = SessionPhase.ENDED
                self._events.append(events.SessionEnded(session.id, None, reason, remote))
        self.sessions.clear()
        self.streams.clear()
        self._partial.clear()
        self._ignored.clear()
        self._early_datagrams.clear()
        self._early_since.clear()
        self._held_requests.clear()
        self._writers.clear()
        self._flushers.clear()
        self._openers.clear()
        self._events.append(events.ConnectionEnded(code, reason, remote, application))

    def quic_stream_credit(self) -> None:
        for session_id in self._openers:
            self._events.append(events.StreamAvailable(session_id))
        self._openers.clear()

    # HTTP/3

    def _http_data(self, stream_id: int, data: bytes, ended: bool) -> None:
        assert self._h3 is not None
        for event in self._h3.receive(stream_id, data, ended):
            if isinstance(event, HeadersReceived):
                if self.is_client:
                    self._response(event.stream_id, event.headers)
                else:
                    self._request(event.stream_id, event.headers, ended)
                if event.stream_ended:
                    self._session_data(event.stream_id, b"", True)
            elif isinstance(event, DataReceived):
                self._session_data(event.stream_id, event.data, event.stream_ended)
        session = self.sessions.get(stream_id)
        if ended and session is not None:
            session.receive_done = True
        if not self.ready and self._h3.settings is not None:
            self._settings_received()

    def _settings_received(self) -> None:
        problem = bad_setting(self._peer_settings, is_client=self.is_client)
        if problem is not None:
            self.quic.close(codes.H3_SETTINGS_ERROR, problem)
            return
        self.ready = True
        if self.is_client:
            self.draft = codes.best_draft(self._peer_settings)
        self._events.append(events.ConnectionReady())
        held, self._held_requests = self._held_requests, []
        for stream_id, headers in held:
            self._request(stream_id, headers, False)

    def _request(self, stream_id: int, headers: events.Headers, ended: bool) -> None:
        """Take a request's headers, or its trailers, which mean nothing here."""
        if stream_id in self.sessions:
            return
        if not requests.is_session_request(headers):
            # RFC 9220 3 wants 501 for an unknown :protocol; nothing else is served yet either.
            self._respond(stream_id, 501, ended=ended)
            return
        if not self.ready:
            # webtrans-http3-16 3.1: no session before the client's SETTINGS.
            if len(self._held_requests) < self.config.max_sessions_per_connection:
                self._held_requests.append((stream_id, headers))
            else:
                self._refuse_request(stream_id, codes.H3_REQUEST_REJECTED, ended)
            return
        request = requests.parse_request(stream_id, headers)
        if isinstance(request, str):
            self.counters["requests_malformed"] += 1
            self._refuse_request(stream_id, codes.H3_MESSAGE_ERROR, ended)
            return
        draft = codes.session_draft(
            dict(headers)[b":protocol"],
            codes.DRAFT02_REQUEST in headers,
            self._peer_settings,
        )
        if self._live_sessions() >= self._max_sessions(draft):
            self._refuse_request(stream_id, codes.H3_REQUEST_REJECTED, ended)
            return
        self._add_session(stream_id, draft)
        self._events.append(request)

    def _refuse_request(self, stream_id: int, code: int, ended: bool) -> None:
        assert self._h3 is not None
        self.counters["requests_refused"] += 1
        self._h3.forget(stream_id)
        self._refuse(stream_id, code, ended)

    def _respond(
        self,
        stream_id: int,
        status: int,
        headers: events.Headers | None = None,
        body: bytes = b"",
        *,
        ended: bool = False,
    ) -> None:
        """Send a complete response that is no session."""
        assert self._h3 is not None
        response = [(b":status", b"%d" % status), *(headers or [])]
        self._h3.send_headers(stream_id, response, end=not body)
        if body:
            self._h3.send_data(stream_id, body, end=True)
        self._h3.forget(stream_id)
        if not ended:
            # No STOP_SENDING: in the packet of the response it would be seen before it.
            self._ignore(stream_id)

    def _response(self, stream_id: int, headers: events.Headers) -> None:
        session = self.sessions.get(stream_id)
        if session is None or session.phase is not SessionPhase.CONNECTING:
            return
        status = int(dict(headers)[b":status"])
        if status < 200:
            return
        if status >= 300:
            self.quic.reset(stream_id, codes.H3_REQUEST_CANCELLED)
            self._end_session(session, None, "", remote=True, silent=True)
            self._events.append(events.SessionRefused(stream_id, status, None, headers))
            return
        chosen = requests.chosen_subprotocol(headers, session.offered)
        self._events.append(events.SessionAccepted(stream_id, chosen, headers))
        self._open(session)

    # Capsules

    def _session_data(self, session_id: int, data: bytes, ended: bool) -> None:
        session = self.sessions.get(session_id)
        if session is None:
            return
        if not session.live:
            if session.close_received and data:
                # webtrans-http3-16 6: nothing may follow a CLOSE.
                self.quic.reset(session_id, codes.H3_MESSAGE_ERROR)
                self.quic.stop(session_id, codes.H3_MESSAGE_ERROR)
            return
        if session.phase is SessionPhase.CONNECTING:
            # webtrans-http3-16 3.2: capsules may come before the session is accepted.
            session.early += data
            if ended:
                self._session_lost(session, codes.H3_REQUEST_CANCELLED)
            elif len(session.early) > self.config.initial_stream_window:
                self._break_session(session, codes.H3_EXCESSIVE_LOAD)
            return
        try:
            received = session.reader.feed(data)
            for index, capsule in enumerate(received):
                if capsule.type == capsules.CLOSE_SESSION:
                    if received[index + 1 :] or session.reader.pending:
                        raise CapsuleError("Data after CLOSE")
                    self._close_received(session, *capsules.parse_close(capsule.payload))
                    return
                if not self._capsule(session, capsule):
                    self._break_session(session, codes.WT_FLOW_CONTROL_ERROR)
                    return
            if ended:
                if session.reader.pending:
                    raise CapsuleError("The session ended inside a capsule")
                # webtrans-http3-16 6: an end without CLOSE means code 0 and no reason.
                self._close_received(session, 0, "")
        except CapsuleError:
            self._break_session(session, codes.H3_MESSAGE_ERROR)

    def _capsule(self, session: Session, capsule: Capsule) -> bool:
        """Act on a capsule; returns False if it breaks flow control."""
        if capsule.type == capsules.DRAIN_SESSION:
            self._events.append(events.SessionDraining(session.id))
            return True
        flow = session.flow
        if flow is None:
            return True
        limit = capsules.parse_limit(capsule.payload)
        match capsule.type:
            case capsules.MAX_DATA:
                grew = flow.raise_data(limit)
                for stream in list(session.streams.values()):
                    if stream.id in self._writers:
                        self._check_writer(stream)
                return grew
            case capsules.MAX_STREAMS_BIDI | capsules.MAX_STREAMS_UNI:
                if session.id in self._openers:
                    self._openers.discard(session.id)
                    self._events.append(events.StreamAvailable(session.id))
                return flow.raise_streams(capsule.type == capsules.MAX_STREAMS_UNI, limit)
        return True

    def _close_received(self, session: Session, code: int, reason: str) -> None:
        assert self._h3 is not None
        # webtrans-http3-16 6: the receiver of a CLOSE ends its side at once.
        self._h3.end(session.id)
        session.close_received = True
        self._end_session(session, code, reason, remote=True)

    def _session_lost(self, session: Session, code: int) -> None:
        """Deal with a request stream that was reset, stopped or ended out of turn."""
        connecting = session.phase is SessionPhase.CONNECTING
        self.quic.reset(session.id, codes.H3_REQUEST_CANCELLED)
        self.quic.stop(session.id, codes.H3_REQUEST_CANCELLED)
        if connecting and self.is_client:
            self._end_session(session, None, "", remote=True, silent=True)
            self._events.append(events.SessionRefused(session.id, None, code, []))
        else:
            self._end_session(session, None, "", remote=True)

    def _send_capsule(self, session: Session, kind: int, payload: bytes = b"") -> None:
        if session.phase is SessionPhase.OPEN and self._h3 is not None:
            self._h3.send_data(session.id, capsules.encode_capsule(kind, payload))

    # Life of a session

    @property
    def _peer_settings(self) -> dict[int, int]:
        return (self._h3.settings if self._h3 is not None else None) or {}

    def _max_sessions(self, draft: codes.Draft) -> int:
        # webtrans-http3-16 5.2: without flow control a connection has one session. Drafts up to
        # 12 had no such rule.
        if draft.number > 12 and not flow_is_on(draft, self.settings, self._peer_settings):
            return 1
        return self.config.max_sessions_per_connection

    def _live_sessions(self) -> int:
        return sum(session.live for session in self.sessions.values())

    def _add_session(self, session_id: int, draft: codes.Draft) -> Session:
        session = self.sessions[session_id] = Session(session_id, draft)
        self._early_since.pop(session_id, None)
        if flow_is_on(draft, self.settings, self._peer_settings):
            session.flow = SessionFlow(self.settings, self._peer_settings)
        return session

    def _open(self, session: Session) -> None:
        """Begin a session: capsules that waited for it are read."""
        session.phase = SessionPhase.OPEN
        early, session.early = bytes(session.early), bytearray()
        if early:
            self._session_data(session.id, early, False)

    def _end_session(
        self, session: Session, code: int | None, reason: str, *, remote: bool, silent: bool = False
    ) -> None:
        """End a session with all its streams (webtrans-http3-16 6)."""
        if not session.live:
            return
        session.phase = SessionPhase.ENDED
        self._openers.discard(session.id)
        for stream in [s for s in self.streams.values() if s.session_id == session.id]:
            self._abandon(stream, codes.WT_SESSION_GONE)
        if not silent:
            self._events.append(events.SessionEnded(session.id, code, reason, remote))
        self._forget_session(session)

    def _forget_session(self, session: Session) -> None:
        # The entry stays until our last bytes are acknowledged: only then has the peer seen
        # our close, and closing the connection before could overtake it.
        if session.live or not self.quic.sending_finished(session.id):
            return
        if self.sessions.pop(session.id, None) is None:
            return
        self._events.append(events.SessionGone(session.id))
        if self._h3 is not None:
            self._h3.forget(session.id)
        if not session.receive_done:
            self.quic.stop(session.id, codes.H3_NO_ERROR)
            self._ignore(session.id)

    def _break_session(self, session: Session, code: int) -> None:
        """End a session whose peer broke a rule."""
        self.quic.reset(session.id, code)
        self.quic.stop(session.id, code)
        self._end_session(session, None, "", remote=True)

    # Streams: what they may send, and how they end

    def _ignore(self, stream_id: int) -> None:
        """Discard what still arrives on a stream."""
        self._ignored.add(stream_id)
        if len(self._ignored) % 64 == 0:
            # Some end without a word, when their end was on its way already.
            self._ignored = {i for i in self._ignored if not self.quic.gone(i)}

    def _refuse(self, stream_id: int, code: int, ended: bool) -> None:
        """Turn a stream down: nothing is sent on it, and what arrives is discarded."""
        self.quic.reset(stream_id, code)
        if not ended:
            self.quic.stop(stream_id, code)
            self._ignore(stream_id)

    def _check_writer(self, stream: Stream) -> None:
        room, limit = self._room(stream)
        # A writer is not woken for every acknowledgement, but when a write is worth it.
        if stream.send_done or (room and room * 4 >= limit):
            self._writers.discard(stream.id)
            self._events.append(events.StreamWritable(stream.id))

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
            credit = session.flow.room()
            return min(room, credit), min(limit, credit)
        return room, limit

    def _unsend(self, stream: Stream) -> None:
        """Take back from the session's account what a reset keeps from being sent."""
        session = self.sessions.get(stream.session_id)
        if session is not None and session.flow is not None:
            sent = max(0, self.quic.sent(stream.id) - (stream.prefix if stream.own else 0))
            session.flow.sent -= max(0, stream.written - sent)
            stream.written = min(stream.written, sent)

    def _give_credit(self, stream: Stream, size: int) -> bool:
        """Let the peer send as much again; returns whether it is told so."""
        due = self.quic.consumed(stream.id, size)
        session = self.sessions.get(stream.session_id)
        if session is not None and session.flow is not None and stream.early is None:
            limit = session.flow.consume(size)
            if limit is not None:
                self._send_capsule(session, capsules.MAX_DATA, encode_varint(limit))
                return True
        return due

    def _close_flow_stream(self, session: Session, unidirectional: bool) -> None:
        if session.flow is not None:
            limit = session.flow.close_stream(unidirectional)
            if limit is not None:
                kind = capsules.MAX_STREAMS_UNI if unidirectional else capsules.MAX_STREAMS_BIDI
                self._send_capsule(session, kind, encode_varint(limit))

    def _finish(self, stream: Stream) -> None:
        """Forget a stream that is over in both directions and has been read."""
        if not (stream.receive_done and stream.send_done and stream.unread <= 0):
            return
        if self.streams.pop(stream.id, None) is None:
            return
        self._writers.discard(stream.id)
        self._flushers.discard(stream.id)
        self.quic.hold(stream.id, False)
        self._granted -= stream.granted
        session = self.sessions.get(stream.session_id)
        if session is None or session.streams.pop(stream.id, None) is None:
            return
        session.granted -= stream.granted
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
            self._ignore(stream.id)
        if stream.early is not None:
            self._early_streams -= 1
        elif not stream.accepted:
            self._unaccepted -= stream.unread
        self._give_credit(stream, stream.unread)
        stream.unread = 0
        stream.receive_done = stream.send_done = True
        self._finish(stream)

    def _expire(self, now: float) -> None:
        """Give up on streams and datagrams whose session never came."""
        for session_id, since in list(self._early_since.items()):
            if now - since < self.config.pending_timeout:
                break
            del self._early_since[session_id]
            for stream in [s for s in self.streams.values() if s.session_id == session_id]:
                self.counters["streams_expired"] += 1
                self._abandon(stream, codes.WT_BUFFERED_STREAM_REJECTED)
            waiting = [item for item in self._early_datagrams if item[0] != session_id]
            self.counters["datagrams_unknown_session"] += len(self._early_datagrams) - len(waiting)
            self._early_datagrams = deque(waiting)
