"""
StreamManager: the streams of one session, and how many of our own it may have open.

Every session has one, so it costs a few hundred bytes, and no greenlet: without a cleanup
interval it is not known to the reaper either. Beyond what a Registry asks, streams have
``stream_id`` and ``direction``. How a stream is opened is not known here: see `stream_factory`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from ..errors import GwtError, StreamError, TooManyStreams
from .registry import Member, Registry

__all__ = ["StreamManager"]


class StreamManager(Registry):
    """
    Streams by ``stream_id``; at most `max_streams` created here at a time (None: no limit).

    `stream_factory(is_unidirectional)` opens a stream, and may wait. It returns the stream, or
    the id of one; then `session_factory().make_stream(stream_id, is_unidirectional)` returns
    the stream with that id. Streams that the peer opened come by add_stream(), and have no limit.
    """

    __slots__ = ("_opening", "_own", "_session_factory", "_stream_factory")

    kind = "stream"

    # Makes a stream object for (session, stream id, is_unidirectional), where the session has no
    # `make_stream` of its own; set by the floor that has the stream classes.
    make_stream: Callable[[Any, int, bool], Member] | None = None

    def __init__(
        self,
        *,
        stream_factory: Callable[[bool], Any],
        session_factory: Callable[[], Any],
        max_streams: int | None = 100,
        stream_cleanup_interval: float | None = 15.0,
    ) -> None:
        super().__init__(limit=max_streams, cleanup_interval=stream_cleanup_interval)
        self._stream_factory = stream_factory
        self._session_factory = session_factory

        # Who holds a slot: streams that are being opened, and the ids of those that were
        # created here and have not left. The ids are kept only where there is a limit.
        self._opening = 0
        self._own: set[Hashable] | None = None

    def add_stream(self, stream: Member) -> None:
        """
        Take in a stream that the peer opened. Never waits.

        A stream whose id is here already is ignored. One that is already closed is counted,
        and gone at once. Raises StreamError if the manager is not activated.
        """
        if not self.active:
            raise self._inactive()
        key = self._key(stream)
        if key not in self._members:
            self._insert(key, stream)

    def create_bidirectional_stream(self) -> Member:
        """
        Open a stream for both directions and return it; waits as long as `stream_factory` does.

        Raises TooManyStreams at once if the limit is reached, StreamError if the manager is
        not activated, or what `stream_factory` raises.
        """
        return self.create_stream(partial(self._open, False))

    def create_unidirectional_stream(self) -> Member:
        """Open a stream for sending and return it; as create_bidirectional_stream()."""
        return self.create_stream(partial(self._open, True))

    def create_stream(self, open_stream: Callable[[], Member]) -> Member:
        """
        Take a slot, call `open_stream()`, and take in the stream that it returns.

        The slot is returned when the stream leaves, or if `open_stream` raises. Waits and
        raises as create_bidirectional_stream(). For callers that open streams their own way,
        as with a timeout. It may take the stream in itself, by add_stream().
        """
        if not self.active:
            raise self._inactive()
        if self._limit is not None and self._slots_taken() >= self._limit:
            raise self._over_limit()
        self._opening += 1
        try:
            stream = open_stream()
            if not self.active:
                # Shut down while it was being opened: nobody would ever close it.
                self._discard(stream)
                raise self._inactive()
            self._take_in(stream)
            return stream
        finally:
            self._opening -= 1

    def remove_stream(self, stream_id: Hashable) -> Member | None:
        """
        Take a stream out, without closing it; return it, or None if it is not here.

        Its slot is free from then on.
        """
        return self._remove(stream_id)

    def cleanup_closed_streams(self) -> int:
        """Do what cleanup_closed_resources() does."""
        return self.cleanup_closed_resources()

    def get_stats(self) -> dict[str, Any]:
        """
        Return totals, the limit, slots, and the streams by state and direction. Scans all.

        ``semaphore_value`` is the number of free slots, None if there is no limit.
        """
        stats = super().get_stats()
        if stats:
            free = None if self._limit is None else self._limit - self._slots_taken()
            stats["semaphore_locked"] = free is not None and free <= 0
            stats["semaphore_value"] = free
            stats["directions"] = self._breakdown("direction")
        return stats

    def _open(self, is_unidirectional: bool) -> Member:
        made = self._stream_factory(is_unidirectional)
        if not isinstance(made, int):
            return made
        session = self._session_factory()
        if session is None:
            raise StreamError("The session of this stream is gone.", stream_id=made)
        # Looked for in the class: what stands in for a session in a test may have any attribute.
        if self.make_stream is None or hasattr(type(session), "make_stream"):
            return session.make_stream(made, is_unidirectional)
        return self.make_stream(session, made, is_unidirectional)

    def _take_in(self, stream: Member) -> None:
        key = self._key(stream)
        present = self._members.get(key)
        if present is None:
            self._insert(key, stream)
        elif present is not stream:
            raise StreamError(f"Another stream with the id {key!r} is already managed.")
        # It may have ended already, and then its slot is not to be held for ever.
        if self._limit is not None and self._members.get(key) is stream:
            if self._own is None:
                self._own = set()
            self._own.add(key)

    def _slots_taken(self) -> int:
        return self._opening + (len(self._own) if self._own else 0)

    def _drop(self, key: Hashable) -> Member:
        # Every way out leads through here, so that a slot is returned exactly once.
        if self._own is not None:
            self._own.discard(key)
        return super()._drop(key)

    def _discard(self, stream: Member) -> None:
        try:
            if hasattr(stream, "abort"):
                stream.abort()
            else:
                stream.close()
        except Exception as exc:
            # Boundary to user code: the caller is told that the manager is shut down.
            self._failed("abort() or close()", exc)

    def _key(self, member: Member) -> Hashable:
        key: Hashable = member.stream_id
        return key

    def _close(self, member: Member, reason: str) -> None:
        # The end of a stream has no reason.
        member.close()

    def _inactive(self) -> GwtError:
        return StreamError(self._inactive_text())

    def _over_limit(self) -> GwtError:
        return TooManyStreams(
            f"Cannot create new stream: stream limit ({self._limit}) reached.", limit=self._limit
        )
