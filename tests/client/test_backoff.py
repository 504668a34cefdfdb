"""When a client tries again: a table, and virtual time."""

from __future__ import annotations

import random

import pytest

import gwt
from gwt.client.backoff import Backoff, longest_delay


def longest(low, high):
    assert low == 0
    return high


@pytest.mark.parametrize(
    ("failures", "longest"),
    [(0, 1.0), (1, 1.0), (2, 2.0), (3, 4.0), (5, 16.0), (6, 30.0), (10**6, 30.0)],
)
def test_the_longest_delay_grows_up_to_its_cap(failures, longest):
    assert longest_delay(failures, gwt.ClientConfig()) == longest


def test_a_cap_below_the_first_delay_holds_from_the_beginning():
    config = gwt.ClientConfig(retry_delay=5, max_retry_delay=2, retry_backoff=1)
    assert longest_delay(1, config) == longest_delay(9, config) == 2


def test_delays_are_drawn_from_nothing_to_the_longest():
    # pywebtransport 0.6.1 has no jitter: all whom a server has lost come back at once.
    asked = []

    def uniform(low, high):
        asked.append((low, high))
        return high / 4

    backoff = Backoff(gwt.ClientConfig(), uniform=uniform)
    assert [backoff.failed() for _ in range(3)] == [0.25, 0.5, 1.0]
    assert asked == [(0, 1), (0, 2), (0, 4)]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_come_after_the_first_attempt(retries):
    backoff = Backoff(gwt.ClientConfig(max_retries=retries))
    delays = [backoff.failed() for _ in range(retries + 1)]
    assert delays[-1] is None and None not in delays[:-1]


def test_without_a_limit_it_never_ends():
    backoff = Backoff(gwt.ClientConfig(max_retries=None), uniform=longest)
    assert [backoff.failed() for _ in range(3000)][-1] == 30.0


def test_only_a_stable_session_resets_the_count():
    backoff = Backoff(gwt.ClientConfig(stable_period=10), uniform=longest)
    assert [backoff.failed(), backoff.lost(9.9), backoff.failed()] == [1, 2, 4]
    assert backoff.lost(10.0) == 1 and backoff.failures == 0
    # The first failure since, and no fourth.
    assert backoff.failed() == 1 and backoff.failures == 1


def test_a_server_that_accepts_and_closes_is_not_hammered():
    # pywebtransport 0.6.1, section 9, defect 6: 100 reconnects in 3 seconds.
    for seed in range(100):
        uniform = random.Random(seed).uniform
        backoff = Backoff(gwt.ClientConfig(max_retries=None), uniform=uniform)
        now, connects = 0.0, 0
        while now < 300:
            connects += 1
            assert now > 3 or connects <= 15
            now += backoff.lost(lived=0.001)
        # Half the cap on average.
        assert connects < 50


def test_a_server_is_given_the_time_that_it_asks_for_within_the_cap():
    backoff = Backoff(gwt.ClientConfig(), uniform=longest)
    # And the jitter on top: it has told everybody the same.
    assert [backoff.failed(7), backoff.failed(10**9)] == [8, 32]
