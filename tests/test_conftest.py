"""The rules of conftest.py themselves: a test that breaks one fails, and says by what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# An environment in which what tests may need is not found.
NOTHING = {"PATH": "/nowhere", "GWT_AUTOBAHN": "/nowhere"}

CASES = """
import os, socket
import gevent, pytest
import tests.conftest
from gwt.net.timers import Timer, now
from tests.helpers import eventually, spawn

tests.conftest.GRACE = 0.3

def boom():
    raise ValueError("boom")

kept = []

def test_clean():
    gevent.spawn(int).join()
    gevent.socket.getaddrinfo("localhost", 80)

def test_slow_to_leave():
    gevent.spawn(gevent.sleep, 0.01)

def test_leaves_greenlet():
    kept.append(gevent.spawn(gevent.sleep, 60))

def test_leaves_descriptor():
    kept.append(socket.socket())

@pytest.mark.deadline(0.05)
def test_hangs():
    try:
        gevent.sleep(60)
    except Exception:
        pass

def test_error_in_greenlet():
    gevent.spawn(boom).join()

def test_error_in_callback():
    gevent.get_hub().loop.run_callback(boom)
    gevent.sleep(0)

def test_expected_error(hub_errors):
    gevent.spawn(boom).join()
    assert hub_errors.pop().type is ValueError

def test_spawn_hands_the_error_over():
    with pytest.raises(ValueError):
        spawn(boom).get()
    assert spawn(int, "7").get() == 7

def test_eventually():
    done = []
    gevent.spawn_later(0.01, done.append, 1)
    assert eventually(lambda: done) == [1]
    with pytest.raises(AssertionError, match="not true within"):
        eventually(lambda: False, timeout=0.01)

@pytest.mark.browser
def test_browser():
    pass

@pytest.mark.autobahn
def test_autobahn():
    pass

# The last one: it goes on for a while.
def test_leaves_a_timer_that_is_always_due():
    ends = now() + 1.0
    timer = Timer(lambda: timer.arm(now() if now() < ends else None))
    timer.arm(now())
"""


def _outcomes(folder: Path, **environ: str) -> tuple[dict[str, str], str]:
    (folder / "test_cases.py").write_text(CASES)
    result = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-v",
                "-p",
                "tests.conftest",
                "-p",
                "no:cacheprovider",
            ),
            *(f"--config-file={ROOT / 'pyproject.toml'}", f"--rootdir={folder}", str(folder)),
        ],
        env={**os.environ, **environ},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    words = [line.split() for line in result.stdout.splitlines() if "::" in line and "%]" in line]
    outcomes = {}
    for case, verdict, *_ in words:
        # The verdict of the teardown follows that of the call.
        outcomes[case.rpartition("::")[2]] = verdict
    return outcomes, result.stdout + result.stderr


@pytest.fixture(scope="module")
def without_anything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    unset = {"GWT_REQUIRE_BROWSER": "", "GWT_REQUIRE_AUTOBAHN": ""}
    return _outcomes(folder, **NOTHING, **unset)


@pytest.mark.parametrize(
    ("case", "verdict", "words"),
    [
        ("test_clean", "PASSED", ""),
        ("test_slow_to_leave", "PASSED", ""),
        ("test_leaves_greenlet", "ERROR", "The test left a greenlet: <Greenlet"),
        ("test_leaves_descriptor", "ERROR", "The test left descriptor"),
        ("test_leaves_a_timer_that_is_always_due", "ERROR", "The test left work that never ends"),
        ("test_hangs", "FAILED", "The test did not end within 0.05 seconds."),
        ("test_error_in_greenlet", "ERROR", "An error nobody handled, in <Greenlet"),
        ("test_error_in_callback", "ERROR", "ValueError: boom"),
        ("test_expected_error", "PASSED", ""),
        ("test_spawn_hands_the_error_over", "PASSED", ""),
        ("test_eventually", "PASSED", ""),
        ("test_browser", "SKIPPED", "\n1 browser test skipped: "),
        ("test_autobahn", "SKIPPED", "\n1 Autobahn test skipped: "),
    ],
)
def test_verdict(without_anything, case, verdict, words):
    outcomes, output = without_anything
    assert outcomes[case] == verdict, output
    assert words in output


@pytest.mark.parametrize("name", ["browser", "autobahn"])
def test_what_must_not_be_skipped_fails(name, tmp_path):
    variable = f"GWT_REQUIRE_{name.upper()}"
    outcomes, output = _outcomes(tmp_path, **NOTHING, **{variable: "1"})
    assert outcomes[f"test_{name}"] in ("FAILED", "ERROR"), output
    assert f"{name} test skipped" not in output.lower()
    assert f"{variable} is set" in output
