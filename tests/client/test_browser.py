"""WebTransportBrowser: a history that stays right, whatever becomes of a navigation."""

from __future__ import annotations

import socket
import time

import gevent
import pytest

import gwt
from tests.helpers import Task, eventually, spawn
from tests.helpers.live import url


@pytest.fixture
def server():
    app = gwt.App()

    @app.webtransport("/page/<name>")
    def page(session, name):
        session.wait_closed()

    @app.websocket("/ws")
    def ws(ws):
        for message in ws:
            ws.send(message)

    gates = app.gates = {}

    @app.middleware
    def gate(request):
        if request.path in gates:
            gates[request.path].wait()

    with gwt.Server(app, "127.0.0.1:0") as server:
        yield server


@pytest.fixture
def gates(server):
    return server.app.gates


@pytest.fixture
def browser(server):
    config = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])
    with gwt.WebTransportBrowser(config=config) as browser:
        yield browser


@pytest.fixture
def pages(server):
    return [url(server, f"/page/{name}") for name in "abcd"]


def at(browser):
    return browser.get_history(), browser.current_url


def test_it_goes_to_urls_and_back_and_forward(browser, pages):
    a, b, c, d = pages
    assert browser.current_session is None and browser.get_history() == []
    assert browser.back() is browser.forward() is browser.refresh() is None
    first = browser.navigate(url=a)
    second = browser.navigate(b)
    assert browser.current_session is second and second.path == "/page/b"
    assert browser.forward() is None and browser.current_session is second
    third = browser.navigate(c)
    assert browser.back().path == "/page/b"
    assert browser.back().path == "/page/a"
    assert browser.back() is None
    assert at(browser) == ([a, b, c], a)
    assert browser.forward().path == "/page/b"
    # What lies ahead is forgotten by going elsewhere.
    last = browser.navigate(d)
    assert at(browser) == ([a, b, d], d) and browser.forward() is None
    assert browser.current_session is last and last.is_ready
    eventually(lambda: first.is_closed and second.is_closed and third.is_closed)
    assert browser.stats["connections"]["successful"] == 7
    assert "3/3" in repr(browser) and "open" in repr(browser)


def test_the_present_url_is_not_connected_to_again(browser, pages):
    a, b, *_ = pages
    browser.navigate(a)
    browser.navigate(b)
    session = browser.back()
    assert browser.navigate(a) is session
    assert at(browser) == ([a, b], a)
    # Unless its session has ended.
    session.close()
    assert browser.current_session is None
    again = browser.navigate(a)
    assert again is not session and again.is_ready and at(browser) == ([a, b], a)


def test_refresh_connects_anew_where_it_is(browser, pages):
    a, b, *_ = pages
    browser.navigate(a)
    browser.navigate(b)
    first = browser.back()
    second = browser.refresh()
    assert second is not first and second.path == "/page/a" and at(browser) == ([a, b], a)
    eventually(lambda: first.is_closed)
    assert browser.current_session is second


def test_a_navigation_that_fails_leaves_everything_as_it_was(browser, server, pages):
    # pywebtransport 0.6.1 moves first and connects then, and brings back a session that closes.
    a, b, *_ = pages
    browser.navigate(a)
    browser.navigate(b)
    session = browser.back()

    def refuse(request):
        raise gwt.Reject(403)

    for bad, cause in (
        (url(server, "/nowhere"), gwt.SessionRejected),
        ("https://no-such-name.invalid/", gwt.HandshakeError),
        ("http://127.0.0.1/", gwt.ConfigError),
        (7, gwt.ConfigError),
    ):
        with pytest.raises(gwt.ClientError) as info:
            browser.navigate(bad)
        assert isinstance(info.value.__cause__, cause) and info.value.target_url == bad
        assert at(browser) == ([a, b], a)
        assert browser.current_session is session and session.is_ready
    server.app.middleware(refuse)
    for move in (browser.forward, browser.refresh):
        with pytest.raises(gwt.ClientError, match="403"):
            move()
        assert at(browser) == ([a, b], a)
        assert browser.current_session is session and session.is_ready


def test_websockets_have_urls_too(browser, server, pages):
    ws_url = "ws://{}:{}/ws".format(*server.address)
    ws = browser.navigate(ws_url)
    ws.send("hello")
    assert ws.recv(timeout=5) == "hello"
    assert browser.navigate(pages[0]).is_ready
    ws.wait_closed(timeout=5)
    assert ws.close_code == 1000
    assert browser.back().is_ready and browser.current_url == ws_url


