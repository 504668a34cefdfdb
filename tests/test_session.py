"""Sessions over sockets: opening, datagrams, closing from either side and in any way."""

from __future__ import annotations

import re
import traceback

import gevent
import pytest

import gwt
from tests.helpers import eventually, spawn
from tests.helpers.live import connect, echo, pair, serving


def test_both_ends_know_each_other():
    with pair(path="/room") as (client, server):
        assert client.is_ready and server.is_ready
        assert client.state is gwt.SessionState.CONNECTED
        assert client.path == server.path == "/room"
        assert client.remote_address == server.local_address
        assert server.remote_address[0] == "127.0.0.1"
        assert client.session_id != server.session_id
        assert client.stream_id == server.stream_id == 0
        assert client in client.connection.sessions
        assert "connected" in repr(client)


@pytest.mark.parametrize("closer", [0, 1])
def test_a_close_arrives_with_code_and_reason(closer):
    with pair() as ends:
        ends[closer].close(4242, "göödbye")
        other = ends[1 - closer]
        other.wait_closed(timeout=5)
        assert (other.close_code, other.close_reason) == (4242, "göödbye")
        with pytest.raises(gwt.SessionClosed) as info:
            other.accept_stream()
        assert info.value.code == 4242 and info.value.remote
        with pytest.raises(gwt.SessionClosed) as info:
            ends[closer].send_datagram(b"x")
        assert not info.value.remote


def test_closing_twice_is_closing_once():
    with pair() as (client, server):
        client.close(1, "first")
        client.close(2, "second")
        server.wait_closed(timeout=5)
        assert server.close_code == 1


def test_two_greenlets_may_close_at_once():
    with pair() as (client, _server):
        closers = [spawn(client.close, code) for code in (1, 2)]
        for closer in closers:
            closer.get(timeout=5)
        assert client.is_closed


def test_every_blocked_call_is_woken_by_the_end():
    with pair(max_incoming_streams=8) as (client, server):
        stream = client.create_bidirectional_stream()
        held = [client.create_bidirectional_stream() for _ in range(3)]

        def fill():
            while True:
                stream.write(b"x" * 100_000)

        waiting = [
            spawn(client.accept_stream),
            spawn(client.receive_datagram),
            spawn(stream.read),
            spawn(fill),
            spawn(lambda: [client.create_bidirectional_stream(timeout=20) for _ in range(9)]),
        ]
        iterating = [spawn(list, client), spawn(list, client.incoming_datagrams())]
        gevent.sleep(0)
        eventually(lambda: stream.bytes_sent > 500_000)
        server.abort(5)
        for task in waiting:
            with pytest.raises(gwt.SessionClosed) as info:
                task.get(timeout=5)
            assert info.value.code == 5
        for task in iterating:
            assert task.get(timeout=5) == []
        assert held[0].is_closed


def test_close_loses_nothing_that_was_written():
    data = bytes(range(256)) * 1000
    with pair() as (client, server):
        for _ in range(3):
            client.create_unidirectional_stream().write(data)
        readers = [spawn(server.accept_stream(timeout=5).read_all) for _ in range(3)]
        client.close(0, "done")
        assert [reader.get(timeout=10) == data for reader in readers] == [True] * 3
        server.wait_closed(timeout=5)
        assert server.close_reason == "done"


def test_what_arrived_before_the_end_can_still_be_read():
    with pair() as (client, server):
        whole = client.create_unidirectional_stream()
        whole.write_all(b"whole")
        client.send_datagram(b"datagram")
        stream = server.accept_stream(timeout=5)
        eventually(lambda: stream.bytes_received == 5 and server.datagrams_received)
        client.close()
        server.wait_closed(timeout=5)
        assert stream.read_all() == b"whole"
        assert server.receive_datagram() == b"datagram"
        with pytest.raises(gwt.SessionClosed):
            server.receive_datagram()


def test_a_stream_cut_by_the_end_gives_what_it_has_and_then_the_reason():
    with pair() as (client, server):
        client.create_unidirectional_stream().write(b"part")
        stream = server.accept_stream(timeout=5)
        eventually(lambda: stream.bytes_received == 4)
        client.abort(3)
        server.wait_closed(timeout=5)
        assert stream.read() == b"part"
        with pytest.raises(gwt.SessionClosed) as info:
            stream.read()
        assert info.value.code == 3


def test_close_is_bounded_when_the_peer_does_not_read(caplog):
    with pair() as (client, server):
        stream = client.create_unidirectional_stream()
        with pytest.raises(TimeoutError):
            stream.write(b"x" * 5_000_000, timeout=0.2)
        client.close(timeout=0.3)
        assert client.is_closed
        assert client.connection.stats()["streams_reset_at_close"] == 1
        assert "not acknowledged" in caplog.text
        server.wait_closed(timeout=5)


