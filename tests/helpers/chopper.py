"""Cutting bytes into pieces, so that a parser meets every fragmentation."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

__all__ = ["bytewise", "cuts"]


def bytewise(data: bytes) -> Iterator[bytes]:
    """Yield single bytes."""
    for index in range(len(data)):
        yield data[index : index + 1]


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Draw a way to cut data into pieces, some of which may be empty."""
    marks = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)]
