"""
Where tunnels may lead: an allow-list of targets, over names and addresses. Pure.

What is asked for is one question, what a name resolves to another: names are other people's, and
may resolve to addresses that only we can reach. So both are asked, and what was checked is what is
connected to, never the name again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError

__all__ = ["Targets"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# RFC 6052 2.1: IPv4 addresses behind a translator.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

# RFC 4291 2.4: of the rest of IPv6 nothing is public, whatever is_global says of it.
_UNICAST = ipaddress.IPv6Network("2000::/3")

# Where clouds tell a machine its secrets, outside of link-local addresses: Oracle's and whatever
# else is in 192.0.0.0/24 (RFC 6890), Azure's, Alibaba's, Amazon's.
_INSIDE: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "168.63.129.16", "100.100.100.200", "fd00:ec2::/32")
)


@dataclass(frozen=True, slots=True)
class _Entry:
    # A name; or "*", or "*.name". Or a network, of one address or more.
    name: str
    network: Network | None
    # None: any.
    port: int | None


class Targets:
    """
    An allow-list. Entries are "host:port"; the port may be "*". The host is

    - a name: that name, which may resolve to private addresses, but to loopback only if it is
      "localhost", and never to link-local ones;
    - "*.name", or "*": any name below, or any at all, which must resolve to public addresses; "*"
      is public addresses, too;
    - an address, or a network ("10.0.0.0/8", "[fd00::/8]"): those, asked for as addresses, and for
      names that another entry lets in.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._entries = [_parse(entry) for entry in entries]

    def __bool__(self) -> bool:
        return bool(self._entries)

    def asked(self, host: str, port: int) -> bool:
        """Return whether a client may ask for this name, or address, at all."""
        address = _address(host)
        if address is not None:
            return self.reaches(host, port, host)
        return any(_named(entry, host.rstrip("."), port) for entry in self._entries)

    def reaches(self, host: str, port: int, address: str, *, ours: bool = False) -> bool:
        """
        Return whether `host`, which may be asked for, may be connected to at `address`.

        `ours`: the address is one of this machine's, public or not, where no firewall is between
        us and what listens there.
        """
        found = _address(address)
        if found is None:
            return False
        name = host.rstrip(".")
        for entry in self._entries:
            if entry.port not in (None, port):
                continue
            if entry.network is not None:
                if found in entry.network:
                    return True
            elif not entry.name.startswith("*"):
                if entry.name == name and (
                    (_is_local_name(name) and found.is_loopback)
                    or not any(_is_ours_alone(form) for form in _forms(found))
                ):
                    return True
            elif (
                not ours
                and (entry.name == "*" or _named(entry, name, port))
                and all(_is_public(form) for form in _forms(found))
            ):
                return True
        return False


def _named(entry: _Entry, name: str, port: int) -> bool:
    if entry.network is not None or entry.port not in (None, port):
        return False
    if entry.name.startswith("*."):
        return name.endswith(entry.name[1:]) and len(name) >= len(entry.name)
    return entry.name in ("*", name)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address


def _forms(address: Address) -> Iterable[Address]:
    """Yield an address, and the IPv4 address that packets to it may end at."""
    if address in _NAT64:
        # Nothing else than the other: the prefix itself is neither public nor private.
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return
    yield address
    if isinstance(address, ipaddress.IPv6Address) and address.sixtofour is not None:
        yield address.sixtofour


def _is_public(address: Address) -> bool:
    """Return whether an address is everybody's."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST:
        return False
    return address.is_global and not address.is_multicast and not _is_ours_alone(address)


def _is_ours_alone(address: Address) -> bool:
    """Return whether an address means this machine, or this link, which no other name should."""
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
        or any(address in network for network in _INSIDE)
    )


def _is_local_name(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _parse(entry: str) -> _Entry:
    def wrong(why: str) -> ConfigError:
        return ConfigError(
            f"connect_targets: {entry!r} is not a target: {why}.",
            field="connect_targets",
            value=entry,
        )

    host, colon, port_text = entry.rpartition(":")
    if not colon or not host:
        raise wrong('"host:port" is needed')
    port = None
    if port_text != "*":
        if not port_text.isdecimal() or not 0 < int(port_text) < 65536:
            raise wrong('its port is neither "*" nor a number from 1 to 65535')
        port = int(port_text)
    host = host.lower()
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    try:
        network = ipaddress.ip_network(host)
    except ValueError as exc:
        if bracketed or "/" in host:
            raise wrong(str(exc)) from None
    else:
        if network.version == 6 and not bracketed:
            raise wrong("an IPv6 address needs brackets")
        return _Entry("", network, port)
    if ":" in host:
        raise wrong("an IPv6 address needs brackets")
    name = host.rstrip(".")
    bare = name.removeprefix("*.")
    if host != "*" and (not bare or "*" in bare):
        raise wrong('"*" stands for all names, or in front of a name: "*.example.com"')
    return _Entry(name, None, port)
