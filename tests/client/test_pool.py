"""ClientPool: clients in turn, and all of them at once."""

from __future__ import annotations

from functools import partial

import gevent
import pytest
from gevent.event import Event

import gwt
from tests.helpers import eventually, spawn
from tests.helpers.live import echo, serving, url
from tests.helpers.websockets import echo as echo_websocket


@pytest.fixture
def app():
    """It lets in who has the header `come: in`, and keeps who has `wait: here`."""
    app = gwt.App()
    app.silence = Event()

    @app.middleware
    def check(request):
        if request.headers.get("wait"):
            app.silence.wait()
        if request.headers.get("come") != "in":
            raise gwt.Reject(403)

    app.open = set()

    def counted(handler):
        def handle(session):
            app.open.add(session)
            try:
                handler(session)
            finally:
                app.open.remove(session)

        return handle

    app.webtransport("/echo")(counted(echo))
    app.websocket("/ws")(counted(echo_websocket))
    return app


@pytest.fixture
def server(app):
    with serving(app) as server:
        yield server
        app.silence.set()


def config(server, **headers):
    return gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash], headers=headers)


@pytest.fixture
def good(server):
    return config(server, come="in")


@pytest.fixture
def bad(server):
    return config(server)


@pytest.fixture(params=["session", "websocket"])
def address(request, server):
    if request.param == "session":
        return url(server, "/echo")
    return "ws://{}:{}/ws".format(*server.address)


def test_clients_take_turns(good):
    other = good.update(user_agent="other")
    with gwt.ClientPool([good, other, None]) as pool:
        clients = [pool.get_client() for _ in range(7)]
        assert clients[:3] == clients[3:6] and clients[6] is clients[0]
        assert [client.config for client in clients[:3]] == [good, other, gwt.ClientConfig()]
        assert pool.get_client_count() == 3
    assert all(client.is_closed for client in clients)


def test_how_it_is_made(good):
    assert gwt.ClientPool(configs=[good]).get_client_count() == 1
    pool = gwt.ClientPool.create(base_config=good)
    assert pool.get_client_count() == 10 and pool.get_client().config is good
    assert gwt.ClientPool.create(num_clients=2).get_client_count() == 2
    for wrong in ([], ()):
        with pytest.raises(ValueError, match="configs"):
            gwt.ClientPool(wrong)
    for number in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="num_clients"):
            gwt.ClientPool.create(num_clients=number)


def test_without_a_block(good, address):
    pool = gwt.ClientPool([good])
    session = pool.get_client().connect(address)
    assert session.is_ready
    pool.close()
    assert session.is_closed and pool.is_closed and pool.get_client_count() == 0
    pool.close_all()
    with pytest.raises(gwt.ClientError, match="closed"):
        pool.get_client()
    with pytest.raises(gwt.ClientError, match="closed"):
        pool.connect_all(address)


def test_a_client_that_somebody_closed_is_passed_over(good):
    with gwt.ClientPool([good] * 3) as pool:
        with pool.get_client() as closed:
            pass
        assert closed not in [pool.get_client() for _ in range(6)]
        assert pool.get_client_count() == 2 and not pool.is_closed


def test_all_connect_at_the_same_time(app, server, good, address):
    with gwt.ClientPool.create(num_clients=4, base_config=good) as pool:
        sessions = pool.connect_all(url=address)
        assert len(set(sessions)) == 4 and all(session.is_ready for session in sessions)
        eventually(lambda: len(app.open) == 4)
        stats = pool.stats
        assert stats["clients"] == 4
        assert stats["connections"] == {
            "attempted": 4,
            "successful": 4,
            "failed": 0,
            "success_rate": 1.0,
        }
        times = stats["performance"]
        assert 0 < times["min_connect_time"] <= times["avg_connect_time"]
        assert times["avg_connect_time"] <= times["max_connect_time"]
    assert all(session.is_closed for session in sessions)


def test_connect_all_returns_what_succeeded_although_one_fails(good, bad, address, caplog):
    # pywebtransport 0.6.1: one failure cancelled the rest, and CancelledError was all there was.
    with gwt.ClientPool([good, bad, good.update(user_agent="third"), bad]) as pool:
        sessions = pool.connect_all(address)
        assert [session.is_ready for session in sessions] == [True, True]
        assert pool.stats["connections"]["failed"] == 2
        # In the order of the clients.
        later = pool.connect_all(address)
        assert [session in pool._clients[0]._sessions for session in later] == [True, False]
        # A client that could not connect is as good as before.
        assert pool.get_client_count() == 4
    assert len(caplog.records) == 2
    assert "2 of 4 clients could not connect" in caplog.records[0].getMessage()
    assert "403" in caplog.records[0].getMessage()


