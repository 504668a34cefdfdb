"""
benchmark_client_performance(): how long requests to a server take, connecting and closing included.

Runs in the caller's greenlet, with one more for each request at a time. Works for every URL that
connect() takes. What a request is worth alone is `gwt bench`'s affair, which connects before.
"""

from __future__ import annotations

import errno
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import gevent
from gevent.pool import Group
from gevent.queue import Queue

from ..config import ClientConfig, client_config
from ..errors import ConfigError, GwtError, HandshakeError, SessionRejected
from ..net.waiting import Deadline
from ..options import bad
from ..websocket import WebSocket
from .connecting import connect
from .target import parse_url
from .websocket import SCHEMES

__all__ = ["PERCENTILES", "benchmark_client_performance", "error_kind", "percentile"]

# Of latencies: the name of each in results, and how many of a hundred are not above it.
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}

_MESSAGE = "benchmark_ping"

Progress = Callable[[int, int], object]


def benchmark_client_performance(
    url: str,
    *,
    config: ClientConfig | None = None,
    num_requests: int = 100,
    concurrent_requests: int = 10,
    timeout: float = 10.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """
    Make `num_requests` requests, at most `concurrent_requests` at a time, and return the figures.

    A request connects, sends 14 bytes, reads one answer and closes: on a bidirectional stream that
    ends behind them, or as a message of a WebSocket. All of it may take `timeout` seconds. One that
    fails is counted, and the others go on. Waits until all are done; ``progress(done, total)`` is
    called in this greenlet after each, and what it raises ends the benchmark.

    The result has `total_requests`, `successful_requests`, `failed_requests`, `latencies` (seconds,
    in the order in which they ended), `duration` and `requests_per_second` (of those that
    succeeded), `errors` (how many of each kind), `error_messages` (the first of each kind), and if
    any succeeded `avg_latency`, `min_latency`, `max_latency` and `percentiles` (p50, p90, p99 and
    p99.9, nearest rank). Raises ConfigError for what is wrong with the arguments.
    """
    _check(num_requests=num_requests, concurrent_requests=concurrent_requests)
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or not 0 < timeout < math.inf
    ):
        raise bad("timeout", timeout, "a positive number of seconds")
    if progress is not None and not callable(progress):
        raise bad("progress", progress, "callable, or None")
    parse_url(url, {"https": 443, **SCHEMES}, users=not str(url).lower().startswith("https"))
    config = client_config(config)
    # They are not to wait for one another in the queue for handshakes.
    config = config.update(max_connecting=max(config.max_connecting, concurrent_requests))

    latencies: list[float] = []
    errors: Counter[str] = Counter()
    messages: dict[str, str] = {}
    results: Queue[float | Exception] = Queue()
    turns = iter(range(num_requests))
    workers = Group()
    began = time.monotonic()
    try:
        for _ in range(min(num_requests, concurrent_requests)):
            workers.spawn(_work, turns, url, config, timeout, results.put)
        for done in count(1):
            result = results.get()
            if isinstance(result, float):
                latencies.append(result)
            elif isinstance(result, ConfigError) or not isinstance(result, (GwtError, OSError)):
                # The next would say the same.
                raise result
            else:
                kind = error_kind(result)
                errors[kind] += 1
                messages.setdefault(kind, str(result))
            if progress is not None:
                progress(done, num_requests)
            if done == num_requests:
                break
    finally:
        workers.kill()
    duration = time.monotonic() - began
    figures: dict[str, Any] = {
        "total_requests": num_requests,
        "successful_requests": len(latencies),
        "failed_requests": num_requests - len(latencies),
        "latencies": latencies,
        "duration": duration,
        "requests_per_second": len(latencies) / duration if duration else 0.0,
        "errors": dict(errors),
        "error_messages": messages,
    }
    if latencies:
        figures["avg_latency"] = sum(latencies) / len(latencies)
        figures["min_latency"] = min(latencies)
        figures["max_latency"] = max(latencies)
        ordered = sorted(latencies)
        figures["percentiles"] = {
            name: percentile(ordered, share) for name, share in PERCENTILES.items()
        }
    return figures


def _check(**numbers: Any) -> None:
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise bad(name, value, "an integer of at least 1")


def _work(
    turns: Any,
    url: str,
    config: ClientConfig,
    timeout: float,
    report: Callable[[float | Exception], object],
) -> None:
    for _ in turns:
        began = time.perf_counter()
        try:
            _request(url, config, Deadline(timeout))
            report(time.perf_counter() - began)
        except Exception as exc:
            # Safety net: whoever called us counts what a request may raise, and raises the rest.
            report(exc)
            # Many that fail without waiting are not to keep the others waiting.
            gevent.sleep(0)


def _request(url: str, config: ClientConfig, deadline: Deadline) -> None:
    peer = connect(url, config=config, timeout=deadline.timeout)
    try:
        try:
            if isinstance(peer, WebSocket):
                peer.send(_MESSAGE, timeout=deadline.remaining())
                peer.recv(timeout=deadline.remaining())
            else:
                stream = peer.create_bidirectional_stream(timeout=deadline.remaining())
                stream.write_all(_MESSAGE.encode(), timeout=deadline.remaining())
                stream.read(1024, timeout=deadline.remaining())
        except TimeoutError as exc:
            raise TimeoutError(
                f"{url} was connected to, but no answer came within {deadline.timeout:g} s in all."
            ) from exc
        peer.close(timeout=deadline.remaining())
    except BaseException:
        # A polite close would wait for a peer that may say nothing any more.
        peer.abort()
        raise


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of `ordered` that `share` percent of them do not exceed: nearest rank."""
    if not ordered:
        raise ValueError("There is no percentile of nothing.")
    # Not 99.9 * 1000 / 100, which is more than 999.
    rank = math.ceil(round(share * len(ordered) / 100, 6))
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def error_kind(error: BaseException) -> str:
    """Return what kind an error is, to count by: its class, with its status, stage or code."""
    name = type(error).__name__
    if isinstance(error, SessionRejected):
        return f"{name} {error.status}"
    if isinstance(error, HandshakeError):
        return f"{name} ({error.stage})" if error.stage else name
    if isinstance(error, GwtError):
        code = getattr(error, "code", None)
        return name if code is None else f"{name} {code}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name} {errno.errorcode.get(error.errno, error.errno)}"
    return name
