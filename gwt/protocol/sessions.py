"""
The sessions of one connection: requests and responses, capsules, and how sessions end.

What changes sessions as a whole; streams.py has the state, webtransport.py the theory of
operation.
"""

from __future__ import annotations

from collections import deque

from . import capsules, codes, events, requests
from .capsules import Capsule, CapsuleError
from .flow import SessionFlow, flow_is_on
from .h3 import DataReceived, HeadersReceived, Http3, MessageMalformed
from .records import Session, SessionPhase, bad_setting
from .streams import Streams

__all__ = ["Sessions"]


class Sessions(Streams):
    """Sessions, and what the peer does to them."""

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
        if not (remote or self._closing or code in codes.NOBODYS_ERROR):
            self.counters["protocol_errors"] = 1
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
        self._early_accounts.clear()
        self._held.clear()
        self._writers.clear()
        self._flushers.clear()
        self._openers.clear()
        self._granted = self._unaccepted = self._early_streams = 0
        self._events.append(events.ConnectionEnded(code, reason, remote, application))

    def quic_stream_credit(self) -> None:
        for session_id in self._openers:
            self._events.append(events.StreamAvailable(session_id))
        self._openers.clear()

    # HTTP/3

    def _http_data(self, stream_id: int, data: bytes, ended: bool) -> None:
        assert self._h3 is not None
        if not (self.ready or self.is_client or stream_id & 2):
            self._hold_request(stream_id, data, ended)
            return
        self._note_end(stream_id, ended)
        if data and self._closed_by_peer(stream_id):
            self.quic.consumed(stream_id, len(data))
            self._after_close(stream_id)
            return
        kept = 0
        for event in self._h3.receive(stream_id, data, ended):
            if isinstance(event, HeadersReceived):
                if self._closed_by_peer(stream_id):
                    self._after_close(stream_id)
                elif self.is_client:
                    self._response(event.stream_id, event.headers)
                else:
                    self._request(event.stream_id, event.headers, ended)
                if event.stream_ended:
                    self._body(event.stream_id, b"", True)
            elif isinstance(event, DataReceived):
                kept += self._body(event.stream_id, event.data, event.stream_ended)
            elif isinstance(event, MessageMalformed):
                self._malformed(stream_id, ended)
        self.quic.consumed(stream_id, len(data) - kept)
        self._note_end(stream_id, ended)
        if not self.ready and self._h3.settings is not None:
            self._settings_received()

    def _note_end(self, stream_id: int, ended: bool) -> None:
        # Before what came is acted upon, which may be all that a session waits for, and behind
        # it, since it may be what makes the session.
        session = self.sessions.get(stream_id)
        if ended and session is not None:
            session.receive_done = True

    def _closed_by_peer(self, stream_id: int) -> bool:
        session = self.sessions.get(stream_id)
        return session is not None and session.close_received

    def _after_close(self, session_id: int) -> None:
        # webtrans-http3-16 6: nothing may follow a CLOSE, not even part of a frame.
        self.quic.reset(session_id, codes.H3_MESSAGE_ERROR)
        self.quic.stop(session_id, codes.H3_MESSAGE_ERROR)

    def _hold_request(self, stream_id: int, data: bytes, ended: bool) -> None:
        # webtrans-http3-16 3.1: nothing of a request is processed before the client's SETTINGS.
        # It is not read either, so that its window bounds what is held.
        if stream_id in self._held:
            data = self._held[stream_id][0] + data
        elif len(self._held) >= self.config.max_sessions_per_connection:
            self.counters["requests_refused"] += 1
            self.quic.consumed(stream_id, len(data))
            self._refuse(stream_id, codes.H3_REQUEST_REJECTED, ended)
            return
        self._held[stream_id] = (data, ended)

    def _settings_received(self) -> None:
        problem = bad_setting(self._peer_settings, is_client=self.is_client)
        if problem is not None:
            self.quic.close(codes.H3_SETTINGS_ERROR, problem)
            return
        self.ready = True
        if self.is_client:
            self.draft = codes.best_draft(self._peer_settings)
        self._events.append(events.ConnectionReady())
        held, self._held = self._held, {}
        for stream_id, (data, ended) in held.items():
            self._http_data(stream_id, data, ended)

    def _request(self, stream_id: int, headers: events.Headers, ended: bool) -> None:
        """Take a request's headers, or its trailers, which mean nothing here."""
        if stream_id in self.sessions or self.quic.closed:
            return
        if not self.quic.takes_data(stream_id):
            # The client stopped reading the answer before there was one.
            self._cancelled()
            self._refuse_request(stream_id, codes.H3_REQUEST_CANCELLED, ended)
            return
        if not requests.is_session_request(headers):
            # RFC 9220 3 wants 501 for an unknown :protocol; nothing else is served yet either.
            self._respond(stream_id, 501, ended=ended)
            return
        draft = codes.session_draft(
            dict(headers)[b":protocol"],
            codes.DRAFT02_REQUEST in headers,
            self._peer_settings,
        )
        request = requests.parse_request(stream_id, headers, draft)
        if isinstance(request, str):
            self._malformed(stream_id, ended)
            return
        if self._live_sessions() >= self._max_sessions(draft):
            self._refuse_request(stream_id, codes.H3_REQUEST_REJECTED, ended)
            return
        session = self._add_session(stream_id, draft)
        session.choice_header = requests.choice_header(draft, headers)
        self._events.append(request)

    def _malformed(self, stream_id: int, ended: bool) -> None:
        # RFC 9114 4.1.2: a malformed message is an error of its stream alone.
        self.counters["requests_malformed"] += 1
        self._spend()
        session = self.sessions.get(stream_id)
        if session is None:
            self._refuse_request(stream_id, codes.H3_MESSAGE_ERROR, ended)
        elif session.live:
            self._lose_session(session, codes.H3_MESSAGE_ERROR, codes.H3_MESSAGE_ERROR)

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
            self._events.append(events.SessionRefused(stream_id, status, None, headers))
            self._end_session(session, None, "", remote=True, silent=True)
            return
        stopped = self.quic.reset_code(stream_id)
        if stopped is not None:
            # A session that we cannot end in order is none.
            self._session_lost(session, stopped)
            return
        chosen = requests.chosen_subprotocol(headers, session.offered, tokens=session.draft.tokens)
        self._events.append(events.SessionAccepted(stream_id, chosen, headers))
        self._open(session)

    def _body(self, stream_id: int, data: bytes, ended: bool) -> int:
        """Take what DATA frames carry; returns how many bytes are kept until somebody reads."""
        self._session_data(stream_id, data, ended)
        return 0

    # Capsules

    def _session_data(self, session_id: int, data: bytes, ended: bool) -> None:
        session = self.sessions.get(session_id)
        if session is None:
            return
        if not session.live:
            if session.close_received and data:
                self._after_close(session_id)
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
            for capsule in received:
                if capsule.type == capsules.CLOSE_SESSION:
                    # The reader stops there: what is pending is behind it.
                    if session.reader.pending:
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
        if capsule.type in capsules.PROHIBITED:
            return False
        limit = capsules.parse_limit(capsule.payload)
        match capsule.type:
            case capsules.MAX_DATA:
                grew = flow.raise_data(limit)
                self._wake_writers(session)
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
        self._cancelled()
        self._lose_session(session, codes.H3_REQUEST_CANCELLED, code)

    def _cancelled(self) -> None:
        """Count a session that its client asked for, and threw away."""
        if not self.is_client:
            self.counters["requests_cancelled"] += 1
            self._spend()

    def _spend(self) -> None:
        """Take one off what a client may ask for in vain; close once nothing is left."""
        if not (self.is_client or self._cancellations.spend(self._now)):
            self.quic.close(codes.H3_EXCESSIVE_LOAD, "Too many requests for nothing")

    def _break_session(self, session: Session, code: int) -> None:
        """End a session whose peer broke a rule."""
        self.counters["sessions_broken"] += 1
        self._lose_session(session, code, code)

    def _lose_session(self, session: Session, code: int, reported: int) -> None:
        """Reset a session's request with a code; a client that still asks for it is told one."""
        refused = self.is_client and session.phase is SessionPhase.CONNECTING
        self.quic.reset(session.id, code)
        self.quic.stop(session.id, code)
        if refused:
            self._events.append(events.SessionRefused(session.id, None, reported, []))
        self._end_session(session, None, "", remote=True, silent=refused)

    # Life of a session

    @property
    def _peer_settings(self) -> dict[int, int]:
        return (self._h3.settings if self._h3 is not None else None) or {}

    def _max_sessions(self, draft: codes.Draft) -> int:
        # webtrans-http3-16 5.2: without flow control a connection has one session. Drafts up to
        # 12 had no such rule.
        if draft.number > 12 and not flow_is_on(draft, self.settings, self._peer_settings):
            return 1
        if self.is_client and draft.number in (12, 14):
            # In these drafts the setting is the number that the server takes.
            offered = self._peer_settings.get(draft.setting, 0)
            return min(self.config.max_sessions_per_connection, offered)
        return self.config.max_sessions_per_connection

    def _live_sessions(self) -> int:
        return sum(session.live for session in self.sessions.values())

    def _add_session(self, session_id: int, draft: codes.Draft) -> Session:
        session = self.sessions[session_id] = Session(session_id, draft)
        self._early_since.pop(session_id, None)
        if flow_is_on(draft, self.settings, self._peer_settings):
            session.flow = SessionFlow(self.settings, self._peer_settings)
        account = self._early_accounts.pop(session_id, None)
        if account is not None and session.flow is not None:
            session.flow.write_off(account[:2], account[2])
        return session

    def _open(self, session: Session) -> None:
        """Begin a session: capsules that waited for it are read."""
        session.phase = SessionPhase.OPEN
        early, session.early = bytes(session.early), bytearray()
        self._give_session_credit(session, 0)
        for unidirectional in (False, True):
            self._give_stream_credit(session, unidirectional)
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
        self._early_datagrams = deque(d for d in self._early_datagrams if d[0] != session.id)
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
