"""benchmark_client_performance(): every request counts once, whatever becomes of it."""

from __future__ import annotations

from itertools import count

import gevent
import gevent.socket
import pytest

import gwt
from gwt.client.benchmark import error_kind, percentile
from tests.helpers import eventually, live, spawn

KEYS = [
    "total_requests",
    "successful_requests",
    "failed_requests",
    "latencies",
    "duration",
    "requests_per_second",
    "errors",
    "error_messages",
]
KEYS_OF_SUCCESS = ["avg_latency", "min_latency", "max_latency", "percentiles"]


def echo_messages(ws):
    for message in ws:
        ws.send(message)


def make_app(middleware=None):
    app = gwt.App()
    app.webtransport("/echo")(live.echo)
    app.websocket("/echo")(echo_messages)
    if middleware is not None:
        app.middleware(middleware)
    return app


def address(server, scheme="https"):
    return live.url(server, "/echo").replace("https", scheme)


def benchmark(url, **options):
    options.setdefault("config", gwt.ClientConfig(verify=False))
    return gwt.benchmark_client_performance(url, **options)


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_every_request_is_counted(scheme):
    with live.serving(make_app()) as server:
        figures = benchmark(address(server, scheme), num_requests=12, concurrent_requests=4)
        eventually(lambda: not server.connections.get_stats()["current_count"])
    assert list(figures) == KEYS + KEYS_OF_SUCCESS
    assert (figures["total_requests"], figures["successful_requests"]) == (12, 12)
    assert figures["failed_requests"] == 0 and figures["errors"] == {}
    latencies = figures["latencies"]
    assert len(latencies) == 12 and all(0 < each <= figures["duration"] for each in latencies)
    assert figures["avg_latency"] == pytest.approx(sum(latencies) / 12)
    assert (figures["min_latency"], figures["max_latency"]) == (min(latencies), max(latencies))
    assert figures["requests_per_second"] == pytest.approx(12 / figures["duration"])
    percentiles = figures["percentiles"]
    assert list(percentiles) == ["p50", "p90", "p99", "p99.9"]
    assert list(percentiles.values()) == sorted(percentiles.values())
    assert percentiles["p99.9"] == max(latencies)


def test_defect_one_failed_request_lost_all_results_to_a_cancelled_error():
    # pywebtransport 0.6.1: the first failure cancelled the others, and CancelledError came out.
    asked = count(1)

    def third(request):
        if next(asked) == 3:
            raise gwt.Reject(503)

    with live.serving(make_app(third)) as server:
        figures = benchmark(address(server), num_requests=10, concurrent_requests=5)
    assert (figures["successful_requests"], figures["failed_requests"]) == (9, 1)
    assert len(figures["latencies"]) == 9 and "percentiles" in figures
    assert figures["errors"] == {"SessionRejected 503": 1}
    assert "503" in figures["error_messages"]["SessionRejected 503"]


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_all_may_fail(scheme):
    with gevent.socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{sock.getsockname()[1]}/"
        figures = benchmark(url, num_requests=5, concurrent_requests=2)
    assert list(figures) == KEYS
    assert (figures["successful_requests"], figures["failed_requests"]) == (0, 5)
    assert figures["errors"] == {"HandshakeError (connect)": 5}
    assert figures["latencies"] == [] and figures["requests_per_second"] == 0.0
    assert "Nobody answers" in figures["error_messages"]["HandshakeError (connect)"]


def test_never_more_at_a_time_than_wanted():
    open_now, most = 0, 0

    def slowly(session):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        stream = session.accept_stream()
        data = stream.read_all()
        # All that may come at a time have come.
        eventually(lambda: most >= 3)
        open_now -= 1
        stream.write_all(data)

    with live.serving(slowly, "/echo") as server:
        figures = benchmark(address(server), num_requests=9, concurrent_requests=3)
    assert (figures["successful_requests"], most) == (9, 3)


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_request_that_is_not_answered_ends_in_time(scheme):
    app = gwt.App()
    app.webtransport("/echo")(lambda session: session.wait_closed())
    app.websocket("/echo")(lambda ws: ws.wait_closed())
    with live.serving(app) as server:
        figures = benchmark(
            address(server, scheme), num_requests=4, concurrent_requests=4, timeout=1.0
        )
        eventually(lambda: not server.connections.get_stats()["current_count"])
    assert figures["errors"] == {"TimeoutError": 4}
    assert "no answer came within 1 s" in figures["error_messages"]["TimeoutError"]
    assert figures["duration"] < 10


