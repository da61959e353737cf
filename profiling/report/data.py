"""The report's data, from the records: the newest of each machine, and of each case the rows that figures show."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.rows import Row, all_records, by_case
from fastscan.profiling.report.svg import DEFAULT, STYLES
from fastscan.profiling.verdicts.judge import chosen

_SM = 90
_OURS = {"sequential": "our sequential", "associative": "our associative", "pallas": "our kernels"}


class Record(NamedTuple):
    """A record of one machine at one commit, maybe in several files."""

    files: tuple[str, ...]
    rows: list[Row]

    @property
    def machine(self) -> tuple[str, str, int]:
        """Device, machine and cores."""
        return self.rows[0].device, self.rows[0].machine, self.rows[0].cores

    @property
    def commit(self) -> str:
        """With "+" if the checkout had changes."""
        return self.rows[0].commit + ("+" if self.rows[0].dirty else "")


def label(implementation: str) -> str | None:
    """Returns the legend's name of an implementation; None for those that repeat another one."""
    return (
        "our chunked"
        if implementation.startswith("chunked")
        else _OURS.get(implementation, implementation if implementation in STYLES else None)
    )


def timed(row: Row | None) -> bool:
    """Tells whether the row has a time."""
    return row is not None and row.status == "ok" and row.p50 is not None and row.p50 > 0


def time(row: Row) -> float:
    """Returns the median of a row that is `timed`."""
    return row.p50 or math.nan


def best(found: Mapping[str, Row]) -> dict[str, Row]:
    """Sorts one case's rows by the legend's names; of several numbers of chunks the fastest counts."""
    out: dict[str, Row] = {}
    for row in sorted(filter(timed, found.values()), key=time):
        name = label(row.implementation)
        if name:
            out.setdefault(name, row)
    default = chosen(found)
    return {name: row for name in STYLES if (row := default if name == DEFAULT else out.get(name)) is not None}


def over_lengths(rows: Iterable[Row], case: Case) -> dict[str, list[Row]]:
    """Finds the rows of a case with any T, by the legend's names, in the order of T."""
    found = by_case(r for r in rows if r.case._replace(T=0) == case._replace(T=0))
    lines: dict[str, list[Row]] = {}
    for at in sorted(found):
        for name, row in best(found[at]).items():
            lines.setdefault(name, []).append(row)
    return {name: lines[name] for name in STYLES if name in lines}


def crossing(first: Sequence[Row], second: Sequence[Row]) -> float | None:
    """Finds the length from which the second is faster than the first at every longer one; between lengths, on logarithms."""
    gains = {a.T: math.log(time(a) / time(b)) for a in first for b in second if a.T == b.T}
    lengths, start = sorted(gains), None
    for T in reversed(lengths):
        if gains[T] <= 0:
            break
        start = T
    if start is None or start == lengths[0]:
        return start
    before = lengths[lengths.index(start) - 1]
    share = -gains[before] / (gains[start] - gains[before])
    return before * (start / before) ** share


def gather(folder: Path) -> list[Record]:
    """Reads the records of a folder, oldest first: files of one machine and commit together, a file of several apart."""
    parts: dict[tuple, tuple[list[str], list[Row]]] = {}
    for path, rows in all_records(folder):
        for row in rows:
            names, kept = parts.setdefault((row.device, row.machine, row.cores, row.commit, row.dirty), ([], []))
            kept.append(row)
            if path.name not in names:
                names.append(path.name)
    records = [Record(tuple(names), rows) for names, rows in parts.values()]
    return sorted(records, key=lambda record: (max(row.date for row in record.rows), record.files, record.commit))


def latest(records: Iterable[Record]) -> list[Record]:
    """Finds the newest record of every machine."""
    return list({record.machine: record for record in records}.values())


def kernel_rows(folder: Path) -> list[dict[str, str]]:
    """Reads the rows of all kernel reports."""
    paths = sorted((folder / "kernels").glob("*.csv"))
    return [row for path in paths for row in csv.DictReader(path.read_text().splitlines())]


def read_kernels(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Reads the rows of kernel reports for sm 90 that go through the steps of a series, and what they were compiled with."""
    rows, sources = {}, []
    for path in sorted((folder / "kernels").glob("*.csv")):
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                numbers = {name: float(line[name]) for name in ("per_step", "bytes_per_step", "floor_us")}
                whole = {name: int(line[name]) for name in ("D", "m", "sm", "registers", "spilled_bytes")}
                if whole["sm"] == _SM and numbers["per_step"] and numbers["bytes_per_step"]:
                    row = line | numbers | whole
                    rows[tuple(row[name] for name in ("family", "kernel", "D", "m", "dtype"))] = row
        ran_on = path.with_suffix(".json")
        if ran_on.exists():
            read = json.loads(ran_on.read_text())
            sources.append(f"{path.name} (commit {read.get('commit', 'unknown')}, Triton {read.get('triton', 'unknown')})")
        else:
            sources.append(path.name)
    return list(rows.values()), ", ".join(sources)


def seconds(x: float, digits: int = 3) -> str:
    """Writes a time in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if x >= scale * 0.9995:
            return f"{significant(x / scale, digits)} {unit}"
    return f"{significant(x / 1e-9, digits)} ns"


def significant(x: float, digits: int = 3) -> str:
    """Writes a number with at most so many digits behind which there is something, and no exponent."""
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    behind = max(digits - 1 - math.floor(math.log10(abs(x))), 0)
    text = f"{x:,.{behind}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def median(values: Sequence[float]) -> float:
    """Computes the median of ratios: between the two in the middle, their geometric mean."""
    ranked = sorted(values)
    return (ranked[(len(ranked) - 1) // 2] * ranked[len(ranked) // 2]) ** 0.5
