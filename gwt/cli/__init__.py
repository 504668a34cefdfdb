"""
The command line: ``gwt`` and ``python -m gwt``. Floor 5.

Each subcommand has a file of its own with `configure` (its arguments) and `run` (which returns the
exit code). What they share is here: 2 for usage, 1 for a failure, 130 for Ctrl-C, and errors in
one line without a traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import gwt

from . import bench, cert, connect, serve, stdio
from .display import escaped

__all__ = ["main"]

FAILED = 1
USAGE = 2
INTERRUPTED = 130

# Bytes of a refusal's reason that are shown.
_REASON = 200

# What may help where a peer's certificate is refused.
_TRUSTING = " (--insecure accepts any, --cert-hash HEX the one with this SHA-256)"

_COMMANDS = {"serve": serve, "connect": connect, "bench": bench, "cert": cert}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (--help shows how it is used)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    stdio.complete()
    parser = _Parser(prog="gwt", description="WebTransport, HTTP/3 and WebSocket for gevent.")
    parser.add_argument("--version", action="version", version=f"gwt {gwt.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").strip().partition("\n")[0].partition(": ")[2]
        parsers[name] = commands.add_parser(name, help=summary, description=summary)
        module.configure(parsers[name])
    try:
        args, rest = parser.parse_known_args(argv)
        if rest:
            parsers[args.command].error(f"unrecognized arguments: {' '.join(rest)}")
    except SystemExit as exc:
        # The parser has said what there is to say.
        return exc.code if isinstance(exc.code, int) else USAGE
    try:
        code: int = _COMMANDS[args.command].run(args)
        return code
    except gwt.ConfigError as exc:
        return _failed(args.command, exc, USAGE)
    except gwt.CertificateError as exc:
        unasked = getattr(args, "cert_hash", None) == []
        return _failed(args.command, exc, FAILED, _TRUSTING if unasked else "")
    except BrokenPipeError:
        # Whoever reads stdout has read enough.
        stdio.discard()
        return 0
    except (gwt.GwtError, OSError) as exc:
        return _failed(args.command, exc, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _failed(command: str, exc: Exception, code: int, advice: str = "") -> int:
    # "[Errno 98] ..." tells nobody anything.
    text = str(exc)
    if isinstance(exc, OSError) and exc.strerror:
        text = f"{exc.filename}: {exc.strerror}" if exc.filename is not None else exc.strerror
    if isinstance(exc, gwt.SessionRejected):
        text += f" {_reason(exc)}"
    # It may quote what a peer said.
    print(f"gwt {command}: {escaped(' '.join(text.split()))}{advice}", file=sys.stderr)
    return code


def _reason(exc: gwt.SessionRejected) -> str:
    """Return the first line of the answer's body, if that is for people to read as it is."""
    if not exc.headers.get("content-type", "").lower().startswith("text/plain"):
        return ""
    return exc.body.strip().partition(b"\n")[0][:_REASON].decode(errors="replace")