def test_errors_are_counted_by_kind():
    answers = iter([404, 503, 503, None])

    def differently(request):
        if (status := next(answers)) is not None:
            raise gwt.Reject(status)

    with live.serving(make_app(differently)) as server:
        figures = benchmark(address(server, "ws"), num_requests=4, concurrent_requests=1)
    assert figures["errors"] == {"SessionRejected 404": 1, "SessionRejected 503": 2}
    assert figures["successful_requests"] == 1


def test_progress_is_told_in_this_greenlet_and_its_error_ends_all():
    told = []

    def progress(done, total):
        told.append((done, total, gevent.getcurrent()))
        if done == 3:
            raise LookupError("enough")

    with live.serving(make_app()) as server:
        url = address(server)
        with pytest.raises(LookupError, match="enough"):
            benchmark(url, num_requests=50, concurrent_requests=2, progress=progress)
        # Nothing goes on behind it: the fixture of all tests finds what was left, too.
        eventually(lambda: not server.connections.get_stats()["current_count"])
    assert told == [(done, 50, gevent.getcurrent()) for done in (1, 2, 3)]


def test_whoever_kills_the_caller_ends_its_requests():
    arrived = []

    def silent(session):
        arrived.append(session)
        session.wait_closed()

    with live.serving(silent, "/echo") as server:
        task = spawn(benchmark, address(server), num_requests=9, concurrent_requests=3)
        eventually(lambda: len(arrived) == 3)
        task.kill()
        eventually(lambda: not server.connections.get_stats()["current_count"])


def test_more_at_a_time_than_handshakes_may_be_do_not_queue():
    config = gwt.ClientConfig(verify=False, max_connecting=1)
    asked = []

    def together(request):
        asked.append(request)
        eventually(lambda: len(asked) >= 3)

    with live.serving(make_app(together)) as server:
        figures = benchmark(address(server), config=config, num_requests=3, concurrent_requests=3)
    assert figures["successful_requests"] == 3
    assert config.max_connecting == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_requests": 0}, "num_requests"),
        ({"num_requests": True}, "num_requests"),
        ({"num_requests": 2.0}, "num_requests"),
        ({"concurrent_requests": 0}, "concurrent_requests"),
        ({"concurrent_requests": -1}, "concurrent_requests"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"progress": 7}, "progress"),
        ({"url": "ftp://localhost/"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": 7}, "url"),
        ({"config": gwt.ClientConfig(proxy="http://localhost:1")}, "proxy"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options, field):
    url = options.pop("url", "https://127.0.0.1:1/")
    with pytest.raises(gwt.ConfigError) as caught:
        benchmark(url, **options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [
        (1, 50.0, 1),
        (2, 50.0, 1),
        (3, 50.0, 2),
        (100, 50.0, 50),
        (100, 90.0, 90),
        (100, 99.0, 99),
        (100, 99.9, 100),
        (1000, 99.9, 999),
        (1001, 99.9, 1000),
        (10, 0.0, 1),
        (10, 100.0, 10),
    ],
)
def test_percentiles_are_by_nearest_rank(count, share, expected):
    assert percentile(range(1, count + 1), share) == expected


def test_nothing_has_no_percentile():
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50.0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (gwt.SessionRejected(503), "SessionRejected 503"),
        (gwt.CertificateError("no"), "CertificateError (tls)"),
        (gwt.SessionClosed(7, "enough", True), "SessionClosed 7"),
        (gwt.WebSocketClosedError(1006), "WebSocketClosedError 1006"),
        (gwt.StreamReset(None), "StreamReset"),
        (gwt.IncompleteRead(b""), "IncompleteRead"),
        (TimeoutError("late"), "TimeoutError"),
        (OSError(24, "Too many open files"), "OSError EMFILE"),
        (OSError(99999, "?"), "OSError 99999"),
    ],
)
def test_kinds_of_errors(error, kind):
    assert error_kind(error) == kind
