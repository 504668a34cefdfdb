"""PooledClient with real servers: what is used again, what is not, and who is told."""

from __future__ import annotations

import random
import socket
from contextlib import contextmanager, suppress

import gevent
import pytest
from gevent.event import Event

import gwt
from gwt import certificates
from tests.helpers import eventually, spawn
from tests.helpers.live import echo, serving, url
from tests.helpers.websockets import echo as echo_websocket


@contextmanager
def both(**handlers):
    """A server of /echo for sessions, /ws for WebSockets, and what else a test wants."""
    app = gwt.App()
    app.webtransport("/echo")(echo)
    app.websocket("/ws")(echo_websocket)
    for name, handler in handlers.items():
        app.webtransport(f"/{name}")(handler)
        app.websocket(f"/{name}")(handler)
    with serving(app) as server:
        yield server


@pytest.fixture
def server():
    with both() as server:
        yield server


@contextmanager
def pooled(server, **options):
    config = gwt.ClientConfig(
        server_certificate_hashes=[server.certificate_hash], **options.pop("config", {})
    )
    with gwt.PooledClient(config=config, **options) as pool:
        yield pool
    assert pool.stats["pool"]["out"] == pool.stats["pool"]["idle"] == 0


def ws_url(server, path="/ws"):
    return "ws://{}:{}{}".format(*server.address, path)


def at(server, kind, path=None):
    if kind == "session":
        return url(server, path or "/echo")
    return ws_url(server, path or "/ws")


KINDS = pytest.mark.parametrize("kind", ["session", "websocket"])


def ask(session, text):
    """Talk, and leave nothing behind."""
    if isinstance(session, gwt.WebSocket):
        session.send(text)
        return session.recv(timeout=5)
    stream = session.create_bidirectional_stream()
    stream.write_all(text.encode())
    return stream.read_all(timeout=5).decode()


def kept(pool):
    return pool.stats["pool"]["idle"], pool.stats["pool"]["discarded"]


@KINDS
def test_one_connection_serves_one_after_the_other(server, kind):
    with pooled(server) as pool:
        seen = set()
        for number in range(5):
            with pool.session(at(server, kind)) as session:
                assert ask(session, f"hello {number}") == f"hello {number}"
            seen.add(session)
        assert len(seen) == 1
        assert pool.stats["connections"]["successful"] == 1
        assert pool.stats["pool"]["reused"] == 4
    assert session.is_closed


@KINDS
def test_names_are_reused(server, kind):
    # pywebtransport 0.6.1: the key of a name differed between get and return.
    address = at(server, kind).replace("127.0.0.1", "localhost")
    with pooled(server, pool_size=1, config={"verify": False}) as pool:
        session = pool.get_session(address)
        pool.return_session(session)
        assert pool.get_session(address.replace("localhost", "LocalHost"), timeout=5) is session
        assert kept(pool) == (0, 0)


def test_sessions_and_websockets_of_one_place_are_not_mixed(server):
    with pooled(server) as pool:
        one, other = pool.get_session(url(server, "/echo")), pool.get_session(ws_url(server))
        pool.return_session(one)
        pool.return_session(other)
        assert pool.get_session(ws_url(server)) is other
        assert pool.get_session(url(server, "/echo")) is one


@KINDS
def test_a_slot_is_waited_for(server, kind):
    with pooled(server, pool_size=2) as pool:
        sessions = [pool.get_session(at(server, kind)) for _ in range(2)]
        with pytest.raises(gwt.PoolExhausted, match="2 of 2 are out"):
            pool.get_session(at(server, kind), timeout=0.02)
        waiting = [spawn(pool.get_session, at(server, kind)) for _ in range(2)]
        eventually(lambda: pool.stats["pool"]["waiting"] == 2)
        pool.return_session(sessions[0])
        assert waiting[0].get() is sessions[0]
        sessions[1].close()
        assert ask(waiting[1].get(), "new") == "new"
        assert pool.stats["connections"]["successful"] == 3


