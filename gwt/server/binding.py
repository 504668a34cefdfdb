"""
Where a server listens: the text of an address, and one port for TCP and UDP.

Opens sockets and nothing else; who reads them is listener.py's and tcp.py's affair.
"""

from __future__ import annotations

import errno
import os
import socket as _stdlib_socket
from dataclasses import dataclass
from typing import Any

import gevent.socket

from ..config import ServerConfig
from ..net.udp import open_socket
from ..options import parse_bind

__all__ = ["Bound", "bind_both", "parse_bind"]

# How often a free port is looked for that is free on TCP and UDP.
_ATTEMPTS = 32


@dataclass(slots=True)
class Bound:
    """A TCP listener and a UDP socket on one port."""

    host: str
    port: int
    tcp: Any
    udp: Any

    def close(self) -> None:
        """Close both."""
        for sock in (self.tcp, self.udp):
            if sock is not None:
                sock.close()


def bind_both(bind: tuple[str, int], config: ServerConfig) -> Bound:
    """Bind TCP and UDP; raises OSError with a message that names what could not be bound."""
    host, port = bind
    try:
        family, _, _, _, address = gevent.socket.getaddrinfo(
            host, port, type=_stdlib_socket.SOCK_STREAM, flags=_stdlib_socket.AI_PASSIVE
        )[0]
    except OSError as exc:
        raise OSError(exc.errno, f"Cannot listen on {host!r}: {exc.strerror}") from exc
    for attempt in range(_ATTEMPTS):
        tcp = _listen(family, address, config)
        bound_port = tcp.getsockname()[1]
        if not config.http3:
            return Bound(host, bound_port, tcp, None)
        try:
            udp = open_socket(
                (address[0], bound_port, *address[2:]),
                family,
                buffer=config.socket_buffer,
                reuse_port=config.reuse_port,
            )
        except OSError as exc:
            tcp.close()
            # The port was chosen for TCP; that UDP has it in use is chance.
            if port == 0 and exc.errno == errno.EADDRINUSE and attempt < _ATTEMPTS - 1:
                continue
            raise _explained(exc, "UDP", host, bound_port) from exc
        return Bound(host, bound_port, tcp, udp)
    raise AssertionError("unreachable")


def _listen(family: int, address: Any, config: ServerConfig) -> Any:
    sock = gevent.socket.socket(family, _stdlib_socket.SOCK_STREAM)
    try:
        # A port in TIME_WAIT is free to take; one that somebody listens on is not.
        sock.setsockopt(_stdlib_socket.SOL_SOCKET, _stdlib_socket.SO_REUSEADDR, 1)
        if config.reuse_port:
            sock.setsockopt(_stdlib_socket.SOL_SOCKET, _stdlib_socket.SO_REUSEPORT, 1)
        if family == _stdlib_socket.AF_INET6:
            # As the UDP socket, whatever the system's default is: "::" serves IPv4 as well.
            sock.setsockopt(_stdlib_socket.IPPROTO_IPV6, _stdlib_socket.IPV6_V6ONLY, 0)
        sock.bind(address)
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise _explained(exc, "TCP", address[0], address[1]) from exc
    return sock


def _explained(exc: OSError, what: str, host: str, port: int) -> OSError:
    reason = os.strerror(exc.errno) if exc.errno else str(exc)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return OSError(exc.errno, f"Cannot listen on {what} {where}: {reason}")
