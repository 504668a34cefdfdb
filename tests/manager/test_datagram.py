"""DatagramApplicationServer over loopback: an instance a peer, and floods that only evict."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import contextmanager

import gevent
import pytest

import gwt
from gwt.manager import DatagramApplicationServer
from gwt.net.datagrams import Datagram
from tests.helpers import eventually
from tests.manager.fakes import HandClock


def blocking_echo(scope, receive, send):
    while True:
        send({"type": "datagram.send", "data": receive()["data"]})


async def async_echo(scope, receive, send):
    while True:
        message = await receive()
        await asyncio.sleep(0)
        await send({"type": "datagram.send", "data": message["data"]})


BOTH = pytest.mark.parametrize("echo", [blocking_echo, async_echo])


@contextmanager
def peer(server):
    with gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(server.address)
        sock.settimeout(5)
        yield sock


@BOTH
class TestEcho:
    @pytest.mark.parametrize("size", [0, 5, 65_507])
    def test_datagrams_come_back_whole(self, echo, size):
        with DatagramApplicationServer(echo) as server, peer(server) as sock:
            data = bytes(index % 251 for index in range(size))
            sock.send(data)
            assert sock.recv(65_535) == data

    def test_each_peer_has_an_instance(self, echo):
        with DatagramApplicationServer(echo) as server:
            with peer(server) as one, peer(server) as other:
                for sock, data in ((one, b"1"), (other, b"2"), (one, b"3")):
                    sock.send(data)
                    assert sock.recv(10) == data
                peers = {one.getsockname(), other.getsockname()}
                assert set(server.application_instances) == peers
            assert server.stats()["created"] == 2
            assert server.stats()["datagrams"]["received"] == 3
            assert server.stats()["waiting"] == 0
        assert server.address is None

    def test_it_can_be_started_again(self, echo):
        server = DatagramApplicationServer(echo, "127.0.0.1:0")
        for _ in range(2):
            server.start()
            server.start()
            with peer(server) as sock:
                sock.send(b"x")
                assert sock.recv(10) == b"x"
            server.stop()
            server.stop()

    def test_run_listens_and_closes(self, echo):
        server = DatagramApplicationServer(echo)
        running = gevent.spawn(server.run)
        eventually(lambda: server.address)
        with peer(server) as sock:
            sock.send(b"x")
            assert sock.recv(10) == b"x"
        running.kill()
        assert server.address is None


def test_a_crash_costs_one_peer_one_instance(caplog):
    def crashing(scope, receive, send):
        raise SystemExit(receive()["data"])

    with DatagramApplicationServer(crashing) as server, peer(server) as sock:
        for number in range(3):
            sock.send(b"boom")
            eventually(lambda n=number: server.stats()["failed"] == n + 1)
    assert len(caplog.records) == 3


def test_scope_and_messages():
    seen = []

    def application(scope, receive, send):
        seen.extend([scope, receive()])
        send({"data": b"no type is needed"})

    with DatagramApplicationServer(application, "0.0.0.0:0") as server:
        host, port = "127.0.0.9", server.address[1]
        with gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5)
            sock.sendto(b"x", (host, port))
            assert sock.recvfrom(100) == (b"no type is needed", (host, port))
            here = sock.getsockname()
    assert seen == [
        {"type": "datagram", "peer": here, "server": (host, port)},
        {"type": "datagram.receive", "data": b"x", "peer": here},
    ]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"type": "datagram.send", "data": bytes(65_508)}, gwt.DatagramTooLarge),
        ({"type": "websocket.send", "data": b""}, ValueError),
    ],
)
def test_what_cannot_be_sent_is_the_applications_error(message, error):
    failed = []

    def application(scope, receive, send):
        receive()
        with pytest.raises(error):
            send(message)
        failed.append(True)

    with DatagramApplicationServer(application) as server, peer(server) as sock:
        sock.send(b"x")
        eventually(lambda: failed)


def forged(number, data=b"x" * 1000):
    return Datagram(data, (f"192.0.2.{number % 256}", 1024 + number // 256), None)


class TestFloods:
    """Datagrams of any number of forged addresses; handed in without a network, which is slower."""

    @BOTH
    def test_many_addresses_only_evict(self, echo):
        dropped = []
        with DatagramApplicationServer(echo, max_applications=50, max_queue=4) as server:
            server.application_send = lambda scope, message: None
            server.application_evicted = lambda scope_id, scope, pending: dropped.append(pending)
            for number in range(2000):
                server._deliver(forged(number))
                assert len(server.application_instances) <= 50
                assert server.stats()["leaving"] <= 50
                assert server.waiting <= 50 * 4 * 1000
                if number % 64 == 0:
                    gevent.sleep(0)
            eventually(lambda: server.waiting == 0)
            assert len(dropped) == 1950
            with peer(server) as sock:
                del server.application_send
                sock.send(b"still served")
                assert sock.recv(100) == b"still served"

    def test_the_queue_of_a_peer_is_bounded(self):
        with DatagramApplicationServer(
            lambda scope, receive, send: gevent.sleep(100), max_queue=3
        ) as server:
            for _ in range(10):
                server._deliver(forged(1))
            assert server.counters["datagrams_dropped"] == 7
            assert server.waiting == 3000

    def test_all_together_are_bounded(self):
        with DatagramApplicationServer(
            lambda scope, receive, send: gevent.sleep(100), max_waiting=5000
        ) as server:
            for number in range(10):
                server._deliver(forged(number))
            assert server.counters["datagrams_dropped"] == 5
            assert server.waiting == 5000
            server.delete_oldest_application_instance()
            assert server.waiting == 4000

    def test_silent_peers_are_forgotten(self):
        clock = HandClock()
        with DatagramApplicationServer(blocking_echo, idle_timeout=60.0, clock=clock) as server:
            server._deliver(forged(1))
            clock.turn(61)
            server.check_applications()
            assert not server.application_instances


def test_an_address_in_use_is_an_error_of_start(caplog):
    with DatagramApplicationServer(blocking_echo) as server:
        host, port = server.address
        with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="Cannot listen on UDP"):
            DatagramApplicationServer(blocking_echo, f"{host}:{port}").start()
