"""
create_connection(), for programs that were written for `websocket-client`.

It translates that library's options into those of connect(), and nothing else: what it returns is
the WebSocket that everybody gets. What is different then is in docs/departures.md.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ..errors import UnknownOption
from ..options import bad
from ..stream_common import CONFIGURED
from ..websocket import WebSocket
from . import tls
from .target import Target, parse_url
from .websocket import SCHEMES, connect_websocket

__all__ = ["create_connection"]

_SSL_OPTIONS = {
    "ca_cert_path",
    "ca_certs",
    "cert_reqs",
    "certfile",
    "check_hostname",
    "ciphers",
    "context",
    "keyfile",
    "password",
    "server_hostname",
}


def create_connection(
    url: str,
    timeout: float | None = CONFIGURED,
    *,
    header: Mapping[str, str] | Iterable[str | tuple[str, str]] | None = None,
    cookie: str | None = None,
    origin: str | None = None,
    suppress_origin: bool = False,
    host: str | None = None,
    subprotocols: Sequence[str] | None = None,
    sslopt: Mapping[str, Any] | None = None,
    sockopt: Sequence[tuple[Any, ...]] | None = None,
    http_proxy_host: str | None = None,
    http_proxy_port: int | str | None = None,
    http_proxy_auth: tuple[str, str] | None = None,
    proxy_type: str = "http",
    redirect_limit: int = 3,
    socket: Any = None,
    enable_multithread: bool = True,
    skip_utf8_validation: bool = False,
    **options: Any,
) -> WebSocket:
    """
    Connect as `websocket.create_connection` does, and return a gwt.WebSocket.

    Waits at most `timeout` seconds (10 unless given, None is no limit) for the whole call; recv()
    has a time limit of its own. `header` are "Name: value" lines or a mapping, `host`
    the Host header, `sslopt` the keywords of that library (cert_reqs, ca_certs, check_hostname,
    server_hostname, certfile, keyfile, password, ciphers, context). An Origin made of the URL is
    sent unless `suppress_origin`. `enable_multithread` has no effect: greenlets may always send at
    once. `skip_utf8_validation` may not be set: ConfigError. Further options are those of
    connect(), and unknown ones are refused; raises what connect() raises.
    """
    if skip_utf8_validation:
        raise bad("skip_utf8_validation", skip_utf8_validation, "False: text is always UTF-8")
    del enable_multithread
    target = parse_url(url, SCHEMES, users=True)
    if proxy_type != "http":
        raise bad("proxy_type", proxy_type, '"http"')
    headers = _headers(header)
    if cookie is not None:
        headers.append(("Cookie", cookie))
    if not suppress_origin and not any(name.lower() == "origin" for name, _ in headers):
        options["origin"] = origin if origin is not None else _origin(target)
    if timeout is not CONFIGURED:
        options["timeout"] = timeout
    if http_proxy_host is not None:
        if "proxy" in options:
            raise TypeError("proxy and http_proxy_host were both given.")
        options["proxy"] = _proxy(http_proxy_host, http_proxy_port, http_proxy_auth)
    return connect_websocket(
        url,
        headers=headers,
        authority=host,
        subprotocols=list(subprotocols or ()),
        sock=socket,
        sockopt=sockopt or (),
        max_redirects=redirect_limit,
        **_ssl_options(dict(sslopt or {}), secure=target.scheme == "wss"),
        **options,
    )


def _headers(given: Any) -> list[tuple[str, str]]:
    if isinstance(given, Mapping):
        return [(name, value) for name, value in given.items() if value is not None]
    headers = []
    for line in given or ():
        name, colon, value = line.partition(":") if isinstance(line, str) else ("", "", "")
        if not colon:
            raise bad("header", line, 'a mapping, or lines "Name: value"')
        headers.append((name.strip(), value.strip()))
    return headers


def _origin(target: Target) -> str:
    return f"{'https' if target.scheme == 'wss' else 'http'}://{target.authority}"


def _proxy(host: str, port: int | str | None, auth: tuple[str, str] | None) -> str:
    user = ""
    if auth is not None:
        user = ":".join(quote(each or "", safe="") for each in auth) + "@"
    return f"http://{user}{f'[{host}]' if ':' in host else host}:{port or 80}"


def _ssl_options(given: dict[str, Any], *, secure: bool) -> dict[str, Any]:
    """Translate sslopt, whose keywords are those of ssl.wrap_socket() of old."""
    options: dict[str, Any] = {}
    for name in given:
        if name not in _SSL_OPTIONS:
            raise UnknownOption(f"sslopt has no option {name!r}.", field="sslopt", value=given)
    if (name := given.pop("server_hostname", None)) is not None:
        options["server_name"] = name
    if not given:
        return options
    verify = ssl.VerifyMode(given.get("cert_reqs", ssl.CERT_REQUIRED)) is not ssl.CERT_NONE
    cafile = given.get("ca_certs")
    special = set(given) - {"cert_reqs", "ca_certs", *([] if verify else ["check_hostname"])}
    if not special:
        # Equal options share a context.
        return options | {"verify": verify, "cafile": cafile if verify else None}
    if not secure:
        return options
    context = given.get("context") or tls.make_context(verify=verify, cafile=cafile)
    if given.get("ca_cert_path"):
        context.load_verify_locations(capath=os.fspath(given["ca_cert_path"]))
    if verify and not given.get("check_hostname", True):
        context.check_hostname = False
    if given.get("certfile"):
        context.load_cert_chain(given["certfile"], given.get("keyfile"), given.get("password"))
    if given.get("ciphers"):
        context.set_ciphers(given["ciphers"])
    return options | {"ssl": context}
