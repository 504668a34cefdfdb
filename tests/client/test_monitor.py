"""ClientMonitor: what it keeps, when it raises an alert, how it ends. The clock is the test's."""

from __future__ import annotations

import gc
import itertools
import logging
import weakref

import gevent
import pytest

import gwt
from tests.helpers import eventually, spawn
from tests.helpers.live import echo, serving, url
from tests.helpers.targets import reaching, service


class Client:
    """A client with figures that a test sets."""

    def __init__(self, attempted=0, rate=1.0, average=0.0):
        self.reads = 0
        self.error = None
        self.on_read = lambda reads: None
        self.set(attempted, rate, average)

    def set(self, attempted=0, rate=1.0, average=0.0):
        self.figures = {
            "connections": {"attempted": attempted, "success_rate": rate},
            "performance": {"avg_connect_time": average},
        }

    @property
    def stats(self):
        self.reads += 1
        self.on_read(self.reads)
        if self.error is not None:
            raise self.error
        return self.figures


def kinds(alerts):
    return [alert["type"] for alert in alerts]


def test_it_watches_a_client_of_the_suite():
    with serving(echo) as server:
        config = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])
        with gwt.WebTransportClient(config=config) as client:
            client.connect(url(server))
            with gwt.ClientMonitor(client) as monitor:
                summary = monitor.get_metrics_summary()
                assert set(summary) == {"latest_metrics", "recent_alerts", "is_monitoring"}
                assert summary["is_monitoring"] is monitor.is_monitoring is True
                assert summary["recent_alerts"] == []
                latest = summary["latest_metrics"]
                assert set(latest) == {"timestamp", "stats"}
                assert latest["stats"]["connections"]["successful"] == 1
            assert monitor.get_metrics_summary() == {**summary, "is_monitoring": False}


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (
            lambda there, config: gwt.ReconnectingClient(there, config=config),
            lambda client, there: client.get_session(wait_timeout=5),
        ),
        (
            lambda there, config: gwt.WebTransportBrowser(config=config),
            lambda client, there: client.navigate(there),
        ),
        (
            lambda there, config: gwt.ClientPool(configs=[config]),
            lambda client, there: client.connect_all(there),
        ),
        (
            lambda there, config: gwt.PooledClient(config=config),
            lambda client, there: client.return_session(client.get_session(there)),
        ),
    ],
    ids=["ReconnectingClient", "WebTransportBrowser", "ClientPool", "PooledClient"],
)
def test_it_watches_every_client_of_the_suite(make, use):
    with serving(echo) as server:
        config = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])
        with make(url(server), config) as client:
            use(client, url(server))
            with gwt.ClientMonitor(client) as monitor:
                latest = monitor.get_metrics_summary()["latest_metrics"]
        assert latest["stats"]["connections"]["successful"] == 1
        assert monitor.get_metrics_summary()["recent_alerts"] == []


def test_it_watches_a_proxy_client_whose_connects_are_tunnels():
    with service() as target, reaching(target) as (_, proxy), gwt.ClientMonitor(proxy) as monitor:
        proxy.connect_through_proxy(target).abort()
        with pytest.raises(gwt.ClientError):
            proxy.connect_through_proxy("no target")
        monitor.check()
        counted = monitor.get_metrics_summary()["latest_metrics"]["stats"]["connections"]
    assert counted == {"attempted": 2, "successful": 1, "failed": 1, "success_rate": 0.5}


def test_alerts_have_a_type_a_message_and_the_time():
    client = Client(attempted=20, rate=0.85, average=6.0)
    monitor = gwt.ClientMonitor.create(client=client, monitoring_interval=1)
    assert monitor.get_metrics_summary() == {
        "latest_metrics": {},
        "recent_alerts": [],
        "is_monitoring": False,
    }
    monitor = gwt.ClientMonitor(client, clock=lambda: 7.0)
    expected = [
        {
            "type": "low_success_rate",
            "message": "Low connection success rate: 85.00%",
            "timestamp": 7.0,
        },
        {
            "type": "slow_connections",
            "message": "Slow average connection time: 6.00s",
            "timestamp": 7.0,
        },
    ]
    assert monitor.check() == expected
    summary = monitor.get_metrics_summary()
    assert summary["recent_alerts"] == expected
    assert summary["latest_metrics"] == {"timestamp": 7.0, "stats": client.figures}


