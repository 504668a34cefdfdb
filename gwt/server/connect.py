"""
The server's side of tunnels: a CONNECT request answered, and its stream joined to a TCP connection.

Requests come in by requested() in the quiet zone, which only counts and spawns. A tunnel has two
greenlets, one for each way; each holds one piece, and waits for who takes it, so that whoever reads
slowly slows the other end down. The rest is RFC 9114 4.4: an end is an end on the other side, and
whatever breaks breaks the other side.
"""

from __future__ import annotations

import errno
import logging
import socket as _stdlib_socket
import struct
from contextlib import suppress
from itertools import islice
from typing import Any

import gevent
import gevent.socket
from gevent import Greenlet, GreenletExit
from gevent.pool import Group

from ..config import ServerConfig
from ..connection import WebTransportConnection
from ..errors import GwtError, Reject
from ..net.timers import Timer, now
from ..net.waiting import Deadline
from ..observe import Counters
from ..protocol import codes
from ..protocol.events import TunnelRequested
from ..protocol.requests import decode_headers, encode_headers
from ..request import Request
from ..stream import WebTransportStream
from ..tunnel import Tunnel
from .app import App
from .peers import Peers
from .targets import Targets

__all__ = ["ConnectProxy"]

logger = logging.getLogger("gwt.server")

# What is carried at a time.
_PIECE = 64 * 1024

# Addresses of a name that are tried.
_MOST_ADDRESSES = 8

# How often a tunnel is looked at until it counts as idle.
_IDLE_LOOKS = 4

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

# SO_LINGER of 0 seconds: closing is a RST.
_RESET = struct.pack("ii", 1, 0)


class _Gone(GreenletExit):  # type: ignore[misc]
    """The client's side of a tunnel is over."""


class _Broken(GreenletExit):  # type: ignore[misc]
    """The target's side of a tunnel is."""


class _Idle(GreenletExit):  # type: ignore[misc]
    """No byte has moved for too long."""


