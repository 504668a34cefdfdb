"""WebTransportProxy over real sockets, with our server as the proxy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import gwt
from tests.helpers.targets import proxying, service, through


@pytest.fixture
def target() -> Iterator[str]:
    """A TCP service that echoes."""
    with service() as where:
        yield where


@pytest.fixture
def proxy(target) -> Iterator[gwt.WebTransportProxy]:
    """A way to it."""
    with proxying(target) as server, through(server) as made:
        yield made


def test_a_tunnel_is_a_stream_to_a_tcp_service(proxy, target):
    with proxy.connect_through_proxy(target) as stream:
        stream.write(b"hello")
        assert stream.readexactly(5, timeout=5) == b"hello"
        stream.write_all(b"and the end")
        assert stream.read_all(timeout=5) == b"and the end"
