"""The driver of one connection, on a clock and a network that the test turns by hand."""

from __future__ import annotations

from collections import deque

import pytest

import gwt
from gwt.budget import send_budget
from gwt.connection import ConnectionState, WebTransportConnection
from gwt.protocol import events
from gwt.protocol.quic import Quic
from gwt.protocol.webtransport import WebTransport
from tests.helpers.pair import CLIENT, SERVER, quic_options


class Endpoint:
    """In place of a socket: what is sent waits until the test delivers it."""

    closed = blocked = behind = False
    address = ("192.0.2.1", 1)

    def __init__(self):
        self.outbox = deque()
        self.inbox = deque()
        self.waiting = []
        self.owner = None
        self.drains = 0

    def send(self, datagrams, address, local=None):
        self.outbox.extend(datagrams)

    def flush_when_writable(self, receiver):
        self.waiting.append(receiver)

    def catch_up(self):
        self.drains += 1
        while self.inbox:
            data, address = self.inbox.popleft()
            self.owner.receive([data], address, None)
            self.owner.send_now()


class World:
    """A client and a server connection; time passes when the test says so."""

    def __init__(self, client_options=None, server_options=None):
        self.now = 1000.0
        self.ends = []
        self.requests = []
        for config, is_client, keep_alive in (
            (gwt.ClientConfig(**(client_options or {})), True, True),
            (gwt.ServerConfig(**(server_options or {})), False, False),
        ):
            endpoint = Endpoint()
            self.ends.append(endpoint)
            if is_client:
                quic = Quic(quic_options(config, is_client=True), budget=send_budget())
                endpoint.owner = self._connection(endpoint, quic, config, keep_alive)
                endpoint.owner.start_client(SERVER)
                continue
            first = self.first = self.ends[0].outbox[0]
            quic = Quic(
                quic_options(config, is_client=False),
                budget=send_budget(),
                original_destination_connection_id=first[6 : 6 + first[5]],
            )
            endpoint.owner = self._connection(endpoint, quic, config, keep_alive)
            endpoint.owner.on_request = lambda connection, event: self.requests.append(event)
        self.client, self.server = (endpoint.owner for endpoint in self.ends)

    def _connection(self, endpoint, quic, config, keep_alive):
        self.routes = {}
        return WebTransportConnection(
            endpoint,
            WebTransport(quic, config),
            self.routes,
            config,
            keep_alive=keep_alive,
            clock=lambda: self.now,
        )

    def exchange(self, deliver=True):
        """Move what is under way, and let the timers that are due fire, until nothing is."""
        for _ in range(1000):
            moved = False
            for here, there, source in ((0, 1, CLIENT), (1, 0, SERVER)):
                while self.ends[here].outbox:
                    self.ends[there].inbox.append((self.ends[here].outbox.popleft(), source))
                    moved = True
                if deliver and self.ends[there].inbox:
                    self.ends[there].catch_up()
                    moved = True
            for end in self.ends:
                timer = end.owner._timer
                if timer.deadline is not None and timer.deadline <= self.now:
                    end.owner._on_timer()
                    moved = True
            if not moved:
                return
        raise AssertionError("never comes to rest")

    def pass_time(self, seconds, step=0.01, deliver=True):
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + step)
            self.exchange(deliver)

    def close(self):
        for end in self.ends:
            end.owner.fail(OSError("the test is over"))
            # Of a closing period. Time stands still from now on: the loop would wait for its end.
            end.owner._timer.close()


@pytest.fixture
def world():
    made = []

    def make(**options):
        made.append(World(**options))
        made[-1].pass_time(0.2)
        assert made[-1].client.state is ConnectionState.CONNECTED
        return made[-1]

    yield make
    for each in made:
        each.close()
        assert send_budget().buffered == 0


def test_connection_ids_lead_to_the_connection_until_it_is_gone(world):
    w = world()
    # More than one: the peer may use another when it moves.
    assert len(w.server.connection_ids) > 1
    assert all(w.routes[cid] is w.server for cid in w.server.connection_ids)
    gone = []
    w.server.on_gone(lambda: gone.append(True))
    w.server.close(0x105, "bye")
    assert w.server.is_closed and not gone
    w.pass_time(2)
    assert gone and not w.routes
    assert w.client.is_closed
    assert (w.client.closed.code, w.client.closed.reason) == (0x105, "bye")


