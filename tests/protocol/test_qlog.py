"""gwt.protocol.qlog: what is told of a connection, its text, and its bound."""

from __future__ import annotations

import inspect
import json

import pytest
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.logger import QuicLoggerTrace

from gwt.protocol.qlog import Qlog
from gwt.protocol.seam import QuicOptions
from tests.helpers.pair import Pair


class Tap:
    """A Qlog with a clock of its own, that counts how often it wakes its writer."""

    def __init__(self, limit=100_000):
        self.now = 1000.0
        self.woken = 0
        self.qlog = Qlog(limit, self._wake, lambda: self.now)

    def _wake(self):
        self.woken += 1

    def text(self, most=1000):
        parts = []
        while (taken := self.qlog.take(most)) is not None:
            parts.append(taken[1])
        return b"".join(parts)

    def records(self, most=1000):
        return parse(self.text(most))


def parse(text):
    """Parse JSON text sequences (RFC 7464 2.1)."""
    first, *records = text.split(b"\x1e")
    assert first == b"" and all(record.endswith(b"\n") for record in records)
    return [json.loads(record) for record in records]


@pytest.fixture
def taps(monkeypatch):
    """What is told of both ends of every pair, the client's first; secrets in `secrets`."""
    taps = {True: Tap(), False: Tap()}
    monkeypatch.setattr(Tap, "secrets", [], raising=False)
    configuration = QuicOptions.configuration

    class Secrets:
        flush = staticmethod(lambda: None)
        write = staticmethod(lambda line: Tap.secrets.append(line))

    def traced(options):
        return configuration(options, qlog=taps[options.is_client].qlog, secrets=Secrets())

    monkeypatch.setattr(QuicOptions, "configuration", traced)
    return taps[True], taps[False]


def busy(pair):
    """A session that carries more than a window each way, and its end."""
    session = pair.session()
    stream = pair.client.protocol.open_stream(session, False)
    pair.server.react = lambda event: (
        pair.server.protocol.consumed(event.stream_id, len(event.data))
        if hasattr(event, "data")
        else None
    )
    pair.client.protocol.send_stream(stream, bytes(40_000), True)
    pair.run(1.0)
    pair.client.protocol.close_session(session, 7, "enough")
    pair.run(1.0)
    pair.client.protocol.close()
    pair.run(5.0)
    return session


def packets(records, name):
    return [
        (event["data"]["header"]["packet_type"], event["data"]["header"]["packet_number"])
        for event in records
        if event.get("name") == f"transport:packet_{name}"
    ]


def frames(records, name, kind):
    return [
        {**frame, "frame_type": None}
        for event in records
        if event.get("name") == f"transport:packet_{name}"
        for frame in event["data"]["frames"]
        if frame["frame_type"] == kind
    ]


def test_aioquics_trace_has_the_method_that_is_replaced():
    method = QuicLoggerTrace._encode_http3_headers
    assert list(inspect.signature(method).parameters) == ["self", "headers"]


def test_every_packet_of_both_directions_is_told_with_its_frames(taps):
    busy(Pair())
    client, server = (tap.records() for tap in taps)
    for sender, receiver in ((client, server), (server, client)):
        sent = packets(sender, "sent")
        assert len(sent) > 10
        assert sent == packets(receiver, "received")
        for kind in ("max_stream_data", "stream", "crypto", "handshake_done"):
            assert frames(sender, "sent", kind) == frames(receiver, "received", kind)
    assert frames(server, "sent", "max_stream_data")
    # The end is there: the CONNECTION_CLOSE is in the last packet that the client sent.
    last = [event for event in client if event.get("name") == "transport:packet_sent"][-1]
    assert [frame["frame_type"] for frame in last["data"]["frames"]] == ["connection_close"]


def test_requests_and_answers_are_told(taps):
    session = busy(Pair())
    client, server = (tap.records() for tap in taps)

    def headers(records, event):
        return [
            {header["name"]: header["value"] for header in record["data"]["frame"]["headers"]}
            for record in records
            if record.get("name") == f"http:frame_{event}"
            and record["data"]["stream_id"] == session
            and record["data"]["frame"]["frame_type"] == "headers"
        ]

    assert headers(client, "created") == headers(server, "parsed")
    assert headers(client, "created")[0][":authority"] == "example.test"
    assert headers(server, "created") == headers(client, "parsed")
    assert headers(server, "created")[0][":status"] == "200"


def test_the_first_record_says_what_follows(taps):
    Pair().session()
    for tap, role in zip(taps, ("client", "server"), strict=True):
        taken = tap.qlog.take(1000)
        header, event, *_ = parse(taken[1])
        assert header["qlog_version"] == "0.3" and header["qlog_format"] == "JSON-SEQ"
        assert header["trace"]["vantage_point"] == {"name": "gwt", "type": role}
        common = header["trace"]["common_fields"]
        assert common["time_format"] == "relative" and common["reference_time"] == 1_000_000
        assert taken[0].name == f"{common['ODCID']}_{role}"
        assert set(event) == {"time", "name", "data"}
    client, server = (tap.records() for tap in taps)
    assert len(client) > 10 and len(server) > 10
    assert all("qlog_version" not in record for record in client + server)


