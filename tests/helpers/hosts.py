"""The servers that people run their WSGI applications on, each in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent.socket
import gevent.ssl
from gevent import subprocess

import gwt
from tests.helpers import eventually

__all__ = ["APPS", "GUNICORN", "HOSTS", "ROOT", "Host", "everything", "serving"]

ROOT = Path(__file__).resolve().parents[2]
APPS = ROOT / "tests" / "integrations" / "apps"

GUNICORN = "gwt.integrations.gunicorn.Worker"

HOSTS = ["pywsgi", GUNICORN, "gwt serve"]


class Host:
    """A server with one application, and what it has written."""

    def __init__(self, process: Any, port: int, output: Path, scheme: str) -> None:
        self.process = process
        self.port = port
        self.scheme = scheme
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text()

    def url(self, path: str = "/ws") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    def connect(self, path: str = "/ws", **options: Any) -> gwt.WebSocket:
        return gwt.connect(self.url(path), timeout=20, verify=False, **options)

    def open(self) -> Any:
        """Return a connected socket, for those who write bytes themselves."""
        sock = gevent.socket.create_connection(("127.0.0.1", self.port), timeout=20)
        if self.scheme == "ws":
            return sock
        context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, gevent.ssl.CERT_NONE
        return context.wrap_socket(sock)

    def ask(self, path: str, *lines: str, behind: bytes = b"") -> Any:
        """Return a socket on which a request was sent, and bytes behind it."""
        sock = self.open()
        head = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *lines, "", ""]
        sock.sendall("\r\n".join(head).encode() + behind)
        return sock

    def upgrade(self, path: str, behind: bytes = b"") -> Any:
        """Return a socket on which a WebSocket was asked for."""
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        asked = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
        return self.ask(path, *asked, behind=behind)

    def get(self, path: str = "/") -> str:
        """Return the whole answer to a plain request."""
        with self.ask(path, "Connection: close") as sock:
            return everything(sock).decode()

    def stop(self) -> None:
        """Ask it to end, and see that it does."""
        self.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: self.process.poll() is not None, 20), self.output


def everything(sock: Any) -> bytes:
    """Read to the end."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


@contextmanager
def serving(host: str, app: str, *files: str) -> Iterator[Host]:
    """
    Serve "MODULE:ATTR" of tests/integrations/apps; `files` are a certificate and its key.

    A host that is none of HOSTS is a worker of gunicorn's, or "python" for a script as it is.
    """
    listening = None
    options: dict[str, Any] = {}
    if host == "pywsgi":
        command = ["serve.py", app, *files]
    elif host == "python":
        command = [app]
    elif host == "gwt serve":
        command = ["-m", "gwt", "serve", app, "--bind", "127.0.0.1:0", "--no-http3"]
    else:
        # It inherits what it listens on, so that nobody has to guess a port.
        listening = socket.create_server(("127.0.0.1", 0))
        command = ["-m", "gunicorn", "--no-control-socket", "--access-logfile", "-"]
        command += ["--bind", f"fd://{listening.fileno()}", "--graceful-timeout", "5"]
        command += ["-k", host, app]
        options["pass_fds"] = [listening.fileno()]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=APPS,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                stdout=file,
                stderr=file,
                **options,
            )
        try:
            if listening is not None:
                # A connection waits in the backlog until a worker is there.
                port = listening.getsockname()[1]
                listening.close()
            else:
                lines = eventually(
                    lambda: (
                        [line for line in output.read_text().split("\n")[:-1] if _port(line)]
                        or process.poll() is not None
                    ),
                    20,
                )
                assert isinstance(lines, list), output.read_text()
                port = _port(lines[0])
            yield Host(process, port, output, "wss" if files else "ws")
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _port(line: str) -> int:
    """Return the port in a line that says where a server listens; else 0."""
    word = line.removeprefix("listening on http://").partition(":")[2] or line
    return int(word) if word.isdigit() else 0
