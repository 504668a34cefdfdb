"""ReconnectingClient: one session that comes back, its events, and every way to an end."""

from __future__ import annotations

import gc
import socket
import time
import weakref
from contextlib import contextmanager, suppress

import gevent
import pytest

import gwt
from gwt.client.backoff import Backoff
from tests.helpers import Task, eventually, spawn
from tests.helpers.live import serving, url


def wait(session):
    session.wait_closed()


def config(server=None, **options):
    """Delays as short as makes sense."""
    if server is not None:
        options.setdefault("server_certificate_hashes", [server.certificate_hash])
    options = {"retry_delay": 0.01, "max_retry_delay": 0.05, "stable_period": 60.0, **options}
    return gwt.ClientConfig(**options)


@contextmanager
def reconnecting(server, path="/", **options):
    with gwt.ReconnectingClient(url(server, path), config=config(server, **options)) as client:
        yield client


@pytest.fixture
def server():
    with serving(wait) as server:
        yield server


def kinds(events, count):
    return [next(events).kind for _ in range(count)]


def free_port(kind=socket.SOCK_DGRAM):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# Sessions come, and come back


def test_it_connects_and_gives_its_session(server):
    with reconnecting(server) as client:
        assert client.url == url(server) and not client.is_connected and client.session is None
        session = client.get_session()
        assert session.is_ready and client.is_connected and client.session is session
        assert client.get_session(0) is session
        assert "connected" in repr(client) and client.stats["connections"]["successful"] == 1
    assert session.is_closed and client.is_closed and not client.is_connected
    assert client.session is None


def test_create_is_a_twin_and_what_webtransportclient_makes_of_auto_reconnect(server):
    with gwt.ReconnectingClient.create(url=url(server), config=config(server)) as client:
        assert client.get_session(wait_timeout=5.0).is_ready
    settings = config(server, auto_reconnect=True)
    with gwt.WebTransportClient.create(url=url(server), config=settings) as client:
        assert isinstance(client, gwt.ReconnectingClient) and client.config is settings
        assert client.get_session().is_ready
    with gwt.WebTransportClient.create(url=url(server), config=config(server)) as client:
        assert isinstance(client, gwt.WebTransportClient)
        assert client.connect(url(server)).is_ready


def test_a_lost_session_is_replaced_and_events_tell(server):
    with reconnecting(server) as client:
        events = client.events(timeout=5)
        first = client.get_session()
        next(iter(server.sessions.get_all_resources())).close(7, "bye")
        told = [next(events) for _ in range(3)]
        assert [each.kind for each in told] == ["established", "lost", "established"]
        assert [each.attempt for each in told] == [1, 1, 2]
        assert told[0].session is told[1].session is first
        assert "by the peer with code 7: bye" in str(told[1].error)
        assert told[1].error.__cause__.code == 7 and 0 <= told[1].delay <= 0.01
        assert told[2].session is client.get_session() and told[2].session is not first
        assert client.last_error is told[1].error
        assert [str(each).partition(":")[0] for each in told] == [each.kind for each in told]
        assert client.stats["reconnecting"]["lost"] == 1


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_session_that_its_user_ends_is_replaced_too(server, end):
    with reconnecting(server) as client:
        first = client.get_session()
        getattr(first, end)()
        second = client.get_session()
        assert second is not first and second.is_ready


def test_websockets_come_back_as_well():
    app = gwt.App()

    @app.websocket("/ws")
    def handler(ws):
        for message in ws:
            ws.send(message)
            if message == "leave":
                return

    with gwt.Server(app, "127.0.0.1:0", http3=False) as server:
        place = "ws://{}:{}/ws".format(*server.address)
        with gwt.ReconnectingClient(place, config=config()) as client:
            first = client.get_session()
            first.send("leave")
            assert first.recv(timeout=5) == "leave"
            first.wait_closed(timeout=5)
            second = client.get_session()
            second.send("again")
            assert second.recv(timeout=5) == "again" and second is not first
        assert second.close_code == 1000


def test_the_error_of_a_lost_websocket_is_its_own():
    app = gwt.App()

    @app.websocket("/ws")
    def handler(ws):
        ws.close(4001, "go away")

    with gwt.Server(app, "127.0.0.1:0", http3=False) as server:
        place = "ws://{}:{}/ws".format(*server.address)
        with gwt.ReconnectingClient(place, config=config(max_retries=1)) as client:
            last = list(client.events(timeout=5))[-1]
            assert last.kind == "failed" and "4001: go away" in str(last)
            assert last.error.__cause__.rcvd == (4001, "go away")


