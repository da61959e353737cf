"""The table of first calls, ours and dynamax's, from the newest record of `compiled.first_calls`, and from the first one."""

from pathlib import Path

from fastscan.profiling.compiled.first_calls import CALLED, DYNAMAX, JITTED
from fastscan.profiling.measure.rows import read_record

_NONE = "Not measured yet."


def first_call_table(records: Path) -> str:
    """Makes the table, of the records in a folder and those below it.

    Ratios are of totals within one record. Those of the first record are of calls that were told that nothing is missing.
    """
    paths = sorted(records.rglob("*-first-calls.csv"), key=lambda path: path.name)
    if not paths:
        return _NONE
    (before, _, then_rows), (about, measured_on, rows) = (read_record(path) for path in (paths[0], paths[-1]))
    first, newest = _totals(then_rows), _totals(rows)
    lines = [
        f"{measured_on}; median of {about['repeats']} processes.",
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


def _totals(rows: list[dict[str, str]]) -> dict[tuple[str, str], float]:
    return {(row["case"], row["way"]): float(row["total"]) for row in rows}


def _ratio(ours: float | None, theirs: float | None) -> str:
    return "-" if ours is None or theirs is None else f"{ours / theirs:.2f}"
