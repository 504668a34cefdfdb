"""A browser, a page, and servers of ours that the page's scripts talk to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent.subprocess
import pytest

import gwt
from tests.helpers import live
from tests.helpers.browser import Chromium


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo in a process of its own; the URL of its page."""
    log = open(tmp_path_factory.mktemp("demo") / "stderr", "wb")  # noqa: SIM115
    process = gevent.subprocess.Popen(
        [sys.executable, "-m", "gwt", "serve", "--bind", "127.0.0.1:0"],
        stdout=gevent.subprocess.PIPE,
        stderr=log,
    )
    try:
        words = process.stdout.readline().decode().split()
        assert words[:2] == ["listening", "on"], words
        yield words[2]
    finally:
        process.terminate()
        process.stdout.close()
        assert process.wait(timeout=15) == 0
        log.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def page(chromium: Chromium, demo: str) -> Iterator[Chromium]:
    """A new page in a secure context; leaving it ends its sessions."""
    chromium.go(f"{demo}/health")
    yield chromium
    chromium.go("about:blank")


class Serving:
    """A server of ours whose one handler is `handler`, and how a page reaches it."""

    def __init__(self, server: gwt.Server, page: Chromium) -> None:
        self.server = server
        self.page = page

    def run(self, script: str, **args: Any) -> Any:
        """Run a script that finds `wt`, a session that is ready."""
        opening = "const wt = open(args.url, args.hash, args.options ?? {}); await wt.ready;\n"
        return self.run_unopened(opening + script, **args)

    def run_unopened(self, script: str, **args: Any) -> Any:
        args.setdefault("url", live.url(self.server))
        return self.page.run(script, hash=self.server.certificate_hash, **args)


@pytest.fixture
def serve(page: Chromium) -> Iterator[Callable[..., Serving]]:
    """serve(handler, **options): start a server for this test; any origin may use it."""
    servers: list[gwt.Server] = []

    def start(handler: Callable[..., Any], **options: Any) -> Serving:
        app = handler if isinstance(handler, gwt.App) else gwt.App()
        if handler is not app:
            app.webtransport("/")(handler)
        server = gwt.Server(app, "127.0.0.1:0", **{"origins": "*", **options})
        server.start()
        servers.append(server)
        return Serving(server, page)

    yield start
    # While the page is there to answer. Chromium leaves without a word, and stop() would wait.
    for server in servers:
        server.stop(timeout=0.3)