def test_the_end_is_told_once_and_at_once_to_the_late(world):
    w = world()
    told = []
    w.client.on_end(told.append)
    w.client.close()
    w.client.close()
    w.client.on_end(told.append)
    assert told == [w.client, w.client]
    w.client.wait_closed()


def test_a_quiet_connection_is_kept_alive_by_pings(world):
    w = world(client_options={"idle_timeout": 6.0})
    w.pass_time(30, step=0.1)
    assert not w.client.is_closed and not w.server.is_closed
    assert w.now - w.server.last_active < 3


def test_a_peer_that_vanishes_is_given_up_after_the_idle_timeout(world):
    w = world(client_options={"idle_timeout": 6.0})
    w.pass_time(20, step=0.1, deliver=False)
    assert w.client.is_closed and w.client.closed.reason == "Idle timeout"


def test_after_a_stall_waiting_packets_go_before_time_outs(world):
    w = world(client_options={"idle_timeout": 6.0})
    # Both hubs are blocked for a minute; each other's packets wait in the sockets.
    for end in w.ends:
        end.owner.protocol.quic.ping()
        end.owner.send_now()
    for here, there, source in ((0, 1, CLIENT), (1, 0, SERVER)):
        while w.ends[here].outbox:
            w.ends[there].inbox.append((w.ends[here].outbox.popleft(), source))
    w.now += 60
    for end in w.ends:
        end.owner._on_timer()
        assert end.drains
    assert not w.client.is_closed and not w.server.is_closed
    w.pass_time(1)
    assert not w.client.is_closed and not w.server.is_closed


def test_a_socket_that_is_behind_is_read_for_a_bounded_time_before_time_outs(world):
    w = world(client_options={"idle_timeout": 6.0})
    w.now += 7
    w.ends[0].behind = True
    for _ in range(3):
        w.client._on_timer()
        assert not w.client.is_closed
        # It fires again in the next turn.
        assert w.client._timer.deadline <= w.now
        w.now += 0.4
    w.client._on_timer()
    assert w.client.is_closed


def test_nothing_is_sent_while_the_socket_is_full(world):
    w = world()
    w.ends[0].blocked = True
    w.client.protocol.quic.ping()
    w.client.send_now()
    assert w.ends[0].waiting == [w.client] and not w.ends[0].outbox
    w.ends[0].blocked = False
    w.client.send_now()
    assert w.ends[0].outbox


def test_a_handshake_that_is_not_completed_is_given_up():
    w = World()
    try:
        w.client.handshake_deadline = w.now + 5
        w.pass_time(4.9, step=0.1, deliver=False)
        assert w.client.state is ConnectionState.CONNECTING and not w.client.is_closed
        w.pass_time(0.2, step=0.1, deliver=False)
        assert w.client.is_closed
    finally:
        w.close()


def test_an_error_of_the_protocol_ends_that_connection_only_and_is_logged_once(
    world, monkeypatch, caplog, eventually_logged
):
    w = world()

    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(w.server.protocol, "receive_datagrams", broken)
    w.client.protocol.quic.ping()
    w.client.send_now()
    w.exchange()
    assert w.server.is_closed
    assert w.server.stats()["internal_errors"] == 1
    eventually_logged("a bug")
    assert caplog.text.count("Traceback") == 1


@pytest.fixture
def eventually_logged(caplog):
    from tests.helpers import eventually

    return lambda text: eventually(lambda: text in caplog.text)


def test_events_of_sessions_that_are_gone_are_ignored(world):
    w = world()
    for event in (
        events.StreamOpened(0, 1),
        events.StreamDataReceived(1, b"x", False),
        events.DatagramReceived(0, b"x"),
        events.StreamReset(1, 0),
        events.StreamStopped(1, 0),
        events.StreamFinished(1),
        events.StreamWritable(1),
        events.SessionDraining(0),
        events.SessionEnded(0, 0, "", True),
        events.SessionAccepted(0, None, []),
        events.SessionRefused(0, 404, None, []),
        events.StreamAvailable(0),
    ):
        w.client._dispatch(event)
    assert not w.client.is_closed


