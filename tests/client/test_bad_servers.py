"""
Servers that are wrong, stuck or gone: each is an error of its own class, which says what to do.

For WebTransport and WebSocket alike. Where something has to fail at once there is no timeout that
could end it but the test's. Behind each test the client's hub is as it was.
"""

from __future__ import annotations

import datetime
import socket

import gevent
import gevent.event
import pytest

import gwt
from gwt import certificates
from gwt.client.sockets import ClientHub
from tests.helpers import eventually, spawn
from tests.helpers.live import echo, serving, url
from tests.helpers.raw import DRAFT16_SERVER
from tests.helpers.strangeserver import close, reset, silence, status, strange, udp
from tests.helpers.websockets import answering
from tests.helpers.websockets import serving as serving_websockets
from tests.helpers.websockets import url as websocket_url

# Neither connect_timeout nor QUIC's own ends it within a test.
FOREVER = {"timeout": None, "idle_timeout": 600.0}

EVERY = pytest.mark.parametrize("scheme", ["https", "wss", "ws"])
SECURE = pytest.mark.parametrize("scheme", ["https", "wss"])


@pytest.fixture(autouse=True)
def hub():
    """The client's hub, which holds nothing before and behind a test."""
    hub = ClientHub.current()

    def is_empty():
        return not (any(hub._sockets.values()) or hub.shared or hub.sharing or len(hub.names))

    eventually(is_empty)
    yield hub
    eventually(is_empty)
    assert all(slots.counter == limit for limit, slots in hub._slots.items())


def refused(there, kind, stage, *words, **options):
    """Connect by a client, which counts it, and without; each fails alike."""
    client = gwt.WebTransportClient(config=gwt.ClientConfig(**{**FOREVER, **options}))
    with pytest.raises(gwt.ClientError) as counted:
        client.connect(there)
    assert counted.value.target_url == there
    expected = {"attempted": 1, "successful": 0, "failed": 1, "success_rate": 0.0}
    assert client.stats["connections"] == expected
    assert client.debug_state()["client"]["sessions"] == 0
    client.close()
    errors = [counted.value.__cause__]
    for more in ({}, {"share_connection": True}):
        with pytest.raises(kind) as caught:
            gwt.connect(there, **{**FOREVER, **options, **more})
        errors.append(caught.value)
    for error in errors:
        assert type(error) is kind
        assert getattr(error, "stage", None) == stage
        for word in words:
            assert word in str(error), error
    return errors[-1]


@pytest.fixture
def closed_port():
    """A port where nobody listens, by UDP or TCP."""
    with socket.socket() as tcp:
        # It stays bound, so that nobody gets it, but does not listen.
        tcp.bind(("127.0.0.1", 0))
        yield tcp.getsockname()[1]


@EVERY
def test_a_name_that_does_not_exist(scheme):
    there = f"{scheme}://no-such-host.invalid/"
    refused(there, gwt.HandshakeError, "resolve", "'no-such-host.invalid' cannot be resolved")


@EVERY
def test_a_closed_port_at_once(scheme, closed_port):
    # pywebtransport 0.21.1 waited its full 30 seconds.
    refused(
        f"{scheme}://127.0.0.1:{closed_port}/",
        gwt.HandshakeError,
        "connect",
        f"Nobody answers on {'UDP' if scheme == 'https' else 'TCP'}",
        f"127.0.0.1 port {closed_port}",
        "refused",
    )


