"""
Floor 2: gevent and sockets.

Bytes come in and go out here, greenlets wait here, time passes here. Nothing here knows QUIC,
HTTP or WebTransport, and nothing here imports gwt.protocol: they meet on floor 3.
"""

__all__: list[str] = []