def test_statistics_have_the_documented_keys(world):
    stats = world().client.stats()
    assert {
        "rtt",
        "congestion_window",
        "bytes_in_flight",
        "frames_lost",
        "bytes_sent",
        "bytes_received",
        "datagrams_dropped",
        "sessions",
    } <= set(stats)


def test_what_goes_to_several_addresses_goes_to_each_in_order(world, monkeypatch):
    w = world()
    sent = []
    monkeypatch.setattr(
        w.ends[1], "send", lambda data, address, local=None: sent.append((data, address))
    )
    elsewhere = ("198.51.100.9", 9)
    w.server._send([(b"1", CLIENT), (b"2", CLIENT), (b"probe", elsewhere), (b"3", CLIENT)])
    assert sent == [([b"1", b"2"], CLIENT), ([b"probe"], elsewhere), ([b"3"], CLIENT)]


def test_the_peer_is_where_quic_says_it_is(world):
    w = world()
    elsewhere = ("198.51.100.9", 9)
    assert w.server.remote_address == CLIENT
    # Of no use: nobody who does not have the keys moves a connection.
    w.server.receive([b"\x40" + w.server.protocol.quic.connection_id + bytes(60)], elsewhere, "::1")
    assert w.server.remote_address == CLIENT
    assert not w.server.stats().get("migrations")
    w.client.protocol.quic.ping()
    w.client.send_now()
    w.server.receive(list(w.ends[0].outbox), elsewhere, None)
    assert w.server.remote_address == elsewhere
    assert w.server.stats()["migrations"] == 1


def keeps_its_connection(client):
    """Let a client of ours leave its connection open, as Chromium does."""
    client.unused_timeout = 1000.0
    client._close_if_unused = lambda: None


def test_a_server_gives_up_a_connection_that_has_no_session(world):
    """Kept alive by its client or not: it is there for sessions."""
    w = world()
    w.server.unused_timeout = 15.0
    w.server.note_unused()
    w.pass_time(14.5, step=0.1)
    assert not w.server.is_closed
    w.pass_time(1, step=0.1)
    assert w.server.is_closed
    closed = w.client.closed
    assert closed.remote and closed.application and closed.code == 0x100


def test_a_connection_with_a_session_is_not_given_up_and_its_end_begins_the_time_again(world):
    w = world()
    keeps_its_connection(w.client)
    w.server.unused_timeout = 15.0
    w.server.note_unused()
    session_id = w.client.protocol.open_session("example.test", "/")
    w.client.send_now()
    w.pass_time(0.1)
    (request,) = w.requests
    session = gwt.WebTransportSession(w.server, request.session_id, path="/", headers=[])
    w.server.add_session(session)
    assert w.server.protocol.accept_session(request.session_id)
    w.server.pump()
    w.pass_time(60, step=0.2)
    assert not w.server.is_closed
    w.client.protocol.close_session(session_id)
    w.client.send_now()
    w.pass_time(1)
    assert not w.server.sessions and not w.server.is_closed
    w.pass_time(15, step=0.2)
    assert w.server.is_closed


def test_a_connection_whose_session_was_rejected_is_not_given_up_before_the_answer(world):
    w = world()
    keeps_its_connection(w.client)
    w.server.unused_timeout = 15.0
    w.server.note_unused()
    w.client.protocol.open_session("example.test", "/")
    w.client.send_now()
    w.pass_time(0.1)
    (request,) = w.requests
    session = gwt.WebTransportSession(w.server, request.session_id, path="/", headers=[])
    w.server.add_session(session)
    # Middleware thinks about it for a while.
    w.pass_time(20, step=0.2)
    w.server.reject(session, 403)
    w.pass_time(0.2)
    assert not w.server.is_closed
    w.pass_time(16, step=0.2)
    assert w.server.is_closed


def test_routes_are_as_many_as_a_peer_may_have_ids_however_often_it_changes_them(world):
    w = world()
    routes = w.routes
    quic = w.client.protocol.quic._quic
    seen = set(routes)
    for _ in range(200):
        quic.change_connection_id()
        w.client.send_now()
        w.pass_time(0.05)
        seen |= set(routes)
        assert set(routes) == w.server.connection_ids
        assert len(routes) <= 9
    assert len(seen) > 200 and not w.server.is_closed
    w.server.close()
    w.pass_time(1)
    assert not routes