@KINDS
def test_more_greenlets_than_sessions(server, kind):
    with pooled(server, pool_size=3) as pool:

        def work(number):
            for round in range(4):
                with pool.session(at(server, kind)) as session:
                    assert ask(session, f"{number} {round}") == f"{number} {round}"

        for task in [spawn(work, number) for number in range(20)]:
            task.get(20)
        assert pool.stats["connections"]["successful"] == 3
        assert kept(pool) == (3, 0)
        assert server.stats()["handlers"] == 3


# What comes back as it went out is kept; everything else is closed.


def left_datagram(session):
    session.send_datagram(b"answer me")
    eventually(lambda: session.stats()["datagrams_received"])


def left_stream_of_the_peers(session):
    with session.create_unidirectional_stream() as stream:
        stream.write(b"answer me")
    eventually(lambda: session.stats()["streams_waiting"])


def left_reader(session):
    task = spawn(session.receive_datagram)
    gevent.sleep(0)
    assert not task.done


def left_acceptor(session):
    task = spawn(session.accept_stream)
    gevent.sleep(0)
    assert not task.done


def left_draining(session):
    session.drain()


LEFT = [
    left_datagram,
    left_stream_of_the_peers,
    left_reader,
    left_acceptor,
    left_draining,
]


@pytest.mark.parametrize("leave", LEFT, ids=lambda each: each.__name__)
def test_a_session_with_something_left_of_its_user_is_closed(server, leave):
    address = url(server, "/echo")
    with pooled(server, pool_size=1) as pool:
        session = pool.get_session(address)
        leave(session)
        pool.return_session(session)
        assert kept(pool) == (0, 1) and session.is_closed
        with pool.session(address, timeout=5) as other:
            assert other is not session
            with pytest.raises(TimeoutError):
                other.receive_datagram(timeout=0)
            assert ask(other, "clean") == "clean"
        assert kept(pool) == (1, 1)


@pytest.mark.parametrize("leave", ["finished", "closed", "reset", "one way"])
def test_streams_that_are_done_with_are_nothing_left(server, leave):
    def handler(session):
        for stream in session:
            stream.read()

    with both(sink=handler) as server, pooled(server) as pool:
        session = pool.get_session(url(server, "/sink"))
        if leave == "one way":
            session.create_unidirectional_stream().write_all(b"x" * 1000)
        else:
            stream = session.create_bidirectional_stream()
            stream.write(b"x" * 1000)
            if leave == "finished":
                stream.finish()
                # Nothing will be read of it; its end need not be acknowledged.
                stream.stop()
            elif leave == "closed":
                stream.close()
            else:
                stream.abort()
        pool.return_session(session)
        assert kept(pool) == (1, 0)


def test_streams_that_are_left_open_are_finished_and_what_was_written_arrives(server):
    got = []

    def handler(session):
        for stream in session:
            got.append(stream.read_all())
            if stream.direction is gwt.StreamDirection.BIDIRECTIONAL:
                with suppress(gwt.StreamStopped):
                    stream.write_all(b"an answer that nobody reads")

    with both(take=handler) as server, pooled(server, pool_size=1) as pool:
        session = pool.get_session(url(server, "/take"))
        unread = session.create_bidirectional_stream()
        unread.write_all(b"unread")
        eventually(lambda: len(unread._received))
        session.create_bidirectional_stream().write(b"both ways")
        session.create_unidirectional_stream().write(b"one way")
        pool.return_session(session)
        assert kept(pool) == (1, 0)
        eventually(lambda: sorted(got) == [b"both ways", b"one way", b"unread"])
        # All of them end, and so are no streams of the next user's.
        with pool.session(url(server, "/take")) as again:
            assert again is session
            eventually(lambda: not len(again.streams))


def websocket_left_message(ws):
    ws.send("answer me")
    eventually(lambda: ws.stats()["messages_unread"])


def websocket_left_reader(ws):
    task = spawn(ws.recv)
    gevent.sleep(0)
    assert not task.done


