"""Hostile peers over sockets: they end alone, are counted, and a neighbour never notices."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, contextmanager

import gevent
import pytest

from gwt.protocol import codes
from tests.helpers import eventually
from tests.helpers.live import connect, echo, serving
from tests.helpers.raw import HEADERS, connect_headers, frame, header_block, one_rtt
from tests.helpers.stranger import Stranger


@contextmanager
def neighbourhood(caplog, handler=echo, **options):
    """A server with a neighbour on it, who is the same afterwards, and nothing was logged."""
    caplog.set_level(logging.WARNING)
    with serving(handler, **options) as server, connect(server) as neighbour:
        stream = neighbour.create_bidirectional_stream()
        connection = server.connections.get_all_resources()[0]

        def alive():
            stream.write(b"still there?")
            answer = b""
            while len(answer) < 12:
                answer += stream.read(timeout=5)
            assert answer == b"still there?"

        alive()
        yield server, alive
        alive()
        assert not neighbour.is_closed and connection.closed is None
        assert connection.stats()["protocol_errors"] == 0
        assert server.stats()["udp"].get("receiver_errors", 0) == 0
        assert not caplog.records
        stream.finish()


def udp(server, key):
    return server.stats()["udp"].get(key, 0)


def test_garbage_is_dropped_and_counted(caplog):
    with neighbourhood(caplog) as (server, alive), Stranger(server) as stranger:
        before = udp(server, "datagrams_received")
        for number in range(200):
            stranger.socket.send(os.urandom(1 + number * 7))
        eventually(lambda: udp(server, "datagrams_received") >= before + 200)
        alive()
        assert udp(server, "unrouted") >= 150
        assert len(server.connections) == 1


def test_first_packets_that_cannot_be_opened_make_no_connections(caplog):
    with neighbourhood(caplog) as (server, alive), Stranger(server) as stranger:
        stranger.quic.connect(stranger.address, 0.0)
        ((first, _),) = stranger.quic.datagrams_to_send(0.0)
        for _ in range(50):
            stranger.socket.send(first[:6] + os.urandom(8) + first[14:])
        eventually(lambda: udp(server, "newcomers_damaged") == 50)
        alive()
        assert len(server.connections) == 1
        # Nobody was answered.
        with pytest.raises(TimeoutError):
            stranger.socket.settimeout(0.01)
            stranger.socket.recv(100)


def test_packets_for_a_neighbour_that_are_not_its_own_are_ignored(caplog):
    with neighbourhood(caplog) as (server, alive), Stranger(server) as stranger:
        (neighbour,) = server.connections.get_all_resources()
        address = neighbour.remote_address
        ignored = neighbour.stats()["packets_ignored"]
        for number in range(100):
            stranger.socket.send(
                b"\x40" + neighbour.protocol.quic.connection_id + os.urandom(20 + number)
            )
        eventually(lambda: neighbour.stats()["packets_ignored"] == ignored + 100)
        alive()
        assert neighbour.remote_address == address


def test_connection_that_breaks_a_rule_ends_alone_and_is_counted(caplog):
    with neighbourhood(caplog) as (server, alive), Stranger(server).connect() as stranger:
        stranger.session()
        stranger.packet(b"\x1e")
        stranger.turn(lambda: False)
        assert stranger.closed is not None and stranger.closed[0] == 0xA
        assert udp(server, "protocol_errors") == 1
        eventually(lambda: len(server.connections) == 1)
        alive()


def test_session_that_breaks_a_rule_ends_alone(caplog):
    with neighbourhood(caplog) as (server, alive), Stranger(server).connect() as stranger:
        session_id = stranger.session()
        stranger.quic.send_stream_data(session_id, b"\0\x05\x68\x43\x02xy")
        stranger.turn(lambda: session_id in stranger.resets)
        assert stranger.resets[session_id] == codes.H3_MESSAGE_ERROR
        assert stranger.closed is None and udp(server, "protocol_errors") == 0
        # The handler's end waits until the stranger has acknowledged ours.
        stranger.turn(lambda: server.stats()["handlers"] == 1)
        alive()


def test_sessions_asked_for_and_taken_back_run_few_handlers(caplog):
    ran = []

    def handler(session):
        ran.append(session)
        echo(session)

    with (
        neighbourhood(caplog, handler) as (server, alive),
        Stranger(server).connect() as stranger,
    ):
        while stranger.closed is None:
            session_id = stranger.ask()
            stranger.quic.reset_stream(session_id, 0x10C)
            stranger.quic.stop_stream(session_id, 0x10C)
            stranger.turn(lambda asked=session_id: asked in stranger.resets)
        assert stranger.closed[0] == codes.H3_EXCESSIVE_LOAD
        assert udp(server, "protocol_errors") == 1
        # The neighbour's, and no more than it may ask for in vain.
        assert len(ran) + server.stats().get("sessions_cancelled", 0) <= 1 + 256 + 16
        eventually(lambda: server.stats()["handlers"] == 1)
        alive()


def test_sessions_of_one_packet_that_are_taken_back_in_it_reach_no_handler(caplog):
    ran = []

    def handler(session):
        ran.append(session)
        echo(session)

    with (
        neighbourhood(caplog, handler) as (server, _),
        Stranger(server, {0x33: 1, 0x2C7CF000: 1, 0x2B61: 9, 0x2B64: 9, 0x2B65: 9}) as stranger,
    ):
        stranger.connect()
        asked = [stranger.quic.get_next_available_stream_id() + 4 * n for n in range(10)]
        frames = b""
        for stream_id in asked:
            request = frame(HEADERS, header_block(connect_headers()))
            frames += b"\x0a" + bytes([stream_id, len(request)]) + request
            frames += b"\x04" + bytes([stream_id, 5, len(request)])
        stranger.packet(frames)
        eventually(lambda: server.stats().get("sessions_cancelled", 0) == 10)
        assert len(ran) == 1


def test_datagrams_that_nobody_receives_are_bounded_and_counted(caplog):
    sessions = []

    def handler(session):
        sessions.append(session)
        session.wait_closed() if len(sessions) > 1 else echo(session)

    with (
        neighbourhood(caplog, handler) as (server, alive),
        Stranger(server).connect() as stranger,
    ):
        session_id = stranger.session()
        flood = b"\x31\x02" + bytes([session_id // 4]) + b"x"
        for _ in range(40):
            stranger.packet(flood * 250)
        eventually(lambda: sessions[1].stats()["datagrams_received"] == 10_000)
        assert sessions[1].stats()["datagrams_dropped"] == 10_000 - 256
        assert len(sessions[1]._datagrams) == 256
        alive()


def test_half_open_connections_are_given_up_and_counted(caplog):
    with neighbourhood(caplog, handshake_timeout=0.2) as (server, alive), ExitStack() as stack:
        for _ in range(20):
            stranger = stack.enter_context(Stranger(server))
            stranger.quic.connect(stranger.address, 0.0)
            stranger.flush()
        eventually(lambda: len(server.connections) > 1)
        alive()
        eventually(lambda: udp(server, "handshakes_timed_out") == 20)
        assert len(server.connections) == 1


def test_pieces_with_holes_from_many_streams_leave_the_neighbour_alone(caplog):
    with neighbourhood(caplog) as (server, alive), Stranger(server).connect() as stranger:
        stranger.session()
        for packet in range(3):
            payload = b"".join(
                b"\x0e\x06" + (0x4000 | 2 * (packet * 100 + n) + 1).to_bytes(2, "big") + b"\x01x"
                for n in range(100)
            )
            stranger.packet(payload)
        stranger.turn(lambda: False)
        assert stranger.closed is not None and stranger.closed[0] == codes.H3_EXCESSIVE_LOAD
        alive()


def test_late_packets_of_a_connection_that_ended_harm_nobody(caplog):
    with neighbourhood(caplog) as (server, alive), Stranger(server).connect() as stranger:
        stranger.session()
        late = [data for _ in range(5) for data in one_rtt(stranger.quic, b"\x01")]
        stranger.packet(b"\x1e")
        stranger.turn(lambda: False)
        for data in late:
            stranger.socket.send(data)
        gevent.sleep(0)
        alive()