def test_a_session_that_drains_is_used_until_it_ends(server):
    with reconnecting(server) as client:
        session = client.get_session()
        at_server = next(iter(server.sessions.get_all_resources()))
        at_server.drain()
        eventually(lambda: session.state is gwt.SessionState.DRAINING)
        assert client.get_session() is session and client.is_connected
        at_server.close()
        eventually(lambda: client.session not in (None, session))


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_a_server_that_comes_back_on_its_port_is_found(scheme):
    app = gwt.App()
    app.webtransport("/")(wait)
    app.websocket("/")(wait)
    with gwt.Server(app, "127.0.0.1:0") as server:
        host, port = server.address
        settings = config(verify=False, max_retries=None)
        client = gwt.ReconnectingClient(f"{scheme}://{host}:{port}/", config=settings)
        events = client.events(timeout=10)
        assert next(events).kind == "established"
        server.stop(timeout=0.1)
    assert next(events).kind == "lost"
    # There is nobody now.
    eventually(lambda: client.stats["reconnecting"]["failures_in_a_row"] >= 3)
    assert client.get_session(wait_timeout=0.01) is None and not client.is_connected
    with gwt.Server(app, f"{host}:{port}"):
        assert next(events).kind == "established"
        assert client.get_session().is_ready
        client.close()
    assert list(events) == []


# Bad servers


def test_a_server_that_accepts_and_closes_is_left_alone_more_and_more():
    # pywebtransport 0.6.1, section 9, defect 6: 100 reconnects in 3 seconds.
    with serving(lambda session: None) as server:
        settings = config(server, max_retry_delay=1.0, max_retries=4)
        with gwt.ReconnectingClient(url(server), config=settings) as client:
            client._keeper.backoff = Backoff(settings, uniform=lambda low, high: high)
            told = list(client.events(timeout=5))
            lost = [each.delay for each in told if each.kind == "lost"]
            assert lost == [0.01, 0.02, 0.04, 0.08, None]
            assert told[-1].kind == "failed" and told[-1].attempt == 5
            assert client.stats["connections"]["attempted"] == 5
            with pytest.raises(gwt.ClientError, match=r"after 5 attempts.*ended after 0.0 s"):
                client.get_session()
            assert isinstance(told[-1].error.__cause__, gwt.SessionClosed)


def test_a_session_that_was_stable_resets_the_count(server):
    with reconnecting(server, stable_period=1e-9, max_retries=0) as client:
        for _ in range(3):
            session = client.get_session()
            session.close()
            eventually(lambda session=session: client.session not in (None, session))
        assert client.stats["reconnecting"]["failures_in_a_row"] == 0


@pytest.mark.parametrize("retries", [0, 2])
def test_it_gives_up_after_so_many_retries_and_says_why(server, retries):
    with reconnecting(server, "/nowhere", max_retries=retries) as client:
        (failed,) = client.events(timeout=5)
        assert (failed.kind, failed.attempt, failed.delay) == ("failed", retries + 1, None)
        assert client.stats["connections"]["failed"] == retries + 1
        for _ in range(2):
            with pytest.raises(gwt.ClientError, match="404") as info:
                client.get_session()
            assert isinstance(info.value.__cause__, gwt.SessionRejected)
            assert info.value.target_url == url(server, "/nowhere")
        assert "failed" in repr(client) and not client.is_connected
        # Who comes later is told too, and not left to wait.
        assert kinds(client.events(timeout=5), 1) == ["failed"]
    assert list(client.events(timeout=5)) == []


@pytest.mark.parametrize(
    ("place", "cause"),
    [
        (lambda: f"https://127.0.0.1:{free_port()}/", gwt.HandshakeError),
        (lambda: f"ws://127.0.0.1:{free_port(socket.SOCK_STREAM)}/", OSError),
        (lambda: "https://no-such-name.invalid/", gwt.HandshakeError),
    ],
    ids=["udp", "tcp", "name"],
)
def test_who_cannot_be_reached_is_an_error_at_once(place, cause):
    # pywebtransport 0.6.1, section 9, defect 8: the whole connect_timeout.
    began = time.monotonic()
    with gwt.ReconnectingClient(place(), config=config(max_retries=1)) as client:
        with pytest.raises(gwt.ClientError) as info:
            client.get_session(wait_timeout=8)
        assert isinstance(info.value.__cause__, cause)
    assert time.monotonic() - began < 8


