"""Tables of what users would run instead: large models, dynamax's own and nonlinear ones, from records of `profiling.peers`."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from fastscan.profiling.measure.rows import newest_record, read_record
from fastscan.profiling.peers.large import OURS, PLAIN

NONE = "Not measured yet."
Record = list[dict[str, str]]
"""A record's rows, by the names of columns."""
Cells = Iterator[tuple[str, ...]]
"""The cells of a table's rows."""


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
    columns = "call", "dynamax", "adopted", "speed-up", "first call: dynamax", "adopted"
    return _table(records, "adopted", columns, _adopted)


def nonlinear_table(records: Path) -> str:
    """Makes the table of nonlinear models, likewise: warm calls and first ones, of float32."""
    return _table(records, "nonlinear", ("work", "by", "a call", "the first"), _nonlinear, " float32.")


def scans_table(records: Path) -> str:
    """Makes the table of affine and nonlinear recurrences, likewise, with the iterations of the latter."""
    return _table(records, "scans", ("work", "by", "a call", "the first", "iterations"), _scans, " float32.")


def moseq_table(records: Path) -> str:
    """Makes the table of jax-moseq's steps, likewise: of float32."""
    return _table(records, "moseq", ("work", "by", "a call", "compiled in", "temporary memory"), _moseq, " float32.")


def _table(records: Path, kind: str, columns: tuple[str, ...], cells: Callable[[Record], Cells], told: str = "") -> str:
    """Makes a table of the newest record of a kind, from the cells of its rows, below what it was measured on."""
    path = newest_record(records, kind)
    if path is None:
        return NONE
    _, measured_on, rows = read_record(path)
    head, *lines = (f"| {' | '.join(line)} |" for line in (columns, *cells(rows)))
    return "\n".join([f"{measured_on}.{told}", "", head, "|" + "---|" * len(columns), *lines])


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


def _adopted(rows: Record) -> Cells:
    for row in rows:
        theirs, ours, first_theirs, first = (float(row[k]) for k in ("dynamax", "ours", "dynamax_first", "first"))
        ratio = theirs / ours
        told = f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
        yield row["name"], _told(theirs), _told(ours), told, _told(first_theirs), _told(first)


def _nonlinear(rows: Record) -> Cells:
    for row in rows:
        yield row["work"], row["who"], _told(float(row["seconds"])), _told(float(row["first"]))


def _scans(rows: Record) -> Cells:
    for row, cells in zip(rows, _nonlinear(rows), strict=True):
        yield *cells, "" if row["iterations"] == "0" else row["iterations"]


def _moseq(rows: Record) -> Cells:
    for row in rows:
        seconds, compiled, temporary = (float(row[k]) for k in ("seconds", "compiled", "temporary"))
        yield row["work"], row["who"], _told(seconds), _told(compiled), f"{1e-6 * temporary:.3g} MB"


def _told(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