@pytest.mark.parametrize(
    ("attempted", "rate", "average"), [(10, 0.0, 0.0), (1000, 0.9, 5.0), (0, 1.0, 0.0)]
)
def test_what_is_within_the_bounds_raises_nothing(attempted, rate, average):
    assert gwt.ClientMonitor(Client(attempted, rate, average)).check() == []


def test_two_conditions_that_hold_are_two_alerts_however_long_they_hold():
    # pywebtransport 0.6.1 compared with its last alert only: two took turns for ever.
    client = Client(attempted=20, rate=0.5, average=6.0)
    monitor = gwt.ClientMonitor(client)
    raised = []
    for round in range(50):
        # The figures move, and with them the messages.
        client.set(20 + round, 0.5 - round / 1000, 6.0 + round)
        raised += monitor.check()
    assert kinds(raised) == ["low_success_rate", "slow_connections"]


def test_an_alert_comes_again_when_its_condition_has_ended():
    client = Client()
    monitor = gwt.ClientMonitor(client)
    raised = []
    for rate in (0.5, 0.95, 0.5, 0.5, 1.0, 0.4):
        client.set(100, rate, 6.0)
        raised.append(kinds(monitor.check()))
    low = ["low_success_rate"]
    assert raised == [[*low, "slow_connections"], [], low, [], [], low]


def test_stats_that_raise_are_an_alert_and_end_nothing():
    client = Client(attempted=20, rate=0.5)
    monitor = gwt.ClientMonitor(client)
    assert kinds(monitor.check()) == ["low_success_rate"]
    client.error = ValueError("no figures today")
    (alert,) = monitor.check()
    assert alert["type"] == "stats_failed"
    assert "ValueError: no figures today" in alert["message"]
    client.error = ValueError("nor tomorrow")
    assert monitor.check() == []
    client.error = None
    # That the rate is low was told before, and did not end meanwhile.
    assert monitor.check() == []
    assert len(monitor.history) == 2
    client.error = ValueError("again")
    assert kinds(monitor.check()) == ["stats_failed"]


def test_stats_that_raise_from_the_start():
    client = Client()
    client.error = RuntimeError("not yet")
    with gwt.ClientMonitor(client) as monitor:
        assert monitor.is_monitoring
        assert kinds(monitor.get_metrics_summary()["recent_alerts"]) == ["stats_failed"]


@pytest.mark.parametrize("error", [gevent.Timeout(1), ValueError("x")])
def test_the_greenlet_survives_what_stats_raise(error):
    client = Client()
    with gwt.ClientMonitor(client, monitoring_interval=0.001) as monitor:
        client.error = error
        reads = client.reads
        eventually(lambda: client.reads > reads + 2)
        client.error = None
        metrics = len(monitor.history)
        eventually(lambda: len(monitor.history) > metrics)
        assert kinds(monitor.get_metrics_summary()["recent_alerts"]) == ["stats_failed"]


def test_a_timeout_of_the_callers_passes():
    client = Client()
    monitor = gwt.ClientMonitor(client)
    client.error = gevent.Timeout(1)
    with pytest.raises(gevent.Timeout):
        monitor.start()
    assert not monitor.is_monitoring


def test_stats_may_be_a_method_and_lack_parts():
    class Other:
        def __init__(self, figures):
            self.figures = figures

        def stats(self):
            return self.figures

    for figures in ({}, {"connections": {}}, {"connections": 5}, {"performance": None}):
        monitor = gwt.ClientMonitor(Other(figures))
        assert monitor.check() == []
        assert monitor.history[0]["stats"] == figures
    low = {"connections": {"attempted": 11, "success_rate": 0}}
    other = Other(low)
    assert kinds(gwt.ClientMonitor(other).check()) == ["low_success_rate"]
    other = Other([])
    (alert,) = gwt.ClientMonitor(other).check()
    assert "must be a mapping" in alert["message"]


@pytest.mark.parametrize("client", [None, 5, object(), gwt.WebTransportClient])
def test_what_is_no_client_is_refused_saying_what_is_missing(client):
    with pytest.raises(TypeError, match="stats"):
        gwt.ClientMonitor(client)


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), True, None, "5"])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match="monitoring_interval"):
        gwt.ClientMonitor(Client(), monitoring_interval=interval)


