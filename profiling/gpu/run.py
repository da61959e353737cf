"""A run on a machine with a GPU: its folder, its clock, and its steps one after the other; see ``.ci/gpu``.

What fails costs nothing else: every step and every case is written down as it ends. A case that ends the process, or loses the
device, is passed over once the next processes, which go on with what is there, have met it often enough.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastscan.profiling.measure import limited
from fastscan.profiling.measure.rows import Row, by_case
from fastscan.profiling.measure.run import DeviceLostError, first_line

FAILED, DEVICE_LOST = 1, 75
"""The status that `run_stage` returns if anything failed; and if another process is to go on."""


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
        self.died = bool(self.facts.get("running"))
        """Whether the last process that had this folder was ended by what it did."""

    def left(self) -> float:
        """Returns the seconds until the limit."""
        return self._end - time.monotonic()

    def save(self) -> None:
        """Writes ``gpu.json``; what is read is an old file or a new one, never half of one."""
        partial = self._file.with_suffix(".part")
        partial.write_text(json.dumps(self.facts, indent=2) + "\n")
        partial.replace(self._file)

    def learn(self, facts: dict[str, Any]) -> None:
        """Takes what is known of machine and code; if the folder was another one's, its steps are to be run again."""
        if any(name in self.facts and self.facts[name] != facts[name] for name in _SAME):
            earlier = self.facts.pop("earlier", [])
            self.facts = {"earlier": [*earlier, self.facts], "steps": {}, "running": True}
        self.facts |= facts

    def own(self, rows: Iterable[Row]) -> list[Row]:
        """Returns those of the rows that are of this machine and code."""
        return [row for row in rows if all(getattr(row, name) == self.facts.get(name) for name in ("device", "commit"))]


_SAME = "device", "jax", "commit", "source_sha256", "dry_run"
_ALWAYS = "machine", "compare"
"""Steps that each process runs anew."""

Step = tuple[float, Callable[[Run], str]]
"""How many seconds must be left to begin it, and what is done; it returns "ok", or what is "absent" or "failed" in words."""


class Stage(NamedTuple):
    """A part of all that is to be done on a GPU.

    Attributes:
        limit: seconds that it takes at most, by default.
        steps: in order of importance.
        table: lines to be printed at the end, of what is there then.
    """

    limit: float
    steps: Mapping[str, Step]
    table: Callable[[Run], Sequence[str]]


def run_stage(run: Run, stage: Stage) -> int:
    """Runs every step that has not ended well, writes down how each ends, and prints a table.

    Ends the process if a step has not ended by the limit: compiled code can't be interrupted.

    Returns:
        0, `FAILED` or `DEVICE_LOST`.
    """
    guard = threading.Timer(max(run.limit - 5, 0), _give_up, (run, stage))
    guard.daemon = True
    guard.start()
    run.facts["steps"] = {name: how for name, how in run.facts["steps"].items() if name not in ("limit", "device")}
    run.facts["running"] = True
    run.save()
    try:
        for name, (seconds, step) in stage.steps.items():
            if name not in _ALWAYS and run.facts["steps"].get(name) == "ok":
                continue
            print(f"[{run.limit - run.left():5.0f} s] {name}", flush=True)
            how = _ended(step, run) if run.dry_run or run.left() >= seconds else f"skipped: {run.left():.0f} s left"
            run.facts["steps"][name] = how
            run.save()
    except DeviceLostError as error:
        run.facts["steps"]["device"] = f"lost at {error}"
        run.save()
        return DEVICE_LOST
    finally:
        guard.cancel()
    _finish(run, stage)
    return FAILED if any(run.facts["steps"].get(name, "").startswith("failed") for name in stage.steps) else 0


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


def _give_up(run: Run, stage: Stage) -> None:
    run.facts["steps"]["limit"] = "failed: not ended by the limit"
    _finish(run, stage)
    exit_with(FAILED)


def _finish(run: Run, stage: Stage) -> None:
    """Writes that the process ends by itself, and prints; the table last, as an end is all that is seen of a long output."""
    facts = run.facts
    facts.pop("running", None)
    run.save()
    print(f"\n{'DRY RUN on ' if run.dry_run else ''}{facts.get('device')}, commit {facts.get('commit')}")
    numbers = {name: value for name, value in facts.get("ceilings", {}).items() if isinstance(value, float)}
    print("  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
    for name, status in facts["steps"].items():
        if name in stage.steps or name == "limit":
            print(f"step {name}: {status}")
    for line in stage.table(run):
        print(line)
    print(f"{run.limit - run.left():.0f} s; records in {run.out}", flush=True)


def table(rows: Iterable[Row]) -> list[str]:
    """Writes a line of milliseconds a case; a star marks what None chose."""
    return [f"{case}:  {'  '.join(map(_cell, measured.values()))}" for case, measured in by_case(rows).items()]


def _cell(row: Row) -> str:
    seconds = row.in_flight or row.p50
    mark = "*" if row.default else ""
    return f"{row.implementation}{mark} {row.status if seconds is None else f'{1e3 * seconds:.4g} ms'}"
