"""The way to an address: which is tried when, which wins, and what is left of the others."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.monkey import get_original

import gwt
from gwt import certificates
from gwt.client import sockets
from gwt.client.dial import in_order, next_start, patience
from gwt.client.names import Names
from gwt.client.sockets import ClientHub
from gwt.client.target import parse_url
from gwt.net.udp import open_socket
from gwt.net.waiting import Deadline
from tests.helpers import eventually, spawn
from tests.helpers.arrival import arrived
from tests.helpers.live import echo, serving
from tests.scale.peer import Peer

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)

# So long that a test which waited for it would not end in time.
NEVER = 3600.0
SOON = 0.01


@pytest.mark.parametrize(
    ("found", "order"),
    [
        ([], []),
        (["4a"], ["4a"]),
        (["6a", "4a"], ["6a", "4a"]),
        (["4a", "6a"], ["4a", "6a"]),
        (["6a", "6b", "6c", "4a", "4b"], ["6a", "4a", "6b", "4b", "6c"]),
        (["4a", "4b", "4c", "6a"], ["4a", "6a", "4b", "4c"]),
        (["6a", "4a", "6b"], ["6a", "4a", "6b"]),
        (["4a", "4b"], ["4a", "4b"]),
        ([f"4{n}" for n in range(40)], [f"4{n}" for n in range(16)]),
    ],
)
def test_families_take_turns_in_the_order_of_the_resolver(found, order):
    family = {"4": V4, "6": V6}
    assert in_order([(family[each[0]], each) for each in found]) == [
        (family[each[0]], each) for each in order
    ]


@pytest.mark.parametrize(
    ("answered", "failed", "start"),
    [(False, False, 10.25), (True, False, 10.5), (False, True, 10.0), (True, True, 10.0)],
)
def test_the_next_attempt_begins_after_the_delay_or_at_once(answered, failed, start):
    assert next_start(10.0, 0.25, answered=answered, failed=failed) == start


@pytest.mark.parametrize(
    ("last", "seconds"), [(None, 0.25), (0.01, 0.25), (0.125, 0.25), (0.4, 0.8), (5.0, 2.0)]
)
def test_a_server_that_was_slow_is_given_more_time(last, seconds):
    assert patience(0.25, last) == seconds
    assert patience(3.0, last) == 3.0
    assert patience(0.0001, None) == 0.01


def test_handshakes_are_remembered_of_so_many_addresses_only():
    hub = ClientHub()
    for port in range(1, 301):
        hub.remember(("127.0.0.1", port), 0.1)
        hub.remember(("127.0.0.1", 1), 0.2)
    assert len(hub.handshakes) == 256
    assert hub.handshakes["127.0.0.1", 1] == 0.2
    hub.remember(("127.0.0.1", 1), None)
    assert len(hub.handshakes) == 255


# On loopback


class Resolver:
    """In place of the system's: every name is at these hosts; counts, and may be held up."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = list(hosts)
        self.asked = 0
        self.go = Event()
        self.go.set()
        self.error: OSError | None = None

    def __call__(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked += 1
        self.go.wait()
        if self.error is not None:
            raise self.error
        return [
            (V6, 2, 17, "", (each, port, 0, 0)) if ":" in each else (V4, 2, 17, "", (each, port))
            for each in self.hosts
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Resolver]:
    def use(*hosts: str) -> Resolver:
        resolver = Resolver(*hosts)
        monkeypatch.setattr(gevent.socket, "getaddrinfo", resolver)
        ClientHub.current().names.clear()
        return resolver

    return use


class Silent:
    """A bound UDP socket that takes what is sent to it, and says nothing."""

    def __init__(self, host: str, port: int) -> None:
        address = (host, port, 0, 0) if ":" in host else (host, port)
        self.sock = open_socket(address, V6 if ":" in host else V4, buffer=1 << 16)

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    def received(self) -> int:
        count = 0
        with suppress(BlockingIOError):
            while True:
                self.sock.recv(2000)
                count += 1
        return count


@pytest.fixture
def silent() -> Iterator[Callable[..., Silent]]:
    with ExitStack() as stack:

        def make(host: str, port: int = 0) -> Silent:
            made = Silent(host, port)
            stack.callback(made.sock.close)
            return made

        yield make


@pytest.fixture
def server() -> Iterator[gwt.Server]:
    """A server on 127.0.0.1, and nobody on ::1 or 127.0.0.2."""
    with serving(echo) as server:
        yield server


def dial(server: gwt.Server, name: str = "several.example", **options: Any) -> Any:
    options.setdefault("server_certificate_hashes", [server.certificate_hash])
    return gwt.connect(f"https://{name}:{server.address[1]}/", **options)


@pytest.fixture
def connections() -> Callable[[], int]:
    """connections(): how many the hub has, those that are closing included."""

    def count() -> int:
        return sum(len(each) for pool in ClientHub.current()._sockets.values() for each in pool)

    # Those of the test before this one, for their closing period.
    eventually(lambda: not count())
    return count


def test_an_address_that_is_silent_is_overtaken_and_leaves_nothing(
    server, names, silent, monkeypatch, connections
):
    names("::1", "127.0.0.1")
    black = silent("::1", server.address[1])
    # What comes right behind the handshake, while the winner's settings are still to come.
    left: list[int] = []
    monkeypatch.setattr(certificates, "check_pinned", lambda *_: left.append(connections()))
    with dial(server, attempt_delay=SOON) as session:
        assert left == [1]
        assert session.remote_address == server.address
        # The first packet, and the word that nobody waits for an answer any more.
        arrived(black.sock, 2)
        # It had never answered, so that nothing is left to be said.
        assert connections() == 1
        assert {each.family for pool in ClientHub.current()._sockets.values() for each in pool} == {
            V4
        }
    eventually(lambda: not connections())


def test_an_address_that_was_overtaken_is_not_given_more_time_any_more(server, names, silent):
    names("::1", "127.0.0.1")
    port = server.address[1]
    silent("::1", port)
    known = ClientHub.current().handshakes
    known["::1", port, 0, 0] = 0.001
    dial(server, attempt_delay=SOON).close()
    assert ("::1", port, 0, 0) not in known
    assert known[server.address] > 0


def test_an_address_that_is_refused_does_not_hold_the_next_one_back(server, names):
    names("::1", "127.0.0.2", "127.0.0.1")
    with dial(server, attempt_delay=NEVER) as session:
        assert session.remote_address == server.address


def test_an_address_that_answers_is_the_only_one_tried(server, names, silent):
    names("127.0.0.1", "::1", "127.0.0.2")
    others = [silent(host, server.address[1]) for host in ("::1", "127.0.0.2")]
    with dial(server, attempt_delay=NEVER) as session:
        assert session.remote_address == server.address
    assert [each.received() for each in others] == [0, 0]


def test_an_answer_that_waits_on_a_busy_hub_comes_before_the_next_attempt(
    names, silent, connections
):
    with Peer.server() as server:
        names("127.0.0.1", "127.0.0.2")
        other = silent("127.0.0.2", server.port)
        job = spawn(
            gwt.connect,
            f"https://several.example:{server.port}/echo",
            verify=False,
            attempt_delay=0.5,
        )
        while not connections():
            gevent.sleep(0)
        # No greenlet runs until the answer is in the socket and the next attempt is overdue.
        (used,) = (each for pool in ClientHub.current()._sockets.values() for each in pool)
        answer, nothing = get_original("select", "poll")(), get_original("select", "poll")()
        answer.register(used.endpoint._sock.fileno(), select.POLLIN)
        assert answer.poll(10_000)
        assert not nothing.poll(600)
        job.get().close()
        assert other.received() == 0


def test_one_name_takes_one_handshake_slot_however_many_addresses_it_has(server, names, silent):
    names("::1", "127.0.0.2", "127.0.0.1")
    for host in ("::1", "127.0.0.2"):
        silent(host, server.address[1])
    dial(server, attempt_delay=SOON, max_connecting=1).close()
    assert ClientHub.current().slots(1).counter == 1


def test_a_family_that_has_no_sockets_here_is_passed_over(server, names, monkeypatch):
    def open_v4_only(address, family, **options):
        if family == V6:
            raise OSError(97, "Address family not supported by protocol")
        return open_socket(address, family, **options)

    monkeypatch.setattr(sockets, "open_socket", open_v4_only)
    names("::1", "127.0.0.1")
    with dial(server, attempt_delay=NEVER) as session:
        assert session.remote_address == server.address
    names("::1")
    with pytest.raises(gwt.HandshakeError, match=r"sent to ::1 port.*not supported") as info:
        dial(server)
    assert info.value.stage == "connect"


@contextmanager
def relaying(front: Silent, back: tuple[str, int], most: int) -> Iterator[None]:
    """Forward what `front` gets to a server, and of the server's answers the first `most`."""
    behind = open_socket(("127.0.0.1", 0), V4, buffer=1 << 16)
    client: list[Any] = []

    def out() -> None:
        while True:
            gevent.socket.wait_read(front.sock.fileno())
            data, address = front.sock.recvfrom(2000)
            client[:] = [address]
            behind.sendto(data, back)

    def home() -> None:
        for _ in range(most):
            gevent.socket.wait_read(behind.fileno())
            front.sock.sendto(behind.recv(2000), client[0])

    jobs = [gevent.spawn(out), gevent.spawn(home)]
    try:
        yield
    finally:
        gevent.killall(jobs)
        behind.close()


def test_an_address_that_answered_and_goes_no_further_is_overtaken_too(
    names, silent, tmp_path, connections
):
    # A certificate that needs two datagrams, of which one comes.
    hosts = [f"a-name-that-takes-room-{n}.example" for n in range(60)]
    cert, key = certificates.write(tmp_path, certificates.generate(hosts))
    with serving(echo, certfile=cert, keyfile=key) as server:
        names("127.0.0.2", "127.0.0.1")
        half = silent("127.0.0.2", server.address[1])
        with relaying(half, server.address, 1), dial(server, attempt_delay=0.05) as session:
            assert session.remote_address == server.address
            assert server.connections.get_stats()["total_created"] == 2
            # Its closing period: the peer may still have to be told.
            eventually(lambda: connections() == 1)


@pytest.mark.parametrize("options", [{}, {"server_certificate_hashes": ["00" * 32]}])
@pytest.mark.parametrize("first", ["127.0.0.1", "127.0.0.2"])
def test_a_wrong_certificate_ends_it_whatever_else_is_under_way(
    server, names, silent, first, options, connections
):
    # 127.0.0.2 never answers, before or behind the server whose certificate nobody trusts.
    names(first, "127.0.0.2" if first == "127.0.0.1" else "127.0.0.1", "::1")
    silent("127.0.0.2", server.address[1])
    delay = NEVER if first == "127.0.0.1" else SOON
    with pytest.raises(gwt.CertificateError):
        dial(server, **{"server_certificate_hashes": (), "attempt_delay": delay, **options})
    eventually(lambda: not connections())


def test_when_all_addresses_are_refused_the_error_names_them_all(names, silent, connections):
    names("::1", "127.0.0.1", "127.0.0.2")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(gwt.HandshakeError) as info:
        gwt.connect(f"https://several.example:{port}/", attempt_delay=NEVER)
    assert str(info.value) == (
        f"No address of 'several.example' can be reached: nobody answers on UDP ::1 port {port}: "
        f"Connection refused; nobody answers on UDP 127.0.0.1 port {port}: Connection refused; "
        f"nobody answers on UDP 127.0.0.2 port {port}: Connection refused."
    )
    assert info.value.stage == "connect"
    assert isinstance(info.value.__cause__, gwt.HandshakeError)
    assert not connections()


def test_what_the_first_address_said_is_not_hidden_by_the_next(names):
    with serving(echo, max_connections=1) as server:
        names("127.0.0.1", "::1")
        with dial(server), pytest.raises(gwt.HandshakeError) as info:
            dial(server)
    assert "too many connections; nobody answers on UDP ::1" in str(info.value)


def test_a_timeout_names_every_address_that_was_tried(names, silent, connections):
    names("::1", "127.0.0.1", "127.0.0.2")
    port = silent("127.0.0.1").port
    silent("127.0.0.2", port)
    with pytest.raises(TimeoutError) as info:
        gwt.connect(f"https://several.example:{port}/", attempt_delay=SOON, timeout=0.5)
    assert (
        f"while shaking hands with 127.0.0.1 port {port} and 127.0.0.2 port {port}; "
        f"nobody answers on UDP ::1 port {port}: Connection refused." in str(info.value)
    )
    assert not connections()


def test_killing_the_greenlet_ends_every_attempt(names, silent, connections):
    names("::1", "127.0.0.1")
    port = silent("127.0.0.1").port
    silent("::1", port)
    job = gevent.spawn(gwt.connect, f"https://several.example:{port}/", attempt_delay=SOON)
    eventually(lambda: connections() == 2)
    job.kill()
    assert not connections()


@pytest.mark.parametrize("value", [0, -1, float("inf"), "1", None])
def test_an_attempt_delay_that_is_none_is_refused(value):
    with pytest.raises(gwt.ConfigError) as info:
        gwt.connect("https://127.0.0.1/", attempt_delay=value)
    assert info.value.field == "attempt_delay"


# Names


def test_greenlets_that_want_one_name_ask_for_it_once(server, names):
    resolver = names("127.0.0.1")
    resolver.go.clear()
    jobs = [spawn(dial, server, timeout=5) for _ in range(20)]
    eventually(lambda: resolver.asked)
    gevent.sleep(0)
    resolver.go.set()
    for job in jobs:
        job.get().close()
    # Nor does anybody who comes a little later.
    dial(server).close()
    assert resolver.asked == 1
    assert not len(ClientHub.current().names)


def test_an_answer_is_good_for_half_a_minute_and_no_longer(names):
    resolver, now = names("127.0.0.1"), [100.0]
    cache, target = Names(lambda: now[0]), parse_url("https://several.example/")
    for now[0], asked in ((100.0, 1), (129.9, 1), (130.0, 2), (150.0, 2), (160.1, 3)):
        assert cache.resolve(target, Deadline(5)) == [(socket.AF_INET, ("127.0.0.1", 443))]
        assert resolver.asked == asked


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_a_name_where_nobody_answers_is_asked_for_anew(names, scheme):
    resolver = names("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"{scheme}://several.example:{sock.getsockname()[1]}/"
    for asked in (1, 2):
        with pytest.raises(gwt.HandshakeError):
            gwt.connect(url)
        assert resolver.asked == asked


def test_answers_that_are_remembered_are_bounded(names):
    resolver = names("127.0.0.1")
    cache = Names()
    for number in range(300):
        cache.resolve(parse_url(f"https://n{number}.example/"), Deadline(5))
    cache.resolve(parse_url("https://n299.example/"), Deadline(5))
    assert resolver.asked == 300
    cache.resolve(parse_url("https://n0.example/"), Deadline(5))
    assert resolver.asked == 301


def test_different_names_are_asked_for_at_the_same_time(server, names):
    resolver = names("127.0.0.1")
    resolver.go.clear()
    jobs = [spawn(dial, server, f"{n}.example") for n in range(3)]
    eventually(lambda: resolver.asked == 3)
    resolver.go.set()
    for job in jobs:
        job.get().close()


@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_when_the_one_who_asked_leaves_another_one_asks(server, names, how):
    resolver = names("127.0.0.1")
    resolver.go.clear()
    first = spawn(dial, server, timeout=0.05 if how == "timed out" else 5)
    eventually(lambda: resolver.asked)
    others = [spawn(dial, server, timeout=5) for _ in range(3)]
    gevent.sleep(0)
    if how == "killed":
        first.kill()
    else:
        with pytest.raises(TimeoutError, match=r"while resolving 'several\.example'"):
            first.get()
    eventually(lambda: resolver.asked == 2)
    resolver.go.set()
    for job in others:
        job.get().close()
    assert resolver.asked == 2


def test_one_who_waits_for_the_answer_has_a_deadline_too(server, names):
    resolver = names("127.0.0.1")
    resolver.go.clear()
    first = spawn(dial, server, timeout=5)
    eventually(lambda: resolver.asked)
    with pytest.raises(TimeoutError, match="while resolving"):
        dial(server, timeout=0.05)
    resolver.go.set()
    first.get().close()


def test_a_name_without_an_address_is_an_error(names):
    names()
    with pytest.raises(gwt.HandshakeError, match="has no address") as info:
        gwt.connect("https://several.example:5/")
    assert info.value.stage == "resolve"


def test_all_are_told_that_a_name_does_not_exist(server, names):
    resolver = names()
    resolver.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    resolver.go.clear()
    jobs = [spawn(dial, server) for _ in range(3)]
    eventually(lambda: resolver.asked)
    gevent.sleep(0)
    resolver.go.set()
    errors = []
    for job in jobs:
        with pytest.raises(gwt.HandshakeError, match="Name or service not known") as info:
            job.get()
        errors.append(info.value)
    assert resolver.asked == 1
    assert {error.stage for error in errors} == {"resolve"}
    assert len(set(map(id, errors))) == 3


# Literal addresses


@pytest.mark.parametrize(
    ("text", "host", "zone", "authority"),
    [
        ("[fe80::1%25lo]:5", "fe80::1", "lo", "[fe80::1]:5"),
        ("[FE80::1%25Lo]", "fe80::1", "Lo", "[fe80::1]"),
        ("[fe80::1%lo]", "fe80::1", "lo", "[fe80::1]"),
        ("[0:0:0:0:0:0:0:1]:5", "::1", "", "[::1]:5"),
        ("[::ffff:127.0.0.1]:5", "127.0.0.1", "", "127.0.0.1:5"),
    ],
)
def test_literal_addresses_are_taken_apart(text, host, zone, authority):
    target = parse_url(f"https://{text}/")
    assert (target.host, target.zone, target.authority) == (host, zone, authority)


@pytest.mark.parametrize("text", ["[::1%25lo]", "name%25lo", "192.0.2.1%25lo", "[fe80::1%25a%b]"])
def test_a_zone_that_means_nothing_is_refused(text):
    with pytest.raises(gwt.ConfigError) as info:
        parse_url(f"https://{text}/")
    assert info.value.field == "url"


def test_an_interface_that_does_not_exist_is_named():
    with pytest.raises(gwt.HandshakeError, match="no-such-if") as info:
        gwt.connect("https://[fe80::1%25no-such-if]:5/")
    assert info.value.stage == "resolve"


@pytest.mark.parametrize("zone", ["lo", str(socket.if_nametoindex("lo"))])
def test_a_link_local_address_is_tried_on_its_interface(zone, connections):
    # Nothing on loopback has such an address, which the system says at once or never.
    where = f"fe80::1%{socket.if_nametoindex('lo')} port 5"
    with pytest.raises((gwt.HandshakeError, TimeoutError), match=where):
        gwt.connect(f"https://[fe80::1%25{zone}]:5/", timeout=0.2)
    assert not connections()


@pytest.mark.parametrize("host", ["[0:0:0:0:0:0:0:1]", "[::1]"])
def test_ipv6_addresses_need_no_resolver_however_they_are_written(names, host):
    app = gwt.App()
    app.webtransport("/")(echo)
    with gwt.Server(app, "[::1]:0") as server:
        resolver = names()
        session = gwt.connect(
            f"https://{host}:{server.address[1]}/",
            server_certificate_hashes=[server.certificate_hash],
        )
        assert session.remote_address == server.address
        session.close()
    assert resolver.asked == 0
