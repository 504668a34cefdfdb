"""The header of a request: what is one, and what pywsgi is given for it."""

from __future__ import annotations

import io

import pytest
from gevent.pywsgi import headers_factory
from hypothesis import given
from hypothesis import strategies as st

from gwt.server.headers import Headers, read_headers


class Dribble(io.RawIOBase):
    """Bytes that come one by one."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        buffer[: len(self.data[:1])] = self.data[:1]
        one, self.data = self.data[:1], self.data[1:]
        return len(one)


@pytest.fixture(params=["at once", "byte by byte"])
def read(request):
    def whole(data: bytes) -> tuple[Headers, bytes]:
        raw = io.BytesIO(data) if request.param == "at once" else Dribble(data)
        file = io.BufferedReader(raw)
        return read_headers(file), file.read()

    return whole


def test_fields_are_found_whatever_their_case(read):
    headers, rest = read(b"Host: a\r\nX-One:  1 \r\nx-one:2\r\nX-Two:\r\n\r\nrest")
    assert rest == b"rest"
    assert headers.items() == [("Host", "a"), ("X-One", "1"), ("x-one", "2"), ("X-Two", "")]
    assert headers.get("x-ONE") == headers.getheader("X-One") == "1"
    assert headers.get("x-three") is None and headers.get("x-three", "?") == "?"
    assert headers.get_all("X-one") == ["1", "2"] and headers.get_all("no") == []
    assert "hOst" in headers and "no" not in headers
    assert list(headers.headers) == ["Host: a\r\n", "X-One: 1\r\n", "x-one: 2\r\n", "X-Two: \r\n"]
    assert headers.typeheader is None and headers.status == ""
    del headers["X-one"], headers["no"]
    assert headers.items() == [("Host", "a"), ("X-Two", "")] and "x-one" not in headers


def test_an_empty_one(read):
    assert read(b"\r\nGET")[0].items() == []


def test_a_long_one_is_read_though_no_buffer_holds_it(read):
    value = "x" * 60_000
    headers, rest = read(f"A: {value}\r\n\r\nrest".encode())
    assert headers.get("a") == value and rest == b"rest"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Host: a\r\n",
        b"Host: a",
        b"Host: a\r\n\n",
        b"Host: a\n\r\n",
        b"Host : a\r\n\r\n",
        b"Host: a\r\n folded\r\n\r\n",
        b": a\r\n\r\n",
        b"Host\r\n\r\n",
        b"Host: a\rX: b\r\n\r\n",
        b"Host: \0\r\n\r\n",
        b"Ho\xe9st: a\r\n\r\n",
        b"A: " + b"x" * 65_536 + b"\r\n\r\n",
        b"A: " + b"x" * 100_000,
        b"A: b\r\n" * 101 + b"\r\n",
    ],
)
def test_what_is_none(read, data):
    with pytest.raises(ValueError, match=r"malformed|too long"):
        read(data)


def test_as_many_lines_as_may_be(read):
    assert len(read(b"A: b\r\n" * 100 + b"\r\n")[0].items()) == 100


NAMES = st.text(st.sampled_from("abcXYZ-_09"), min_size=1, max_size=6)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=8)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_pywsgi_s_own_says_the_same(fields):
    data = "".join(f"{name}: {value}\r\n" for name, value in fields).encode() + b"\r\n"
    ours, theirs = (
        read_headers(io.BufferedReader(io.BytesIO(data))),
        headers_factory(io.BytesIO(data)),
    )
    assert list(ours.headers) == list(theirs.headers)
    assert ours.items() == theirs.items()
    assert ours.typeheader == theirs.typeheader
    for name, _ in fields:
        assert ours.get(name) == theirs.get(name)
        assert ours.get_all(name) == theirs.get_all(name)
