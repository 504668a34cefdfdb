"""cProfile over all greenlets of a process: for the peers that have some."""

from __future__ import annotations

import cProfile

import greenlet

__all__ = ["Profiler"]


class Profiler:
    """A profile whose calls that are under way at a switch are counted up to it."""

    def __init__(self) -> None:
        self.profile = cProfile.Profile()

    def start(self) -> None:
        greenlet.settrace(self.switched)
        self.profile.enable()

    def switched(self, event: str, ends: object) -> None:
        # One profile takes the returns of one greenlet for those of another.
        self.profile.disable()
        self.profile.enable()

    def stop(self, file: str) -> None:
        greenlet.settrace(None)
        self.profile.disable()
        self.profile.dump_stats(file)

    def command(self, file: str | None) -> None:
        """Start, or with a file's name stop and write into it: as a peer is asked."""
        if file is None:
            self.start()
        else:
            self.stop(file)
