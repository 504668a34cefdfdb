"""Sessions that share a connection: one that takes nothing does not stall the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import gevent
import pytest

import gwt
from tests.helpers import spawn
from tests.scale.peer import Peer, pattern, rest
from tests.scale.test_two_thousand import echo_datagram

MIB = 1024 * 1024
GIB = 1024 * MIB

pytestmark = [pytest.mark.slow, pytest.mark.deadline(60)]


@pytest.fixture
def server() -> Iterator[Peer]:
    with Peer.server() as peer:
        yield peer


@pytest.fixture
def connect(server: Peer) -> Iterator[object]:
    """Sessions on one connection; at the end those that are stuck are aborted."""
    with ExitStack() as stack:

        def make(path: str) -> gwt.WebTransportSession:
            session = gwt.connect(server.url + path, verify=False, share_connection=True)
            stack.callback(session.abort)
            return session

        yield make


def works(session: gwt.WebTransportSession) -> None:
    """Have much echoed on one stream, a little on many, and some datagrams."""
    stream = session.create_bidirectional_stream()
    data = pattern(0, 4 * MIB)
    writing = spawn(stream.write_all, data)
    assert stream.read_all(timeout=30) == data
    writing.get()
    for number in range(300):
        with session.create_bidirectional_stream() as short:
            short.write_all(b"%d" % number)
            assert short.read_all(timeout=30) == b"%d" % number
    for number in range(50):
        assert echo_datagram(session, b"%d" % number) == b"%d" % number


def test_two_sessions_share_a_connection(connect):
    first, second = connect("/echo"), connect("/echo")
    assert first.connection is second.connection
    works(first)
    works(second)


def test_a_server_session_that_takes_nothing_does_not_stall_its_neighbour(server, connect):
    stuck, working = connect("/ignore"), connect("/echo")
    assert stuck.connection is working.connection
    pouring = Pour(stuck)
    pouring.until_stuck()
    works(working)
    # It is still at it, and new sessions find room, too.
    assert not pouring.done
    works(connect("/echo"))


@pytest.mark.parametrize("streams", [1, 100])
def test_a_client_session_that_takes_nothing_does_not_stall_its_neighbour(server, connect, streams):
    stuck = connect(f"/pour/{streams}/{GIB}")
    working = connect("/echo")
    assert stuck.connection is working.connection
    rest(server)
    works(working)


def test_the_neighbour_works_while_the_flood_is_still_rising(server, connect):
    working = connect("/echo")
    stuck = connect("/ignore")
    assert stuck.connection is working.connection
    pouring = Pour(stuck)
    works(working)
    assert not pouring.done


class Pour:
    """Everything a session can send, from many greenlets, until nothing more goes."""

    def __init__(self, session: gwt.WebTransportSession) -> None:
        self.session = session
        self.sent = 0
        self.done = False
        for number in range(400):
            gevent.spawn(self._write, number % 2 == 0)
        gevent.spawn(self._datagrams)

    def _write(self, bidirectional: bool) -> None:
        session = self.session
        try:
            if bidirectional:
                stream = session.create_bidirectional_stream(timeout=None)
            else:
                stream = session.create_unidirectional_stream(timeout=None)
            while True:
                stream.write(bytes(16_384))
                self.sent += 16_384
        except gwt.StreamError:
            # Refused: it was more than its share.
            return
        except gwt.SessionError:
            self.done = True

    def _datagrams(self) -> None:
        while not self.session.is_closed:
            self.session.send_datagram(bytes(1000))
            gevent.sleep(0.001)

    def until_stuck(self) -> None:
        before = -1
        while before != self.sent:
            before = self.sent
            gevent.sleep(0.3)
