"""
What tools/autobahn runs: Autobahn's test suite (wstest) against an end of ours, and the verdict.

Its fuzzing client tests our server, its fuzzing server our client (peer_gwt.py). Each role is two
processes on loopback, which end with this one, however it ends. The suite's own reports say of each
case what was expected, and what went over the wire.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gwt import certificates

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
AGENT = "gwt"  # our name in the reports

# Exit codes. argparse has 2 for arguments that it does not understand.
BAD, MISSING = 1, 3

GOOD = ("OK", "INFORMATIONAL")
VERDICTS = (*GOOD, "NON-STRICT", "UNIMPLEMENTED", "FAILED")

# No case is silent for longer, by its own time-outs, nor is the writing of the reports.
STALL = 600.0

# Runs in the suite's own Python, which is 2.7: its server is to listen on loopback only, at a port
# that is free, and to say at which.
WSTEST = """
import sys
from autobahntestsuite import wstest, fuzzing
listen = fuzzing.listenWS
def on_loopback(factory, context=None):
    listener = listen(factory, context, interface="127.0.0.1")
    print("listening on %d" % listener.getHost().port)
    sys.stdout.flush()
fuzzing.listenWS = on_loopback
wstest.run()
"""


class Incomplete(Exception):
    """A run did not come to its end."""


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Process:
    """A process that ends with us. What it says is kept in a file, and some of it here."""

    def __init__(self, command: list[str], log: Path, environ: dict[str, str]) -> None:
        self.heard = time.monotonic()
        self.port: int | None = None
        self.announced: int | None = None  # cases that it said it would run
        self.begun = 0
        # A session of its own: Ctrl-C is for us. The kernel ends it if we are killed.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environ,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self._log = log
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("w") as log, self._process.stdout as output:
            for line in output:
                log.write(line)
                log.flush()
                self.heard = time.monotonic()
                if match := re.match(r"listening on (\d+)$", line):
                    self.port = int(match[1])
                elif match := re.match(r"Ok, will run (\d+) test cases", line):
                    self.announced = int(match[1])
                elif line.startswith("Running test case ID"):
                    self.begun += 1

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, or does so within this time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def listening(self) -> int:
        """Wait for the port that it listens on. Raises Incomplete."""
        while self.port is None:
            if self.ended(0.05) or time.monotonic() > self.heard + 30:
                raise Incomplete(f"nothing listens; {self._log} says why")
        return self.port

    def stop(self) -> None:
        """End it, if it has not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(number)
            if self.ended(10):
                break
        self._reader.join()


