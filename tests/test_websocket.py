"""WebSocket: what a user sees of it, from both ends over real loopback sockets."""

from __future__ import annotations

import gc
import os
import weakref
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import monkey
from gevent.hub import get_hub

import gwt
from gwt import certificates
from gwt.net.waiting import Deadline
from gwt.protocol.websocket import encode

_sleep = monkey.get_original("time", "sleep")


@contextmanager
def pair(**options: Any) -> Iterator[tuple[gwt.WebSocket, gwt.WebSocket]]:
    """Both ends of one WebSocket: the client's, and the server's, whose handler waits."""
    accepted = gevent.event.AsyncResult()
    client_options = options.pop("client", {})
    app = gwt.App()

    @app.websocket("/ws")
    def handler(ws):
        accepted.set(ws)
        ws.wait_closed()

    options.setdefault("stop_timeout", 0.5)
    with gwt.Server(app, "127.0.0.1:0", http3=False, **options) as server:
        host, port = server.address
        ours = gwt.connect(f"ws://{host}:{port}/ws", **client_options)
        try:
            yield ours, accepted.get(timeout=5)
        finally:
            ours.abort()


class Spawned:
    """A call in a greenlet; get() returns or raises what it did. Its error reaches no hub."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._outcome = gevent.event.AsyncResult()
        gevent.spawn(self._run, function, *args)

    def _run(self, function: Any, *args: Any) -> None:
        try:
            self._outcome.set(function(*args))
        except Exception as exc:
            self._outcome.set_exception(exc)

    def get(self, timeout: float) -> Any:
        return self._outcome.get(timeout=timeout)


def eventually(condition) -> None:
    deadline = Deadline(5)
    while not condition():
        assert not deadline.expired
        gevent.sleep(0.001)


class TestMessages:
    @pytest.mark.parametrize("options", [{}, {"compression": "deflate"}], ids=["plain", "deflate"])
    @pytest.mark.parametrize(
        "message",
        ["", b"", "text", "Grüße 🎉", b"\x00\xff", "x" * 126, b"y" * 65536, b"z" * 900_000],
        ids=repr,
    )
    def test_arrive_as_what_they_were_in_both_directions(self, message, options):
        with pair(**options) as (ours, theirs):
            ours.send(message)
            assert theirs.recv(timeout=5) == message
            theirs.send(message)
            assert ours.recv(timeout=5) == message

    def test_keep_their_order(self):
        with pair() as (ours, theirs):
            sender = gevent.spawn(lambda: [ours.send(str(n)) for n in range(2000)])
            assert [theirs.recv(timeout=5) for _ in range(2000)] == [str(n) for n in range(2000)]
            sender.get(timeout=5)

    @pytest.mark.parametrize(
        ("call", "expected"),
        [
            (lambda ws: ws.send(b"ab", text=True), "ab"),
            (lambda ws: ws.send("ab", text=False), b"ab"),
            (lambda ws: ws.send("ab", binary=True), b"ab"),
            (lambda ws: ws.send(bytearray(b"ab"), False), "ab"),
            (lambda ws: ws.send_text(b"ab"), "ab"),
            (lambda ws: ws.send_bytes("ab"), b"ab"),
            (lambda ws: ws.send(memoryview(b"ab")), b"ab"),
            (lambda ws: ws.send(memoryview(array("H", [1, 2, 3, 4]))[1:3]), b"\2\0\3\0"),
            (lambda ws: ws.send(memoryview(array("H", [1, 2, 3]))[::2]), b"\1\0\3\0"),
            (lambda ws: ws.send(array("H", [1, 2])), b"\1\0\2\0"),
            (lambda ws: ws.send([array("H", [1]), b"x"]), b"\1\0x"),
            (lambda ws: ws.send(array("H")), b""),
            (lambda ws: ws.send(type("Text", (str,), {})("ab")), "ab"),
            (lambda ws: ws.send(["a", "b"]), "ab"),
            (lambda ws: ws.send(["", ""]), ""),
            (lambda ws: ws.send(iter([b"a", b"b"])), b"ab"),
            (lambda ws: ws.send([b"a", b"b"], text=True), "ab"),
        ],
    )
    def test_kinds_can_be_chosen(self, call, expected):
        with pair() as (ours, theirs):
            call(ours)
            assert theirs.recv(timeout=5) == expected

    @pytest.mark.parametrize("message", [1, None, {"a": "b"}, ["a", b"b"], [1]])
    def test_what_is_no_message_is_a_type_error(self, message):
        with pair() as (ours, _), pytest.raises(TypeError):
            ours.send(message)

    def test_what_cannot_be_sent_harms_nothing(self):
        with pair() as (ours, theirs):
            with pytest.raises(gwt.LocalProtocolError, match="surrogates not allowed"):
                ours.send("half \ud800")
            with pytest.raises(UnicodeDecodeError):
                ours.send(b"\xff", text=True)
            ours.send("whole")
            assert theirs.recv(timeout=5) == "whole"

    def test_eight_mebibytes_come_back(self):
        with pair(max_size=None, client={"max_size": None, "compression": None}) as (ours, theirs):
            data = bytes(range(256)) * 32768
            echo = gevent.spawn(lambda: theirs.send(theirs.recv(timeout=10)))
            ours.send(data)
            assert ours.recv(timeout=10) == data
            echo.get(timeout=5)

    def test_never_interleave(self):
        with pair() as (ours, theirs):

            def slowly():
                for _ in range(20):
                    yield "a" * 1000
                    gevent.sleep(0)

            senders = [gevent.spawn(ours.send, slowly()) for _ in range(3)]
            senders += [gevent.spawn(ours.send, letter * 5000) for letter in "bcdefgh"]
            found = [theirs.recv(timeout=5) for _ in range(10)]
            gevent.joinall(senders, raise_error=True)
            assert sorted(found) == sorted(["a" * 20000] * 3 + [x * 5000 for x in "bcdefgh"])

    def test_an_iterable_that_raises_ends_the_websocket(self):
        with pair() as (ours, theirs):

            def broken():
                yield "half"
                raise LookupError("no more")

            with pytest.raises(LookupError):
                ours.send(broken())
            with pytest.raises(gwt.WebSocketClosedError) as caught:
                theirs.recv(timeout=5)
            assert caught.value.code == 1011

    def test_an_empty_iterable_sends_nothing(self):
        with pair() as (ours, theirs):
            ours.send([])
            ours.send("next")
            assert theirs.recv(timeout=5) == "next"


class TestReceiving:
    def test_times_out_and_stays_usable(self):
        with pair() as (ours, theirs):
            with pytest.raises(TimeoutError):
                ours.recv(timeout=0.01)
            assert ours.receive(timeout=0.01) is None
            theirs.send("late")
            assert ours.recv(timeout=5) == "late"

    def test_iteration_ends_on_a_normal_close_only(self):
        with pair() as (ours, theirs):
            theirs.send("one")
            theirs.send(b"two")
            theirs.begin_close()
            assert list(ours) == ["one", b"two"]
        with pair() as (ours, theirs):
            theirs.begin_close(1011, "oops")
            with pytest.raises(gwt.WebSocketClosedError, match="oops"):
                list(ours)

    def test_a_second_reader_is_refused(self):
        with pair() as (ours, theirs):
            first = gevent.spawn(ours.recv)
            gevent.sleep(0)
            with pytest.raises(gwt.ConcurrencyError):
                ours.recv()
            theirs.send("for the first")
            assert first.get(timeout=5) == "for the first"

    def test_what_came_before_the_end_is_still_read(self):
        with pair() as (ours, theirs):
            for n in range(5):
                theirs.send(str(n))
            theirs.begin_close(1001, "bye")
            ours.wait_closed(timeout=5)
            assert [ours.recv() for _ in range(5)] == list("01234")
            with pytest.raises(gwt.WebSocketClosedOK):
                ours.recv()
            assert ours.receive() is None

    def test_in_pieces_as_they_arrive(self):
        with pair() as (ours, theirs):
            go = gevent.event.Event()

            def pieces():
                yield "first"
                go.wait()
                yield "second"

            sender = gevent.spawn(theirs.send, pieces())
            stream = ours.recv_streaming()
            assert next(stream) == "first"
            go.set()
            assert "".join(stream) == "second"
            sender.get(timeout=5)
            theirs.send("whole")
            assert ours.recv(timeout=5) == "whole"

    def test_pieces_that_are_left_do_not_keep_their_leaver(self):
        with pair() as (ours, theirs):
            go = gevent.event.Event()

            def pieces():
                yield "a"
                go.wait()
                yield "b"

            sender = gevent.spawn(theirs.send, pieces())
            stream = ours.recv_streaming()
            assert next(stream) == "a"
            stream.close()
            with pytest.raises(TimeoutError):
                ours.recv(timeout=0.01)
            go.set()
            sender.get(timeout=5)
            theirs.send("next")
            assert ours.recv(timeout=5) == "next"

    def test_pieces_that_are_left_early_do_not_reach_the_next_message(self):
        with pair() as (ours, theirs):
            sender = gevent.spawn(theirs.send, iter(["a", "b", "c"]))
            stream = ours.recv_streaming()
            assert next(stream) == "a"
            stream.close()
            sender.get(timeout=5)
            theirs.send("next")
            assert ours.recv(timeout=5) == "next"


class TestBounds:
    def test_a_message_above_max_size_ends_with_1009(self):
        with pair(max_size=1000) as (ours, theirs):
            ours.send("x" * 1000)
            assert len(theirs.recv(timeout=5)) == 1000
            ours.send("x" * 1001)
            with pytest.raises(gwt.WebSocketClosedError) as caught:
                ours.recv(timeout=5)
            assert caught.value.code == 1009
            assert theirs.close_code == 1009

    def test_an_inflated_message_counts_inflated(self):
        with pair(max_size=1000, compression="deflate") as (ours, theirs):
            ours.send("x" * 100_000)
            theirs.wait_closed(timeout=5)
            assert theirs.close_code == 1009

    def test_the_socket_is_not_read_while_nobody_receives(self):
        with pair(max_queue=4, client={"compression": None}) as (ours, theirs):
            sent = 0

            def flood():
                nonlocal sent
                for _ in range(1000):
                    ours.send(b"x" * 100_000)
                    sent += 1

            flooder = gevent.spawn(flood)
            eventually(lambda: theirs.stats()["messages_unread"] == 4)
            gevent.sleep(0.05)
            held = sent
            gevent.sleep(0.05)
            assert sent == held < 1000
            assert theirs.stats()["messages_unread"] == 4
            for _ in range(1000):
                assert len(theirs.recv(timeout=5)) == 100_000
            flooder.get(timeout=5)

    def test_the_ping_timeout_waits_for_the_reader(self):
        options = {"ping_interval": 0.05, "ping_timeout": 0.1}
        with pair(max_queue=1, **options, client={"ping_interval": None}) as (ours, theirs):
            ours.send("one")
            ours.send("two")
            ours.send("three")
            with pytest.raises(TimeoutError):
                theirs.wait_closed(timeout=0.5)
            assert [theirs.recv(timeout=5) for _ in range(3)] == ["one", "two", "three"]

    def test_a_flood_keeps_nobody_waiting(self):
        frames = encode(b"x" * 64) * 20_000
        app = gwt.App()

        @app.websocket("/flood")
        def flood(ws):
            ws._connection.write([frames])
            ws.wait_closed()

        with gwt.Server(app, "127.0.0.1:0", http3=False) as server:
            host, port = server.address
            ws = gwt.connect(f"ws://{host}:{port}/flood", max_queue=None)
            turns = 0
            ticking = gevent.spawn(lambda: [gevent.sleep(0) for _ in iter(int, 1)])
            received = 0
            while received < 20_000:
                ws.recv(timeout=5)
                received += 1
                if not ws._unread:
                    turns += 1
            ticking.kill()
            assert turns >= 20_000 / 64 - 1
            ws.abort()

    def test_a_peer_that_takes_no_pongs_is_not_read_any_more(self):
        with pair(client={"ping_interval": None}) as (ours, theirs):
            # The client's end stops reading, and pings: the answers have nowhere to go.
            ours._connection.pause()
            theirs.send(b"x" * 20_000_000, timeout=5)
            before = theirs._connection.bytes_received
            mask = os.urandom(4)
            ping = bytes((0x89, 0x80)) + mask
            for _ in range(200):
                ours._connection.write([ping * 1000])
                gevent.sleep(0)
            eventually(lambda: theirs._held)
            assert theirs._connection.bytes_received - before < 1_000_000
            assert theirs._connection.queued < 21_000_000


class TestEnds:
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (1000, gwt.WebSocketClosedOK),
            (1001, gwt.WebSocketClosedOK),
            (1008, gwt.WebSocketClosedError),
            (4001, gwt.WebSocketClosedError),
        ],
    )
    def test_code_and_reason_reach_the_other_side(self, code, kind):
        with pair() as (ours, theirs):
            receiver = Spawned(theirs.recv)
            gevent.sleep(0)
            ours.close(code, "because")
            for ws in (ours, theirs):
                assert (ws.close_code, ws.close_reason, ws.closed) == (code, "because", True)
            with pytest.raises(kind) as caught:
                receiver.get(timeout=5)
            assert caught.value.rcvd == caught.value.sent == (code, "because")
            assert "by the peer" in str(caught.value)
            with pytest.raises(kind, match="locally"):
                ours.send("too late")

    def test_every_blocked_call_is_woken(self):
        with pair(client={"compression": None}) as (ours, theirs):
            waiting = [
                Spawned(ours.recv),
                Spawned(lambda: [ours.send(b"x" * 1_000_000) for _ in range(100)]),
                Spawned(ours.send, b"behind it"),
            ]
            eventually(lambda: ours._connection.queued > 0)
            theirs.abort()
            for each in waiting:
                with pytest.raises(gwt.WebSocketClosedError) as caught:
                    each.get(timeout=5)
                assert caught.value.code == 1006
            ours.wait_closed(timeout=0)

    def test_a_ping_that_is_never_answered_raises(self):
        with pair() as (ours, theirs):
            theirs._connection.pause()
            acknowledgement = ours.ping()
            waiter = Spawned(acknowledgement.wait)
            gevent.sleep(0)
            ours.abort()
            with pytest.raises(gwt.WebSocketClosed):
                waiter.get(timeout=5)
            assert not acknowledgement.is_set()

    def test_close_is_idempotent_and_abort_does_not_wait(self):
        with pair() as (ours, theirs):
            ours.close(4000, "first")
            ours.close(4001, "second")
            ours.abort()
            assert (theirs.close_code, theirs.close_reason) == (4000, "first")

    def test_close_gives_up_after_its_timeout(self):
        with pair() as (ours, theirs):
            theirs._connection.pause()
            ours.close(timeout=0.05)
            assert ours.close_code == 1006
        with pair(client={"close_timeout": 0.05}) as (ours, theirs):
            theirs._connection.pause()
            ours.close()
            assert ours.close_code == 1006

    def test_close_loses_nothing_that_was_sent(self):
        with pair(client={"compression": None}, max_size=None) as (ours, theirs):
            reader = gevent.spawn(theirs.recv)
            ours.send(b"x" * 5_000_000)
            ours.close()
            assert len(reader.get(timeout=5)) == 5_000_000

    def test_a_full_queue_does_not_keep_the_end_from_coming(self):
        with pair(client={"max_queue": 2}) as (ours, theirs):
            for _ in range(50):
                theirs.send("unwanted")
            ours.close(timeout=5)
            assert ours.close_code == 1000

    def test_a_dead_peer_is_noticed(self):
        options = {"ping_interval": 0.05, "ping_timeout": 0.05}
        with pair(client=options) as (ours, theirs):
            theirs._connection.pause()
            with pytest.raises(gwt.WebSocketClosedError) as caught:
                ours.recv(timeout=5)
            assert caught.value.code == 1011

    def test_a_stalled_hub_does_not_end_the_living(self):
        options = {"ping_interval": 0.05, "ping_timeout": 0.1}
        with pair(client=options) as (ours, _):
            eventually(lambda: ours.latency > 0)
            for _ in range(3):
                # The hub's thread does nothing else meanwhile.
                _sleep(0.4)
                gevent.sleep(0.06)
            assert not ours.closed

    def test_code_that_may_not_be_sent(self):
        with pair() as (ours, _):
            for code in (0, 999, 1005, 1006, 5000):
                with pytest.raises(gwt.LocalProtocolError):
                    ours.close(code)
            assert not ours.closed

    def test_leaving_by_an_exception_closes_with_1011(self):
        with pair() as (ours, theirs), pytest.raises(LookupError), ours:
            raise LookupError
        assert theirs.close_code == 1011

    def test_whoever_waits_for_the_end_is_told_once(self):
        told = []
        with pair() as (ours, _):
            ours.on_end(told.append)
            ours.close()
            ours.on_end(told.append)
            assert told == [ours, ours]

    def test_nothing_is_left(self):
        with pair() as (ours, theirs):
            theirs.send("x")
            ours.recv(timeout=5)
            ours.close()
            gone = [weakref.ref(ours), weakref.ref(theirs)]
        del ours, theirs
        gevent.sleep(0.01)
        gc.collect()
        assert [each() for each in gone] == [None, None]


class TestWhatItTells:
    def test_of_the_request(self):
        with pair(
            subprotocols=["b", "a"],
            client={
                "subprotocols": ["a", "b"],
                "headers": {"X-Token": "7"},
            },
        ) as (ours, theirs):
            assert ours.subprotocol == theirs.subprotocol == theirs.protocol == "b"
            assert theirs.path == ours.path == "/ws"
            assert theirs.request.headers["x-token"] == "7"
            assert theirs.environ["HTTP_X_TOKEN"] == "7"
            assert theirs.environ["PATH_INFO"] == "/ws"
            assert theirs.remote_address == ours.local_address
            assert theirs.local_address == ours.remote_address
            assert (theirs.version, theirs.origin, theirs.terminated) == ("13", None, False)
            assert theirs.state.value == ours.state.value == "open"
            assert ours.id != theirs.id

    def test_of_pings(self):
        with pair() as (ours, theirs):
            assert ours.latency == 0.0
            first, second = ours.ping("mine"), ours.ping()
            assert first.wait(timeout=5) and second.wait(timeout=5)
            assert ours.latency > 0 and first.latency > 0
            assert ours.ping("é" * 62).wait(timeout=5)
            with pytest.raises(ValueError):
                ours.ping(b"x" * 126)
            for no_payload in (5, [1], 1.5):
                with pytest.raises(TypeError):
                    ours.ping(no_payload)
            assert theirs.last_active >= theirs._clock() - 5

    def test_another_thread_is_refused(self):
        with pair() as (ours, _):
            errors: list[BaseException] = []

            def call():
                for method in (ours.recv, ours.ping, ours.close, ours.abort, lambda: ours.send("")):
                    try:
                        method()
                    except RuntimeError as exc:
                        errors.append(exc)

            get_hub().threadpool.apply(call)
            assert len(errors) == 5


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_what_came_before_an_error_is_answered_before_the_close(secure, tmp_path):
    options: dict[str, Any] = {"http3": False, "stop_timeout": 0.5}
    if secure:
        files = certificates.write(tmp_path, certificates.generate())
        options |= dict(zip(("certfile", "keyfile"), files, strict=True))
    app = gwt.App()

    @app.websocket("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)

    with gwt.Server(app, "127.0.0.1:0", **options) as server:
        host, port = server.address
        scheme = "wss" if secure else "ws"
        with gwt.connect(f"{scheme}://{host}:{port}/echo", verify=False) as ws:
            ws._protocol.send("before")
            # A reserved opcode, in the same read; by TLS in a record of its own.
            ws._connection.write(ws._protocol.data_to_send())
            ws._connection.write([b"\x83\x80\0\0\0\0"])
            assert ws.recv(timeout=5) == "before"
            with pytest.raises(gwt.WebSocketClosedError) as caught:
                ws.recv(timeout=5)
            assert caught.value.code == 1002
