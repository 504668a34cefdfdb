"""The way of connect() to a WebSocket server: addresses, Unix paths, given sockets, TLS, slots."""

from __future__ import annotations

import os
import socket
import ssl as stdlib_ssl
import time
from datetime import UTC, datetime, timedelta

import gevent
import gevent.lock
import gevent.server
import gevent.socket
import pytest
from gevent import ssl

import gwt
from gwt import certificates
from gwt.client import names as names_module
from gwt.client import tls
from gwt.client.sockets import ClientHub
from tests.helpers import eventually, spawn
from tests.helpers.websockets import answering, deaf, redirect, serving, switched, url


def talks(ws: gwt.WebSocket) -> bool:
    with ws:
        ws.send("x")
        return ws.recv(timeout=5) == "x"


@pytest.fixture
def names(monkeypatch):
    """names(address, ...): what every name stands for."""

    def stand_for(*addresses):
        found = [
            (int(socket.AF_INET6 if ":" in each[0] else socket.AF_INET), each) for each in addresses
        ]
        monkeypatch.setattr(names_module, "_addresses", lambda host, port: found)

    return stand_for


@pytest.fixture
def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


class TestAddresses:
    def test_that_refuse_cost_no_time(self, names):
        with serving() as server:
            port = server.address[1]
            names(("::1", port, 0, 0), ("127.0.0.1", port))
            began = time.monotonic()
            assert talks(gwt.connect("ws://name.test/ws", attempt_delay=20, timeout=15))
            assert time.monotonic() - began < 15

    def test_that_are_slow_lose(self, names):
        with serving() as server, deaf() as silent:
            names(silent, silent, server.address)
            ws = gwt.connect("ws://name.test/ws", attempt_delay=0.02)
            assert ws.remote_address == server.address
            assert talks(ws)

    def test_that_all_refuse_are_all_named(self, names, closed_port):
        names(("::1", closed_port, 0, 0), ("127.0.0.1", closed_port))
        with pytest.raises(gwt.HandshakeError) as caught:
            gwt.connect("ws://name.test/ws")
        text = str(caught.value)
        assert f"::1 port {closed_port}" in text and f"127.0.0.1 port {closed_port}" in text
        assert caught.value.stage == "connect"
        assert isinstance(caught.value.__cause__, OSError)

    def test_that_say_nothing_end_with_the_time(self, names):
        with deaf() as silent:
            names(silent)
            where = f"connecting to 127.0.0.1 port {silent[1]}"
            with pytest.raises(TimeoutError, match=where):
                gwt.connect("ws://name.test/ws", timeout=0.1)

    def test_that_do_not_exist(self, monkeypatch):
        def find(host, port):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(names_module, "_addresses", find)
        with pytest.raises(gwt.HandshakeError, match=r"'name.test' cannot be resolved") as caught:
            gwt.connect("ws://name.test/ws")
        assert caught.value.stage == "resolve"

    def test_without_descriptors(self, names, closed_port, monkeypatch):
        def none(*_, **__):
            raise OSError(24, "Too many open files")

        names(("127.0.0.1", closed_port), ("127.0.0.1", closed_port))
        monkeypatch.setattr(gevent.socket, "socket", none)
        with pytest.raises(gwt.HandshakeError, match="Too many open files"):
            gwt.connect("ws://name.test/ws")

    def test_a_user_s_timeout_and_a_kill_leave_nothing(self, names):
        with deaf() as silent:
            names(silent, silent)
            timeout = gevent.Timeout(0.05)
            with pytest.raises(gevent.Timeout) as caught, timeout:
                gwt.connect("ws://name.test/ws", attempt_delay=0.01)
            assert caught.value is timeout
            job = spawn(gwt.connect, "ws://name.test/ws", attempt_delay=0.01)
            gevent.sleep(0.05)
            job.kill()
        # The descriptors and the greenlets are counted behind every test.