def test_streams_that_close_gives_up_make_one_line_of_the_log(caplog):
    with pair() as (client, server):
        for _ in range(3):
            with pytest.raises(TimeoutError):
                client.create_unidirectional_stream().write(b"x" * 5_000_000, timeout=0.05)
        client.close(timeout=0.1)
        assert client.connection.stats()["streams_reset_at_close"] == 3
        (line,) = [record.getMessage() for record in caplog.records]
        assert re.fullmatch(
            rf"Closing {client.id} reset 3 streams: \d{{5,}} bytes were not acknowledged "
            r"within 0\.1 s\.",
            line,
        )
        server.wait_closed(timeout=5)


def test_an_end_that_nobody_acknowledged_is_not_called_bytes(caplog, monkeypatch):
    with pair() as (client, _):
        stream = client.create_unidirectional_stream()
        stream.write(b"all")
        stream.flush(timeout=5)
        with monkeypatch.context() as lost:
            lost.setattr(client.connection, "_send", lambda outgoing: None)
            stream.close(timeout=0.05)
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == (
            f"Closing stream {stream.id} reset 1 stream: the end was not acknowledged within "
            "0.05 s."
        )


def test_what_ended_a_session_is_raised_to_each_with_a_traceback_of_its_own():
    with pair() as (client, server):
        stream = client.create_bidirectional_stream()
        waits = [client.accept_stream, client.receive_datagram]
        waiting = [gevent.spawn(outcome, wait) for wait in waits for _ in range(20)]
        gevent.sleep(0)
        server.connection.close(7, "enough")
        client.wait_closed(timeout=5)
        errors = [task.get(timeout=5) for task in waiting]
        late = [stream.read, stream.flush, lambda: stream.write(b"late"), client.drain]
        errors += [outcome(call) for call in late for _ in range(20)]
        assert len({id(error) for error in errors}) == len(errors)
        for error in errors:
            assert isinstance(error, gwt.SessionClosed)
            assert error.__cause__ is client.connection.closed
            # outcome(), the method that was called, and what it called.
            assert len(traceback.extract_tb(error.__traceback__)) <= 4


def outcome(function, *args):
    try:
        function(*args)
    except gwt.GwtError as exc:
        return exc


def test_leaving_with_by_an_exception_does_not_wait():
    with serving(echo) as server:
        with pytest.raises(KeyError), connect(server) as session:
            session.create_bidirectional_stream().write(b"x")
            raise KeyError
        assert session.is_closed


def test_datagrams_go_both_ways_and_too_large_ones_are_refused_at_once():
    with pair() as (client, server):
        for sender, receiver in ((client, server), (server, client)):
            limit = sender.max_datagram_size
            assert limit > 1100
            sender.send_datagram(b"x" * limit)
            assert receiver.receive_datagram(timeout=5) == b"x" * limit
            with pytest.raises(gwt.DatagramTooLarge) as info:
                sender.send_datagram(b"x" * (limit + 1))
            assert (info.value.size, info.value.limit) == (limit + 1, limit)
            sender.send_datagram(b"")
            assert receiver.receive_datagram(timeout=5) == b""


def test_datagrams_that_nobody_receives_are_dropped_oldest_first_and_counted():
    with pair(datagram_queue=4) as (client, server):
        for index in range(10):
            client.send_datagram(b"%d" % index)
        eventually(lambda: server.datagrams_received == 10)
        assert [server.receive_datagram() for _ in range(4)] == [b"6", b"7", b"8", b"9"]
        assert server.stats()["datagrams_dropped"] == 6
        with pytest.raises(TimeoutError):
            server.receive_datagram(timeout=0.01)


def test_both_ends_export_the_same_keying_material_while_the_session_is_open():
    with pair() as (client, server):
        material = client.export_keying_material("label", 64, b"context")
        assert material == server.export_keying_material(b"label", 64, b"context")
        assert material != client.export_keying_material("label", 64)
        with pytest.raises(ValueError, match="Between 1 and"):
            client.export_keying_material("label", 0)
        client.close()
        with pytest.raises(gwt.SessionClosed):
            client.export_keying_material("label", 64)


def test_drain_asks_the_peer_to_finish_and_opens_nothing_more():
    with pair() as (client, server):
        server.drain()
        eventually(lambda: client.state is gwt.SessionState.DRAINING)
        assert client.is_ready
        stream = client.create_bidirectional_stream()
        with pytest.raises(gwt.SessionError, match="drained"):
            server.create_bidirectional_stream()
        stream.write_all(b"last words")
        assert server.accept_stream(timeout=5).read_all(timeout=5) == b"last words"


def test_accepting_by_kind_leaves_the_other_kind_in_its_place():
    with pair() as (client, server):
        client.create_unidirectional_stream().write_all(b"uni")
        client.create_bidirectional_stream().write_all(b"bidi")
        assert server.accept_bidirectional_stream(timeout=5).read_all(timeout=5) == b"bidi"
        assert server.accept_unidirectional_stream(timeout=5).read_all(timeout=5) == b"uni"
        with pytest.raises(TimeoutError):
            server.accept_stream(timeout=0.01)


