"""The limit on open descriptors, in processes of their own: it is a process's."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys

import pytest

from gwt.net.descriptors import explained


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.strip()


HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.mark.skipif(HARD == resource.RLIM_INFINITY, reason="there is no hard limit")
def test_the_soft_limit_is_raised_to_the_hard_one():
    assert (
        run(
            "import resource as r, gwt\n"
            f"r.setrlimit(r.RLIMIT_NOFILE, (64, {HARD}))\n"
            "print(gwt.raise_descriptor_limit(), *r.getrlimit(r.RLIMIT_NOFILE))"
        )
        == f"{HARD} {HARD} {HARD}"
    )


def test_a_limit_that_is_as_high_as_it_may_be_is_returned():
    assert (
        run(
            "import resource as r, gwt\n"
            "r.setrlimit(r.RLIMIT_NOFILE, (300, 300))\n"
            "print(gwt.raise_descriptor_limit())"
        )
        == "300"
    )


def test_without_descriptors_the_error_says_what_to_do():
    output = run(
        "import resource as r, socket, gwt\n"
        # What is imported, and loaded, when it is used first.
        "try: gwt.connect('ws://127.0.0.1:1/')\n"
        "except gwt.HandshakeError: pass\n"
        "sock = socket.create_server(('127.0.0.1', 0))\n"
        "import gevent; gevent.get_hub().threadpool.apply(int)\n"
        "url = f'ws://127.0.0.1:{sock.getsockname()[1]}/'\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (sock.fileno() + 30, 256))\n"
        "spare = []\n"
        "try:\n"
        "    while True: spare.append(open('/dev/null'))\n"
        "except OSError: pass\n"
        "for scheme in 'ws', 'https':\n"
        "    try: gwt.connect(scheme + url[2:], timeout=5, verify=False)\n"
        "    except gwt.HandshakeError as exc: print(exc)"
    )
    for line in output.splitlines():
        assert "Too many open files (" in line
        assert line.endswith("gwt.raise_descriptor_limit() raises that to 256).")
    assert len(output.splitlines()) == 2


def test_other_errors_are_said_as_they_are():
    assert explained(OSError(errno.ECONNREFUSED, "Connection refused")) == "Connection refused"
    assert explained(TypeError("what")) == "what"
