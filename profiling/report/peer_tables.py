"""Tables of what users would run instead: large models, dynamax's own and nonlinear ones, from records of `profiling.peers`."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from fastscan.profiling.peers.large import OURS, PLAIN


def large_table(records: Path) -> str:
    """Makes the table, of the records in a folder and those below it: milliseconds, and the best of the others over ours."""
    paths = sorted(records.rglob("*-large.csv"), key=lambda path: path.name)
    if not paths:
        return "Not measured yet."
    works: dict[str, dict[str, float]] = defaultdict(dict)
    for row in csv.DictReader(paths[-1].read_text().splitlines()):
        works[row["work"]][row["who"]] = float(row["seconds"])
    about = json.loads(paths[-1].with_suffix(".json").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['machine']}, {versions}, {about['date']}, commit {about['commit']}. Medians of {about['repeats']}, in ms.",
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
    path = _newest_adopted(records)
    if path is None:
        return "Not measured yet."
    about = json.loads(path.with_suffix(".json").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return "\n".join(
        [
            f"{about['machine']}, {versions}, dynamax {about['dynamax']}, {about['date']}, commit {about['commit']}.",
            "",
            "| call | dynamax | adopted | speed-up | first call: dynamax | adopted |",
            "|---|---|---|---|---|---|",
            *(f"| {' | '.join(cells)} |" for cells in _adopted(path)),
        ]
    )


def _newest_adopted(records: Path) -> Path | None:
    return max(records.rglob("*-adopted.csv"), key=lambda path: path.name, default=None)


def _adopted(path: Path) -> Iterator[tuple[str, ...]]:
    for row in csv.DictReader(path.read_text().splitlines()):
        theirs, ours, first_theirs, first = (float(row[k]) for k in ("dynamax", "ours", "dynamax_first", "first"))
        ratio = theirs / ours
        told = f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0f}"
        yield row["name"], _told(theirs), _told(ours), told, _told(first_theirs), _told(first)


def nonlinear_table(records: Path) -> str:
    """Makes the table of nonlinear models, likewise: warm calls and first ones."""
    path = max(records.rglob("*-nonlinear.csv"), key=lambda path: path.name, default=None)
    if path is None:
        return "Not measured yet."
    about = json.loads(path.with_suffix(".json").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    rows = csv.DictReader(path.read_text().splitlines())
    cells = ((row["work"], row["who"], _told(float(row["seconds"])), _told(float(row["first"]))) for row in rows)
    return "\n".join(
        [
            f"{about['machine']}, {versions}, dynamax {about['dynamax']}, {about['date']}, commit {about['commit']}. float32.",
            "",
            "| work | by | a call | the first |",
            "|---|---|---|---|",
            *(f"| {' | '.join(of_row)} |" for of_row in cells),
        ]
    )


def _told(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