@pytest.fixture
def unix(tmp_path):
    """A Unix socket behind which a server says one thing."""
    path = str(tmp_path / "socket")
    listener = gevent.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    answers = [switched]
    asked = []

    def handle(sock, _):
        asked.append(sock.recv(65536).decode())
        answer = answers.pop(0)
        sock.sendall(answer(asked[-1]) if callable(answer) else answer)

    server = gevent.server.StreamServer(listener, handle)
    server.start()
    yield path, answers, asked
    server.stop()


class TestUnixSockets:
    @pytest.mark.parametrize("kind", [str, os.fsencode])
    def test_are_connected_to(self, unix, kind):
        path, _, asked = unix
        with gwt.connect("ws://name.test/path", unix=kind(path), compression=None) as ws:
            assert list(ws) == ["early"]
        assert asked[0].startswith("GET /path HTTP/1.1\r\nHost: name.test\r\n")

    def test_redirect_within_themselves_only(self, unix):
        path, answers, asked = unix
        answers[:] = [redirect("/next"), redirect("ws://elsewhere.test/")]
        with pytest.raises(gwt.HandshakeError, match="unix="):
            gwt.connect("ws://name.test/", unix=path)
        assert asked[1].startswith("GET /next ")

    @pytest.mark.parametrize("path", ["/nowhere/socket", "x" * 200, "a\0b", 5])
    def test_that_are_not_there(self, path):
        with pytest.raises(gwt.HandshakeError, match="Unix socket") as caught:
            gwt.connect("ws://name.test/", unix=path)
        assert caught.value.stage == "connect"

    def test_exclude_other_ways(self):
        with pytest.raises(TypeError, match="sock and unix"):
            gwt.connect("ws://name.test/", unix="/x", sock=object())


class TestGivenSockets:
    @pytest.mark.parametrize("module", [socket, gevent.socket])
    @pytest.mark.parametrize("scheme", ["ws", "wss"])
    def test_of_every_kind(self, module, scheme, files):
        cert, key = files
        options = {"certfile": cert, "keyfile": key} if scheme == "wss" else {}
        with serving(**options) as server:
            sock = module.create_connection(server.address)
            there = f"{scheme}://name.test/ws"
            assert talks(gwt.connect(there, sock=sock, cafile=cert, max_size=None))

    def test_that_speak_tls_already(self, files):
        cert, key = files
        # Not create_default_context(), which makes one of the standard library.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cert)
        with serving(certfile=cert, keyfile=key) as server:
            plain = gevent.socket.create_connection(server.address)
            sock = context.wrap_socket(plain, server_hostname="name.test")
            with pytest.raises(gwt.ConfigError, match="speaks TLS already"):
                gwt.connect("wss://name.test/ws", sock=sock)
            assert talks(gwt.connect("ws://name.test/ws", sock=sock))

    @pytest.mark.parametrize("sock", [object(), 5, "x"])
    def test_that_are_none(self, sock):
        with pytest.raises(gwt.ConfigError) as caught:
            gwt.connect("ws://name.test/", sock=sock)
        assert caught.value.field == "sock"

    def test_that_are_not_connected(self):
        with pytest.raises(gwt.HandshakeError, match="broke"):
            gwt.connect("ws://name.test/", sock=socket.socket())


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_socket_that_carries_no_stream_is_refused_and_stays_the_callers(scheme):
    with gevent.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(gwt.ConfigError, match="stream socket"):
            gwt.connect(f"{scheme}://name.test/", sock=sock)
        assert sock.fileno() >= 0


@pytest.mark.parametrize("kind", [socket.socket, gevent.socket.socket])
def test_a_socket_that_is_closed_is_refused(kind):
    sock = kind()
    sock.close()
    with pytest.raises(gwt.ConfigError, match="stream socket"):
        gwt.connect("ws://name.test/", sock=sock)