class TestWithoutHttp3:
    def test_a_socket_that_answers_garbage(self):
        with udp(b"SSH-2.0-OpenSSH\r\n") as there:
            options = {"timeout": 0.2, "client_sockets": None}
            refused(there, TimeoutError, None, "after 0.2 s", "answers, but not by QUIC", **options)

    def test_another_application_by_quic_at_once(self):
        with strange(alpn=["hq-interop"]) as server:
            refused(server.url, gwt.HandshakeError, "http3", "QUIC, but no HTTP/3", verify=False)

    @pytest.mark.parametrize(
        ("settings", "word"),
        [
            ({}, "no WebTransport"),
            ({0x33: 1, 0x8: 1}, "no WebTransport"),
            ({k: v for k, v in DRAFT16_SERVER.items() if k != 0x8}, "extended CONNECT"),
            ({k: v for k, v in DRAFT16_SERVER.items() if k != 0x33}, "HTTP/3 datagrams"),
        ],
        ids=["nothing", "only-datagrams", "no-connect", "no-datagrams"],
    )
    def test_http3_without_webtransport_at_once(self, settings, word):
        with strange(settings=settings) as server:
            refused(server.url, gwt.RequirementsNotMet, "http3", word, verify=False)

    def test_quic_whose_http3_never_begins(self):
        with strange(settings=None) as server:
            words = ["waiting for the HTTP/3 settings of 127.0.0.1 port"]
            refused(server.url, TimeoutError, None, *words, verify=False, timeout=0.3)


class TestWithoutWebSocket:
    @pytest.mark.parametrize("text", [b"SSH-2.0-OpenSSH\r\n\r\n", b"\0\1\2", b""])
    def test_something_that_is_no_http(self, text):
        with answering(text, text, text) as (base, _):
            refused(base, gwt.HandshakeError, "websocket", "server")

    def test_a_page_instead_of_an_upgrade(self):
        page = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        with answering(page, page, page) as (base, _):
            error = refused(base, gwt.SessionRejected, "websocket", "HTTP status 200")
        assert error.status == 200 and error.body == b"hi"


def made(hosts=("localhost", "127.0.0.1"), days_ago=0):
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
    return certificates.generate(list(hosts), now=moment)


@SECURE
@pytest.mark.parametrize(
    ("certificate", "trust", "words"),
    [
        (made(days_ago=60), "cafile", ["127.0.0.1"]),
        (made(days_ago=60), "hash", ["expired at"]),
        (made(["other.example"]), "cafile", ["127.0.0.1"]),
        (made(), "nobody", ["127.0.0.1", "self-signed"]),
        (made(), "another", ["matches none of server_certificate_hashes", "its SHA-256 is"]),
    ],
    ids=["expired", "expired-pinned", "other-name", "untrusted", "not-pinned"],
)
def test_a_certificate_that_is_not_accepted_at_once(scheme, certificate, trust, words, tmp_path):
    cert, key = certificates.write(tmp_path, certificate)
    app = gwt.App()
    app.webtransport("/")(echo)
    app.websocket("/")(lambda ws: None)
    options = {
        "cafile": {"cafile": cert},
        "hash": {"server_certificate_hashes": [certificate.sha256]},
        "nobody": {},
        "another": {"server_certificate_hashes": ["00" * 32]},
    }[trust]
    with serving(app, certfile=cert, keyfile=key) as server:
        there = url(server).replace("https", scheme)
        refused(there, gwt.CertificateError, "tls", *words, **options)


