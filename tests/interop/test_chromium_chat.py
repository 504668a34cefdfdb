"""The demo's page in headless Chromium: a chat with pages and greenlets, by both transports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

import gwt
from gwt.cli.demo import make_app

pytestmark = [pytest.mark.browser, pytest.mark.deadline(60)]

PRELUDE = """
const text = (id) => document.getElementById(id).textContent;
const until = (done) => within(20, (async () => {
  while (!done()) await new Promise((resolve) => setTimeout(resolve, 10));
})());
const shown = () => Object.fromEntries(
  ['state', 'transport', 'url', 'trip', 'handshake', 'count'].map((id) => [id, text(id)]));
const said = () => [...document.querySelectorAll('#log .said')].map(
  (e) => [...e.children].map((part) => part.textContent)).reverse();
const members = () => Object.fromEntries([...document.querySelectorAll('#members li')].map(
  (e) => [...e.children].map((part) => part.textContent)));
const entered = () => until(() => text('state') === 'connected' && members()[args.name ?? me()]);
const me = () => document.getElementById('name').value;
const say = (words) => {
  document.getElementById('text').value = words;
  document.querySelector('#form button').click();
};
"""

TALK = """
await entered();
say('from the test');
await until(() => said().length && text('trip').endsWith('ms'));
return {...shown(), lines: said(), name: me(), members: members()};
"""


def test_the_page_works(demo, page, tmp_path):
    page.go(f"{demo}/")
    shown = page.run(PRELUDE + TALK)
    assert (shown["state"], shown["transport"]) == ("connected", "WebTransport")
    assert shown["url"] == demo.replace("http://", "https://") + "/chat/lobby"
    assert shown["trip"].endswith(" ms")
    assert shown["handshake"].endswith(" ms")
    assert shown["lines"] == [[shown["name"], "from the test"]]
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("before", "query", "why"),
    [
        ("delete window.WebTransport;", "", "this browser has no WebTransport"),
        (
            "Object.defineProperty(window, 'isSecureContext', {value: false});",
            "",
            "browsers have WebTransport on secure pages only",
        ),
        (
            "window.WebTransport = class { closed = new Promise(() => {}); close() {}"
            "  ready = Promise.reject(new Error('no UDP')); };",
            "",
            "WebTransport failed: no UDP",
        ),
        ("", "&transport=websocket", "as the address of this page asks for"),
    ],
    ids=["missing", "insecure", "failing", "unwanted"],
)
def test_the_page_takes_websocket_without_webtransport(demo, page, before, query, why):
    with page.before_pages(before):
        page.go(f"{demo}/?room=fallback&name=ann{query}")
        shown = page.run(PRELUDE + TALK)
    assert shown["state"] == "connected"
    assert shown["transport"].startswith(f"WebSocket: {why}")
    assert shown["url"] == demo.replace("http://", "ws://") + "/chat/fallback"
    assert shown["lines"] == [["ann", "from the test"]]
    assert shown["members"] == {"ann": "WebSocket"}


def test_the_page_says_why_it_cannot_work(demo, page):
    with page.before_pages("delete window.WebTransport;"):
        page.go(f"{demo}/?transport=webtransport")
        state = page.run(
            PRELUDE + "await until(() => document.getElementById('state').className === 'failed');"
            "return text('state');"
        )
    assert state == "this browser has no WebTransport"


class Guest:
    """A greenlet's end of the chat."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        if isinstance(peer, gwt.WebSocket):
            self.say = peer.send
            self._told = iter(peer)
        else:
            stream = peer.create_unidirectional_stream()
            self.say = lambda text: stream.write(gwt.encode_message(text))
            self._told = gwt.read_messages(peer.accept_unidirectional_stream(timeout=10))
        self.members: dict[str, str] = {}

    def hear(self) -> tuple[str, str]:
        """The next that somebody says."""
        while (told := json.loads(next(self._told)))["type"] != "message":
            self.members = {each["name"]: each["transport"] for each in told["members"]}
        return told["name"], told["text"]