def websocket_left_fragments(ws):
    def pieces():
        yield "a"
        gevent.sleep(60)

    task = spawn(ws.send, pieces())
    gevent.sleep(0)
    assert not task.done
    # It would be there for a minute.
    gevent.spawn_later(0.05, task.kill)


LEFT_OF_WEBSOCKETS = [websocket_left_message, websocket_left_reader, websocket_left_fragments]


@pytest.mark.parametrize("leave", LEFT_OF_WEBSOCKETS, ids=lambda each: each.__name__)
def test_a_websocket_with_something_left_of_its_user_is_closed(server, leave):
    with pooled(server, pool_size=1) as pool:
        ws = pool.get_session(ws_url(server))
        leave(ws)
        pool.return_session(ws)
        assert kept(pool) == (0, 1) and ws.is_closed
        with pool.session(ws_url(server), timeout=5) as other:
            assert other is not ws and ask(other, "clean") == "clean"
        assert kept(pool) == (1, 1)


def test_a_websocket_whose_message_is_received_in_part_is_closed(server):
    with pooled(server) as pool:
        ws = pool.get_session(ws_url(server))
        ws.send("a message")
        pieces = ws.recv_streaming()
        next(pieces)
        pool.return_session(ws)
        assert kept(pool) == (0, 1)
        pieces.close()


def test_a_websocket_on_which_half_a_message_came_is_closed():
    def half(ws):
        def pieces():
            yield "first"
            ws.wait_closed()

        with pytest.raises(gwt.WebSocketClosed):
            ws.send(pieces())

    with both(half=half) as server, pooled(server, config={"close_timeout": 0.1}) as pool:
        ws = pool.get_session(ws_url(server, "/half"))
        # The first fragment is no message yet: nothing is unread.
        eventually(lambda: ws.stats()["bytes_received"])
        assert ws.stats()["messages_unread"] == 0 and not ws.is_reusable
        pool.return_session(ws)
        assert kept(pool) == (0, 1)


@KINDS
def test_what_comes_while_it_is_idle_is_given_to_nobody(kind):
    go = Event()

    def late(session):
        go.wait()
        (session.send if kind == "websocket" else session.send_datagram)(b"for the former")
        session.wait_closed()

    with both(late=late) as server, pooled(server, pool_size=1) as pool:
        address = at(server, kind, "/late")
        session = pool.get_session(address)
        pool.return_session(session)
        assert kept(pool) == (1, 0)
        go.set()
        eventually(lambda: not session.is_reusable)
        assert not session.is_closed
        assert pool.get_session(address, timeout=5) is not session
        eventually(lambda: session.is_closed)
        assert kept(pool) == (0, 1)


@KINDS
@pytest.mark.parametrize("where", ["idle", "out"])
def test_a_session_that_the_server_closes_frees_its_slot(kind, where):
    sessions = []

    def handler(session):
        sessions.append(session)
        session.wait_closed()

    with both(kept=handler) as server, pooled(server, pool_size=1) as pool:
        address = at(server, kind, "/kept")
        session = pool.get_session(address)
        if where == "idle":
            pool.return_session(session)
        eventually(lambda: sessions)
        sessions[0].close()
        eventually(lambda: session.is_closed)
        assert pool.stats["pool"]["out"] == pool.stats["pool"]["idle"] == 0
        other = pool.get_session(address, timeout=5)
        assert other.is_reusable
        # Who comes too late is no error.
        pool.return_session(session)


def test_a_session_that_the_server_drains_is_not_reused():
    sessions = []

    def handler(session):
        sessions.append(session)
        session.wait_closed()

    with both(kept=handler) as server, pooled(server, pool_size=1) as pool:
        address = url(server, "/kept")
        session = pool.get_session(address)
        pool.return_session(session)
        eventually(lambda: sessions)
        sessions[0].drain()
        eventually(lambda: session.state is gwt.SessionState.DRAINING)
        assert pool.get_session(address, timeout=5) is not session
        eventually(lambda: session.is_closed)


