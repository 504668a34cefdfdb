"""
The protocols, pure: bytes and `now` in, events and bytes out. Floor 1.

Nothing here imports gevent, a socket, a clock or a logger, so that a test can hold a whole
connection in its hand and turn its time. What a peer sends never makes these modules raise:
they close with the wire code that the specification names and say so in an event.
"""

__all__: list[str] = []