def test_the_session_that_is_left_does_not_delay(browser, pages):
    left = browser.navigate(pages[1])
    # Nobody reads it: its close() waits for close_timeout, 5 s.
    left.create_bidirectional_stream().write(b"x" * 500_000)
    began = time.monotonic()
    assert browser.navigate(pages[0]).is_ready and not left.is_closed
    assert time.monotonic() - began < 3
    left.abort()


def test_the_history_has_a_bound(browser, pages, monkeypatch):
    monkeypatch.setattr("gwt.client.browser._MAX_HISTORY", 3)
    for page in pages:
        browser.navigate(page)
    assert at(browser) == (pages[1:], pages[3])
    assert browser.back().path == "/page/c"


def test_navigations_of_several_greenlets_take_place_one_after_the_other(browser, pages, gates):
    gates["/page/a"] = gevent.event.Event()
    first = spawn(browser.navigate, pages[0])
    eventually(lambda: browser.stats["connections"]["attempted"] == 1)
    others = [spawn(browser.navigate, page) for page in pages[1:3]]
    with pytest.raises(gwt.ClientError, match="Another navigation") as info:
        browser.navigate(pages[3], timeout=0.01)
    assert isinstance(info.value.__cause__, TimeoutError)
    assert browser.stats["connections"]["attempted"] == 1
    gates["/page/a"].set()
    sessions = [task.get() for task in (first, *others)]
    assert [each.path for each in sessions] == ["/page/a", "/page/b", "/page/c"]
    assert at(browser) == (pages[:3], pages[2])
    eventually(lambda: [each.is_closed for each in sessions] == [True, True, False])


def test_a_timeout_ends_a_navigation(browser, pages, gates):
    session = browser.navigate(pages[0])
    gates["/page/b"] = gevent.event.Event()
    with pytest.raises(gwt.ClientError, match="timed out") as info:
        browser.navigate(pages[1], timeout=0.2)
    assert isinstance(info.value.__cause__, TimeoutError)
    gates["/page/b"].set()
    assert browser.current_session is session and session.is_ready


def test_one_who_navigates_may_be_killed(browser, pages, gates):
    session = browser.navigate(pages[0])
    gates["/page/b"] = gevent.event.Event()
    task = spawn(browser.navigate, pages[1])
    eventually(lambda: browser.stats["connections"]["attempted"] == 2)
    task.kill()
    gates["/page/b"].set()
    assert at(browser) == (pages[:1], pages[0]) and browser.current_session is session
    assert browser.navigate(pages[2]).is_ready
    eventually(lambda: browser._client.debug_state()["client"]["sessions"] == 1)


def test_close_ends_everything(browser, pages):
    session = browser.navigate(pages[0])
    browser.close()
    browser.close()
    assert session.is_closed and browser.is_closed
    assert browser.current_session is None and browser.get_history() == []
    assert browser.current_url is None
    for move in (browser.back, browser.refresh, lambda: browser.navigate(pages[0])):
        with pytest.raises(gwt.ClientError, match="closed"):
            move()


def test_a_close_in_the_middle_of_navigations_ends_them(pages):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        browser = gwt.WebTransportBrowser.create(config=gwt.ClientConfig(connect_timeout=None))
        place = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        tasks = [Task(browser.navigate, place) for _ in range(3)]
        eventually(lambda: browser.stats["connections"]["attempted"] == 1)
        began = time.monotonic()
        browser.close()
        for task in tasks:
            with pytest.raises(gwt.ClientError, match="closed"):
                task.get()
        assert time.monotonic() - began < 3
        assert browser.stats["connections"]["attempted"] == 1


def test_a_close_that_is_interrupted_leaves_nothing(browser, pages):
    left = browser.navigate(pages[0])
    left.create_bidirectional_stream().write(b"x" * 500_000)
    present = browser.navigate(pages[1])
    with gevent.Timeout(0.05, False):
        browser.close()
    assert left.is_closed and present.is_closed and browser.current_session is None


def test_it_belongs_to_its_thread(browser, pages):
    browser.navigate(pages[0])
    refused = []

    def elsewhere():
        for call in (browser.back, browser.close):
            try:
                call()
            except RuntimeError:
                refused.append(call)

    gevent.get_hub().threadpool.apply(elsewhere)
    assert len(refused) == 2 and browser.current_session.is_ready