def test_connect_all_raises_when_all_fail(bad, address):
    with gwt.ClientPool([bad, bad]) as pool, pytest.raises(ExceptionGroup) as info:
        pool.connect_all(address)
    assert "2 of 2 clients could not connect" in str(info.value)
    assert str(info.value.exceptions[0]) in str(info.value)
    assert [type(error) for error in info.value.exceptions] == [gwt.ClientError] * 2
    assert all(error.__cause__.status == 403 for error in info.value.exceptions)


def test_connect_all_raises_when_it_is_asked_to_and_keeps_nothing(app, server, good, bad, address):
    with gwt.ClientPool([good, bad, good]) as pool:
        with pytest.raises(ExceptionGroup) as info:
            pool.connect_all(address, raise_on_error=True)
        assert len(info.value.exceptions) == 1
        assert not any(client._sessions for client in pool._clients)
        eventually(lambda: not app.open)
        with pytest.raises(ExceptionGroup) as info:
            pool.connect_all("ftp://me:secret@nowhere")
        assert "secret" not in f"{info.value} {info.value.exceptions}"


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_connect_all_that_is_interrupted_leaves_nothing(app, server, good, address, how):
    silent = config(server, come="in", wait="here")
    with gwt.ClientPool([good, silent, good]) as pool:
        task = spawn(pool.connect_all, address)
        eventually(lambda: pool.stats["connections"]["successful"] == 2)
        if how == "kill":
            task.kill()
        else:
            task.greenlet.kill(gevent.Timeout(None))
            with pytest.raises(gevent.Timeout):
                task.get()
        assert pool.stats["connections"]["failed"] == 1
        assert not any(client._sessions for client in pool._clients)
        eventually(lambda: not app.open)
        assert pool.get_client().connect(address).is_ready


def test_each_connect_has_a_timeout(app, server, good, address):
    silent = config(server, come="in", wait="here")
    with gwt.ClientPool([silent, silent]) as pool, pytest.raises(ExceptionGroup) as info:
        pool.connect_all(address, timeout=0.1)
    assert all(isinstance(error.__cause__, TimeoutError) for error in info.value.exceptions)


@pytest.mark.parametrize("raise_on_error", [False, True])
def test_close_in_the_middle_of_connect_all(app, server, good, address, raise_on_error):
    silent = config(server, come="in", wait="here").update(connect_timeout=None)
    pool = gwt.ClientPool([good, silent])
    task = spawn(pool.connect_all, address, raise_on_error=raise_on_error)
    eventually(lambda: pool.stats["connections"]["successful"] == 1)
    pool.close()
    with pytest.raises(ExceptionGroup, match="1 of 2 clients") as info:
        task.get()
    (error,) = info.value.exceptions
    assert "closed meanwhile" in str(error) and error.target_url == address
    assert pool.stats["connections"]["failed"] == 1
    app.silence.set()
    eventually(lambda: not app.open)


def test_it_belongs_to_its_thread(good, address):
    refused = []

    def elsewhere():
        for call in (partial(pool.connect_all, address), pool.close_all):
            try:
                call()
            except RuntimeError:
                refused.append(call)

    with gwt.ClientPool([good]) as pool:
        (session,) = pool.connect_all(address)
        gevent.get_hub().threadpool.apply(elsewhere)
        assert len(refused) == 2 and session.is_ready and pool.get_client_count() == 1


@pytest.mark.parametrize("started", [False, True])
def test_close_that_is_interrupted_aborts(good, address, started):
    pool = gwt.ClientPool([good, good])
    sessions = pool.connect_all(address)
    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted(pool.close, started)
    assert all(session.is_closed for session in sessions) and pool.is_closed


def interrupted(function, started):
    """Call a function, and interrupt it before, or after, greenlets that it spawns have begun."""
    caller = gevent.getcurrent()
    error = RuntimeError("interrupted")
    interrupt = partial(gevent.get_hub().loop.run_callback, caller.throw, error)
    if started:
        gevent.spawn(gevent.spawn, interrupt)
    else:
        interrupt()
    function()
