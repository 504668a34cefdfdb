"""gwt.protocol.capsules: the reader in any fragmentation, its bounds, and the writers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwt.protocol import capsules
from gwt.protocol.capsules import Capsule, CapsuleError, CapsuleReader
from tests.helpers.chopper import bytewise, cuts

KNOWN = {
    capsules.CLOSE_SESSION: 1028,
    capsules.DRAIN_SESSION: 0,
    capsules.MAX_DATA: 8,
    capsules.MAX_STREAMS_BIDI: 8,
    capsules.MAX_STREAMS_UNI: 8,
    capsules.DATA_BLOCKED: 8,
    capsules.STREAMS_BLOCKED_BIDI: 8,
    capsules.STREAMS_BLOCKED_UNI: 8,
}
NOT_CLOSE = sorted(set(KNOWN) - {capsules.CLOSE_SESSION})
UNKNOWN = st.integers(0, 2**62 - 1).filter(lambda kind: kind not in KNOWN)


def held(reader):
    return len(reader._buffer)


@pytest.mark.parametrize(
    "value, encoded",
    [
        (0, "00"),
        (63, "3f"),
        (64, "4040"),
        (16383, "7fff"),
        (16384, "80004000"),
        (2**30 - 1, "bfffffff"),
        (2**30, "c000000040000000"),
        (2**62 - 1, "ffffffffffffffff"),
    ],
)
def test_varint_has_the_shortest_form(value, encoded):
    assert capsules.encode_varint(value).hex() == encoded
    assert capsules.pull_varint(bytes.fromhex(encoded)) == (value, len(encoded) // 2)


@given(st.integers(0, 2**62 - 1), st.binary(max_size=9), st.binary(max_size=9))
def test_varint_comes_back_from_anywhere(value, before, behind):
    encoded = capsules.encode_varint(value)
    data = before + encoded + behind
    assert capsules.pull_varint(data, len(before)) == (value, len(before) + len(encoded))


@given(st.integers(0, 2**62 - 1))
def test_varint_that_is_cut_is_waited_for(value):
    encoded = capsules.encode_varint(value)
    assert all(capsules.pull_varint(encoded[:size]) is None for size in range(len(encoded)))


@st.composite
def streams(draw):
    """Draw capsules, known and unknown, and their encoding."""
    known, data = [], b""
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            kind = draw(st.sampled_from(NOT_CLOSE))
            payload = draw(st.binary(max_size=KNOWN[kind]))
            known.append(Capsule(kind, payload))
        else:
            kind, payload = draw(UNKNOWN), draw(st.binary(max_size=300))
        data += capsules.encode_capsule(kind, payload)
    if draw(st.booleans()):
        payload = draw(st.binary(max_size=1028))
        known.append(Capsule(capsules.CLOSE_SESSION, payload))
        data += capsules.encode_capsule(capsules.CLOSE_SESSION, payload)
    return known, data


@given(streams(), st.data())
def test_known_capsules_come_out_of_any_fragmentation(stream, data):
    known, encoded = stream
    reader = CapsuleReader()
    found = []
    for piece in data.draw(cuts(encoded)):
        found += reader.feed(piece)
        assert held(reader) <= 1028 + 16
    assert found == known
    assert not reader.pending


@given(streams())
def test_known_capsules_come_out_of_single_bytes(stream):
    known, encoded = stream
    reader = CapsuleReader()
    assert [capsule for byte in bytewise(encoded) for capsule in reader.feed(byte)] == known


@given(st.binary(max_size=200), st.data())
def test_reader_takes_or_refuses_garbage_whatever_its_cuts(garbage, data):
    def read(pieces):
        reader, found = CapsuleReader(), []
        try:
            for piece in pieces:
                found += reader.feed(piece)
        except CapsuleError:
            return "error"
        return found, reader.pending

    if read([garbage]) != "error":
        assert read(data.draw(cuts(garbage))) == read([garbage])


@pytest.mark.parametrize("size", [0, 1, 55, 10_000, 2**40, 2**62 - 1])
def test_unknown_capsule_of_any_size_is_skipped_as_it_arrives(size):
    reader = CapsuleReader()
    header = capsules.encode_varint(0x1F * 77 + 0x21) + capsules.encode_varint(size)
    assert reader.feed(header) == []
    assert reader.pending == bool(size)
    for _ in range(min(size // 1000, 50)):
        assert reader.feed(bytes(1000)) == []
        assert held(reader) == 0
    if size <= 10_000:
        assert reader.feed(
            bytes(size % 1000) + capsules.encode_capsule(capsules.DRAIN_SESSION)
        ) == [Capsule(capsules.DRAIN_SESSION, b"")]


@pytest.mark.parametrize("kind", KNOWN)
def test_known_capsule_that_announces_too_much_is_refused_before_it_arrives(kind):
    header = capsules.encode_varint(kind) + capsules.encode_varint(KNOWN[kind] + 1)
    with pytest.raises(CapsuleError):
        CapsuleReader().feed(header)
    assert CapsuleReader().feed(capsules.encode_capsule(kind, bytes(KNOWN[kind])))


@pytest.mark.parametrize("behind", [b"\x00", capsules.encode_capsule(0x21), b"\x78\xae\x00"])
def test_whatever_follows_a_close_stays_pending(behind):
    reader = CapsuleReader()
    assert len(reader.feed(capsules.encode_close(1, b"x") + behind)) == 1
    assert reader.pending


def test_stream_that_ends_inside_a_capsule_is_told_by_pending():
    encoded = capsules.encode_close(7, b"reason")
    for size in range(1, len(encoded)):
        reader = CapsuleReader()
        assert reader.feed(encoded[:size]) == []
        assert reader.pending


@pytest.mark.parametrize("code", [0, 1, 255, 256, 4242, 2**32 - 1])
@pytest.mark.parametrize("reason", ["", "göödbye", "x" * 1024, "€" * 341])
def test_close_carries_code_and_reason(code, reason):
    (capsule,) = CapsuleReader().feed(capsules.encode_close(code, reason.encode()))
    assert capsules.parse_close(capsule.payload) == (code, reason)


@pytest.mark.parametrize("payload", [b"", b"\0\0\0", b"\0\0\0\0\xff", b"\0\0\0\0\xe2\x82"])
def test_close_that_is_short_or_not_utf8_is_refused(payload):
    with pytest.raises(CapsuleError):
        capsules.parse_close(payload)


@pytest.mark.parametrize("payload", [b"", b"\x40", b"\x01\x00", bytes(8)])
def test_limit_that_is_not_one_integer_is_refused(payload):
    with pytest.raises(CapsuleError):
        capsules.parse_limit(payload)


@given(st.integers(0, 2**62 - 1))
def test_limit_comes_back(limit):
    assert capsules.parse_limit(capsules.encode_varint(limit)) == limit