class Run:
    """The cases of one role."""

    def __init__(self, role: str, patterns: list[str], options: argparse.Namespace) -> None:
        self.role = role
        self.folder: Path = options.report.resolve() / role
        self.seconds = 0.0
        self.results: dict[str, dict[str, str]] = {}
        self._patterns = patterns
        self._options = options
        self._stack = ExitStack()

    def go(self) -> None:
        """Run them. Raises Incomplete."""
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        index = self.folder / "index.json"
        # What an earlier run left there is not to pass for this one's.
        index.unlink(missing_ok=True)
        base = "wss://127.0.0.1" if self._options.tls else "ws://127.0.0.1"
        with self._stack:
            if self.role == "server":
                peer = self._peer("--identity", *self._identity())
                url = f"{base}:{peer.listening()}"
                suite = last = self._suite("fuzzingclient", servers=[{"agent": AGENT, "url": url}])
            else:
                files = dict(zip(("cert", "key"), self._identity(), strict=False))
                suite = self._suite("fuzzingserver", url=f"{base}:0", **files)
                last = self._peer("--url", f"{base}:{suite.listening()}")
            while not last.ended(0.5):
                if suite.announced == 0:
                    # Its client would wait for ever.
                    raise Incomplete("the suite has no such cases")
                self._progress(f"{suite.begun} of {suite.announced}")
                if time.monotonic() > suite.heard + STALL:
                    raise Incomplete(f"case {suite.begun} of {suite.announced} did not end")
            self._progress("")
        self.seconds = time.monotonic() - began
        if index.exists():
            self.results = json.loads(index.read_text()).get(AGENT, {})
        if not self.results or len(self.results) != suite.announced:
            raise Incomplete(
                f"{len(self.results)} of {suite.announced} cases were run; see {self.folder}/*.log"
            )

    def _identity(self) -> list[str]:
        """A certificate and its key, if by TLS."""
        if not self._options.tls:
            return []
        return [str(file) for file in certificates.write(self.folder, certificates.generate())]

    def _peer(self, *arguments: str) -> Process:
        command = [sys.executable, *(("-m", "gevent.monkey") if self._options.patched else ())]
        command += [str(HERE / "peer_gwt.py"), *arguments]
        command += ["--takeover"] if self._options.takeover else []
        return self._start(command, "gwt.log", dict(os.environ))

    def _suite(self, mode: str, **spec: Any) -> Process:
        spec |= {"outdir": str(self.folder), "cases": self._patterns}
        spec |= {"exclude-cases": [], "exclude-agent-cases": {}}
        path = self.folder / "spec.json"
        path.write_text(json.dumps(spec))
        command = [self._options.python, "-u", "-c", WSTEST]
        command += ["-m", mode, "-u", "0", "-s", str(path)]
        # It is another Python: what is meant for ours is not for it.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return self._start(command, "wstest.log", environ)

    def _start(self, command: list[str], log: str, environ: dict[str, str]) -> Process:
        process = Process(command, self.folder / log, environ)
        self._stack.callback(process.stop)
        return process

    def _progress(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{self.role}: {text}\033[K" if text else "\r\033[K", end="", file=sys.stderr)

    def tell(self) -> bool:
        """Print a table of the groups, and what is bad; return whether nothing is."""
        groups: dict[int, Counter[str]] = {}
        bad = []
        for case in sorted(self.results, key=lambda c: [int(part) for part in c.split(".")]):
            verdict = _verdict(self.results[case])
            groups.setdefault(int(case.split(".")[0]), Counter())[verdict] += 1
            if verdict not in GOOD:
                bad.append((case, verdict))
        print(f"\n{self.role}: {len(self.results)} cases in {self.seconds:.0f} s\n")
        print("group" + "".join(f"{verdict:>15}" for verdict in VERDICTS))
        for name, counts in [*groups.items(), ("all", sum(groups.values(), Counter()))]:
            print(f"{name:>5}" + "".join(f"{counts[verdict]:15}" for verdict in VERDICTS))
        for case, verdict in bad:
            report = self.folder / self.results[case]["reportfile"]
            said = json.loads(report.read_text())
            print(f"\n{case} {verdict}: {said['result']}")
            print(f"  end: {said['behaviorClose']}: {said['resultClose']}")
            print(f"  {report.with_suffix('.html')}")
        return not bad


def _verdict(result: dict[str, str]) -> str:
    """The worse of what is said of a case, and of its end."""
    verdicts = [result["behavior"], result["behaviorClose"]]
    # Other words are said of ends only: WRONG CODE, UNCLEAN, FAILED BY CLIENT.
    return max((v if v in VERDICTS else "FAILED" for v in verdicts), key=VERDICTS.index)


def _groups(text: str) -> list[str]:
    """Turn "1-7,9" into patterns of the suite's."""
    patterns = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(f"not numbers of groups: {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        patterns += [f"{group}.*" for group in range(first, last + 1)]
    return patterns


def _python() -> str | None:
    """The Python that has Autobahn's test suite."""
    named = os.environ.get("GWT_AUTOBAHN")
    python = Path(named) if named else ROOT / ".peers" / "autobahn" / "bin" / "python"
    return str(python) if os.access(python, os.X_OK) else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/autobahn", description="Autobahn's test suite.")
    parser.add_argument("role", nargs="?", choices=["server", "client", "both"], default="both")
    parser.add_argument("--groups", type=_groups, metavar="1-7,9", help="these groups of cases")
    parser.add_argument("--cases", metavar="1.*,2.3", help="these cases")
    parser.add_argument("--report", type=Path, metavar="DIR", default=ROOT / "build" / "autobahn")
    parser.add_argument("--takeover", action="store_true", help="compress with context takeover")
    parser.add_argument("--tls", action="store_true", help="wss instead of ws")
    parser.add_argument(
        "--patched", action="store_true", help="our end is monkey-patched by gevent"
    )
    options = parser.parse_args()
    options.python = _python()
    if options.python is None:
        print("Autobahn's test suite is not installed; tools/autobahn does that.", file=sys.stderr)
        return MISSING
    patterns = options.groups or []
    patterns += options.cases.split(",") if options.cases else []
    # Ended from outside, we end what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    clean = True
    for role in ("server", "client") if options.role == "both" else (options.role,):
        run = Run(role, patterns or ["*"], options)
        try:
            run.go()
        except Incomplete as exc:
            print(f"\n{role}: {exc}", file=sys.stderr)
            clean = False
        if run.results:
            clean = run.tell() and clean
    return 0 if clean else BAD


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
