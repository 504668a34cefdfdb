"""
What arrives on a connection with WebTransport: streams told apart, datagrams assigned.

The receiving half of webtransport.py, which has the theory of operation; it answers to
protocol/quic.py as its sink.
"""

from __future__ import annotations

from . import codes, events
from .capsules import pull_varint
from .records import Session, SessionPhase, Stream, Tunnel
from .sessions import Sessions

__all__ = ["Incoming"]

# Stream types of HTTP/3 itself (RFC 9114 6.2, RFC 9204 4.2).
_H3_STREAM_TYPES = (0x0, 0x1, 0x2, 0x3)

# However many sessions share a connection, each may have this many streams of the peer's.
_LEAST_SHARE = 8


class Incoming(Sessions):
    """What the peer of one connection does."""

    # QuicSink: streams

    def quic_stream_data(self, stream_id: int, data: bytes, ended: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            if isinstance(stream, Tunnel):
                self._http_data(stream_id, data, ended)
            else:
                self._stream_data(stream, data, ended)
            return
        if stream_id in self._ignored:
            self.quic.consumed(stream_id, len(data))
            refused = self._ignored[stream_id]
            if refused is not None:
                refused.received += len(data)
                self._use_up(refused, len(data))
            if ended:
                del self._ignored[stream_id]
        elif self._h3 is not None and (stream_id in self._held or self._h3.knows(stream_id)):
            self._http_data(stream_id, data, ended)
        elif (stream_id & 1) == self.is_client and self._h3 is not None:
            self._new_stream(stream_id, self._partial.pop(stream_id, b"") + data, ended)
        # Else it is a stream of ours that is over and forgotten.

    def _new_stream(self, stream_id: int, data: bytes, ended: bool) -> None:
        """Tell what a stream of the peer's is by its first bytes."""
        assert self._h3 is not None
        unidirectional = bool(stream_id & 2)
        kind = pull_varint(data)
        if kind is None:
            if not ended:
                self._partial[stream_id] = data
            elif self.is_client:
                # A server's stream that never said what it is; a unidirectional one may.
                self.quic.reset(stream_id, codes.H3_REQUEST_CANCELLED)
            elif not unidirectional:
                # An empty request: HTTP/3 has the answer to that.
                self._http_data(stream_id, data, ended)
            return
        wanted = codes.STREAM_TYPE_WEBTRANSPORT if unidirectional else codes.FRAME_TYPE_WEBTRANSPORT
        if kind[0] != wanted:
            if unidirectional and kind[0] not in _H3_STREAM_TYPES:
                # RFC 9114 6.2: unknown types are not an error; reading them may be aborted.
                self.quic.consumed(stream_id, len(data))
                self._refuse(stream_id, codes.H3_STREAM_CREATION_ERROR, ended)
            elif self.is_client and not unidirectional:
                # RFC 9114 6.1: HTTP/3 has no bidirectional streams of the server's.
                self.quic.close(codes.H3_STREAM_CREATION_ERROR, "Unexpected server stream")
            else:
                self._http_data(stream_id, data, ended)
            return
        session_id = pull_varint(data, kind[1])
        if session_id is None:
            if not ended:
                self._partial[stream_id] = data
            elif not unidirectional:
                # RFC 9114 7.1; a unidirectional one may end before it said what it is (6.2).
                self.quic.close(codes.H3_FRAME_ERROR, "Stream ended inside its prefix")
            return
        self.quic.consumed(stream_id, session_id[1])
        self._new_webtransport_stream(
            stream_id, session_id[0], data[session_id[1] :], ended, prefix=session_id[1]
        )

    def _valid_session_id(self, session_id: int) -> bool:
        # webtrans-http3-16 4: a session id is that of a client's bidirectional stream.
        if session_id % 4 or session_id >= 1 << 62:
            return False
        if self.is_client:
            return session_id < self.quic.next_stream_id(False)
        return self.quic.may_open(session_id)

    def _session_over(self, session_id: int) -> bool:
        session = self.sessions.get(session_id)
        if session is not None:
            return not session.live
        # A request that has been answered, or refused, will not become a session.
        return self.is_client or self.quic.sending_over(session_id)

    def _new_webtransport_stream(
        self, stream_id: int, session_id: int, body: bytes, ended: bool, prefix: int
    ) -> None:
        if not self._valid_session_id(session_id):
            self.quic.close(codes.H3_ID_ERROR, "A stream names an impossible session")
            return
        session = self.sessions.get(session_id)
        if self._session_over(session_id):
            self.quic.consumed(stream_id, len(body))
            self._refuse(stream_id, codes.WT_SESSION_GONE, ended)
            return
        stream = Stream(stream_id, session_id, prefix=prefix, own=False)
        stream.send_done = bool(stream_id & 2)
        if session is not None and session.phase is SessionPhase.OPEN:
            problem = self._join(session, stream)
        elif self._early_streams >= self.config.max_pending_streams:
            problem = codes.WT_BUFFERED_STREAM_REJECTED
        else:
            problem = None
        if problem is not None:
            self.counters["streams_refused"] += 1
            self.quic.consumed(stream_id, len(body))
            stream.received = len(body)
            if session is not None and session.phase is SessionPhase.OPEN:
                self._use_up(stream, len(body))
            else:
                self._count_early(stream)
            self._refuse(stream_id, problem, ended, stream)
            return
        # The peer gets credit for a new stream when the application is done with this one.
        self.streams[stream_id] = stream
        self.quic.hold(stream_id, True)
        if session is not None and session.phase is SessionPhase.OPEN:
            self._announce(stream)
        else:
            if session is None:
                self._early_since.setdefault(session_id, self._now)
            stream.early = bytearray()
            self._early_streams += 1
        if body or ended:
            self._stream_data(stream, body, ended)

    def _announce(self, stream: Stream) -> None:
        """Tell of a stream of the peer's, and of what became of its other direction before."""
        self._events.append(events.StreamOpened(stream.session_id, stream.id))
        if stream.id & 2:
            return
        # STOP_SENDING can overtake the prefix, and a stream can wait for its session.
        stopped = self.quic.reset_code(stream.id)
        if stopped is not None:
            stream.stop_received = True
            self._events.append(events.StreamStopped(stream.id, codes.application_code(stopped)))
        if self.quic.sending_finished(stream.id):
            stream.send_done = True
            self._events.append(events.StreamFinished(stream.id))

    def _join(self, session: Session, stream: Stream) -> int | None:
        """Make a peer's stream one of its session's; returns the code to refuse it with."""
        unidirectional = bool(stream.id & 2)
        if session.flow is not None and not session.flow.receive_stream(unidirectional):
            self._break_session(session, codes.WT_FLOW_CONTROL_ERROR)
            return codes.WT_SESSION_GONE
        live = self._live_sessions()
        share = max(_LEAST_SHARE, self.config.max_incoming_streams // live)
        # Alone on its connection a session waits for credit. Beside others it may have its
        # share, or one that accepts nothing would keep the others from opening anything.
        if live > 1 and session.incoming >= share:
            self._close_flow_stream(session, unidirectional)
            return codes.WT_BUFFERED_STREAM_REJECTED
        session.incoming += 1
        session.streams[stream.id] = stream
        # The rule looks at how many the peer has left, too.
        self._give_stream_credit(session, unidirectional)
        return None

    def _open(self, session: Session) -> None:
        """Begin a session: what came before it is told now, in order."""
        super()._open(session)
        if not session.live:
            # What waited for it included its end.
            return
        for stream in [s for s in self.streams.values() if s.session_id == session.id]:
            if stream.early is None or stream.id not in self.streams:
                continue
            self._early_streams -= 1
            early, stream.early = bytes(stream.early), None
            unread, stream.unread = stream.unread, 0
            problem = self._join(session, stream)
            if problem is not None:
                self.counters["streams_refused"] += 1
                if stream.id in self.streams:
                    self._use_up(stream, stream.received)
                    self._abandon(stream, problem)
                continue
            stream.unread = unread
            self._announce(stream)
            ended = stream.receive_done and stream.early_reset is None
            if early or ended:
                self._receive(stream, early, ended)
            if stream.early_reset is not None and stream.id in self.streams:
                self._use_up(stream, stream.received - len(early))
                self._tell_reset(stream, stream.early_reset)
        for _ in range(len(self._early_datagrams)):
            session_id, data = self._early_datagrams.popleft()
            if session_id == session.id:
                self._events.append(events.DatagramReceived(session_id, data))
            else:
                self._early_datagrams.append((session_id, data))

    def _stream_data(self, stream: Stream, data: bytes, ended: bool) -> None:
        stream.receive_done = ended
        stream.received += len(data)
        stream.unread += len(data)
        if stream.early is None:
            self._receive(stream, data, ended)
        else:
            stream.early += data

    def _receive(self, stream: Stream, data: bytes, ended: bool) -> None:
        """Pass data of a session's stream on, if the session may have it."""
        session = self.sessions.get(stream.session_id)
        if session is not None and session.flow is not None and not session.flow.receive(len(data)):
            stream.unread -= len(data)
            self._break_session(session, codes.WT_FLOW_CONTROL_ERROR)
        elif stream.stopped:
            # RFC 9000 3.5: what arrives after STOP_SENDING is not wanted, but it is credit.
            stream.unread -= len(data)
            self._give_credit(stream, len(data))
            self._finish(stream)
        else:
            self._deliver(stream, data, ended)

    def _deliver(self, stream: Stream, data: bytes, ended: bool) -> None:
        if not stream.accepted:
            self._unaccepted += len(data)
            if self._unaccepted > self._unaccepted_limit():
                self.counters["streams_refused"] += 1
                self._events.append(events.StreamReset(stream.id, None))
                if not stream.send_done:
                    self._events.append(events.StreamStopped(stream.id, None))
                self._abandon(stream, codes.WT_BUFFERED_STREAM_REJECTED)
                return
        self._events.append(events.StreamDataReceived(stream.id, data, ended))
        if ended:
            self._finish(stream)
        elif stream.accepted:
            self._widen(stream)

    def _unaccepted_limit(self) -> int:
        config = self.config
        windows = 2 * config.max_incoming_streams * config.initial_stream_window
        return (windows + config.receive_pool) // 4

    def quic_stream_reset(self, stream_id: int, code: int) -> None:
        stream = self.streams.get(stream_id)
        self._partial.pop(stream_id, None)
        self._held.pop(stream_id, None)
        if stream is not None:
            self._stream_reset(stream, code)
        elif stream_id in self._ignored:
            refused = self._ignored.pop(stream_id)
            if refused is not None:
                self._use_up(refused, self._missing(refused))
        elif stream_id in self.sessions:
            session = self.sessions[stream_id]
            session.receive_done = True
            if session.live:
                self._session_lost(session, code)
        elif self._h3 is not None:
            self._h3.receive_reset(stream_id, code)
            if self.is_client and not stream_id & 2:
                # A server's stream that never said what it is.
                self.quic.reset(stream_id, codes.H3_REQUEST_CANCELLED)

    def _missing(self, stream: Stream) -> int:
        """Return the bytes of a stream that was reset which were sent but never arrive."""
        body = self.quic.received(stream.id) - (0 if stream.own else stream.prefix)
        return max(0, body - stream.received)

    def _stream_reset(self, stream: Stream, code: int) -> None:
        if stream.receive_done:
            return
        stream.receive_done = True
        if stream.early is None:
            self._use_up(stream, self._missing(stream))
        else:
            stream.received += self._missing(stream)
        if stream.early is None:
            self._tell_reset(stream, code)
        elif self.quic.reliable(stream.id) >= stream.prefix:
            # The peer wants its session to hear of it (webtrans-http3-16 4.4).
            stream.early_reset = code
        else:
            self._abandon(stream, codes.WT_SESSION_GONE)

    def _tell_reset(self, stream: Stream, code: int) -> None:
        reliable = max(0, self.quic.reliable(stream.id) - (0 if stream.own else stream.prefix))
        # A tunnel's frames count there, too.
        reliable = min(reliable, stream.received)
        self._events.append(events.StreamReset(stream.id, stream.told_code(code), reliable))
        self._finish(stream)

    def quic_stream_stopped(self, stream_id: int, code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            # One that waits for its session is told of with _announce().
            if not (stream.send_done or stream.stop_received) and stream.early is None:
                stream.stop_received = True
                self._unsend(stream)
                self._events.append(events.StreamStopped(stream.id, stream.told_code(code)))
        elif stream_id in self.sessions and self.sessions[stream_id].live:
            session = self.sessions[stream_id]
            connecting = session.phase is SessionPhase.CONNECTING
            if self.is_client and connecting and code == codes.H3_NO_ERROR:
                # RFC 9114 4.1: the response is complete, or about to be; it says the rest.
                return
            self._session_lost(session, code)
        elif self._h3 is not None:
            self._h3.receive_stop(stream_id, code)

    def quic_stream_progress(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            session = self.sessions.get(stream_id)
            if session is not None and not session.live:
                self._forget_session(session)
            return
        if stream.pending_reset is not None and self.quic.acked(stream_id) >= stream.prefix:
            code, stream.pending_reset = stream.pending_reset, None
            self._unsend(stream)
            self.quic.reset(stream_id, code)
        if stream.early is not None:
            return
        if stream_id in self._flushers and not self.quic.buffered(stream_id):
            self._flushers.discard(stream_id)
            self._events.append(events.StreamFlushed(stream_id))
        finished = not stream.send_done and self.quic.sending_finished(stream_id)
        stream.send_done = stream.send_done or finished
        if stream_id in self._writers:
            self._check_writer(stream)
        if finished:
            self._events.append(events.StreamFinished(stream_id))
            self._finish(stream)

    # Datagrams

    def quic_datagram(self, data: bytes) -> None:
        quarter = pull_varint(data)
        if quarter is None:
            self.quic.close(codes.H3_DATAGRAM_ERROR, "A datagram without a quarter stream id")
            return
        session_id = quarter[0] * 4
        if not self._valid_session_id(session_id):
            self.quic.close(codes.H3_ID_ERROR, "A datagram names an impossible session")
            return
        session = self.sessions.get(session_id)
        body = data[quarter[1] :]
        if session is not None and session.phase is SessionPhase.OPEN:
            self._events.append(events.DatagramReceived(session_id, body))
        elif self._session_over(session_id):
            self.counters["datagrams_unknown_session"] += 1
        else:
            if session is None:
                self._early_since.setdefault(session_id, self._now)
            if len(self._early_datagrams) >= self.config.max_pending_datagrams:
                self.counters["datagrams_unknown_session"] += 1
                if not self._early_datagrams:
                    return
                self._early_datagrams.popleft()
            self._early_datagrams.append((session_id, body))
