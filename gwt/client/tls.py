"""
TLS over TCP for a client: contexts, made once for equal options, and the handshake.

The sockets are gevent's whatever the context is: one of the standard library would make a socket
that blocks the hub.
"""

from __future__ import annotations

import os
import ssl as _stdlib_ssl
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import certifi
import gevent
import gevent.socket
from gevent import ssl

from .. import certificates, tracing
from ..errors import CertificateError, ConfigError, HandshakeError
from ..options import bad

__all__ = ["check_context", "make_context", "relayed", "secure", "shared_context"]

# How long the other end of a relay may take to end, too.
_LINGER = 1.0


def check_context(context: Any) -> None:
    """Raise ConfigError unless it is a client's SSLContext, the standard library's or gevent's."""
    if not isinstance(context, _stdlib_ssl.SSLContext):
        wanted = "an SSLContext"
    elif context.protocol == _stdlib_ssl.PROTOCOL_TLS_SERVER:
        wanted = "an SSLContext of a client"
    else:
        return
    raise bad("ssl", context, wanted)


def make_context(*, verify: bool, cafile: str | None = None) -> Any:
    """Return a new context. One with certifi's authorities takes 20 ms and 700 KB."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    # While a server of TLS 1.2 negotiates again, a writable socket takes nothing: we would ask it
    # for ever.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if verify:
        context.load_verify_locations(certifi.where() if cafile is None else cafile)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    tracing.log_secrets(context)
    return context


def shared_context(*, verify: bool, cafile: str | os.PathLike[str] | None = None) -> Any:
    """Return the context of these options, which nobody may change."""
    if cafile is None or not verify:
        return _shared(verify, None, os.environ.get("SSLKEYLOGFILE"))
    about = os.stat(cafile)
    version = about.st_mtime_ns, about.st_size, about.st_ino
    return _shared(verify, os.fspath(cafile), os.environ.get("SSLKEYLOGFILE"), version)


@lru_cache(16)
def _shared(verify: bool, cafile: str | None, *_version: object) -> Any:
    return make_context(verify=verify, cafile=cafile)


def secure(sock: Any, host: str, context: Any, hashes: Sequence[bytes] = ()) -> Any:
    """
    Return a TLS socket over a gevent socket, which it takes over, behind the handshake.

    Waits for the handshake. `host` is the name to verify and to send, `hashes` are those of
    certificates of which it must be one, if there are any. Raises CertificateError, HandshakeError
    with stage "tls", or ConfigError for a name that cannot be asked for.
    """
    try:
        # As OpenSSL's wrapper does it, which would lose the socket.
        host.encode("idna")
    except UnicodeError as exc:
        sock.close()
        raise ConfigError(
            f"{host!r} is no name of a server: {exc}.", field="server_name", value=host
        ) from exc
    wrapped = ssl.SSLSocket(
        sock, server_hostname=host, do_handshake_on_connect=False, _context=context
    )
    try:
        wrapped.do_handshake()
        if hashes:
            certificates.check_pinned(wrapped.getpeercert(binary_form=True), hashes)
    except BaseException as exc:
        wrapped.close()
        if isinstance(exc, _stdlib_ssl.SSLCertVerificationError):
            raise CertificateError(
                f"The certificate of {host!r} was not accepted: {exc.verify_message.rstrip('.')}."
            ) from exc
        if isinstance(exc, OSError) and not isinstance(exc, (HandshakeError, TimeoutError)):
            raise HandshakeError(
                f"The TLS handshake with {host!r} failed: {_why(exc)}.", stage="tls"
            ) from exc
        raise
    return wrapped


def _why(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    if reason == "WRONG_VERSION_NUMBER":
        return "the server answers, but not by TLS"
    if isinstance(error, _stdlib_ssl.SSLEOFError):
        return "the server closed the connection"
    return str(error)


def relayed(secured: Any) -> Any:
    """
    Return a plain socket whose bytes go through a TLS socket, which belongs to it from now on.

    OpenSSL's sockets do TLS over a descriptor only, not over other TLS. Does not wait; two
    greenlets carry the bytes until either end is closed.
    """
    ours, theirs = gevent.socket.socketpair()
    greenlet = gevent.spawn(_relay, theirs, secured)
    greenlet.name = "gwt-relay"
    return ours


def _relay(plain: Any, secured: Any) -> None:
    inward = gevent.spawn(_carry, secured, plain)
    inward.name = "gwt-relay inward"
    try:
        _carry(plain, secured)
        # Half of a TLS connection cannot be closed.
        inward.join(_LINGER)
    finally:
        inward.kill(block=False)
        plain.close()
        secured.close()


def _carry(source: Any, sink: Any) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    if not isinstance(sink, ssl.SSLSocket):
        with suppress(OSError):
            sink.shutdown(gevent.socket.SHUT_WR)