def test_a_code_or_reason_that_the_wire_cannot_carry_is_refused():
    with pair() as (client, _):
        with pytest.raises(ValueError, match="code"):
            client.close(2**32)
        with pytest.raises(ValueError, match="1024"):
            client.close(0, "ö" * 513)
        assert client.is_ready


def test_statistics_tell_what_happened():
    with pair() as (client, server):
        client.create_bidirectional_stream().write_all(b"x")
        server.accept_stream(timeout=5).read_all(timeout=5)
        client.send_datagram(b"x")
        server.receive_datagram(timeout=5)
        ours, theirs = client.stats(), server.stats()
        assert ours["streams_opened"] == theirs["streams_accepted"] == 1
        assert ours["datagrams_sent"] == theirs["datagrams_received"] == 1
        assert ours["streams"]["current_count"] == 1
        assert 0 < ours["connection"]["rtt"] < 1
        assert ours["connection"]["bytes_sent"] > 0


def test_closing_the_connection_closes_its_session_with_the_cause():
    with pair() as (client, server):
        server.connection.close(0x105, "enough")
        client.wait_closed(timeout=5)
        with pytest.raises(gwt.SessionClosed) as info:
            client.accept_stream()
        cause = info.value.__cause__
        assert isinstance(cause, gwt.ConnectionClosed)
        assert (cause.code, cause.reason, cause.remote) == (0x105, "enough", True)
        assert client.connection.is_closed


def test_use_from_another_thread_is_refused():
    with pair() as (client, _):
        pool = gevent.get_hub().threadpool
        for call in (
            client.accept_stream,
            client.create_bidirectional_stream,
            client.abort,
            client.wait_closed,
            client.connection.wait_closed,
        ):
            with pytest.raises(RuntimeError, match="thread"):
                pool.spawn(_outcome, call).get()()


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_a_close_that_is_interrupted_is_an_abort(how):
    # The session stayed in closing for ever, and later closes did nothing.
    with pair() as (client, server):
        client.create_unidirectional_stream().write(b"x" * 900_000)
        if how == "timeout":
            with gevent.Timeout(0.05, False):
                client.close(7)
        else:
            closer = gevent.spawn(client.close, 7)
            gevent.sleep(0)
            closer.kill()
        assert client.is_closed
        client.close()
        server.wait_closed(timeout=5)
        assert server.close_code == 7


def test_no_timeout_is_no_limit_and_left_out_is_the_configs():
    with pair(client={"close_timeout": 0.05}) as (client, server):
        client.create_unidirectional_stream().write(b"x" * 100_000)
        closer = spawn(client.close, timeout=None)
        with pytest.raises(AssertionError, match="did not end"):
            closer.get(timeout=0.3)
        stream = server.accept_stream(timeout=5)
        assert stream.read_all(timeout=5) == b"x" * 100_000
        closer.get(timeout=5)


@pytest.mark.parametrize("code", [-1, 2**62, "1", True])
def test_a_connection_is_not_closed_with_a_code_that_cannot_be_sent(code):
    with pair() as (client, server):
        with pytest.raises(ValueError, match="code"):
            client.connection.close(code)
        client.send_datagram(b"x")
        assert server.receive_datagram(timeout=5) == b"x"


def test_a_datagram_is_bytes():
    with pair() as (client, _), pytest.raises(TypeError):
        client.send_datagram(5)


def test_options_of_a_route_rule_its_sessions():
    app = gwt.App()
    app.webtransport("/", max_streams=2)(lambda session: session.wait_closed())
    with serving(app) as server, connect(server):
        eventually(lambda: len(server.sessions) == 1)
        (served,) = server.sessions
        for _ in range(2):
            served.create_unidirectional_stream()
        with pytest.raises(gwt.TooManyStreams):
            served.create_unidirectional_stream()


def _outcome(call):
    # Errors of a pool's thread would be printed by the hub.
    try:
        result = call()
    except Exception as exc:
        error = exc

        def fail():
            raise error

        return fail
    return lambda: result


@pytest.mark.parametrize("size", [1452, 8900])
def test_packets_are_as_large_as_was_asked_for_where_the_path_carries_them(size):
    with pair(max_udp_payload=size, client={"max_udp_payload": size}) as (client, server):
        for one, other in ((client, server), (server, client)):
            eventually(lambda one=one: one.connection.stats()["max_udp_payload"] == size)
            assert one.max_datagram_size == size - 31
            before = one.connection.stats()
            sending = spawn(one.create_unidirectional_stream().write_all, bytes(1 << 20))
            received = other.accept_unidirectional_stream(timeout=5).read_all(timeout=10)
            assert len(received) == 1 << 20
            sending.get()
            after = one.connection.stats()
            sent = {key: after[key] - before[key] for key in ("packets_sent", "bytes_sent")}
            assert sent["bytes_sent"] / sent["packets_sent"] > 0.6 * size
            one.send_datagram(bytes(one.max_datagram_size))
            assert len(other.receive_datagram(timeout=5)) == size - 31
