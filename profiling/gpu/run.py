"""A run on a machine with a GPU: its folder, its clock, and its steps one after the other; see ``.ci/gpu``.

What fails costs nothing else: every step and every case is written down as it ends. A case that ends the process, or loses the
device, is passed over once the next processes, which go on with what is there, have met it often enough.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastscan.profiling.gpu import limited
from fastscan.profiling.measure import DeviceLostError, first_line
from fastscan.profiling.records import Row, by_case, read

FAILED, DEVICE_LOST = 1, 75
"""What `run_steps` returns if anything failed; and if another process is to go on."""


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


Step = tuple[float, Callable[[Run], str]]
"""How many seconds must be left to begin it, and what is done; it returns "ok", or what is "absent" or "failed" in words."""


def run_steps(run: Run, steps: Mapping[str, Step]) -> int:
    """Runs every step that has not ended well, writes down how each ends, and prints a table.

    Ends the process if a step has not ended by the limit: compiled code can't be interrupted.

    Returns:
        0, `FAILED` or `DEVICE_LOST`.
    """
    guard = threading.Timer(max(run.limit - 5, 0), _give_up, (run,))
    guard.daemon = True
    guard.start()
    try:
        for name, (seconds, step) in steps.items():
            if run.facts["steps"].get(name) == "ok":
                continue
            print(f"[{run.limit - run.left():5.0f} s] {name}", flush=True)
            if run.left() < (0 if run.dry_run else seconds):
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
    """Ends the process at once, with those that it started: a program that is still being compiled would keep it."""
    limited.end_all()
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
