"""
A UDP socket for whole datagrams, as a greenlet uses it: it waits until some have come.

Datagrams are as large as UDP allows, 65,507 bytes over IPv4, and may be fragmented on their way;
answers leave from the address that was asked. For QUIC there is udp.py, where neither is wanted
and nothing may wait. What is in a datagram, and whose it is, is not this room's business.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final, NamedTuple

import gevent.socket
from gevent import get_hub
from gevent.monkey import get_original

from ..observe import Counters
from ..options import parse_bind
from . import udpsocket as kernel

__all__ = ["MOST", "Datagram", "DatagramSocket"]

# The most that a datagram carries: 65,535 less the headers of IPv4 and UDP.
MOST: Final = 65_507

# How many are read before others get their turn.
_DRAIN: Final = 64

_IPV6_RECVPKTINFO: Final = 49


class Datagram(NamedTuple):
    """Bytes, who sent them, and the local address they were sent to, if the socket has several."""

    data: bytes
    peer: tuple[str, int]
    local: str | None


class DatagramSocket:
    """
    A UDP socket bound to "host:port"; it owns a descriptor until close().

    "[::]:port" serves IPv4, too. Raises the OSError of bind, with a message that names the
    address, and ConfigError for a text that is none.
    """

    def __init__(self, bind: str, *, buffer: int = 4 * 1024 * 1024) -> None:
        host, port = parse_bind(bind)
        try:
            family, _, _, _, address = gevent.socket.getaddrinfo(
                host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as exc:
            raise OSError(exc.errno, f"Cannot listen on {host!r}: {exc.strerror}") from exc
        # Not gevent's, whose every call would try, wait and try again by itself.
        self._sock: socket.socket = get_original("socket", "socket")(family, socket.SOCK_DGRAM)
        self._family = int(family)
        try:
            self._sock.setblocking(False)
            if family == socket.AF_INET6:
                self._sock.setsockopt(kernel.IPV6, socket.IPV6_V6ONLY, 0)
            self._sock.bind(address)
        except OSError as exc:
            self._sock.close()
            raise OSError(exc.errno, f"Cannot listen on UDP {bind}: {exc.strerror}") from exc
        # An older kernel, or a container that forbids it: the socket works without.
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if kernel.LINUX and self._sock.getsockname()[0] in ("0.0.0.0", "::"):
            with suppress(OSError):
                if family == socket.AF_INET6:
                    self._sock.setsockopt(kernel.IPV6, _IPV6_RECVPKTINFO, 1)
                else:
                    self._sock.setsockopt(kernel.IP, kernel.IP_PKTINFO, 1)
        self.address = kernel.shown(self._sock.getsockname())
        self.stats = Counters("received", "sent", "unanswerable", "truncated", "lost")
        self._loop: Any = get_hub().loop
        self._reader = self._loop.io(self._sock.fileno(), 1)
        self._view = memoryview(bytearray(65_535))

    def __repr__(self) -> str:
        state = "closed" if self._sock.fileno() < 0 else "open"
        return f"<DatagramSocket {self.address} {state}>"

    def receive(self) -> list[Datagram]:
        """Wait until datagrams have come, and return at most 64 of them. For one greenlet."""
        found: list[Datagram] = []
        while not found:
            get_hub().wait(self._reader)
            self._drain(found)
        return found

    def _drain(self, found: list[Datagram]) -> None:
        for _ in range(_DRAIN):
            try:
                size, ancillary, flags, address = self._sock.recvmsg_into(
                    [self._view], kernel.ANCILLARY
                )
            except BlockingIOError:
                return
            self.stats["received"] += 1
            if flags & socket.MSG_TRUNC:
                self.stats["truncated"] += 1
            elif not address[1]:
                # Nobody can be answered at port 0: forged.
                self.stats["unanswerable"] += 1
            else:
                local = None
                for level, kind, value in ancillary:
                    local = kernel.local_address(level, kind, value) or local
                data = bytes(self._view[:size])
                found.append(Datagram(data, kernel.shown(address), local))

    def send(self, data: bytes, peer: tuple[str, int], local: str | None = None) -> bool:
        """
        Send a datagram; wait while the socket is full.

        Returns whether the kernel took it. That it did not (no route, a firewall, too large for
        IPv6) is counted, and no error: a peer that gave a false address must not cause any.
        """
        host, port = peer
        if self._family == socket.AF_INET6 and ":" not in host:
            host = f"::ffff:{host}"
        ancillary = kernel.source(self._family, local) if local else []
        while True:
            try:
                self._sock.sendmsg([data], ancillary, 0, (host, port))
            except BlockingIOError:
                self._wait_for_room()
            except OSError:
                self.stats["lost"] += 1
                return False
            else:
                self.stats["sent"] += 1
                return True

    def _wait_for_room(self) -> None:
        # Each writer has a watcher of its own, on a descriptor that may be closed meanwhile.
        writer = self._loop.io(self._sock.fileno(), 2)
        try:
            get_hub().wait(writer)
        finally:
            writer.close()

    def close(self) -> None:
        """Close the socket. Not while another greenlet is in receive()."""
        if self._sock.fileno() >= 0:
            self._reader.stop()
            self._reader.close()
            self._sock.close()
