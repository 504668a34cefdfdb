"""
Tunnels: CONNECT requests of the classic kind (RFC 9114 4.4), asked for, answered, and ended.

A tunnel is a request stream whose DATA frames carry the bytes of a TCP connection. Its record is
that of a stream, in `streams` with all others, so that room, credit, resets and ends are theirs;
what differs stands here: its bytes go through HTTP/3's frames, it belongs to no session, and its
codes are HTTP/3's own. What frames cost beside their payload is credit at once; the payload is,
once the application has read it.
"""

from __future__ import annotations

from . import codes, events, requests
from .incoming import Incoming
from .records import NO_SESSION, Stream, Tunnel

__all__ = ["Tunnels"]

# Who takes a request back sooner has asked in vain. Behind that it is patience that is over, of
# hundreds of clients at once where a target is silent; and no more can be asked than streams are.
_IN_VAIN = 0.25

# More than any stream has.
_EVERYTHING = 1 << 62


class Tunnels(Incoming):
    """The tunnels of one connection."""

    # Whether a server takes requests for tunnels; else they are answered with 501.
    takes_tunnels = False

    # Calls from above, client

    @property
    def going_away(self) -> bool:
        """Whether the proxy wants no new tunnels on this connection (RFC 9114 5.2)."""
        return self._h3 is not None and self._h3.going_away

    def open_tunnel(self, authority: str, headers: events.Headers | None = None) -> int | None:
        """
        Request a tunnel to "host:port"; returns its stream, or None while the proxy allows none.

        want_tunnel() then asks for StreamAvailable, of NO_SESSION, when it is worth trying again.
        Raises ValueError for headers that are larger than the proxy takes (RFC 9114 4.2.2), which
        might end the connection, and other tunnels with it.
        """
        assert self.ready and self._h3 is not None
        request = [(b":method", b"CONNECT"), (b":authority", authority.encode("ascii"))]
        request += headers or []
        size = sum(len(name) + len(value) + 32 for name, value in request)
        limit = self._peer_settings.get(codes.SETTING_MAX_FIELD_SECTION_SIZE, size)
        if size > limit:
            raise ValueError(f"The proxy takes {limit} bytes of headers, and these are {size}.")
        stream_id = self.quic.open(unidirectional=False)
        if stream_id is None:
            return None
        self._add_tunnel(stream_id)
        self._h3.send_headers(stream_id, request)
        return stream_id

    def want_tunnel(self) -> None:
        """Ask for StreamAvailable when open_tunnel() is worth trying again."""
        self._openers.add(NO_SESSION)

    def cancel_tunnel(self, stream_id: int, code: int = codes.H3_REQUEST_CANCELLED) -> None:
        """Give a tunnel up in both directions, whether it was answered or not."""
        tunnel = self._tunnel(stream_id)
        if tunnel is not None:
            self._abandon(tunnel, code)

    def keep_written(self, stream_id: int) -> None:
        """Let a reset come behind what was written so far, where the peer takes such resets."""
        # A reset that is sent has said how much is kept, and would wait for the rest for ever.
        if self._tunnel(stream_id) is not None and self.quic.takes_data(stream_id):
            self.quic.keep(stream_id, _EVERYTHING)

    # Calls from above, server

    def accept_tunnel(self, stream_id: int, headers: events.Headers | None = None) -> bool:
        """Answer a request with 200; returns False if it is gone meanwhile."""
        tunnel = self._tunnel(stream_id)
        if tunnel is None or tunnel.open or self._h3 is None:
            return False
        self._h3.send_headers(stream_id, [(b":status", b"200"), *(headers or [])])
        self._open_tunnel(tunnel)
        return True

    def reject_tunnel(
        self, stream_id: int, status: int, headers: events.Headers | None = None, body: bytes = b""
    ) -> None:
        """Answer a request with another status, a bounded body, and the end."""
        tunnel = self._tunnel(stream_id)
        if tunnel is None or tunnel.open:
            return
        self._respond(stream_id, status, headers, body, ended=tunnel.receive_done)
        self._give_credit(tunnel, tunnel.unread)
        self._forget(tunnel)

    # Life

    def _tunnel(self, stream_id: int) -> Tunnel | None:
        stream = self.streams.get(stream_id)
        return stream if isinstance(stream, Tunnel) else None

    def _add_tunnel(self, stream_id: int) -> Tunnel:
        tunnel = Tunnel(stream_id, NO_SESSION, prefix=0, own=self.is_client, accepted=True)
        tunnel.since = self._now
        self.streams[stream_id] = tunnel
        return tunnel

    def _open_tunnel(self, tunnel: Tunnel) -> None:
        assert self._h3 is not None
        tunnel.open = True
        self._h3.ignore_length(tunnel.id)
        self._widen(tunnel)

    def _widen(self, stream: Stream) -> None:
        # What comes before the answer has the first window, whoever sent it.
        if not isinstance(stream, Tunnel) or stream.open:
            super()._widen(stream)

    def _forget(self, stream: Stream) -> None:
        super()._forget(stream)
        if isinstance(stream, Tunnel) and self._h3 is not None:
            self._h3.forget(stream.id)

    def _refused(
        self, tunnel: Tunnel, status: int | None, code: int | None, headers: events.Headers
    ) -> None:
        """Tell a client that its request came to nothing."""
        self._events.append(events.TunnelRefused(tunnel.id, status, code, headers))
        self._abandon(tunnel, codes.H3_REQUEST_CANCELLED)

    def _taken_back(self, tunnel: Tunnel, code: int) -> None:
        """Deal with a client that does not wait for our answer."""
        self._events.append(events.StreamReset(tunnel.id, code))
        self._events.append(events.StreamStopped(tunnel.id, code))
        self._abandon(tunnel, codes.H3_REQUEST_CANCELLED)
        self.counters["requests_cancelled"] += 1
        if self._now - tunnel.since < _IN_VAIN:
            self._spend()

    def _send_tunnel(self, tunnel: Tunnel, data: bytes, end: bool) -> bool:
        """Append a DATA frame; returns False if the tunnel takes nothing any more."""
        if not tunnel.open or self._h3 is None or not self.quic.takes_data(tunnel.id):
            return False
        if data:
            self._h3.send_data(tunnel.id, data, end)
        elif end:
            self._h3.end(tunnel.id)
        tunnel.written += len(data)
        return True

    # What arrives

    def _note_end(self, stream_id: int, ended: bool) -> None:
        super()._note_end(stream_id, ended)
        tunnel = self._tunnel(stream_id)
        if ended and tunnel is not None:
            tunnel.receive_done = True

    def _request(self, stream_id: int, headers: events.Headers, ended: bool) -> None:
        if self._tunnel(stream_id) is not None:
            self._unexpected()
            return
        if not requests.is_tunnel_request(headers) or self.quic.closed:
            super()._request(stream_id, headers, ended)
            return
        place = requests.parse_tunnel(headers)
        if isinstance(place, str):
            self._malformed(stream_id, ended)
        elif not self.quic.takes_data(stream_id):
            # The client stopped reading the answer before there was one.
            self._cancelled()
            self._refuse_request(stream_id, codes.H3_REQUEST_CANCELLED, ended)
        elif not self.takes_tunnels:
            self._respond(stream_id, 501, ended=ended)
        else:
            assert self._h3 is not None
            self._h3.ignore_length(stream_id)
            self._add_tunnel(stream_id)
            # The peer gets credit for a new stream when this one was read to its end.
            self.quic.hold(stream_id, True)
            self._events.append(events.TunnelRequested(stream_id, *place, headers))

    def _response(self, stream_id: int, headers: events.Headers) -> None:
        tunnel = self._tunnel(stream_id)
        if tunnel is None:
            super()._response(stream_id, headers)
            return
        if tunnel.open:
            self._unexpected()
            return
        status = int(dict(headers)[b":status"])
        if status < 200:
            return
        if status >= 300:
            self._refused(tunnel, status, None, headers)
        elif (stopped := self.quic.reset_code(stream_id)) is not None:
            # A tunnel that nothing can be sent into is none.
            self._refused(tunnel, None, stopped, [])
        else:
            self._events.append(events.TunnelAccepted(stream_id, headers))
            self._open_tunnel(tunnel)

    def _unexpected(self) -> None:
        # RFC 9114 4.4: DATA, and frames that nobody knows; no trailers either.
        self.quic.close(codes.H3_FRAME_UNEXPECTED, "Something else than DATA in a tunnel")

    def _body(self, stream_id: int, data: bytes, ended: bool) -> int:
        tunnel = self._tunnel(stream_id)
        if tunnel is None:
            return super()._body(stream_id, data, ended)
        if not tunnel.open and self.is_client:
            # The end of a response that never came.
            self._refused(tunnel, None, codes.H3_MESSAGE_ERROR, [])
            return 0
        self._stream_data(tunnel, data, ended)
        return len(data)

    def _malformed(self, stream_id: int, ended: bool) -> None:
        tunnel = self._tunnel(stream_id)
        if tunnel is None:
            super()._malformed(stream_id, ended)
        elif tunnel.open or not self.is_client:
            self._unexpected()
        else:
            self.counters["requests_malformed"] += 1
            self._refused(tunnel, None, codes.H3_MESSAGE_ERROR, [])

    def _stream_reset(self, stream: Stream, code: int) -> None:
        if not isinstance(stream, Tunnel) or stream.open:
            super()._stream_reset(stream, code)
            return
        stream.receive_done = True
        if self.is_client:
            self._refused(stream, None, code, [])
        else:
            self._taken_back(stream, code)

    def quic_stream_stopped(self, stream_id: int, code: int) -> None:
        tunnel = self._tunnel(stream_id)
        if tunnel is None or tunnel.open:
            super().quic_stream_stopped(stream_id, code)
        elif not self.is_client:
            self._taken_back(tunnel, code)
        elif code != codes.H3_NO_ERROR:
            self._refused(tunnel, None, code, [])
        # Else the answer is on its way, and says the rest (RFC 9114 4.1).