def test_text_comes_in_pieces_and_in_order():
    tap = Tap()
    traces = [tap.qlog.start_trace(True, bytes((number,)) * 8) for number in (1, 2)]
    for number in range(25):
        tap.now += 0.001
        for trace in traces:
            trace.log_event(category="test", event=str(number), data={})
    seen = {trace: [] for trace in traces}
    pieces = 0
    while (taken := tap.qlog.take(200)) is not None:
        pieces += 1
        records = parse(taken[1])
        # The last one may begin just below the limit.
        assert len(taken[1]) < 200 + max(len(taken[1].split(b"\x1e")[-1]), 400)
        seen[taken[0]] += records
    assert pieces > 10
    for records in seen.values():
        assert [record["name"] for record in records[1:]] == [f"test:{n}" for n in range(25)]
        assert [record["time"] for record in records[1:]] == list(range(1, 26))
    assert tap.qlog.size == 0


def test_the_writer_is_woken_once_for_each_trace_until_all_was_taken():
    tap = Tap()
    trace = tap.qlog.start_trace(True, bytes(8))
    for _ in range(3):
        trace.log_event(category="test", event="event", data={})
    assert tap.woken == 1
    tap.qlog.take(1)
    trace.log_event(category="test", event="event", data={})
    assert tap.woken == 1
    tap.text()
    trace.log_event(category="test", event="event", data={})
    assert tap.woken == 2


def test_beyond_the_bound_the_newest_go_and_are_counted():
    tap = Tap(limit=10)
    one, other = (tap.qlog.start_trace(True, bytes((number,)) * 8) for number in (1, 2))
    for number in range(25):
        one.log_event(category="test", event=str(number), data={})
    assert tap.qlog.size == 10
    other.log_event(category="test", event="unlucky", data={})
    records = tap.records(most=4)
    names = [record["name"] for record in records if "name" in record]
    warning = "loglevel:warning"
    assert names == [f"test:{number}" for number in range(10)] + [warning, warning]
    messages = [r["data"]["message"] for r in records if r.get("name") == warning]
    assert messages == ["15 events were dropped here", "1 events were dropped here"]
    one.log_event(category="test", event="again", data={})
    assert [record["name"] for record in tap.records()] == ["test:again"]


def test_after_its_end_nothing_is_kept():
    tap = Tap()
    trace = tap.qlog.start_trace(True, bytes(8))
    trace.log_event(category="test", event="event", data={})
    tap.qlog.close()
    trace.log_event(category="test", event="event", data={})
    assert tap.qlog.take(10) is None and not trace.pending and tap.qlog.size == 0


def test_what_a_peer_says_cannot_break_the_text(taps):
    pair = Pair()
    session = pair.session(headers=[(b"x-odd", b'\xff"\x1e\xc3')])
    records = taps[1].records()
    odd = {"name": "x-odd", "value": 'ÿ"\x1eÃ'}
    assert any(odd in record["data"].get("frame", {}).get("headers", []) for record in records[1:])
    assert pair.client.protocol.open_stream(session, True) is not None


def test_the_secrets_open_the_packets(taps):
    captured = []
    pair = Pair()
    pair.filter = lambda to_server, data: captured.append((to_server, data)) or True
    session = pair.session()
    captured.clear()
    pair.client.protocol.send_datagram(session, b"find me")
    pair.server.protocol.send_datagram(session, b"me, too")
    pair.run(0.1)
    secrets = {}
    for line in Tap.secrets:
        label, random, secret = line.split()
        assert line == f"{label} {random} {secret}\n" and len(random) == 64
        secrets.setdefault(label, []).append((random, secret))
    # Both ends have written the same.
    assert set(secrets) == {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
        "EXPORTER_SECRET",
    }
    assert all(len(pairs) == 2 and len(set(pairs)) == 1 for pairs in secrets.values())
    assert len({pairs[0][0] for pairs in secrets.values()}) == 1
    exporter = pair.client.protocol.quic._quic.exporter
    assert secrets["EXPORTER_SECRET"][0][1] == exporter.secret.hex()
    connection = pair.client.protocol.quic._quic
    for to_server, label, text in (
        (True, "CLIENT_TRAFFIC_SECRET_0", b"find me"),
        (False, "SERVER_TRAFFIC_SECRET_0", b"me, too"),
    ):
        opener = CryptoContext()
        opener.setup(
            cipher_suite=connection.tls.key_schedule.cipher_suite,
            secret=bytes.fromhex(secrets[label][0][1]),
            version=connection._version,
        )
        plain = [
            opener.decrypt_packet(data, 1 + 8, 0)[1]
            for direction, data in captured
            if direction is to_server
        ]
        assert any(text in payload for payload in plain)
