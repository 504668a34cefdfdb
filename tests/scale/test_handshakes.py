"""Handshakes that nobody finishes: what they cost a server, and who still gets in meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

import gwt
from gwt.net import udpsocket
from gwt.protocol.quic import Quic
from tests.helpers import eventually
from tests.helpers.pair import SERVER, quic_options
from tests.scale.peer import Peer

MIB = 1024 * 1024
STRANGERS = 2000

# What all of them together may cost.
BOUND = {"off": 128 * MIB, "auto": 32 * MIB}

# Longer than it takes to begin them all, where that is to be.
TIMEOUT = {"off": 20.0, "auto": 3.0}

pytestmark = [pytest.mark.slow, pytest.mark.deadline(120)]


class Strangers:
    """Two thousand addresses that begin handshakes, and never say another word."""

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        # Bound to no address, so that each packet may leave from another one. It is never read.
        self._sock = gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("", 0))

    def begin(self, hellos: list[bytes], came: Callable[[], int]) -> None:
        """Send each from an address of its own, as fast as the server takes them."""
        before = came()
        for number, hello in enumerate(hellos):
            if number % 100 == 0:
                eventually(lambda n=number: came() - before >= n - 100, 20)
            host = f"127.1.{number // 250}.{number % 250 + 1}"
            self._sock.sendmsg([hello], udpsocket.source(socket.AF_INET, host), 0, self._server)
        eventually(lambda: came() - before >= len(hellos), 20)

    def close(self) -> None:
        self._sock.close()


def hellos(count: int) -> list[bytes]:
    """First packets of so many clients."""
    options = quic_options(gwt.ClientConfig(), is_client=True)
    found = []
    for _ in range(count):
        client = Quic(options)
        client.connect(SERVER, 1.0)
        ((hello, _),) = client.poll(1.0)
        found.append(hello)
    return found


@pytest.fixture
def strangers() -> Iterator[Callable[[Peer], Strangers]]:
    made: list[Strangers] = []

    def make(server: Peer) -> Strangers:
        made.append(Strangers(server.port))
        return made[-1]

    yield make
    for each in made:
        each.close()


def udp(server: Peer, *keys: str) -> Any:
    stats = server.ask("stats")["udp"]
    return sum(stats.get(key, 0) for key in keys)


def echo(server: Peer) -> None:
    with gwt.connect(f"{server.url}/echo", verify=False) as session:
        stream = session.create_bidirectional_stream()
        stream.write_all(b"x" * 10_000)
        assert stream.read_all(timeout=10) == b"x" * 10_000


@pytest.mark.parametrize("retry", ["off", "auto"])
def test_two_thousand_handshakes_that_nobody_finishes(retry, strangers):
    first, second = hellos(STRANGERS), hellos(STRANGERS // 2)
    with Peer.server(retry=retry, handshake_timeout=TIMEOUT[retry]) as server:
        echo(server)
        idle = server.ask("memory")["now"]
        crowd = strangers(server)
        for people in (first, second):
            crowd.begin(people, lambda: udp(server, "newcomers", "retries_sent"))
            unfinished = udp(server, "handshakes_unfinished")
            # Somebody who means it gets in, also behind all these.
            echo(server)
            grown = server.ask("memory")["peak"] - idle
            # The second crowd finds the place that the first one left.
            assert grown <= BOUND[retry], f"{grown / MIB:.1f} MiB for {unfinished}"
            # On a machine that is busy the first of them are given up before the last begin.
            least, most = (len(people) // 2, len(people)) if retry == "off" else (1, 256)
            assert least <= unfinished <= most
            if people is first:
                # They are given up in time, all of them.
                eventually(lambda: not server.ask("stats")["connections"]["current_count"], 60)
        assert not udp(server, "receiver_errors", "newcomers_dropped")
