"""
What Linux knows about UDP sockets: opening one with all options, and its control messages.

Numbers and packing only; no loop, no state. What is done with them is gwt.net.udp's.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Final, TypeAlias

from gevent.monkey import get_original

__all__ = [
    "ANCILLARY",
    "EXTENDED_ERR",
    "IP",
    "IPV6",
    "IPV6_MTU_DISCOVER",
    "IPV6_RECVERR",
    "IP_MTU_DISCOVER",
    "IP_PKTINFO",
    "IP_RECVERR",
    "LINUX",
    "MSG_ERRQUEUE",
    "ORIGIN_LOCAL",
    "PROBE",
    "SEGMENT",
    "TRUNCATED",
    "UDP",
    "UDP_GRO",
    "UDP_SEGMENT",
    "Address",
    "Control",
    "local_address",
    "open_socket",
    "read_errors",
    "segments_of",
    "shown",
    "source",
]

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

# Linux, from its headers: Python 3.11 knows few of them, and elsewhere the numbers mean others.
LINUX: Final = sys.platform.startswith("linux")
UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
IP, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR = 0, 8, 10, 11
IPV6, IPV6_PKTINFO, IPV6_RECVPKTINFO = 41, 50, 49
IPV6_MTU_DISCOVER, IPV6_RECVERR = 23, 25
PROBE, ORIGIN_LOCAL, MSG_ERRQUEUE = 3, 1, 0x2000
TRUNCATED: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)

# Room for a segment size (an int) and the larger pktinfo (20 bytes).
ANCILLARY: Final = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
SEGMENT: Final = struct.Struct("=H")
EXTENDED_ERR: Final = struct.Struct("=IBBBBII")


Control: TypeAlias = list[tuple[int, int, bytes]]


def open_socket(
    address: Address, family: int, *, buffer: int, reuse_port: bool = False
) -> socket.socket:
    """
    Return a non-blocking UDP socket bound to `address`, whose host must be numeric.

    It is the standard library's socket even in a monkey-patched process, since nothing in the
    quiet zone may wait. Raises the OSError of bind with a message that names the address.
    """
    # No SO_REUSEADDR: with it two servers bind one UDP port without an error.
    sock: socket.socket = get_original("socket", "socket")(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # Bound to "::" it also serves IPv4 peers, whose addresses look like ::ffff:192.0.2.1.
            sock.setsockopt(IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except OSError as error:
        sock.close()
        host, port = address[:2]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"Cannot bind UDP {where}: {reason}") from error
    except BaseException:
        sock.close()
        raise
    for level, name, value in _options(sock, buffer):
        # An older kernel, or a container that forbids it: the socket works without.
        with suppress(OSError):
            sock.setsockopt(level, name, value)
    return sock


def _options(sock: socket.socket, buffer: int) -> list[tuple[int, int, int]]:
    # The system caps the buffers silently at net.core.rmem_max and wmem_max.
    options = [
        (socket.SOL_SOCKET, socket.SO_RCVBUF, buffer),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, buffer),
    ]
    if not LINUX:
        return options
    # RFC 9000 14: datagrams must not be fragmented. PROBE sets DF, yet lets no forged
    # "fragmentation needed" shrink what we may send, as DO would. An IPv6 socket has the options
    # of IPv4 as well, for its IPv4 peers.
    options += [(IP, IP_RECVERR, 1), (IP, IP_MTU_DISCOVER, PROBE), (UDP, UDP_GRO, 1)]
    wildcard = sock.getsockname()[0] in ("0.0.0.0", "::")
    if sock.family == socket.AF_INET6:
        options += [(IPV6, IPV6_RECVERR, 1), (IPV6, IPV6_MTU_DISCOVER, PROBE)]
        if wildcard:
            options.append((IPV6, IPV6_RECVPKTINFO, 1))
    elif wildcard:
        options.append((IP, IP_PKTINFO, 1))
    return options


@lru_cache(256)
def local_address(level: int, kind: int, value: bytes) -> str | None:
    if level == IP and kind == IP_PKTINFO:
        # The middle field is the address to answer from; the last one may be a broadcast's.
        return socket.inet_ntop(socket.AF_INET, value[4:8])
    if level == IPV6 and kind == IPV6_PKTINFO:
        return socket.inet_ntop(socket.AF_INET6, value[:16])
    return None


@lru_cache(256)
def source(family: int, local: str) -> Control:
    try:
        packed = socket.inet_pton(family, local)
    except OSError:
        return []
    if family == socket.AF_INET6:
        return [(IPV6, IPV6_PKTINFO, packed + bytes(4))]
    return [(IP, IP_PKTINFO, bytes(4) + packed + bytes(4))]


def shown(address: Address) -> tuple[str, int]:
    """
    Return an address as users know it: host and port.

    On a socket that serves both families an IPv4 peer is ::ffff:192.0.2.1, here 192.0.2.1. A
    link-local address keeps its interface, fe80::1%2: without it the address names nobody.
    """
    host, port = address[:2]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    elif len(address) == 4 and address[3]:
        host = f"{host}%{address[3]}"
    return host, port


def segments_of(size: int) -> tuple[int, int, bytes]:
    """Return the control message that sends a batch as datagrams of `size` bytes."""
    return UDP, UDP_SEGMENT, SEGMENT.pack(size)


def read_errors(sock: socket.socket, most: int) -> list[tuple[Address, int, int]]:
    """Empty the error queue, up to `most` entries: destination, errno and origin of each."""
    found: list[tuple[Address, int, int]] = []
    while LINUX and len(found) < most:
        try:
            _, ancillary, _, address = sock.recvmsg(1, 512, MSG_ERRQUEUE)
        except OSError:
            break
        code = origin = 0
        for level, kind, value in ancillary:
            if (level, kind) in ((IP, IP_RECVERR), (IPV6, IPV6_RECVERR)):
                code, origin, *_ = EXTENDED_ERR.unpack_from(value)
        found.append((address, code, origin))
    with suppress(OSError):
        # An entry beyond those must not fail the next send, of whomever: this clears it.
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return found