def test_two_pages_and_two_greenlets_chat_in_one_room(demo, page):
    certificate_hash = page.run("return (await (await fetch('/health')).json()).certificate_hash")
    room = f"{demo}/?room=mixed"
    path = demo.partition("://")[2] + "/chat/mixed?name="
    names = ["page by quic", "page by tcp", "greenlet by quic", "greenlet by tcp"]
    everybody = dict(zip(names, ["WebTransport", "WebSocket"] * 2, strict=True))
    page.go(f"{room}&name={names[0]}")
    page.run(PRELUDE + "await entered();")
    first = page.handle
    with (
        page.another(f"{room}&name={names[1]}&transport=websocket") as second,
        gwt.connect(
            f"https://{path}{names[2].replace(' ', '+')}",
            server_certificate_hashes=[certificate_hash],
        ) as session,
        gwt.connect(f"ws://{path}{names[3].replace(' ', '+')}") as ws,
    ):
        greenlets = [Guest(session), Guest(ws)]
        pages = [first, second]
        for handle in pages:
            page.turn_to(handle)
            assert (
                page.run(PRELUDE + "await entered(); return members();", name=names[3]) == everybody
            )

        # One after another, so that the order is known.
        said = []
        for handle, name in zip(pages, names[:2], strict=True):
            said.append((name, f"I am {name}"))
            page.turn_to(handle)
            page.run(PRELUDE + "say(args.words);", words=said[-1][1])
            assert [guest.hear() for guest in greenlets] == [said[-1]] * 2
        for guest, name in zip(greenlets, names[2:], strict=True):
            said.append((name, f"I am {name}"))
            guest.say(said[-1][1])
            assert [each.hear() for each in greenlets] == [said[-1]] * 2
        assert [guest.members for guest in greenlets] == [everybody] * 2
        for handle in pages:
            page.turn_to(handle)
            heard = page.run(PRELUDE + "await until(() => said().length >= 4); return said();")
            assert [tuple(each) for each in heard] == said
        session.close()
        shown = page.run(
            PRELUDE + "await until(() => Object.keys(members()).length === 3); return shown();"
        )
        assert shown["count"] == "3 members"
    page.turn_to(first)


def test_names_and_messages_are_text_and_never_markup(demo, page):
    evil = "<img src=x onerror=window.evil=1>"
    page.go(f"{demo}/?room=evil&name=ann")
    page.run(PRELUDE + "await entered();")
    path = demo.partition("://")[2] + "/chat/evil?name=%3Cimg+src=x+onerror=evil()%3E"
    with gwt.connect(f"ws://{path}") as ws:
        ws.send(evil)
        heard, images, done = page.run(
            PRELUDE + "await until(() => said().length); return [said(),"
            "document.querySelectorAll('body img').length, window.evil ?? null];"
        )
    assert heard == [["<img src=x onerror=evil()>", evil]]
    assert (images, done) == (0, None)


@contextmanager
def chatting(bind: str) -> Iterator[gwt.Server]:
    app = make_app()
    server = gwt.Server(app, bind)
    server.start()
    app.attach(server)
    try:
        yield server
    finally:
        server.stop(timeout=0.3)


@pytest.mark.parametrize("query", ["", "&transport=websocket"])
def test_the_page_comes_back_when_the_server_does(page, query):
    with chatting("127.0.0.1:0") as server:
        bind = "{}:{}".format(*server.address)
        page.go(f"http://{bind}/?name=ann{query}")
        page.run(PRELUDE + "await entered();")
    page.run(PRELUDE + "await until(() => document.getElementById('state').className === 'failed')")
    # Another certificate, too.
    with chatting(bind) as server:
        shown = page.run(PRELUDE + "await until(() => text('state') === 'connected');" + TALK)
        assert ["ann", "from the test"] in shown["lines"]
        assert len(server.rooms) == 1
        page.go("about:blank")
        gevent.sleep(0)
