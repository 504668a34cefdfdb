"""Tests of gwt.net.udp over real loopback sockets, with receivers that only take notes."""

from __future__ import annotations

import errno
import gc
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original

from gwt.net import udpsocket
from gwt.net.udp import NEWCOMER, UdpEndpoint, open_socket
from tests.helpers import arrival

LOCALHOST = ("127.0.0.1", 0)


def eventually(predicate: Callable[[], Any]) -> None:
    """Run the hub until `predicate` holds; the deadline is for a broken test only."""
    with gevent.Timeout(5, AssertionError("it did not happen within 5 s")):
        while not predicate():
            gevent.sleep(0.001)


class Notebook:
    """A Receiver that notes what it is given, in a log that receivers can share."""

    def __init__(self, name: str = "", log: list[Any] | None = None) -> None:
        self.name = name
        self.log: list[Any] = [] if log is None else log
        self.calls: list[tuple[list[bytes], Any, str | None]] = []
        self.flushes = 0
        self.on_receive: Callable[[], None] = lambda: None
        self.on_flush: Callable[[], None] = lambda: None

    def receive(self, datagrams: list[bytes], address: Any, local: str | None) -> None:
        self.calls.append((datagrams, address, local))
        self.log.append((self.name, datagrams))
        self.on_receive()

    def flush(self) -> None:
        self.flushes += 1
        self.log.append((self.name, "flush"))
        self.on_flush()

    @property
    def datagrams(self) -> list[bytes]:
        return [data for batch, _, _ in self.calls for data in batch]


