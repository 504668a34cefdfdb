"""What all commands share: the version, usage errors in one line, exit codes."""

from __future__ import annotations

import pytest

import gwt
from gwt import cli


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
