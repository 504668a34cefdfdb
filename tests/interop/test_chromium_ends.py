"""How sessions and streams end between headless Chromium and a server of ours: codes, reasons."""

from __future__ import annotations

import pytest
from gevent.queue import Queue

import gwt
from tests.helpers import eventually, spawn

pytestmark = [pytest.mark.browser, pytest.mark.deadline(60)]

# The end of a session


@pytest.mark.parametrize(
    ("code", "reason"),
    [(0, ""), (1, "x"), (4242, "göödbye"), (2**32 - 1, "ö" * 512)],
    ids=["nothing", "small", "utf-8", "largest"],
)
def test_close_of_the_server_reaches_the_page(serve, code, reason):
    closed = serve(lambda session: session.close(code, reason)).run("return await wt.closed;")
    assert closed == {"closeCode": code, "reason": reason}


@pytest.mark.parametrize(
    ("info", "code", "reason"),
    [
        (None, 0, ""),
        ({"closeCode": 77, "reason": "thät is all"}, 77, "thät is all"),
        ({"closeCode": 2**32 - 1}, 2**32 - 1, ""),
        # The browser cuts it off.
        ({"closeCode": 1, "reason": "x" * 2000}, 1, "x" * 1024),
    ],
    ids=["nothing", "utf-8", "largest", "too long"],
)
def test_close_of_the_page_reaches_the_server(serve, info, code, reason):
    seen: Queue = Queue()

    def handler(session):
        with pytest.raises(gwt.SessionClosed) as caught:
            session.accept_stream(timeout=20)
        seen.put((caught.value.code, caught.value.reason, caught.value.remote))

    serve(handler).run("args.info ? wt.close(args.info) : wt.close();", info=info)
    assert seen.get(timeout=10) == (code, reason, True)


def test_what_the_server_wrote_before_its_close_reaches_the_page(serve):
    """close() waits for acknowledgements; a browser drops what the page has not read by then."""
    read: Queue = Queue()

    def handler(session):
        session.create_unidirectional_stream().write_all(b"last words")
        read.get(timeout=10)
        session.close(5, "over")

    served = serve(handler)
    reading = spawn(
        served.run,
        """
        const words = decode(await readAll(await next(wt.incomingUnidirectionalStreams)));
        // Our close may overtake the acknowledgement of this.
        writeAll(await wt.createUnidirectionalStream(), 'read').catch(() => {});
        return [words, await wt.closed];
        """,
    )
    session = eventually(lambda: next(iter(served.server.sessions), None), 15)
    read.put(session.accept_stream(timeout=15).read_all())
    assert reading.get(timeout=20) == ["last words", {"closeCode": 5, "reason": "over"}]


def test_fin_without_capsule_is_a_close_with_nothing(serve):
    def handler(session):
        # Our close() always sends the capsule; other servers do not.
        session.connection.protocol.quic.write(session.stream_id, b"", True)
        session.connection.pump()
        session.wait_closed(timeout=20)

    closed = serve(handler).run("return await wt.closed;")
    assert closed == {"closeCode": 0, "reason": ""}


def test_a_page_that_is_left_ends_its_session(serve):
    seen: Queue = Queue()

    def handler(session):
        session.wait_closed(timeout=20)
        seen.put(session.close_code)

    served = serve(handler)
    served.run("window.kept = wt;")
    served.page.go("about:blank")
    # Nobody gave a code.
    assert seen.get(timeout=10) in (None, 0)


def test_stopping_the_server_closes_the_page_s_session_in_good_order(serve):
    here: Queue = Queue()

    def handler(session):
        here.put(session.receive_datagram(timeout=20))
        session.wait_closed()

    served = serve(handler)
    closing = spawn(
        served.run, "await datagramWriter(wt).write(encode('here')); return await wt.closed;"
    )
    here.get(timeout=20)
    served.server.stop()
    assert closing.get(timeout=10) == {"closeCode": 0, "reason": "The server is stopping"}


# Codes of streams

CODES = [0, 29, 30, 31, 255, 256, 70000, 2**32 - 1]


