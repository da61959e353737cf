"""The record of what was measured: a line of CSV for every case and implementation, with what it was measured on."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from platformdirs import user_data_path

from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.machine import checkout

RECORDS = user_data_path("fastscan") / "records" if checkout() is None else Path(__file__).parents[1] / "records"
"""Where records are, each kind in a folder of its own: in a checkout those that are committed, else this user's own.

``measured`` holds those of `measure`; ``gpu`` what else a run on a GPU found; ``kernels`` kernel reports; ``ahead-of-time``
what XLA made of public calls; ``predictions`` their times as a model has them; ``metropolis`` and ``slds`` what demonstrations
measured. Those in ``apart`` are of machines that others are not compared with, and nothing reads them."""


class Row(NamedTuple):
    """One implementation of one case, on one machine at one commit; what was not measured is None.

    Attributes:
        operation, D, m, T, B, dtype: the case; see `fastscan.profiling.measure.cases.Case`.
        implementation: a name that `fastscan.dispatch` knows, "dynamax sequential" or "dynamax parallel"; "public call" is our
            function as a user calls it, where all others are under one `jax.jit`.
        default: whether it is what None chose.
        status: "ok", "wrong" (too far from the reference, so not timed), "failed", "crashed" or "skipped".
        error: the largest one of any result, over the largest entry of that result; of sampled or most likely states, see
            `fastscan.profiling.measure.operations`.
        reference: what it is held against, in words.
        first_call: seconds to trace, compile and run once.
        p20, p50, p80: seconds of a warm call that is waited for.
        in_flight: seconds of a call among many that are waited for together; measured on GPUs.
        repeats: how many times were taken.
        bytes: of arguments and results.
        temporary_bytes: what XLA allocates beside them.
        note: why there is no time, in words.
        device, machine, cores, driver: what it ran on; ``device`` as dispatch has it.
        python, jax, jaxlib, triton, dynamax: versions.
        commit, dirty, date: of the code, and of the day.
    """

    operation: str
    D: int
    m: int
    T: int
    B: int
    dtype: str
    implementation: str
    default: bool
    status: str
    error: float | None
    reference: str
    first_call: float | None
    p20: float | None
    p50: float | None
    p80: float | None
    in_flight: float | None
    repeats: int | None
    bytes: int | None
    temporary_bytes: int | None
    note: str
    device: str
    machine: str
    cores: int
    driver: str
    python: str
    jax: str
    jaxlib: str
    triton: str
    dynamax: str
    commit: str
    dirty: bool
    date: str

    @property
    def case(self) -> Case:
        """The case that was measured, apart from how and where."""
        return Case(self.operation, self.D, self.m, self.T, self.B, self.dtype)


_PARSERS: dict[Any, Any] = {str: str, int: int, float: float, bool: lambda text: text == "True"}
_PARSERS |= {kind | None: lambda text, kind=kind: kind(text) if text else None for kind in (int, float)}


def read_text(text: str, name: str) -> list[Row]:
    """Reads the rows of a record's text.

    Raises:
        ValueError: it is none; ``name`` is what the message calls it.
    """
    lines = csv.reader(io.StringIO(text))
    if tuple(next(lines, ())) != Row._fields:
        raise ValueError(f"{name} is no record of `measure`: its first line does not name the columns of one.")
    parsers = [_PARSERS[kind] for kind in Row.__annotations__.values()]
    return [Row(*(parse(cell) for parse, cell in zip(parsers, line, strict=True))) for line in lines if line]


def write_record(path: Path, about: dict[str, Any], fields: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a table as CSV, with four digits of every float, and beside it as JSON what it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(fields)
        writer.writerows([f"{x:.4g}" if isinstance(x, float) else x for x in row] for row in rows)


def newest_record(folder: Path, kind: str) -> Path | None:
    """Finds the newest table of a kind that `write_record` wrote to a folder, or below it; names begin with their time."""
    return max(folder.rglob(f"*-{kind}.csv"), key=lambda path: path.name, default=None)


def read_record(path: Path) -> tuple[dict[str, Any], str, list[dict[str, str]]]:
    """Reads what `write_record` wrote: what a table was measured on, that in words, and its rows by the names of columns."""
    about = json.loads(path.with_suffix(".json").read_text())
    versions = about["versions"] | {name: about[name] for name in ("dynamax",) if name in about}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    told = f"{about['machine']}, {told}, {about['date']}, commit {about['commit']}"
    return about, told, list(csv.DictReader(path.read_text().splitlines()))


def read(path: Path) -> list[Row]:
    """Reads the rows of a file; none if there is no such file."""
    return read_text(path.read_text(), str(path)) if path.exists() else []


def append(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to a file, which is made with its first ones: all at once, so that a reader finds all or none of them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        writer.writerow(Row._fields)
    writer.writerows([_cell(x) for x in row] for row in rows)
    partial = path.with_suffix(".part")
    partial.write_text((path.read_text() if path.exists() else "") + text.getvalue())
    partial.replace(path)


def by_case(rows: Iterable[Row]) -> dict[Case, dict[str, Row]]:
    """Sorts rows by case and implementation; of several, the last counts."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.implementation] = row
    return found


def all_records(folder: Path) -> Iterator[tuple[Path, list[Row]]]:
    """Reads every record of `measure` among others, by name."""
    for path in sorted((folder / "measured").glob("*.csv")):
        yield path, read(path)


def _cell(x: Any) -> Any:
    return f"{x:.6g}" if isinstance(x, float) else "" if x is None else x