class Wrapped:
    """A socket whose sends go through `say` first, which may raise."""

    def __init__(self, sock: socket.socket, say: Callable[[list[bytes], bool], None]) -> None:
        self.real = sock
        self.say = say

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def sendto(self, data: bytes, address: Any) -> int:
        self.say([data], False)
        return self.real.sendto(data, address)

    def sendmsg(self, data: list[bytes], ancillary: Any, flags: int, address: Any) -> int:
        self.say(list(data), any(kind == udpsocket.UDP_SEGMENT for _, kind, _ in ancillary))
        return self.real.sendmsg(data, ancillary, flags, address)


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Net:
    """Makes sockets and endpoints, and closes them after the test."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def plain(self, address: Any = LOCALHOST, family: int = socket.AF_INET) -> socket.socket:
        sock = open_socket(address, family, buffer=4 << 20)
        self.made.append(sock)
        return sock

    def endpoint(
        self,
        receiver: Any = None,
        address: Any = LOCALHOST,
        family: int = socket.AF_INET,
        say: Callable[[list[bytes], bool], None] | None = None,
        **options: Any,
    ) -> UdpEndpoint:
        sock: Any = self.plain(address, family)
        if say is not None:
            sock = Wrapped(sock, say)
        options.setdefault("route", lambda data, address, local: receiver)
        endpoint = UdpEndpoint(sock, **options)
        self.made.append(endpoint)
        return endpoint

    def arrived(self, endpoint: UdpEndpoint, count: int) -> None:
        """Wait until so many datagrams are in its socket, where they stay."""
        arrival.arrived(endpoint._sock, count)

    def closed_port(self) -> Any:
        sock = self.plain()
        address = sock.getsockname()
        sock.close()
        return address


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net()
    yield net
    for made in net.made:
        made.close()
    # The watchers are closed in the next turn of the loop.
    gevent.sleep(0)


def packets(*sizes: int) -> list[bytes]:
    return [bytes([65 + index % 26]) * size for index, size in enumerate(sizes)]


class TestSocket:
    def test_socket_is_raw_and_does_not_block(self, net: Net):
        sock = net.plain()
        assert type(sock) is get_original("socket", "socket")
        assert sock.getblocking() is False

    def test_second_bind_of_a_port_names_the_address(self, net: Net):
        port = net.plain().getsockname()[1]
        with pytest.raises(OSError, match=rf"Cannot bind UDP 127\.0\.0\.1:{port}: ") as caught:
            net.plain(("127.0.0.1", port))
        assert caught.value.errno == errno.EADDRINUSE

    def test_reuse_port_shares_a_port(self, net: Net):
        first = open_socket(LOCALHOST, socket.AF_INET, buffer=65536, reuse_port=True)
        second = open_socket(first.getsockname(), socket.AF_INET, buffer=65536, reuse_port=True)
        assert first.getsockname() == second.getsockname()
        first.close()
        second.close()

    def test_failing_bind_leaves_no_descriptor(self, net: Net):
        port = net.plain().getsockname()[1]
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            with pytest.raises(OSError):
                net.plain(("127.0.0.1", port))
        assert len(os.listdir("/proc/self/fd")) == len(before)

    def test_fragmentation_is_off_and_errors_are_on(self, net: Net):
        four, six = net.plain(), net.plain(("::", 0), socket.AF_INET6)
        for sock in (four, six):
            assert sock.getsockopt(udpsocket.IP, udpsocket.IP_MTU_DISCOVER) == udpsocket.PROBE
            assert sock.getsockopt(udpsocket.IP, udpsocket.IP_RECVERR) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
        assert six.getsockopt(udpsocket.IPV6, udpsocket.IPV6_MTU_DISCOVER) == udpsocket.PROBE
        assert six.getsockopt(udpsocket.IPV6, udpsocket.IPV6_RECVERR) == 1

    @pytest.mark.parametrize(("host", "wanted"), [("127.0.0.1", 0), ("0.0.0.0", 1)])
    def test_only_a_wildcard_socket_asks_for_its_own_address(self, net: Net, host, wanted):
        assert net.plain((host, 0)).getsockopt(udpsocket.IP, udpsocket.IP_PKTINFO) == wanted

    def test_buffers_are_enlarged(self, net: Net):
        plain = net.plain()
        small = open_socket(LOCALHOST, socket.AF_INET, buffer=16384)
        option = (socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert plain.getsockopt(*option) > small.getsockopt(*option) == 32768
        small.close()


class TestReading:
    def test_drain_stops_after_64_datagrams_and_says_so(self, net: Net):
        receiver = Notebook()
        endpoint, peer = net.endpoint(receiver), net.plain()
        for _ in range(70):
            peer.sendto(b"x" * 100, endpoint.address)
        net.arrived(endpoint, 70)
        endpoint.drain()
        assert len(receiver.datagrams) == 64 and receiver.flushes == 1
        assert endpoint.behind
        endpoint.drain()
        assert len(receiver.datagrams) == 70 and receiver.flushes == 2
        assert not endpoint.behind

    def test_segments_of_a_batch_count_against_the_64(self, net: Net):
        receiver = Notebook()
        endpoint, sender = net.endpoint(receiver), net.endpoint()
        sent = [index.to_bytes(2, "big") * 300 for index in range(100)]
        sender.send(sent[:50], endpoint.address)
        sender.send(sent[50:], endpoint.address)
        assert sender.stats["writes"] == 2
        net.arrived(endpoint, 100)
        endpoint.drain()
        assert receiver.datagrams == sent[:64] and endpoint.behind
        # The socket is empty: what is left of the second batch must not wait for a wake-up.
        eventually(lambda: receiver.datagrams == sent)
        assert receiver.flushes == 2 and not endpoint.behind

    def test_exactly_64_is_behind_until_the_socket_was_seen_empty(self, net: Net):
        endpoint, peer = net.endpoint(Notebook()), net.plain()
        for _ in range(64):
            peer.sendto(b"x", endpoint.address)
        net.arrived(endpoint, 64)
        endpoint.drain()
        assert endpoint.behind
        endpoint.drain()
        assert not endpoint.behind

    def test_datagrams_are_grouped_by_receiver_and_address_with_one_flush_each(self, net: Net):
        log: list[Any] = []
        receivers = {b"a": Notebook("a", log), b"b": Notebook("b", log)}
        endpoint = net.endpoint(route=lambda data, address, local: receivers.get(data[:1]))
        one, two = net.plain(), net.plain()
        for sock, data in [(one, b"a1"), (one, b"b1"), (two, b"a2"), (one, b"a3"), (one, b"?")]:
            sock.sendto(data, endpoint.address)
        net.arrived(endpoint, 5)
        endpoint.drain()
        assert log == [
            ("a", [b"a1", b"a3"]),
            ("a", [b"a2"]),
            ("a", "flush"),
            ("b", [b"b1"]),
            ("b", "flush"),
        ]
        assert [call[1] for call in receivers[b"a"].calls] == [one.getsockname(), two.getsockname()]
        assert endpoint.stats["unrouted"] == 1 and endpoint.stats["datagrams_received"] == 5

    def test_one_batch_can_belong_to_several_receivers(self, net: Net):
        receivers = {b"a": Notebook(), b"b": Notebook()}
        endpoint = net.endpoint(route=lambda data, address, local: receivers.get(data[:1]))
        sender = net.endpoint()
        sender.send([b"a1", b"b1", b"?1", b"a2", b"b2"], endpoint.address)
        assert sender.stats["writes"] == 1
        net.arrived(endpoint, 5)
        endpoint.drain()
        assert [r.datagrams for r in receivers.values()] == [[b"a1", b"a2"], [b"b1", b"b2"]]
        assert [r.flushes for r in receivers.values()] == [1, 1]

    def test_used_up_budget_leaves_the_other_receivers_to_the_next_turn(self, net: Net):
        clock = Clock()
        log: list[Any] = []
        receivers = {b"a": Notebook("a", log), b"b": Notebook("b", log)}

        def slow() -> None:
            clock.time += 0.01

        receivers[b"a"].on_receive = slow
        endpoint = net.endpoint(
            route=lambda data, address, local: receivers.get(data[:1]), clock=clock
        )
        peer = net.plain()
        for data in (b"a1", b"b1"):
            peer.sendto(data, endpoint.address)
        net.arrived(endpoint, 2)
        endpoint.drain()
        assert log == [("a", [b"a1"])] and endpoint.behind
        eventually(lambda: len(log) == 4)
        assert log[1:] == [("a", "flush"), ("b", [b"b1"]), ("b", "flush")]
        assert not endpoint.behind

    def test_held_calls_come_before_more_is_read(self, net: Net):
        clock = Clock()
        receiver = Notebook()
        receiver.on_receive = receiver.on_flush = lambda: setattr(clock, "time", clock.time + 1)
        endpoint, peer = net.endpoint(receiver, clock=clock), net.plain()
        for data in (b"1", b"2"):
            peer.sendto(data, endpoint.address)
            net.arrived(endpoint, 1)
            endpoint.drain()
        # The flush used up the second budget, so that "2" is still in the socket.
        assert receiver.datagrams == [b"1"] and receiver.flushes == 1
        endpoint.drain()
        assert receiver.datagrams == [b"1", b"2"]

    def test_watcher_reads_and_wakes(self, net: Net):
        receiver = Notebook()
        endpoint, peer = net.endpoint(receiver), net.plain()
        endpoint.start()
        endpoint.start()
        peer.sendto(b"hello", endpoint.address)
        eventually(lambda: receiver.flushes)
        assert receiver.calls == [([b"hello"], peer.getsockname(), None)]

    def test_receiver_that_raises_does_not_stop_the_reader(self, net: Net):
        def fail() -> None:
            raise ValueError("my mistake")

        bad, good = Notebook(), Notebook()
        bad.on_receive = bad.on_flush = fail
        routes = {b"bad": bad, b"good": good}
        endpoint, peer = net.endpoint(route=lambda data, *_: routes[data]), net.plain()
        endpoint.start()
        for data in (b"bad", b"no route: KeyError", b"good"):
            peer.sendto(data, endpoint.address)
        eventually(lambda: good.flushes and endpoint.stats["receiver_errors"] == 3)
        assert good.datagrams == [b"good"]
        # One wake-up or several: the route's error is among them, first or last.
        assert "ValueError: my mistake" in "".join(endpoint.stats.notes)
        peer.sendto(b"good", endpoint.address)
        eventually(lambda: good.flushes == 2)

    def test_empty_datagram_is_counted_and_is_no_end(self, net: Net):
        receiver = Notebook()
        endpoint, peer = net.endpoint(receiver), net.plain()
        peer.sendto(b"", endpoint.address)
        peer.sendto(b"more", endpoint.address)
        net.arrived(endpoint, 2)
        endpoint.drain()
        assert receiver.datagrams == [b"more"] and endpoint.stats["empty"] == 1

    @pytest.mark.parametrize(
        ("flags", "port", "counter"),
        [
            (socket.MSG_TRUNC, 1, "truncated"),
            (socket.MSG_CTRUNC, 1, "truncated"),
            (0, 0, "unanswerable"),
        ],
    )
    def test_useless_datagram_is_counted_and_dropped(self, net: Net, flags, port, counter):
        receiver = Notebook()
        endpoint = net.endpoint(receiver, say=lambda data, gso: None)
        answers = iter([(5, [], flags, ("127.0.0.1", port))])

        def recvmsg_into(buffers: Any, ancillary: int) -> Any:
            for answer in answers:
                return answer
            raise BlockingIOError

        endpoint._sock.recvmsg_into = recvmsg_into  # type: ignore[method-assign]
        endpoint.drain()
        assert receiver.calls == [] and endpoint.stats[counter] == 1 and not endpoint.behind

    def test_largest_datagram_arrives_whole(self, net: Net):
        receiver = Notebook()
        endpoint, peer = net.endpoint(receiver), net.plain()
        peer.sendto(b"x" * 65_507, endpoint.address)
        net.arrived(endpoint, 1)
        endpoint.drain()
        assert receiver.datagrams == [b"x" * 65_507]

    def test_endpoints_share_the_buffer_but_not_the_bytes(self, net: Net):
        one, two = Notebook(), Notebook()
        first, second = net.endpoint(one), net.endpoint(two)
        peer = net.plain()
        peer.sendto(b"first", first.address)
        peer.sendto(b"SECOND", second.address)
        for endpoint in (first, second):
            net.arrived(endpoint, 1)
        first.drain()
        second.drain()
        assert first._view is second._view
        assert (one.datagrams, two.datagrams) == ([b"first"], [b"SECOND"])


class TestNewcomers:
    @pytest.mark.skipif("libuv" in repr(gevent.get_hub().loop), reason="libuv counts no turns")
    def test_newcomers_are_served_two_a_turn(self, net: Net):
        clock = Clock()
        made: dict[bytes, Notebook] = {}
        turn, turns = [0], Counter[int]()

        def newcomer(data: bytes, address: Any, local: str | None) -> Notebook:
            turns[turn[0]] += 1
            return made.setdefault(data, Notebook())

        endpoint = net.endpoint(
            route=lambda data, *_: made.get(data, NEWCOMER), newcomer=newcomer, clock=clock
        )
        peer = net.plain()
        for index in range(7):
            peer.sendto(b"%d" % index, endpoint.address)
        net.arrived(endpoint, 7)
        endpoint.drain()
        assert not made
        watcher = gevent.get_hub().loop.prepare()
        watcher.start(lambda: turn.append(turn.pop() + 1))
        eventually(lambda: len(made) == 7)
        watcher.stop()
        watcher.close()
        assert sorted(turns.values()) == [1, 2, 2, 2]
        assert all(r.datagrams == [data] and r.flushes == 1 for data, r in made.items())
        assert endpoint.stats["newcomers"] == 7

    def test_second_datagram_of_a_newcomer_finds_its_receiver(self, net: Net):
        made: list[Notebook] = []

        def newcomer(data: bytes, address: Any, local: str | None) -> Notebook:
            made.append(Notebook())
            return made[-1]

        endpoint = net.endpoint(route=lambda *_: made[0] if made else NEWCOMER, newcomer=newcomer)
        peer = net.plain()
        for data in (b"hel", b"lo", b"!"):
            peer.sendto(data, endpoint.address)
        net.arrived(endpoint, 3)
        endpoint.drain()
        eventually(lambda: made and len(made[0].datagrams) == 3)
        assert len(made) == 1 and made[0].datagrams == [b"hel", b"lo", b"!"]
        assert made[0].flushes == 1 and endpoint.stats["newcomers"] == 1

    def test_full_queue_drops_the_newest_and_counts(self, net: Net):
        seen: list[bytes] = []
        endpoint = net.endpoint(
            route=lambda *_: NEWCOMER,
            newcomer=lambda data, *_: seen.append(data),
            max_newcomers=3,
        )
        peer = net.plain()
        for index in range(5):
            peer.sendto(b"%d" % index, endpoint.address)
        net.arrived(endpoint, 5)
        endpoint.drain()
        assert endpoint.stats["newcomers_dropped"] == 2
        eventually(lambda: len(seen) == 3)
        assert seen == [b"0", b"1", b"2"] and endpoint.stats["unrouted"] == 3

    def test_newcomer_that_raises_does_not_stop_the_next(self, net: Net):
        receiver = Notebook()

        def newcomer(data: bytes, *_: Any) -> Notebook:
            if data == b"bad":
                raise RuntimeError
            return receiver

        endpoint = net.endpoint(route=lambda *_: NEWCOMER, newcomer=newcomer)
        peer = net.plain()
        for data in (b"bad", b"good"):
            peer.sendto(data, endpoint.address)
        net.arrived(endpoint, 2)
        endpoint.drain()
        eventually(lambda: receiver.flushes)
        assert receiver.datagrams == [b"good"] and endpoint.stats["receiver_errors"] == 1

    def test_without_a_newcomer_function_strangers_are_dropped(self, net: Net):
        endpoint, peer = net.endpoint(route=lambda *_: NEWCOMER), net.plain()
        peer.sendto(b"x", endpoint.address)
        net.arrived(endpoint, 1)
        endpoint.drain()
        eventually(lambda: endpoint.stats["unrouted"] == 1)


class TestSending:
    @pytest.mark.parametrize(
        ("sizes", "writes"),
        [
            ([], 0),
            ([1200], 1),
            ([1200, 1200, 1200], 1),
            ([1200, 1200, 7], 1),
            ([1200, 7, 1200, 1200], 2),
            ([7, 1200, 1200], 2),
            ([1200, 0, 1200], 3),
            ([1200] * 64, 2),
            ([100] * 65, 2),
            ([40_000, 40_000], 2),
            # Packets behind a probe, and before one; packets that become larger.
            ([1452, 1200, 1200, 30], 2),
            ([16_000, 1200, 1200], 2),
            ([1200, 1200, 1452], 2),
            ([1200, 1200, 1452, 1452, 900], 2),
        ],
    )
    @pytest.mark.parametrize("gso", [True, False])
    def test_datagrams_keep_their_boundaries(self, net: Net, sizes, writes, gso):
        receiver = Notebook()
        endpoint, sender = net.endpoint(receiver), net.endpoint(gso=gso)
        sent = packets(*sizes)
        sender.send(sent, endpoint.address)
        net.arrived(endpoint, len(sent))
        endpoint.drain()
        endpoint.drain()
        assert receiver.datagrams == [data for data in sent if data]
        assert sender.stats["datagrams_sent"] == len(sizes)
        assert sender.stats["bytes_sent"] == sum(sizes)
        assert sender.stats["writes"] == (writes if gso else len(sizes))

    @pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
    def test_refused_batch_goes_singly_and_turns_batches_off(self, net: Net, code):
        batches: list[int] = []

        def say(data: list[bytes], gso: bool) -> None:
            if gso:
                batches.append(len(data))
                raise OSError(code, os.strerror(code))

        receiver = Notebook()
        endpoint, sender = net.endpoint(receiver), net.endpoint(say=say)
        for _ in range(2):
            sender.send(packets(500, 500, 20), endpoint.address)
        net.arrived(endpoint, 6)
        endpoint.drain()
        assert receiver.datagrams == packets(500, 500, 20) * 2
        assert batches == [3] and sender.stats["gso_refused"] == 1

    @pytest.mark.parametrize("code", [errno.EINVAL, errno.EMSGSIZE])
    def test_batch_of_too_large_datagrams_is_lost_and_keeps_batches_on(self, net: Net, code):
        # Of an interface that takes 1500 bytes; kernels differ in what they call that.
        def say(data: list[bytes], gso: bool) -> None:
            if len(data[0]) > 1472:
                error = code if gso else errno.EMSGSIZE
                raise OSError(error, os.strerror(error))

        receiver = Notebook()
        endpoint, sender = net.endpoint(receiver), net.endpoint(say=say)
        sent = packets(8900, 1200, 1473, 1473, 9, 1472, 1472, 1200)
        sender.send(sent, endpoint.address)
        net.arrived(endpoint, 5)
        endpoint.drain()
        assert receiver.datagrams == [data for data in sent if len(data) <= 1472]
        assert sender.stats["lost_too_large"] == 3 and sender.stats["gso_refused"] == 0
        # Two pairs were tried in one call first; the last three are one batch.
        assert sender.stats["writes"] == 3

    def test_destination_that_nobody_can_send_to_keeps_batches_on(self, net: Net):
        receiver = Notebook()
        endpoint, sender = net.endpoint(receiver), net.endpoint()
        sender.send([b"x", b"y"], ("127.0.0.1", 0))
        assert sender.stats["lost_unsent"] == 2
        sender.send([b"x", b"y"], endpoint.address)
        assert sender.stats["writes"] == 1 and sender.stats["gso_refused"] == 0

    def test_too_large_datagram_is_a_loss(self, net: Net):
        errors: list[Any] = []
        receiver = Notebook()
        endpoint = net.endpoint(receiver)
        sender = net.endpoint(path_error=lambda *args: errors.append(args))
        sender.send([b"x" * 65_508, b"small"], endpoint.address)
        net.arrived(endpoint, 1)
        endpoint.drain()
        sender.drain()
        assert receiver.datagrams == [b"small"] and errors == []
        assert sender.stats["lost_too_large"] == 1 and not sender.blocked

    def test_wildcard_socket_answers_from_the_address_asked(self, net: Net):
        receiver, answers = Notebook(), Notebook()
        server, client = net.endpoint(receiver, ("0.0.0.0", 0)), net.endpoint(answers)
        port = server.address[1]
        for host in ("127.0.0.2", "127.0.0.1"):
            client.send([b"ask"], (host, port))
            net.arrived(server, 1)
            server.drain()
            _, address, local = receiver.calls[-1]
            assert local == host
            for answer in ([b"one"], [b"two", b"too"]):
                server.send(answer, address, local)
                net.arrived(client, len(answer))
                client.drain()
                assert answers.calls[-1] == (answer, (host, port), None)

    def test_nonsense_as_local_address_is_ignored(self, net: Net):
        receiver = Notebook()
        endpoint, sender = net.endpoint(receiver), net.endpoint(address=("0.0.0.0", 0))
        sender.send([b"x"], endpoint.address, "nonsense")
        # An address that this host no longer has: lost, and nothing raised.
        sender.send([b"y", b"z"], endpoint.address, "192.0.2.77")
        net.arrived(endpoint, 1)
        endpoint.drain()
        assert receiver.datagrams == [b"x"] and sender.stats["lost_unsent"] == 2

    def test_ipv6_works_with_batches_and_own_addresses(self, net: Net):
        receiver, answers = Notebook(), Notebook()
        server = net.endpoint(receiver, ("::", 0), socket.AF_INET6)
        client = net.endpoint(answers, ("::1", 0), socket.AF_INET6)
        client.send(packets(900, 900, 3), ("::1", server.address[1], 0, 0))
        net.arrived(server, 3)
        server.drain()
        assert receiver.calls == [(packets(900, 900, 3), client.address, "::1")]
        server.send(packets(900, 900, 3), *receiver.calls[0][1:])
        net.arrived(client, 3)
        client.drain()
        assert answers.datagrams == packets(900, 900, 3)

    def test_dual_stack_socket_answers_ipv4_from_the_address_asked(self, net: Net):
        receiver = Notebook()
        server = net.endpoint(receiver, ("::", 0), socket.AF_INET6)
        peer = net.plain()
        peer.sendto(b"ask", ("127.0.0.2", server.address[1]))
        net.arrived(server, 1)
        server.drain()
        _, address, local = receiver.calls[0]
        assert address[0] == "::ffff:127.0.0.1" and local == "::ffff:127.0.0.2"
        server.send([b"answer"], address, local)
        arrival.arrived(peer, 1)
        assert peer.recvfrom(100) == (b"answer", ("127.0.0.2", server.address[1]))


class TestPathErrors:
    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    def test_closed_port_is_reported_with_its_address(self, net: Net, family):
        errors: list[Any] = []
        address: Any = LOCALHOST if family == socket.AF_INET else ("::1", 0)
        gone = net.plain(address, family)
        where = gone.getsockname()
        gone.close()
        sender = net.endpoint(
            address=address, family=family, path_error=lambda *args: errors.append(args)
        )
        sender.start()
        sender.send([b"x"], where)
        eventually(lambda: errors)
        assert [(at, error.errno) for at, error in errors] == [(where, errno.ECONNREFUSED)]
        assert isinstance(errors[0][1], ConnectionRefusedError)

    def test_reader_lives_on_after_an_error(self, net: Net):
        errors: list[Any] = []
        receiver = Notebook()
        endpoint = net.endpoint(receiver, path_error=lambda *args: errors.append(args))
        endpoint.start()
        peer = net.plain()
        for turn in range(3):
            endpoint.send([b"x"], net.closed_port())
            eventually(lambda turn=turn: len(errors) == turn + 1)
            peer.sendto(b"still there?", endpoint.address)
            eventually(lambda turn=turn: receiver.flushes == turn + 1)

    def test_good_peer_is_not_blamed_and_gets_its_datagram(self, net: Net):
        errors: list[Any] = []
        receiver = Notebook()
        good = net.endpoint(receiver)
        sender = net.endpoint(path_error=lambda *args: errors.append(args))
        gone = net.closed_port()
        for lost, sent in ([b"x"], [b"one"]), ([b"x", b"y"], [b"two", b"six"]):
            with arrival.error_arrives(sender._sock):
                sender.send(lost, gone)
            sender.send(sent, good.address)
        assert errors == [], "path_error must not be called from inside send()"
        net.arrived(good, 3)
        good.drain()
        assert receiver.datagrams == [b"one", b"two", b"six"]
        assert sender.stats["lost_unsent"] == 0 and sender.stats["gso_refused"] == 0
        eventually(lambda: errors)
        assert {address for address, _ in errors} == {gone}

    def test_more_errors_than_one_reading_takes_blame_nobody_else(self, net: Net):
        errors: list[Any] = []
        receiver = Notebook()
        good = net.endpoint(receiver)
        sender = net.endpoint(path_error=lambda *args: errors.append(args))
        raw = sender._sock
        gone = [net.closed_port() for _ in range(100)]
        for address in gone:
            # A plain send, with the pending error cleared but its entry left in the queue.
            raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            with arrival.error_arrives(raw):
                raw.sendto(b"x", address)
        sender.send([b"good"], good.address)
        net.arrived(good, 1)
        good.drain()
        assert receiver.datagrams == [b"good"] and sender.stats["lost_unsent"] == 0
        sender.start()
        eventually(lambda: len({address for address, _ in errors}) == len(set(gone)))
        assert good.address not in {address for address, _ in errors}

    def test_error_of_the_destination_itself_is_reported_later(self, net: Net):
        errors: list[Any] = []

        def say(data: list[bytes], gso: bool) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

        sender = net.endpoint(say=say, path_error=lambda *args: errors.append(args))
        sender.send([b"x"], ("192.0.2.1", 9))
        assert errors == []
        eventually(lambda: errors)
        assert errors[0][0] == ("192.0.2.1", 9) and errors[0][1].errno == errno.ENETUNREACH
        assert sender.stats["lost_unsent"] == 1

    def test_path_error_that_raises_is_caught(self, net: Net):
        def fail(address: Any, error: OSError) -> None:
            raise ValueError

        sender = net.endpoint(path_error=fail)
        with arrival.error_arrives(sender._sock):
            sender.send([b"x"], net.closed_port())
        sender.drain()
        assert sender.stats["receiver_errors"] == 1 and sender.stats["path_errors"] == 1

    def test_own_mtu_error_does_not_wake_the_reader_for_ever(self, net: Net):
        sender = net.endpoint()
        sender.start()
        sender._sock.setblocking(False)
        with pytest.raises(OSError):
            sender._sock.sendto(b"x" * 65_507 + b"!", sender.address)
        eventually(lambda: sender.stats["mtu_errors"])
        wakeups = sender.stats["wakeups"]
        gevent.sleep(0.005)
        assert sender.stats["wakeups"] == wakeups


class Full:
    """What a wrapped socket says while it has room for `room` more system calls."""

    def __init__(self, room: int, code: int = errno.EAGAIN) -> None:
        self.room = room
        self.code = code

    def __call__(self, data: list[bytes], gso: bool) -> None:
        if self.room <= 0:
            raise OSError(self.code, os.strerror(self.code))
        self.room -= 1


class TestBacklog:
    @pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOBUFS])
    def test_full_socket_keeps_the_rest_and_resumes_in_order(self, net: Net, code):
        full = Full(1, code)
        receiver, waiting, other = Notebook(), Notebook(), Notebook()
        endpoint, sender = net.endpoint(receiver), net.endpoint(say=full)
        endpoint.start()
        sizes = [10, 20, 30, 40]
        sender.send(packets(*sizes), endpoint.address)
        assert sender.blocked and sender.stats["send_blocked"] == 1
        sender.send([b"behind"], endpoint.address)
        sender.flush_when_writable(waiting)
        sender.flush_when_writable(waiting)
        sender.flush_when_writable(other)
        eventually(lambda: receiver.datagrams == packets(*sizes)[:1])
        assert waiting.flushes == 0
        full.room = 2
        eventually(lambda: len(receiver.datagrams) == 3)
        assert sender.blocked and waiting.flushes == 0
        full.room = 100
        eventually(lambda: len(receiver.datagrams) == 5 and other.flushes)
        assert receiver.datagrams == [*packets(*sizes), b"behind"]
        assert (waiting.flushes, other.flushes) == (1, 1) and not sender.blocked

    def test_flush_that_fills_the_socket_leaves_the_others_waiting(self, net: Net):
        full = Full(0)
        receiver, first, second = Notebook(), Notebook(), Notebook()
        endpoint, sender = net.endpoint(receiver), net.endpoint(say=full)
        sender.send([b"1"], endpoint.address)
        first.on_flush = lambda: sender.send([b"2", b"22"], endpoint.address)
        sender.flush_when_writable(first)
        sender.flush_when_writable(second)
        full.room = 1
        eventually(lambda: first.flushes)
        assert sender.blocked and second.flushes == 0
        full.room = 9
        eventually(lambda: second.flushes)
        assert first.flushes == 1

    def test_backlog_is_bounded(self, net: Net):
        full = Full(0)
        receiver = Notebook()
        endpoint, sender = net.endpoint(receiver), net.endpoint(say=full)
        endpoint.start()
        for _ in range(11):
            sender.send([b"x" * 10] * 100, endpoint.address)
        assert sender.stats["lost_backlog"] == 76
        full.room = 1000
        eventually(lambda: len(receiver.datagrams) == 1024)
        sender.send([b"again"], endpoint.address)
        assert not sender.blocked

    def test_flush_without_a_backlog_comes_next_turn(self, net: Net):
        receiver = Notebook()
        sender = net.endpoint()
        sender.flush_when_writable(receiver)
        assert receiver.flushes == 0
        eventually(lambda: receiver.flushes == 1)

    def test_real_socket_that_is_full_sends_everything_in_the_end(self, net: Net):
        sender = net.endpoint(gso=False)
        sender._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        receiver = Notebook()
        endpoint = net.endpoint(receiver)
        endpoint.start()
        sender.send([b"x" * 1000] * 60, endpoint.address)
        eventually(lambda: len(receiver.datagrams) == 60 and not sender.blocked)


class TestClosing:
    def test_close_is_idempotent_and_leaves_no_descriptor(self, net: Net):
        gc.collect()
        before = os.listdir("/proc/self/fd")
        full = Full(0)
        for _ in range(3):
            endpoint = net.endpoint(Notebook(), say=full)
            endpoint.start()
            endpoint.send([b"x", b"y"], endpoint.address)
            endpoint.flush_when_writable(Notebook())
            endpoint.close()
            endpoint.close()
            assert endpoint.closed and not endpoint.blocked and not endpoint.behind
            gevent.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == len(before)

    def test_closed_endpoint_does_nothing(self, net: Net):
        sender, peer = net.endpoint(), net.plain()
        sender.close()
        sender.start()
        sender.drain()
        sender.send([b"x"], peer.getsockname())
        sender.flush_when_writable(Notebook())
        net.plain().sendto(b"first", peer.getsockname())
        arrival.arrived(peer, 1)
        assert peer.recv(10) == b"first"
        assert sender.stats == {} and "closed" in repr(sender)

    def test_receiver_may_close_the_endpoint(self, net: Net):
        first, second = Notebook(), Notebook()
        routes = {b"1": first, b"2": second}
        endpoint, peer = net.endpoint(route=lambda data, *_: routes[data]), net.plain()
        first.on_receive = endpoint.close
        for data in (b"1", b"2"):
            peer.sendto(data, endpoint.address)
        net.arrived(endpoint, 2)
        endpoint.start()
        eventually(lambda: endpoint.closed)
        gevent.sleep(0)
        assert first.flushes == 0 and second.calls == [] and not endpoint.behind

    @pytest.mark.parametrize("who", ["route", "newcomer", "path_error"])
    def test_every_callback_may_close_the_endpoint(self, net: Net, who):
        def close(*_: Any) -> None:
            endpoint.close()

        options: dict[str, Any] = {"route": lambda *_: NEWCOMER, who: close}
        endpoint, peer = net.endpoint(**options), net.plain()
        endpoint.start()
        if who == "path_error":
            endpoint.send([b"x"], net.closed_port())
        for _ in range(3):
            peer.sendto(b"x", endpoint.address)
        eventually(lambda: endpoint.closed)
        assert endpoint.stats["receiver_errors"] == 0

    def test_repr_is_one_line_with_address_and_counts(self, net: Net):
        endpoint = net.endpoint()
        assert repr(endpoint) == (
            f"<UdpEndpoint ('127.0.0.1', {endpoint.address[1]}) open, 0 received, 0 sent>"
        )
