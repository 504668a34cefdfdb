"""
WebSockets for applications on gunicorn: ``gunicorn -k gwt.integrations.gunicorn.Worker app:app``.

gunicorn's own pywsgi worker, in which WebSockets have places of their own beside those of requests,
and which tells them first when it leaves. What a request becomes is server/lazy.py's affair.
"""

from __future__ import annotations

import ipaddress
import logging
import socket as _stdlib_socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import gevent
from gevent.pool import Group

try:
    from gunicorn.workers.ggevent import GeventPyWSGIWorker, PyWSGIHandler, PyWSGIServer
except ImportError as exc:
    # gunicorn itself does not bring what its gevent workers import.
    raise ImportError(
        f"gwt.integrations.gunicorn needs gunicorn: pip install 'gunicorn[gevent]' ({exc})."
    ) from exc

from ..config import ServerConfig
from ..net.waiting import Deadline
from ..server.gate import FAREWELL, Gate
from ..server.lazy import GuestHandler
from ..websocket import WebSocket

__all__ = ["Handler", "Server", "Worker"]

# A close frame of a server with 1001 (RFC 6455 5.5.1).
_GOING_AWAY = b"\x88\x02\x03\xe9"


class Handler(GuestHandler, PyWSGIHandler):  # type: ignore[misc]
    """gunicorn's handler, with its access log and environ, and with WebSockets."""

    # Set by the worker, in a class of its own.
    worker: Worker

    response_headers: Any

    def read_requestline(self) -> str:
        if self.worker.leaving is not None:
            return ""
        with self.worker.idling(self.socket):
            return str(super().read_requestline())

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        if self.worker.is_proxy(self.client_address):
            for name, value in self.worker.cfg.secure_scheme_headers.items():
                if environ.get("HTTP_" + name.upper().replace("-", "_")) == value:
                    environ["wsgi.url_scheme"] = "https"
        return environ

    def handle_one_response(self) -> None:
        # Here, since who accepts a WebSocket may be another greenlet.
        self.greenlet = gevent.getcurrent()
        try:
            super().handle_one_response()
        finally:
            # The greenlet's frames hold the handler.
            del self.greenlet
            self.worker.lent.discard(self)
            self.worker.count_request()

    def log_request(self) -> None:
        # gunicorn's is not prepared for requests that could not be read, of which the error log
        # has a line, nor for a WebSocket's lack of a response.
        if self.environ is not None:
            self.response_headers = self.response_headers or []
            super().log_request()

    def enter(self, websocket: WebSocket) -> None:
        super().enter(websocket)
        self.free_place()

    def lend(self, data: Any) -> None:
        super().lend(data)
        # An application's own WebSocket; those beyond the limit keep their places.
        if self.code == 101 and len(self.worker.handlers) < self.gate.config.max_connections:
            self.free_place()
            self.worker.lent.add(self)

    def dismiss(self) -> None:
        """Close an application's own WebSocket; waits for whoever sends on it."""
        with suppress(OSError), self.environ["wsgi.input"].turn(_GOING_AWAY):
            self.socket.sendall(_GOING_AWAY)

    def free_place(self) -> None:
        """Give the place among the requests to the next one: this is a request no more."""
        self.server.pool.discard(self.greenlet)
        self.worker.handlers.add(self.greenlet)


class Server(PyWSGIServer):  # type: ignore[misc]
    """gunicorn's server on one listening socket, which its worker knows."""

    def start(self) -> None:
        super().start()
        self.handler_class.worker.servers.append(self)

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        sock = self.wrap_socket(client_socket, do_handshake_on_connect=False, **self.ssl_args)
        try:
            try:
                with self.handler_class.worker.idling(sock):
                    sock.do_handshake()
            except OSError:
                # Whoever connected does not speak TLS, or has gone.
                return
            self.handle(sock, address)
        finally:
            sock.close()


