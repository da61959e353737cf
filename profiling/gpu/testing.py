"""The GPU tests, in processes of their own: all failures are collected, also of a run that is cut off."""

import importlib.util
import os
import re
import sys
from pathlib import Path

from fastscan.profiling.gpu.run import Run
from fastscan.profiling.measure.limited import run_limited
from fastscan.profiling.report.readme import ROOT

TESTS = Path("tests") / "test_on_gpu.py"

PROCESSES = 6
"""That tests are shared by, as most of their time is a compiler's."""

_ENDED = re.compile(r"^(\S+::.*?) ([A-Z]+)\b", re.MULTILINE)
_ENDED_SIDE_BY_SIDE = re.compile(r"^\[gw\d+\] \[ *\d+%\] ([A-Z]+) (\S+::.*?) *$", re.MULTILINE)
_WORSE = "FAILED", "ERROR"
_WITHOUT = "-p", "no:benchmark"  # a plugin that warns of processes side by side, which ends pytest where warnings are errors


def tested(run: Run) -> str:
    """Runs the GPU tests in what time is left; a dry run only collects them."""
    if not (ROOT / TESTS).exists():
        return f"absent: no {TESTS}"
    if importlib.util.find_spec("pytest") is None:
        return "absent: no pytest"
    options = ["--collect-only"] if run.dry_run else _side_by_side()
    where = [f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", str(ROOT / TESTS)]
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *_WITHOUT, *options, *where]
    seconds = max(run.left() - 12, 1)
    status = run_limited(command, run.out / "tests.txt", seconds, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    found = outcomes((run.out / "tests.txt").read_text())
    failed = sorted(test for test, outcome in found.items() if outcome in _WORSE)
    run.facts["tests"] = {"passed": sum(outcome == "PASSED" for outcome in found.values()), "failed": failed}
    told = f"{len(failed)} of {len(found)}: {', '.join(failed)}" if failed else f"none of {len(found)}"
    if status is None:
        return f"failed: the tests did not end in {seconds:.0f} s; of those that did, {told}; see tests.txt"
    if not status and not run.dry_run and "PASSED" not in found.values():
        return "failed: no test ran; see tests.txt"
    return f"failed: {told}; pytest ended with {status}; see tests.txt" if status else "ok"


def outcomes(text: str) -> dict[str, str]:
    """Tells what became of every test that ended, by ``pytest -v``'s output, with or without processes side by side."""
    found: dict[str, str] = {}
    for test, outcome in [*_ENDED.findall(text), *((test, outcome) for outcome, test in _ENDED_SIDE_BY_SIDE.findall(text))]:
        test = test.split("::", 1)[1]
        if found.get(test) not in _WORSE:
            found[test] = outcome
    return found


def _side_by_side() -> list[str]:
    processes = min(PROCESSES, (os.cpu_count() or 1) - 2)
    if importlib.util.find_spec("xdist") is None or processes < 2:
        return []
    return ["-n", str(processes), "--dist", "worksteal"]
