"""A hub that is blocked for longer than any timeout: what waits in its sockets is read first."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import gevent
import pytest
from gevent import monkey

from gwt import lifetime
from tests.helpers import eventually
from tests.helpers.live import connect, serving

# Blocks the hub, whatever was patched.
block = monkey.get_original("time", "sleep")

IDLE = 2.0


class Crowd:
    """Several clients of one server, all in this hub."""

    def __init__(self, stack, count=4, **server_options):
        ours = []

        def handler(session):
            ours.append(session)
            for stream in session:
                stream.write_all(stream.read_all())

        self.server = stack.enter_context(serving(handler, **server_options))
        self.clients = []
        for _ in range(count):
            session = connect(self.server, idle_timeout=server_options.get("idle_timeout", 30.0))
            stack.callback(session.abort)
            self.clients.append(session)
        eventually(lambda: len(ours) == count)
        self.sessions = [*self.clients, *ours]

    def speak(self):
        """Put a packet of every side into the socket of its peer, behind noise, and read none."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            # More than one wake-up reads.
            for _ in range(150):
                stranger.sendto(b"noise", self.server.address)
        for session in self.sessions:
            session.connection.protocol.quic.ping()
            session.connection.send_now()

    def echo(self):
        for session in self.clients:
            stream = session.create_bidirectional_stream()
            stream.write_all(b"still here")
            assert stream.read_all(timeout=5) == b"still here"

    @property
    def closed(self):
        return [s for s in self.sessions if s.connection.is_closed]


def stalled(crowd, seconds):
    gevent.sleep(0.1)
    crowd.speak()
    block(seconds)
    # The timers that the stall made late, and what waited.
    gevent.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [True, False])
def test_a_stall_longer_than_the_idle_timeout_drops_no_healthy_peer(guarded, monkeypatch):
    if not guarded:
        # That the stall would be the end otherwise.
        monkeypatch.setattr(lifetime, "_STALL", 1e9)
    with ExitStack() as stack:
        crowd = Crowd(stack, idle_timeout=IDLE)
        stalled(crowd, IDLE + 0.5)
        if not guarded:
            assert crowd.closed
            return
        assert not crowd.closed
        crowd.echo()
        for session in crowd.sessions:
            assert not session.connection.stats().get("internal_errors")


@pytest.mark.slow
def test_a_stall_longer_than_the_managers_idle_timeout_drops_no_healthy_peer():
    with ExitStack() as stack:
        # One connection: the timers of more would empty the socket before the reaper comes.
        crowd = Crowd(
            stack,
            1,
            connection_idle_timeout=1.0,
            connection_idle_check_interval=0.2,
            keep_alive=True,
        )
        stalled(crowd, 1.5)
        crowd.speak()
        gevent.sleep(0.3)
        assert not crowd.closed
        crowd.echo()


@pytest.mark.slow
@pytest.mark.parametrize("dead", [False, True])
def test_peers_that_said_nothing_are_asked_after_a_stall_before_they_are_dropped(dead):
    with ExitStack() as stack:
        crowd = Crowd(stack, 3, idle_timeout=IDLE)
        gevent.sleep(0.1)
        if dead:
            for session in crowd.clients:
                # Without a word.
                session.connection.fail(OSError("gone"))
        block(IDLE + 0.5)
        if dead:
            eventually(lambda: len(crowd.closed) == 6, timeout=5)
        else:
            gevent.sleep(1.5)
            assert not crowd.closed
            crowd.echo()
