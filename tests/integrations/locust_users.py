"""
The users of gwt.integrations.locust, each against a server in this process.

test_locust.py runs this file in a process of its own, since Locust monkey-patches: here that comes
after everything else was imported and used.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.pool import Group

import gwt
from gwt.integrations.locust import RequestFailed, WebSocketUser, WebTransportUser
from tests.helpers import eventually
from tests.helpers.live import echo, serving

from locust import task  # isort: skip
from locust.env import Environment  # isort: skip
from locust.exception import StopUser  # isort: skip

KINDS = pytest.mark.parametrize("kind", [WebSocketUser, WebTransportUser], ids=["ws", "wt"])

# The first letters of each kind's rows.
PREFIX = {WebSocketUser: "WS", WebTransportUser: "WT"}


def idle(user: Any) -> None:
    """The task of users that are told from outside what to do."""
    user.idle = True


class Trial:
    """Users of one class, and all that they report to Locust."""

    def __init__(self, user_class: Any) -> None:
        self.user_class = user_class
        self.environment = Environment(user_classes=[user_class])
        self.group = Group()
        self.requests: list[dict[str, Any]] = []
        self.errors: list[BaseException] = []
        events = self.environment.events
        events.request.add_listener(self._note)
        events.user_error.add_listener(lambda exception, **_: self.errors.append(exception))

    def _note(self, **request: Any) -> None:
        self.requests.append(request)
        self.environment.stats.log_request(
            *(request[key] for key in ("request_type", "name", "response_time", "response_length"))
        )
        if request["exception"]:
            self.environment.stats.log_error(
                *(request[key] for key in ("request_type", "name", "exception"))
            )

    def start(self) -> Any:
        """Start a user; one without tasks of its own is there, and idle."""
        user = self.user_class(self.environment)
        user.start(self.group)
        if idle in user.tasks:
            eventually(lambda: hasattr(user, "idle") or user.greenlet.ready())
        return user

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The types and names, in order."""
        return [(each["request_type"], each["name"]) for each in self.requests]

    @property
    def types(self) -> list[str]:
        """The types in order, with an exclamation mark for failures."""
        return [each["request_type"] + "!" * bool(each["exception"]) for each in self.requests]

    @property
    def failures(self) -> list[str]:
        """Locust's table of failures, as it would be shown."""
        errors = self.environment.stats.errors.values()
        return [
            f"{each.occurrences} {each.method} {each.parse_error(each.error)}" for each in errors
        ]


@contextmanager
def trial(
    kind: Any,
    app: gwt.App | str,
    *tasks: Callable[[Any], Any],
    wait: float = 60.0,
    **attributes: Any,
) -> Iterator[Trial]:
    """Make a class of users that do these tasks, against an app or a host; kill them at the end."""
    attributes = {
        "connect_options": {"verify": False},
        "timeout": 5.0,
        "reconnect_delay": 0.001,
        "wait_time": lambda self: wait,
        "tasks": list(tasks) or [idle],
        **attributes,
    }
    with ExitStack() as stack:
        if not isinstance(app, str):
            server = stack.enter_context(serving(app))
            app = "http://{}:{}".format(*server.address)
        users = Trial(type("User", (kind,), {"host": app, **attributes}))
        stack.callback(users.group.kill)
        yield users


