"""
gwt.protocol.quictls: keying material, checked against OpenSSL and against a derivation of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from types import SimpleNamespace

import pytest
from aioquic.tls import CipherSuite, HandshakeType, KeySchedule
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL

from gwt.protocol import quictls
from gwt.protocol.quictls import Exporter
from gwt.protocol.seam import QuicOptions
from tests.helpers.pair import Pair, certificate

SUITES = {
    "TLS_AES_128_GCM_SHA256": (CipherSuite.AES_128_GCM_SHA256, hashes.SHA256()),
    "TLS_AES_256_GCM_SHA384": (CipherSuite.AES_256_GCM_SHA384, hashes.SHA384()),
    "TLS_CHACHA20_POLY1305_SHA256": (CipherSuite.CHACHA20_POLY1305_SHA256, hashes.SHA256()),
}


def exporter_of(algorithm, secret):
    return Exporter(SimpleNamespace(algorithm=algorithm, derive_secret=lambda label: secret))


@pytest.fixture(params=SUITES)
def openssl(request):
    """An OpenSSL client after its handshake, its exporter secret, and the hash of its suite."""
    lines = []
    ends = []
    for is_client in (True, False):
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_tls13_ciphersuites(request.param.encode())
        if is_client:
            context.set_keylog_callback(lambda _, line: lines.append(line.split()))
        else:
            context.use_certificate(certificate().certificate)
            context.use_privatekey(certificate().private_key)
        end = SSL.Connection(context, None)
        (end.set_connect_state if is_client else end.set_accept_state)()
        ends.append(end)
    for _ in range(4):
        for end, other in (ends, ends[::-1]):
            with contextlib.suppress(SSL.WantReadError):
                end.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(end.bio_read(65536))
    assert ends[0].get_cipher_name() == request.param
    secret = next(
        bytes.fromhex(line[2].decode()) for line in lines if line[0] == b"EXPORTER_SECRET"
    )
    return ends[0], secret, SUITES[request.param][1]


@pytest.mark.parametrize("label", [b"EXPORTER-WebTransport", b"x"])
@pytest.mark.parametrize("context", [b"", b"context", bytes(range(256)) * 2])
@pytest.mark.parametrize("length", [1, 32, 500])
def test_it_derives_what_openssl_does(openssl, label, context, length):
    connection, secret, algorithm = openssl
    expected = connection.export_keying_material(label, length, context)
    assert exporter_of(algorithm, secret).export(label, context, length) == expected


@pytest.mark.parametrize("algorithm, most", [(hashes.SHA256(), 8160), (hashes.SHA384(), 12240)])
def test_lengths_are_bounded_by_the_hash(algorithm, most):
    exporter = exporter_of(algorithm, bytes(algorithm.digest_size))
    assert len(exporter.export(b"label", b"", most)) == most
    for length in (most + 1, 0, -1):
        with pytest.raises(ValueError, match=f"Between 1 and {most} bytes"):
            exporter.export(b"label", b"", length)


def test_it_does_not_show_its_secret():
    exporter = exporter_of(hashes.SHA256(), bytes(range(32)))
    assert repr(exporter) == "<Exporter sha256>"


def derive(name, secret, label, transcript):
    """Derive-Secret (RFC 8446 7.1), for secrets of one block."""
    digest = hashlib.new(name, transcript).digest()
    label = b"tls13 " + label
    info = len(digest).to_bytes(2) + bytes((len(label),)) + label
    info += bytes((len(digest),)) + digest + b"\x01"
    return hmac.digest(secret, info, name)


@pytest.mark.parametrize("suite", SUITES)
def test_the_secret_is_of_the_transcript_up_to_the_servers_finished(monkeypatch, suite):
    transcripts = {}
    update_hash, configuration = KeySchedule.update_hash, QuicOptions.configuration

    def recording(schedule, data):
        transcripts.setdefault(schedule, []).append(data)
        update_hash(schedule, data)

    def of_suite(options, **more):
        made = configuration(options, **more)
        made.cipher_suites = [SUITES[suite][0]]
        return made

    monkeypatch.setattr(KeySchedule, "update_hash", recording)
    monkeypatch.setattr(QuicOptions, "configuration", of_suite)
    schedules = []
    # A server lets go of its TLS when the handshake is over.
    made = quictls.Exporter.__init__
    monkeypatch.setattr(
        quictls.Exporter,
        "__init__",
        lambda self, schedule: (schedules.append(schedule), made(self, schedule))[1],
    )
    pair = Pair()
    pair.session()
    exporters = set()
    for end, schedule in zip((pair.server, pair.client), schedules, strict=True):
        connection = end.protocol.quic._quic
        messages = transcripts[schedule]
        last = [message[0] for message in messages].index(HandshakeType.FINISHED)
        # There is another one behind it: the client's.
        assert messages[-1][0] == HandshakeType.FINISHED and last < len(messages) - 1
        exporter = derive(
            schedule.algorithm.name, schedule.secret, b"exp master", b"".join(messages[: last + 1])
        )
        assert connection.exporter.secret == exporter
        exporters.add(exporter)
    assert len(exporters) == 1


def test_both_ends_of_a_session_export_the_same_and_nobody_else():
    pair = Pair()
    session, other = pair.session(), pair.session()
    client, server = (end.protocol.export for end in pair.ends())
    material = client(session, "label", 32, b"context")
    assert material == server(session, b"label", 32, b"context")
    assert len(material) == 32
    different = [
        client(other, "label", 32, b"context"),
        client(session, "labels", 32, b"context"),
        client(session, "label", 32),
        client(session, "labelc", 32, b"ontext"),
        client(session, "label", 33, b"context")[:32],
        pair.client.protocol.quic.export(b"label", b"context", 32),
    ]
    assert len({material, *different}) == 7
    again = Pair()
    assert again.client.protocol.quic._quic.exporter is None
    assert again.session() == session
    assert again.client.protocol.export(session, "label", 32, b"context") != material


def test_the_context_on_the_wire_of_the_draft():
    # webtrans-http3-16 4.8: session id (64 bits), and label and context behind a byte each.
    pair = Pair()
    pair.session()
    session = pair.session()
    assert session == 4
    raw = bytes.fromhex("0000000000000004 03 616263 02 0001")
    assert pair.client.protocol.export(session, "abc", 16, b"\0\1") == (
        pair.server.protocol.quic.export(b"EXPORTER-WebTransport", raw, 16)
    )


@pytest.mark.parametrize(
    "label, context, problem",
    [
        ("", b"", "between 1 and 255 bytes, not 0"),
        ("ü" * 128, b"", "between 1 and 255 bytes, not 256"),
        ("label", bytes(256), "at most 255 bytes, not 256"),
    ],
)
def test_what_the_draft_cannot_encode_is_refused(label, context, problem):
    pair = Pair()
    session = pair.session()
    with pytest.raises(ValueError, match=problem):
        pair.client.protocol.export(session, label, 32, context)
    assert pair.client.protocol.export(session, "x" * 255, 32, bytes(255))


def test_there_is_nothing_to_export_before_the_handshake():
    with pytest.raises(ValueError, match="before the handshake"):
        Pair().client.protocol.export(0, "label", 32)
