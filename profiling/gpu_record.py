"""What a run on a scarce machine leaves behind: written case by case, so that nothing is lost with what comes after it."""

import csv
import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax


class AccuracyRow(NamedTuple):
    """Errors of one implementation, each the largest one over the reference's largest entry. ``status`` "wrong": too big."""

    implementation: str
    D: int
    m: int
    T: int
    B: int
    dtype: str
    gaps: bool
    status: str
    worst: float | None = None
    nans: int | None = None
    marginal_loglik: float | None = None
    filtered_means: float | None = None
    filtered_covariances: float | None = None
    smoothed_means: float | None = None
    smoothed_covariances: float | None = None
    smoothed_cross_covariances: float | None = None
    reference: str = ""
    note: str = ""
    dry_run: bool = False


class TimingRow(NamedTuple):
    """Seconds of one implementation. ``p50``: of a call among many in flight; ``call_p50``: of one that is waited for.

    ``beside``: programs compiled at the same time as this one; ``compiling``: those that were while this one was timed.
    ``bytes`` are inputs and outputs, ``temporary_bytes`` what XLA allocates beside them; ``share``: of a copy's bandwidth.
    ``against_parallel`` and ``against_sequential``: dynamax's p50 over this one.
    """

    function: str
    implementation: str
    default: bool
    D: int
    m: int
    T: int
    B: int
    dtype: str
    status: str
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    in_flight: int | None = None
    repeats: int | None = None
    call_p20: float | None = None
    call_p50: float | None = None
    call_p80: float | None = None
    against_parallel: float | None = None
    against_sequential: float | None = None
    bytes: int | None = None
    temporary_bytes: int | None = None
    share: float | None = None
    lower_seconds: float | None = None
    compile_seconds: float | None = None
    beside: int | None = None
    compiling: int | None = None
    note: str = ""
    dry_run: bool = False


_FILES: dict[type, str] = {AccuracyRow: "accuracy.csv", TimingRow: "timings.csv"}


class DeviceLostError(Exception):
    """Nothing runs on the device any more: this process can measure nothing else, another one may."""


