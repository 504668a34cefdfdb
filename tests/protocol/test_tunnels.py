"""Tunnels (RFC 9114 4.4): CONNECT requests whose DATA frames are a stream."""

from __future__ import annotations

from gwt.protocol import events
from gwt.protocol.webtransport import WebTransport
from tests.helpers.pair import Pair
from tests.helpers.raw import leftovers


def taking(quic, config):
    """A server's protocol that takes tunnels."""
    protocol = WebTransport(quic, config)
    protocol.takes_tunnels = True
    return protocol


def pair(**options):
    made = Pair(server_factory=taking, **options)
    made.run_until(lambda: made.client.protocol.ready)
    return made


def tunnel(made, authority="example.test:80"):
    """Bring up a tunnel; returns its stream."""
    stream_id = made.client.protocol.open_tunnel(authority)
    made.run_until(lambda: asked(made, stream_id))
    assert made.server.protocol.accept_tunnel(stream_id)
    made.run_until(lambda: answered(made, stream_id))
    return stream_id


def asked(made, stream_id):
    return [e for e in made.server.of(events.TunnelRequested) if e.stream_id == stream_id]


def answered(made, stream_id):
    return [e for e in made.client.of(events.TunnelAccepted) if e.stream_id == stream_id]


def test_a_tunnel_carries_bytes_both_ways_and_leaves_nothing():
    made = pair()
    stream_id = tunnel(made, "Example.TEST:8080")
    request = made.server.last(events.TunnelRequested)
    assert (request.host, request.port) == ("example.test", 8080)
    assert made.client.protocol.send_stream(stream_id, b"up")
    assert made.client.protocol.send_stream(stream_id, b"stream", True)
    assert made.server.protocol.send_stream(stream_id, b"down", True)
    made.run()
    assert made.server.data(stream_id) == b"upstream"
    assert made.client.data(stream_id) == b"down"
    for end in made.ends():
        for event in end.of(events.StreamDataReceived):
            end.protocol.consumed(stream_id, len(event.data))
        assert end.of(events.StreamFinished)
    made.run()
    assert not leftovers(made.client.protocol) and not leftovers(made.server.protocol)
