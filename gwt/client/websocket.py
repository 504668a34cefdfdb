"""
connect() for ws:// and wss://: from a URL to a WebSocket, over TCP and TLS.

Runs in the caller's greenlet, within one deadline. Addresses are tried as for WebTransport, by the
decisions of dial.py; each attempt that is under way has a greenlet, which ends with the call.
Failures have a stage: resolve, connect, tls, or websocket.
"""

from __future__ import annotations

import re
import ssl as _stdlib_ssl
import time
from collections import deque
from typing import Any
from urllib.parse import urljoin, urlsplit

import certifi
import gevent
import gevent.socket
from gevent import ssl

from .. import certificates, tracing
from ..config import ClientConfig, certificate_hash
from ..errors import (
    CertificateError,
    ConfigError,
    HandshakeError,
    LocalProtocolError,
    SessionRejected,
)
from ..net.tcp import TcpConnection
from ..net.udpsocket import shown
from ..net.waiting import Deadline, Signal
from ..protocol.wshandshake import ClientHandshake, HandshakeDone, HandshakeFailed, client_request
from ..request import Request
from ..version import VERSION
from ..websocket import WebSocket
from .dial import Progress, in_order, next_start, patience
from .sockets import ClientHub
from .target import Target, pairs, parse_url, resolve

__all__ = ["connect_websocket"]

_SCHEMES = {"ws": 80, "wss": 443}
_MOST_REDIRECTS = 10

# Bytes of a proxy's answer.
_LONGEST_ANSWER = 65536

# What a redirect to another place does not take along.
_CONFIDENTIAL = frozenset(("authorization", "cookie", "proxy-authorization"))


def connect_websocket(
    url: str,
    *,
    config: ClientConfig | None = None,
    sock: Any = None,
    ssl: Any = None,
    proxy: str | None = None,
    **options: Any,
) -> WebSocket:
    """
    Connect to a WebSocket server and return the WebSocket; what connect() does for ws and wss.

    Waits until the server has agreed, at most `timeout` (10 seconds unless given) in all,
    redirects included. `sock` is a connected socket to use, of any family; `ssl` an SSLContext,
    for all that is configured about certificates; `proxy` the http:// URL of a proxy that is asked
    for a tunnel by CONNECT (RFC 9110 9.3.6), and resolves the name. Raises SessionRejected with
    the HTTP status, CertificateError, HandshakeError with its stage, ConfigError, or TimeoutError.
    """
    config = (config or ClientConfig()).update(**options)
    return _Connecting(url, config, sock, ssl, proxy).run()