def test_a_server_that_never_answers_is_a_failure_after_the_time_to_connect():
    with silent() as sock:
        place = f"https://127.0.0.1:{sock.getsockname()[1]}/"
        settings = config(connect_timeout=0.05, max_retries=1)
        with gwt.ReconnectingClient(place, config=settings) as client:
            with pytest.raises(gwt.ClientError, match="after 2 attempts") as info:
                client.get_session()
            assert isinstance(info.value.__cause__, TimeoutError)


def test_a_certificate_that_is_not_accepted_counts_as_a_failure(server):
    # It may be another one after the next deployment.
    settings = config(max_retries=1)
    with gwt.ReconnectingClient(url(server), config=settings) as client:
        with pytest.raises(gwt.ClientError) as info:
            client.get_session()
        assert isinstance(info.value.__cause__, gwt.CertificateError)
        assert client.stats["connections"]["attempted"] == 2


@pytest.mark.parametrize("bad", ["http://127.0.0.1/", "https://", "ws://x:0/", 7, None])
def test_a_url_that_is_none_is_refused_at_once(bad):
    with pytest.raises(gwt.ConfigError):
        gwt.ReconnectingClient(bad)


def test_a_configuration_that_cannot_work_is_not_tried_again(server):
    with reconnecting(server, headers={"a b": "c"}, max_retries=None) as client:
        with pytest.raises(gwt.ClientError, match="after one attempt") as info:
            client.get_session()
        assert isinstance(info.value.__cause__, gwt.ConfigError)


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_retry_after_is_respected_within_the_cap(scheme):
    app = gwt.App()
    app.webtransport("/")(wait)
    app.websocket("/")(wait)

    @app.middleware
    def busy(request):
        raise gwt.Reject(503, {"Retry-After": "3600"})

    with gwt.Server(app, "127.0.0.1:0") as server:
        place = "{}://{}:{}/".format(scheme, *server.address)
        settings = config(verify=False, max_retry_delay=0.5, max_retries=1)
        began = time.monotonic()
        with gwt.ReconnectingClient(place, config=settings) as client:
            assert [each.kind for each in client.events(timeout=10)] == ["failed"]
        assert time.monotonic() - began >= 0.5