class Record:
    """The files of a run, and its clock."""

    def __init__(self, out: Path, dry_run: bool, limit_seconds: float, resume: bool = False) -> None:
        """Starts the files anew, or with ``resume`` goes on with those of a process that died."""
        self.out, self.dry_run, self.limit = out, dry_run, limit_seconds
        self._end = time.monotonic() + limit_seconds
        self.facts: dict[str, Any] = {"dry_run": dry_run, "limit_seconds": limit_seconds, "steps": {}, "cases": {}}
        self.failures: list[str] = []
        out.mkdir(parents=True, exist_ok=True)
        if resume and (out / "gpu.json").exists():
            self.facts = json.loads((out / "gpu.json").read_text())
            self.facts["restarts"] = self.facts.get("restarts", 0) + 1
            self.failures = self.facts["failures"]
        else:
            (out / "log.txt").write_text("")
            for kind, name in _FILES.items():
                with (out / name).open("w", newline="") as file:
                    csv.writer(file).writerow(kind.__annotations__)
        self.resumed = self.facts.get("restarts", 0) > 0
        self.save()

    def left(self) -> float:
        """Seconds until the limit."""
        return self._end - time.monotonic()

    def left_until(self, share: float) -> float:
        """Seconds until no more than this share of the limit is left."""
        return self.left() - share * self.limit

    def attempt(
        self, case: str, estimate_seconds: float, run: Callable[[], str], blank: Callable[[str, str], None] = lambda *_: None
    ) -> str:
        """Runs a case, unless an earlier process has.

        Args:
            case: its name.
            estimate_seconds: with less time left it is not begun.
            run: what it does; it returns its status, and writes its rows.
            blank: writes a row, from a status and a note, where ``run`` could not.

        Returns:
            ``run``'s status, or "failed", "crashed" or "skipped".

        Raises:
            DeviceLostError: it failed, and so does everything else from here on.
        """
        if self.done(case):
            return self.facts["cases"][case]
        if self.facts["cases"].get(case) == "begun" and self.facts["restarts"] > 1:  # once it may have been a program beside it
            self.failures.append(f"{case}: the process died of it")
            return self._end_case(case, "crashed", "the process died of it", blank)
        if self.left() < estimate_seconds:
            return self.skip(case, f"{self.left():.0f} s left, about {estimate_seconds:.0f} s needed", blank)
        self.facts["cases"][case] = "begun"
        self.save()
        start = time.monotonic()
        try:
            status = run()
        except Exception as error:
            self.fail(case, error)
            self._end_case(case, "failed", first_line(error), blank)
            if not _alive():
                raise DeviceLostError(case) from error
            return "failed"
        if status == "wrong":
            self.failures.append(f"{case}: wrong")
        return self._end_case(case, status, f"{time.monotonic() - start:.1f} s")

    def done(self, case: str) -> bool:
        """Whether a case has come to an end, in this process or an earlier one."""
        return self.facts["cases"].get(case, "skipped") not in ("skipped", "begun")

    def skip(self, case: str, why: str, blank: Callable[[str, str], None] = lambda *_: None) -> str:
        """Notes that a case is not run."""
        return self._end_case(case, "skipped", why, blank)

    def _end_case(self, case: str, status: str, note: str, blank: Callable[[str, str], None] = lambda *_: None) -> str:
        self.facts["cases"][case] = status
        self.log(f"{status} {case}: {note}")
        blank(status, note)
        self.save()
        return status

    def fail(self, what: str, error: BaseException) -> None:
        """Notes a failure, with its traceback in the log."""
        self.failures.append(f"{what}: {first_line(error)}")
        self.log(f"FAILED {what}\n{''.join(traceback.format_exception(error))}")

    def log(self, text: str) -> None:
        """Appends to ``log.txt``."""
        with (self.out / "log.txt").open("a") as file:
            file.write(f"[{self.limit - self.left():6.1f} s] {text}\n")

    def write(self, row: AccuracyRow | TimingRow) -> None:
        """Appends a row to its file."""
        with (self.out / _FILES[type(row)]).open("a", newline="") as file:
            values = row._replace(dry_run=self.dry_run)
            csv.writer(file).writerow(f"{x:.6g}" if isinstance(x, float) else x for x in values)

    def save(self) -> None:
        """Writes ``gpu.json``; what is read is an old file or a new one, never half of one."""
        self.facts |= {"failures": self.failures, "seconds": round(self.limit - self.left(), 1)}
        partial = self.out / "gpu.json.part"
        partial.write_text(json.dumps(self.facts, indent=2) + "\n")
        partial.replace(self.out / "gpu.json")

    def print_table(self) -> None:
        """The short table, of everything that is in the files."""
        print("\n".join(["", *self._table()]), flush=True)

    def _table(self) -> Iterator[str]:
        facts = self.facts
        yield f"{'DRY RUN on ' if self.dry_run else ''}{facts.get('machine', 'unknown machine')}, commit {facts.get('commit')}"
        ceilings = facts.get("ceilings", {})
        yield "  ".join(f"{name} {value:.4g}" for name, value in ceilings.items() if isinstance(value, float))
        if facts.get("dynamax", "ok") != "ok":
            yield f"dynamax: {facts['dynamax']}"
        yield from self._accuracy_lines()
        yield from self._timing_lines()
        steps = ", ".join(f"{name} {status}" for name, status in facts["steps"].items())
        cases = ", ".join(f"{n} {status}" for status, n in Counter(facts["cases"].values()).items())
        yield f"steps: {steps}"
        yield f"cases: {cases}; {len(self.failures)} failures; {self.limit - self.left():.0f} s; records in {self.out}"
        yield from (f"  ! {failure[:150]}" for failure in self.failures[:8])

    def _accuracy_lines(self) -> Iterator[str]:
        rows = self._rows("accuracy.csv")
        for implementation, dtype in dict.fromkeys((r["implementation"], r["dtype"]) for r in rows):
            mine = [r for r in rows if (r["implementation"], r["dtype"]) == (implementation, dtype)]
            worst = max((float(r["worst"]) for r in mine if r["worst"]), default=float("nan"))
            counts = ", ".join(f"{n} {status}" for status, n in Counter(r["status"] for r in mine).items())
            yield f"accuracy  {implementation:<18}{dtype:<9}worst {worst:8.1e}  {counts}"

    def _timing_lines(self) -> Iterator[str]:
        rows = self._rows("timings.csv")
        problem = ("function", "D", "m", "T", "B", "dtype")
        if rows:
            yield "milliseconds, p50 of calls in flight (* default; in brackets, times sooner than dynamax parallel)"
        for key in dict.fromkeys(tuple(r[k] for k in problem) for r in rows):
            mine = [r for r in rows if tuple(r[k] for k in problem) == key]
            cells = [f"{r['implementation']}{'*' if r['default'] == 'True' else ''} {_milliseconds(r)}" for r in mine]
            yield f"{key[0]} D={key[1]} T={key[3]} B={key[4]} {key[5]}:  " + "  ".join(cells)

    def _rows(self, name: str) -> list[dict[str, str]]:
        with (self.out / name).open(newline="") as file:
            return list(csv.DictReader(file))


def first_line(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _milliseconds(row: dict[str, str]) -> str:
    if not row["p50"]:
        return row["status"]
    theirs = not row["against_parallel"] or row["implementation"].startswith("dynamax")
    ratio = "" if theirs else f" ({float(row['against_parallel']):.1f}x)"
    return f"{float(row['p50']) * 1e3:.4g}{ratio}"


def _alive() -> bool:
    try:
        return bool(jax.block_until_ready(jax.numpy.ones(3) + 1).sum() == 6)
    except Exception:
        return False
