"""
Headless Chromium, driven over W3C WebDriver with nothing but the standard library.

Its sockets are gevent's, so that a server in the test's own process goes on while a script runs
in the page.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent.socket
import gevent.subprocess

from tests.helpers import eventually, find_browser

__all__ = ["Chromium", "ScriptError", "WebDriverError"]

# Nothing of a browser's own is to go over the network; Chromium's sandbox does not run as root.
_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=900,700",
]

# What every script of a test finds: a transport to a URL, and shorthands for its streams.
_PRELUDE = """
const seconds = (n) => new Promise((resolve, reject) =>
  setTimeout(() => reject(new Error(`not within ${n} s`)), n * 1000));
const within = (n, promise) => Promise.race([promise, seconds(n)]);
const encode = (text) => new TextEncoder().encode(text);
const decode = (bytes) => new TextDecoder().decode(bytes);
const fromHex = (hex) => Uint8Array.from(hex.match(/../g), (h) => parseInt(h, 16));
function open(url, hash, options = {}) {
  const wt = new WebTransport(url, {
    serverCertificateHashes: [{algorithm: 'sha-256', value: fromHex(hash)}], ...options});
  // What a test does not look at is no unhandled rejection.
  wt.ready.catch(() => {}); wt.closed.catch(() => {});
  return wt;
}
async function readAll(readable) {
  const reader = readable.getReader(), chunks = [];
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    chunks.push(value);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}
async function writeAll(writable, data) {
  const writer = writable.getWriter();
  await writer.write(typeof data === 'string' ? encode(data) : data);
  await writer.close();
}
async function next(readable) {
  const reader = readable.getReader();
  try {
    const {value, done} = await reader.read();
    if (done) throw new Error('the stream of streams ended');
    return value;
  } finally { reader.releaseLock(); }
}
const datagramWriter = (wt) =>
  (wt.datagrams.writable ?? wt.datagrams.createWritable()).getWriter();
// The error of a promise that should fail, as plain data.
const failure = (promise) => promise.then(
  () => { throw new Error('it did not fail'); },
  (e) => ({name: e.name, message: e.message, source: e.source ?? null,
           code: e.streamErrorCode ?? null}));
const sha256 = async (bytes) => Array.from(new Uint8Array(await crypto.subtle.digest(
  'SHA-256', bytes)), (b) => b.toString(16).padStart(2, '0')).join('');
"""

_WRAPPER = """
const args = arguments[0], done = arguments[arguments.length - 1];
(async () => { %s
%s
})().then((value) => done({value: value ?? null}),
          (e) => done({error: `${e.name}: ${e.message}`}));
"""


class WebDriverError(Exception):
    """The driver could not do what it was told."""


class ScriptError(Exception):
    """A script in the page threw."""


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = gevent.socket.create_connection((self.host, self.port), self.timeout)


class Chromium:
    """One headless browser, with one page unless more are asked for."""

    def __init__(self, directory: Path) -> None:
        found = find_browser()
        assert found is not None
        self._directory = directory
        self._log = directory / "chromedriver.log"
        with open(self._log, "wb") as log:
            # A group of its own, so that it can be ended with all its children.
            self._process = gevent.subprocess.Popen(
                [found.chromedriver, "--port=0"],
                stdin=gevent.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Chromium keeps more in HOME and XDG folders than in its profile.
                env={**os.environ, "HOME": str(directory), "TMPDIR": str(directory)},
            )
        try:
            self._port = eventually(self._find_port, 20)
            capabilities = {
                "browserName": "chrome",
                "goog:chromeOptions": {
                    "binary": found.chromium,
                    "args": [*_FLAGS, f"--user-data-dir={directory / 'profile'}"],
                },
                "timeouts": {"script": 25_000, "pageLoad": 20_000},
            }
            answer = self._command(
                "POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}, timeout=60
            )
            self._session = f"/session/{answer['sessionId']}"
            self.version = answer["capabilities"]["browserVersion"]
        except BaseException:
            self._kill()
            raise

    def __repr__(self) -> str:
        return f"<Chromium {self.version}>"

    def _find_port(self) -> int | None:
        assert self._process.poll() is None, self._log.read_text()
        for line in self._log.read_text(errors="replace").splitlines():
            if "started successfully on port " in line:
                return int(line.rpartition(" ")[2].rstrip("."))
        return None

    def _command(self, method: str, path: str, body: Any = None, timeout: float = 30) -> Any:
        connection = _Connection("127.0.0.1", self._port, timeout=timeout)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            value = json.loads(response.read())["value"]
        finally:
            connection.close()
        if response.status != 200:
            raise WebDriverError(f"{method} {path}: {value['error']}: {value['message']}")
        return value

    def go(self, url: str) -> None:
        """Load a page; everything of the page before it ends."""
        self._command("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, **args: Any) -> Any:
        """
        Run the body of an async function in the page and return what it returns, as JSON.

        It finds the keywords in `args`, and what _PRELUDE defines. Raises ScriptError.
        """
        answer = self._command(
            "POST",
            f"{self._session}/execute/async",
            {"script": _WRAPPER % (_PRELUDE, script), "args": [args]},
        )
        if "error" in answer:
            raise ScriptError(answer["error"])
        return answer["value"]

    @contextlib.contextmanager
    def another(self, url: str) -> Iterator[str]:
        """Load a page beside the present one, and go there; its handle, for turn_to()."""
        first = self.handle
        handle = self._command("POST", f"{self._session}/window/new", {"type": "tab"})["handle"]
        self.turn_to(handle)
        try:
            self.go(url)
            yield handle
        finally:
            self.turn_to(handle)
            self._command("DELETE", f"{self._session}/window")
            self.turn_to(first)

    @property
    def handle(self) -> str:
        """The page that scripts run in, for turn_to()."""
        handle: str = self._command("GET", f"{self._session}/window")
        return handle

    def turn_to(self, handle: str) -> None:
        """Run scripts in this page from now on; the other ones go on."""
        self._command("POST", f"{self._session}/window", {"handle": handle})

    @contextlib.contextmanager
    def before_pages(self, script: str) -> Iterator[None]:
        """Run a script in every page that is loaded meanwhile, before the page's own."""
        answer = self._cdp("Page.addScriptToEvaluateOnNewDocument", source=script)
        try:
            yield
        finally:
            self._cdp("Page.removeScriptToEvaluateOnNewDocument", **answer)

    def _cdp(self, command: str, **params: Any) -> Any:
        path = f"{self._session}/goog/cdp/execute"
        return self._command("POST", path, {"cmd": command, "params": params})

    def screenshot(self, path: Path) -> None:
        """Write a picture of the page to a PNG file."""
        path.write_bytes(base64.b64decode(self._command("GET", f"{self._session}/screenshot")))

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            self._command("DELETE", self._session)
        finally:
            self._kill()

    def _kill(self) -> None:
        self._process.terminate()
        try:
            with contextlib.suppress(gevent.subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        finally:
            # What is left of the group; usually nothing is.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
