"""
connect() for ws:// and wss://: from a URL to a WebSocket, over TCP and TLS.

Runs in the caller's greenlet, within one deadline: the request, its answer, redirects, cookies. The
way to a socket is tcp.py's, proxy.py's and tls.py's. Failures have a stage: resolve, connect, tls,
or websocket.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from http.cookiejar import CookieJar
from typing import Any
from urllib.parse import urljoin

import gevent

from .. import certificates
from ..config import ClientConfig, certificate_hash, client_config
from ..errors import ConfigError, HandshakeError, LocalProtocolError, SessionRejected
from ..net.tcp import TcpConnection
from ..net.waiting import Deadline
from ..options import bad
from ..protocol.wshandshake import ClientHandshake, HandshakeDone, HandshakeFailed, client_request
from ..request import Request
from ..version import VERSION
from ..websocket import WebSocket
from . import tls
from .cookies import Cookies
from .dial import Progress
from .proxy import ask_for_tunnel, proxy_for
from .sockets import ClientHub
from .target import Target, pairs, parse_url
from .tcp import adopt, connect_tcp, connect_unix

__all__ = ["SCHEMES", "connect_websocket"]

SCHEMES = {"ws": 80, "wss": 443}

# What a redirect to another place does not take along.
_CONFIDENTIAL = frozenset(("authorization", "cookie", "proxy-authorization"))

# How long the body of a refusal is waited for: its status is what counts.
_BODY_TIMEOUT = 1.0


def connect_websocket(
    url: str,
    *,
    config: ClientConfig | None = None,
    sock: Any = None,
    unix: str | bytes | os.PathLike[str] | None = None,
    ssl: Any = None,
    cookies: Mapping[str, str] | CookieJar | None = None,
    max_redirects: int = 10,
    authority: str | None = None,
    sockopt: Sequence[tuple[Any, ...]] = (),
    progress: Progress | None = None,
    **options: Any,
) -> WebSocket:
    """
    Connect to a WebSocket server and return the WebSocket; what connect() does for ws and wss.

    Waits until the server has agreed, at most `timeout` (10 seconds unless given) in all,
    redirects included. `sock` is a connected socket to use, of any family, `unix` the path of a
    Unix socket, instead of the URL's host and port; `ssl` an SSLContext, for all that is configured
    about certificates; `cookies` a mapping, or a CookieJar, which keeps what the server sets.
    `proxy` is the URL of an HTTP proxy that is asked for a tunnel by CONNECT (RFC 9110 9.3.6), and
    resolves the name; unless given, the environment may name one. At most `max_redirects` are
    followed. `authority` is the Host to ask for instead of the URL's; `sockopt` are arguments of
    setsockopt(); `progress` is told how far it comes. A user and a password in the URL become Basic
    authorization (RFC 7617). Raises SessionRejected with the HTTP status, CertificateError,
    HandshakeError with its stage, ConfigError, or TimeoutError.
    """
    config = client_config(config).update(**options)
    connecting = _Connecting(url, config, Cookies(cookies), max_redirects)
    connecting.set_way(sock, unix, sockopt)
    connecting.set_context(ssl)
    connecting.authority = authority
    if progress is not None:
        connecting.progress = progress
    return connecting.run()


class _Redirected(Exception):
    """The server named another URL."""

    def __init__(self, location: str, rejection: SessionRejected) -> None:
        super().__init__(location)
        self.location = location
        self.rejection = rejection


class _Connecting:
    """One call of connect()."""

    def __init__(
        self, url: str, config: ClientConfig, cookies: Cookies, max_redirects: int
    ) -> None:
        if type(max_redirects) is not int or max_redirects < 0:
            raise bad("max_redirects", max_redirects, "an integer of at least 0")
        self.target = parse_url(url, SCHEMES, users=True)
        self.url = url
        self.config = config
        self.cookies = cookies
        self.max_redirects = max_redirects
        self.progress = Progress(Deadline(config.connect_timeout))
        self.headers = _headers(config)
        self.hashes = [certificate_hash(value) for value in config.server_certificate_hashes]
        self.sock: Any = None
        self.unix: str | bytes | os.PathLike[str] | None = None
        self.sockopt: Sequence[tuple[Any, ...]] = ()
        self.context: Any = None
        self.authority: str | None = None

    def set_way(self, sock: Any, unix: Any, sockopt: Sequence[tuple[Any, ...]]) -> None:
        """Take what replaces the URL's host and port, or changes the socket to it."""
        given = [
            name
            for name, value in (("sock", sock), ("unix", unix), ("proxy", self.config.proxy))
            if value is not None and not isinstance(value, bool)
        ]
        if len(given) > 1:
            raise TypeError(f"{' and '.join(given)} were both given.")
        if not given or given == ["proxy"]:
            # What is wrong with the option is said at once.
            proxy_for(self.target, self.config.proxy)
        self.sock, self.unix, self.sockopt = sock, unix, tuple(sockopt)

    def set_context(self, context: Any) -> None:
        """Take an SSLContext of the caller's, if there is one."""
        config = self.config
        if context is None:
            if config.cafile is not None:
                certificates.check_authorities(config.cafile)
            return
        tls.check_context(context)
        if config.cafile is not None or not config.verify:
            other = "cafile" if config.cafile is not None else "verify=False"
            raise TypeError(f"ssl and {other} were both given: the context says what is trusted.")
        if self.target.scheme != "wss":
            raise ConfigError(
                f"ssl is given, but {self.target.url} is not a wss URL.", field="ssl", value=context
            )
        self.context = context

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
                f"Connecting to {self.target.url} timed out after {progress.deadline.timeout:g} s"
                f"{queued}, while {progress.stage}."
            ) from exc

    # Redirects

    def _follow(self) -> WebSocket:
        url, target, followed = self.url, self.target, 0
        while True:
            try:
                return self._open(target)
            except _Redirected as exc:
                if self.max_redirects == 0:
                    raise exc.rejection from None
                if followed == self.max_redirects:
                    raise HandshakeError(
                        f"{self.target.url} redirects more than {followed} times, at last from "
                        f"{target.url} to {exc.location!r}.",
                        stage="websocket",
                    ) from exc.rejection
                followed += 1
                before = target
                url, target = self._next(url, before, exc.location)
                if before.place != target.place:
                    self.cookies.forget_given()
                    self.authority = None
                    self.headers = [
                        (name, value)
                        for name, value in self.headers
                        if name.lower() not in _CONFIDENTIAL
                    ]

    def _next(self, url: str, before: Target, location: str) -> tuple[str, Target]:
        # urljoin does not know ws; what it makes of http is the same.
        try:
            joined = urljoin("http" + url[2:], location).partition("#")[0]
        except ValueError:
            joined = location
        for http, ws in (("https:", "wss:"), ("http:", "ws:")):
            if joined.lower().startswith(http):
                joined = ws + joined[len(http) :]
        try:
            target = parse_url(joined, SCHEMES, users=True)
        except ConfigError as exc:
            raise HandshakeError(
                f"The server redirects to what is no WebSocket: {exc}", stage="websocket"
            ) from exc
        if before.scheme == "wss" and target.scheme != "wss":
            raise HandshakeError(
                f"The server redirects from wss to {target.url}, which is less secure.",
                stage="websocket",
            )
        if self.sock is not None or (self.unix is not None and before.place != target.place):
            way = "sock" if self.sock is not None else "unix"
            raise HandshakeError(
                f"The server redirects to {target.url}, which {way}= does not lead to.",
                stage="websocket",
            )
        return joined, target

    # The way to the server

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
            hub.pace.wait()
            sock = self._connected(target)
            if target.scheme == "wss":
                sock = self._secured(sock, target)
            self.progress.enter("websocket", "waiting for the server to accept the WebSocket")
            return self._shake_hands(sock, target)
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        finally:
            slots.release()

    def _connected(self, target: Target) -> Any:
        if self.sock is not None:
            return adopt(self.sock, secure=target.scheme == "wss")
        if self.unix is not None:
            return connect_unix(self.unix, self.progress)
        proxy = proxy_for(target, self.config.proxy)
        if proxy is None:
            return connect_tcp(target, self.config, self.progress, self.sockopt)
        return self._tunnel(proxy, target)

    def _tunnel(self, proxy: Target, target: Target) -> Any:
        try:
            sock = connect_tcp(proxy, self.config, self.progress, self.sockopt)
        except HandshakeError as exc:
            raise HandshakeError(
                f"The proxy {proxy.authority} cannot be reached: {exc}", stage=exc.stage
            ) from exc
        try:
            if proxy.scheme == "https":
                self.progress.enter(
                    "connect", f"shaking hands by TLS with the proxy {proxy.authority}"
                )
                sock = tls.secure(sock, proxy.host, self._context(self.config.verify))
            self.progress.enter("connect", f"waiting for the proxy {proxy.authority}")
            ask_for_tunnel(sock, proxy, target)
        except BaseException:
            sock.close()
            raise
        return tls.relayed(sock) if proxy.scheme == "https" and target.scheme == "wss" else sock

    def _context(self, verify: bool) -> Any:
        return self.context or tls.shared_context(verify=verify, cafile=self.config.cafile)

    def _secured(self, sock: Any, target: Target) -> Any:
        config = self.config
        self.progress.enter("tls", "shaking hands by TLS")
        context = self._context(config.verify and not self.hashes)
        secured = tls.secure(sock, config.server_name or target.host, context, self.hashes)
        self.progress.tls = secured.version()
        return secured

    # The handshake of RFC 6455

    def _shake_hands(self, sock: Any, target: Target) -> WebSocket:
        config = self.config
        subprotocols = tuple(config.subprotocols)
        headers = self._request_headers(target)
        try:
            request, key = client_request(
                self.authority or target.authority,
                target.path,
                origin=config.origin,
                subprotocols=subprotocols,
                compression=config.compression,
                headers=headers,
            )
        except LocalProtocolError as exc:
            raise ConfigError(f"The request cannot be sent: {exc}") from exc
        handshake = ClientHandshake(key, subprotocols=subprotocols, compression=config.compression)
        try:
            sock.sendall(request)
            result = _answer(sock, handshake)
        except OSError as exc:
            raise HandshakeError(
                f"The connection broke during the handshake: {exc.strerror or exc}.",
                stage="websocket",
            ) from exc
        self.cookies.keep(target, result.headers)
        if isinstance(result, HandshakeFailed):
            raise _failure(result)
        connection = TcpConnection(sock)
        asked = Request.at(
            target.path,
            method="GET",
            protocol="websocket",
            authority=self.authority or target.authority,
            origin=config.origin,
            headers={name.lower(): value for name, value in headers},
            subprotocols=subprotocols,
            remote_address=connection.remote_address,
        )
        websocket = WebSocket.over(connection, result.agreement, asked, config, is_client=True)
        websocket.start(result.rest)
        return websocket

    def _request_headers(self, target: Target) -> list[tuple[str, str]]:
        """Return the caller's headers, with what the URL and the cookies add to them."""
        own = {name.lower(): value for name, value in self.headers}
        headers = [each for each in self.headers if each[0].lower() != "cookie"]
        cookie = self.cookies.header(target, own.get("cookie"))
        if cookie is not None:
            headers.append(("Cookie", cookie))
        if target.authorization is not None and "authorization" not in own:
            headers.append(("Authorization", target.authorization))
        return headers


