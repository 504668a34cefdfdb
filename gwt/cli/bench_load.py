"""
The load of ``gwt bench``: clients that connect, and then do one thing over and over.

What that is stands in bench_operations.py. What happens is counted in a Tally; nothing here prints,
or knows who looks on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gevent.pool import Group, Pool

import gwt

from ..client.benchmark import error_kind
from .bench_operations import Operation, Unfinished, operation

__all__ = ["CONNECTING", "Load", "Tally", "clock"]

# Clients that connect at a time; the timeout of each begins when it is its turn.
CONNECTING = 64

# The first datagram may get lost, too.
_WARM_UPS = 3

# Between the starts of so many clients.
_STEP = 0.05

# Until a client whose connect failed tries again: a server is not to be hammered.
_PAUSE = 0.1

# How long WebSockets have for their closing handshakes, all of them together.
_PARTING = 2.0

clock = time.perf_counter_ns


class Tally:
    """What has happened so far; times in nanoseconds."""

    def __init__(self) -> None:
        # Of what has finished since somebody looked, and took it away.
        self.times: list[int] = []
        self.connect_times: list[int] = []
        self.lost = 0
        # By kind, with the first message of each.
        self.errors: Counter[str] = Counter()
        self.messages: dict[str, str] = {}
        self.first: Exception | None = None

    def failed(self, error: Exception) -> None:
        """Count an error."""
        kind = error_kind(error)
        self.errors[kind] += 1
        self.messages.setdefault(kind, " ".join(str(error).split()))
        self.first = self.first or error


class Load:
    """So many clients of one URL, all doing the same."""

    def __init__(
        self,
        url: str,
        mode: str,
        config: gwt.ClientConfig,
        *,
        clients: int,
        size: int,
        timeout: float,
        loss_timeout: float,
        rate: float | None = None,
    ) -> None:
        self.url = url
        self.mode = mode
        self.config = config
        self.clients = clients
        self.size = size
        self.timeout = timeout
        self.loss_timeout = loss_timeout
        # Operations a second, of all together; None: as many as there can be.
        self.rate = rate
        self.tally = Tally()
        # Clients that have connected, or failed to.
        self.tried = 0
        self._connections: list[Any] = []
        # Of each client that is ready.
        self._operations: list[Operation] = []
        self._workers = Group()
        self._stopping = False
        self._wrong_usage: gwt.ConfigError | None = None

    @property
    def connected(self) -> int:
        """How many clients have connected, and finished a first operation."""
        return len(self._operations)

    @property
    def working(self) -> int:
        """How many clients are at it."""
        return len(self._workers)

    # Before the window

    def connect(self) -> None:
        """
        Connect all clients, and let each do one operation, which does not count.

        Waits until all have; failures are counted. Gives up when as many as connect at a time have
        failed and nobody got through. Raises ConfigError.
        """
        pool = Pool(CONNECTING)
        try:
            for _ in range(self.clients):
                if self._wrong_usage or (self.tried >= CONNECTING and not self._operations):
                    break
                pool.spawn(self._enter)
            pool.join()
        finally:
            pool.kill()
        if self._wrong_usage is not None:
            raise self._wrong_usage

    def _enter(self) -> None:
        try:
            began = clock()
            connection = self._open()
            self.tally.connect_times.append(clock() - began)
            if self.mode == "connect":
                self._leave(connection)
                self._operations.append(self._open_again)
            else:
                self._connections.append(connection)
                self._operations.append(self._prepared(connection))
        except gwt.ConfigError as exc:
            self._wrong_usage = exc
        except (gwt.GwtError, OSError) as exc:
            self.tally.failed(exc)
        finally:
            self.tried += 1

    def _prepared(self, connection: Any) -> Operation:
        """Return what a client will do, having done it once."""
        try:
            once = operation(connection, self.mode, self.size, self.timeout, self.loss_timeout)
            for _ in range(_WARM_UPS):
                with suppress(Unfinished):
                    once()
                    return once
        except TimeoutError as exc:
            raise self._unanswered() from exc
        raise TimeoutError(
            f"None of {_WARM_UPS} datagrams came back, each within {self.loss_timeout:g} s."
        )

    def _unanswered(self) -> TimeoutError:
        return TimeoutError(f"The server was connected to, but did nothing for {self.timeout:g} s.")

    # The window

    def start(self) -> None:
        """
        Let all clients begin that are connected, some at a time; waits until the last one has.

        Thousands of packets at once would be lost before the server's socket, and none of them
        would be heard of again before the window was over.
        """
        interval = None if self.rate is None else round(1e9 * self.connected / self.rate)
        began = clock()
        for number, once in enumerate(self._operations, 1):
            if interval is None:
                self._workers.spawn(self._work, self._closed_loop, once)
                if number % CONNECTING == 0:
                    gevent.sleep(_STEP)
            else:
                due = began + interval * number // self.connected
                self._workers.spawn(self._work, self._open_loop, once, due, interval)
        gevent.sleep(0)

    def _work(self, loop: Callable[..., None], *args: Any) -> None:
        try:
            loop(*args)
        except TimeoutError:
            self._ended(self._unanswered())
        except (gwt.GwtError, OSError) as exc:
            self._ended(exc)

    def _ended(self, error: Exception) -> None:
        if not self._stopping:
            self.tally.failed(error)

    def _closed_loop(self, once: Operation) -> None:
        """Begin an operation when the last one has ended."""
        finished = self.tally.times.append
        leave = self._leave if self.mode == "connect" else None
        while True:
            began = clock()
            try:
                opened = once()
            except Unfinished:
                self._unfinished()
                continue
            finished(clock() - began)
            if leave is not None:
                leave(opened)

    def _open_loop(self, once: Operation, due: int, interval: int) -> None:
        """
        Begin an operation when it is due, or late; its time counts from when it was due.

        So a server that stops for a second is slow for all that was due in that second.
        """
        finished = self.tally.times.append
        while True:
            while (early := due - clock()) > 0:
                gevent.sleep(early / 1e9)
            try:
                opened = once()
                finished(clock() - due)
                if self.mode == "connect":
                    self._leave(opened)
            except Unfinished:
                self._unfinished()
            due += interval

    def _unfinished(self) -> None:
        if self.mode == "datagram":
            self.tally.lost += 1

    def forget(self) -> None:
        """Count from now on only; errors stay."""
        self.tally.times.clear()
        self.tally.lost = 0

    def stop(self) -> None:
        """
        End all clients, and close their connections; waits, but not for long.

        The server is to hear of it, so that not all says good-bye at once either.
        """
        self._stopping = True
        deadline = time.monotonic() + _PARTING
        connections, self._connections = self._connections, []
        # Before the clients end: what still comes is then no work any more.
        for number, connection in enumerate(connections, 1):
            if isinstance(connection, gwt.WebSocket):
                connection.begin_close(within=_PARTING)
            else:
                connection.connection.close()
            if number % CONNECTING == 0:
                gevent.sleep(0)
        self._workers.kill()
        for connection in connections:
            if isinstance(connection, gwt.WebSocket):
                try:
                    connection.wait_closed(timeout=max(0.0, deadline - time.monotonic()))
                except TimeoutError:
                    connection.abort()

    # Mode connect

    def _open(self) -> Any:
        return gwt.connect(self.url, config=self.config)

    def _open_again(self) -> Any:
        try:
            return self._open()
        except (gwt.GwtError, OSError) as exc:
            self.tally.failed(exc)
            gevent.sleep(_PAUSE)
            raise Unfinished from None

    def _leave(self, connection: Any) -> None:
        if not isinstance(connection, gwt.WebSocket):
            connection.connection.close()
            return
        try:
            connection.close(timeout=self.timeout)
        except BaseException:
            connection.abort()
            raise