class _Redirected(Exception):
    """The server named another URL."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class _Connecting:
    """One call of connect()."""

    def __init__(
        self, url: str, config: ClientConfig, sock: Any, context: Any, proxy: str | None
    ) -> None:
        if proxy is not None and sock is not None:
            raise TypeError("sock and proxy were both given.")
        self.proxy = None if proxy is None else parse_url(proxy, {"http": 80})
        self.url = url
        self.config = config
        self.sock = sock
        self.context = context
        self.progress = Progress(Deadline(config.connect_timeout))
        self.headers = _headers(config)
        if config.cafile is not None:
            certificates.check_authorities(config.cafile)
        if context is not None and not isinstance(context, _stdlib_ssl.SSLContext):
            raise ConfigError(
                f"ssl must be an SSLContext, not {context!r}.", field="ssl", value=context
            )
        parse_url(url, _SCHEMES)

    def run(self) -> WebSocket:
        progress = self.progress
        limit = gevent.Timeout(progress.deadline.remaining())
        try:
            with limit:
                return self._follow()
        except (TimeoutError, gevent.Timeout) as exc:
            if isinstance(exc, gevent.Timeout) and exc is not limit:
                raise
            queued = f", {progress.queued:.1f} s of them queued" if progress.queued >= 0.05 else ""
            raise TimeoutError(
                f"Connecting to {self.url} timed out after {progress.deadline.timeout:g} s"
                f"{queued}, while {progress.stage}."
            ) from exc

    def _follow(self) -> WebSocket:
        url = self.url
        for _ in range(_MOST_REDIRECTS + 1):
            target = parse_url(url, _SCHEMES)
            try:
                return self._open(target)
            except _Redirected as exc:
                before, url = url, self._next_url(url, exc.location)
                if _place(before) != _place(url):
                    self.headers = [
                        (name, value)
                        for name, value in self.headers
                        if name.lower() not in _CONFIDENTIAL
                    ]
        raise HandshakeError(
            f"{self.url} redirects more than {_MOST_REDIRECTS} times.", stage="websocket"
        )

    def _next_url(self, url: str, location: str) -> str:
        # urljoin does not know ws; what it makes of http is the same.
        try:
            joined = urljoin("http" + url[2:], location)
        except ValueError:
            joined = location
        for http, ws in (("https:", "wss:"), ("http:", "ws:")):
            if joined.lower().startswith(http):
                joined = ws + joined[len(http) :]
        if self.sock is not None:
            raise HandshakeError(
                f"The server redirects to {location!r}, and the socket was given.",
                stage="websocket",
            )
        if url.lower().startswith("wss:") and not joined.lower().startswith("wss:"):
            raise HandshakeError(
                f"The server redirects from wss to {location!r}, which is less secure.",
                stage="websocket",
            )
        try:
            parse_url(joined, _SCHEMES)
        except ConfigError as exc:
            raise HandshakeError(
                f"The server redirects to what is no WebSocket: {exc}", stage="websocket"
            ) from exc
        return joined

    def _open(self, target: Target) -> WebSocket:
        hub = ClientHub.current()
        slots = hub.slots(self.config.max_connecting)
        self.progress.stage = "waiting for a free handshake slot"
        began = time.monotonic()
        try:
            slots.acquire()
        finally:
            self.progress.queued += time.monotonic() - began
        sock = None
        try:
            sock = self._connected(target, hub)
            if target.url[:4].lower() == "wss:":
                sock = self._secured(sock, target)
            self.progress.stage = "waiting for the server to accept the WebSocket"
            return self._shake_hands(sock, target)
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        finally:
            slots.release()

    def _connected(self, target: Target, hub: ClientHub) -> Any:
        if self.sock is not None:
            # Whatever kind of socket it is: ours never blocks the hub.
            given = self.sock
            return gevent.socket.socket(given.family, given.type, given.proto, given.detach())
        first = self.proxy or target
        self.progress.stage = f"resolving {first.host!r}"
        addresses = in_order(resolve(first, self.progress.deadline, hub.lookups))
        sock = _Race(first, self.config, self.progress).run(addresses)
        if self.proxy is not None:
            self.progress.stage = f"waiting for the proxy {self.proxy.authority}"
            try:
                _ask_for_tunnel(sock, self.proxy, target)
            except BaseException:
                sock.close()
                raise
        return sock

    # TLS

    def _secured(self, sock: Any, target: Target) -> Any:
        config = self.config
        hashes = [certificate_hash(value) for value in config.server_certificate_hashes]
        self.progress.stage = "shaking hands by TLS"
        context = self.context or self._make_context(verify=config.verify and not hashes)
        # Not by the context: the standard library's would make a socket that blocks the hub.
        wrapped = ssl.SSLSocket(
            sock,
            server_hostname=config.server_name or target.host,
            do_handshake_on_connect=False,
            _context=context,
        )
        try:
            wrapped.do_handshake()
            if hashes:
                certificates.check_pinned(wrapped.getpeercert(binary_form=True), hashes)
        except _stdlib_ssl.SSLCertVerificationError as exc:
            wrapped.close()
            raise CertificateError(
                f"The certificate of {target.host!r} was not accepted: {exc.verify_message}."
            ) from exc
        except CertificateError:
            wrapped.close()
            raise
        except OSError as exc:
            wrapped.close()
            raise HandshakeError(
                f"The TLS handshake with {target.host!r} failed: {exc}.", stage="tls"
            ) from exc
        except BaseException:
            wrapped.close()
            raise
        return wrapped

    def _make_context(self, *, verify: bool) -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["http/1.1"])
        # While a server of TLS 1.2 negotiates again, a writable socket takes nothing: we would ask
        # it for ever.
        context.options |= ssl.OP_NO_RENEGOTIATION
        if verify:
            cafile = self.config.cafile
            context.load_verify_locations(str(cafile) if cafile is not None else certifi.where())
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        tracing.log_secrets(context)
        return context

    # The handshake of RFC 6455

    def _shake_hands(self, sock: Any, target: Target) -> WebSocket:
        config = self.config
        try:
            request, key = client_request(
                target.authority,
                target.path,
                origin=config.origin,
                subprotocols=tuple(config.subprotocols),
                compression=config.compression,
                headers=self.headers,
            )
        except LocalProtocolError as exc:
            raise ConfigError(f"The request cannot be sent: {exc}") from exc
        handshake = ClientHandshake(
            key, subprotocols=tuple(config.subprotocols), compression=config.compression
        )
        try:
            sock.sendall(request)
            result: HandshakeDone | HandshakeFailed | None = None
            while result is None:
                data = sock.recv(16384)
                result = handshake.feed(data) if data else handshake.feed_eof()
        except OSError as exc:
            raise HandshakeError(
                f"The connection broke during the handshake: {exc}.", stage="websocket"
            ) from exc
        if isinstance(result, HandshakeFailed):
            raise _failure(result)
        connection = TcpConnection(sock)
        asked = self._request(target, connection)
        websocket = WebSocket.over(connection, result.agreement, asked, config, is_client=True)
        websocket.start(result.rest)
        return websocket

    def _request(self, target: Target, connection: TcpConnection) -> Request:
        return Request.at(
            target.path,
            method="GET",
            protocol="websocket",
            authority=target.authority,
            origin=self.config.origin,
            headers={name.lower(): value for name, value in self.headers},
            subprotocols=tuple(self.config.subprotocols),
            remote_address=connection.remote_address,
        )


def _failure(result: HandshakeFailed) -> Exception:
    status = result.status
    if status is None or status == 101:
        return HandshakeError(result.reason, stage="websocket")
    headers = {name.lower(): value for name, value in result.headers}
    if status in (301, 302, 303, 307, 308) and "location" in headers:
        return _Redirected(headers["location"])
    error = SessionRejected(
        status, headers, f"The server refused the WebSocket with HTTP status {status}."
    )
    error.stage = "websocket"
    error.body = result.body
    return error


def _headers(config: ClientConfig) -> list[tuple[str, str]]:
    try:
        items = [(str(name), str(value)) for name, value in pairs(config.headers)]
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"headers: {exc}", field="headers", value=config.headers) from exc
    if not any(name.lower() == "user-agent" for name, _ in items):
        items.append(("User-Agent", config.user_agent or f"gwt/{VERSION}"))
    return items


def _place(url: str) -> tuple[str, str | None, int | None]:
    split = urlsplit(url)
    return split.scheme, split.hostname, split.port


def _ask_for_tunnel(sock: Any, proxy: Target, target: Target) -> None:
    """Ask a proxy for a tunnel, and wait for its answer."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    place = f"{host}:{target.port}"
    answer = b""
    try:
        sock.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
        while b"\r\n\r\n" not in answer and len(answer) < _LONGEST_ANSWER:
            more = sock.recv(16384)
            if not more:
                break
            answer += more
    except OSError as exc:
        raise HandshakeError(
            f"The proxy {proxy.authority} broke the connection: {exc}.", stage="connect"
        ) from exc
    first, _, _ = answer.partition(b"\r\n")
    status = re.fullmatch(rb"HTTP/1\.[01] (\d{3})(?: .*)?", first)
    if status is None or not answer.partition(b"\r\n\r\n")[1]:
        raise HandshakeError(f"The proxy {proxy.authority} gave no answer.", stage="connect")
    if not status[1].startswith(b"2"):
        raise HandshakeError(
            f"The proxy {proxy.authority} refused a tunnel to {place} with HTTP status "
            f"{status[1].decode()}.",
            stage="connect",
        )
    if not answer.endswith(b"\r\n\r\n"):
        # A server of WebSockets does not speak first.
        raise HandshakeError(
            f"The proxy {proxy.authority} sent more than an answer.", stage="connect"
        )