def _answer(sock: Any, handshake: ClientHandshake) -> HandshakeDone | HandshakeFailed:
    """Wait for the server's answer; of a refusal, for a moment only for its body."""
    result: HandshakeDone | HandshakeFailed | None = None
    while result is None and not handshake.refused:
        data = sock.recv(16384)
        result = handshake.feed(data) if data else handshake.feed_eof()
    with gevent.Timeout(_BODY_TIMEOUT, False):
        while result is None:
            data = sock.recv(16384)
            result = handshake.feed(data) if data else handshake.feed_eof()
    return handshake.feed_eof() if result is None else result


def _failure(result: HandshakeFailed) -> Exception:
    status = result.status
    if status is None or status == 101:
        return HandshakeError(result.reason, stage="websocket")
    headers: dict[str, str] = {}
    for name, value in result.headers:
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    error = SessionRejected(
        status, headers, f"The server refused the WebSocket with HTTP status {status}."
    )
    error.stage = "websocket"
    error.body = result.body
    if status in (301, 302, 303, 307, 308) and "location" in headers:
        return _Redirected(headers["location"], error)
    return error


def _headers(config: ClientConfig) -> list[tuple[str, str]]:
    try:
        items = [(str(name), str(value)) for name, value in pairs(config.headers)]
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"headers: {exc}", field="headers", value=config.headers) from exc
    if not any(name.lower() == "user-agent" for name, _ in items):
        items.append(("User-Agent", config.user_agent or f"gwt/{VERSION}"))
    return items
