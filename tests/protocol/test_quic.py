"""
gwt.protocol.quic, the seam: what it relies on inside aioquic, and its own promises.

The first tests name every private attribute that quic.py, quicstream.py and h3.py touch. A new
release of aioquic that changes one fails here, by name, before anything stranger happens.
"""

from __future__ import annotations

import ast
import dataclasses
import gc
import importlib.metadata
import inspect
import ssl
import weakref
from collections import deque
from pathlib import Path

import pytest
from aioquic.h3.connection import H3Connection, H3Stream
from aioquic.quic import crypto, packet_builder
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.connection import EPOCHS, Limit, QuicConnection, QuicConnectionState
from aioquic.quic.packet import PARAMS
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender
from aioquic.tls import Epoch, Group

from gwt.protocol import (
    quic,
    quicconnection,
    quiccrypto,
    quicend,
    quicguard,
    quicpath,
    quicreceive,
    quicreset,
    quicsend,
    quicstream,
    seam,
)
from gwt.protocol.pacing import Pacer
from gwt.protocol.quic import Quic
from gwt.protocol.seam import SILENT, SendBudget
from tests.helpers import raw
from tests.helpers.pair import CLIENT, SERVER, Pair, quic_options
from tests.helpers.raw import leftovers

AIOQUIC = importlib.metadata.version("aioquic")
LOST = f"aioquic {AIOQUIC} has changed what the seam of gwt {{}} relies on: {{}}"


def client_connection():
    return QuicConnection(
        configuration=QuicConfiguration(is_client=True, verify_mode=ssl.CERT_NONE)
    )


def test_aioquic_is_of_the_minor_version_that_was_read():
    assert AIOQUIC.startswith("1.7."), LOST.format("quic.py", "read the new release first")


CONNECTION = {
    "_QuicConnection__frame_handlers": dict,
    "_close_event": type(None),
    "_configuration": QuicConfiguration,
    "_crypto_buffers": dict,
    "_crypto_streams": dict,
    "_cryptos": dict,
    "_cryptos_initial": dict,
    "_datagrams_pending": deque,
    "_events": deque,
    "_handshake_confirmed": bool,
    "_is_client": bool,
    "_local_active_connection_id_limit": int,
    "_local_max_data": Limit,
    "_local_max_streams_bidi": Limit,
    "_local_max_streams_uni": Limit,
    "_loss": QuicPacketRecovery,
    "_max_datagram_size": int,
    "_network_paths": list,
    "_packet_number": int,
    "_peer_cid_available": list,
    "_peer_cid_sequence_numbers": set,
    "_peer_retire_prior_to": int,
    "_quic_logger": type(None),
    "_probe_pending": bool,
    "_remote_max_datagram_frame_size": type(None),
    "_spaces": dict,
    "_remote_max_data": int,
    "_remote_max_data_used": int,
    "_remote_max_idle_timeout": (type(None), float, int),
    "_remote_max_streams_bidi": int,
    "_remote_max_streams_uni": int,
    "_retry_source_connection_id": type(None),
    "_spin_bit": bool,
    "_state": QuicConnectionState,
    "_streams": dict,
    "_streams_queue": list,
    "_version": (type(None), int),
}


@pytest.mark.parametrize("name", CONNECTION)
def test_connection_has_the_attribute(name):
    connection = client_connection()
    assert isinstance(getattr(connection, name, LOST), CONNECTION[name]), LOST.format(
        "quic.py", f"QuicConnection.{name}"
    )


def test_connection_has_its_peers_id_and_its_logger():
    connection = client_connection()
    assert isinstance(connection._peer_cid.cid, bytes)
    assert hasattr(connection, "_logger")
    assert hasattr(connection._loss, "_logger")
    for name in ("value", "sent", "used"):
        assert isinstance(getattr(connection._local_max_data, name), int)