def test_a_context_for_servers_is_refused():
    with pytest.raises(gwt.ConfigError, match="of a client"):
        gwt.connect("wss://name.test/", ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    identity = certificates.generate(["localhost", "127.0.0.1", "name.test"])
    return certificates.write(tmp_path_factory.mktemp("identity"), identity)


class TestTls:
    @pytest.mark.parametrize("module", [ssl, stdlib_ssl])
    @pytest.mark.parametrize("name", ["server_name", "server_hostname"])
    def test_with_a_context_of_ones_own(self, files, module, name):
        cert, key = files
        context = module.create_default_context(cafile=str(cert))
        with serving(certfile=cert, keyfile=key) as server:
            there = url(server, scheme="wss")
            assert talks(gwt.connect(there, ssl=context, **{name: "name.test"}))
            with pytest.raises(gwt.CertificateError, match=r"other\.test"):
                gwt.connect(there, ssl=context, **{name: "other.test"})

    @pytest.mark.parametrize("options", [{"verify": False}, {"cafile": True}])
    def test_with_a_context_and_something_that_it_overrides(self, files, options):
        context = ssl.create_default_context()
        if "cafile" in options:
            options = {"cafile": files[0]}
        with pytest.raises(TypeError, match="ssl and"):
            gwt.connect("wss://name.test/", ssl=context, **options)

    def test_with_a_context_where_none_is_spoken(self):
        with pytest.raises(gwt.ConfigError, match="not a wss URL"):
            gwt.connect("ws://name.test/", ssl=ssl.create_default_context())

    def test_of_a_certificate_that_has_expired(self, tmp_path):
        long_ago = datetime.now(UTC) - timedelta(days=60)
        identity = certificates.generate(now=long_ago)
        cert, key = certificates.write(tmp_path, identity)
        with serving(certfile=cert, keyfile=key) as server:
            for options in ({"cafile": cert}, {"server_certificate_hashes": identity.sha256}):
                with pytest.raises(gwt.CertificateError, match="expired") as caught:
                    gwt.connect(url(server, scheme="wss"), **options)
                assert caught.value.stage == "tls"

    def test_of_a_certificate_that_signed_itself(self, files):
        cert, key = files
        with (
            serving(certfile=cert, keyfile=key) as server,
            pytest.raises(gwt.CertificateError, match="self-signed certificate"),
        ):
            gwt.connect(url(server, scheme="wss"))

    def test_where_the_server_says_something_else(self):
        hasty = gevent.server.StreamServer(("127.0.0.1", 0), lambda sock, _: sock.recv(65536))
        hasty.start()
        with pytest.raises(gwt.HandshakeError, match="closed the connection") as caught:
            gwt.connect(f"wss://127.0.0.1:{hasty.address[1]}/")
        assert caught.value.stage == "tls"
        hasty.stop()
        with serving() as server, pytest.raises(gwt.HandshakeError, match="not by TLS"):
            gwt.connect(url(server, scheme="wss"))

    @pytest.mark.parametrize("name", [".x", "x" * 64 + ".test", "a\0b"])
    def test_with_a_name_that_is_none(self, files, name):
        cert, key = files
        with serving(certfile=cert, keyfile=key) as server, pytest.raises(gwt.ConfigError):
            gwt.connect(
                url(server, scheme="wss"), ssl=ssl.create_default_context(), server_name=name
            )

    def test_contexts_are_made_once(self, files, tmp_path):
        copy = tmp_path / "copy.pem"
        copy.write_bytes(files[0].read_bytes())
        first = tls.shared_context(verify=True, cafile=copy)
        assert tls.shared_context(verify=True, cafile=str(copy)) is first
        assert tls.shared_context(verify=False, cafile=copy) is not first
        copy.write_bytes(copy.read_bytes() * 2)
        assert tls.shared_context(verify=True, cafile=copy) is not first


class TestSlots:
    def test_bound_what_is_in_flight(self):
        go = gevent.event.Event()
        waiting, most = 0, 0

        def handle(sock, _):
            nonlocal waiting, most
            request = sock.recv(65536).decode()
            waiting += 1
            most = max(most, waiting)
            go.wait()
            waiting -= 1
            sock.sendall(switched(request))

        server = gevent.server.StreamServer(("127.0.0.1", 0), handle, backlog=512)
        server.start()
        there = f"ws://127.0.0.1:{server.address[1]}/"
        jobs = [spawn(gwt.connect, there, compression=None, timeout=25) for _ in range(300)]
        eventually(lambda: waiting == 64)
        gevent.sleep(0.05)
        assert most == 64
        go.set()
        sockets = [job.get(timeout=25) for job in jobs]
        assert most == 64
        for ws in sockets:
            assert ws.recv(timeout=5) == "early"
        for ws in sockets:
            ws.wait_closed(timeout=5)
        server.stop()

    def test_come_back_whatever_happens(self):
        def taken() -> int:
            return 2 - ClientHub.current().slots(2).counter

        with answering(None, None, b"no HTTP", switched) as (base, asked):
            jobs = [spawn(gwt.connect, base, max_connecting=2) for _ in range(3)]
            eventually(lambda: taken() == len(asked) == 2)
            # One that waits for the server, and one that waits for a slot.
            jobs[0].kill()
            jobs[2].kill()
            eventually(lambda: taken() == 1)
            with pytest.raises(gwt.HandshakeError):
                gwt.connect(base, max_connecting=2)
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
                jobs[1].greenlet.get()
            jobs[1].kill()
            gwt.connect(base, max_connecting=2, compression=None).close()
        assert taken() == 0


class TestAnswers:
    def test_may_take_longer_than_sockets_do_by_default(self):
        def late(request):
            gevent.sleep(0.05)
            return switched(request)

        before = socket.getdefaulttimeout()
        with answering(late, late) as (base, _):
            socket.setdefaulttimeout(0.01)
            try:
                gwt.connect(base).close()
                host, port = base[5:].split(":")
                sock = gevent.socket.socket()
                sock.settimeout(1)
                sock.connect((host, int(port)))
                gwt.connect(base, sock=sock).close()
            finally:
                socket.setdefaulttimeout(before)

    @pytest.mark.parametrize(
        "length", ["Content-Length: 100", "X: y", "Transfer-Encoding: chunked"]
    )
    def test_that_refuse_and_do_not_end(self, length):
        answer = f"HTTP/1.1 401 Who?\r\n{length}\r\n\r\n".encode()
        body = b"4\r\nsome\r\n" if "chunked" in length else b"some"

        def refuse(sock, _):
            sock.recv(65536)
            sock.sendall(answer + body)
            sock.recv(1)

        server = gevent.server.StreamServer(("127.0.0.1", 0), refuse)
        server.start()
        with pytest.raises(gwt.SessionRejected) as caught:
            gwt.connect(f"ws://127.0.0.1:{server.address[1]}/")
        assert (caught.value.status, caught.value.body) == (401, b"some")
        server.stop()

    @pytest.mark.parametrize("status", [200, 204, 401, 503])
    def test_that_refuse(self, status):
        answer = f"HTTP/1.1 {status} X\r\nWWW-Authenticate: Basic\r\n\r\n".encode()
        with answering(answer) as (base, _), pytest.raises(gwt.SessionRejected) as caught:
            gwt.connect(base)
        assert (caught.value.status, caught.value.stage) == (status, "websocket")
        assert caught.value.headers == {"www-authenticate": "Basic"}

    def test_that_refuse_with_a_header_twice(self):
        answer = b"HTTP/1.1 401 X\r\nWWW-Authenticate: A\r\nWWW-Authenticate: B\r\n\r\n"
        with answering(answer) as (base, _), pytest.raises(gwt.SessionRejected) as caught:
            gwt.connect(base)
        assert caught.value.headers == {"www-authenticate": "A, B"}

    def test_that_never_end_are_not_read(self):
        sent = 0

        def flood(sock, _):
            nonlocal sent
            sock.recv(65536)
            try:
                sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nX: ")
                while sent < 10_000_000:
                    sock.sendall(b"x" * 65536)
                    sent += 65536
            except OSError:
                pass

        server = gevent.server.StreamServer(("127.0.0.1", 0), flood)
        server.start()
        with pytest.raises(gwt.HandshakeError, match="not HTTP"):
            gwt.connect(f"ws://127.0.0.1:{server.address[1]}/")
        server.stop()
        assert sent < 10_000_000
