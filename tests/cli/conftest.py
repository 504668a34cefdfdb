"""The command line as users run it: in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import gevent.subprocess
import pytest

ROOT = Path(__file__).resolve().parents[2]


class Result(NamedTuple):
    code: int
    stdout: bytes
    stderr: str

    @property
    def error(self) -> str:
        """The one line on stderr; more than one, or a traceback, is a failure."""
        assert self.stderr.count("\n") == 1 and self.stderr.endswith("\n"), self.stderr
        return self.stderr[:-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """start(*args, **options): start ``python -m gwt`` in tmp_path; `env` is added to ours."""
    processes: list[Any] = []

    def starting(*args: str, **options: Any) -> Any:
        env = options.pop("env", {})
        options = {"stdin": gevent.subprocess.PIPE, "stdout": gevent.subprocess.PIPE, **options}
        process = gevent.subprocess.Popen(
            [sys.executable, "-m", "gwt", *args],
            cwd=tmp_path,
            stderr=gevent.subprocess.PIPE,
            # Python's own hook would print a second traceback at exit, were something wrong.
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **env},
            **options,
        )
        processes.append(process)
        return process

    yield starting
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def run(start: Callable[..., Any]) -> Callable[..., Result]:
    """run(*args, input=b""): run ``python -m gwt`` to its end."""

    def running(*args: str, input: bytes = b"", **options: Any) -> Result:
        process = start(*args, **options)
        stdout, stderr = process.communicate(input if process.stdin else None, timeout=20)
        return Result(process.returncode, stdout or b"", stderr.decode())

    return running
