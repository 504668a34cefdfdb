"""The demo app's endpoints, each through gwt's own client."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from werkzeug.test import Client

import gwt
from gwt.cli.demo import make_app
from tests.helpers import eventually, live, spawn


@pytest.fixture
def server() -> Iterator[gwt.Server]:
    app = make_app()
    with live.serving(app) as server:
        app.attach(server)
        yield server
    # Whatever the clients did, it was no failure of a handler.
    assert not server.stats().get("handler_errors")


class TestEcho:
    @pytest.fixture
    def session(self, server) -> Iterator[gwt.WebTransportSession]:
        with live.connect(server, "/echo") as session:
            yield session

    def test_bidirectional_stream_is_echoed_while_it_is_read(self, session):
        stream = session.create_bidirectional_stream()
        for part in (b"one", b"two"):
            stream.write(part)
            assert stream.readexactly(3, timeout=5) == part
        stream.finish()
        assert stream.read(timeout=5) == b""

    def test_streams_are_echoed_side_by_side(self, session):
        streams = [session.create_bidirectional_stream() for _ in range(50)]
        for number, stream in enumerate(streams):
            stream.write(b"%d" % number)
        # The last one does not wait for the end of the first.
        for number, stream in reversed(list(enumerate(streams))):
            stream.finish()
            assert stream.read_all(timeout=5) == b"%d" % number

    def test_more_than_all_buffers_hold_is_echoed(self, session):
        data = bytes(range(256)) * (8 * 4096)
        stream = session.create_bidirectional_stream()
        writing = spawn(stream.write_all, data)
        assert stream.read_all(timeout=20) == data
        writing.get()

    def test_unidirectional_stream_comes_back_on_a_new_one(self, session):
        for number in range(3):
            session.create_unidirectional_stream().write_all(b"%d" % number)
            back = session.accept_unidirectional_stream(timeout=5)
            assert back.read_all(timeout=5) == b"%d" % number

    def test_datagrams_come_back(self, session):
        session.send_datagram(b"")
        assert session.receive_datagram(timeout=5) == b""
        largest = bytes(session.max_datagram_size)
        session.send_datagram(largest)
        assert session.receive_datagram(timeout=5) == largest

    def test_datagram_that_does_not_fit_back_is_lost_and_nothing_else(self, server):
        # Packets of ours larger than the server's.
        with live.connect(server, "/echo", max_udp_payload=1400) as session:
            eventually(lambda: session.max_datagram_size >= 1300)
            session.send_datagram(bytes(1300))
            session.send_datagram(b"small")
            assert session.receive_datagram(timeout=5) == b"small"

    def test_stream_that_is_reset_resets_its_echo_and_nothing_else(self, session):
        stream = session.create_bidirectional_stream()
        stream.write(b"x")
        assert stream.read(timeout=5) == b"x"
        stream.reset(3)
        with pytest.raises(gwt.StreamReset):
            stream.read(timeout=5)
        other = session.create_bidirectional_stream()
        other.write_all(b"still here")
        assert other.read_all(timeout=5) == b"still here"

    def test_echo_that_nobody_wants_ends(self, session):
        stream = session.create_bidirectional_stream()
        stream.stop(3)
        with pytest.raises(gwt.StreamStopped):
            while True:
                stream.write(b"x" * 65536, timeout=5)

    def test_greenlets_end_with_the_session(self, server):
        session = live.connect(server, "/echo")
        for _ in range(10):
            session.create_bidirectional_stream().write(b"never finished")
        session.abort()
        # conftest sees what is left of them.
        eventually(lambda: server.stats()["handlers"] == 0)


def test_upload_is_answered_with_its_size_in_decimal(server):
    with live.connect(server, "/upload") as session:
        for size in (0, 1, 100_000):
            stream = session.create_bidirectional_stream()
            stream.write_all(bytes(size))
            assert stream.read_all(timeout=5) == b"%d" % size


def test_upload_takes_no_stream_that_it_cannot_answer(server):
    with live.connect(server, "/upload") as session:
        stream = session.create_unidirectional_stream()
        with pytest.raises(gwt.StreamStopped):
            while True:
                stream.write(b"x" * 65536, timeout=5)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3_000_000])
def test_download_has_the_size_asked_for(server, size):
    with live.connect(server, f"/download/{size}") as session:
        stream = session.accept_unidirectional_stream(timeout=5)
        data = stream.read_all(timeout=20)
    assert len(data) == size
    # No block begins anew in the middle of another.
    assert data == (bytes(range(256)) * (size // 256 + 1))[:size]


def test_download_holds_next_to_nothing(server):
    size = 64 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with live.connect(server, f"/download/{size}") as session:
        stream = session.accept_unidirectional_stream(timeout=5)
        assert sum(len(chunk) for chunk in stream) == size
    # Both ends and the test are in this process. KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 24 * 1024


def test_download_that_is_too_long_or_no_number_is_not_found(server):
    for size in ("x", "-1", str(2**40 + 1)):
        with pytest.raises(gwt.SessionRejected) as caught:
            live.connect(server, f"/download/{size}")
        assert caught.value.status == 404


def test_download_that_nobody_reads_ends_with_its_session(server):
    session = live.connect(server, f"/download/{2**40}")
    stream = session.accept_unidirectional_stream(timeout=5)
    assert stream.read(timeout=5)
    session.close()
    eventually(lambda: server.stats()["handlers"] == 0)


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("/close/0/bye", 0, "bye"),
        ("/close/4242/" + quote("göödbye & more/less?"), 4242, "göödbye & more/less?"),
        (f"/close/{2**32 - 1}/x", 2**32 - 1, "x"),
        ("/close/7", 7, ""),
        ("/close/7/", 7, ""),
        # A reason has at most 1024 bytes, and no half characters.
        ("/close/1/" + quote("x" + "ö" * 600), 1, "x" + "ö" * 511),
    ],
)
def test_close_has_the_code_and_reason_asked_for(server, path, code, reason):
    session = live.connect(server, path)
    session.wait_closed(timeout=5)
    assert (session.close_code, session.close_reason) == (code, reason)


def test_close_with_a_code_of_more_than_32_bits_is_not_found(server):
    for path in (f"/close/{2**32}/x", "/close/-1/x", "/close/x/x"):
        with pytest.raises(gwt.SessionRejected) as caught:
            live.connect(server, path)
        assert caught.value.status == 404


class TestHttp:
    @pytest.fixture
    def client(self, server) -> Client:
        return Client(server.app.wsgi)

    def test_health_says_how_it_is(self, server, client):
        with live.connect(server, "/echo"):
            health = client.get("/health").json
        assert health["status"] == "ok"
        assert health["version"] == gwt.__version__
        assert health["uptime"] >= 0
        assert health["webtransport"] is True
        assert health["certificate_hash"] == server.certificate_hash
        assert health["stats"]["sessions"]["current_count"] == 1

    def test_health_without_a_server_still_answers(self):
        health = Client(make_app().wsgi).get("/health").json
        assert health["status"] == "ok"

    def test_page_is_html(self, client):
        response = client.get("/")
        assert response.status_code == 200
        assert response.mimetype == "text/html"
        assert "new WebTransport(" in response.text

    def test_head_has_no_body(self, client):
        response = client.head("/")
        assert response.status_code == 200
        assert response.data == b""

    def test_other_methods_and_paths_are_refused(self, client):
        assert client.post("/").status_code == 405
        assert client.get("/nowhere").status_code == 404