def test_a_path_counts_its_bytes_and_knows_whether_it_is_validated():
    connection = client_connection()
    connection.connect(SERVER, 0.0)
    (path,) = connection._network_paths
    for name in ("bytes_received", "bytes_sent", "is_validated"):
        assert isinstance(getattr(path, name), int), LOST.format("quic.py", name)
    assert connection.get_peer_address() == path.addr == SERVER


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("_flush_builder", ["self", "builder", "network_path", "peer_cid", "now"]),
        ("_get_or_create_stream", ["self", "frame_type", "stream_id"]),
        ("_consume_peer_cid", ["self"]),
        ("_handle_ack_frame", ["self", "context", "frame_type", "buf"]),
        ("_handle_crypto_frame", ["self", "context", "frame_type", "buf"]),
        ("_handle_new_connection_id_frame", ["self", "context", "frame_type", "buf"]),
        ("_find_network_path", ["self", "addr"]),
        ("_initialize", ["self", "peer_cid"]),
        ("_payload_received", ["self", "context", "plain", "crypto_frame_required"]),
        ("_handle_max_stream_data_frame", ["self", "context", "frame_type", "buf"]),
        ("request_key_update", ["self"]),
        ("_push_crypto_data", ["self"]),
        ("_discard_epoch", ["self", "epoch"]),
        ("_get_or_create_stream_for_send", ["self", "stream_id"]),
        ("_on_max_stream_data_delivery", ["self", "delivery", "stream"]),
        ("_parse_transport_parameters", ["self", "data", "from_session_ticket"]),
        ("_send_probing_frames", ["self", "network_path", "now"]),
        ("_stream_is_discarded", ["self", "stream_id"]),
        ("_stream_limit", ["self", "stream_id"]),
        ("_assert_stream_can_receive", ["self", "frame_type", "stream_id"]),
        ("_handle_reset_stream_frame", ["self", "context", "frame_type", "buf"]),
        ("_parse_transport_parameters", ["self", "data", "from_session_ticket"]),
        ("_serialize_transport_parameters", ["self"]),
        ("_write_reset_stream_frame", ["self", "builder", "stream"]),
        ("_write_stream_frame", ["self", "builder", "space", "stream", "max_offset"]),
        ("_update_traffic_key", ["self", "direction", "epoch", "cipher_suite", "secret"]),
        ("_write_connection_limits", ["self", "builder", "space"]),
        ("_write_stream_limits", ["self", "builder", "space", "stream"]),
    ],
)
def test_connection_has_the_method(name, parameters):
    method = getattr(QuicConnection, name, None)
    assert method is not None, LOST.format("quic.py", f"QuicConnection.{name}()")
    assert list(inspect.signature(method).parameters) == parameters


def test_tls_has_its_groups_and_the_peers_certificate():
    connection = client_connection()
    connection.connect(SERVER, 0.0)
    assert list(connection.tls._supported_groups)[:1] == [Group.SECP256R1]
    assert connection.tls._peer_certificate is None


def test_what_waits_of_a_handshake_and_of_streams_is_where_it_was():
    connection = client_connection()
    connection.connect(SERVER, 0.0)
    assert connection.tls._receive_buffer == b""
    for stream in connection._crypto_streams.values():
        assert isinstance(stream.receiver._ranges, RangeSet)
        assert stream.receiver.starting_offset() == 0


def test_a_client_offers_one_key_exchange_and_version_and_takes_few_connection_ids():
    pair = Pair()
    pair.run_until(lambda: pair.client.protocol.ready)
    client = pair.client.protocol.quic._quic
    assert client.tls._supported_groups == [Group.SECP256R1]
    assert list(client._cryptos_initial) == [1]
    for end in pair.ends():
        pair.run(0.2)
        assert len(end.protocol.quic._quic._peer_cid_available) == 3


def test_an_acknowledgement_rides_with_what_is_written():
    pair = Pair()
    session = pair.session()
    pair.run(0.5)
    client, server = pair.client.protocol, pair.server.protocol
    stream = client.open_stream(session, False)
    client.send_stream(stream, b"ping")
    sent = []
    pair.filter = lambda to_server, data: sent.append(to_server) or True
    pair.run_until(lambda: pair.server.data(stream) == b"ping")
    server.send_stream(stream, b"pong")
    pair.run_until(lambda: client.quic.acked(stream) > 4, seconds=0.0215)
    # One packet each way has carried data and acknowledgement.
    assert sent == [True, False]


def test_bursts_are_of_up_to_64_packets():
    pacer = Pacer(max_datagram_size=1200)
    pacer.update_rate(15_000_000, 0.001)
    assert pacer.bucket_max == pytest.approx(64 * pacer.packet_time)
    pacer.update_rate(12_000, 0.1)
    # A slow path keeps its own small burst.
    assert pacer.bucket_max < 3 * pacer.packet_time