class _Refusal(Exception):
    """There will be no tunnel; RFC 9209 2.3 has the words for why."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


class ConnectProxy:
    """The tunnels of one server."""

    def __init__(self, app: App, config: ServerConfig, handlers: Group, counters: Counters) -> None:
        self.targets = Targets(config.connect_targets)
        self.stopping = False
        self._app = app
        self._config = config
        self._handlers = handlers
        self._counters = counters
        self._tunnels: set[Tunnel] = set()
        self._peers = Peers(config.max_tunnels_per_address, Counters())

    def __len__(self) -> int:
        return len(self._tunnels)

    def requested(self, connection: WebTransportConnection, event: TunnelRequested) -> None:
        """Quiet zone: count, and hand over to a greenlet."""
        host = f"[{event.host}]" if ":" in event.host else event.host
        peer = connection.remote_address
        headers = decode_headers(event.headers)
        tunnel = Tunnel(connection, event.stream_id, f"{host}:{event.port}", headers)
        if (
            self.stopping
            or len(self._tunnels) >= self._config.max_tunnels
            or len(self._handlers) >= self._config.max_handlers
            or not self._peers.admit(peer)
        ):
            self._counters["tunnels_refused"] += 1
            _reject(tunnel, 503, "connection_limit_reached")
            return
        self._tunnels.add(tunnel)
        self._peers.enter(peer)
        greenlet = Greenlet(self._serve, tunnel, event)
        greenlet.name = f"gwt-tunnel {tunnel.target[:64]}"
        greenlet.rawlink(lambda _: self._over(tunnel, peer))
        # Who takes the request back, or is gone, is not connected for.
        tunnel.stream.on_end(
            lambda _: None if tunnel.accepted else greenlet.kill(_Gone, block=False)
        )
        self._handlers.add(greenlet)
        greenlet.start()

    def _over(self, tunnel: Tunnel, peer: Any) -> None:
        # Not before: a tunnel that its client has closed may still deliver what it sent.
        self._tunnels.discard(tunnel)
        self._peers.leave(peer)

    def _serve(self, tunnel: Tunnel, event: TunnelRequested) -> None:
        sock = None
        try:
            if not self._admitted(tunnel, event):
                return
            try:
                sock = self._connect(event.host, event.port)
            except _Refusal as exc:
                counted = {403: "tunnels_rejected", 503: "tunnels_refused"}
                self._counters[counted.get(exc.status, "tunnels_failed")] += 1
                _reject(tunnel, exc.status, exc.error)
                return
            if not tunnel.accept():
                return
            self._counters["tunnels_opened"] += 1
            logger.info("A tunnel to %s was opened for %s.", tunnel.target, tunnel.remote_address)
            relay = _Relay(tunnel.stream, sock, self._config)
            why = relay.run()
            if why is not None:
                self._counters[why] += 1
            logger.info(
                "The tunnel to %s was closed: %d bytes there, %d back.",
                tunnel.target,
                relay.sent,
                relay.received,
            )
        except _Gone:
            self._counters["tunnels_cancelled"] += 1
        finally:
            # Killed, or gone in the middle: neither side is left waiting.
            if sock is not None:
                sock.close()
            if not tunnel.stream.is_closed:
                tunnel.cancel()

    def _admitted(self, tunnel: Tunnel, event: TunnelRequested) -> bool:
        """Ask the middleware, which may want a password, and then the list of targets."""
        request = Request(
            method="CONNECT",
            protocol="connect",
            path="",
            query_string="",
            authority=tunnel.target,
            origin=tunnel.headers.get("origin"),
            headers=tunnel.headers,
            subprotocols=(),
            remote_address=tunnel.remote_address,
        )
        try:
            self._app.admit(request)
        except Reject as exc:
            self._counters["tunnels_rejected"] += 1
            try:
                headers = encode_headers(exc.headers)
            except (ValueError, TypeError, AttributeError):
                logger.exception("A Reject had headers that cannot be sent.")
                headers = []
            tunnel.reject(exc.status, headers, exc.body)
            return False
        except (Exception, SystemExit, gevent.Timeout):
            # Boundary to user code: middleware.
            logger.exception("Middleware failed for a tunnel to %s.", tunnel.target)
            tunnel.reject(500)
            return False
        if not self.targets.asked(event.host, event.port):
            self._counters["tunnels_rejected"] += 1
            _reject(tunnel, 403, "http_request_denied")
            return False
        return True

    def _connect(self, host: str, port: int) -> Any:
        """Return a connected socket; waits for the resolver and for TCP, raises _Refusal."""
        deadline = Deadline(self._config.connect_timeout)
        try:
            with gevent.Timeout(deadline.remaining(), TimeoutError):
                places = lookup(host, port)
        except TimeoutError:
            raise _Refusal(504, "dns_timeout") from None
        except (OSError, UnicodeError):
            raise _Refusal(502, "dns_error") from None
        try:
            allowed = self._allowed(host, port, places)
        except OSError as exc:
            raise _unreachable(exc) from exc
        if not allowed:
            raise _Refusal(403, "destination_ip_prohibited")
        refusal = _Refusal(504, "connection_timeout")
        for left, (family, address) in zip(range(len(allowed), 0, -1), allowed, strict=True):
            # A silent address leaves the others their share of the time.
            share = (deadline.remaining() or 0.0) / left
            try:
                return connected(family, address, max(share, 0.001))
            except OSError as exc:
                refusal = _unreachable(exc)
                if refusal.status == 503:
                    break
        raise refusal

    def _allowed(self, host: str, port: int, places: list[tuple[int, Any]]) -> list[Any]:
        """Return those addresses of a host that may be connected to, the first of them."""

        def reaches(place: tuple[int, Any], ours: bool = False) -> bool:
            return self.targets.reaches(host, port, str(place[1][0]), ours=ours)

        allowed = list(islice(filter(reaches, places), _MOST_ADDRESSES))
        return [place for place in allowed if not is_ours(*place) or reaches(place, True)]


def lookup(host: str, port: int) -> list[tuple[int, Any]]:
    """Return the (family, address) pairs of a host; waits for gevent's resolver."""
    # What can be no name raises UnicodeError here: in a thread of gevent's it is printed as well,
    # and clients could fill our logs.
    host.encode("idna")
    found = gevent.socket.getaddrinfo(host, port, type=_stdlib_socket.SOCK_STREAM)
    return list(dict.fromkeys((int(family), address) for family, *_, address in found))


