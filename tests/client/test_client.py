"""WebTransportClient and its statistics."""

from __future__ import annotations

import dataclasses
import socket
import sys
from functools import partial

import gevent
import gevent.subprocess
import pytest

import gwt
from tests.helpers import eventually, spawn
from tests.helpers.live import connect, echo, serving, url


@pytest.fixture
def server():
    with serving(echo) as server:
        yield server


def config(server, **options):
    return gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash], **options)


def test_it_connects_counts_and_closes_its_sessions(server):
    with gwt.WebTransportClient(config=config(server)) as client:
        first = client.connect(url=url(server))
        second = client.connect(url(server), timeout=5)
        stats = client.stats
        assert stats["connections"] == {
            "attempted": 2,
            "successful": 2,
            "failed": 0,
            "success_rate": 1.0,
        }
        assert 0 < stats["performance"]["min_connect_time"] < 5
        assert stats["performance"]["avg_connect_time"] <= stats["performance"]["max_connect_time"]
    assert first.is_closed and second.is_closed and client.is_closed
    with pytest.raises(gwt.ClientError, match="closed"):
        client.connect(url(server))


def test_failures_are_counted_and_chained(server):
    client = gwt.WebTransportClient(config=config(server))
    with pytest.raises(gwt.ClientError) as info:
        client.connect(url(server, "/nowhere"))
    assert info.value.target_url == url(server, "/nowhere")
    assert isinstance(info.value.__cause__, gwt.SessionRejected)
    assert client.stats["connections"]["failed"] == 1
    assert client.stats["connections"]["success_rate"] == 0.0
    client.close()


def test_failures_show_no_password():
    with gwt.WebTransportClient() as client:
        for url in ("ws://me:secret@127.0.0.1:1/", "https://me:secret@127.0.0.1:1/"):
            with pytest.raises(gwt.ClientError) as info:
                client.connect(url)
            assert "secret" not in f"{info.value} {info.value.__cause__}"


def test_headers_are_merged_call_over_default_over_config():
    # pywebtransport 0.6.1 replaced the config's headers, and lost even the user-agent.
    seen = []

    def handler(session):
        seen.append(session.headers)

    with serving(handler) as server:
        settings = config(server, headers={"a": "config", "b": "config", "c": "config"})
        with gwt.WebTransportClient(config=settings) as client:
            client.set_default_headers(headers={"B": "default", "C": "default"})
            client.connect(url(server), headers={"C": "call"}).wait_closed(timeout=5)
    assert [seen[0][name] for name in "abc"] == ["config", "default", "call"]
    assert seen[0]["user-agent"].startswith("gwt/")


def test_debug_state_and_issues(server):
    client = gwt.WebTransportClient(config=config(server))
    assert client.diagnose_issues() == []
    state = client.debug_state()
    assert set(state) == {"client", "config", "statistics"}
    assert state["client"]["closed"] is False
    client._stats.connections_attempted = 20
    client._stats.connections_successful = 17
    client._stats.total_connect_time = 17 * 6.0
    client.close()
    assert client.diagnose_issues() == [
        "Client is closed.",
        "Low connection success rate: 85.00%",
        "Slow average connection time: 6.00s",
    ]


def test_statistics_have_the_names_that_are_documented():
    stats = gwt.ClientStats(created_at=5.0)
    assert dataclasses.asdict(stats) == {
        "created_at": 5.0,
        "connections_attempted": 0,
        "connections_successful": 0,
        "connections_failed": 0,
        "total_connect_time": 0.0,
        "min_connect_time": float("inf"),
        "max_connect_time": 0.0,
    }
    stats.connections_attempted, stats.connections_failed = 4, 1
    for seconds in (1.0, 2.0, 6.0):
        stats.count(seconds)
    assert (stats.avg_connect_time, stats.success_rate) == (3.0, 0.75)
    figures = stats.to_dict()
    assert figures.pop("created_at") == 5.0 and figures.pop("uptime") > 0
    assert figures == {
        "connections": {"attempted": 4, "successful": 3, "failed": 1, "success_rate": 0.75},
        "performance": {
            "avg_connect_time": 3.0,
            "min_connect_time": 1.0,
            "max_connect_time": 6.0,
        },
    }


def test_statistics_without_attempts():
    stats = gwt.ClientStats()
    assert stats.success_rate == 1.0 and stats.avg_connect_time == 0.0
    assert stats.min_connect_time == float("inf")
    assert stats.to_dict()["performance"]["min_connect_time"] == 0.0


@pytest.mark.parametrize(
    "ending", ["session.close()", "with session: pass", "session.close(); session.close()"]
)
def test_a_process_that_ends_after_close_leaves_no_connection_behind(server, ending):
    script = f"import gwt, sys; session = gwt.connect(sys.argv[1], verify=False)\n{ending}"
    gevent.subprocess.check_call([sys.executable, "-c", script, url(server)], timeout=20)
    connections = server.connections
    assert connections.get_stats()["total_created"] == 1
    # Not when it has been unused for long enough.
    assert server.config.unused_timeout > 10
    eventually(lambda: connections.get_stats()["current_count"] == 0, 5)


def test_close_may_come_long_after_the_connection_is_gone(server):
    session = connect(server)
    session.close()
    eventually(lambda: session.connection.protocol.next_timer() is None)
    session.close()
    assert not session.connection.stats().get("internal_errors")