@pytest.mark.parametrize(
    "name",
    ["_cc", "_rtt_smoothed", "_rtt_min", "_rtt_initialized", "_pacer", "_send_probe", "spaces"],
)
def test_recovery_has_the_attribute(name):
    assert hasattr(client_connection()._loss, name), LOST.format("quic.py", name)


@pytest.mark.parametrize("control", [RenoCongestionControl, CubicCongestionControl])
def test_congestion_control_is_told_of_packets_and_has_their_size(control):
    made = control(max_datagram_size=1300)
    assert (made._max_datagram_size, made.congestion_window) == (1300, 13_000)
    assert getattr(made, "additive_increase_factor", 1300) == 1300
    for name, parameters in (
        ("on_packet_acked", {"self", "now", "packet"}),
        ("on_packets_expired", {"self", "packets"}),
        ("on_packets_lost", {"self", "now", "packets"}),
    ):
        assert set(inspect.signature(getattr(control, name)).parameters) == parameters


def test_packet_that_is_built_can_be_kept_out_of_flight():
    builder = packet_builder.QuicPacketBuilder(
        host_cid=b"", peer_cid=b"", version=1, is_client=True, max_datagram_size=1200
    )
    assert builder._packet is None
    fields = {field.name for field in dataclasses.fields(packet_builder.QuicSentPacket)}
    assert {"in_flight", "is_ack_eliciting", "sent_bytes", "sent_time"} <= fields


SENDER = {
    "_acked": RangeSet,
    "_buffer": bytearray,
    "_buffer_fin": type(None),
    "_buffer_start": int,
    "_buffer_stop": int,
    "_pending": RangeSet,
    "_pending_eof": bool,
    "_reset_error_code": type(None),
    "_stream_id": int,
}


@pytest.mark.parametrize("name", SENDER)
def test_stream_sender_has_the_attribute(name):
    sender = QuicStreamSender(stream_id=0, writable=True)
    assert isinstance(getattr(sender, name, LOST), SENDER[name]), LOST.format(
        "quicstream.py", f"QuicStreamSender.{name}"
    )


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("write", ["self", "data", "end_stream"]),
        ("reset", ["self", "error_code"]),
        ("on_data_delivery", ["self", "delivery", "start", "stop", "fin"]),
        ("on_reset_delivery", ["self", "delivery"]),
    ],
)
def test_stream_sender_has_the_method(name, parameters):
    method = getattr(QuicStreamSender, name)
    assert list(inspect.signature(method).parameters) == parameters


@pytest.mark.parametrize(
    "name, parameters",
    [("handle_frame", ["self", "frame"]), ("handle_reset", ["self", "final_size", "error_code"])],
)
def test_stream_receiver_has_the_method(name, parameters):
    method = getattr(QuicStreamReceiver, name)
    assert list(inspect.signature(method).parameters) == parameters
    receiver = QuicStreamReceiver(stream_id=0, readable=True)
    assert receiver._buffer_start == receiver.highest_offset == 0, LOST.format(
        "quicreset.py", "QuicStreamReceiver._buffer_start"
    )
    assert not hasattr(QuicStreamReceiver, "__slots__"), "its class could not be changed"


def test_frame_handlers_are_named_by_type_and_epochs():
    handlers = client_connection()._QuicConnection__frame_handlers
    assert quicreset.RESET_STREAM_AT not in handlers, "aioquic has it now"
    assert not set(quicreset.PARAMETERS) & set(PARAMS), "aioquic has it now"
    assert handlers[0x04][1] == EPOCHS("01")


def test_stream_has_both_halves_and_its_limits():
    stream = QuicStream(stream_id=0, max_stream_data_local=5)
    assert isinstance(stream.receiver, QuicStreamReceiver)
    assert stream.max_stream_data_local == stream.max_stream_data_local_sent == 5
    assert stream.max_stream_data_remote == 0
    assert stream.receiver.highest_offset == stream.sender.highest_offset == 0
    assert isinstance(type(stream).is_finished, property)
    assert not hasattr(QuicStream, "__slots__"), "its class could not be changed"