class TestRefusals:
    @pytest.mark.parametrize("code", [403, 404, 503])
    def test_by_a_status_at_once(self, code):
        answer = status(code, (b"x-why", b"because"))
        with strange(answer=answer) as server:
            words = [f"HTTP status {code}"]
            error = refused(server.url, gwt.SessionRejected, "webtransport", *words, verify=False)
            assert (error.status, error.headers["x-why"]) == (code, "because")
        answer = f"HTTP/1.1 {code} No\r\nX-Why: because\r\nContent-Length: 0\r\n\r\n".encode()
        with answering(answer, answer, answer) as (base, _):
            error = refused(base, gwt.SessionRejected, "websocket", f"HTTP status {code}")
            assert (error.status, error.headers["x-why"]) == (code, "because")

    def test_by_a_server_of_ours(self):
        app = gwt.App()
        app.webtransport("/")(echo)
        app.websocket("/")(lambda ws: None)
        with serving(app) as server:
            stranger = {"origin": "https://stranger.example", "verify": False}
            for scheme, stage in (("https", "webtransport"), ("ws", "websocket")):
                there = url(server).replace("https", scheme)
                error = refused(there, gwt.SessionRejected, stage, "403", **stranger)
                assert error.status == 403
                nowhere = there + "nowhere"
                assert refused(nowhere, gwt.SessionRejected, stage, "404", verify=False)
            assert not len(server.sessions)

    def test_by_a_reset(self):
        with strange(answer=reset(0x10B)) as server:
            words = ["reset the request", "0x10b", "no more sessions"]
            refused(server.url, gwt.HandshakeError, "webtransport", *words, verify=False)

    def test_by_the_end_of_the_connection(self):
        with strange(answer=close(0x107, "too much")) as server:
            words = ["ended before the session was accepted", "by the peer", "too much"]
            refused(server.url, gwt.HandshakeError, "webtransport", *words, verify=False)


class TestSilence:
    def test_by_udp(self):
        with udp() as there:
            words = ["after 0.2 s", "shaking hands with 127.0.0.1 port"]
            refused(there, TimeoutError, None, *words, timeout=0.2)

    @pytest.mark.parametrize(
        ("scheme", "word"), [("ws", "accept the WebSocket"), ("wss", "shaking hands by TLS")]
    )
    def test_by_tcp(self, scheme, word):
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            there = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/"
            refused(there, TimeoutError, None, "after 0.2 s", word, timeout=0.2)

    def test_of_the_application(self):
        with strange(answer=silence) as server:
            word = "waiting for the server to accept the session"
            refused(server.url, TimeoutError, None, word, verify=False, timeout=0.3)


# What may be under way on a session when it ends: each blocks, since the peer does nothing.


def open_streams(session):
    while True:
        session.create_bidirectional_stream()


def write(session):
    session.create_unidirectional_stream().write_all(bytes(4 << 20))


def flush(session):
    with session.create_unidirectional_stream() as stream:
        stream.write(bytes(1 << 19))
        stream.flush()


SESSION_OPERATIONS = {
    "create a stream": open_streams,
    "read": lambda session: session.create_bidirectional_stream().read(),
    "read all": lambda session: session.create_bidirectional_stream().read_all(),
    "write": write,
    "flush": flush,
    "accept": lambda session: session.accept_stream(),
    "receive a datagram": lambda session: session.receive_datagram(),
}

# Who ends it, how (given the client, the client's session and the server's), and what is told.
SESSION_ENDS = {
    "the peer": (lambda client, ours, theirs: theirs.close(7, "bye", timeout=0), (7, "bye", True)),
    "the peer, hard": (lambda client, ours, theirs: theirs.abort(7), (7, "", True)),
    "its connection": (
        lambda client, ours, theirs: theirs.connection.close(9, "bye"),
        (None, "bye", True),
    ),
    "we": (lambda client, ours, theirs: ours.abort(5), (5, "", False)),
    "the client": (lambda client, ours, theirs: client.close(), (0, "", False)),
    "our connection": (
        lambda client, ours, theirs: ours.connection.close(3, "enough"),
        (None, "enough", False),
    ),
    "the network": (
        lambda client, ours, theirs: ours.connection.fail(OSError("the cable is cut")),
        (None, "the cable is cut", False),
    ),
}


@pytest.fixture
def session():
    """A client, its session, and the server's end of that, which does nothing."""
    accepted = gevent.event.AsyncResult()

    def handler(theirs):
        accepted.set(theirs)
        theirs.wait_closed()

    with serving(handler, max_incoming_streams=8) as server:
        config = gwt.ClientConfig(
            server_certificate_hashes=[server.certificate_hash], close_timeout=0.2
        )
        with gwt.WebTransportClient(config=config) as client:
            ours = client.connect(url(server))
            theirs = accepted.get(timeout=5)
            yield client, ours, theirs
        assert client.stats["connections"]["successful"] == 1
        assert client.debug_state()["client"]["sessions"] == 0
        # Where the network was what broke, nobody has told it.
        theirs.connection.close()
        eventually(lambda: not len(server.sessions) and not server.stats()["handlers"])