def is_ours(family: int, address: Any) -> bool:
    """Return whether an address is one of this machine's: what goes there comes from there."""
    try:
        with gevent.socket.socket(family, _stdlib_socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return bool(probe.getsockname()[0] == address[0])
    except OSError as exc:
        if exc.errno in _OUT_OF_DESCRIPTORS:
            raise
        # It cannot be reached at all, or there is no such family here.
        return False


def connected(family: int, address: Any, timeout: float) -> Any:
    """Return a socket that is connected to an address; raises OSError, TimeoutError."""
    sock = gevent.socket.socket(family, _stdlib_socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(address)
        sock.settimeout(None)
        sock.setsockopt(_stdlib_socket.IPPROTO_TCP, _stdlib_socket.TCP_NODELAY, 1)
        sock.setsockopt(_stdlib_socket.SOL_SOCKET, _stdlib_socket.SO_KEEPALIVE, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _unreachable(exc: OSError) -> _Refusal:
    if isinstance(exc, TimeoutError):
        return _Refusal(504, "connection_timeout")
    if isinstance(exc, ConnectionRefusedError):
        return _Refusal(502, "connection_refused")
    if exc.errno in _OUT_OF_DESCRIPTORS:
        return _Refusal(503, "connection_limit_reached")
    return _Refusal(502, "destination_unavailable")


def _reject(tunnel: Tunnel, status: int, error: str) -> None:
    tunnel.reject(status, [(b"proxy-status", f"gwt; error={error}".encode())])


class _Relay:
    """A stream and a socket joined, until both ways have ended or something broke."""

    def __init__(self, stream: WebTransportStream, sock: Any, config: ServerConfig) -> None:
        self.stream = stream
        self.sock = sock
        # Bytes that went to the target, and that came from it.
        self.sent = self.received = 0
        self._patience = config.close_timeout
        self._idle_timeout = config.tunnel_idle_timeout
        # What had moved when it was last looked, and how many looks have found the same.
        self._moved: tuple[int, ...] = ()
        self._idle_looks = 0
        self._timer = Timer(self._check_idle)
        # The greenlet that carries down, and the one that carries up; whether they are done.
        self._main: Any = gevent.getcurrent()
        self._up: Any = None
        self._down_done = self._up_done = self._finishing = False

    def run(self) -> str | None:
        """Carry until the end; returns what to count if it was not a good one."""
        self._check_idle()
        self._up = gevent.spawn(self._carry_up)
        self.stream.on_end(self._stream_ended)
        broken = codes.H3_REQUEST_CANCELLED
        try:
            self._carry_down()
            self._down_done = True
            self._up.join()
            self._finishing = True
            self.stream.wait_over(Deadline(None))
        except _Broken:
            broken = codes.H3_CONNECT_ERROR
            # What the target said before is the client's: all of it, if it came to its end.
            if self._down_done:
                self.stream.stop(broken)
                with suppress(_Gone, _Idle, GwtError):
                    self.stream.wait_over(Deadline(None))
            else:
                self.stream.session.connection.protocol.keep_written(self.stream.id)
            return "tunnels_broken"
        except _Idle:
            broken = codes.H3_CONNECT_ERROR
            return "tunnels_idle"
        except (_Gone, GwtError):
            # Who ends its side, and then reads no more, has closed: what it sent arrives.
            with suppress(_Gone, _Broken, _Idle):
                self._up.join(timeout=self._patience if self.stream.is_readable else None)
            return None if self._up_done else "tunnels_reset"
        finally:
            self._timer.close()
            self._up.kill(block=False)
            self.stream.abort(broken)
            if not self._up_done or broken == codes.H3_CONNECT_ERROR:
                # RFC 9114 4.4: what was given up on one side is a RST on the other.
                self.sock.setsockopt(_stdlib_socket.SOL_SOCKET, _stdlib_socket.SO_LINGER, _RESET)
            self.sock.close()
        return None

    def _carry_down(self) -> None:
        """From the target to the client, in the greenlet of run()."""
        while True:
            try:
                data = self.sock.recv(_PIECE)
            except OSError as exc:
                raise _Broken from exc
            if not data:
                self.stream.finish()
                return
            self.received += len(data)
            self.stream.write(data)

    def _carry_up(self) -> None:
        """From the client to the target."""
        try:
            while data := self.stream.read(_PIECE):
                view = memoryview(data)
                while view:
                    sent = self.sock.send(view)
                    self.sent += sent
                    view = view[sent:]
            self.sock.shutdown(_stdlib_socket.SHUT_WR)
            self._up_done = True
        except GwtError:
            self._main.kill(_Gone, block=False)
        except OSError:
            self._main.kill(_Broken, block=False)

    def _stream_ended(self, _: object) -> None:
        """Quiet zone: nothing more can go either way, though the target may be silent."""
        if not self._finishing:
            self._main.kill(_Gone, block=False)

    def _check_idle(self) -> None:
        """In the hub: see whether anything has moved since the last time."""
        stream = self.stream
        unacknowledged = stream.stats()["bytes_unacknowledged"]
        moved = (stream.bytes_sent, stream.bytes_received, self.sent, self.received, unacknowledged)
        # Looks are counted, not seconds: a hub that was blocked has not seen what came meanwhile.
        self._idle_looks = self._idle_looks + 1 if moved == self._moved else 0
        self._moved = moved
        if self._idle_looks >= _IDLE_LOOKS:
            self._main.kill(_Idle, block=False)
        else:
            self._timer.arm(now() + self._idle_timeout / _IDLE_LOOKS)