@KINDS
def test_a_server_that_accepts_and_closes(kind):
    def handler(session):
        session.close()

    with both(gone=handler) as server, pooled(server, pool_size=1) as pool:
        for _ in range(3):
            session = pool.get_session(at(server, kind, "/gone"), timeout=5)
            session.wait_closed(timeout=5)
            pool.return_session(session)
        assert pool._homes == {}


@KINDS
def test_a_refusal_costs_no_slot(server, kind):
    with pooled(server, pool_size=1) as pool:
        for _ in range(3):
            with pytest.raises(gwt.ClientError) as info:
                pool.get_session(at(server, kind, "/nowhere"), timeout=5)
            assert isinstance(info.value.__cause__, gwt.SessionRejected)
            assert info.value.__cause__.status == 404
        assert pool.stats["connections"]["failed"] == 3
        assert pool.debug_state()["places"] == []


@KINDS
def test_killed_and_timed_out_in_the_middle_of_connecting(kind):
    app = gwt.App()
    came = []
    silence = Event()

    @app.middleware
    def never(request):
        came.append(request)
        silence.wait()

    app.webtransport("/echo")(echo)
    app.websocket("/ws")(echo_websocket)
    with serving(app) as server, pooled(server, pool_size=1) as pool:
        task = spawn(pool.get_session, at(server, kind))
        waiting = spawn(pool.get_session, at(server, kind))
        eventually(lambda: came)
        assert pool.stats["pool"]["connecting"] == pool.stats["pool"]["waiting"] == 1
        task.kill()
        # It is the next one's turn.
        eventually(lambda: len(came) == 2)
        waiting.kill()
        with gevent.Timeout(0.05, False):
            pool.get_session(at(server, kind))
        with pytest.raises(gwt.ClientError) as info:
            pool.get_session(at(server, kind), timeout=0.05)
        assert isinstance(info.value.__cause__, TimeoutError)
        assert pool.debug_state()["places"] == []
        silence.set()


@KINDS
def test_lending_closes_after_an_error(server, kind):
    with pooled(server) as pool:
        with pytest.raises(RuntimeError), pool.session(at(server, kind)) as session:
            raise RuntimeError
        assert session.is_closed and kept(pool)[0] == 0


@KINDS
def test_close_takes_everything_along(server, kind):
    with pooled(server, pool_size=2) as pool:
        out, idle = pool.get_session(at(server, kind)), pool.get_session(at(server, kind))
        pool.return_session(idle)
        third = pool.get_session(at(server, kind))
        assert third is idle
        waiting = spawn(pool.get_session, at(server, kind))
        eventually(lambda: pool.stats["pool"]["waiting"])
        pool.close()
        with pytest.raises(gwt.ClientError, match="closed"):
            waiting.get()
        assert out.is_closed and idle.is_closed
        pool.return_session(out)


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_close_ends_who_connects_and_who_waits(scheme):
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(tcp.getsockname())
        address = f"{scheme}://127.0.0.1:{tcp.getsockname()[1]}/"
        pool = gwt.PooledClient(config=gwt.ClientConfig(connect_timeout=None), pool_size=1)
        tasks = [spawn(pool.get_session, address) for _ in range(2)]
        eventually(lambda: pool.stats["pool"]["waiting"])
        pool.close()
        for task in tasks:
            with pytest.raises(gwt.ClientError, match="closed"):
                task.get(timeout=2)
        assert not any(
            pool.stats["pool"][name] for name in ("out", "idle", "connecting", "waiting")
        )


@KINDS
def test_close_that_is_interrupted_leaves_nothing(kind):
    with both() as server, pooled(server) as pool:
        session = pool.get_session(at(server, kind))
        closing = spawn(pool.close)
        gevent.sleep(0)
        closing.kill()
        eventually(lambda: session.is_closed)
        assert pool.is_closed


