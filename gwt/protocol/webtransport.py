"""
One QUIC connection that carries WebTransport sessions, client or server (webtrans-http3).

Theory of operation. QUIC tells this file about streams by id. A stream that the peer opened
starts with a varint that says what it is: a WebTransport stream names its session and then
belongs to this file; everything else belongs to HTTP/3. A session is an extended CONNECT request
whose body is a sequence of capsules. Streams and datagrams may arrive before their session and
wait for it within a bound; a session that ends takes its streams along. A CONNECT request of the
classic kind is a tunnel (tunnels.py): a stream that belongs to no session.

Events go up in the order in which things happened. The floor above answers by calling down:
accept, reject, open, send, consume, close. Nothing here raises on what a peer sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import capsules, codes, events, requests
from .capsules import encode_varint
from .records import SessionPhase, Stream, Tunnel, missing_requirement
from .seam import Address
from .tunnels import Tunnels

__all__ = ["WebTransport"]


class WebTransport(Tunnels):
    """The protocol of one connection."""

    # In

    def receive_datagrams(
        self, datagrams: Iterable[bytes], address: Address, now: float
    ) -> list[events.Event]:
        """Take datagrams from one address; returns what they brought about."""
        self._now = now
        self.quic.feed(datagrams, address, now)
        self.quic.drain(self)
        return self.next_events()

    def on_timer(self, now: float) -> list[events.Event]:
        """Let time pass; returns what that brought about."""
        self._now = now
        self.quic.on_timer(now)
        self.quic.drain(self)
        self._expire(now)
        return self.next_events()

    def next_timer(self) -> float | None:
        """Return when on_timer() wants to be called; None once the connection is over."""
        deadline = self.quic.deadline()
        if self._early_since and deadline is not None:
            oldest = next(iter(self._early_since.values()))
            return min(deadline, oldest + self.config.pending_timeout)
        return deadline

    def next_events(self) -> list[events.Event]:
        """Return the events that calls from above brought about since the last time."""
        pending, self._events = self._events, []
        return pending

    # Out

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Return what to send now, with addresses; call after every other call. Never raises."""
        datagrams = self.quic.poll(now)
        # Sending issues connection ids, which the peer may use from now on.
        self.quic.drain(self)
        return datagrams

    def close(self, code: int = codes.H3_NO_ERROR, reason: str = "") -> None:
        """Close the connection and with it every session, at once."""
        self._closing = True
        self.quic.close(code, reason)
        self.quic.drain(self)

    # Sessions, client

    def missing_requirement(self) -> str | None:
        """Return what the server lacks for WebTransport, or None; known once it is ready."""
        return missing_requirement(
            self.draft, self._peer_settings, datagrams=self.quic.max_datagram > 0
        )

    def may_open_session(self) -> bool:
        """Return whether one more session fits on this connection."""
        if not self.ready or self.quic.closed or self.draft is None:
            return False
        # One that has ended counts until the server has acknowledged it: its end can be lost, and
        # overtaken by the next request.
        return len(self.sessions) < self._max_sessions(self.draft)

    def open_session(
        self,
        authority: str,
        path: str,
        *,
        origin: str | None = None,
        subprotocols: Sequence[str] = (),
        headers: events.Headers | None = None,
    ) -> int | None:
        """Request a session; returns its id, or None while the server allows no stream."""
        assert self.ready and self._h3 is not None and self.draft is not None
        # First what can fail: a URL that is not ASCII is the caller's error.
        request = requests.build_request(
            self.draft,
            authority,
            path,
            origin=origin,
            subprotocols=subprotocols,
            headers=headers,
        )
        session_id = self.quic.open(unidirectional=False)
        if session_id is None:
            return None
        session = self._add_session(session_id, self.draft)
        session.offered = tuple(subprotocols)
        self._h3.send_headers(session_id, request)
        return session_id

    # Sessions, server

    def accept_session(
        self,
        session_id: int,
        *,
        subprotocol: str | None = None,
        headers: events.Headers | None = None,
    ) -> bool:
        """Answer a request with 200; returns False if it is gone meanwhile."""
        session = self.sessions.get(session_id)
        if session is None or session.phase is not SessionPhase.CONNECTING or self._h3 is None:
            return False
        response = requests.build_response(
            session.draft, subprotocol=subprotocol, headers=headers, choice=session.choice_header
        )
        self._h3.send_headers(session_id, response)
        self._open(session)
        return True

    def reject_session(
        self, session_id: int, status: int, headers: events.Headers | None = None, body: bytes = b""
    ) -> None:
        """Answer a request with another status, a bounded body, and the end."""
        session = self.sessions.get(session_id)
        if session is None or session.phase is not SessionPhase.CONNECTING:
            return
        self._respond(session_id, status, headers, body)
        # What still arrives is ignored from here on.
        session.receive_done = True
        self._end_session(session, None, "", remote=False, silent=True)

    # Sessions, both

    def close_session(self, session_id: int, code: int = 0, reason: str = "") -> None:
        """Send CLOSE and the end (webtrans-http3-16 6); the session is over at once."""
        session = self.sessions.get(session_id)
        if session is None or not session.live:
            return
        if session.phase is SessionPhase.CONNECTING:
            self.abort_session(session_id)
            return
        assert self._h3 is not None
        capsule = capsules.encode_close(code, _reason_bytes(reason))
        self._h3.send_data(session_id, capsule, end=True)
        self._end_session(session, code, reason, remote=False)

    def abort_session(self, session_id: int, code: int = codes.H3_REQUEST_CANCELLED) -> None:
        """Reset and stop the CONNECT stream: Chromium does not notice a reset alone."""
        session = self.sessions.get(session_id)
        if session is not None and session.live:
            self.quic.reset(session_id, code)
            self.quic.stop(session_id, code)
            self._end_session(session, None, "", remote=False)

    def drain_session(self, session_id: int) -> None:
        """Ask the peer to bring the session to an end."""
        session = self.sessions.get(session_id)
        if session is not None and session.phase is SessionPhase.OPEN:
            self._send_capsule(session, capsules.DRAIN_SESSION)

    def export(
        self, session_id: int, label: str | bytes, length: int, context: bytes = b""
    ) -> bytes:
        """
        Return keying material of a session (webtrans-http3-16 4.8).

        Raises ValueError for a label, context or length that cannot be.
        """
        name = label.encode() if isinstance(label, str) else bytes(label)
        if not 1 <= len(name) <= 255:
            raise ValueError(f"A label has between 1 and 255 bytes, not {len(name)}.")
        if len(context) > 255:
            raise ValueError(f"A context has at most 255 bytes, not {len(context)}.")
        # Every session has its own, and no application can name another protocol's.
        scope = session_id.to_bytes(8) + bytes((len(name),)) + name
        scope += bytes((len(context),)) + context
        return self.quic.export(b"EXPORTER-WebTransport", scope, length)

    # Streams

    def open_stream(self, session_id: int, unidirectional: bool) -> int | None:
        """Return a new stream of a session, or None while there is no credit for one."""
        session = self.sessions.get(session_id)
        if session is None or session.phase is not SessionPhase.OPEN:
            return None
        if session.flow is not None and not session.flow.may_open(unidirectional):
            return None
        stream_id = self.quic.open(unidirectional)
        if stream_id is None:
            return None
        kind = codes.STREAM_TYPE_WEBTRANSPORT if unidirectional else codes.FRAME_TYPE_WEBTRANSPORT
        prefix = encode_varint(kind) + encode_varint(session_id)
        stream = Stream(stream_id, session_id, prefix=len(prefix), own=True)
        stream.receive_done = unidirectional
        self.streams[stream_id] = session.streams[stream_id] = stream
        if session.flow is not None:
            session.flow.streams_opened[unidirectional] += 1
        self.quic.write(stream_id, prefix)
        self.quic.keep(stream_id, len(prefix))
        if not unidirectional:
            self.accept_stream(stream_id)
        return stream_id

    def want_stream(self, session_id: int) -> None:
        """Ask for StreamAvailable when open_stream() is worth trying again."""
        session = self.sessions.get(session_id)
        if session is not None and session.live:
            self._openers.add(session_id)

    def accept_stream(self, stream_id: int) -> None:
        """Note that the application takes care of a stream: it may have its full window."""
        stream = self.streams.get(stream_id)
        if stream is None or stream.accepted:
            return
        stream.accepted = True
        if not stream.own:
            self._unaccepted -= stream.unread
        session = self.sessions.get(stream.session_id)
        if session is None or stream.receive_done:
            # It may be over; its slot was taken until now.
            self._finish(stream)
            return
        self._widen(stream)

    def accepted(self, stream_id: int) -> bool:
        """Return whether a stream is known and has been accepted."""
        stream = self.streams.get(stream_id)
        return stream is not None and stream.accepted

    def consumed(self, stream_id: int, size: int) -> bool:
        """
        Note that the application read bytes: the peer may send as many more.

        Returns whether that is worth telling the peer now.
        """
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        stream.unread -= size
        if not stream.accepted:
            self._unaccepted -= size
        due = self._give_credit(stream, size)
        self._finish(stream)
        return due or stream_id not in self.streams

    def room(self, stream_id: int) -> int:
        """Return how many bytes send_stream() should be given now; 0 when its writer must wait."""
        stream = self.streams.get(stream_id)
        return 0 if stream is None or stream.send_done else self._room(stream)[0]

    def want_room(self, stream_id: int) -> None:
        """Ask for StreamWritable when there is room again; of a stream that is over, nothing."""
        if stream_id in self.streams:
            self._writers.add(stream_id)

    def want_flush(self, stream_id: int) -> bool:
        """Ask for StreamFlushed; returns False if there is nothing to wait for."""
        if stream_id not in self.streams or not self.quic.buffered(stream_id):
            return False
        self._flushers.add(stream_id)
        return True

    def send_stream(self, stream_id: int, data: bytes, end: bool = False) -> bool:
        """Append to a stream; returns False if it takes nothing any more."""
        stream = self.streams.get(stream_id)
        if stream is None or stream.pending_reset is not None:
            return False
        if isinstance(stream, Tunnel):
            return self._send_tunnel(stream, data, end)
        if not self.quic.write(stream_id, data, end):
            return False
        stream.written += len(data)
        session = self.sessions.get(stream.session_id)
        if session is not None and session.flow is not None:
            session.flow.sent += len(data)
        return True

    def reset_stream(self, stream_id: int, code: int = 0) -> None:
        """Abandon sending with an application code; what was not sent never will be."""
        stream = self.streams.get(stream_id)
        if stream is not None and not stream.send_done and stream.pending_reset is None:
            self._reset(stream, stream.wire_code(code))

    def _reset(self, stream: Stream, code: int) -> None:
        unknown = stream.own and self.quic.acked(stream.id) < stream.prefix
        if unknown and not self.quic.partial_resets:
            # A reset discards what is in flight, and a peer that never saw the prefix never
            # learns that the stream existed: the reset follows when the prefix has arrived.
            stream.pending_reset = code
            return
        self._unsend(stream)
        self.quic.reset(stream.id, code)
        self.quic.drain(self)

    def stop_stream(self, stream_id: int, code: int = 0) -> None:
        """Ask the peer to stop sending; what still arrives is discarded."""
        stream = self.streams.get(stream_id)
        if stream is None or stream.stopped:
            return
        stream.stopped = True
        if not stream.receive_done:
            self.quic.stop(stream_id, stream.wire_code(code))

    # Datagrams

    def max_datagram_size(self, session_id: int) -> int:
        """Return the largest datagram of a session; 0 if the peer takes none."""
        return max(0, self.quic.max_datagram - len(encode_varint(session_id // 4)))

    def send_datagram(self, session_id: int, data: bytes) -> bool:
        """Queue a datagram; returns False if the session is not open or it can never be sent."""
        session = self.sessions.get(session_id)
        if session is None or session.phase is not SessionPhase.OPEN:
            return False
        return self.quic.send_datagram(encode_varint(session_id // 4) + data)


def _reason_bytes(reason: str) -> bytes:
    """Encode a reason within its limit, without cutting a character."""
    data = reason.encode("utf-8", "replace")
    return data[: capsules.MAX_REASON].decode("utf-8", "ignore").encode()
