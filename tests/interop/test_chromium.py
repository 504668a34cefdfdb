"""
WebTransport with a real browser: headless Chromium on one side, a server of ours on the other.

The server is in this process, so that a test sees both ends; the page's script is the peer.
"""

from __future__ import annotations

import hashlib

import pytest
from gevent.queue import Queue

import gwt
from tests.helpers import eventually, live, spawn

pytestmark = [pytest.mark.browser, pytest.mark.deadline(60)]


def test_stream_of_the_page_is_echoed(serve):
    answer = serve(live.echo).run(
        """
        const stream = await wt.createBidirectionalStream();
        const [answer] = await Promise.all(
          [readAll(stream.readable), writeAll(stream.writable, 'hellö')]);
        return decode(answer);
        """
    )
    assert answer == "hellö"


def test_unidirectional_stream_of_the_page_comes_back_on_one_of_the_server(serve):
    answer = serve(live.echo).run(
        """
        await writeAll(await wt.createUnidirectionalStream(), 'one way');
        return decode(await readAll(await next(wt.incomingUnidirectionalStreams)));
        """
    )
    assert answer == "one way"


def test_streams_of_the_server_reach_the_page_and_are_answered(serve):
    seen: Queue = Queue()

    def handler(session):
        # At once: before the page has seen that the session is open.
        session.create_unidirectional_stream().write_all(b"unidirectional")
        stream = session.create_bidirectional_stream()
        stream.write_all(b"question")
        seen.put(stream.read_all(timeout=10))
        session.wait_closed()

    said = serve(handler).run(
        """
        const said = [decode(await readAll(await next(wt.incomingUnidirectionalStreams)))];
        const stream = await next(wt.incomingBidirectionalStreams);
        said.push(decode(await readAll(stream.readable)));
        await writeAll(stream.writable, 'answer');
        return said;
        """
    )
    assert said == ["unidirectional", "question"]
    assert seen.get(timeout=5) == b"answer"


def test_a_stream_of_the_server_that_says_nothing_yet_reaches_the_page(serve):
    def handler(session):
        stream = session.create_bidirectional_stream()
        assert stream.read_all(timeout=10) == b"first"
        stream.write_all(b"second")
        session.wait_closed()

    answer = serve(handler).run(
        """
        const stream = await next(wt.incomingBidirectionalStreams);
        await writeAll(stream.writable, 'first');
        return decode(await readAll(stream.readable));
        """
    )
    assert answer == "second"


def test_datagrams_are_echoed(serve):
    sizes = [1, 2, 100, 1000]
    came = serve(live.echo).run(
        """
        const writer = datagramWriter(wt), reader = wt.datagrams.readable.getReader();
        const came = [];
        for (const size of args.sizes) {
          await writer.write(new Uint8Array(size).fill(size & 255));
          const {value} = await reader.read();
          came.push([value.length, value.every((byte) => byte === (size & 255))]);
        }
        return came;
        """,
        sizes=sizes,
    )
    assert came == [[size, True] for size in sizes]


def test_an_empty_datagram_of_the_page_arrives(serve):
    seen: Queue = Queue()

    def handler(session):
        # It is not sent back: after an empty one Chromium shows its page no other datagram.
        seen.put(session.receive_datagram(timeout=10))
        session.send_datagram(b"seen")
        session.wait_closed()

    serve(handler).run(
        """
        await datagramWriter(wt).write(new Uint8Array(0));
        await wt.datagrams.readable.getReader().read();
        """
    )
    assert seen.get(timeout=5) == b""


def test_the_largest_datagrams_of_both_sides_arrive(serve):
    sizes: Queue = Queue()

    def handler(session):
        largest = session.max_datagram_size
        with pytest.raises(gwt.DatagramTooLarge):
            session.send_datagram(bytes(largest + 1))
        session.send_datagram(bytes(largest))
        sizes.put(largest)
        sizes.put(len(session.receive_datagram(timeout=10)))
        session.wait_closed()

    came, sent = serve(handler).run(
        """
        const {value} = await wt.datagrams.readable.getReader().read();
        const largest = wt.datagrams.maxDatagramSize;
        await datagramWriter(wt).write(new Uint8Array(largest));
        return [value.length, largest];
        """
    )
    assert (came, sent) == (sizes.get(timeout=5), sizes.get(timeout=5))
    assert came > 1100


MEBIBYTE = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(MEBIBYTE).hexdigest()


def test_a_mebibyte_is_echoed(serve):
    answer = serve(live.echo).run(
        """
        const data = new Uint8Array(2 ** 20).map((_, index) => index);
        const stream = await wt.createBidirectionalStream();
        const [answer] = await Promise.all(
          [readAll(stream.readable), writeAll(stream.writable, data)]);
        return [answer.length, await sha256(answer)];
        """
    )
    assert answer == [2**20, DIGEST]