def test_reset_codes_of_the_server_reach_the_page(serve):
    go_on: Queue = Queue()

    def handler(session):
        for code in CODES:
            stream = session.create_unidirectional_stream()
            stream.write(b"x")
            # A browser drops what arrives together with a reset.
            assert session.receive_datagram(timeout=10) == b"seen"
            stream.reset(code)
        go_on.get(timeout=20)

    codes = serve(handler).run(
        """
        const codes = [], writer = datagramWriter(wt);
        const incoming = wt.incomingUnidirectionalStreams.getReader();
        for (const _ of args.codes) {
          const reader = (await incoming.read()).value.getReader();
          await reader.read();
          await writer.write(encode('seen'));
          codes.push((await failure(reader.read())).code);
        }
        return codes;
        """,
        codes=CODES,
    )
    go_on.put(None)
    assert codes == CODES


def test_a_stream_that_is_reset_at_once_still_reaches_the_page(serve):
    def handler(session):
        # Before its page is ready, Chromium forgets streams that were reset.
        session.receive_datagram(timeout=10)
        session.create_unidirectional_stream().reset(7)
        session.wait_closed()

    code = serve(handler).run(
        """
        await datagramWriter(wt).write(encode('ready'));
        const stream = await next(wt.incomingUnidirectionalStreams);
        return (await failure(stream.getReader().read())).code;
        """
    )
    assert code == 7


def test_stop_codes_of_the_server_reach_the_page(serve):
    def handler(session):
        for stream in session:
            stream.stop(int(stream.readline(timeout=10)))

    # The code reaches Chromium's page by another pipe than the end of the stream, and where that
    # is faster the error has none. Never has it a wrong one.
    codes = serve(handler).run(
        """
        const codes = [];
        for (const code of args.codes) {
          let error = {code: null};
          for (let tries = 0; tries < 50 && error.code === null; tries++) {
            const writer = (await wt.createBidirectionalStream()).writable.getWriter();
            await writer.write(encode(`${code}\\n`)).catch(() => {});
            error = await failure(writer.closed);
          }
          codes.push(error.code);
        }
        return codes;
        """,
        codes=CODES,
    )
    assert codes == CODES


# What a page can say is clamped to a byte by Chromium (facts 6.3).
PAGE_CODES = [0, 1, 29, 30, 31, 255, 256, 70000]
CLAMPED = [min(code, 255) for code in PAGE_CODES]


def test_reset_codes_of_the_page_reach_the_server(serve):
    seen: Queue = Queue()

    def handler(session):
        for _ in PAGE_CODES:
            stream = session.accept_unidirectional_stream(timeout=20)
            with pytest.raises(gwt.StreamReset) as caught:
                stream.read_all(timeout=10)
            seen.put(caught.value.code)
        session.wait_closed()

    serve(handler).run(
        """
        for (const code of args.codes) {
          const writer = (await wt.createUnidirectionalStream()).getWriter();
          await writer.write(encode('x'));
          await writer.abort(new WebTransportError({streamErrorCode: code}));
        }
        // The streams die with the session, and that is not what this is about.
        window.kept = wt;
        """,
        codes=PAGE_CODES,
    )
    assert [seen.get(timeout=10) for _ in PAGE_CODES] == CLAMPED


def test_stop_codes_of_the_page_reach_the_server(serve):
    seen: Queue = Queue()

    def handler(session):
        for _ in PAGE_CODES:
            stream = session.create_unidirectional_stream()
            with pytest.raises(gwt.StreamStopped) as caught:
                while True:
                    stream.write(bytes(65536), timeout=10)
            seen.put(caught.value.code)
        session.wait_closed()

    serve(handler).run(
        """
        const incoming = wt.incomingUnidirectionalStreams.getReader();
        for (const code of args.codes) {
          const stream = (await incoming.read()).value;
          await stream.cancel(new WebTransportError({streamErrorCode: code}));
        }
        window.kept = wt;
        """,
        codes=PAGE_CODES,
    )
    assert [seen.get(timeout=10) for _ in PAGE_CODES] == CLAMPED


def test_a_connection_that_the_page_does_not_need_any_more_is_closed(serve):
    """Chromium itself keeps it until the idle timeout."""
    served = serve(lambda session: session.close(1, "that was it"), unused_timeout=0.5)
    assert served.run("return (await wt.closed).closeCode;") == 1
    eventually(lambda: len(served.server.connections) == 0, 10)
