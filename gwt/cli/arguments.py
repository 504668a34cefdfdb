"""The arguments of every command that connects: what is believed, and what the request says."""

from __future__ import annotations

import argparse

__all__ = ["connecting"]


def connecting(parser: argparse.ArgumentParser) -> None:
    """Add --insecure, --cert-hash, --header, --origin and --subprotocol."""
    add = parser.add_argument
    add("--insecure", action="store_true", help="accept any certificate the server shows")
    add(
        "--cert-hash",
        action="append",
        default=[],
        metavar="HEX",
        help="accept the certificate with this SHA-256",
    )
    add(
        "--header",
        action="append",
        default=[],
        type=_header,
        metavar="'NAME: VALUE'",
        help="a header of the request; may be given more than once",
    )
    add("--origin", metavar="ORIGIN", help="the origin header")
    add(
        "--subprotocol",
        action="append",
        default=[],
        metavar="NAME",
        help="a subprotocol to offer; may be given more than once, best first",
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError(text)
    return name.strip(), value.strip()


# What argparse calls it when it is wrong.
_header.__name__ = "'NAME: VALUE'"
