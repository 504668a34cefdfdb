"""
What holds for every test: a deadline, nothing left behind, no error that only the hub saw.

It also decides about tests that need a browser or Autobahn, and sets hypothesis up. Fixtures for
one folder of tests live in that folder's conftest.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gevent
import gevent.hub
import gevent.socket
import gevent.util
import hypothesis
import pytest

from tests.helpers import find_autobahn, find_browser

DEADLINE = 30.0

# What a test leaves behind has this long to end by itself: a greenlet that was told to stop, a
# socket that its greenlet closes.
GRACE = 2.0

# Timing decides no test, and a run is like the one before it. "explore" looks for new cases:
# pytest --hypothesis-profile=explore
_UNTIMED: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("gwt", derandomize=True, database=None, **_UNTIMED)
hypothesis.settings.register_profile("explore", max_examples=5000, **_UNTIMED)
hypothesis.settings.load_profile("gwt")


class DeadlineExceeded(gevent.Timeout):
    """The test took too long. Being a Timeout, it passes every ``except Exception``."""

    def __str__(self) -> str:
        return f"The test did not end within {self.seconds:g} seconds."


@dataclass
class HubError:
    """An error that reached the hub: nobody waited for the greenlet or callback that raised it."""

    context: str
    type: type[BaseException]
    text: str


# As text, because a traceback would keep alive what its frames hold.
_hub_errors: list[HubError] = []

# Greenlets started since the running test began.
_started: weakref.WeakSet[gevent.Greenlet] = weakref.WeakSet()

_handle_error = gevent.hub.Hub.handle_error


def _record_error(self: Any, context: Any, type: Any, value: Any, tb: Any) -> None:
    if not issubclass(type, self.NOT_ERROR):
        text = "".join(traceback.format_exception(type, value, tb))
        _hub_errors.append(HubError(repr(context), type, text))
    _handle_error(self, context, type, value, tb)


def pytest_configure(config: pytest.Config) -> None:
    # The class's, not the hub's: native threads have hubs of their own.
    gevent.hub.Hub.handle_error = _record_error
    gevent.Greenlet.add_spawn_callback(_started.add)
    # What a hub opens once and keeps: its loop's descriptors, the pool of threads, the resolver.
    gevent.get_hub().threadpool.apply(int)
    gevent.socket.getaddrinfo("localhost", 0)
    gevent.sleep(0)


def pytest_unconfigure(config: pytest.Config) -> None:
    gevent.hub.Hub.handle_error = _handle_error
    gevent.Greenlet.remove_spawn_callback(_started.add)


@pytest.fixture(autouse=True)
def _house_rules(request: pytest.FixtureRequest) -> Iterator[None]:
    marker = request.node.get_closest_marker("deadline")
    seconds = marker.args[0] if marker else DEADLINE
    # Autouse fixtures are set up first and torn down last, so that this one covers the other
    # fixtures of the test, and what fixtures of a wider scope hold is in `before`.
    _started.clear()
    _hub_errors.clear()
    before = _descriptors()
    timeout = DeadlineExceeded(seconds)
    timeout.start()
    try:
        yield
    finally:
        timeout.close()
    client_hub = getattr(gevent.get_hub(), "gwt_client_hub", None)
    if client_hub is not None:
        # What a test's resolver said is not so in the next one.
        client_hub.names.clear()
    problems = _leaks(before) + _unrest()
    problems += [f"An error nobody handled, in {e.context}:\n{e.text}" for e in _hub_errors]
    _hub_errors.clear()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def hub_errors() -> list[HubError]:
    """Errors that reached the hub during this test; those left in it at the end fail the test."""
    return _hub_errors


def _descriptors() -> set[tuple[str, str]]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        # The one that listdir used itself is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def _leaks(before: set[tuple[str, str]]) -> list[str]:
    """Say what the test left behind, after giving it a little time to go."""
    if not _alive() and not _opened(before):
        return []
    # What is unreachable is not left behind; if it should have been closed, its own
    # ResourceWarning says so.
    gc.collect()
    # Not before: on a busy machine the collector takes longer than some graces.
    deadline = time.monotonic() + GRACE
    pause = 0.0
    while (_alive() or _opened(before)) and time.monotonic() < deadline:
        gevent.sleep(pause)
        pause = min(pause + 0.001, 0.02)
    greenlets, descriptors = _alive(), _opened(before)
    leaks = [f"The test left a greenlet: {each!r}\n{_stack(each)}" for each in greenlets]
    leaks += [f"The test left descriptor {number}: {target}" for number, target in descriptors]
    # The next test is not to suffer from it.
    gevent.killall(greenlets, timeout=1)
    return leaks


def _unrest() -> list[str]:
    """Say whether the loop is kept busy, as by a timer that is always due."""
    with gevent.Timeout(GRACE, False):
        gevent.idle()
        return []
    return [f"The test left work that never ends: the loop was not idle within {GRACE:g} s."]


def _alive() -> list[gevent.Greenlet]:
    return [each for each in list(_started) if not each.ready()]


def _opened(before: set[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(_descriptors() - before)


def _stack(greenlet: gevent.Greenlet) -> str:
    return "".join(traceback.format_stack(greenlet.gr_frame)) if greenlet.gr_frame else ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, DeadlineExceeded):
        report.sections.append(("greenlets", "\n".join(gevent.util.format_run_info())))
    if report.skipped and not hasattr(report, "wasxfail"):
        for need in _NEEDS:
            if not item.get_closest_marker(need.marker):
                continue
            if os.environ.get(need.variable, "") not in ("", "0"):
                report.outcome = "failed"
                report.longrepr = f"{need.variable} is set, and this was skipped: {call.excinfo}"
            else:
                skipped = item.config.stash.setdefault(_SKIPPED, Counter())
                skipped[need.marker] += 1
    return report


@dataclass(frozen=True)
class _Need:
    """What tests with a marker need. Where `variable` is set they may not be skipped."""

    marker: str
    variable: str
    name: str
    find: Callable[[], object]
    missing: str
    remedy: str


_NEEDS = (
    _Need(
        marker="browser",
        variable="GWT_REQUIRE_BROWSER",
        name="browser",
        find=find_browser,
        missing="chromium or chromedriver is not on PATH",
        remedy="Debian's packages chromium and chromium-driver are what they need",
    ),
    _Need(
        marker="autobahn",
        variable="GWT_REQUIRE_AUTOBAHN",
        name="Autobahn",
        find=find_autobahn,
        missing="Autobahn's test suite is not installed",
        remedy="tools/test installs it where it finds Python 2.7; PYTHON27 names one",
    ),
)

_SKIPPED = pytest.StashKey[Counter[str]]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for need in _NEEDS:
        if item.get_closest_marker(need.marker) and need.find() is None:
            pytest.skip(need.missing)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.config.stash.get(_SKIPPED, Counter())
    for need in _NEEDS:
        if count := skipped[need.marker]:
            # tools/test looks for this line.
            terminalreporter.write_line(
                f"{count} {need.name} test{'s' * (count != 1)} skipped: {need.remedy}"
            )
