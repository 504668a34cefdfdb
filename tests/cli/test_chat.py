"""The demo's chat, by WebSockets and WebTransport sessions at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import gwt
from gwt.cli import chat
from gwt.cli.demo import make_app
from tests.helpers import eventually, live


class Guest:
    """A client of the chat: what it hears, by whichever transport."""

    def __init__(self, server: gwt.Server, transport: str, path: str) -> None:
        self.transport = transport
        if transport == "WebSocket":
            host, port = server.address
            self.peer: Any = gwt.connect(f"ws://{host}:{port}/chat/{path}")
            self._messages = iter(self.peer)
        else:
            self.peer = live.connect(server, f"/chat/{path}")
            stream = self.peer.accept_unidirectional_stream(timeout=5)
            self._messages = gwt.read_messages(stream)
            self.stream = self.peer.create_unidirectional_stream()

    def say(self, text: str) -> None:
        if self.transport == "WebSocket":
            self.peer.send(text)
        else:
            self.stream.write(gwt.encode_message(text))

    def hear(self) -> Any:
        return json.loads(next(self._messages))


@pytest.fixture
def server() -> Iterator[gwt.Server]:
    app = make_app()
    with live.serving(app) as server:
        app.attach(server)
        yield server
    assert not server.stats().get("handler_errors")


@pytest.fixture
def come(server) -> Iterator[Any]:
    guests: list[Guest] = []

    def coming(transport: str, path: str = "lobby") -> Guest:
        guests.append(Guest(server, transport, path))
        return guests[-1]

    yield coming
    for guest in guests:
        guest.peer.abort()


BOTH = pytest.mark.parametrize("transport", ["WebSocket", "WebTransport"])


def members(guest: Guest) -> tuple[int, dict[str, str]]:
    told = guest.hear()
    assert told["type"] == "members"
    return told["count"], {each["name"]: each["transport"] for each in told["members"]}


def test_everybody_hears_everybody_and_who_is_there(come):
    ann = come("WebSocket", "lobby?name=ann")
    assert ann.hear() == {
        "type": "members",
        "count": 1,
        "joined": "ann",
        "members": [{"name": "ann", "transport": "WebSocket"}],
    }
    bob = come("WebTransport", "lobby?name=b%C3%B6b")
    both = (2, {"ann": "WebSocket", "böb": "WebTransport"})
    assert members(ann) == members(bob) == both
    for guest, name in ((ann, "ann"), (bob, "böb")):
        guest.say(f"I am {name}")
        said = {"type": "message", "name": name, "text": f"I am {name}"}
        assert ann.hear() == bob.hear() == said
    bob.peer.close()
    told = ann.hear()
    assert (told["count"], told["left"]) == (1, "böb")


def test_rooms_do_not_hear_each_other_and_vanish(come, server):
    here, there = come("WebTransport", "here"), come("WebSocket", "there")
    here.hear(), there.hear()
    there.say("nobody")
    assert there.hear()["text"] == "nobody"
    here.say("me")
    assert here.hear()["text"] == "me"
    assert set(server.rooms.rooms) == {"chat/here", "chat/there"}
    here.peer.abort(), there.peer.abort()
    eventually(lambda: not server.rooms.rooms and not len(server.rooms))


@BOTH
def test_a_name_is_one_s_own_short_and_printable(come, transport):
    names = [come(transport, f"lobby?name={wish}").hear()["joined"] for wish in (
        "x", "x", "", "%20%0A", "a%0Ab%E2%80%AE", "%FF", "n" * 100
    )]  # fmt: skip
    assert names == ["x", "x 2", "guest", "guest 2", "a b", "\ufffd", "n" * 32]


@BOTH
def test_what_is_empty_is_not_said_and_what_is_long_is_cut(come, transport):
    guest = come(transport)
    guest.hear()
    for text in ("", " \n", "a\tb\0", "x" * 3000):
        guest.say(text)
    assert [guest.hear()["text"] for _ in range(2)] == ["a b", "x" * 2000]


def test_a_message_beyond_the_bound_ends_a_websocket_and_stops_a_stream(come):
    ann, bob = come("WebSocket"), come("WebTransport")
    ann.hear(), ann.hear(), bob.hear()
    bob.say("x" * (chat.MAX_MESSAGE + 1))
    with pytest.raises(gwt.StreamStopped):
        while True:
            bob.stream.write(bytes(65536), timeout=5)
    assert not bob.peer.is_closed
    ann.say("x" * (chat.MAX_MESSAGE + 1))
    ann.peer.wait_closed(timeout=5)
    assert ann.peer.close_code == 1009
    assert bob.hear()["left"] == "guest"


def test_a_session_may_say_lines_and_datagrams(come):
    guest = come("WebTransport")
    guest.hear()
    stream = guest.peer.create_bidirectional_stream()
    stream.write(b"one\ntw")
    assert guest.hear()["text"] == "one"
    stream.write_all(b"o")
    assert guest.hear()["text"] == "two"
    assert stream.read_all(timeout=5) == b""
    guest.peer.send_datagram(b"three")
    assert guest.hear()["text"] == "three"


@BOTH
def test_who_says_too_much_is_slowed_down_and_loses_nothing(come, transport, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(chat, "sleep", slept.append)
    monkeypatch.setattr(chat, "_BURST", 20)
    guest = come(transport)
    guest.hear()
    for number in range(40):
        guest.say(str(number))
    assert [guest.hear()["text"] for _ in range(40)] == [str(number) for number in range(40)]
    # A burst is free; then each would wait a twentieth of a second longer.
    assert not any(slept[:20])
    assert 0.5 < slept[-1] <= 1 and slept[20:] == sorted(slept[20:])


def test_many_are_counted_and_not_named(come, monkeypatch):
    monkeypatch.setattr(chat, "_MOST_NAMED", 1)
    ann = come("WebSocket")
    assert "members" in ann.hear()
    come("WebSocket")
    assert ann.hear() == {"type": "members", "count": 2, "joined": "guest 2"}


def test_a_room_with_a_long_name_is_not_found(server):
    with pytest.raises(gwt.SessionRejected) as caught:
        live.connect(server, "/chat/" + "x" * 65)
    assert caught.value.status == 404
