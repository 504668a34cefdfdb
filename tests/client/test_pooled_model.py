"""
PooledClient's bookkeeping, without a network: a client below it connects when a test says so.

What it does with real sessions is test_pooled.py's.
"""

from __future__ import annotations

import gevent
import pytest
from gevent.event import AsyncResult
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import gwt
from gwt.client import pooled, slots
from tests.helpers import spawn

A, B = "https://a.example/x", "https://b.example/x"


class FakeSession:
    def __init__(self, url):
        self.url = url
        self.clean = True
        self.is_closed = False
        self.callbacks = []
        self.exits = []
        self.while_closing = lambda: None

    @property
    def is_ready(self):
        return not self.is_closed

    @property
    def is_reusable(self):
        return self.clean and not self.is_closed

    def on_end(self, callback):
        self.callbacks.append(callback)
        if self.is_closed:
            self.end()

    def end(self):
        self.is_closed = True
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback(self)

    close = abort = end

    def __exit__(self, kind, exc, tb):
        self.exits.append(kind)
        self.while_closing()
        self.end()


class FakeClient:
    """Connects at once, or, while it is `slow`, when the test answers what is `asked`."""

    def __init__(self, config=None):
        self.config = config or gwt.ClientConfig()
        self.is_closed = False
        self.slow = False
        self.asked = []
        self.timeouts = []
        self.sessions = []
        self.stats = {}

    def connect(self, url, timeout):
        self.timeouts.append(timeout)
        if self.slow:
            answer = AsyncResult()
            self.asked.append(answer)
            try:
                answer.get()
            finally:
                self.asked.remove(answer)
        if self.is_closed:
            raise gwt.ClientError("closed meanwhile", target_url=url)
        session = FakeSession(url)
        self.sessions.append(session)
        return session

    def debug_state(self):
        return {"client": {}}

    def close(self):
        self.is_closed = True
        for session in self.sessions:
            session.close()

    @property
    def alive(self):
        return [session for session in self.sessions if not session.is_closed]


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(monkeypatch, clock):
    monkeypatch.setattr(pooled, "WebTransportClient", FakeClient)
    pools = []

    def make(**options):
        pools.append(gwt.PooledClient(clock=clock, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()
        assert figures(pool)["out"] == figures(pool)["idle"] == figures(pool)["connecting"] == 0
        assert pool.debug_state()["places"] == []


def figures(pool):
    return pool.stats["pool"]


def turns(count=5):
    for _ in range(count):
        gevent.sleep(0)


def test_what_comes_back_is_used_again_the_last_one_first(make):
    pool = make(pool_size=3)
    one, two, three = (pool.get_session(A) for _ in range(3))
    for session in (one, two, three):
        pool.return_session(session)
    assert pool.get_session(A) is three
    assert pool.get_session(A) is two
    assert len(pool._client.sessions) == 3 and figures(pool)["reused"] == 2
    assert figures(pool)["idle"] == 1 and figures(pool)["out"] == 2


@pytest.mark.parametrize(
    "other",
    [
        "https://A.Example/x",
        "HTTPS://a.example:443/x",
        "https://a.example:443/x?",
    ],
)
def test_a_url_that_means_the_same_gets_the_same_session(make, other):
    # pywebtransport 0.6.1 made the key of a name otherwise when the session came back, so that
    # none was ever used again, and each kept its slot for ever.
    pool = make(pool_size=1)
    for _ in range(3):
        session = pool.get_session(A)
        pool.return_session(session)
        assert pool.get_session(other) is session
        pool.return_session(session)
    assert len(pool._client.sessions) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (A, "https://a.example/X"),
        (A, "https://a.example/x?y"),
        (A, "https://a.example:444/x"),
        (A, "https://b.example/x"),
        (A, "wss://a.example/x"),
        ("ws://a.example/x", "wss://a.example/x"),
        ("ws://ann:1@a.example/x", "ws://bob:2@a.example/x"),
        ("https://[fe80::1%251]/", "https://[fe80::1%252]/"),
    ],
)
def test_what_differs_is_never_mixed(make, one, other):
    pool = make(pool_size=1)
    session = pool.get_session(one)
    pool.return_session(session)
    assert pool.get_session(other, timeout=0) is not session
    assert pool.get_session(one) is session


def test_nobody_is_told_credentials(make):
    pool = make(pool_size=1)
    pool.get_session("ws://ann:secret@a.example/x")
    assert "secret" not in repr(pool.debug_state())
    with pytest.raises(gwt.PoolExhausted) as info:
        pool.get_session("ws://ann:secret@a.example/x", timeout=0)
    assert "secret" not in str(info.value)
    with pytest.raises(gwt.ClientError) as info:
        pool.get_session("https://ann:secret@a.example/x")
    assert "secret" not in str(info.value)