def test_history_and_alerts_are_bounded():
    client, moments = Client(), itertools.count()
    monitor = gwt.ClientMonitor(client, clock=lambda: next(moments))
    for round in range(500):
        client.set(20, round % 2, 0.0)
        monitor.check()
    assert len(monitor.history) == 120
    alerts = monitor.get_metrics_summary()["recent_alerts"]
    assert len(alerts) == 100
    for times in ([each["timestamp"] for each in kept] for kept in (monitor.history, alerts)):
        assert times == sorted(times) and times[-1] >= 740


def test_what_it_hands_out_is_the_callers_and_what_it_keeps_its_own():
    client = Client(attempted=20, rate=0.5)
    monitor = gwt.ClientMonitor(client)
    monitor.check()
    client.figures["connections"]["attempted"] = 21
    summary = monitor.get_metrics_summary()
    assert summary["latest_metrics"]["stats"]["connections"]["attempted"] == 20
    summary["latest_metrics"]["stats"]["connections"].clear()
    summary["recent_alerts"][0].clear()
    monitor.history[0].clear()
    again = monitor.get_metrics_summary()
    assert again["latest_metrics"]["stats"]["connections"]["attempted"] == 20
    assert kinds(again["recent_alerts"]) == ["low_success_rate"]


def test_it_looks_again_and_again_until_it_is_closed():
    client = Client()
    monitor = gwt.ClientMonitor(client, monitoring_interval=0.001)
    monitor.start()
    greenlet = monitor._greenlet
    monitor.start()
    assert monitor._greenlet is greenlet
    eventually(lambda: len(monitor.history) > 5)
    monitor.close()
    assert greenlet.ready() and not monitor.is_monitoring
    kept = len(monitor.history)
    monitor.close()
    monitor.start()
    assert monitor.is_monitoring and len(monitor.history) == kept + 1
    monitor.stop()


def test_each_alert_is_told_once_and_a_callback_that_raises_is_logged(caplog):
    told = []

    def tell(alert):
        told.append(alert)
        raise KeyError("not now")

    client = Client(attempted=20, rate=0.5, average=6.0)
    with (
        caplog.at_level(logging.ERROR, "gwt.client"),
        gwt.ClientMonitor(client, on_alert=tell) as monitor,
    ):
        assert monitor.is_monitoring
        assert told == monitor.get_metrics_summary()["recent_alerts"]
        assert monitor.check() == []
    assert kinds(told) == ["low_success_rate", "slow_connections"]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    with pytest.raises(TypeError, match="on_alert"):
        gwt.ClientMonitor(client, on_alert=5)


def test_a_callback_may_close_the_monitor():
    client = Client()
    monitor = gwt.ClientMonitor(
        client, monitoring_interval=0.001, on_alert=lambda _: monitor.close()
    )
    monitor.start()
    client.set(20, 0.5)
    eventually(lambda: not monitor.is_monitoring)
    assert kinds(monitor.get_metrics_summary()["recent_alerts"]) == ["low_success_rate"]


def test_close_does_not_wait_for_stats_that_wait():
    class Slow:
        asked = 0

        def stats(self):
            self.asked += 1
            if self.asked > 1:
                gevent.sleep(3600)
            return {}

    slow = Slow()
    with gwt.ClientMonitor(slow, monitoring_interval=0.001):
        eventually(lambda: slow.asked == 2)


@pytest.mark.parametrize("looked", [False, True])
def test_it_ends_when_nobody_has_it_any_more_and_keeps_no_client(looked):
    client = Client()
    reads = []
    client.on_read = reads.append
    monitor = gwt.ClientMonitor(client, monitoring_interval=0.001 if looked else 3600)
    monitor.start()
    greenlet, gone = monitor._greenlet, weakref.ref(client)
    eventually(lambda: not looked or len(reads) > 3)
    # By then it waits.
    gevent.sleep(0)
    del client, monitor
    gc.collect()
    assert gone() is None
    eventually(greenlet.ready)


def test_it_belongs_to_its_thread():
    refused = []

    def elsewhere():
        for call in (monitor.start, monitor.close):
            try:
                call()
            except RuntimeError:
                refused.append(call)

    with gwt.ClientMonitor(gwt.WebTransportClient()) as monitor:
        gevent.get_hub().threadpool.apply(elsewhere)
        assert len(refused) == 2 and monitor.is_monitoring


def test_killing_whoever_monitors_leaves_nothing():
    client = Client()

    def watch():
        with gwt.ClientMonitor(client):
            gevent.sleep(3600)

    job = spawn(watch)
    eventually(lambda: client.reads)
    job.kill()