@pytest.fixture
def app() -> gwt.App:
    """Good and bad servers; a path does about the same for WebSocket and WebTransport."""
    app = gwt.App()
    app.webtransport("/echo")(echo)

    @app.websocket("/echo")
    def _(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    @app.websocket("/silent")
    @app.webtransport("/silent")
    def _(peer: Any) -> None:
        peer.wait_closed()

    @app.middleware
    def _(request: Any) -> None:
        if request.path == "/forbidden":
            raise gwt.Reject(403)

    app.websocket("/forbidden")(echo)
    app.webtransport("/forbidden")(echo)

    # The connection ends in the middle of a request, the first time; then it is an echo.
    used = []

    @app.websocket("/once")
    def _(ws: Any) -> None:
        for message in ws:
            if not used:
                used.append(message)
                ws.close(1011, "broken")
            else:
                ws.send(message)

    @app.webtransport("/once")
    def _(session: Any) -> None:
        if used:
            echo(session)
        else:
            used.append(session.accept_stream().read_all())
            session.abort(7)

    return app


def done(user: Any) -> None:
    """Wait until a user's task has come to its end."""
    eventually(lambda: getattr(user, "finished", False))


class TestRows:
    def test_of_a_websocket(self, app):
        def work(user):
            user.send("grüße")
            assert user.receive() == "grüße"
            assert user.request(b"ab", name="/other") == b"ab"
            user.finished = True

        with trial(WebSocketUser, app, work, path="/echo?token=1") as users:
            done(users.start())
        assert users.rows == [
            ("WS", "/echo"),
            ("WSS", "/echo"),
            ("WSR", "/echo"),
            ("WSC", "/other"),
        ]
        assert not users.failures
        assert [each["response_length"] for each in users.requests] == [0, 7, 7, 2]
        assert users.requests[-1]["response"] == b"ab"
        assert users.requests[0]["url"].startswith("ws://127.0.0.1:")

    def test_of_webtransport(self, app):
        def work(user):
            assert user.request(b"abc") == b"abc"
            assert user.upload([b"ab", b"cd"]) == b"abcd"
            user.send(b"one way")
            assert user.receive() == b"one way"
            assert user.request_datagram(b"ping") == b"ping"
            user.send_datagram(b"pong")
            assert user.receive_datagram() == b"pong"
            user.finished = True

        with trial(WebTransportUser, app, work, path="/echo?token=1") as users:
            done(users.start())
        types = ["WT", "WTC", "WTU", "WTS", "WTR", "WTDC", "WTDS", "WTDR"]
        assert users.rows == [(each, "/echo") for each in types]
        assert not users.failures
        assert [each["response_length"] for each in users.requests] == [0, 3, 4, 7, 7, 4, 4, 4]
        assert users.requests[0]["url"].startswith("https://127.0.0.1:")

    @KINDS
    def test_say_all_that_locust_gives_its_listeners(self, app, kind):
        with trial(kind, app, context=lambda self: {"who": "ann"}) as users:
            user = users.start()
            user.connect("/echo", name="echo of {ann}")
            user.request(b"a")
        assert users.rows == [
            (PREFIX[kind], "echo of {ann}"),
            (PREFIX[kind] + "C", "echo of {ann}"),
        ]
        for request in users.requests:
            assert request["context"] == {"who": "ann"}
            assert request["url"].endswith("/echo")
            assert request["exception"] is None
            assert 0 < request["response_time"] < 5000
            assert request["start_time"] > 1e9

    @KINDS
    def test_of_whatever_else_is_measured(self, app, kind):
        with trial(kind, app, path="/echo") as users:
            user = users.start()
            with user.measure("FLOW", "fine") as meta:
                meta["response_length"] = 3
            with user.measure("FLOW", "answered wrongly") as meta:
                meta["exception"] = ValueError("wrong")
            with pytest.raises(KeyError), user.measure("FLOW", "a mistake"):
                raise KeyError("id")
            with pytest.raises(RequestFailed) as caught, user.measure("FLOW", "a time-out"):
                raise TimeoutError("late")
            assert str(caught.value.exception) == "late"
            with pytest.raises(StopUser), user.measure("FLOW", "nothing"):
                raise StopUser
            user.record("FLOW", "counted", response_length=5)
            user.record("FLOW", "said", 1.5, exception="no good")
        assert users.types[-6:] == ["FLOW", "FLOW!", "FLOW!", "FLOW!", "FLOW", "FLOW!"]
        assert [each["response_length"] for each in users.requests[-6:]] == [3, 0, 0, 0, 5, 0]
        assert [each["response_time"] for each in users.requests[-2:]] == [None, 1.5]
        assert users.failures[-1] == "1 FLOW no good"


class TestConnecting:
    @KINDS
    @pytest.mark.parametrize(("path", "status"), [("/forbidden", 403), ("/nowhere", 404)])
    def test_a_refusal_is_a_failure_each_time_and_the_user_goes_on(self, app, kind, path, status):
        with trial(kind, app, lambda self: self.request(b"a"), wait=0.001, path=path) as users:
            users.start()
            eventually(lambda: len(users.requests) >= 3)
            assert not users.errors and len(users.group) == 1
        (failure,) = users.failures
        count, row, text = failure.split(" ", 2)
        assert int(count) == len(users.requests) and row == PREFIX[kind]
        assert text.startswith("SessionRejected(") and f"HTTP status {status}" in text

    @KINDS
    def test_nobody_there_is_a_failure_each_time_and_the_user_goes_on(self, kind):
        with bound(kind) as sock:
            host = "http://{}:{}".format(*sock.getsockname())
            if kind is WebTransportUser:
                # What is bound would take packets; a socket that does not listen, no connections.
                sock.close()
            work = lambda self: self.request(b"a")  # noqa: E731
            with trial(kind, host, work, wait=0.001, path="/echo") as users:
                users.start()
                eventually(lambda: len(users.requests) >= 3)
                assert not users.errors and len(users.group) == 1
            (failure,) = users.failures
        assert failure.startswith(f"{len(users.requests)} {PREFIX[kind]} HandshakeError('Nobody")

    @KINDS
    def test_a_connect_that_times_out_reads_alike_each_time(self, kind):
        with bound(kind) as sock:
            if kind is WebSocketUser:
                sock.listen()
            host = "http://{}:{}".format(*sock.getsockname())
            options = {"verify": False, "timeout": 0.1, "max_connecting": 1}
            with trial(kind, host, connect_options=options) as users:
                for number, user in enumerate([users.start() for _ in range(5)]):
                    users.group.spawn(_connect, user, f"/echo/{number}?token={number}")
                eventually(lambda: len(users.requests) == 5)
        texts = {str(each["exception"]) for each in users.requests}
        assert all(each.startswith("Connecting timed out after 0.1 s, while ") for each in texts)
        assert not any("echo" in each or "queued" in each for each in texts)

    @KINDS
    def test_what_each_connection_begins_with_is_done_again_after_a_loss(self, app, kind):
        def login(user):
            assert user.request(b"login", name="login") == b"login"

        with trial(kind, app, path="/echo", on_connect=login) as users:
            user = users.start()
            user.request(b"a")
            user.give_up(user.ready())
            user.request(b"b")
        connect, call = PREFIX[kind], f"{PREFIX[kind]}C"
        assert users.rows == [(connect, "/echo"), (call, "login"), (call, "/echo")] * 2
        assert not users.failures

    @KINDS
    def test_a_connection_whose_beginning_failed_is_not_used(self, app, kind):
        class Refused(Exception):
            pass

        def login(user):
            raise Refused

        with trial(kind, app, on_connect=login) as users:
            user = users.start()
            with pytest.raises(Refused):
                user.connect("/echo")
            with pytest.raises(Refused):
                user.request(b"a")
        assert users.rows == [(PREFIX[kind], "/echo")] * 2

    @KINDS
    def test_a_listener_that_stops_the_user_leaves_no_connection(self, app, kind):
        ended = []

        @app.websocket("/watched")
        @app.webtransport("/watched")
        def _(peer: Any) -> None:
            peer.wait_closed()
            ended.append(peer.close_code)

        def enough(**request):
            raise StopUser

        with trial(kind, app, path="/watched") as users:
            users.environment.events.request.add_listener(enough)
            users.start()
            assert users.group.join(timeout=5)
            eventually(lambda: ended)

    @KINDS
    def test_two_greenlets_of_a_user_connect_once(self, app, kind):
        with trial(kind, app) as users:
            user = users.start()
            user.connect("/echo")
            user.disconnect()
            asking = [user.children.spawn(user.ready) for _ in range(3)]
            first, second, third = (each.get(timeout=5) for each in asking)
            assert first is second is third
        assert users.rows == [(PREFIX[kind], "/echo")] * 2

    def test_a_host_may_have_the_scheme_of_the_other_kind(self):
        with trial(WebSocketUser, "https://a.test:1/b/") as users:
            user = users.start()
            assert user.url_of("/c") == user.url_of("c") == "wss://a.test:1/b/c"
            assert user.url_of("http://d.test/e") == "ws://d.test/e"
        with trial(WebTransportUser, "wss://a.test") as users:
            user = users.start()
            assert user.url_of("/c") == "https://a.test/c"
            assert user.url_of("http://d.test/e") == "https://d.test/e"

    @KINDS
    def test_mistakes_are_said_and_are_no_loss(self, app, kind):
        with trial(kind, app) as users:
            user = users.start()
            with pytest.raises(gwt.ConfigError, match="does not know where to connect"):
                user.request(b"a")
            with pytest.raises(gwt.UnknownOption, match="colour"):
                user.connect("/echo", colour="red")
            user.host = None
            with pytest.raises(gwt.ConfigError, match="has no host"):
                user.connect("/echo")

    @KINDS
    def test_a_task_does_not_hide_a_method(self, kind):
        with pytest.raises(TypeError, match=r"Chat's task send\(\) hides the method"):

            class Chat(kind):
                @task
                def send(self):
                    pass

        class Fine(kind):
            abstract = True

            @task
            def work(self):
                pass

        class Finer(Fine):
            @task
            def work(self):
                pass


@contextmanager
def bound(kind: type) -> Iterator[Any]:
    """A socket with a port, of the kind that a server would have."""
    how = socket.SOCK_STREAM if kind is WebSocketUser else socket.SOCK_DGRAM
    with gevent.socket.socket(type=how) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def _connect(user: Any, path: str) -> None:
    with pytest.raises(RequestFailed):
        user.connect(path)


class TestLoss:
    @KINDS
    def test_in_the_middle_of_a_request_it_is_a_failure_once(self, app, kind):
        def work(user):
            user.request(b"a")
            user.answered = True

        with trial(kind, app, work, wait=0.001, path="/once") as users:
            user = users.start()
            eventually(lambda: getattr(user, "answered", False))
            assert not users.errors
        p = PREFIX[kind]
        assert users.types[:4] == [p, f"{p}C!", p, f"{p}C"]
        (failure,) = users.failures
        assert failure.startswith(f"1 {p}C ")

    @KINDS
    def test_while_the_user_waited_it_is_a_failure_of_what_comes_next_once(self, app, kind):
        with trial(kind, app, path="/echo") as users:
            user = users.start()
            user.request(b"a")
            connection = user.ready()
            connection.abort()
            with pytest.raises(RequestFailed):
                user.request(b"b")
            assert user.request(b"c") == b"c"
        p = PREFIX[kind]
        assert users.types == [p, f"{p}C", f"{p}C!", p, f"{p}C"]

    @KINDS
    def test_is_waited_out_before_the_user_connects_again(self, app, kind):
        with trial(kind, app, path="/echo", reconnect_delay=60.0) as users:
            user = users.start()
            user.request(b"a")
            user.ready().abort()
            with pytest.raises(RequestFailed):
                user.request(b"b")
            again = user.children.spawn(user.request, b"c")
            assert not again.join(0.05) and not again.ready()
            user.disconnect()

    @KINDS
    def test_ends_a_measured_flow_of_requests_too(self, app, kind):
        with trial(kind, app, path="/once") as users:
            user = users.start()
            with pytest.raises(RequestFailed), user.measure("FLOW", "whole"):
                user.request(b"a")
        assert users.types == [PREFIX[kind], PREFIX[kind] + "C!", "FLOW!"]

    def test_of_a_datagram_is_a_failure_by_time(self, app):
        arrived = Event()

        @app.webtransport("/lossy")
        def _(session: Any) -> None:
            session.receive_datagram()
            arrived.wait()
            session.send_datagram(b"late")
            for data in session.incoming_datagrams():
                session.send_datagram(data)

        with trial(WebTransportUser, app, path="/lossy") as users:
            user = users.start()
            with pytest.raises(RequestFailed):
                user.request_datagram(b"a", timeout=0.01)
            arrived.set()
            eventually(lambda: user.session.datagrams_received)
            # What came late is not taken for an answer to the next.
            assert user.request_datagram(b"b") == b"b"
        assert users.types == ["WT", "WTDC!", "WTDC"]
        assert users.failures == ["1 WTDC TimeoutError('no datagram came within 0.01 s')"]


class TestReplies:
    def test_are_told_apart_by_match(self, app):
        @app.websocket("/late")
        def _(ws: Any) -> None:
            first, second = ws.recv(), ws.recv()
            ws.send(f"re: {first}")
            ws.send(f"re: {second}")
            ws.wait_closed()

        with trial(WebSocketUser, app, path="/late") as users:
            user = users.start()
            with pytest.raises(RequestFailed):
                user.request("1", timeout=0.01, match=lambda reply: reply == "re: 1")
            assert user.request("2", match=lambda reply: reply == "re: 2") == "re: 2"
        assert users.types == ["WS", "WSC!", "WSC"]
        assert users.failures == ["1 WSC TimeoutError('no message came within 0.01 s')"]

    def test_that_may_come_late_end_the_websocket_without_match(self, app):
        with trial(WebSocketUser, app, path="/silent") as users:
            user = users.start()
            for _ in range(2):
                with pytest.raises(RequestFailed):
                    user.request("1", timeout=0.01)
            with pytest.raises(RequestFailed):
                user.receive(timeout=0.01)
            with pytest.raises(RequestFailed):
                user.receive(timeout=0.01)
        assert users.types == ["WS", "WSC!", "WS", "WSC!", "WS", "WSR!", "WSR!"]

    @KINDS
    def test_that_a_timeout_of_gevents_interrupts_are_failures(self, app, kind):
        with trial(kind, app, path="/silent") as users:
            user = users.start()
            with gevent.Timeout(0.01, False):
                user.request(b"1")
        p = PREFIX[kind]
        assert users.types == [p, f"{p}C!"]
        assert users.failures == [f"1 {p}C TimeoutError('interrupted by a gevent.Timeout')"]

    def test_a_match_that_raises_is_a_failure_and_a_mistake(self, app):
        def work(user):
            user.request("a", match=lambda reply: reply["id"])

        with trial(WebSocketUser, app, work, path="/echo") as users:
            users.start()
            eventually(lambda: users.errors)
            assert isinstance(users.errors[0], TypeError)
        assert users.types == ["WS", "WSC!"]

    def test_a_server_may_answer_while_an_upload_goes_on(self, app):
        # More than both sides hold.
        piece, count = bytes(256 * 1024), 24
        with trial(WebTransportUser, app, path="/echo", timeout=20) as users:
            user = users.start()
            assert len(user.upload(piece for _ in range(count))) == len(piece) * count
            assert len(user.request(piece * count)) == len(piece) * count
        assert [each["response_length"] for each in users.requests] == [
            0,
            *[len(piece) * count] * 2,
        ]

    def test_an_upload_ends_with_what_makes_its_pieces(self, app):
        def pieces():
            yield b"a"
            raise LookupError("no more")

        with trial(WebTransportUser, app, path="/echo") as users:
            user = users.start()
            with pytest.raises(LookupError):
                user.upload(pieces())
            assert user.request(b"still there") == b"still there"
        assert users.types == ["WT", "WTU!", "WTC"]


class TestHooks:
    """What the server sends by itself."""

    @pytest.fixture
    def news(self, app):
        @app.websocket("/news")
        def _(ws: Any) -> None:
            ws.send("news 1")
            for message in ws:
                ws.send("news 2")
                ws.send(f"re: {message}")
                if message == "leave":
                    ws.close(1000)
                if message == "break":
                    ws.abort()

        @app.webtransport("/news")
        def _(session: Any) -> None:
            session.create_unidirectional_stream().write_all(b"a stream")
            stream = session.create_bidirectional_stream()
            stream.write_all(b"a question")
            self.answer = stream.read_all()
            session.send_datagram(b"a datagram")
            for data in session.incoming_datagrams():
                session.send_datagram(b"another")
                session.send_datagram(data)

        return app

    def test_messages_go_to_whoever_waits_for_them_and_the_rest_to_on_message(self, news):
        def on_message(user, message):
            user.record("WSR", "news", response_length=len(message))

        with trial(WebSocketUser, news, path="/news", on_message=on_message) as users:
            user = users.start()
            eventually(lambda: users.rows == [("WS", "/news"), ("WSR", "news")])
            reply = user.request("a", match=lambda message: message.startswith("re"))
            assert reply == "re: a"
            user.send("b")
            assert user.receive(match=lambda message: message.startswith("re")) == "re: b"
            eventually(lambda: users.rows.count(("WSR", "news")) == 3)
            assert not users.failures

    def test_messages_nobody_waits_for_any_more_go_to_on_message(self, app):
        late, heard = Event(), []

        @app.websocket("/late")
        def _(ws: Any) -> None:
            message = ws.recv()
            late.wait()
            ws.send(message)
            ws.wait_closed()

        hook = lambda self, message: heard.append(message)  # noqa: E731
        with trial(WebSocketUser, app, path="/late", on_message=hook) as users:
            user = users.start()
            with pytest.raises(RequestFailed):
                user.request("1", timeout=0.01, match=lambda reply: reply == "1")
            late.set()
            eventually(lambda: heard == ["1"])

    @pytest.mark.parametrize(
        ("farewell", "types"),
        [("leave", ["WS", "WSS"]), ("break", ["WS", "WSS", "WSR!"])],
    )
    def test_an_end_nobody_waits_through_is_a_failure_unless_it_was_good(
        self, news, farewell, types
    ):
        with trial(WebSocketUser, news, path="/news", on_message=lambda *_: None) as users:
            user = users.start()
            ws = user.ready()
            user.send(farewell)
            ws.wait_closed(timeout=5)
            eventually(lambda: not user.children)
            assert users.types == types
            assert user.request("a", match=lambda message: message == "re: a")
            assert users.types == [*types, "WS", "WSC"]

    def test_an_end_in_the_middle_is_the_failure_of_who_waits_once(self, news):
        with trial(WebSocketUser, news, path="/news", on_message=lambda *_: None) as users:
            user = users.start()
            with pytest.raises(RequestFailed):
                user.request("break", match=lambda message: message == "never")
            eventually(lambda: not user.children)
        assert users.types == ["WS", "WSC!"]

    def test_one_that_raises_is_told_of_as_a_task_and_goes_on(self, news):
        def on_message(user, message):
            raise LookupError(message)

        with trial(WebSocketUser, news, path="/news", on_message=on_message) as users:
            user = users.start()
            user.request("a", match=lambda message: message == "re: a")
            assert [str(each) for each in users.errors] == ["news 1", "news 2"]

    def test_one_may_stop_the_user(self, news):
        def on_message(user, message):
            raise StopUser

        with trial(WebSocketUser, news, path="/news", on_message=on_message) as users:
            user = users.start()
            assert users.group.join(timeout=5)
            assert user.greenlet.successful() and not user.children

    def test_streams_and_datagrams(self, news):
        def on_stream(user, stream):
            user.record("WTR", "stream", response_length=len(stream.read_all()))
            if isinstance(stream, gwt.WebTransportStream):
                stream.write(b"an answer")

        def on_datagram(user, data):
            user.record("WTDR", "datagram", response_length=len(data))

        hooks = {"on_stream": on_stream, "on_datagram": on_datagram}
        with trial(WebTransportUser, news, path="/news", **hooks) as users:
            user = users.start()
            eventually(lambda: len(users.rows) == 4)
            assert sorted(users.rows) == [
                *(("WT", "/news"), ("WTDR", "datagram"), ("WTR", "stream"), ("WTR", "stream"))
            ]
            assert self.answer == b"an answer"
            assert user.request_datagram(b"a", match=lambda data: data == b"a") == b"a"
            user.session.abort(1)
            eventually(lambda: not user.children)
            assert users.types.count("WTR!") == 1


class TestStopping:
    @KINDS
    def test_closes_the_connection_and_leaves_no_greenlet(self, app, kind):
        ended = []

        @app.websocket("/watched")
        @app.webtransport("/watched")
        def _(peer: Any) -> None:
            peer.wait_closed()
            ended.append(peer.close_code)

        hooks = {"on_message": lambda *_: None, "on_datagram": lambda *_: None}
        with trial(kind, app, path="/watched", **hooks) as users:
            user = users.start()
            eventually(lambda: user.children)
            user.stop(force=True)
            assert not user.children
            eventually(lambda: ended)
        assert ended == [1000 if kind is WebSocketUser else 0]

    @KINDS
    def test_in_the_middle_of_a_request_is_no_failure(self, app, kind):
        def work(user):
            user.asking = True
            user.request(b"a")

        with trial(kind, app, work, path="/silent") as users:
            user = users.start()
            eventually(lambda: hasattr(user, "asking"))
            user.stop(force=True)
            assert user.greenlet.ready()
        assert users.types == [PREFIX[kind]]

    @KINDS
    def test_an_on_stop_that_forgets_ours_does_no_harm(self, app, kind):
        hooks = {"on_message": lambda *_: None, "on_datagram": lambda *_: None}
        with trial(kind, app, path="/silent", on_stop=lambda self: None, **hooks) as users:
            user = users.start()
            eventually(lambda: user.children)
            user.children.spawn(gevent.sleep, 60)
            connection = user.ready()
            user.stop(force=True)
            eventually(lambda: not user.children and connection.is_closed)

    @KINDS
    def test_a_user_that_dies_in_on_start_leaves_nothing(self, app, kind, hub_errors):
        def on_start(user):
            user.connect("/silent")
            raise LookupError

        hooks = {"on_message": lambda *_: None, "on_datagram": lambda *_: None}
        with trial(kind, app, on_start=on_start, **hooks) as users:
            user = users.start()
            assert users.group.join(timeout=5)
            eventually(lambda: not user.children)
            assert isinstance(users.errors[0], LookupError)
        hub_errors.clear()


class TestManyUsers:
    @KINDS
    def test_cost_no_thread_and_no_greenlet_of_their_own(self, app, kind):
        with trial(kind, app, path="/silent") as users:
            first = users.start()
            eventually(lambda: len(users.requests) == 1)
            threads, ours = threading.active_count(), len(users.group)
            several = [first, *(users.start() for _ in range(20))]
            eventually(lambda: len(users.requests) == 21)
            assert threading.active_count() == threads
            assert len(users.group) == ours + 20
            assert not any(each.children for each in several)
        assert not users.failures

    def test_in_locusts_own_runner(self, app):
        with trial(WebSocketUser, app, lambda self: self.request("a"), path="/echo") as users:
            users.user_class.on_message = lambda self, message: None
            runner = users.environment.create_local_runner()
            try:
                runner.start(20, spawn_rate=1000)
                eventually(lambda: users.types.count("WSC") == 20)
                # Readers are no users.
                assert runner.user_count == 20
                runner.stop()
                assert runner.user_count == 0
            finally:
                runner.quit()
        assert not users.failures and not runner.exceptions