def test_urls_that_are_none_and_options_that_are_wrong(make):
    pool = make()
    for url in ("", "ftp://a.example/", "https://", None, "https://a.example/#f"):
        with pytest.raises(gwt.ClientError) as info:
            pool.get_session(url)
        assert isinstance(info.value.__cause__, gwt.ConfigError)
    assert figures(pool)["connecting"] == 0
    for options in (
        {"pool_size": 0},
        {"pool_size": 1.5},
        {"pool_size": True},
        {"cleanup_interval": 0},
        {"cleanup_interval": "60"},
        {"cleanup_interval": None},
        {"cleanup_interval": float("inf")},
        {"idle_timeout": 0},
        {"max_idle": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            make(**options)
    assert gwt.PooledClient.create(pool_size=3, cleanup_interval=5.0)._pool_size == 3


def test_what_is_no_session_does_not_come_from_the_pool(make):
    for value in (None, "session", object()):
        with pytest.raises(ValueError, match="does not come from this pool"):
            make().return_session(value)


def test_urls_are_remembered_within_a_bound(make):
    pool = make()
    for number in range(3 * pooled._MAX_URLS):
        pool.return_session(session := pool.get_session(f"https://a.example/{number}"))
        session.end()
    assert len(pool._keys) <= pooled._MAX_URLS
    assert not pool._places and not pool._homes


def test_who_waits_is_served_in_order_and_nobody_overtakes(make):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    order = []

    def use(name):
        got = pool.get_session(A)
        order.append(name)
        gevent.sleep(0)
        pool.return_session(got)
        # Whoever is quick to come back is behind those who wait.
        if name < 3:
            again = pool.get_session(A)
            order.append(name + 10)
            pool.return_session(again)

    tasks = [spawn(use, name) for name in range(3)]
    turns()
    assert figures(pool)["waiting"] == 3
    pool.return_session(session)
    for task in tasks:
        task.get()
    assert order == [0, 1, 2, 10, 11, 12]
    assert len(pool._client.sessions) == 1 and figures(pool)["waits"] >= 5


def test_a_wait_that_is_over_says_how_many_are_out_and_how_long_it_was(make):
    pool = make(pool_size=2)
    pool.get_session(A)
    pool._client.slow = True
    connecting = spawn(pool.get_session, A)
    turns()
    with pytest.raises(gwt.PoolExhausted) as info:
        pool.get_session(A, timeout=0.01)
    assert str(info.value) == (
        "No session to https://a.example:443/x came free within 0.01 s: "
        "1 of 2 are out, and 1 connecting."
    )
    assert info.value.limit == 2
    assert isinstance(info.value, TimeoutError) and isinstance(info.value, gwt.LimitExceeded)
    assert figures(pool)["waiting"] == 0 and figures(pool)["exhausted"] == 1
    pool._client.asked[0].set()
    connecting.get()


def test_without_a_timeout_the_configuration_says_how_long(make):
    pool = make(config=gwt.ClientConfig(connect_timeout=0.02), pool_size=1)
    pool.get_session(A)
    assert 0.01 < pool._client.timeouts[0] <= 0.02
    with pytest.raises(gwt.PoolExhausted, match=r"0\.02 s"):
        pool.get_session(A)
    pool.get_session(B, timeout=None)
    assert pool._client.timeouts[-1] is None
    pool.get_session("https://c.example/", timeout=0)
    assert pool._client.timeouts[-1] == 0.001


@pytest.mark.parametrize("what", ["end", "unclean return", "failed connect", "killed connect"])
def test_who_waits_gets_the_slot_that_somebody_loses(make, what):
    pool = make(pool_size=1)
    pool._client.slow = what.endswith("connect")
    first = spawn(pool.get_session, A)
    turns()
    waiting = spawn(pool.get_session, A, timeout=5)
    turns()
    assert figures(pool)["waiting"] == 1
    pool._client.slow = False
    if what == "end":
        first.get().end()
    elif what == "unclean return":
        first.get().clean = False
        pool.return_session(first.get())
    elif what == "failed connect":
        pool._client.asked[0].set_exception(gwt.ClientError("refused"))
        with pytest.raises(gwt.ClientError, match="refused"):
            first.get()
    else:
        first.kill()
    assert waiting.get().is_reusable
    assert figures(pool)["out"] == 1 and len(pool._client.alive) == 1


def test_a_session_that_ends_while_it_is_out_frees_its_slot(make):
    # And whoever forgets to return it costs nothing for ever.
    pool = make(pool_size=1)
    for _ in range(5):
        session = pool.get_session(A, timeout=0)
        session.end()
        assert figures(pool)["out"] == 0
        pool.return_session(session)
    assert figures(pool)["returned"] == 0


def test_a_session_that_ends_while_it_is_idle_is_gone_at_once(make):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    pool.return_session(session)
    session.end()
    assert figures(pool)["idle"] == 0 and not pool._homes
    assert pool.get_session(A) is not session


def test_a_session_that_something_happened_to_while_it_was_idle_is_closed(make):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    pool.return_session(session)
    session.clean = False
    assert pool.get_session(A, timeout=0) is not session
    turns()
    assert session.is_closed and figures(pool)["discarded"] == 1


@pytest.mark.parametrize("what", ["ended", "unclean"])
@pytest.mark.parametrize("others", [0, 2])
def test_a_session_that_is_lost_between_the_hands_keeps_nobody_waiting(make, what, others):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    order = []

    def use(name):
        got = pool.get_session(A, timeout=5)
        order.append(name)
        pool.return_session(got)

    tasks = [spawn(use, name) for name in range(1 + others)]
    turns()
    pool.return_session(session)
    # Given to the first, which has not run since.
    if what == "ended":
        session.end()
    else:
        session.clean = False
    for task in tasks:
        task.get()
    assert sorted(order) == list(range(1 + others))
    turns()
    assert session.is_closed and figures(pool)["idle"] == 1 and len(pool._client.alive) == 1


def test_who_lost_what_it_was_given_is_the_first_again(make):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    order = []

    def use(name):
        with pool.session(A, timeout=5):
            order.append(name)
            gevent.sleep(0)

    tasks = [spawn(use, name) for name in range(4)]
    turns()
    pool.return_session(session)
    # The slot is the second's, before the first can see it.
    session.end()
    for task in tasks:
        task.get()
    assert order == [1, 0, 2, 3]


def test_who_lost_what_it_was_given_takes_what_is_idle(make):
    pool = make(pool_size=2)
    one, two = pool.get_session(A), pool.get_session(A)
    waiting = spawn(pool.get_session, A)
    turns()
    pool.return_session(one)
    one.end()
    pool.return_session(two)
    assert waiting.get() is two and len(pool._client.sessions) == 2


@pytest.mark.parametrize("how", ["returned", "handed back"])
def test_nothing_is_kept_while_it_closes(make, monkeypatch, how):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    waiting = spawn(pool.get_session, A)
    turns()
    if how == "handed back":
        waiting.greenlet.kill(block=False)
        pool.return_session(session)
    # It takes its time.
    monkeypatch.setattr(pool._client, "close", lambda: setattr(pool._client, "is_closed", True))
    pool.close()
    turns()
    if how == "returned":
        pool.return_session(session)
    assert waiting.done and not pool._idle and pool._cleaner is None
    session.end()


@pytest.mark.parametrize("given", ["session", "slot"])
@pytest.mark.parametrize("kind", [gevent.GreenletExit, TimeoutError])
def test_what_was_given_to_a_greenlet_that_is_interrupted_goes_to_the_next(make, given, kind):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    first, second = spawn(pool.get_session, A), spawn(pool.get_session, A, timeout=5)
    turns()
    # It runs, and finds what it was given, when it is interrupted.
    first.greenlet.kill(kind("of the test's"), block=False)
    if given == "session":
        pool.return_session(session)
    else:
        session.end()
    assert second.get().is_reusable
    assert figures(pool)["out"] == 1 and len(pool._client.alive) == 1
    if kind is TimeoutError:
        with pytest.raises(TimeoutError, match="of the test's"):
            first.get()


@pytest.mark.parametrize("given", ["session", "slot"])
def test_the_last_who_waits_and_is_interrupted_leaves_everything_in_its_place(make, given):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    waiting = spawn(pool.get_session, A)
    turns()
    waiting.greenlet.kill(block=False)
    pool.return_session(session) if given == "session" else session.end()
    turns()
    assert figures(pool)["idle"] == len(pool._client.alive) == (given == "session")
    assert figures(pool)["waiting"] == 0
    pool.get_session(A, timeout=0)


def test_killed_while_waiting(make):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    waiting = [spawn(pool.get_session, A) for _ in range(3)]
    turns()
    waiting[1].kill()
    assert figures(pool)["waiting"] == 2
    pool.return_session(session)
    assert waiting[0].get() is session
    pool.return_session(session)
    assert waiting[2].get() is session


def test_what_is_not_out_cannot_be_returned(make):
    pool, other = make(), make()
    session = pool.get_session(A)
    with pytest.raises(ValueError, match="does not come from this pool"):
        other.return_session(session)
    pool.return_session(session)
    with pytest.raises(ValueError, match="returned already"):
        pool.return_session(session)
    assert figures(pool)["idle"] == 1 and figures(other)["idle"] == 0
    session.end()
    # That may happen to anybody.
    pool.return_session(session)
    other.return_session(session)


def test_idle_ones_are_closed_in_time(make, clock):
    pool = make(idle_timeout=60.0)
    first, second = pool.get_session(A), pool.get_session(B)
    pool.return_session(first)
    clock.now += 59
    pool.return_session(second)
    assert pool.cleanup() == 0
    clock.now += 1
    assert pool.cleanup() == 1
    turns()
    assert first.is_closed and not second.is_closed and figures(pool)["expired"] == 1
    second.clean = False
    assert pool.cleanup() == 1 and figures(pool)["discarded"] == 1


def test_idle_ones_may_stay(make, clock):
    pool = make(idle_timeout=None)
    pool.return_session(pool.get_session(A))
    clock.now += 1e6
    assert pool.cleanup() == 0


def test_of_too_many_idle_ones_the_oldest_goes(make):
    pool = make(max_idle=2)
    sessions = [pool.get_session(f"https://a.example/{number}") for number in range(3)]
    for session in sessions:
        pool.return_session(session)
    turns()
    assert [session.is_closed for session in sessions] == [True, False, False]
    none = make(max_idle=0)
    none.return_session(session := none.get_session(A))
    turns()
    assert session.is_closed and none._cleaner is None


def test_the_greenlet_that_cleans_is_there_while_it_is_needed_only(make, clock):
    pool = make(cleanup_interval=0.005, idle_timeout=10)
    session = pool.get_session(A)
    assert pool._cleaner is None
    pool.return_session(session)
    cleaner = pool._cleaner
    clock.now += 10
    # It finds the session, and then nothing more to do.
    cleaner.join(timeout=5)
    assert cleaner.ready() and pool._cleaner is None
    turns()
    assert session.is_closed
    pool.return_session(pool.get_session(A))
    cleaner = pool._cleaner
    pool.close()
    cleaner.join(timeout=5)
    assert cleaner.ready()


def test_close_wakes_who_waits_and_ends_everything(make):
    pool = make(pool_size=2)
    out, idle = pool.get_session(A), pool.get_session(B)
    pool.return_session(idle)
    pool._client.slow = True
    connecting = spawn(pool.get_session, A)
    turns()
    waiting = [spawn(pool.get_session, A) for _ in range(3)]
    turns()
    pool.close()
    for task in waiting:
        with pytest.raises(gwt.ClientError, match="closed"):
            task.get()
    assert out.is_closed and idle.is_closed and pool.is_closed
    pool._client.asked[0].set()
    with pytest.raises(gwt.ClientError, match="closed meanwhile"):
        connecting.get()
    with pytest.raises(gwt.ClientError, match="closed"):
        pool.get_session(A)
    pool.return_session(out)
    pool.close()


@pytest.mark.parametrize("given", ["session", "slot"])
def test_close_right_after_something_was_given_away(make, given):
    pool = make(pool_size=1)
    session = pool.get_session(A)
    waiting = spawn(pool.get_session, A)
    turns()
    pool.return_session(session) if given == "session" else session.end()
    pool.close()
    with pytest.raises(gwt.ClientError, match="closed"):
        waiting.get()


def test_lending_returns_or_closes(make):
    pool = make(pool_size=1)
    with pool.session(A) as session:
        assert figures(pool)["out"] == 1
    assert figures(pool)["idle"] == 1 and not session.exits
    # Nobody has to wait until it is closed.
    session.while_closing = lambda: pool.get_session(A, timeout=0)
    with pytest.raises(RuntimeError, match="of the block"), pool.session(A, timeout=0) as again:
        raise RuntimeError("of the block")
    assert again is session and session.exits == [RuntimeError]
    assert figures(pool)["out"] == 1 and figures(pool)["idle"] == 0


def test_what_is_returned_while_an_exception_is_handled_is_closed(make):
    # An answer may be under way to who did not wait for it.
    pool = make()
    session = pool.get_session(A)
    with pytest.raises(RuntimeError):
        try:
            raise RuntimeError
        finally:
            pool.return_session(session)
    assert session.exits == [RuntimeError]
    try:
        raise RuntimeError
    except RuntimeError:
        # Around a block it says nothing.
        with pool.session(A) as session:
            pass
    assert not session.exits and figures(pool)["idle"] == 1
    assert figures(pool)["returned"] == 2 and figures(pool)["discarded"] == 1


def test_another_threads_pool_is_not_for_us(make):
    pool = make()
    pool.get_session(A)
    failures = gevent.get_hub().threadpool.apply(_use, (pool,))
    assert failures == ["RuntimeError"] * 3


def _use(pool):
    failures = []
    for method, args in ((pool.get_session, (A,)), (pool.return_session, (1,)), (pool.close, ())):
        try:
            method(*args)
        except RuntimeError as exc:
            failures.append(type(exc).__name__)
    return failures


# Against a model: what is out, how many connect and wait, and nothing else.


class Machine(RuleBasedStateMachine):
    """Gets, returns, failures, ends and kills in any order; two keys with two slots each."""

    SIZE = 2
    urls = st.sampled_from([A, B])
    picks = st.integers(0, 10)

    def __init__(self):
        super().__init__()
        kept, pooled.WebTransportClient = pooled.WebTransportClient, FakeClient
        self.clock = Clock()
        self.pool = gwt.PooledClient(pool_size=self.SIZE, clock=self.clock, max_idle=3)
        pooled.WebTransportClient = kept
        self.client = self.pool._client
        self.client.slow = True
        # Greenlets in get_session(), in the order in which they came; what they got.
        self.getting = []
        self.out = []

    def settle(self):
        turns(4)
        for url, task in list(self.getting):
            if task.done:
                self.getting.remove((url, task))
                try:
                    session = task.get()
                except gwt.ClientError:
                    continue
                if isinstance(session, FakeSession):
                    # Nobody else has it, and it is as asked for.
                    assert session not in self.out and session.url == url
                    assert session.is_reusable
                    self.out.append(session)
        self.out = [session for session in self.out if not session.is_closed]

    @rule(url=urls)
    def get(self, url):
        self.getting.append((url, spawn(self.pool.get_session, url, timeout=None)))

    @rule(
        steps=st.lists(
            st.tuples(st.sampled_from(["return", "return unclean", "end", "dirty", "kill"]), picks),
            min_size=1,
            max_size=5,
        )
    )
    def at_once(self, steps):
        """Whoever is given something runs behind all of it only."""
        for step, pick in steps:
            if step.startswith("return") and self.out:
                session = self.out.pop(pick % len(self.out))
                session.clean = session.clean and step == "return"
                self.pool.return_session(session)
            elif step == "end" and self.client.alive:
                self.client.alive[pick % len(self.client.alive)].end()
                self.out = [session for session in self.out if not session.is_closed]
            elif step == "dirty":
                # Of those that nobody has: idle, or on their way.
                others = [each for each in self.client.alive if each not in self.out]
                if others:
                    others[pick % len(others)].clean = False
            elif step == "kill" and self.getting:
                self.getting[pick % len(self.getting)][1].greenlet.kill(block=False)

    @precondition(lambda self: self.client.asked)
    @rule(pick=picks, fine=st.booleans())
    def answer(self, pick, fine):
        answer = self.client.asked[pick % len(self.client.asked)]
        answer.set() if fine else answer.set_exception(gwt.ClientError("refused"))

    @rule(seconds=st.sampled_from([1.0, 61.0]))
    def time_passes(self, seconds):
        self.clock.now += seconds
        self.pool.cleanup()

    @invariant()
    def all_is_accounted_for(self):
        self.settle()
        figures = self.pool.stats["pool"]
        assert figures["out"] == len(self.out)
        assert figures["connecting"] == len(self.client.asked)
        assert figures["out"] + figures["idle"] == len(self.client.alive)
        assert figures["connecting"] + figures["waiting"] == len(self.getting)
        assert figures["idle"] <= 3
        for url in (A, B):
            alive = [session for session in self.client.alive if session.url == url]
            place = self.pool._places.get(slots.key_of(url))
            if place is None:
                assert not alive
                continue
            assert place.taken == len(alive) + place.connecting <= self.SIZE
            # Nobody waits while something is free.
            assert not place.waiting or (place.taken == self.SIZE and not place.idle)

    def teardown(self):
        self.pool.close()
        for answer in list(self.client.asked):
            answer.set()
        self.settle()
        assert not self.getting and not self.client.alive
        assert not self.pool._homes and not self.pool._places and not self.pool._idle


TestModel = Machine.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40)