@pytest.mark.parametrize(
    "name",
    [
        "_local_control_stream_id",
        "_local_decoder_stream_id",
        "_local_encoder_stream_id",
        "_peer_control_stream_id",
        "_peer_decoder_stream_id",
        "_peer_encoder_stream_id",
        "_decoder",
        "_encoder",
        "_max_push_id",
        "_stream",
    ],
)
def test_http3_connection_has_the_attribute(name):
    h3 = raw.Raw(is_client=True, h3=H3Connection).h3
    assert hasattr(h3, name), LOST.format("h3.py", f"H3Connection.{name}")


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("_check_request_or_push_frame_type", ["self", "frame_type", "stream"]),
        ("_check_control_frame_type", ["self", "frame_type"]),
        ("_get_local_settings", ["self"]),
        ("_init_connection", ["self"]),
        ("_receive_request_or_push_data", ["self", "stream", "data", "stream_ended"]),
    ],
)
def test_http3_connection_has_the_method(name, parameters):
    method = getattr(H3Connection, name, None)
    assert method is not None, LOST.format("h3.py", f"H3Connection.{name}()")
    assert list(inspect.signature(method).parameters) == parameters


@pytest.mark.parametrize("name", ["frame_size", "frame_type", "stream_type", "stream_id"])
def test_http3_stream_has_the_attribute(name):
    assert hasattr(H3Stream(0), name), LOST.format("h3.py", f"H3Stream.{name}")