class _Race:
    """The addresses of one name, tried as RFC 8305 has it; the first that answers wins."""

    def __init__(self, target: Target, config: ClientConfig, progress: Progress) -> None:
        self.target = target
        self.config = config
        self.progress = progress
        self.changed = Signal()
        self.winner: Any = None
        self.failures: list[tuple[str, OSError]] = []

    def run(self, addresses: list[tuple[int, Any]]) -> Any:
        waiting = deque(addresses)
        attempts: list[gevent.Greenlet] = []
        started = -1e9
        delay = patience(self.config.attempt_delay, None)
        try:
            while self.winner is None:
                failed = len(self.failures) == len(attempts)
                due = next_start(started, delay, answered=False, failed=failed)
                if waiting and time.monotonic() >= due:
                    family, address = waiting.popleft()
                    where = "{} port {}".format(*shown(address))
                    self.progress.stage = f"connecting to {where}"
                    started = time.monotonic()
                    attempt = gevent.Greenlet(self._attempt, family, address, where)
                    attempt.name = f"gwt-connect {where}"
                    attempts.append(attempt)
                    attempt.start()
                elif not waiting and failed:
                    raise self._none_left()
                else:
                    self._wait(due if waiting else None)
            winner, self.winner = self.winner, None
            return winner
        finally:
            gevent.killall(attempts, block=False)
            if self.winner is not None:
                self.winner.close()

    def _wait(self, due: float | None) -> None:
        try:
            left = None if due is None else max(0.0, due - time.monotonic())
            self.changed.wait(Deadline(left))
        except TimeoutError:
            if due is None:
                raise

    def _attempt(self, family: int, address: Any, where: str) -> None:
        sock = gevent.socket.socket(family, gevent.socket.SOCK_STREAM)
        try:
            sock.connect(address)
            if self.winner is None:
                self.winner, sock = sock, None
        except OSError as exc:
            self.failures.append((where, exc))
        finally:
            if sock is not None:
                sock.close()
            self.changed.notify()

    def _none_left(self) -> HandshakeError:
        texts = [f"{where}: {exc.strerror or exc}" for where, exc in self.failures]
        error = HandshakeError(
            f"Nobody answers on TCP {'; '.join(texts)}."
            if texts
            else f"{self.target.host!r} has no address.",
            stage="connect",
        )
        error.__cause__ = self.failures[0][1] if self.failures else None
        return error
