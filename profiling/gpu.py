"""One run on a machine with a GPU, in minutes: accuracy, times, ceilings, and what the last record says; see ``.ci/gpu``.

What fails costs nothing else: every step and every case is written down as it ends. A case that ends the process, or loses the
device, is passed over once the next processes, which go on with what is there, have met it often enough.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fastscan.dispatch import device_kind
from fastscan.profiling import crossover
from fastscan.profiling.cases import cases
from fastscan.profiling.ceilings import measure_ceilings
from fastscan.profiling.compare import compare, markdown, regressed
from fastscan.profiling.machine import nvidia_smi, stamp
from fastscan.profiling.measure import BAD, DeviceLostError, first_line, measure
from fastscan.profiling.programs import Programs, workers
from fastscan.profiling.records import RECORDS, Row, by_case, read
from fastscan.profiling.tables import ROOT, newest

TESTS = Path("tests") / "test_on_gpu.py"
FAILED, DEVICE_LOST = 1, 75
"""What `run_gpu` returns if anything failed; and if another process is to go on."""

TESTS_SHARE = 0.2
"""Of the limit, kept for the GPU tests."""

_SMI = "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


class Run:
    """A run's folder, clock, and what is known so far, which is in ``gpu.json`` at any time."""

    def __init__(self, out: Path, dry_run: bool, limit: float, commit: str | None) -> None:
        """Goes on with the folder if it is not empty."""
        self.out, self.dry_run, self.limit, self.commit = out, dry_run, limit, commit
        self.record = out / "measured.csv"
        self._end = time.monotonic() + limit
        out.mkdir(parents=True, exist_ok=True)
        self._file = out / "gpu.json"
        self.facts: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {"steps": {}}
        self.facts["processes"] = self.facts.get("processes", 0) + 1

    def left(self) -> float:
        """Seconds until the limit."""
        return self._end - time.monotonic()

    def save(self) -> None:
        """Writes ``gpu.json``; what is read is an old file or a new one, never half of one."""
        partial = self._file.with_suffix(".part")
        partial.write_text(json.dumps(self.facts, indent=2) + "\n")
        partial.replace(self._file)


def _machine(run: Run) -> str:
    """Device, driver, versions, commit."""
    on, device = stamp(), jax.devices()[0]
    given = {"commit": run.commit} if run.commit and on["commit"] == "unknown" else {}
    run.facts |= (
        on
        | given
        | {
            "dry_run": run.dry_run,
            "platform": str(getattr(getattr(device, "client", None), "platform_version", "unknown")),
            "memory": (device.memory_stats() or {}).get("bytes_limit"),
            "xla": {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_"))},
            "nvidia_smi": nvidia_smi(_SMI),
            "source_sha256": _source_hash(),
        }
    )
    return "ok"


def _ceilings(run: Run) -> str:
    run.facts["ceilings"] = measure_ceilings(toy=run.dry_run)
    bad = [name for name, value in run.facts["ceilings"].items() if isinstance(value, str)]
    return f"failed: {', '.join(bad)}" if bad else "ok"


def _measure(run: Run) -> str:
    """All cases; a process that goes on after another compiles one program at a time: then it is known which one ends it."""
    again = run.facts["processes"] > 1
    budget = run.left() - TESTS_SHARE * run.limit
    programs = Programs(0 if again or run.dry_run else workers())
    group = cases("toy" if run.dry_run else "gpu")
    problems = measure(group, run.record, budget=budget, programs=programs, toy=run.dry_run, commit=run.commit)
    run.facts["nvidia_smi_after"] = nvidia_smi(_SMI)
    run.facts["problems"] = problems
    rows = read(run.record)
    crossover.write(crossover.fit(rows), run.out / "crossover.json")
    bad = sum(row.status in BAD for row in rows)
    return f"failed: {bad} of {len(rows)} rows" if bad else "ok"


def _compare(run: Run) -> str:
    """Against the last committed record of the same kind of device."""
    try:
        before = newest(RECORDS, device_kind())
    except ValueError as error:
        return f"absent: {error}"
    if not by_case(before).keys() & by_case(read(run.record)).keys():
        return "absent: the last record has no case in common with this one"
    findings = compare(before, read(run.record))
    (run.out / "compare.md").write_text(markdown(findings) + "\n")
    return "failed: slower, larger or less accurate than the last record; see compare.md" if regressed(findings) else "ok"


def _tests(run: Run) -> str:
    """The GPU tests, in a process of their own with what time is left; a dry run only collects them."""
    if not (ROOT / TESTS).exists():
        return f"absent: no {TESTS}"
    if importlib.util.find_spec("pytest") is None:
        return "absent: no pytest"
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(TESTS), *(["--collect-only"] if run.dry_run else [])]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    seconds = max(run.left() - 12, 1)
    with (run.out / "tests.txt").open("w") as file:
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"failed: the tests did not end in {seconds:.0f} s; see tests.txt"
    return f"failed: pytest ended with {done.returncode}; see tests.txt" if done.returncode else "ok"


