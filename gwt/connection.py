"""
Drive one QUIC connection: datagrams in, greenlets woken, datagrams out.

Everything here but the few calls that say so runs in the quiet zone: called from the endpoint's
reader or from a hub callback, so nothing may wait, log, or run user code. The protocol decides;
this file carries bytes. What wakes user code is feeding a stream or a session.
"""

from __future__ import annotations

import itertools
import logging
import time
import traceback
from collections.abc import Callable, MutableMapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

import gevent
from gevent.hub import get_hub

from .config import TransportConfig
from .errors import ConnectionClosed
from .lifetime import Lifetime
from .net.receiver import TURN
from .net.timers import in_time
from .net.udp import Address, UdpEndpoint
from .net.udpsocket import shown
from .net.waiting import Deadline, Signal, native_thread
from .observe import Counters
from .protocol import codes, events
from .protocol.webtransport import WebTransport
from .states import ConnectionState

if TYPE_CHECKING:
    from .session import WebTransportSession
    from .stream_common import StreamHalf
    from .tunnel import Tunnel

__all__ = ["ConnectionState", "WebTransportConnection"]

logger = logging.getLogger("gwt")

_ids = itertools.count(1)


class WebTransportConnection(Lifetime):
    """
    One QUIC connection and the sessions on it; user code meets it as ``session.connection``.

    Closing it ends every session on it.
    """

    def __init__(
        self,
        endpoint: UdpEndpoint,
        protocol: WebTransport,
        routes: MutableMapping[bytes, Any],
        config: TransportConfig,
        *,
        keep_alive: bool,
        clock: Callable[[], float] = time.monotonic,
        changed: Signal | None = None,
    ) -> None:
        super().__init__(config, keep_alive=keep_alive, clock=clock)
        self.endpoint = endpoint
        self.protocol = protocol
        self.id = f"connection-{next(_ids)}"
        self.state = ConnectionState.CONNECTING
        self.counters = Counters()
        self.is_client = protocol.is_client

        # Sessions by CONNECT stream id; a session leaves when it ended, before its handler
        # returns. Streams by id, of all sessions.
        self._sessions: dict[int, WebTransportSession] = {}
        self._streams: dict[int, Any] = {}

        # Tunnels by the same, until both directions of their stream are over.
        self._tunnels: dict[int, Tunnel] = {}

        # Why the connection ended, set once: the first reason wins. And what the network said.
        self.closed: ConnectionClosed | None = None
        self.network_error: OSError | None = None

        # Answers a request for a session; on a server only.
        self.on_request: (
            Callable[[WebTransportConnection, events.SessionRequested], None] | None
        ) = None

        # Answers a request for a tunnel; on a server that takes them only.
        self.on_tunnel: Callable[[WebTransportConnection, events.TunnelRequested], None] | None = (
            None
        )

        # Told when the handshake is completed; on a server only.
        self.on_connected: Callable[[WebTransportConnection], object] | None = None

        self._hub = get_hub()
        self._thread = native_thread()
        self._changed = changed or Signal()
        self._end_callbacks: list[Callable[[Any], None]] | None = []
        self._gone_callbacks: list[Callable[[], None]] = []

        # Where a client sends to first; where the peer is now, and which address of ours it uses.
        self.destination: Address | None = None
        self._peer: Address | None = None
        self._local: str | None = None

        # Connection ids that lead here, or did until it was gone.
        self._routes = routes
        self.connection_ids: set[bytes] = set()

        # True while a flush is due at the end of this turn of the loop.
        self._flush_due = False
        self.add_route(protocol.quic.connection_id)

    def __repr__(self) -> str:
        return (
            f"<WebTransportConnection {self.id} {self.state.value} "
            f"peer={self.remote_address} sessions={len(self._sessions)}>"
        )

    # What users may ask

    @property
    def is_closed(self) -> bool:
        """Whether the connection carries nothing any more."""
        return self.closed is not None

    @property
    def remote_address(self) -> tuple[str, int] | None:
        """
        The peer's address as (host, port), which changes when it moves (RFC 9000 9).

        IPv4 addresses are never mapped.
        """
        return shown(self._peer) if self._peer is not None else None

    @property
    def local_address(self) -> tuple[str, int] | None:
        """Our address as (host, port), of the interface that the peer's packets came to."""
        if self.endpoint.closed:
            return None
        bound = self.endpoint.address
        return shown((self._local, bound[1]) if self._local else bound)

    @property
    def sessions(self) -> list[WebTransportSession]:
        """The live sessions on this connection."""
        return list(self._sessions.values())

    def close(self, code: int = 0, reason: str = "") -> None:
        """
        Close the connection at once, and with it every session; idempotent, does not wait.

        `code` 0 is H3_NO_ERROR on the wire. To lose nothing, close the sessions first.
        """
        self.check_thread()
        if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code < 1 << 62:
            raise ValueError(f"A code must be an integer from 0 to 2**62 - 1, not {code!r}.")
        if self.closed is None:
            self.protocol.close(code or codes.H3_NO_ERROR, reason)
            self.pump()
            if self._peer is None:
                # Nothing ever came, so that no packets are to be expected after the end.
                self._gone()

    abort = close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until the connection is closed, by whomever; raises TimeoutError."""
        self.check_thread()
        deadline = Deadline(timeout)
        while self.closed is None:
            self._changed.wait(deadline)

    def stats(self) -> dict[str, Any]:
        """Return round-trip time, congestion window, and counters; sizes in bytes."""
        return {
            **self.protocol.quic.stats(),
            **self.protocol.counters,
            **self.counters,
            "sessions": len(self._sessions),
            "webtransport_streams": len(self._streams) - len(self._tunnels),
            "tunnels": len(self._tunnels),
        }

    def on_end(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback(connection)`` once it has ended, at once if it has; it must not wait."""
        if self._end_callbacks is None:
            callback(self)
        else:
            self._end_callbacks.append(callback)

    # For the floor's other files

    def check_thread(self) -> None:
        """Raise RuntimeError in another thread than the one whose hub drives the connection."""
        if native_thread() != self._thread:
            raise RuntimeError(
                "This object belongs to the hub of another thread; use server.call() to reach it."
            )

    def wait_change(self, deadline: Deadline) -> None:
        """Block until the connection became ready, or closed."""
        self._changed.wait(deadline)

    def start_client(self, address: Address) -> None:
        """Send the first packets to a server."""
        self.destination = address
        self.protocol.quic.connect(address, self._clock())
        self.send_now()

    def pump(self) -> None:
        """Let what the protocol was just told take effect at once: events and packets."""
        self._dispatch_all(self.protocol.next_events())
        self.send_now()

    def fail(self, error: OSError) -> None:
        """End a connection whose peer cannot be reached: no packet more, and no closing period."""
        if self.closed is None:
            self.network_error = error
            self.protocol.quic.close(codes.QUIC_INTERNAL_ERROR, str(error), application=False)
            self.protocol.close()
            self._dispatch_all(self.protocol.next_events())
        self._gone()

    def reject(self, session: WebTransportSession, status: int, **answer: Any) -> None:
        """Refuse a session that a client asked for."""
        self._sessions.pop(session.stream_id, None)
        self.protocol.reject_session(session.stream_id, status, **answer)
        session.feed_ended(None, f"rejected with status {status}", False)
        self.note_unused()
        self.pump()

    def add_session(self, session: WebTransportSession) -> None:
        """Feed a session from now on."""
        self._sessions[session.stream_id] = session

    def add_stream(self, stream: StreamHalf) -> None:
        """Feed a stream from now on."""
        self._streams[stream.stream_id] = stream

    def forget_stream(self, stream_id: int) -> None:
        """Feed a stream no more."""
        self._streams.pop(stream_id, None)

    def add_tunnel(self, tunnel: Tunnel) -> None:
        """Feed a tunnel, and its stream, from now on."""
        self._tunnels[tunnel.stream_id] = tunnel
        self.add_stream(tunnel.stream)

    def forget_tunnel(self, stream_id: int) -> None:
        """Feed a tunnel no more: it is over."""
        if self._tunnels.pop(stream_id, None) is not None:
            self.note_unused()

    def add_route(self, connection_id: bytes) -> None:
        """Take datagrams for a connection id."""
        self.connection_ids.add(connection_id)
        self._routes[connection_id] = self

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the closing period is over and nothing more is sent."""
        self._gone_callbacks.append(callback)

    # Receiver: in

    def receive(self, datagrams: list[bytes], address: Address, local: str | None) -> list[bytes]:
        """Take datagrams; returns what is left for another turn. Never raises: the reader lives."""
        now = self._clock()
        heard = self.protocol.quic.heard
        some = in_time(waiting := iter(datagrams), now + TURN, self._clock)
        try:
            happened = self.protocol.receive_datagrams(some, address, now)
            if self.protocol.quic.heard > heard:
                # Only what the peer's keys protect says that it lives, and where.
                self.last_active = now
                peer = self.protocol.quic.peer_address
                if peer == address:
                    # Not where just anybody says that the packet comes from: QUIC decides.
                    if self._peer not in (None, peer):
                        self.counters["migrations"] += 1
                    self._peer, self._local = peer, local
            self._dispatch_all(happened)
        except Exception:
            # Safety net: the protocol closes on a peer's errors, it does not raise.
            self._broken()
        if not self.protocol.quic.heard and not self.is_client:
            self.fail(OSError("what should have been a first packet was none"))
        return list(waiting)

    def _dispatch_all(self, happened: list[events.Event]) -> None:
        if happened and self.closed is None:
            last = happened[-1]
            if isinstance(last, events.ConnectionEnded):
                # Known before its sessions end, since it is the reason why they do.
                self.closed = ConnectionClosed(
                    last.code, last.reason, last.remote, application=last.application
                )
        for event in happened:
            self._dispatch(event)

    def _dispatch(self, event: events.Event) -> None:
        streams = self._streams
        match event:
            case events.StreamDataReceived(stream_id, data, ended):
                if (stream := streams.get(stream_id)) is not None:
                    stream.feed(data, ended)
            case events.StreamOpened(session_id, stream_id):
                if (session := self._sessions.get(session_id)) is not None:
                    session.feed_stream(stream_id)
            case events.DatagramReceived(session_id, data):
                if (session := self._sessions.get(session_id)) is not None:
                    session.feed_datagram(data)
            case events.StreamWritable(stream_id) | events.StreamFlushed(stream_id):
                if (stream := streams.get(stream_id)) is not None:
                    stream.feed_writable()
            case events.StreamFinished(stream_id):
                if (stream := streams.get(stream_id)) is not None:
                    stream.feed_finished()
            case events.StreamReset(stream_id, code, reliable):
                if (stream := streams.get(stream_id)) is not None:
                    stream.feed_reset(code, reliable)
            case events.StreamStopped(stream_id, code):
                if (stream := streams.get(stream_id)) is not None:
                    stream.feed_stopped(code)
            case events.StreamAvailable(session_id):
                if (session := self._sessions.get(session_id)) is not None:
                    session.feed_available()
                else:
                    # For a tunnel, which has no object before it has a stream.
                    self._changed.notify()
            case events.TunnelRequested():
                assert self.on_tunnel is not None
                self.on_tunnel(self, event)
            case events.TunnelAccepted(stream_id, headers):
                if (tunnel := self._tunnels.get(stream_id)) is not None:
                    tunnel.feed_accepted(headers)
            case events.TunnelRefused(stream_id, status, code, headers):
                if (tunnel := self._tunnels.get(stream_id)) is not None:
                    tunnel.feed_refused(status, code, headers)
            case events.SessionRequested():
                assert self.on_request is not None
                self.on_request(self, event)
            case events.SessionAccepted(session_id, subprotocol, headers):
                if (session := self._sessions.get(session_id)) is not None:
                    session.feed_accepted(subprotocol, headers)
            case events.SessionRefused(session_id, status, code, headers):
                if (session := self._sessions.pop(session_id, None)) is not None:
                    session.feed_refused(status, code, headers)
            case events.SessionDraining(session_id):
                if (session := self._sessions.get(session_id)) is not None:
                    session.feed_draining()
            case events.SessionEnded(session_id, code, reason, remote):
                if (session := self._sessions.pop(session_id, None)) is not None:
                    session.feed_ended(code, reason, remote)
                self.note_unused()
            case events.SessionGone():
                self._changed.notify()
                self._close_if_unused()
            case events.ConnectionIdAdded(connection_id):
                self.add_route(connection_id)
            case events.ConnectionIdRetired(connection_id):
                self._drop_route(connection_id)
            case events.HandshakeCompleted():
                self.state = ConnectionState.CONNECTED
                self._changed.notify()
                if self.on_connected is not None:
                    self.on_connected(self)
            case events.ConnectionReady():
                self._changed.notify()
            case events.ConnectionEnded():
                self._end()

    def _close_if_unused(self) -> None:
        # webtrans-http3-16 6: our close of the session has been acknowledged, so the
        # connection's cannot overtake it. A client's connection is there for its sessions.
        used = self.protocol.sessions or self._tunnels
        if self.is_client and not used and self.closed is None:
            self.protocol.close(codes.H3_NO_ERROR)
            self._dispatch_all(self.protocol.next_events())

    def _broken(self) -> None:
        text = traceback.format_exc()
        self.counters.note("internal_errors", text)
        # The quiet zone does not log; a greenlet does.
        gevent.spawn(logger.error, "A connection was closed by an internal error.\n%s", text)
        self.protocol.close(codes.H3_INTERNAL_ERROR, "internal error")
        self._dispatch_all(self.protocol.next_events())

    def _end(self) -> None:
        if self.closed is None or self.state is ConnectionState.CLOSED:
            return
        self.state = ConnectionState.CLOSED
        for session in list(self._sessions.values()):
            session.feed_ended(None, self.closed.reason, self.closed.remote)
        self._sessions.clear()
        for tunnel in list(self._tunnels.values()):
            tunnel.feed_ended(self.closed)
        self._changed.notify()
        callbacks, self._end_callbacks = self._end_callbacks or [], None
        for callback in callbacks:
            callback(self)

    # Out

    def flush_soon(self) -> None:
        """Send at the end of this turn of the loop: many writes share packets."""
        if not self._flush_due:
            self._flush_due = True
            self._hub.loop.run_callback(self._flush_if_due)

    def flush(self) -> None:
        """
        Receiver: what the endpoint calls after a drain.

        The greenlets that the drain woke run before the flush, and so do those that they spawn,
        so that what they write shares packets with the acknowledgements.
        """
        if not self._flush_due:
            self._flush_due = True
            self._hub.loop.run_callback(self._hub.loop.run_callback, self._flush_if_due)

    def _flush_if_due(self) -> None:
        if self._flush_due:
            self.send_now()

    def send_now(self) -> None:
        """One pass of sending, and the timer set to what comes next. Never raises."""
        self._flush_due = False
        if self.endpoint.closed or self.network_error is not None:
            return
        if self.endpoint.blocked:
            self.endpoint.flush_when_writable(self)
            return
        try:
            protocol = self.protocol
            outgoing = protocol.datagrams_to_send(self._clock())
            if outgoing:
                self._send(outgoing)
            self._dispatch_all(protocol.next_events())
            self._arm()
        except Exception:
            # Safety net: bytes of a peer have been looked at before they are answered.
            if self.closed is None:
                self._broken()
            else:
                self._gone()

    def _send(self, outgoing: list[tuple[bytes, Address]]) -> None:
        # Probes of another path go elsewhere than the rest.
        for address, group in itertools.groupby(outgoing, key=itemgetter(1)):
            self.endpoint.send([data for data, _ in group], address, self._local)

    def _drop_route(self, connection_id: bytes) -> None:
        self.connection_ids.discard(connection_id)
        if self._routes.get(connection_id) is self:
            del self._routes[connection_id]

    def _gone(self) -> None:
        """The closing period is over: nothing leads here any more."""
        self._timer.close()
        self._flush_due = False
        for connection_id in self.connection_ids:
            if self._routes.get(connection_id) is self:
                del self._routes[connection_id]
        callbacks, self._gone_callbacks = self._gone_callbacks, []
        for callback in callbacks:
            callback()
        self.protocol.quic.release()
