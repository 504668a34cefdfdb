"""Messages on a stream: what goes in comes out, however it is cut, and nothing else is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwt.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError
from gwt.protocol.messages import MessageReader, encode_message

ANY = st.one_of(st.text(), st.binary())


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        ("", b"\x01\x00"),
        (b"", b"\x02\x00"),
        ("ö", b"\x01\x02\xc3\xb6"),
        (b"x" * 64, b"\x02\x40\x40" + b"x" * 64),
        (bytearray(16384), b"\x02\x80\x00\x40\x00" + bytes(16384)),
        (memoryview(b"ab"), b"\x02\x02ab"),
    ],
)
def test_is_a_type_a_length_and_the_payload(message, encoded):
    assert encode_message(message) == encoded


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(LocalProtocolError):
        encode_message("\ud800")


@given(st.lists(ANY), st.lists(st.integers(1, 50)))
def test_comes_out_as_it_went_in_however_it_is_cut(messages, cuts):
    data = b"".join(map(encode_message, messages))
    reader, came = MessageReader(None), []
    for cut in cuts:
        came += reader.feed(data[:cut])
        data = data[cut:]
    came += reader.feed(data)
    assert came == messages
    assert reader.rest == b""


@given(ANY)
def test_what_is_not_whole_waits(message):
    data = encode_message(message)
    reader = MessageReader(None)
    for end in range(1, len(data)):
        assert reader.feed(data[end - 1 : end]) == []
        assert reader.rest == data[:end]
    assert reader.feed(data[-1:]) == [message]


@given(st.binary())
def test_garbage_is_refused_or_read_and_never_held_beyond_the_limit(data):
    reader = MessageReader(16)
    try:
        for position in range(len(data)):
            reader.feed(data[position : position + 1])
            assert len(reader.rest) <= 16 + 9
    except (RemoteProtocolError, MessageTooLarge):
        pass


def test_a_length_beyond_the_limit_is_refused_when_it_is_announced():
    with pytest.raises(MessageTooLarge) as caught:
        MessageReader(16).feed(b"\x01\x11")
    assert caught.value.limit == 16


@pytest.mark.parametrize("data", [b"\x00", b"\x03\x00", b"h", b"\x01\x02\xc3\x28", b"\x01\x00\xff"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(RemoteProtocolError):
        MessageReader(16).feed(data)
