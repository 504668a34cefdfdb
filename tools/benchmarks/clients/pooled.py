"""
What PooledClient takes to lend a session that is there, and to have it back: CPU time of a pair.

    python tools/benchmarks/clients/pooled.py [--rounds N] [--pairs N] [--json]

The session is a real one, to a server in this process, which rests meanwhile: neither call waits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import gwt

__all__ = ["KINDS", "microseconds"]

KINDS = ("session", "websocket")


def _kept(session: Any) -> None:
    session.wait_closed()


def _pair(pool: gwt.PooledClient, url: str) -> Callable[[], None]:
    get, give_back = pool.get_session, pool.return_session

    def pair() -> None:
        give_back(get(url))

    return pair


def _lend(pool: gwt.PooledClient, url: str) -> Callable[[], None]:
    def lend() -> None:
        with pool.session(url):
            pass

    return lend


def microseconds(kind: str, rounds: int = 5, pairs: int = 20_000) -> dict[str, list[float]]:
    """Return microseconds of CPU time, a figure a round: of a get and a return, and of `with`."""
    app = gwt.App()
    app.webtransport("/kept")(_kept)
    app.websocket("/kept")(_kept)
    results: dict[str, list[float]] = {"get and return": [], "with": []}
    with gwt.Server(app, "127.0.0.1:0") as server:
        scheme = {"session": "https", "websocket": "ws"}[kind]
        url = "{}://{}:{}/kept".format(scheme, *server.address)
        config = gwt.ClientConfig(server_certificate_hashes=[server.certificate_hash])
        with gwt.PooledClient(config=config) as pool:
            # The session that the others get.
            _pair(pool, url)()
            for _ in range(rounds):
                for name, make in (("get and return", _pair), ("with", _lend)):
                    function = make(pool, url)
                    began = time.thread_time()
                    for _ in range(pairs):
                        function()
                    results[name].append((time.thread_time() - began) / pairs * 1e6)
            figures = pool.stats
            assert figures["connections"]["successful"] == 1, figures
            assert figures["pool"]["reused"] == 2 * rounds * pairs, figures
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {kind: microseconds(kind, options.rounds, options.pairs) for kind in KINDS}
    if options.json:
        print(json.dumps(results))
        return
    for kind, works in results.items():
        for work, figures in works.items():
            print(f"{kind:10} {work:15} {statistics.median(figures):6.2f} us")


if __name__ == "__main__":
    main()
