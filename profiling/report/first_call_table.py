"""The table of first calls, ours and dynamax's, from the newest record of `compiled.first_calls`, and from the first one."""

import csv
import json
from pathlib import Path

from fastscan.profiling.compiled.first_calls import CALLED, DYNAMAX, JITTED

_NONE = "Not measured yet."


def first_call_table(records: Path) -> str:
    """Makes the table, of the records in a folder and those below it.

    Ratios are of totals within one record. Those of the first record are of calls that were told that nothing is missing.
    """
    paths = sorted(records.rglob("*-first-calls.csv"), key=lambda path: path.name)
    if not paths:
        return _NONE
    first, newest = (_totals(path) for path in (paths[0], paths[-1]))
    about = json.loads(paths[-1].with_suffix(".json").read_text())
    before = json.loads(paths[0].with_suffix(".json").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['machine']}, {versions}, {about['date']}, commit {about['commit']}; median of {about['repeats']} processes.",
        "",
        f"| first call of | dynamax, in `jit` | called | in `jit` | called, at commit {before['commit']} |",
        "|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(case for case, _ in newest):
        theirs = newest[case, DYNAMAX]
        ratios = (_ratio(newest.get((case, way)), theirs) for way in (CALLED, JITTED))
        then = _ratio(first.get((case, CALLED)), first.get((case, DYNAMAX)))
        lines.append(f"| {case.removesuffix(' float32')} | {theirs:.2f} s | {' | '.join(ratios)} | {then} |")
    return "\n".join(lines)


def _totals(path: Path) -> dict[tuple[str, str], float]:
    return {(row["case"], row["way"]): float(row["total"]) for row in csv.DictReader(path.read_text().splitlines())}


def _ratio(ours: float | None, theirs: float | None) -> str:
    return "-" if ours is None or theirs is None else f"{ours / theirs:.2f}"