STEPS: dict[str, tuple[float, Callable[[Run], str]]] = {
    "machine": (0, _machine),
    "ceilings": (20, _ceilings),
    "measure": (60, _measure),
    "compare": (0, _compare),
    "tests": (30, _tests),
}
"""In order of importance: how many seconds must be left to begin, and what is done."""


def run_gpu(out: Path, dry_run: bool, limit_seconds: float = 540, *, commit: str | None = None) -> int:
    """Runs every step that has not ended well; writes ``gpu.json``, ``measured.csv``, ``crossover.json``, ``compare.md``...

    Ends the process if a step has not ended by the limit: compiled code can't be interrupted.

    Args:
        out: folder for what is written; of a run whose process died, to go on.
        dry_run: run every step at toy sizes, on a CPU, kernels in Pallas's interpreter.
        limit_seconds: for all.
        commit: what is measured, where git can't tell.

    Returns:
        0, `FAILED` or `DEVICE_LOST`.

    Raises:
        RuntimeError: no GPU, and no dry run.
    """
    if not (dry_run or device_kind().startswith("NVIDIA")):
        raise RuntimeError(f"JAX computes on {device_kind()!r} here, which is no NVIDIA GPU. Take --dry-run to try the steps.")
    run = Run(out, dry_run, limit_seconds, commit)
    guard = threading.Timer(max(limit_seconds - 5, 0), _give_up, (run,))
    guard.daemon = True
    guard.start()
    try:
        for name, (seconds, step) in STEPS.items():
            if run.facts["steps"].get(name) == "ok":
                continue
            print(f"[{run.limit - run.left():5.0f} s] {name}", flush=True)
            if run.left() < (0 if dry_run else seconds):
                run.facts["steps"][name] = f"skipped: {run.left():.0f} s left"
            else:
                run.facts["steps"][name] = _ended(step, run)
            run.save()
    except DeviceLostError as error:
        run.facts["steps"]["device"] = f"lost at {error}"
        run.save()
        return DEVICE_LOST
    finally:
        guard.cancel()
    _print_table(run)
    return FAILED if any(status.startswith("failed") for status in run.facts["steps"].values()) else 0


def exit_with(status: int) -> None:
    """Ends the process at once: a program that is still being compiled would keep it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _ended(step: Callable[[Run], str], run: Run) -> str:
    try:
        return step(run)
    except DeviceLostError:
        raise
    except Exception as error:  # the one place where anything may fail: the other steps must not pay for it
        return f"failed: {first_line(error)}"


def _give_up(run: Run) -> None:
    run.facts["steps"]["limit"] = "failed: not ended by the limit"
    run.save()
    _print_table(run)
    exit_with(FAILED)


def _print_table(run: Run) -> None:
    facts = run.facts
    print(f"\n{'DRY RUN on ' if run.dry_run else ''}{facts.get('device')}, commit {facts.get('commit')}")
    numbers = {name: value for name, value in facts.get("ceilings", {}).items() if isinstance(value, float)}
    print("  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
    for case, rows in by_case(read(run.record)).items():
        print(f"{case}:  " + "  ".join(_cell(row) for row in rows.values()))
    for name, status in facts["steps"].items():
        print(f"step {name}: {status}")
    print(f"{run.limit - run.left():.0f} s; records in {run.out}", flush=True)


def _cell(row: Row) -> str:
    seconds = row.in_flight or row.p50
    mark = "*" if row.default else ""
    return f"{row.implementation}{mark} {row.status if seconds is None else f'{1e3 * seconds:.4g} ms'}"


def _source_hash() -> str:
    """Of the package's files, for a checkout without git."""
    digest = hashlib.sha256()
    for folder in ("fastscan", "kernels", "profiling"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