def test_every_private_attribute_that_the_seam_uses_is_asserted_here():
    here = "".join(
        path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_quic*.py")
    )
    trees = {
        module.__name__: ast.parse(inspect.getsource(module))
        for module in (
            quic,
            quicconnection,
            quiccrypto,
            quicguard,
            quicend,
            quicpath,
            quicreceive,
            quicreset,
            quicsend,
            quicstream,
        )
    }
    nodes = [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]
    ours = {
        node.attr
        for _, node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    } | {node.name for _, node in nodes if isinstance(node, ast.FunctionDef)}
    ours |= {
        node.target.id
        for _, node in nodes
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    overridden = set(dir(QuicConnection)) | set(dir(QuicStreamSender))
    theirs = overridden | set(vars(client_connection())) | set(vars(QuicStreamReceiver(0, True)))
    for module, node in nodes:
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        if node.attr.startswith("__") or (node.attr in ours and node.attr not in theirs):
            continue
        if node.attr == "_peer_certificate":
            continue  # test_certificate_of_the_peer_is_der
        assert node.attr in here, f"{module}:{node.lineno}: {node.attr}"


def test_keys_have_callbacks_that_only_a_logger_needs():
    pair = Pair()
    pair.run_until(lambda: pair.client.protocol.ready)
    pairs = pair.client.protocol.quic._quic._cryptos.values()
    for keys in [each.recv for each in pairs] + [each.send for each in pairs]:
        assert keys._setup_cb is keys._teardown_cb is crypto.NoCallback, LOST.format(
            "quicconnection.py", "CryptoContext"
        )
    source = inspect.getsource(QuicConnection._log_key_updated) + inspect.getsource(
        QuicConnection._log_key_retired
    )
    assert source.count("self.") == 2 * source.count("self._quic_logger."), source


def test_a_packet_space_knows_what_was_sent():
    pair = Pair()
    pair.run_until(lambda: pair.server is not None)
    for space in pair.server.protocol.quic._quic._spaces.values():
        assert isinstance(space.sent_packets, dict), LOST.format("quicend.py", "sent_packets")


def test_the_epochs_of_the_handshake_are_let_go_and_their_packets_ignored_when_it_is_over():
    pair = Pair()
    sent = {True: [], False: []}
    pair.filter = lambda to_server, data: sent[to_server].append(data) is None
    pair.run_until(lambda: pair.client.protocol.ready and pair.server.protocol.ready)
    pair.run(1.0)
    over = (Epoch.INITIAL, Epoch.HANDSHAKE, Epoch.ZERO_RTT)
    for end, to_server, address in ((pair.client, False, SERVER), (pair.server, True, CLIENT)):
        connection = end.protocol.quic._quic
        assert {connection._cryptos[epoch] for epoch in over} == {quicconnection._NO_KEYS}
        assert set(connection._cryptos_initial.values()) == {quicconnection._NO_KEYS}
        for epoch in over[:2]:
            assert connection._spaces[epoch] is quicconnection._NO_PACKETS
            assert connection._crypto_streams[epoch] is quicconnection._NO_CRYPTO
        assert connection._loss.spaces == [connection._spaces[Epoch.ONE_RTT]]
        # Late, or sent again by somebody.
        ignored = end.protocol.quic.stats()["packets_ignored"]
        late = [data for data in sent[to_server] if data[0] & 0x80]
        end.protocol.receive_datagrams(late, address, pair.now)
        end.protocol.datagrams_to_send(pair.now)
        assert late and end.protocol.quic.stats()["packets_ignored"] > ignored
    assert not pair.client.protocol.quic.closed and not pair.server.protocol.quic.closed
    # Nobody has written to what they share.
    pristine, shared = QuicPacketSpace(), quicconnection._NO_PACKETS
    assert vars(shared).keys() == vars(pristine).keys(), LOST.format("quicconnection.py", "spaces")
    assert shared.discarded and not shared.sent_packets and not list(shared.ack_queue)
    assert shared.expected_packet_number == pristine.expected_packet_number
    assert quicconnection._NO_CRYPTO.sender.buffer_is_empty
    for keys in (quicconnection._NO_KEYS.recv, quicconnection._NO_KEYS.send):
        assert not keys.is_valid()


# What the seam promises


class Sink:
    """Everything that drain() told, as tuples."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.told.append((name.removeprefix("quic_"), *args))


def test_aioquics_loggers_are_silenced():
    connection = Pair().client.protocol.quic._quic
    assert connection._logger is SILENT
    assert connection._loss._logger is SILENT
    assert packet_builder is not None


def test_certificate_of_the_peer_is_der():
    pair = Pair()
    assert pair.client.protocol.quic.peer_certificate == b""
    pair.session()
    assert pair.client.protocol.quic.peer_certificate[:1] == b"\x30"
    assert pair.server.protocol.quic.peer_certificate == b""


def test_connection_that_was_not_started_sends_nothing_and_does_not_raise():
    options = quic_options(raw.ClientConfig(), is_client=True)
    connection = Quic(options)
    assert connection.poll(0.0) == []
    assert connection.deadline() is None
    connection.on_timer(0.0)
    connection.drain(Sink())
    assert connection.open(False) is None
    assert not connection.write(0, b"x")
    assert connection.peer_certificate == b""
    assert connection.max_datagram == 0
    assert not connection.send_datagram(b"")
    assert connection.buffered(0) == connection.sent(0) == connection.received(0) == 0
    assert connection.acked(0) == -1
    connection.reset(0, 0)
    connection.stop(0, 0)
    connection.hold(0, True)
    assert not connection.consumed(0, 1)
    assert not connection.set_window(0, 1)


def test_on_timer_before_the_deadline_does_nothing():
    options = quic_options(raw.ClientConfig(), is_client=True)
    connection = Quic(options)
    connection.connect(SERVER, 10.0)
    first = connection.poll(10.0)
    assert len(first) == 1
    deadline = connection.deadline()
    connection.on_timer(deadline - 0.001)
    assert connection.poll(deadline - 0.001) == []
    connection.on_timer(deadline)
    assert connection.poll(deadline), "a probe"
    assert connection.packets_sent >= 2
    assert connection.bytes_sent >= 2400


def test_close_is_told_at_once_and_the_first_one_wins():
    pair = Pair()
    pair.session()
    connection, sink = pair.client.protocol.quic, Sink()
    connection.close(5, "first")
    connection.close(6, "second")
    assert connection.closed
    connection.drain(sink)
    connection.drain(sink)
    assert [t for t in sink.told if t[0] == "closed"] == [("closed", 5, "first", False)]


def test_ping_is_acknowledged():
    pair = Pair()
    pair.session()
    pair.run()
    told = []
    pair.client.protocol.quic_ping_acknowledged = lambda: told.append(True)
    pair.client.protocol.quic.ping()
    pair.run(0.1)
    assert told == [True]


def test_idle_timeout_is_the_smaller_one_of_both_sides():
    pair = Pair(client=raw.ClientConfig(idle_timeout=7.0))
    assert pair.client.protocol.quic.idle_timeout == 7.0
    pair.session()
    assert pair.server.protocol.quic.idle_timeout == 7.0
    assert pair.client.protocol.quic.idle_timeout == 7.0


def test_stream_that_is_held_keeps_its_slot():
    peer = raw.server()
    session_id = peer.session()
    stream_id = peer.wt_uni(session_id, b"x", True, run=True)
    connection = peer.protocol.quic
    before = connection._quic._local_max_streams_uni.value
    peer.run(1.0)
    assert stream_id in connection._quic._streams
    assert not connection.gone(stream_id)
    peer.protocol.consumed(stream_id, 1)
    peer.run()
    assert connection.gone(stream_id)
    assert connection._quic._local_max_streams_uni.value == before + 1


def test_opening_a_stream_opens_all_lower_ones_with_account_and_window():
    peer = raw.server()
    session_id = peer.session()
    peer.quic._local_next_stream_id_uni += 20
    stream_id = peer.wt_uni(session_id, b"x", run=True)
    streams = peer.protocol.quic._quic._streams
    for lower in range(stream_id - 20, stream_id + 4, 4):
        assert isinstance(streams[lower], quicstream.Stream)
        assert isinstance(streams[lower].sender, quicstream.Sender)
        assert streams[lower].window == peer.config.initial_stream_window


def test_limit_of_the_connection_stays_ahead_of_what_arrived_and_does_not_double():
    peer = raw.server()
    session_id = peer.session()
    peer.end.react = lambda e: (
        peer.protocol.consumed(e.stream_id, len(e.data)) if hasattr(e, "data") else None
    )
    for _ in range(5):
        peer.wt_uni(session_id, bytes(1 << 20), True)
        peer.run(2.0)
    limit = peer.protocol.quic._quic._local_max_data
    assert limit.used > 5 << 20
    assert seam.CONNECTION_WINDOW // 2 <= limit.value - limit.used <= seam.CONNECTION_WINDOW
    assert leftovers(peer.protocol).keys() == {"sessions", "h3", "quic"}


def test_budget_is_shared_and_settled_once():
    budget = SendBudget()
    budget.buffered = 1000
    connection = quicconnection.Connection(
        quic_options(raw.ClientConfig(), is_client=True),
        budget,
        configuration=quic_options(raw.ClientConfig(), is_client=True).configuration(),
    )
    connection.account(500)
    assert (connection.buffered, budget.buffered) == (500, 1500)
    connection.settle()
    connection.settle()
    connection.account(-500)
    assert (connection.buffered, budget.buffered) == (0, 1000)


def test_stats_have_their_names_and_are_numbers():
    pair = Pair()
    pair.session()
    pair.run()
    stats = pair.client.protocol.quic.stats()
    assert stats["rtt"] == pytest.approx(2 * pair.latency, rel=0.5)
    assert stats["packets_sent"] > 0 < stats["bytes_received"]
    assert all(isinstance(value, (int, float)) for value in stats.values())


def test_a_connection_that_is_released_goes_without_the_garbage_collector():
    """A crowd of dead ones would hold 80 KiB each, of which the collector sees only a little."""
    pair = Pair()
    pair.session()
    pair.run(0.5)
    pair.server.protocol.close()
    pair.run(5)
    for end in pair.ends():
        end.protocol.quic.release()
        gone = weakref.ref(end.protocol.quic._quic)
        gc.disable()
        try:
            end.protocol = None
            assert gone() is None
        finally:
            gc.enable()


def test_what_was_released_still_answers():
    pair = Pair()
    session = pair.session()
    stream = pair.client.protocol.open_stream(session, False)
    pair.client.protocol.send_stream(stream, b"x")
    pair.run(0.5)
    client = pair.client.protocol
    client.close(0x123)
    client.datagrams_to_send(pair.now)
    quic = client.quic
    for _ in range(2):
        quic.release()
        quic.feed([bytes(50)], SERVER, pair.now)
        quic.poll(pair.now)
        assert quic.closed and not quic.write(stream, b"x") and not quic.send_datagram(b"x")
        assert quic.buffered(stream) == 0 and quic.peer_certificate == b""
        assert quic.peer_address == SERVER and quic.stats()["streams"] == 0
        assert quic.deadline() is None
        quic.reset(stream, 1)
        quic.stop(stream, 1)
        quic.ping()
        quic.close(1)
        quic.on_timer(pair.now + 100)
    server = pair.server.protocol.quic
    server.release()
    server.feed([bytes(50), b"\x40" + bytes(50)], CLIENT, pair.now)
    assert server.poll(pair.now) == []
