"""
Autobahn's test suite against both ends of ours: the cases without compression, which take seconds.

tools/autobahn runs the others too. What runs here is what it runs, and a stand-in for the suite
shows that it does not take everything for good.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import gevent
import pytest
from gevent import monkey, subprocess

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tools" / "conformance" / "suite.py"

# Behaves as wstest's fuzzing client does that has two cases, and thinks of them what it is told.
STAND_IN = """#!{python}
import json, pathlib, sys
spec = json.loads(pathlib.Path(sys.argv[sys.argv.index("-s") + 1]).read_text())
assert spec["cases"] == ["1.*", "3.*"], spec
print("Ok, will run 2 test cases against 1 servers", flush=True)
folder = pathlib.Path(spec["outdir"])
results = {results}
for case, result in results.items():
    result["reportfile"] = case + ".json"
    said = dict(result, result="said of the case", resultClose="said of its end")
    (folder / result["reportfile"]).write_text(json.dumps(said))
(folder / "index.json").write_text(json.dumps({{"gwt": results}}))
"""


def suite(*arguments: object, **environ: str) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, str(SUITE), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate()
    except gevent.Timeout:
        # It ends what it started.
        process.terminate()
        process.communicate()
        raise
    return process.returncode, output


@pytest.mark.autobahn
@pytest.mark.slow
@pytest.mark.deadline(240)
@pytest.mark.parametrize("role", ["server", "client"])
def test_autobahn_has_nothing_to_say(role, tmp_path):
    arguments = [role, "--report", tmp_path]
    if monkey.is_module_patched("socket"):
        # The run beside this one does all of it, without TLS; group 9 is what takes time.
        code, output = suite(*arguments, "--patched", "--tls", "--groups", "1-7,10")
        cases = 247
    else:
        code, output = suite(*arguments, "--groups", "1-10")
        cases = 301
    assert code == 0, output
    assert f"{role}: {cases} cases in " in output


@pytest.mark.parametrize(
    ("second", "code", "said"),
    [
        (("OK", "INFORMATIONAL"), 0, "  all              1              1 "),
        (("NON-STRICT", "OK"), 1, "3.1 NON-STRICT: said of the case\n"),
        (("UNIMPLEMENTED", "OK"), 1, "3.1 UNIMPLEMENTED: "),
        (("FAILED", "OK"), 1, "3.1 FAILED: "),
        (
            ("OK", "WRONG CODE"),
            1,
            "3.1 FAILED: said of the case\n  end: WRONG CODE: said of its end",
        ),
        (None, 1, "1 of 2 cases were run"),
    ],
)
def test_what_the_suite_says_is_the_exit_code(second, code, said, tmp_path):
    results = {"1.1": {"behavior": "OK", "behaviorClose": "OK"}}
    if second is not None:
        results["3.1"] = dict(zip(("behavior", "behaviorClose"), second, strict=True))
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, results=json.dumps(results)))
    python.chmod(0o700)
    arguments = ("server", "--groups", "1,3", "--report", tmp_path)
    got, output = suite(*arguments, GWT_AUTOBAHN=str(python))
    assert got == code, output
    assert said in output


def test_without_the_suite_the_exit_code_is_another(tmp_path):
    code, output = suite("--report", tmp_path, GWT_AUTOBAHN="/nowhere")
    assert code == 3
    assert "not installed" in output
