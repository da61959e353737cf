"""Tables of what users would run instead: large models, dynamax's own and nonlinear ones, from records of `profiling.peers`."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fastscan.profiling.measure.rows import newest_record, read_record
from fastscan.profiling.peers.large import OURS, PLAIN

NONE = "Not measured yet."


def large_table(records: Path) -> str:
    """Makes the table, of the records in a folder and those below it: milliseconds, and the best of the others over ours."""
    path = newest_record(records, "large")
    if path is None:
        return NONE
    about, measured_on, rows = read_record(path)
    works: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        works[row["work"]][row["who"]] = float(row["seconds"])
    lines = [
        f"{measured_on}. Medians of {about['repeats']}, in ms.",
        "",
        "| work | fastscan | others | the best of them over ours |",
        "|---|---|---|---|",
    ]
    for work, seconds in works.items():
        theirs = {who: s for who, s in seconds.items() if who not in (OURS, PLAIN)}
        told = ", ".join(f"{who} {_ms(s)}" for who, s in seconds.items() if who != OURS)
        best = f"{min(theirs.values()) / seconds[OURS]:.1f}" if theirs else "-"
        lines.append(f"| {work} | {_ms(seconds[OURS])} | {told} | {best} |")
    told = ", ".join(f"{what} {size / 1e6:.1f} MB" for what, size in about["memory"].items())
    lines += ["", f"Temporary memory at D=97, T=34,751: {told}."]
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def adopted_table(records: Path) -> str:
    """Makes the table of calls under adoption, likewise."""
    path = newest_record(records, "adopted")
    if path is None:
        return NONE
    _, measured_on, rows = read_record(path)
    return "\n".join(
        [
            f"{measured_on}.",
            "",
            "| call | dynamax | adopted | speed-up | first call: dynamax | adopted |",
            "|---|---|---|---|---|---|",
            *(f"| {' | '.join(cells)} |" for cells in _adopted(rows)),
        ]
    )


ADOPTED_FIRST = {
    "LinearGaussianSSM.fit_em": "`LinearGaussianSSM.fit_em` adopted, 4 states, 10,000 steps",
    "GaussianHMM.fit_em": "`GaussianHMM.fit_em` adopted, 5 states, 10 series of 10,000 steps",
    "LinearAutoregressiveHMM.smoother": "`LinearAutoregressiveHMM.smoother` adopted, 25 states, 10,000 steps",
}
"""Calls under adoption that a newcomer sees first, by how their names begin."""


def adopted_first(records: Path) -> list[str]:
    """Makes rows of such calls for the table that a newcomer sees first."""
    path = newest_record(records, "adopted")
    rows = [] if path is None else list(_adopted(read_record(path)[2]))
    told = {name: cells for name in ADOPTED_FIRST for cells in rows if cells[0].startswith(name)}
    return [f"| {ADOPTED_FIRST[name]} | {ours} | {theirs} | {ratio} |" for name, (_, theirs, ours, ratio, *_) in told.items()]


def moseq_table(records: Path) -> str:
    """Makes the table of jax-moseq's steps, likewise."""
    path = newest_record(records, "moseq")
    if path is None:
        return NONE
    _, measured_on, rows = read_record(path)
    cells = (
        (x["work"], x["who"], _told(float(x["seconds"])), _told(float(x["compiled"])), f"{1e-6 * float(x['temporary']):.3g} MB")
        for x in rows
    )
    return "\n".join(
        [
            f"{measured_on}. float32.",
            "",
            "| work | by | a call | compiled in | temporary memory |",
            "|---|---|---|---|---|",
            *(f"| {' | '.join(of_row)} |" for of_row in cells),
        ]
    )


def _adopted(rows: list[dict[str, str]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        theirs, ours, first_theirs, first = (float(row[k]) for k in ("dynamax", "ours", "dynamax_first", "first"))
        ratio = theirs / ours
        told = f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
        yield row["name"], _told(theirs), _told(ours), told, _told(first_theirs), _told(first)


def nonlinear_table(records: Path) -> str:
    """Makes the table of nonlinear models, likewise: warm calls and first ones."""
    path = newest_record(records, "nonlinear")
    if path is None:
        return NONE
    _, measured_on, rows = read_record(path)
    cells = ((row["work"], row["who"], _told(float(row["seconds"])), _told(float(row["first"]))) for row in rows)
    return "\n".join(
        [
            f"{measured_on}. float32.",
            "",
            "| work | by | a call | the first |",
            "|---|---|---|---|",
            *(f"| {' | '.join(of_row)} |" for of_row in cells),
        ]
    )


def _told(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
