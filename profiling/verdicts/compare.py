"""Comparisons of two records: what a change made slower, larger or less accurate.

A machine's speed wanders from run to run, by more than a change may cost. So times are taken relative to the yardstick's that
were measured in the same process, in turns, and what counts is the median over all cases of an operation and implementation.
It is a regression if it is larger than the metric's `Metric.threshold` and larger than `SIGMAS` standard errors, by how much
all cases differ from their groups' medians. One case alone counts from `Metric.alone` on.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastscan.profiling.measure.operations import SEQUENTIAL
from fastscan.profiling.measure.rows import Row, all_records, by_case, read
from fastscan.profiling.measure.run import BAD

SIGMAS = 3.0
ROUNDING = {"float32": 1e-6, "float64": 1e-14}
"""Errors below these are rounding, and may change as they like."""


class Metric(NamedTuple):
    """A number of a row that is compared; larger is worse.

    Attributes:
        name: in the table.
        value: of a row; None where it was not measured.
        relative: to the yardstick's.
        threshold: the smallest ratio that is a regression, of a group's median.
        alone: of one case.
    """

    name: str
    value: Callable[[Row], float | None]
    relative: bool
    threshold: float
    alone: float


METRICS = (
    Metric("time", lambda row: row.p50, True, 1.08, 2.5),
    Metric("first call", lambda row: row.first_call, True, 1.3, 6.0),
    Metric("memory", lambda row: None if row.temporary_bytes is None else row.temporary_bytes + 65_536, False, 1.05, 1.2),
    Metric("error", lambda row: None if row.error is None else max(row.error, ROUNDING[row.dtype]), False, 2.0, 4.0),
)


class Finding(NamedTuple):
    """How a metric of one operation and implementation changed: new over old, and over how many cases."""

    operation: str
    implementation: str
    metric: str
    ratio: float
    low: float
    high: float
    cases: int
    worst: str
    worst_ratio: float
    verdict: str


_Case = tuple[str, dict[str, Row], dict[str, Row], str]
"""Its name, what was measured of it before and after, and the implementation."""


def compare(old: Iterable[Row], new: Iterable[Row]) -> list[Finding]:
    """Finds every group's change, regressions first.

    Args:
        old: rows of one device.
        new: rows of the same device.

    Raises:
        ValueError: different devices, or no case in common.
    """
    before, after = by_case(old), by_case(new)
    devices = {row.device for side in (before, after) for rows in side.values() for row in rows.values()}
    if len(devices) > 1:
        raise ValueError(f"Records of {sorted(devices)} given, wanted of one kind of device.")
    if not before.keys() & after.keys():
        raise ValueError("The records have no case in common. Measure the same --cases at both commits.")
    groups: dict[tuple[str, str], list[_Case]] = {}
    for case in (c for c in before if c in after):
        for name in (n for n in before[case] if n in after[case] and not n.startswith("dynamax")):
            key = case.operation, name.split(":")[0]
            groups.setdefault(key, []).append((f"{case} {name}", before[case], after[case], name))
    found = [finding for key, cases in groups.items() for finding in _broken(key, cases)]
    for metric in METRICS:
        found += _of_metric(metric, groups)
    return sorted(found, key=lambda f: (f.verdict != "REGRESSION", f.operation, f.implementation))


def _broken(key: tuple[str, str], cases: Sequence[_Case]) -> Iterable[Finding]:
    broken = [what for what, old, new, name in cases if old[name].status == "ok" and new[name].status in BAD]
    if broken:
        yield Finding(*key, "status", math.nan, math.nan, math.nan, len(broken), broken[0], math.nan, "REGRESSION")


def _of_metric(metric: Metric, groups: dict[tuple[str, str], list[_Case]]) -> Iterable[Finding]:
    changes = {}
    for key, cases in groups.items():
        logs = {what: _change(metric, old, new, name) for what, old, new, name in cases}
        known = {what: change for what, change in logs.items() if change is not None}
        if known:
            changes[key] = known
    apart = [abs(change - np.median(list(c.values()))) for c in changes.values() if len(c) > 2 for change in c.values()]
    spread = 1.48 * float(np.median(apart)) if apart else math.log(metric.alone) / SIGMAS
    return [_finding(key, metric, mine, spread) for key, mine in changes.items()]


def _change(metric: Metric, old: dict[str, Row], new: dict[str, Row], name: str) -> float | None:
    """Computes the logarithm of new over old, both relative to the yardstick if there is one on both sides."""
    a, b = metric.value(old[name]), metric.value(new[name])
    if a is None or b is None:
        return None
    change = math.log(b / a)
    if metric.relative and SEQUENTIAL in old and SEQUENTIAL in new:
        a, b = metric.value(old[SEQUENTIAL]), metric.value(new[SEQUENTIAL])
        change -= math.log(b / a) if a and b else 0
    return change


def _finding(key: tuple[str, str], metric: Metric, changes: dict[str, float], spread: float) -> Finding:
    median = float(np.median(list(changes.values())))
    error = max(1.25 * spread / math.sqrt(len(changes)), 0.01)
    worst = max(changes, key=lambda what: changes[what])
    slower = median > math.log(metric.threshold) and median > SIGMAS * error
    alone = changes[worst] - max(median, 0) > math.log(metric.alone)
    faster = -median > math.log(metric.threshold) and -median > SIGMAS * error
    verdict = "REGRESSION" if slower or alone else "better" if faster else "same"
    low, high = (math.exp(median + sign * SIGMAS * error) for sign in (-1, 1))
    return Finding(*key, metric.name, math.exp(median), low, high, len(changes), worst, math.exp(changes[worst]), verdict)


def regressed(findings: Iterable[Finding]) -> bool:
    """Tells whether anything got worse."""
    return any(finding.verdict == "REGRESSION" for finding in findings)


def markdown(findings: Sequence[Finding], *, everything: bool = False) -> str:
    """Writes a table for a pull request.

    Args:
        findings: of `compare`.
        everything: also what stayed the same.
    """
    shown = [f for f in findings if everything or f.verdict != "same"]
    bands = ", ".join(f"{m.name} {m.threshold:g}x (one case {m.alone:g}x)" for m in METRICS)
    same = f"{len(findings) - len(shown)} of {len(findings)} comparisons: no change. " if len(shown) < len(findings) else ""
    head = [f"{same}Noise band: {bands}; and {SIGMAS:g} standard errors of the median over cases.", ""]
    if not shown:
        return "\n".join(head)
    head += ["| operation | implementation | what | new / old | band | cases | worst case | verdict |", "|" + "---|" * 8]
    lines = [
        f"| {f.operation} | {f.implementation} | {f.metric} | {f.ratio:.3g} | {f.low:.3g} to {f.high:.3g} | {f.cases} "
        f"| {f.worst}: {f.worst_ratio:.3g} | {f.verdict} |"
        for f in shown
    ]
    return "\n".join([*head, *lines])


def find(name: str, records: Path) -> list[Row]:
    """Reads the rows of a file, or of a commit's record.

    Args:
        name: a path, or the beginning of a commit's name.
        records: the folder with the records of commits.

    Raises:
        ValueError: neither, or records of several devices.
    """
    if Path(name).is_file():
        return read(Path(name))
    known = [(path, rows) for path, rows in all_records(records) if rows]
    found = [(path, rows) for path, rows in known if len(name) >= 7 and rows[-1].commit[: len(name)] == name[:12]]
    if len(found) != 1:
        have = ", ".join(f"{rows[-1].commit} ({path.name})" for path, rows in known) or "none"
        raise ValueError(
            f"{name!r} given, wanted a record's file, or a commit that has one record. There are: {have}. "
            "Check the commit out and run `fastscan measure`."
        )
    return found[0][1]
