"""
``gwt cert``: make a development certificate, such as browsers accept by its hash.
"""

from __future__ import annotations

import argparse

from .. import certificates

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Say which arguments there are."""
    parser.add_argument(
        "hosts",
        nargs="*",
        metavar="HOST",
        help="names and addresses it is for (default: localhost, 127.0.0.1 and ::1)",
    )
    parser.add_argument(
        "--out",
        default=".",
        metavar="DIR",
        help="where cert.pem and key.pem are written, over what is there (default: here)",
    )
    parser.add_argument(
        "--days",
        type=float,
        default=13,
        help="how long it is valid, at most 14 (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the files, print their paths and the hash."""
    options = {"hosts": args.hosts} if args.hosts else {}
    certificate = certificates.generate(**options, days=args.days)
    certfile, keyfile = certificates.write(args.out, certificate)
    print(f"certificate {certfile}")
    print(f"key {keyfile}")
    print(f"sha-256 {certificate.sha256}", flush=True)
    return 0