def rest():
    """Let what was started come to where it waits."""
    with gevent.Timeout(5):
        gevent.idle()


@pytest.mark.parametrize("who", SESSION_ENDS)
@pytest.mark.parametrize("operation", SESSION_OPERATIONS)
def test_a_session_that_ends_in_the_middle_of(operation, who, session):
    client, ours, theirs = session
    end, (code, reason, remote) = SESSION_ENDS[who]
    job = spawn(SESSION_OPERATIONS[operation], ours)
    rest()
    assert not job.done
    end(client, ours, theirs)
    if (operation, who) in (("read", "the peer"), ("read all", "the peer")):
        # In order: before the session ended, its streams have.
        assert job.get(timeout=5) == b""
        assert not len(ours.streams)
        return
    if (operation, who) in (("write", "the client"), ("flush", "the client")):
        # close() waited for them, and gave them up.
        with pytest.raises(gwt.StreamReset, match="locally"):
            job.get(timeout=5)
        assert not len(ours.streams)
        return
    with pytest.raises(gwt.SessionClosed) as caught:
        job.get(timeout=5)
    error = caught.value
    assert (error.code, error.reason, error.remote) == (code, reason, remote)
    assert error.session_id == ours.session_id
    assert reason in str(error)
    assert ("by the peer" if remote else "locally") in str(error)
    assert ours.is_closed and not len(ours.streams)


@pytest.mark.parametrize("who", SESSION_ENDS)
def test_a_session_that_ends_in_the_middle_of_close_and_of_waiting(who, session):
    client, ours, theirs = session
    stream = ours.create_bidirectional_stream()
    stream.write(bytes(1 << 19))
    waiting = [spawn(ours.wait_closed, 5), spawn(ours.close), spawn(ours.close, 4, "again")]
    gevent.sleep(0)
    SESSION_ENDS[who][0](client, ours, theirs)
    for job in waiting:
        job.get(timeout=5)
    assert ours.is_closed and not len(ours.streams)


@pytest.mark.parametrize("who", SESSION_ENDS)
def test_whatever_is_done_behind_the_end_says_the_same(who, session):
    client, ours, theirs = session
    stream = ours.create_bidirectional_stream()
    end, (code, reason, remote) = SESSION_ENDS[who]
    end(client, ours, theirs)
    ours.wait_closed(timeout=5)
    if who == "the client":
        # close() finishes what is open.
        with pytest.raises(gwt.LocalProtocolError, match="finished"):
            stream.write(b"x")
    else:
        with pytest.raises(gwt.SessionClosed):
            stream.write(b"x")
    for again in (
        ours.create_bidirectional_stream,
        ours.create_unidirectional_stream,
        ours.accept_stream,
        ours.receive_datagram,
        lambda: ours.send_datagram(b"x"),
        stream.read,
    ):
        with pytest.raises(gwt.SessionClosed) as caught:
            again()
        error = caught.value
        assert (error.code, error.reason, error.remote) == (code, reason, remote)
    ours.close()
    ours.abort()


def test_a_server_that_accepts_and_closes():
    with (
        serving(lambda session: session.close(17, "not today")) as server,
        gwt.WebTransportClient(config=gwt.ClientConfig(verify=False)) as client,
    ):
        sessions = [client.connect(url(server)) for _ in range(5)]
        for session in sessions:
            with pytest.raises(gwt.SessionClosed, match="by the peer with code 17: not today"):
                session.accept_stream(timeout=5)
        assert client.debug_state()["client"]["sessions"] == 0
        assert client.stats["connections"]["successful"] == 5


