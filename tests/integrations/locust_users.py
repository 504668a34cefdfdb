"""
The users of gwt.integrations.locust, each against a server in this process.

test_locust.py runs this file in a process of its own, since Locust monkey-patches: here that comes
after everything else was imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gevent.pool import Group

import gwt
from gwt.integrations.locust import WebSocketUser, WebTransportUser
from tests.helpers import eventually
from tests.helpers.live import echo, serving

from locust.env import Environment  # isort: skip


class Trial:
    """Users of one class on their own, and all that they report."""

    def __init__(self, user_class: type, host: str) -> None:
        user_class.host = host
        self.user_class = user_class
        self.environment = Environment(user_classes=[user_class])
        self.group = Group()
        self.requests: list[dict[str, Any]] = []
        self.errors: list[BaseException] = []
        events = self.environment.events
        events.request.add_listener(lambda **request: self.requests.append(request))
        events.user_error.add_listener(lambda exception, **_: self.errors.append(exception))

    def start(self) -> Any:
        user = self.user_class(self.environment)
        user.start(self.group)
        return user

    def rows(self) -> list[tuple[str, str, str | None]]:
        """What was reported: type, name, and the failure's text."""
        return [
            (each["request_type"], each["name"], each["exception"] and str(each["exception"]))
            for each in self.requests
        ]


@contextmanager
def trial(user_class: type, app: gwt.App | str) -> Iterator[Trial]:
    """Run a test against an app, or a host; its users are killed at the end."""
    if isinstance(app, str):
        test = Trial(user_class, app)
        yield from _stopping(test)
        return
    with serving(app) as server:
        test = Trial(user_class, "http://{}:{}".format(*server.address))
        test.server = server
        yield from _stopping(test)


def _stopping(test: Trial) -> Iterator[Trial]:
    try:
        yield test
    finally:
        test.group.kill()


def one_task(function: Callable[[Any], None], kind: type, **attributes: Any) -> type:
    """Return a class of users that do this once, and then wait."""

    def run(self: Any) -> None:
        self.done = True
        function(self)

    def wait(self: Any) -> float:
        return 60.0

    attributes = {"connect_options": {"verify": False}, "timeout": 5.0, **attributes}
    return type("User", (kind,), {"tasks": [run], "wait_time": wait, **attributes})


@pytest.fixture
def app() -> gwt.App:
    app = gwt.App()

    @app.websocket("/echo")
    def echo_messages(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    app.webtransport("/echo")(echo)
    return app


class TestWebSocket:
    def test_each_call_is_a_row(self, app):
        def work(user):
            user.send("grüße")
            assert user.receive() == "grüße"
            assert user.request(b"ab", name="/other") == b"ab"
            user.finished = True

        with trial(one_task(work, WebSocketUser, path="/echo?token=1"), app) as test:
            user = test.start()
            eventually(lambda: getattr(user, "finished", False))
        assert test.rows() == [
            ("WS", "/echo", None),
            ("WSS", "/echo", None),
            ("WSR", "/echo", None),
            ("WSC", "/other", None),
        ]
        assert [each["response_length"] for each in test.requests] == [0, 7, 7, 2]
        assert all(each["response_time"] > 0 for each in test.requests)
        assert all(each["context"] == {} for each in test.requests)
        assert all(each["url"].endswith("/echo?token=1") for each in test.requests)
        assert test.requests[0]["url"].startswith("ws://127.0.0.1:")


class TestWebTransport:
    def test_each_call_is_a_row(self, app):
        def work(user):
            assert user.request(b"abc") == b"abc"
            assert user.upload([b"ab", b"cd"]) == b"abcd"
            user.send(b"one way")
            assert user.receive() == b"one way"
            assert user.request_datagram(b"ping") == b"ping"
            user.send_datagram(b"pong")
            assert user.receive_datagram() == b"pong"
            user.finished = True

        with trial(one_task(work, WebTransportUser, path="/echo"), app) as test:
            user = test.start()
            eventually(lambda: getattr(user, "finished", False))
        assert [row[0] for row in test.rows()] == [
            *("WT", "WTC", "WTU", "WTS", "WTR", "WTDC", "WTDS", "WTDR")
        ]
        assert {row[1:] for row in test.rows()} == {("/echo", None)}
        assert [each["response_length"] for each in test.requests] == [0, 3, 4, 7, 7, 4, 4, 4]
        assert test.requests[0]["url"].startswith("https://127.0.0.1:")
