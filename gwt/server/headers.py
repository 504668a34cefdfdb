"""
The header of an HTTP/1.1 request, read strictly (RFC 9112 5), as pywsgi wants to be given one.

A line that another parser could read differently is an error here. Which headers a request must
have, and how long reading may take, is http.py's affair.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["WHOLE", "Headers", "fields_of", "read_headers"]

# All lines together, and their number.
_MAX_BYTES = 64 * 1024
_MAX_LINES = 100

# RFC 9110 5.1 and 5.5. No folding, no space before the colon, no bare CR or LF.
_LINE = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n"
_FIELD_LINE = re.compile(_LINE)

# A whole header, with its empty line.
WHOLE = re.compile(rb"(?:%s){0,%d}\r\n" % (_LINE, _MAX_LINES))


class Headers:
    """The fields of a header, in order, and by name whatever its case."""

    # pywsgi would refuse a header that has one.
    status = ""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields
        self._first: dict[str, str] = {}
        for name, value in fields:
            self._first.setdefault(name.lower(), value)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._first

    def __delitem__(self, name: str) -> None:
        # As email's does: it is no error if there is none.
        if self._first.pop(name.lower(), None) is not None:
            self._fields = [each for each in self._fields if each[0].lower() != name.lower()]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the first value of a name, or the default."""
        return self._first.get(name.lower(), default)

    getheader = get

    def get_all(self, name: str) -> list[str]:
        """Return all values of a name, in order."""
        if name not in self:
            return []
        return [value for each, value in self._fields if each.lower() == name.lower()]

    def items(self) -> list[tuple[str, str]]:
        """Return all fields, in order."""
        return self._fields

    @property
    def headers(self) -> Iterator[str]:
        """Yield the lines."""
        return (f"{name}: {value}\r\n" for name, value in self._fields)

    @property
    def typeheader(self) -> str | None:
        """The first Content-Type."""
        return self._first.get("content-type")


def read_headers(file: Any) -> Headers:
    """Read a header up to its empty line, from a buffered file; raises ValueError. Waits."""
    # Mostly it is there as a whole.
    whole = WHOLE.match(file.peek())
    block: bytes = file.read(whole.end())[:-2] if whole is not None else _read_lines(file)
    return Headers(fields_of(block))


def fields_of(block: bytes) -> list[tuple[str, str]]:
    """Return the names and values of lines that are well-formed."""
    fields = []
    for line in block.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        fields.append((name, value.strip(" \t")))
    return fields


def _read_lines(file: Any) -> bytes:
    block = bytearray()
    for _ in range(_MAX_LINES + 1):
        line = file.readline(_MAX_BYTES + 1 - len(block))
        if line == b"\r\n":
            return bytes(block)
        block += line
        if len(block) > _MAX_BYTES:
            break
        if not _FIELD_LINE.fullmatch(line):
            raise ValueError("a line of the header is malformed")
    raise ValueError("the header is too long")
