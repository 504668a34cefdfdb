"""
One UDP socket on a hub: bounded reading, dispatch by a function it is given, batched sending.

Datagrams are sorted by ``route`` and handed to Receivers in lists; what those want to send comes
back through send(). What is inside a datagram is not this room's business: no QUIC, no user code.

All of it is the *quiet zone*: it runs in the hub, or below a caller that may not wait, so it
never switches, spawns, logs or raises. It counts in ``stats``: wakeups, datagrams_received,
bytes_received, unrouted, newcomers, newcomers_dropped, truncated, empty, unanswerable (from port
0), datagrams_sent, bytes_sent, writes, gso_refused, send_blocked, lost_backlog, lost_too_large,
lost_unsent (refused by the kernel), path_errors, mtu_errors, receiver_errors.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from gevent import get_hub
from gevent.monkey import get_original

from gwt.net import udpsocket as kernel
from gwt.net.receiver import NEWCOMER, NewcomerType, Receiver
from gwt.net.timers import Timer, now
from gwt.net.turns import ReadingTime
from gwt.net.udpsocket import Address, open_socket
from gwt.observe import Counters

__all__ = ["NEWCOMER", "Address", "NewcomerType", "Receiver", "UdpEndpoint", "open_socket"]

# What one wake-up hands on at most. More gains no throughput and costs everybody else latency.
_DRAIN: Final = 64

# A handshake costs a millisecond or more of cryptography, so only these many a turn.
_NEWCOMERS_A_TURN: Final = 2

_BUDGET: Final = 0.004  # Seconds of a turn for newcomers, and for sending what waited.

# Datagrams that wait for a full socket: 1.2 MB, less than the socket's own buffer.
_BACKLOG: Final = 1024

# The kernel takes 64 segments a call, and no more than one UDP datagram could hold.
_SEGMENTS: Final = 64
_BATCH_BYTES: Final = 64_999

# A full queue of the network device does not tell when it has room.
_DEVICE_PAUSE: Final = 0.001

_DEVICE_FULL: Final = frozenset({errno.ENOBUFS, errno.ENOMEM})
# What the kernel says to a batch that it may take datagram by datagram.
_GSO_ERRORS: Final = frozenset({errno.EIO, errno.EINVAL, errno.EOPNOTSUPP})
# Our own system's refusals: a firewall, an address that is gone. No news of the path.
_LOCAL_ERRORS: Final = frozenset({errno.EPERM, errno.EINVAL, errno.EBADF})

# One buffer a hub: an endpoint has copied everything out of it before another one reads.
_buffers: weakref.WeakKeyDictionary[Any, memoryview] = weakref.WeakKeyDictionary()

_Route: TypeAlias = Callable[[bytes, Address, str | None], Receiver | NewcomerType | None]
_Batch: TypeAlias = tuple[list[bytes], Address, str | None]
_Groups: TypeAlias = dict[Receiver, dict[tuple[Address, str | None], list[bytes]]]


class UdpEndpoint:
    """
    A bound UDP socket, which it owns, and the receivers behind it.

    `route` says whose a datagram is: a Receiver, None to drop it, or NEWCOMER to have `newcomer`
    make a receiver (or None) when its turn comes. `path_error` hears of unreachable peers.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        route: _Route,
        newcomer: Callable[[bytes, Address, str | None], Receiver | None] | None = None,
        path_error: Callable[[Address, OSError], None] | None = None,
        max_newcomers: int = 1024,
        clock: Callable[[], float] = now,
        gso: bool = True,
    ) -> None:
        hub = get_hub()
        sock.setblocking(False)
        self.address: Address = sock.getsockname()
        self.family = int(sock.family)
        self.stats = Counters()
        self.closed = False

        # The last drain stopped at its bounds, so that more is probably waiting in the socket.
        self.behind = False

        self._sock = sock
        self._loop: Any = hub.loop
        self._clock = clock
        self._time = ReadingTime.current() if clock is now else ReadingTime(clock)
        self._looked = -1
        self._route = route
        self._newcomer = newcomer
        self._path_error = path_error
        self._reader: Any = None
        self._writer: Any = None

        # A poll for no event at all tells of errors only, at a third of the price of reading an
        # empty error queue.
        self._errors = get_original("select", "poll")()
        self._errors.register(sock.fileno(), 0)
        self._path_errors: dict[Address, int] = {}

        self._view = _buffers.setdefault(hub, memoryview(bytearray(65_535)))
        self._draining = False

        # What a drain read and had no time or room for: datagrams of one batch that are not
        # routed yet, and batches for receivers, or None where one is to be flushed.
        self._rest: _Batch | None = None
        self._due: deque[tuple[Receiver, _Batch | None]] = deque()
        self.newcomers: deque[tuple[bytes, Address, str | None]] = deque()
        self._max_newcomers = max_newcomers

        # What the socket did not take, in order, and who has more to send once that is gone.
        self._gso = gso and kernel.LINUX
        self._backlog: deque[tuple[Sequence[bytes], Address, str | None]] = deque()
        self._waiting = 0
        self._device_full = False
        self._to_flush: dict[Receiver, None] = {}
        self._pause = Timer(self._writable, clock=clock)

        # Unfinished work goes on here. Not by run_callback: callbacks that schedule callbacks
        # all run in one turn of the loop, and no socket is looked at in between.
        self._turn = Timer(self._next_turn, clock=clock)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "blocked" if self.blocked else "open"
        received, sent = self.stats["datagrams_received"], self.stats["datagrams_sent"]
        return f"<UdpEndpoint {self.address[:2]} {state}, {received} received, {sent} sent>"

    @property
    def blocked(self) -> bool:
        """Whether datagrams wait for the socket to take them."""
        return bool(self._backlog)

    def start(self) -> None:
        """Read from now on. Idempotent."""
        if not self.closed and self._reader is None:
            self._reader = self._loop.io(self._sock.fileno(), 1)
            self._reader.start(self._readable)

    def close(self) -> None:
        """Close the socket; what was not sent or served is dropped. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.behind = False
        self._turn.close()
        self._pause.close()
        for watcher in (self._reader, self._writer):
            if watcher is not None:
                watcher.stop()
                # libuv aborts the process if a watcher is closed in its own callback.
                self._loop.run_callback(watcher.close)
        self._reader = self._writer = self._rest = None
        for queue in (self._due, self.newcomers, self._backlog, self._to_flush, self._path_errors):
            queue.clear()
        self._waiting = 0
        self._sock.close()

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except Exception:
            # Safety net: receivers handle their own errors, and the reader must live.
            self.stats.note("receiver_errors", traceback.format_exc())
            return None

    def _readable(self) -> None:
        # What the last drain left is served by the timer, in this same turn: once is enough.
        if not self._due and self._rest is None:
            self.drain()

    def drain(self) -> None:
        """Read and hand on what has arrived, within the bounds of one wake-up."""
        if self.closed or self._draining:
            return
        self._draining = True
        try:
            self._drain(self._time.until())
            self._looked = self._time.turn
        finally:
            self._draining = False

    def catch_up(self) -> None:
        """Drain, once in a turn without time for it; `behind` tells whether more may wait."""
        if self._looked != self._time.turn or not self._time.spent:
            self.drain()

    def _drain(self, until: float) -> None:
        self.stats["wakeups"] += 1
        # Every time: the queue also fills without failing a read, and then wakes us for ever.
        if self._errors.poll(0):
            self._read_errors()
            self._report_path_errors()
        self.behind = True
        if self._serve(until) and not self.closed:
            self._read(until)
            self._serve(until)
        if self._due or self._rest is not None:
            self.behind = True
            self._soon()
        if self.closed:
            self.behind = False

    def _read(self, until: float) -> None:
        groups: _Groups = {}
        room = _DRAIN
        if self._rest is not None:
            datagrams, address, local = self._rest
            self._rest = None
            room -= self._sort(datagrams, address, local, room, groups)
        receive, buffers = self._sock.recvmsg_into, [self._view]
        while room > 0 and not self.closed and self._clock() < until:
            try:
                length, ancillary, flags, address = receive(buffers, kernel.ANCILLARY)
            except BlockingIOError:
                self.behind = False
                break
            except OSError:
                # The error of some destination; it counts, as a flood of them must end, too.
                room -= 1
                self._read_errors()
                self._report_path_errors()
                continue
            segment = 0
            local = None
            for level, kind, value in ancillary:
                if level == kernel.UDP and kind == kernel.UDP_GRO:
                    segment = int.from_bytes(value[:4], sys.byteorder)
                else:
                    local = kernel.local_address(level, kind, value)
            # A batch without its ancillary data has no boundaries: as bad as cut off.
            cut = flags & kernel.TRUNCATED
            if cut or not length or not address[1]:
                self.stats["truncated" if cut else "unanswerable" if length else "empty"] += 1
                room -= 1
                continue
            self.stats["bytes_received"] += length
            data = bytes(self._view[:length])
            if 0 < segment < length:
                datagrams = [data[i : i + segment] for i in range(0, length, segment)]
            else:
                datagrams = [data]
            room -= self._sort(datagrams, address, local, room, groups)
        if self.closed:
            return
        for receiver, batches in groups.items():
            for (address, local), datagrams in batches.items():
                self._due.append((receiver, (datagrams, address, local)))
            self._due.append((receiver, None))

    def _sort(
        self, datagrams: list[bytes], address: Address, local: str | None, room: int, out: _Groups
    ) -> int:
        """Route at most `room` datagrams of one batch; return how many."""
        if len(datagrams) > room:
            self._rest = (datagrams[room:], address, local)
            datagrams = datagrams[:room]
        self.stats["datagrams_received"] += len(datagrams)
        group: list[bytes] = []
        previous: object = self
        for data in datagrams:
            try:
                receiver = self._route(data, address, local)
            except Exception:
                # Safety net: route() looks into what strangers send, and the reader must live.
                self.stats.note("receiver_errors", traceback.format_exc())
                continue
            if receiver is previous:
                group.append(data)
            elif receiver is None:
                self.stats["unrouted"] += 1
            elif receiver is not NEWCOMER:
                previous = receiver
                group = out.setdefault(receiver, {}).setdefault((address, local), [])
                group.append(data)
            elif len(self.newcomers) < self._max_newcomers:
                self.newcomers.append((data, address, local))
                self._soon()
            else:
                # The newest goes: the oldest will be served before its peer sends it again.
                self.stats["newcomers_dropped"] += 1
        return len(datagrams)

    def _serve(self, until: float) -> bool:
        """Hand on what is due; False if time was up first."""
        while self._due:
            receiver, batch = self._due.popleft()
            if batch is None:
                self._call(receiver.flush)
            elif rest := self._call(receiver.receive, *batch):
                # Nothing newer of its is waiting: the socket is read when all is served.
                self._due += ((receiver, (rest, *batch[1:])), (receiver, None))
            if self._clock() >= until:
                break
        return not self._due

    def _soon(self) -> None:
        if self._turn.deadline is None:
            self._turn.arm(self._clock())

    def _next_turn(self) -> None:
        if self._due or self._rest is not None:
            self.drain()
        self._serve_newcomers()
        self._flush_waiting()
        if self.newcomers:
            self._soon()

    def _serve_newcomers(self) -> None:
        until = self._clock() + _BUDGET
        touched: dict[Receiver, None] = {}
        made = served = 0
        while self.newcomers and made < _NEWCOMERS_A_TURN and served < _DRAIN:
            if served and self._clock() >= until:
                break
            served += 1
            args = self.newcomers.popleft()
            # A first flight can span two datagrams, so that the receiver may exist by now.
            receiver = self._call(self._route, *args)
            if receiver is NEWCOMER:
                made += 1
                self.stats["newcomers"] += 1
                receiver = self._call(self._newcomer, *args) if self._newcomer else None
            if receiver is None:
                self.stats["unrouted"] += 1
            else:
                touched[receiver] = None
                self._call(receiver.receive, [args[0]], *args[1:])
        for receiver in touched:
            self._call(receiver.flush)

    def _read_errors(self) -> int:
        """Empty the error queue, as far as 64 entries; return how many were not of our making."""
        if self.closed:
            return 0
        count = 0
        for address, code, origin in kernel.read_errors(self._sock, _DRAIN):
            count += origin != kernel.ORIGIN_LOCAL
            if code == errno.EMSGSIZE:
                self.stats["mtu_errors"] += 1
            elif address:
                self._path_errors[address] = code
        if self._reader is not None:
            # libuv has silently stopped watching a socket that had an error.
            self._reader.stop()
            self._reader.start(self._readable)
        return count

    def _report_path_errors(self) -> None:
        errors, self._path_errors = self._path_errors, {}
        for address, code in errors.items():
            self.stats["path_errors"] += 1
            if self._path_error is not None and not self.closed:
                self._call(self._path_error, address, OSError(code, os.strerror(code)))

    def send(self, datagrams: Sequence[bytes], address: Address, local: str | None = None) -> None:
        """
        Send `datagrams` to `address` (numeric), from our address `local` if there are several.

        What the socket does not take is kept for later, up to a bound; what the network does
        not take is lost, as on the wire.
        """
        if self.closed:
            return
        # Behind the backlog: overtaking it would look like loss to the peer.
        done = 0 if self._backlog else self._send(datagrams, address, local)
        if self._path_errors:
            # The caller is in the middle of something, which path_error must not re-enter.
            self._loop.run_callback(self._report_path_errors)
        if done == len(datagrams):
            return
        if not self._backlog:
            self.stats["send_blocked"] += 1
            self._await_room()
        kept = datagrams[done : done + _BACKLOG - self._waiting]
        self.stats["lost_backlog"] += len(datagrams) - done - len(kept)
        if kept:
            self._backlog.append((kept, address, local))
            self._waiting += len(kept)

    def flush_when_writable(self, receiver: Receiver) -> None:
        """Call receiver.flush() once, when the backlog is gone; next turn if there is none."""
        if not self.closed:
            self._to_flush[receiver] = None
            if not self._backlog:
                self._soon()

    def _send(self, datagrams: Sequence[bytes], address: Address, local: str | None) -> int:
        """Send until the socket is full; return how many are sent, or lost."""
        control = kernel.source(self.family, local) if local is not None else []
        total = len(datagrams)
        done = 0
        while done < total:
            size = len(datagrams[done])
            end = done + 1
            if self._gso and size:
                most = min(total, done + _SEGMENTS, done + _BATCH_BYTES // size)
                while end < most and len(datagrams[end]) == size:
                    end += 1
                if end < most and 0 < len(datagrams[end]) < size:
                    end += 1
            taken = self._transmit(datagrams[done:end], address, control)
            if not taken:
                break
            done += taken
        return done

    def _transmit(self, batch: Sequence[bytes], address: Address, control: kernel.Control) -> int:
        """Send one batch; return how many are sent or lost, which is fewer if it is full."""
        count, tries = len(batch), 0
        while True:
            try:
                if count > 1:
                    segment = kernel.segments_of(len(batch[0]))
                    length = self._sock.sendmsg(batch, [segment, *control], 0, address)
                elif control:
                    length = self._sock.sendmsg(batch, control, 0, address)
                else:
                    length = self._sock.sendto(batch[0], address)
            except BlockingIOError:
                return 0
            except OSError as error:
                code = error.errno or 0
            else:
                self.stats["writes"] += 1
                self.stats["datagrams_sent"] += count
                self.stats["bytes_sent"] += length
                return count
            if code in _DEVICE_FULL:
                self._device_full = True
                return 0
            # The error of one destination waits in the socket and fails the next send to any
            # other. Only if the queue is empty and a second try fails, it is this one's own.
            tries += 1
            if self._read_errors() and tries < 4:
                continue
            if count > 1 and (code in _GSO_ERRORS or code == errno.EMSGSIZE):
                before = self.stats["datagrams_sent"] - self.stats["lost_too_large"]
                done = 0
                while done < count and self._transmit(batch[done : done + 1], address, control):
                    done += 1
                # Not if they are refused one by one, too: a peer that nobody can send to must not
                # slow everybody else down. Of those that are too large only the last may fit.
                taken = self.stats["datagrams_sent"] - self.stats["lost_too_large"]
                if code in _GSO_ERRORS and self._gso and taken > before:
                    self._gso = False
                    self.stats.note("gso_refused", os.strerror(code))
                return done
            if tries < 2:
                continue
            self.stats["lost_too_large" if code == errno.EMSGSIZE else "lost_unsent"] += count
            if code != errno.EMSGSIZE and code not in _LOCAL_ERRORS:
                self._path_errors[address] = code
            return count

    def _await_room(self) -> None:
        if self._device_full:
            # The socket itself is writable, so that a watcher would spin.
            self._device_full = False
            self._pause.arm(self._clock() + _DEVICE_PAUSE)
            return
        if self._writer is None:
            self._writer = self._loop.io(self._sock.fileno(), 2)
        self._writer.start(self._writable)

    def _writable(self) -> None:
        if self._writer is not None:
            self._writer.stop()
        backlog, self._backlog, self._waiting = self._backlog, deque(), 0
        for args in backlog:
            # Once the socket is full again, this keeps the rest in its order.
            self.send(*args)
        self._flush_waiting()

    def _flush_waiting(self) -> None:
        until = self._clock() + _BUDGET
        for receiver in list(self._to_flush):
            if self._backlog or self.closed:
                # A flush filled the socket again: the others wait for the next time.
                return
            if self._clock() >= until:
                self._soon()
                return
            self._to_flush.pop(receiver, None)
            self._call(receiver.flush)
