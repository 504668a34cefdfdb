"""What all commands share: the version, usage errors in one line, exit codes."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

import gevent.subprocess
import pytest

import gwt
from gwt import cli
from gwt.cli.demo import make_app
from tests.helpers import live

ROOT = Path(__file__).resolve().parents[2]


def test_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gwt {gwt.__version__}\n"


def test_module_runs_as_the_command_does(run):
    result = run("--version")
    assert (result.code, result.stdout.decode()) == (0, f"gwt {gwt.__version__}\n")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["serve", "--dance"], "--dance"),
        (["connect"], "URL"),
        (["connect", "https://localhost", "--timeout", "soon"], "--timeout"),
        (["connect", "https://localhost", "--wait", "-1"], "--wait"),
        (["connect", "https://localhost", "--wait", "nan"], "--wait"),
        (["connect", "https://localhost", "--header", "x"], "--header"),
        (["connect", "ws://localhost", "--datagrams"], "datagrams"),
        (["cert", "--days", "x"], "--days"),
        # Found out by others than the parser.
        (["cert", "--days", "99"], "days"),
        (["serve", "--bind", "nowhere"], "bind"),
        (["connect", "ftp://localhost/"], "ftp://localhost/"),
        (["connect", "https://localhost/", "--cert-hash", "abc"], "abc"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, argv, named):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gwt") and captured.err.count("\n") == 1
    assert named in captured.err


def test_what_is_wrong_with_a_command_is_said_by_that_command(capsys):
    assert cli.main(["bench", "ws://localhost", "--dance"]) == 2
    assert capsys.readouterr().err.startswith("gwt bench: unrecognized arguments: --dance ")


@pytest.mark.parametrize("command", ["serve", "connect", "bench", "cert"])
def test_every_command_has_help(capsys, command):
    assert cli.main([command, "--help"]) == 0
    assert f"usage: gwt {command}" in capsys.readouterr().out


def test_help_says_what_each_command_does(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "serve an application, or the demo, until SIGINT or SIGTERM." in " ".join(out.split())


def test_ctrl_c_is_exit_code_130(monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.cert, "run", interrupted)
    assert cli.main(["cert"]) == 130


@pytest.mark.parametrize(
    ("closing", "command", "shown"),
    [
        ("<&-", ("connect", "--wait", "0"), b""),
        (">&-", ("connect", "--once"), b""),
        (">&-", ("bench", "--duration", "0.1"), b""),
        ("2>&-", ("bench", "--duration", "0.1"), b"url "),
    ],
)
def test_what_is_closed_of_stdin_stdout_and_stderr_is_no_harm(closing, command, shown):
    name, *options = command
    with live.serving(make_app()) as server:
        url = live.url(server, "/echo").replace("https", "ws")
        result = gevent.subprocess.run(
            [
                "sh",
                "-c",
                f'exec "$@" {closing}',
                "sh",
                sys.executable,
                "-m",
                "gwt",
                name,
                url,
                *options,
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
            input=b"x\n",
            capture_output=True,
            timeout=20,
        )
    assert (result.returncode, result.stdout[:4], result.stderr) == (0, shown, b"")


def test_ctrl_c_while_it_starts_is_exit_code_130(tmp_path):
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, name = pyproject["project"]["scripts"]["gwt"].partition(":")
    # Somebody is quick: the interrupt comes while something is imported.
    (tmp_path / "werkzeug").mkdir()
    (tmp_path / "werkzeug" / "__init__.py").write_text("raise KeyboardInterrupt")
    result = gevent.subprocess.run(
        [sys.executable, "-c", f"from {module} import {name}; {name}(['--version'])"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        timeout=20,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")
