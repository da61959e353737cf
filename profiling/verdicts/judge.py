"""Whether the automatic choice was a good one: against the best that was measured, and against dynamax's sequential code."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from fastscan.profiling.measure.cases import Case, held_out
from fastscan.profiling.measure.operations import PUBLIC, SEQUENTIAL
from fastscan.profiling.measure.rows import Row, by_case
from fastscan.profiling.measure.run import is_default


class Judgement(NamedTuple):
    """The automatic choice in one case, by the table in force now: its time over our best one's and dynamax's (None: no such).

    ``open``: the samples' spread, from the 20th to the 80th percentile, leaves open whether another one is faster.
    """

    case: Case
    chosen: str
    best: str
    over_best: float
    over_dynamax: float | None
    open: bool


def chosen(measured: Mapping[str, Row]) -> Row | None:
    """Of one case's rows by implementation: what None takes by the table in force now, or took then, if that is known."""
    timed = {name: row for name, row in measured.items() if row.status == "ok" and row.p50}
    ours = [row for name, row in timed.items() if name != PUBLIC and not name.startswith("dynamax")]
    now = [row for row in ours if is_default(row.case, row.implementation, row.device)]
    then = [row for row in ours if row.default]
    return min(now or then, key=_p50, default=None)


def verdicts(rows: Iterable[Row]) -> list[Judgement]:
    """Of every case in which what None takes was measured beside others of ours."""
    found = []
    for case, measured in by_case(rows).items():
        timed = {name: row for name, row in measured.items() if row.p50}
        ours = {name: row for name, row in timed.items() if name != PUBLIC and not name.startswith("dynamax")}
        taken = chosen(ours)
        if taken is None or len(ours) < 2:
            continue
        best = min(ours.values(), key=_p50)
        theirs = timed.get(SEQUENTIAL)
        over_dynamax = None if theirs is None else _p50(taken) / _p50(theirs)
        overlap = (taken.p20 or 0) <= (best.p80 or 0)
        over_best = _p50(taken) / _p50(best)
        found.append(Judgement(case, taken.implementation, best.implementation, over_best, over_dynamax, overlap))
    return found


def judge(rows: Iterable[Row]) -> list[str]:
    """The verdicts in words: a summary of the held-out cases and of all, and every case beyond 1.15 and 1.1 times."""
    all_of_them = verdicts(rows)
    lines = []
    for name, group in (("held out", set(held_out())), ("all", {v.case for v in all_of_them})):
        mine = [v for v in all_of_them if v.case in group]
        if mine:
            over = np.array([v.over_best for v in mine])
            lines.append(f"{name}: {len(mine)} cases; over our best: median {np.median(over):.2f}, worst {over.max():.2f}")
    for v in all_of_them:
        if v.over_best > 1.15:
            spread = ", within the spread" if v.open else ""
            lines.append(f"{v.case}: {v.chosen} takes {v.over_best:.2f} of {v.best}'s time{spread}")
        if v.over_dynamax is not None and v.over_dynamax > 1.1:
            lines.append(f"{v.case}: {v.chosen} takes {v.over_dynamax:.2f} of dynamax's sequential time")
    return lines


def _p50(row: Row) -> float:
    assert row.p50 is not None  # only rows with a time come here
    return row.p50