def test_an_error_that_nobody_thought_of_reaches_who_waits(server, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("a bug")

    with gwt.ReconnectingClient(url(server), config=config(server)) as client:
        monkeypatch.setattr(client._keeper.client, "connect", broken)
        with pytest.raises(gwt.ClientError, match="a bug") as info:
            client.get_session()
        assert isinstance(info.value.__cause__, ZeroDivisionError)
    assert "a bug" in caplog.text


# Waiting


def test_a_thousand_waiters_are_woken_by_one_session(server):
    # pywebtransport 0.6.1, section 9, defect 6: each polls every 0.1 s.
    with reconnecting(server) as client:
        tasks = [spawn(client.get_session) for _ in range(1000)]
        assert {id(task.get()) for task in tasks} == {id(client.session)}


def test_waiters_are_told_of_the_close_and_of_the_end_of_retries():
    place = f"https://127.0.0.1:{free_port()}/"
    settings = config(max_retries=None, retry_delay=60, max_retry_delay=60)
    client = gwt.ReconnectingClient(place, config=settings)
    tasks = [Task(client.get_session, None) for _ in range(3)]
    killed = spawn(client.get_session, None)
    events = spawn(list, client.events())
    eventually(lambda: client.last_error is not None)
    killed.greenlet.kill()
    client.close()
    for task in tasks:
        with pytest.raises(gwt.ClientError, match="closed"):
            task.get()
    assert events.get() == []
    with pytest.raises(gwt.ClientError, match="closed"):
        client.get_session()

    with gwt.ReconnectingClient(place, config=config(max_retries=1)) as client:
        for task in [Task(client.get_session, None) for _ in range(3)]:
            with pytest.raises(gwt.ClientError, match="after 2 attempts"):
                task.get()


def test_it_belongs_to_its_thread(server):
    with reconnecting(server) as client:
        client.get_session()
        errors = []

        def elsewhere():
            for call in (client.get_session, client.events, client.close):
                with suppress(RuntimeError):
                    call()
                    errors.append(call)

        gevent.get_hub().threadpool.apply(elsewhere)
        assert errors == []
        assert client.is_connected


# Events


def test_events_begin_with_what_is_and_may_be_waited_for_again(server):
    with reconnecting(server) as client:
        session = client.get_session()
        events = client.events(timeout=0.01)
        assert next(events).session is session
        for _ in range(2):
            with pytest.raises(TimeoutError):
                next(events)
        session.abort()
        eventually(lambda: client.session not in (None, session))
        assert kinds(events, 2) == ["lost", "established"]


def test_each_reader_has_its_own_events_and_the_oldest_are_dropped(server):
    with reconnecting(server) as client:
        slow, fast = client.events(timeout=5), client.events(timeout=5)
        client.get_session()
        for number in range(300):
            client._keeper._tell(gwt.ConnectionEvent("lost", attempt=number))
            next(fast)
        assert next(fast).attempt == 299
        assert next(slow).attempt == 300 - 256
        assert client.stats["reconnecting"]["events_dropped"] == 45
        del slow
        assert list(client._keeper.readers) == [fast]


# Ends


def silent():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def test_a_close_in_the_middle_of_connecting_leaves_nothing():
    with silent() as sock:
        client = gwt.ReconnectingClient(f"https://127.0.0.1:{sock.getsockname()[1]}/")
        assert client.get_session(wait_timeout=0.05) is None
        began = time.monotonic()
        client.close()
        client.close()
        assert time.monotonic() - began < 2


def test_a_close_before_anything_began(server):
    client = gwt.ReconnectingClient(url(server), config=config(server))
    client.close()
    assert client.stats["connections"]["attempted"] == 0
    assert list(client.events()) == []


def test_a_close_that_is_interrupted_leaves_nothing(server):
    client = gwt.ReconnectingClient(url(server), config=config(server))
    session = client.get_session()
    # Nobody reads it: closing waits for close_timeout, 5 s.
    session.create_bidirectional_stream().write(b"x" * 500_000)
    with gevent.Timeout(0.05, False):
        client.close()
    assert session.is_closed and client.is_closed
    eventually(lambda: client._keeper._greenlet.dead)


def test_two_greenlets_close_at_once(server):
    client = gwt.ReconnectingClient(url(server), config=config(server))
    session = client.get_session()
    for task in [spawn(client.close) for _ in range(2)]:
        task.get()
    assert session.is_closed


def test_a_keeper_that_somebody_kills_leaves_nobody_waiting(server):
    with silent() as sock:
        client = gwt.ReconnectingClient(f"https://127.0.0.1:{sock.getsockname()[1]}/")
        task = Task(client.get_session, None)
        gevent.sleep(0)
        client._keeper._greenlet.kill()
        with pytest.raises(gwt.ClientError, match="closed"):
            task.get()


def test_one_that_nobody_has_any_more_connects_no_more(server):
    client = gwt.ReconnectingClient(url(server), config=config(server))
    session = client.get_session()
    greenlet = weakref.ref(client._keeper._greenlet)
    del client
    eventually(lambda: greenlet() is None or greenlet().dead)
    # It is its user's.
    assert session.is_ready
    session.close()


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_a_session_that_nobody_was_given_ends_with_the_client_that_nobody_has(scheme):
    app, there = gwt.App(), []

    def handler(session):
        there.append(session)
        session.wait_closed()

    app.webtransport("/")(handler)
    app.websocket("/")(handler)
    with serving(app) as server:
        where = url(server).replace("https", scheme)
        holder = [gwt.ReconnectingClient(where, config=config(server))]
        eventually(lambda: holder[0].is_connected and there)
        holder.clear()
        eventually(lambda: there[0].is_closed)


def test_a_session_that_an_event_told_of_is_its_readers(server):
    client = gwt.ReconnectingClient(url(server), config=config(server))
    event = next(client.events(timeout=5))
    greenlet = client._keeper._greenlet
    del client
    eventually(lambda: greenlet.dead)
    assert event.session.is_ready
    event.session.close()


def test_one_that_another_thread_drops_ends_too(server):
    holder = [gwt.ReconnectingClient(url(server), config=config(server, retry_delay=60))]
    holder[0].get_session().close()
    greenlet = holder[0]._keeper._greenlet
    eventually(lambda: holder[0].stats["reconnecting"]["lost"] == 1)
    gc.collect()
    gevent.get_hub().threadpool.apply(holder.clear)
    eventually(lambda: greenlet.dead)
