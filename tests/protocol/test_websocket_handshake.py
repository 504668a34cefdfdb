"""The opening handshake, both roles: what is accepted, what is refused, and how."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request
from wsproto.events import TextMessage as WsText

from gwt.errors import LocalProtocolError
from gwt.protocol.deflate import Compression
from gwt.protocol.websocket import Message, WebSocketProtocol
from gwt.protocol.wshandshake import (
    MAX_BODY,
    Agreement,
    ClientHandshake,
    HandshakeDone,
    HandshakeFailed,
    Refusal,
    UpgradeRequest,
    accept_key,
    accept_upgrade,
    check_upgrade,
    client_request,
)

# RFC 6455 1.3.
KEY, PROOF = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

GOOD = {
    "Host": "example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def ask(changes=(), method="GET", version="HTTP/1.1", target="/chat", more=()):
    headers = {**GOOD, **dict(changes)}
    listed = [(name, value) for name, value in headers.items() if value is not None]
    return check_upgrade(method, version, target, [*listed, *more])


HOSTILE = [
    {"Sec-WebSocket-Version": None},
    {"Sec-WebSocket-Key": None},
    {"Sec-WebSocket-Key": ""},
    {"Sec-WebSocket-Key": "x" * 24},
    {"Sec-WebSocket-Key": base64.b64encode(bytes(15)).decode()},
    {"Sec-WebSocket-Key": base64.b64encode(bytes(17)).decode()},
    {"Sec-WebSocket-Key": "é" * 24},
    {"Sec-WebSocket-Key": KEY[:-3] + "\u0661=="},
    {"Sec-WebSocket-Key": "x" * 10_000_000},
    {"Host": None},
    {"Host": ""},
    {"Host": "\xff"},
    {"Host": "a b"},
    {"Host": "a/b"},
    {"Host": "a@b"},
    {"Host": "a,b"},
    {"Host": "[::1"},
    {"Host": "a:b"},
    {"Host": "a:123456"},
    {"Sec-WebSocket-Protocol": "\xff"},
    {"Sec-WebSocket-Protocol": "a b"},
    {"Sec-WebSocket-Protocol": "a, a"},
    {"Sec-WebSocket-Protocol": ",".join(map(str, range(1000)))},
    {"Sec-WebSocket-Extensions": "\xff"},
    {"Sec-WebSocket-Extensions": 'a; b="'},
    {"Sec-WebSocket-Extensions": "a," * 1000},
    {"Origin": "a b"},
    {"Origin": "\xff"},
    {"Origin": ""},
    {"Content-Length": "5"},
    {"Content-Length": "-0"},
    {"Transfer-Encoding": "chunked"},
    {"X": "a\r\nb"},
    {"X": "a\x00"},
    {"X\r": "a"},
    {"X Y": "a"},
    {"": "a"},
    {"é": "a"},
]


class TestServer:
    def test_a_request(self):
        request = ask(
            {
                "Sec-WebSocket-Protocol": "chat, superchat",
                "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits, x",
                "Origin": "https://example.com",
                "Cookie": "a=é",
            },
            target="/chat?room=1",
        )
        assert request == UpgradeRequest(
            "/chat?room=1",
            request.headers,
            KEY,
            ("chat", "superchat"),
            ("permessage-deflate; client_max_window_bits", "x"),
            "https://example.com",
            "example.com",
        )
        assert ("Cookie", "a=é") in request.headers

    @pytest.mark.parametrize(
        ("changes", "more"),
        [
            ({"Connection": "keep-alive, Upgrade"}, []),
            ({"Connection": "keep-alive"}, [("connection", "upgrade")]),
            ({"Connection": "Upgrade"}, [("Connection", "keep-alive")]),
            ({"Upgrade": "WebSocket"}, []),
            ({"Upgrade": "h2c, websocket"}, []),
            ({"Host": "[::1]:8000"}, []),
            ({"Host": "localhost:80"}, []),
            ({"Host": "xn--bcher-kva.example"}, []),
            ({"Content-Length": "0"}, []),
            ({"Origin": "null"}, []),
            ({"Sec-WebSocket-Protocol": ""}, []),
            ({"Sec-WebSocket-Extensions": ""}, []),
            ({"Sec-WebSocket-Protocol": "a"}, [("Sec-WebSocket-Protocol", "b")]),
            ({"Sec-WebSocket-Key": f" {KEY}\t"}, []),
        ],
    )
    def test_requests_that_are_fine(self, changes, more):
        assert isinstance(ask(changes, more=more), UpgradeRequest)

    def test_a_target_may_be_a_url(self):
        assert ask(target="ws://example.com/a?b").path == "/a?b"
        assert ask(version="1.1").path == "/chat"

    @pytest.mark.parametrize("method", ["POST", "get", "HEAD", "CONNECT", ""])
    def test_methods(self, method):
        refusal = ask(method=method)
        assert refusal.status == 405
        assert ("Allow", "GET") in refusal.headers

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"Upgrade": None}, b"Upgrade: websocket"),
            ({"Upgrade": "h2c"}, b"Upgrade: websocket"),
            ({"Connection": None}, b"Connection: Upgrade"),
            ({"Connection": "keep-alive"}, b"Connection: Upgrade"),
            ({"Connection": "upgraded"}, b"Connection: Upgrade"),
        ],
    )
    def test_requests_that_do_not_ask_for_an_upgrade(self, changes, named):
        refusal = ask(changes)
        assert refusal.status == 426
        assert ("Upgrade", "websocket") in refusal.headers
        assert named in refusal.body

    @pytest.mark.parametrize("version", ["8", "12", "14", "013", "13, 8", "", "x" * 1000])
    def test_versions(self, version):
        refusal = ask({"Sec-WebSocket-Version": version})
        assert refusal.status == 426
        assert ("Sec-WebSocket-Version", "13") in refusal.headers

    @pytest.mark.parametrize("changes", HOSTILE, ids=lambda changes: repr(changes)[:60])
    def test_hostile_values(self, changes):
        refusal = ask(changes)
        assert isinstance(refusal, Refusal)
        assert refusal.status == 400
        assert refusal.body.endswith(b"\n")

    @pytest.mark.parametrize("name", ["Host", "Sec-WebSocket-Key", "Origin"])
    def test_what_may_be_there_once(self, name):
        value = GOOD.get(name, "https://a")
        assert ask({name: value}, more=[(name.lower(), value)]).status == 400

    @pytest.mark.parametrize("name", ["Sec-WebSocket-Version"])
    def test_a_repeated_version(self, name):
        assert ask(more=[(name.lower(), "13")]).status == 426

    @pytest.mark.parametrize("version", ["HTTP/1.0", "1.0", "HTTP/0.9", "", "HTTP/1", "x", "1.1.1"])
    def test_versions_of_http(self, version):
        assert ask(version=version).status == 400

    @pytest.mark.parametrize("target", ["", "*", "chat", "/a b", "/é", "/\x00", "/a#b", "ws://"])
    def test_targets(self, target):
        assert ask(target=target).status == 400

    @given(
        changes=st.dictionaries(
            st.sampled_from([*GOOD, "Origin", "Sec-WebSocket-Extensions", "X"])
            | st.text(max_size=5),
            st.text(max_size=40) | st.from_regex(r'[a-z;=," \\]*'),
            max_size=3,
        ),
        target=st.text(max_size=10),
    )
    def test_never_raises(self, changes, target):
        for result in (ask(changes), ask(changes, target=target)):
            if isinstance(result, UpgradeRequest):
                accept_upgrade(result, compression="deflate")

    def test_the_answer(self):
        data, agreement = accept_upgrade(ask())
        assert agreement == Agreement(None, None)
        assert data == (
            b"HTTP/1.1 101 Switching Protocols\r\n"
            b"Upgrade: websocket\r\n"
            b"Connection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + PROOF.encode() + b"\r\n\r\n"
        )

    def test_the_answer_with_everything(self):
        request = ask(
            {
                "Sec-WebSocket-Protocol": "a, b",
                "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
            }
        )
        data, agreement = accept_upgrade(
            request, subprotocol="b", compression="deflate", headers=[("Set-Cookie", "x=é")]
        )
        assert b"\r\nSec-WebSocket-Protocol: b\r\n" in data
        assert b"\r\nSec-WebSocket-Extensions: permessage-deflate; " in data
        assert b"\r\nSet-Cookie: x=\xe9\r\n\r\n" in data
        assert agreement.subprotocol == "b"
        assert agreement.deflate.server_no_context_takeover

    def test_compression_is_declined_by_default(self):
        data, agreement = accept_upgrade(ask({"Sec-WebSocket-Extensions": "permessage-deflate"}))
        assert agreement.deflate is None
        assert b"Extensions" not in data

    @pytest.mark.parametrize(
        "headers",
        [
            [("X", "a\r\nb")],
            [("X", "\u20ac")],
            [("X:", "a")],
            [("", "a")],
            [("Connection", "close")],
            [("sec-websocket-accept", "x")],
            [("Sec-WebSocket-Extensions", "x")],
            [("Content-Length", "0")],
            [("Transfer-Encoding", "chunked")],
        ],
    )
    def test_headers_that_cannot_be_sent(self, headers):
        with pytest.raises(LocalProtocolError):
            accept_upgrade(ask(), headers=headers)
        with pytest.raises(LocalProtocolError):
            client_request("a", "/", headers=headers)

    def test_a_subprotocol_that_was_not_offered(self):
        with pytest.raises(LocalProtocolError):
            accept_upgrade(ask({"Sec-WebSocket-Protocol": "a"}), subprotocol="b")


def parse(data: bytes) -> tuple[str, str, str, list]:
    lines = data.decode("latin-1").split("\r\n")
    method, target, version = lines[0].split(" ")
    headers = [tuple(line.split(": ", 1)) for line in lines[1:-2]]
    return method, version, target, headers


ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"upgrade: WebSocket\r\n"
    b"connection: keep-alive, upgrade\r\n"
    b"sec-websocket-accept: " + PROOF.encode() + b"\r\n"
)


def answer(*lines: str) -> bytes:
    return ANSWER + "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


class TestClient:
    def test_a_request(self):
        data, key = client_request(
            "example.com:8080",
            "/chat?x=1",
            origin="https://example.com",
            subprotocols=("a", "b"),
            compression="deflate",
            headers=[("User-Agent", "gwt")],
        )
        request = check_upgrade(*parse(data))
        assert request.key == key
        assert request.host == "example.com:8080"
        assert request.path == "/chat?x=1"
        assert request.subprotocols == ("a", "b")
        assert request.origin == "https://example.com"
        assert ("User-Agent", "gwt") in request.headers
        assert client_request("a", "/")[1] != key

    @pytest.mark.parametrize(
        ("host", "target", "options"),
        [
            ("", "/", {}),
            ("a b", "/", {}),
            ("a\r\n", "/", {}),
            ("a", "", {}),
            ("a", "x", {}),
            ("a", "/ ", {}),
            ("a", "/é", {}),
            ("a", "/#x", {}),
            ("a", "/", {"subprotocols": ["a b"]}),
            ("a", "/", {"subprotocols": ["a", "a"]}),
            ("a", "/", {"origin": "a\r\nb"}),
        ],
    )
    def test_what_cannot_be_asked(self, host, target, options):
        with pytest.raises(LocalProtocolError):
            client_request(host, target, **options)

    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_an_answer_however_it_is_cut(self, size):
        data = answer("Sec-WebSocket-Protocol: b", "X: é") + b"\x81\x01x"
        handshake = ClientHandshake(KEY, subprotocols=("a", "b"))
        result, rest = None, b""
        for start in range(0, len(data), size):
            if result is None:
                result = handshake.feed(data[start : start + size])
            else:
                rest += data[start : start + size]
        assert isinstance(result, HandshakeDone)
        assert result.agreement == Agreement("b", None)
        assert result.status == 101
        assert ("x", "é") in [(name.lower(), value) for name, value in result.headers]
        assert result.rest + rest == b"\x81\x01x"

    def test_frames_behind_the_answer_are_all_there(self):
        frames = b"\x82\x7e\x40\x00" + bytes(0x4000)
        result = ClientHandshake(KEY).feed(answer() + frames * 3)
        assert result.rest == frames * 3

    def test_other_answers_before_it(self):
        data = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3 + answer()
        assert isinstance(ClientHandshake(KEY).feed(data), HandshakeDone)
        data = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100 + answer()
        assert isinstance(ClientHandshake(KEY).feed(data), HandshakeFailed)

    def test_compression(self):
        handshake = ClientHandshake(KEY, compression=Compression(no_context_takeover=False))
        line = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10"
        assert handshake.feed(answer(line)).agreement.deflate.server_max_window_bits == 10

    @pytest.mark.parametrize(
        "data",
        [
            answer().replace(PROOF.encode(), b"x"),
            answer().replace(PROOF.encode(), b"\xff"),
            answer().replace(b"WebSocket", b"h2c"),
            answer().replace(b"keep-alive, upgrade", b"keep-alive"),
            answer(f"Sec-WebSocket-Accept: {PROOF}"),
            answer("Sec-WebSocket-Protocol: c"),
            answer("Sec-WebSocket-Protocol: \xff"),
            answer("Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: a"),
            answer("Sec-WebSocket-Extensions: permessage-deflate"),
            answer("Sec-WebSocket-Extensions: \xff"),
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ],
    )
    def test_answers_that_open_nothing(self, data):
        result = ClientHandshake(KEY, subprotocols=("a",)).feed(data)
        assert isinstance(result, HandshakeFailed)
        assert result.status == 101
        assert result.reason.endswith(".")

    @pytest.mark.parametrize(
        "data",
        [
            b"\x00\x00\x00\n\n",
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"x" * 10_000_000,
            b"HTTP/1.1 101 Switching\r\nX: " + b"x" * 10_000_000 + b"\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\n" + b"X: x\r\n" * 1_000_000 + b"\r\n",
        ],
        ids=range(8),
    )
    def test_what_is_no_answer(self, data):
        result = ClientHandshake(KEY).feed(data)
        assert isinstance(result, HandshakeFailed)
        assert result.status is None

    def test_a_header_within_the_limit(self):
        line = "X: " + "x" * 60_000
        assert isinstance(ClientHandshake(KEY).feed(answer(line)), HandshakeDone)
        assert isinstance(ClientHandshake(KEY, max_header=8192).feed(answer(line)), HandshakeFailed)

    @pytest.mark.parametrize("size", [1, 1000])
    def test_a_refusal(self, size):
        data = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\nX: y\r\n\r\nnever"
        handshake = ClientHandshake(KEY)
        for start in range(0, len(data), size):
            result = handshake.feed(data[start : start + size])
        assert (result.status, result.body) == (403, b"never")
        assert dict((name.lower(), value) for name, value in result.headers)["x"] == "y"
        assert "403" in result.reason
        assert handshake.feed(b"more") is result
        assert handshake.feed_eof() is result

    def test_a_refusal_that_has_no_length(self):
        handshake = ClientHandshake(KEY)
        assert handshake.feed(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\nbody") is None
        result = handshake.feed_eof()
        assert (result.status, result.body) == (302, b"body")

    def test_a_refusal_in_chunks_without_end(self):
        handshake = ClientHandshake(KEY)
        handshake.feed(b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            result = handshake.feed(b"400\r\n" + b"x" * 1024 + b"\r\n")
            if result:
                break
        assert result.status == 500
        assert len(result.body) == MAX_BODY

    def test_the_server_vanishes(self):
        handshake = ClientHandshake(KEY)
        assert handshake.feed(answer()[:-2]) is None
        result = handshake.feed_eof()
        assert isinstance(result, HandshakeFailed)
        assert result.status is None

    @given(data=st.binary(max_size=100), cut=st.integers(0, 200))
    def test_never_raises(self, data, cut):
        whole = answer("X: y") + b"\x81\x01x"
        handshake = ClientHandshake(KEY)
        handshake.feed(whole[:cut] + data + whole[cut:])
        handshake.feed_eof()

    @pytest.mark.parametrize(
        "pieces", [[b"SSH-2.0-OpenSSH_9.9\r\n"], [b"H", b"T", b"P"], [b"\x15"]]
    )
    def test_what_is_no_http_is_known_by_its_first_bytes(self, pieces):
        handshake = ClientHandshake(KEY)
        *results, last = [handshake.feed(piece) for piece in pieces]
        assert not any(results)
        assert isinstance(last, HandshakeFailed) and last.reason.endswith("answer is not HTTP.")

    def test_answer_may_come_byte_by_byte(self):
        handshake = ClientHandshake(KEY)
        *results, last = [handshake.feed(bytes([byte])) for byte in answer()]
        assert not any(results) and isinstance(last, HandshakeDone)

    def test_a_refusal_is_known_before_its_body(self):
        handshake = ClientHandshake(KEY)
        assert not handshake.refused
        assert handshake.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 No\r\nX: y\r\n") is None
        assert not handshake.refused
        assert handshake.feed(b"\r\nbo") is None
        assert handshake.refused
        result = handshake.feed_eof()
        assert (result.status, result.body) == (401, b"bo")


class TestTogether:
    @pytest.mark.parametrize("compression", [None, "deflate"])
    def test_our_two_ends(self, compression):
        data, key = client_request("a", "/", subprotocols=["x"], compression=compression)
        request = check_upgrade(*parse(data))
        reply, agreement = accept_upgrade(request, subprotocol="x", compression=compression)
        done = ClientHandshake(key, subprotocols=["x"], compression=compression).feed(reply)
        assert done.agreement == agreement
        assert (agreement.deflate is not None) is (compression is not None)

    def test_with_wsproto_as_server(self):
        data, key = client_request("a", "/chat", subprotocols=["x"])
        peer = WSConnection(ConnectionType.SERVER)
        peer.receive_data(data)
        [event] = peer.events()
        assert isinstance(event, Request) and event.target == "/chat"
        reply = peer.send(AcceptConnection(subprotocol="x")) + peer.send(WsText(data="hi"))
        done = ClientHandshake(key, subprotocols=["x"]).feed(reply)
        assert done.agreement.subprotocol == "x"
        client = WebSocketProtocol(True, agreement=done.agreement, now=0.0)
        assert client.receive_data(done.rest, 0.0) == [Message("hi")]

    def test_with_wsproto_as_client(self):
        peer = WSConnection(ConnectionType.CLIENT)
        data = peer.send(Request(host="a", target="/chat", subprotocols=["x"]))
        request = check_upgrade(*parse(data))
        reply, agreement = accept_upgrade(request, subprotocol="x")
        server = WebSocketProtocol(False, agreement=agreement, now=0.0)
        server.send("hi")
        peer.receive_data(reply + b"".join(server.data_to_send()))
        accepted, message = peer.events()
        assert accepted.subprotocol == "x"
        assert message.data == "hi"
        assert server.receive_data(peer.send(WsText(data="yo")), 0.0) == [Message("yo")]

    def test_the_proof_of_the_rfc(self):
        assert accept_key(KEY) == PROOF