def test_idle_ones_are_closed_after_a_while(server):
    with pooled(server, idle_timeout=0.01, cleanup_interval=0.01) as pool:
        session = pool.get_session(url(server, "/echo"))
        pool.return_session(session)
        eventually(lambda: session.is_closed)
        eventually(lambda: pool._cleaner is None)
        assert pool.stats["pool"]["expired"] == 1


def test_what_was_written_arrives_although_the_session_is_given_up():
    got = []
    go = Event()

    def handler(session):
        stream = session.accept_stream()
        session.send_datagram(b"unasked")
        go.wait()
        got.append(stream.read_all())
        session.wait_closed()

    with both(sink=handler) as server, pooled(server) as pool:
        session = pool.get_session(url(server, "/sink"))
        session.create_unidirectional_stream().write_all(b"x" * 60_000)
        pool.return_session(session)
        assert kept(pool) == (1, 0)
        eventually(lambda: not session.is_reusable)
        pool.get_session(url(server, "/sink"))
        assert kept(pool) == (0, 1)
        go.set()
        eventually(lambda: got == [b"x" * 60_000])


@contextmanager
def nobody(kind):
    """A URL where nobody listens."""
    transport = socket.SOCK_DGRAM if kind == "session" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, transport) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    yield f"{'https' if kind == 'session' else 'ws'}://127.0.0.1:{port}/"


@KINDS
@pytest.mark.parametrize("what", ["nobody", "name", "certificate"])
def test_what_makes_a_connect_fail_costs_no_slot_and_wakes_the_next(
    kind, what, monkeypatch, tmp_path
):
    options = {}
    if what == "certificate":
        cert, key = certificates.write(tmp_path, certificates.generate())
        options = {"certfile": cert, "keyfile": key}
    app = gwt.App()
    app.webtransport("/echo")(echo)
    app.websocket("/ws")(echo_websocket)
    with serving(app, **options) as server, nobody(kind) as address:
        if what == "name":
            address = address.replace("127.0.0.1", "no.such.name.invalid")

            def resolver(*args, **kwargs):
                gevent.sleep(0)
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

            monkeypatch.setattr(gevent.socket, "getaddrinfo", resolver)
        elif what == "certificate":
            address = at(server, kind).replace("ws:", "wss:")
        causes = {"name": "resolve", "nobody": "connect", "certificate": "tls"}
        with gwt.PooledClient(pool_size=1) as pool:
            tasks = [spawn(pool.get_session, address, timeout=5) for _ in range(3)]
            for task in tasks:
                with pytest.raises(gwt.ClientError) as info:
                    task.get()
                assert info.value.__cause__.stage == causes[what]
            assert pool.stats["connections"]["failed"] == 3
            assert pool.debug_state()["places"] == []


@KINDS
def test_killed_at_any_moment(server, kind):
    """Of many greenlets that get, talk and return, some are killed wherever they are."""
    chance = random.Random(6)
    with pooled(server, pool_size=4, config={"close_timeout": 1.0}) as pool:

        def work():
            while True:
                with pool.session(at(server, kind), timeout=10) as session:
                    ask(session, "hello")
                    gevent.sleep(0)

        def by_hand():
            while True:
                session = pool.get_session(at(server, kind), timeout=10)
                try:
                    ask(session, "hello")
                finally:
                    pool.return_session(session)

        workers = [spawn(chance.choice((work, by_hand))) for _ in range(12)]
        for _ in range(60):
            for _ in range(chance.randrange(30)):
                gevent.sleep(0)
            workers.append(spawn(chance.choice((work, by_hand))))
            workers.pop(chance.randrange(len(workers))).greenlet.kill(block=False)
        # Those that live go on.
        eventually(lambda: pool.stats["pool"]["reused"] > 50)
        for worker in workers:
            worker.kill()
        eventually(lambda: pool.stats["pool"]["out"] == 0)
        figures = pool.stats["pool"]
        assert figures["connecting"] == figures["waiting"] == 0
        # All four can be had.
        sessions = [pool.get_session(at(server, kind), timeout=5) for _ in range(4)]
        assert [ask(session, "still here") for session in sessions] == ["still here"] * 4