def test_a_mebibyte_each_way_on_unidirectional_streams_at_once(serve):
    seen: Queue = Queue()

    def handler(session):
        receiving = spawn(lambda: session.accept_unidirectional_stream().read_all())
        session.create_unidirectional_stream().write_all(MEBIBYTE)
        seen.put(receiving.get(timeout=20))
        session.wait_closed()

    answer = serve(handler).run(
        """
        const data = new Uint8Array(2 ** 20).map((_, index) => index);
        const [answer] = await Promise.all([
          next(wt.incomingUnidirectionalStreams).then(readAll),
          wt.createUnidirectionalStream().then((stream) => writeAll(stream, data))]);
        return [answer.length, await sha256(answer)];
        """
    )
    assert answer == [2**20, DIGEST]
    assert seen.get(timeout=10) == MEBIBYTE


# Many


def test_300_short_streams_in_a_row(serve):
    served = serve(live.echo)
    count = served.run(
        """
        let count = 0;
        for (let n = 0; n < 300; n++) {
          const stream = await wt.createBidirectionalStream();
          const [answer] = await Promise.all(
            [readAll(stream.readable), writeAll(stream.writable, `stream ${n}`)]);
          if (decode(answer) === `stream ${n}`) count++;
        }
        window.kept = wt;
        return count;
        """
    )
    assert count == 300
    # Finished streams leave nothing behind.
    session = next(iter(served.server.sessions))
    eventually(lambda: not len(session.streams))
    assert session.streams_accepted == 300


def test_300_short_unidirectional_streams_in_a_row_from_the_server(serve):
    def handler(session):
        for number in range(300):
            session.create_unidirectional_stream().write_all(b"%d" % number)
        session.wait_closed()

    total = serve(handler).run(
        """
        const incoming = wt.incomingUnidirectionalStreams.getReader();
        let total = 0;
        for (let n = 0; n < 300; n++)
          total += Number(decode(await readAll((await incoming.read()).value)));
        return total;
        """
    )
    assert total == sum(range(300))


def test_200_streams_at_once(serve):
    answers = serve(live.echo).run(
        """
        const streams = [];
        for (let n = 0; n < 200; n++) streams.push(await wt.createBidirectionalStream());
        const answers = await Promise.all(streams.map(async (stream, n) => {
          const [answer] = await Promise.all(
            [readAll(stream.readable), writeAll(stream.writable, `stream ${n}`)]);
          return decode(answer);
        }));
        return answers;
        """
    )
    assert answers == [f"stream {n}" for n in range(200)]


def test_two_sessions_of_one_page_do_not_mix(serve):
    served = serve(live.echo)
    answers = served.run(
        """
        const other = open(args.url, args.hash); await other.ready;
        const both = await Promise.all([wt, other].map(async (each, n) => {
          const stream = await each.createBidirectionalStream();
          const [answer] = await Promise.all(
            [readAll(stream.readable), writeAll(stream.writable, `session ${n}`)]);
          return decode(answer);
        }));
        wt.close({closeCode: 1});
        // The other one goes on.
        const stream = await other.createBidirectionalStream();
        const [answer] = await Promise.all(
          [readAll(stream.readable), writeAll(stream.writable, 'still here')]);
        return [...both, decode(answer)];
        """
    )
    assert answers == ["session 0", "session 1", "still here"]


# Before a session


def test_a_page_of_another_origin_is_rejected(serve):
    served = serve(live.echo, origins=None)
    error = served.run_unopened("return await failure(open(args.url, args.hash).ready);")
    assert error["message"] == "Opening handshake failed."
    assert served.server.stats()["sessions_rejected"] == 1


def test_a_path_that_nobody_serves_is_rejected(serve):
    served = serve(live.echo)
    error = served.run_unopened(
        "return await failure(open(args.url, args.hash).ready);",
        url=live.url(served.server, "/nowhere"),
    )
    assert error["name"] == "WebTransportError"
    assert error["message"] == "Opening handshake failed."


def test_another_certificate_is_not_accepted(serve):
    served = serve(live.echo)
    error = served.run_unopened("return await failure(open(args.url, '00'.repeat(32)).ready);")
    assert error["message"] == "Opening handshake failed."
    eventually(lambda: not len(served.server.connections))


def test_the_subprotocol_that_the_server_prefers_is_agreed_on(serve):
    seen: Queue = Queue()

    def handler(session):
        seen.put(session.subprotocol)
        session.wait_closed()

    protocol = serve(handler, subprotocols=["bar", "foo"]).run(
        "return wt.protocol ?? null;", options={"protocols": ["foo", "bar"]}
    )
    assert seen.get(timeout=10) == "bar"
    assert protocol == "bar"
