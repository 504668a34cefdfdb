"""Two thousand sessions from two thousand greenlets, at one time, against one server process."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

import gwt
from tests.helpers import eventually
from tests.scale.peer import Peer

SESSIONS = 2000


class Barrier:
    """Lets everybody go on once all have come."""

    def __init__(self, parties: int) -> None:
        self.missing = parties
        self.open = Event()

    def wait(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.open.set()
        self.open.wait()


def echo_datagram(session: gwt.WebTransportSession, data: bytes) -> bytes:
    """Datagrams get lost: send it until it comes back."""
    while True:
        session.send_datagram(data)
        try:
            return session.receive_datagram(timeout=2.0)
        except TimeoutError:
            continue


@pytest.mark.slow
@pytest.mark.deadline(180)
def test_two_thousand_sessions_from_two_thousand_greenlets_all_work_at_the_same_time():
    everybody_is_connected, everybody_is_done = Barrier(SESSIONS), Barrier(SESSIONS)
    counted = Event()

    def one(url: str, number: int) -> None:
        data = b"%d" % number
        # The default of ten seconds counts from here, and most of it would be the queue.
        with gwt.connect(url, verify=False, timeout=150) as session:
            everybody_is_connected.wait()
            stream = session.create_bidirectional_stream()
            stream.write_all(data)
            assert stream.read_all() == data
            assert echo_datagram(session, data) == data
            everybody_is_done.wait()
            counted.wait()

    with Peer.server() as server:
        greenlets = [gevent.spawn(one, f"{server.url}/echo", n) for n in range(SESSIONS)]
        everybody_is_done.open.wait()
        stats = server.ask("stats")
        assert stats["sessions"]["current_count"] == SESSIONS
        assert stats["connections"]["current_count"] == SESSIONS
        counted.set()
        gevent.joinall(greenlets, raise_error=True)
        eventually(lambda: server.ask("stats")["connections"]["current_count"] == 0)
        eventually(lambda: server.ask("stats")["handlers"] == 0)
        stats = server.ask("stats")
        assert stats["sessions"]["total_closed"] == SESSIONS
        # Neither side took offence, and nobody had to be turned away.
        assert not stats.get("handler_errors")
        assert not stats["udp"].get("connections_refused")
