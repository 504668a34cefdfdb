"""
HTTP proxies: which one a connection goes through, and asking it for a tunnel.

An option names one, or the environment does, as everywhere: https_proxy, http_proxy, all_proxy and
no_proxy, in lower or upper case.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.request import getproxies, proxy_bypass

from ..errors import ConfigError, HandshakeError
from ..version import VERSION
from .target import Target, parse_url

__all__ = ["ask_for_tunnel", "proxy_for"]

_SCHEMES = {"http": 80, "https": 443}

# In whose order the environment is asked: RFC 6455 4.1 prefers the proxy for TLS also without it.
_VARIABLES = {
    "ws": ("ws", "https", "http", "all", "socks"),
    "wss": ("wss", "https", "all", "socks"),
}

# Bytes of a proxy's answer.
_LONGEST_ANSWER = 65536

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([\x20-\x7e]*).*)?", re.DOTALL)


def proxy_for(target: Target, option: Any) -> Target | None:
    """
    Return the proxy through which to reach a target, or None to go there directly.

    `option` is a URL, True for what the environment says, or None or False for none. What the
    environment says is not for loopback: a proxy's is another one. Raises ConfigError.
    """
    if option is None or option is False:
        return None
    if option is not True:
        return _parse(option, "proxy")
    if _is_loopback(target.host) or proxy_bypass(f"{target.host}:{target.port}"):
        return None
    proxies = getproxies()
    for name in _VARIABLES[target.scheme]:
        if found := proxies.get(name):
            if name == "socks":
                # Whatever scheme it is written with.
                found = f"socks://{found.rpartition('://')[2]}"
            return _parse(found, f"{name}_proxy in the environment")
    return None


def _parse(url: Any, name: str) -> Target:
    if isinstance(url, str) and url and "://" not in url:
        # As curl has it.
        url = f"http://{url}"
    try:
        return parse_url(url, _SCHEMES, name="proxy", users=True)
    except ConfigError as exc:
        raise ConfigError(
            f"{name}: {exc} Only HTTP proxies are spoken to; proxy=None connects directly.",
            field="proxy",
            value=exc.value,
        ) from exc


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def ask_for_tunnel(sock: Any, proxy: Target, target: Target) -> None:
    """
    Ask a proxy for a tunnel by CONNECT (RFC 9110 9.3.6), and wait for its answer.

    The proxy resolves the name. Raises HandshakeError with stage "connect".
    """
    host = f"[{target.host}]" if ":" in target.host else target.host
    place = f"{host}:{target.port}"
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}", f"User-Agent: gwt/{VERSION}"]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    answer = b""
    try:
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in answer and len(answer) < _LONGEST_ANSWER:
            more = sock.recv(16384)
            if not more:
                break
            answer += more
    except OSError as exc:
        raise _failure(proxy, f"broke the connection: {exc}") from exc
    head, end, rest = answer.partition(b"\r\n\r\n")
    status = _STATUS.fullmatch(head.partition(b"\r\n")[0])
    if status is None or not end:
        raise _failure(proxy, "gave no answer" if not answer else "gave no answer of HTTP")
    if not status[1].startswith(b"2"):
        phrase = f" ({status[2].decode()})" if status[2] else ""
        why = f"refused a tunnel to {place} with HTTP status {status[1].decode()}{phrase}"
        if status[1] == b"407":
            wrong = "not accepted" if proxy.authorization else "missing from the proxy's URL"
            why += f": user and password are {wrong}"
        raise _failure(proxy, why)
    if rest:
        # A server of WebSockets does not speak first.
        raise _failure(proxy, "sent more than an answer")


def _failure(proxy: Target, what: str) -> HandshakeError:
    return HandshakeError(f"The proxy {proxy.authority} {what}.", stage="connect")