def test_it_connects_websockets_too(server):
    app = gwt.App()

    @app.websocket("/ws")
    def handler(ws):
        for message in ws:
            ws.send(f"{ws.request.headers['x-who']}: {message}")

    with gwt.Server(app, "127.0.0.1:0") as other, gwt.WebTransportClient() as client:
        host, port = other.address
        ws = client.connect(f"ws://{host}:{port}/ws", headers={"X-Who": "me"})
        ws.send("hello")
        assert ws.recv(timeout=5) == "me: hello"
        assert ws.is_ready and client.stats["connections"]["successful"] == 1
        with pytest.raises(gwt.ClientError) as info:
            client.connect(f"ws://{host}:{port}/nowhere")
        assert isinstance(info.value.__cause__, gwt.SessionRejected)
    assert ws.is_closed and not ws.is_ready and ws.close_code == 1000


@pytest.fixture
def silent():
    """Where nobody answers, by TCP or by UDP."""
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        port = tcp.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", port))
            yield f"127.0.0.1:{port}/"


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("scheme", ["https", "wss", "ws"])
def test_a_close_ends_connects_that_are_under_way(silent, scheme, end):
    client = gwt.WebTransportClient(config=gwt.ClientConfig(connect_timeout=None))
    tasks = [spawn(client.connect, f"{scheme}://{silent}") for _ in range(3)]
    eventually(lambda: client.stats["connections"]["attempted"] == 3)
    getattr(client, end)()
    getattr(client, end)()
    for task in tasks:
        with pytest.raises(gwt.ClientError, match="closed meanwhile") as info:
            task.get(timeout=2)
        assert info.value.target_url == f"{scheme}://{silent}"
    expected = {"attempted": 3, "successful": 0, "failed": 3, "success_rate": 0.0}
    assert client.stats["connections"] == expected


@pytest.mark.parametrize("scheme", ["https", "wss", "ws"])
def test_a_timeout_is_both_a_timeout_and_an_error_of_the_client(silent, scheme):
    address = f"{scheme}://{silent}"
    config = gwt.ClientConfig(connect_timeout=0.05)
    with (
        gwt.WebTransportClient(config=config) as client,
        gwt.PooledClient(config=config) as pooled,
        gwt.WebTransportBrowser(config=config) as browser,
    ):
        for connect in (client.connect, pooled.get_session, browser.navigate):
            with pytest.raises(TimeoutError) as info:
                connect(address)
            assert isinstance(info.value, gwt.ClientError) and info.value.target_url == address
            assert str(info.value).startswith(f"Connecting to {address} timed out after 0.05 s")
            assert type(info.value.__cause__) is TimeoutError


def test_a_session_that_came_about_as_the_client_was_closed_is_no_success(server, monkeypatch):
    client = gwt.WebTransportClient(config=config(server))
    made = []

    def connect_and_close(*args, **options):
        made.append(gwt.connect(*args, **options))
        client.close()
        return made[0]

    monkeypatch.setattr("gwt.client.client.connect", connect_and_close)
    with pytest.raises(gwt.ClientError, match="closed meanwhile"):
        client.connect(url(server))
    # What was to interrupt it finds that it is over.
    gevent.sleep(0)
    assert made[0].is_closed
    assert client.stats["connections"]["successful"] == 0
    assert client.stats["connections"]["failed"] == 1


def test_it_belongs_to_its_thread(server):
    refused = []

    def elsewhere():
        for call in (lambda: client.connect(url(server)), client.close, client.abort):
            try:
                call()
            except RuntimeError:
                refused.append(call)

    with gwt.WebTransportClient(config=config(server)) as client:
        session = client.connect(url(server))
        gevent.get_hub().threadpool.apply(elsewhere)
        assert len(refused) == 3 and session.is_ready and not client.is_closed


@pytest.mark.parametrize("config", [{"verify": False}, {}, "config", gwt.ServerConfig()])
def test_what_is_no_config_is_refused_at_once(config):
    address = "https://127.0.0.1:1/"
    makers = [
        gwt.WebTransportClient,
        gwt.PooledClient,
        gwt.WebTransportBrowser,
        partial(gwt.WebTransportClient.create, address),
        partial(gwt.ReconnectingClient, address),
        partial(gwt.WebTransportProxy, address),
        partial(gwt.benchmark_client_performance, address),
        partial(gwt.connect, address),
        partial(gwt.connect, "ws://127.0.0.1:1/"),
    ]
    for make in makers:
        with pytest.raises(gwt.ConfigError, match="config must be a ClientConfig, or None"):
            make(config=config)
    with pytest.raises(gwt.ConfigError):
        gwt.ClientPool([config])


@pytest.mark.parametrize("headers", [5, "x: y", ["x"], {5: "y"}, b"x"])
def test_what_are_no_headers_is_refused_at_once(headers):
    client = gwt.WebTransportClient()
    with pytest.raises(gwt.ConfigError, match="headers must be"):
        gwt.ReconnectingClient("https://127.0.0.1:1/", config=gwt.ClientConfig(headers=headers))
    with pytest.raises(gwt.ConfigError, match="headers must be"):
        client.set_default_headers(headers)
    with pytest.raises(gwt.ConfigError, match="headers must be"):
        client.connect("https://127.0.0.1:1/", headers=headers)
    assert client.stats["connections"]["attempted"] == 0
