"""
Server: TCP and UDP on one port under one lifecycle, and a greenlet for each session.

TCP is gevent.pywsgi's, with WebSockets by upgrade.py; UDP is listener.py's. Sessions come in by
`_session_requested` in the quiet zone, which only counts and spawns; everything that may wait runs
in the handler's greenlet.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import gevent
from gevent import Greenlet, monkey
from gevent.hub import get_hub
from gevent.pool import Group

from .. import certificates, tracing
from ..config import ServerConfig
from ..connection import WebTransportConnection
from ..errors import GwtError, Reject, TooManySessions
from ..manager import ConnectionManager, SessionManager, WebSocketManager
from ..net.waiting import Deadline, Signal, native_thread
from ..observe import Counters
from ..protocol import requests
from ..protocol.events import SessionRequested
from ..request import Request
from ..session import WebTransportSession
from ..stream_common import CONFIGURED
from .app import App, Route
from .binding import Bound, bind_both, parse_bind
from .connect import ConnectProxy
from .listener import QuicListener
from .peers import Peers
from .tcp import HttpListener
from .upgrade import Door

__all__ = ["Server", "serve"]

logger = logging.getLogger("gwt.server")

T = TypeVar("T")

_allocate_lock = monkey.get_original("_thread", "allocate_lock")

# What a session is closed with when its handler raised: the number that WebSocket uses.
INTERNAL_ERROR = 1011

# How long stop() leaves a connection to its client once the session's close is acknowledged. To
# Chromium (156) a CONNECTION_CLOSE within a millisecond of it is "Connection lost", and the page
# sees neither code nor reason. Clients of gwt close the connection at once, Chromium does not.
_FAREWELL = 0.25


class Server:
    """
    Serve an App, or a WSGI application, at ``bind`` ("host:port"; port 0 picks one).

    TCP carries HTTP/1.1 and WebSocket, and UDP carries HTTP/3 with WebTransport, on the same port.
    Options are the fields of ServerConfig. As a context manager it starts and stops.
    """

    def __init__(
        self,
        app: App | Callable[..., Any],
        bind: str = "127.0.0.1:8000",
        *,
        config: ServerConfig | None = None,
        **options: Any,
    ) -> None:
        self.app = app if isinstance(app, App) else App(app)
        self.config = (config or ServerConfig()).update(**options)
        self._bind = parse_bind(bind)
        self.connections = ConnectionManager(
            max_connections=self.config.max_connections,
            connection_idle_check_interval=self.config.connection_idle_check_interval,
            connection_idle_timeout=self.config.connection_idle_timeout,
        )
        self.sessions = SessionManager(max_sessions=self.config.max_sessions)
        self.counters = Counters()

        # Rooms of whoever is added to it.
        self.rooms = WebSocketManager()

        # The certificate that QUIC shows, once started.
        self.certificate: certificates.Certificate | None = None

        self._handlers = Group()
        self._proxy = ConnectProxy(self.app, self.config, self._handlers, self.counters)
        self._udp: QuicListener | None = None
        self._tcp: HttpListener | None = None
        self._door: Door | None = None
        self._bound: Bound | None = None
        self._started = self._stopping = False
        self._stopped = Signal()
        self._thread: int | None = None
        self._hub: Any = None

    def __repr__(self) -> str:
        where = f"{self._bound.host}:{self._bound.port}" if self._bound else "not started"
        return f"<Server {where} connections={len(self.connections)} sessions={len(self.sessions)}>"

    # What users may ask

    @property
    def address(self) -> tuple[str, int]:
        """The (host, port) that is listened on; raises RuntimeError before start()."""
        if self._bound is None:
            raise RuntimeError("The server has not been started.")
        return self._bound.host, self._bound.port

    @property
    def certificate_hash(self) -> str:
        """SHA-256 of the certificate, in hex, for serverCertificateHashes."""
        if self.certificate is None:
            raise RuntimeError("The server has not been started.")
        return self.certificate.sha256

    @property
    def started(self) -> bool:
        """Whether the server listens."""
        return self._started

    def stats(self) -> dict[str, Any]:
        """Return counters of the server, its managers, its UDP socket, and what was refused."""
        return {
            "handlers": len(self._handlers),
            "tunnels": len(self._proxy),
            "http_connections": self._tcp.connections if self._tcp is not None else 0,
            "connections": self.connections.get_stats(),
            "sessions": self.sessions.get_stats(),
            "rooms": self.rooms.stats(),
            "udp": self._udp.stats() if self._udp is not None else {},
            **self.counters,
        }

    # Life

    def start(self) -> None:
        """
        Listen. Returns when TCP and UDP are bound; does not wait for anybody.

        Raises OSError naming the address if it is in use, CertificateError, or what a function
        of on_startup raises; then nothing is left open.
        """
        if self._started:
            return
        config = self.config
        if config.certfile is not None:
            self.certificate = certificates.load(config.certfile, config.keyfile)
        elif self.certificate is None:
            self.certificate = certificates.generate()
        self._thread = native_thread()
        self._hub = get_hub()
        self._stopping = self._proxy.stopping = False
        self.app.start()
        try:
            self._bound = bind_both(self._bind, config)
            peers = Peers(config.max_connections_per_address, self.counters)
            self.connections.start()
            self.sessions.start()
            self.rooms.start()
            if self._bound.udp is not None:
                self._udp = QuicListener(
                    self._bound.udp,
                    config,
                    self.certificate,
                    self.connections,
                    self._session_requested,
                    on_tunnel=self._proxy.requested if self._proxy.targets else None,
                    peers=peers,
                )
                self._udp.start()
            self._door = Door(
                self.app, config, self.connections, self._handlers, self.counters, peers
            )
            self._tcp = HttpListener(self._bound.tcp, self.app, config, self._door)
            self._tcp.start()
        except BaseException:
            self._close_sockets()
            self.app.stop()
            raise
        self._started = True

    def stop(self, timeout: float | None = CONFIGURED) -> None:
        """
        Stop: no newcomers, DRAIN to every session, and the end once what is under way is done.

        A session without open streams is closed at once, losing nothing that was written; the
        others have `timeout` seconds: stop_timeout unless given, None is no limit. Clients of
        WebSockets are told 1001 at once, and have 3 s to answer. Handlers that are not done when
        the time is up are killed.
        """
        if not self._started:
            return
        self._check_thread()
        if gevent.getcurrent() in self._handlers:
            # A handler that waited for all handlers would wait for itself.
            gevent.spawn(self.stop, timeout)
            return
        deadline = Deadline(self.config.stop_timeout if timeout is CONFIGURED else timeout)
        if self._stopping:
            # Another greenlet is at it.
            with suppress(TimeoutError):
                while self._stopping:
                    self._stopped.wait(deadline)
            return
        self._stopping = self._proxy.stopping = True
        try:
            self._wind_down(deadline)
        finally:
            # Also when it was interrupted: what is left goes at once, and stop() can be repeated.
            try:
                self._handlers.kill(block=False)
                self._close_sockets()
            finally:
                self._started = self._stopping = False
                try:
                    self.app.stop()
                finally:
                    tracing.flush()
                    self._stopped.notify()

    def _wind_down(self, deadline: Deadline) -> None:
        if self._door is not None:
            self._door.close_all()
        if self._udp is not None:
            self._udp.refuse_newcomers()
        if self._tcp is not None:
            self._tcp.stop()
        parting = {session.connection for session in self.sessions}
        self._drain_sessions(deadline)
        self._handlers.kill(block=True, timeout=1.0)
        self._await_farewells(parting, Deadline(_FAREWELL))
        for connection in self.connections.get_all_resources():
            connection.close(reason="The server is stopping")
        self._linger(Deadline(1.0))
        self.connections.shutdown(timeout=1.0)
        self.sessions.shutdown(timeout=1.0)
        self.rooms.shutdown(timeout=1.0)

    close = stop

    def _drain_sessions(self, deadline: Deadline) -> None:
        for session in self.sessions:
            if session.is_ready:
                session.drain()
        closers = Group()
        closing: set[str] = set()
        while self._handlers and not deadline.expired:
            for session in self.sessions:
                if session.session_id not in closing and not session.streams:
                    closing.add(session.session_id)
                    closers.spawn(session.close, 0, "The server is stopping")
            remaining = deadline.remaining()
            pause = 0.05 if remaining is None else min(0.05, remaining)
            gevent.wait(list(self._handlers), timeout=pause)
        for session in self.sessions:
            if session.session_id not in closing:
                closers.spawn(session.close, 0, "The server is stopping", timeout=0.5)
        closers.join(timeout=max(1.0, deadline.remaining() or 0.0))
        closers.kill()
        self._handlers.join(timeout=1.0)

    def _await_farewells(self, parting: set[WebTransportConnection], deadline: Deadline) -> None:
        """Let clients whose session has ended close their connections themselves."""
        while not deadline.expired and not all(c.is_closed for c in parting):
            gevent.sleep(0.01)

    def _linger(self, deadline: Deadline) -> None:
        """Wait until the peers have had time to see the connections' end."""
        while self._udp is not None and self._udp.lingering and not deadline.expired:
            gevent.sleep(0.02)

    def _close_sockets(self) -> None:
        if self._tcp is not None:
            self._tcp.stop()
            self._tcp = None
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        if self._bound is not None:
            self._bound.close()
        self.connections.stop()
        self.sessions.stop()
        self.rooms.stop()

    def serve_forever(self) -> None:
        """Start if need be, and wait until another greenlet, or a signal, calls stop()."""
        self.start()
        try:
            while self._started:
                self._stopped.wait()
        finally:
            # Ctrl-C arrives here, in the main greenlet. Who interrupts a stop does not wait for it.
            if not self._stopping:
                self.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def _check_thread(self) -> None:
        if self._thread is not None and native_thread() != self._thread:
            raise RuntimeError(
                "This server belongs to the hub of another thread; use server.call() to reach it."
            )

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """
        Run ``function(*args)`` in a greenlet of the server's hub; returns its result.

        For other native threads, which it blocks; in the server's own it is a plain call.
        """
        if self._thread is None:
            raise RuntimeError("The server has not been started.")
        if native_thread() == self._thread:
            return function(*args)
        # A native lock, also where threading's are gevent's: it has to block this thread.
        done = _allocate_lock()
        done.acquire()
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.extend((True, function(*args)))
            except BaseException as exc:
                outcome.extend((False, exc))
                if not isinstance(exc, Exception):
                    raise
            finally:
                done.release()

        self._hub.loop.run_callback_threadsafe(gevent.spawn, run)
        done.acquire()
        succeeded, value = outcome
        if not succeeded:
            raise value
        result: T = value
        return result

    # Sessions

    def _session_requested(
        self, connection: WebTransportConnection, event: SessionRequested
    ) -> None:
        """Quiet zone: count, and hand over to a greenlet."""
        session = WebTransportSession(
            connection,
            event.session_id,
            path=event.path,
            headers=requests.decode_headers(event.headers),
        )
        connection.add_session(session)
        if self._stopping or len(self._handlers) >= self.config.max_handlers:
            self.counters["sessions_refused"] += 1
            connection.reject(session, 503)
            return
        greenlet = Greenlet(self._handle, session, event)
        greenlet.name = f"gwt-session {session.session_id} {event.path[:64]}"
        self._handlers.add(greenlet)
        greenlet.start()

    def _handle(self, session: WebTransportSession, event: SessionRequested) -> None:
        if session.is_closed:
            # Its client took the request back before this greenlet's turn.
            self.counters["sessions_cancelled"] += 1
            return
        try:
            admitted = self._admit(session, event)
            if admitted is not None:
                self._run(session, *admitted)
        finally:
            # Killed, or broken in a way of its own: the peer is not left waiting.
            if not session.is_closed:
                session.abort(INTERNAL_ERROR)

    def _admit(
        self, session: WebTransportSession, event: SessionRequested
    ) -> tuple[Route, dict[str, Any]] | None:
        """Decide about a request; returns who handles it, or None if it was rejected."""
        connection = session.connection
        request = Request.from_event(event, session.headers, session.remote_address)
        try:
            route, params = self.app.match(request)
            config = route.config(self.config)
            assert self._door is not None
            self._door.admit(request, config)
            self.app.admit(request)
            self.sessions.add_session(session)
        except Reject as exc:
            self.counters["sessions_rejected"] += 1
            try:
                headers = requests.encode_headers(exc.headers)
            except (ValueError, TypeError, AttributeError):
                logger.exception("A Reject had headers that cannot be sent.")
                headers = []
            connection.reject(session, exc.status, headers=headers, body=exc.body)
            return None
        except TooManySessions:
            self.counters["sessions_refused"] += 1
            connection.reject(session, 503)
            return None
        except (Exception, SystemExit, gevent.Timeout):
            # Boundary to user code: middleware.
            logger.exception("Middleware failed for %s.", request.path)
            connection.reject(session, 500)
            return None
        session.configure(config)
        subprotocol = next((s for s in config.subprotocols if s in request.subprotocols), None)
        if not session.accept(subprotocol):
            return None
        return route, params

    def _run(self, session: WebTransportSession, route: Route, params: dict[str, Any]) -> None:
        logger.info("Session %s opened: %s", session.session_id, session.path)
        try:
            route.handler(session, **params)
        except (Exception, SystemExit, gevent.Timeout) as exc:
            # Boundary to user code: a handler. That the session ended under it is no failure.
            if isinstance(exc, GwtError) and session.is_closed:
                logger.debug("Session %s ended: %s", session.session_id, exc)
            else:
                self.counters["handler_errors"] += 1
                logger.exception("The handler of %s failed.", session.path)
                session.close(INTERNAL_ERROR, "internal error")
        else:
            session.close()
        finally:
            logger.info("Session %s closed: %s", session.session_id, session.path)


def serve(
    app: App | Callable[..., Any],
    bind: str = "127.0.0.1:8000",
    *,
    config: ServerConfig | None = None,
    ready: Callable[[Server], object] | None = None,
    **options: Any,
) -> None:
    """
    Serve until SIGINT or SIGTERM, then drain and stop.

    `ready` is called with the server once it listens. Options are those of Server.
    """
    server = Server(app, bind, config=config, **options)
    server.start()
    watchers = [
        gevent.signal_handler(number, server.stop) for number in (signal.SIGINT, signal.SIGTERM)
    ]
    try:
        if ready is not None:
            try:
                ready(server)
            except BaseException:
                server.stop()
                raise
        server.serve_forever()
    finally:
        for watcher in watchers:
            watcher.cancel()