class Worker(GeventPyWSGIWorker):  # type: ignore[misc]
    """
    A gunicorn worker that puts a lazy WebSocket into ``environ["wsgi.websocket"]``.

    The application accepts by using it, refuses by answering as usual (401, say), and the WebSocket
    is closed when the application returns. An open one holds none of gunicorn's
    ``worker_connections``: their number is limited by ServerConfig's ``max_connections``. When the
    worker stops or is replaced, they are closed with 1001 at once. Whom it admits, and its limits,
    are fields of ServerConfig: with_options().
    """

    server_class = Server
    wsgi_handler: Any = Handler
    config = ServerConfig()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = Gate(self.config)

        # Listening; sockets without a request; those that applications have; the greenlets of
        # WebSockets.
        self.servers: list[Server] = []
        self.idle: set[Any] = set()
        self.lent: set[Handler] = set()
        self.handlers = Group()

        # Who may say what the scheme was.
        allowed = self.cfg.forwarded_allow_ips
        self.proxies = [ipaddress.ip_network(each) for each in allowed if each != "*"]
        self.all_are_proxies = "*" in allowed

        # Until when WebSockets have time to end, once the worker leaves.
        self.leaving: Deadline | None = None

    @classmethod
    def with_options(cls, **options: Any) -> type[Self]:
        """
        Return a worker class with options of ServerConfig: origins, max_size, compression, ...

        For a configuration file of gunicorn: ``worker_class = Worker.with_options(...)``. Raises
        UnknownOption, and ConfigError for a bad value.
        """
        config = cls.config.update(**options)
        return type(cls.__name__, (cls,), {"config": config, "__module__": cls.__module__})

    def run(self) -> None:
        """Serve until told to stop, then see requests and WebSockets off."""
        handler = self.wsgi_handler
        self.wsgi_handler = type(
            handler.__name__,
            (handler,),
            {"gate": self.gate, "worker": self, "__module__": handler.__module__},
        )
        logger = logging.getLogger("gwt")
        if not logger.hasHandlers():
            # The application has no logging of its own: gunicorn's error log it is.
            logger.parent = self.log.error_log
        try:
            super().run()
        finally:
            self.leave()
        # Requests are done, or have had their time.
        assert self.leaving is not None
        while not self.handlers.join(1) and not self.leaving.expired:
            self.notify()
        if len(self.handlers):
            self.log.warning("%d WebSockets did not end (pid:%s)", len(self.handlers), self.pid)
            self.handlers.kill(timeout=1)

    def leave(self) -> None:
        """Accept nothing more, close the WebSockets, and let idle connections go; never waits."""
        if self.leaving is not None:
            return
        # Applications have as long to notice it as clients have to answer.
        self.leaving = Deadline(min(FAREWELL, self.cfg.graceful_timeout))
        self.alive = False
        for server in self.servers:
            server.close()
        self.gate.close_all()
        for handler in self.lent:
            gevent.spawn(handler.dismiss)
        for sock in list(self.idle):
            with suppress(OSError):
                sock.shutdown(_stdlib_socket.SHUT_RD)

    @contextmanager
    def idling(self, sock: Any) -> Iterator[None]:
        """Read from a socket in here while nothing is under way: leaving does not wait for it."""
        self.idle.add(sock)
        try:
            yield
        finally:
            self.idle.discard(sock)

    def notify(self) -> None:
        """Tell the arbiter that the worker lives; it does so every second."""
        super().notify()
        if not self.alive:
            # Not by a signal, but by the reloader.
            self.leave()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish requests, and leave."""
        super().handle_exit(sig, frame)
        gevent.spawn(self.leave)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT and SIGQUIT: leave at once."""
        gevent.spawn(self.leave)
        super().handle_quit(sig, frame)

    def count_request(self) -> None:
        """Leave after as many requests as gunicorn's max_requests."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.leave()

    def is_proxy(self, address: Any) -> bool:
        """Whether the peer is one of forwarded_allow_ips, or behind a Unix socket."""
        if not isinstance(address, tuple) or self.all_are_proxies:
            return True
        try:
            peer = ipaddress.ip_address(address[0].partition("%")[0])
        except ValueError:
            return False
        return any(peer in network for network in self.proxies)
