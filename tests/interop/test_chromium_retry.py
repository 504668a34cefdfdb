"""Headless Chromium and servers that ask for a proof of its address first."""

from __future__ import annotations

import pytest

from tests.helpers import live

pytestmark = [pytest.mark.browser, pytest.mark.deadline(60)]


def test_a_page_comes_again_behind_a_retry(serve):
    served = serve(live.echo, retry="on")
    echoed = served.run(
        """
        const stream = await wt.createBidirectionalStream();
        const writing = writeAll(stream.writable, 'x'.repeat(200000));
        const data = await readAll(stream.readable);
        await writing;
        return data.length;
        """
    )
    assert echoed == 200_000
    udp = served.server.stats()["udp"]
    # Its first flight takes two datagrams, each of which is answered.
    assert udp["retries_sent"] >= 1
    assert udp["newcomers"] == 1
    assert not udp.get("tokens_invalid")
