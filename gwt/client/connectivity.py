"""
test_client_connectivity(): whether a server can be reached, and if not, which stage failed and why.

It connects once as everybody does, watches how far that comes, and turns what went wrong into a
sentence that helps. Nothing here speaks to the network by itself, but one question by TCP where UDP
has no answer.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import gevent

from ..config import ClientConfig, client_config
from ..errors import (
    CertificateError,
    ConfigError,
    ConnectionClosed,
    GwtError,
    HandshakeError,
    RequirementsNotMet,
    SessionRejected,
)
from ..net.waiting import Deadline
from .connecting import connect_session
from .dial import Progress
from .sockets import ClientHub
from .stats import ClientStats
from .target import Target, parse_url
from .tcp import connect_tcp
from .websocket import SCHEMES, connect_websocket

__all__ = ["test_client_connectivity"]

_STAGES = {
    "https": ("url", "config", "resolve", "connect", "tls", "http3", "webtransport"),
    "wss": ("url", "config", "resolve", "connect", "tls", "websocket"),
    "ws": ("url", "config", "resolve", "connect", "websocket"),
}

# What is kept of the time for asking by TCP, where UDP has no answer; and for saying goodbye.
_MOST_ASIDE = 2.0
_SHARE_ASIDE = 0.2
_FAREWELL = 1.0


def test_client_connectivity(
    url: str, *, config: ClientConfig | None = None, timeout: float | None = 10.0
) -> dict[str, Any]:
    """
    Connect once, close, and return what came of it; raises no Exception, whatever it is given.

    Takes every URL that connect() takes, waits at most `timeout` seconds in all (instead of the
    config's connect_timeout; None is no limit), and leaves nothing open. The keys are `success`;
    `connect_time` in seconds, None without success; `client_stats`, as WebTransportClient.stats;
    `error`, the text of the exception, or None; `stage`, which failed: url, config, resolve,
    connect (by UDP, or TCP), tls, http3, webtransport or websocket, or None; `reason`, why, and
    what may help; `stages`, by name and in order: {"ok": True, False, or None if it was not
    reached, "seconds"}; `address`, the server's (host, port); and `details`: `protocol`, `draft`
    of WebTransport, `subprotocol`, `tls`, `max_datagram_size` and `rtt`. QUIC does TLS while it
    connects: these two share their seconds.
    """
    return _Check(url).run(config, timeout)


# pytest would take it for one of its own.
test_client_connectivity.__test__ = False  # type: ignore[attr-defined]


class _Check:
    """One call: its figures, and how far it has come."""

    def __init__(self, url: Any) -> None:
        self.url = url
        self.stats = ClientStats()
        self.target: Target | None = None
        self.deadline = Deadline(None)
        self.progress = Progress(Deadline(None))
        # The stage that is under way, since when, and how long the others took.
        self.stage = "url"
        self.since = time.monotonic()
        self.seconds: dict[str, float] = {}

    def enter(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = stage, now
        if stage == "http3":
            # The server has answered: nobody needs to be asked by TCP.
            self.progress.deadline = self.deadline

    def run(self, config: Any, timeout: Any) -> dict[str, Any]:
        self.stats.connections_attempted += 1
        try:
            session = self._connect(config, timeout)
        except Exception as exc:
            # Boundary to user code: whatever a config, a resolver or a peer brings about is the
            # answer, not an error.
            return self._failed(exc)
        try:
            self.enter("")
            result = self._result(
                success=True,
                connect_time=self.stats.total_connect_time,
                address=session.remote_address,
                details=self._details(session),
            )
            # A server may have closed meanwhile, or not answer any more: connected we have been.
            with suppress(GwtError, OSError):
                left = self.deadline.remaining()
                session.close(timeout=_FAREWELL if left is None else min(left, _FAREWELL))
            return result
        finally:
            session.abort()

    def _connect(self, config: Any, timeout: Any) -> Any:
        users = not str(self.url).lower().startswith("https:")
        self.target = target = parse_url(self.url, {"https": 443, **SCHEMES}, users=users)
        self.enter("config")
        config = client_config(config).update(connect_timeout=timeout)
        # On a connection and a socket of its own, on which nobody else is heard.
        config = config.update(share_connection=False, client_sockets=None)
        self.deadline = Deadline(timeout)
        if timeout is not None and target.scheme == "https":
            timeout -= min(_MOST_ASIDE, timeout * _SHARE_ASIDE)
        progress = self.progress = Progress(Deadline(timeout), on_enter=self.enter)
        # What the resolver said before may be what is wrong.
        ClientHub.current().names.forget(target)
        began = time.monotonic()
        if target.scheme == "https":
            session: Any = connect_session(self.url, config, progress)
        else:
            session = connect_websocket(self.url, config=config, progress=progress)
        self.stats.count(time.monotonic() - began)
        return session

    def _details(self, session: Any) -> dict[str, Any]:
        details: dict[str, Any] = {
            "protocol": "websocket",
            "draft": None,
            "subprotocol": session.subprotocol,
            "tls": self.progress.tls,
            "max_datagram_size": None,
            "rtt": None,
        }
        if self.target is not None and self.target.scheme == "https":
            details["protocol"] = "webtransport"
            details["draft"] = session.connection.protocol.draft.number
            # RFC 9001 4.2: QUIC has no other.
            details["tls"] = "TLSv1.3"
            details["max_datagram_size"] = session.max_datagram_size
            details["rtt"] = session.connection.stats()["rtt"]
        return details

    def _failed(self, error: Exception) -> dict[str, Any]:
        self.stats.connections_failed += 1
        stage = self._stage_of(error)
        if self.stage != stage:
            self.enter(stage)
        self.enter("")
        text = str(error) or repr(error)
        hint = self._hint(error, stage)
        return self._result(error=text, stage=stage, reason=f"{text} {hint}" if hint else text)

    def _stage_of(self, error: Exception) -> str:
        if isinstance(error, ConfigError):
            return "url" if error.field == "url" else "config"
        if isinstance(error, TimeoutError) and self.stage == "config":
            # It queued for a handshake slot.
            return "connect"
        if isinstance(error, RequirementsNotMet):
            # HTTP/3 is what has told so.
            return "webtransport"
        return error.stage if isinstance(error, HandshakeError) else self.stage

    def _hint(self, error: Exception, stage: str) -> str:
        if isinstance(error, SessionRejected):
            return _about_status(error)
        if isinstance(error, CertificateError):
            return _about_certificate(str(error))
        if isinstance(error, RequirementsNotMet):
            return "Is WebTransport switched on at this server?"
        if str(error).startswith("The proxy "):
            return "It is the proxy that is asked: proxy=None goes there directly."
        if stage == "connect" and self.target is not None and self.target.scheme == "https":
            answer = error.__cause__
            if isinstance(answer, ConnectionClosed) and answer.remote:
                return "It takes no more connections at the moment: try later."
            if "not by QUIC" in str(error):
                return "Another service has this port: is it the right one?"
            return self._ask_by_tcp(self.target)
        return _HINTS.get((stage, isinstance(error, TimeoutError)), "")

    def _ask_by_tcp(self, target: Target) -> str:
        """Say what a TCP connection to the same place tells about UDP's silence."""
        left = self.deadline.remaining()
        wait = _MOST_ASIDE if left is None else min(left, _MOST_ASIDE)
        limit = gevent.Timeout(wait)
        try:
            with limit:
                connect_tcp(target, ClientConfig(), Progress(Deadline(wait))).close()
        except (TimeoutError, gevent.Timeout) as exc:
            if isinstance(exc, gevent.Timeout) and exc is not limit:
                raise
            return (
                "TCP has no answer from there either: is the address right, is the server running, "
                "and does a firewall drop packets?"
            )
        except (GwtError, OSError):
            return "TCP gets no further: is the server running, and are its address and port right?"
        return (
            "TCP answers there, UDP does not: is HTTP/3 served on this port, and does a firewall "
            "let UDP through?"
        )

    def _result(self, **values: Any) -> dict[str, Any]:
        failed = values.get("stage")
        return {
            "success": False,
            "connect_time": None,
            "client_stats": self.stats.to_dict(),
            "error": None,
            "stage": None,
            "reason": None,
            "stages": self._stages(failed),
            "address": None,
            "details": None,
            **values,
        }

    def _stages(self, failed: str | None) -> dict[str, dict[str, Any]]:
        """Return what became of each stage."""
        names = list(_STAGES["https" if self.target is None else self.target.scheme])
        if "tls" in self.seconds and "tls" not in names:
            # Redirected from ws to wss.
            names.insert(names.index("connect") + 1, "tls")
        reached = max(index for index, name in enumerate(names) if name in self.seconds)
        stages = {}
        for index, name in enumerate(names):
            # QUIC may be through with TLS before anybody looks.
            passed = name in self.seconds or (name == "tls" and index < reached)
            ok = False if name == failed else True if passed else None
            seconds = None if ok is None else self.seconds.get(name, 0.0)
            stages[name] = {"ok": ok, "seconds": seconds}
        return stages


# By the stage, and whether it ended with the time.
_HINTS = {
    ("resolve", False): "Is the name spelt right, and does this machine's DNS know it?",
    ("resolve", True): "Does this machine reach its DNS server?",
    ("connect", False): "Is the server running, and are its address and port right?",
    ("connect", True): "Is the address right, and does a firewall drop packets?",
    ("tls", False): "Is this the port of a server with TLS, and does it speak TLS 1.2 or later?",
    ("tls", True): "The server answers, but does not finish TLS: is it overloaded, or are large "
    "packets lost on the way?",
    ("http3", False): "Is HTTP/3 what this server offers?",
    (
        "http3",
        True,
    ): "The server has finished TLS, but does not speak HTTP/3: is it another service?",
    ("webtransport", False): "The server's log may say why.",
    ("webtransport", True): "The server speaks HTTP/3, but does not answer the request: is its "
    "application stuck?",
    ("websocket", False): "Is it a WebSocket server that listens there?",
    ("websocket", True): "The server is there, but does not answer the request: is its application "
    "stuck, or is it no WebSocket server?",
}

_STATUS_HINTS = {
    400: "Is it a server of this protocol that listens there?",
    401: "It wants to know who asks: give credentials in headers=.",
    403: "The origin may be not allowed there, or the user: see origin= and headers=.",
    404: "Is the path right?",
    405: "The path exists, but not for this protocol.",
    407: "A proxy wants a user and a password.",
    421: "It serves other host names: is the host in the URL right?",
    426: "It wants another version of the protocol.",
    429: "It takes no more from here at the moment: try later.",
    501: "The server does not implement this protocol there.",
}


def _about_status(error: SessionRejected) -> str:
    if (hint := _STATUS_HINTS.get(error.status)) is not None:
        return hint
    if 300 <= error.status < 400:
        location = error.headers.get("location", "somewhere else")
        return f"It redirects to {location!r}: connect there."
    if error.status >= 500:
        return (
            "The server, or what stands behind it, cannot serve now: try later, or look at its log."
        )
    return "Is the URL right?"


def _about_certificate(text: str) -> str:
    """Return what helps against the refusal of a certificate, by aioquic, OpenSSL or its hash."""
    if "server_certificate_hashes" in text:
        return "It was replaced, or another server answers: give the hash that it has now."
    if "not valid yet" in text or "not yet valid" in text or "not valid before" in text:
        return "Is the clock right, here and where it was made?"
    if "no longer valid" in text or "expired" in text:
        return "The server needs a new one, unless the clock of this machine is wrong."
    if "doesn't match" in text or "mismatch" in text:
        return "Connect to a name that it was made for, or give that as server_name=."
    return (
        "Give its authority as cafile=, or its hash as server_certificate_hashes=; while "
        "developing, verify=False accepts any."
    )