# The same for WebSockets.


def send(ws):
    while True:
        ws.send(bytes(1 << 20))


def ping(ws):
    # The peer holds one message, and reads no further: more than one read's worth comes before it.
    for _ in range(2):
        ws.send(bytes(200_000))
    ws.ping().wait()


WEBSOCKET_OPERATIONS = {
    "receive": lambda ws: ws.recv(),
    "receive in pieces": lambda ws: next(iter(ws.recv_streaming())),
    "send": send,
    "wait for a pong": ping,
}

WEBSOCKET_ENDS = {
    "the peer": (lambda client, ours, theirs: theirs.begin_close(4007, "bye"), (4007, "bye")),
    "the peer, hard": (lambda client, ours, theirs: theirs.abort(), (1006, "")),
    "we": (lambda client, ours, theirs: ours.abort(), (1006, "")),
    "the client": (lambda client, ours, theirs: client.close(), None),
}


@pytest.fixture
def websocket():
    """A client, its WebSocket, and the server's end of that, which reads nothing."""
    accepted = gevent.event.AsyncResult()
    app = gwt.App()

    @app.websocket("/silent", max_queue=1, close_timeout=0.2)
    def handler(theirs):
        accepted.set(theirs)
        theirs.wait_closed()

    with serving_websockets(app=app) as server:
        config = gwt.ClientConfig(close_timeout=0.2, compression=None)
        with gwt.WebTransportClient(config=config) as client:
            ours = client.connect(websocket_url(server, "/silent"))
            theirs = accepted.get(timeout=5)
            yield client, ours, theirs
        assert client.stats["connections"]["successful"] == 1
        assert client.debug_state()["client"]["sessions"] == 0
        # It does not read while messages wait, and so does not see the end.
        theirs.abort()
        eventually(lambda: not server.stats()["handlers"])


@pytest.mark.parametrize("who", WEBSOCKET_ENDS)
@pytest.mark.parametrize("operation", WEBSOCKET_OPERATIONS)
def test_a_websocket_that_ends_in_the_middle_of(operation, who, websocket):
    client, ours, theirs = websocket
    end, told = WEBSOCKET_ENDS[who]
    job = spawn(WEBSOCKET_OPERATIONS[operation], ours)
    rest()
    assert not job.done
    end(client, ours, theirs)
    with pytest.raises(gwt.WebSocketClosed) as caught:
        job.get(timeout=5)
    error = caught.value
    if told is not None:
        code, reason = told
        assert error.code == code and reason in error.reason and reason in str(error)
    assert str(error.code) in str(error)
    ours.wait_closed(timeout=5)
    with pytest.raises(gwt.WebSocketClosed) as again:
        ours.send("x")
    assert again.value.code == ours.close_code


@pytest.mark.parametrize("who", WEBSOCKET_ENDS)
def test_a_websocket_that_ends_in_the_middle_of_close_and_of_waiting(who, websocket):
    client, ours, theirs = websocket
    waiting = [spawn(ours.wait_closed, 5), spawn(ours.close), spawn(ours.close, 4000, "again")]
    gevent.sleep(0)
    WEBSOCKET_ENDS[who][0](client, ours, theirs)
    for job in waiting:
        job.get(timeout=5)
    assert ours.is_closed


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_a_connect_that_is_killed_leaves_nothing(scheme):
    with serving(lambda session: None) as server, socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        client = gwt.WebTransportClient()
        with udp() as silent:
            there = silent if scheme == "https" else f"ws://127.0.0.1:{mute.getsockname()[1]}/"
            jobs = [spawn(client.connect, there) for _ in range(3)]
            rest()
            for job in jobs:
                job.kill()
        counted = client.stats["connections"]
        assert (counted["attempted"], counted["failed"]) == (3, 3)
        client.close()
        assert not server.stats()["handlers"]
