"""Locust's users: many small tests in a process that Locust has patched, and Locust itself."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gevent import subprocess

pytestmark = pytest.mark.skipif(
    # Not by importing it, which would patch this process.
    importlib.util.find_spec("locust") is None,
    reason="locust is not installed",
)

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent


def run(*arguments: str, **environ: str) -> tuple[int, str]:
    """Run Python to its end; return its exit code, and all it wrote."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output = process.communicate()[0].decode()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return process.returncode, output


def users(*arguments: str, **environ: str) -> None:
    """Run the tests of locust_users.py."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "locust_users.py")]
    code, output = run(*command, *arguments, **environ)
    assert code == 0, output


@pytest.mark.deadline(90)
def test_users() -> None:
    users()


@pytest.mark.deadline(60)
def test_users_of_a_locust_that_does_not_patch() -> None:
    users("-k", "TestRows", LOCUST_SKIP_MONKEY_PATCH="1")


def test_without_locust_it_says_what_to_install() -> None:
    code, output = run(
        "-c", "import sys; sys.modules['locust'] = None; import gwt.integrations.locust"
    )
    assert code == 1
    last = output.splitlines()[-1]
    assert last.startswith(
        "ImportError: gwt.integrations.locust needs locust: pip install 'gwt[locust]' ("
    )


@contextmanager
def demo() -> Iterator[tuple[str, str]]:
    """Serve the demo in a process of its own; its host, for Locust, and its certificate's hash."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gwt", "serve", "--bind", "127.0.0.1:0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        line = process.stdout.readline().decode().split()
        yield line[2], line[-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.deadline(90)
def test_two_hundred_users_of_the_demo(tmp_path: Path) -> None:
    with demo() as (host, certificate_hash):
        code, output = run(
            *("-m", "locust", "-f", "examples/locustfile.py", "--host", host, "--headless"),
            *("-u", "200", "-r", "100", "--run-time", "8s", "--only-summary"),
            *("--json-file", str(tmp_path / "result")),
            GWT_CERTIFICATE_HASH=certificate_hash,
        )
    assert code == 0, output
    assert "Traceback" not in output, output
    # On a busy machine some of them are still connecting at the end.
    assert '{"WebSocketEcho": 100, "WebTransportEcho": 100} (200 total users)' in output, output
    rows = {(row["method"], row["name"]): row for row in json.loads(result(tmp_path))}
    kinds = {method for method, _ in rows}
    assert kinds == {"WS", "WSS", "WSR", "WSC", "WT", "WTC", "WTU", "WTS", "WTR", "WTDC"}, output
    assert all(row["num_requests"] > 0 for row in rows.values())
    assert {key: row["num_failures"] for key, row in rows.items()} == dict.fromkeys(rows, 0)


def result(folder: Path) -> str:
    """Return the JSON that Locust wrote."""
    (path,) = folder.iterdir()
    return path.read_text()
