"""Headless Chromium as a WebSocket client of a server in this process."""

from __future__ import annotations

import pytest
from gevent.queue import Queue

import gwt

pytestmark = pytest.mark.browser

OPEN = """
const ws = new WebSocket(args.url, args.protocols || []);
ws.binaryType = 'arraybuffer';
const came = [], waiting = [];
ws.onmessage = (event) => (waiting.length ? waiting.shift()(event.data) : came.push(event.data));
const take = (done) => (came.length ? done(came.shift()) : waiting.push(done));
const message = () => new Promise(take);
const ended = new Promise((resolve) => {
    ws.onclose = (event) => resolve([event.code, event.reason, event.wasClean]);
});
await new Promise((resolve, reject) => { ws.onopen = resolve; ws.onerror = reject; });
"""


@pytest.fixture
def call(serve):
    """call(handler, script, **options): run a script that finds `ws`, `message()` and `ended`."""

    def calling(handler, script, protocols=(), **options):
        app = gwt.App()
        app.websocket("/ws", **options)(handler)
        serving = serve(app, http3=False)
        url = "ws://{}:{}/ws".format(*serving.server.address)
        return serving.run_unopened(OPEN + script, url=url, protocols=list(protocols))

    return calling


def echo(ws):
    for message in ws:
        ws.send(message)


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_messages_are_echoed_as_what_they_were(call, compression):
    answer = call(
        echo,
        """
        const sizes = [];
        ws.send('Grüße');
        const text = await message();
        for (const size of [0, 1, 125, 126, 65535, 65536, 900000]) {
            const data = new Uint8Array(size).map((_, index) => index * 7);
            ws.send(data);
            const back = new Uint8Array(await message());
            if (back.every((byte, index) => byte === data[index])) sizes.push(back.length);
        }
        return [text, sizes, ws.extensions];
        """,
        compression=compression,
    )
    extensions = "permessage-deflate" if compression else ""
    assert answer[:2] == ["Grüße", [0, 1, 125, 126, 65535, 65536, 900000]]
    assert answer[2].partition(";")[0] == extensions


def test_messages_in_pieces_and_pings_of_the_server_arrive(call):
    latencies: Queue = Queue()

    def handler(ws):
        event = ws.ping()
        assert event.wait(timeout=10)
        latencies.put(ws.latency)
        ws.send(iter(["one ", "two ", "three"]))
        ws.wait_closed()

    assert call(handler, "return await message();") == "one two three"
    assert latencies.get(timeout=5) > 0


def test_the_page_sees_how_the_server_closes(call):
    def handler(ws):
        ws.close(4321, "as you wish")

    assert call(handler, "return await ended;") == [4321, "as you wish", True]


def test_the_server_sees_how_the_page_closes(call):
    ends: Queue = Queue()

    def handler(ws):
        try:
            ws.recv(timeout=10)
        except gwt.WebSocketClosed as exc:
            ends.put((exc.code, exc.reason))

    answer = call(handler, "ws.close(3000, 'enough'); return await ended;")
    assert answer == [3000, "enough", True]
    assert ends.get(timeout=5) == (3000, "enough")


def test_a_handler_that_fails_is_1011_to_the_page(call, caplog):
    def handler(ws):
        raise LookupError("handler")

    code, _, clean = call(handler, "return await ended;")
    assert (code, clean) == (1011, True)


def test_the_subprotocol_is_chosen_by_the_server(call):
    answer = call(
        lambda ws: ws.recv(),
        "return ws.protocol;",
        protocols=["second", "first"],
        subprotocols=["first", "second"],
    )
    assert answer == "first"
