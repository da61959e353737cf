"""The report's tables: what was measured on, the GPU kernels, and every row of a record."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fastscan.profiling.measure.operations import SEQUENTIAL
from fastscan.profiling.measure.rows import by_case
from fastscan.profiling.report.data import Record, seconds, significant, time, timed
from fastscan.profiling.report.figures import KERNEL_NAMES, Card
from fastscan.profiling.verdicts.judge import chosen

STEPS = 1_000_000
"""The steps of the kernels' floors."""


class Cell(NamedTuple):
    """A cell of a table: what it says, and the number it is sorted by; of words None."""

    text: str
    value: float | None = None


class Table(NamedTuple):
    """A table that sorts; ``numeric`` says which columns hold numbers, ``filtered`` whether it has a box to search in."""

    key: str
    caption: str
    columns: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[Cell]]
    filtered: bool = False


def heading(record: Record) -> str:
    """Names a machine."""
    device, machine, cores = record.machine
    return f"{machine}, {cores} cores" if device == "cpu" else f"{device} ({machine}, {cores} cores)"


def about(records: Sequence[Record]) -> Table:
    """Lists what every record was measured on."""
    columns = ("Machine", "Device", "Driver", "Commit", "Date", "Versions", "Files", "Rows", "Timed")
    rows = []
    for record in records:
        first = record.rows[0]
        versions = ", ".join(
            f"{name} {x}" for name in ("python", "jax", "jaxlib", "triton", "dynamax") if (x := getattr(first, name))
        )
        words = (
            f"{first.machine}, {first.cores} cores",
            first.device,
            first.driver,
            record.commit,
            max(r.date for r in record.rows),
        )
        counts = len(record.rows), sum(timed(row) for row in record.rows)
        rows.append([*map(Cell, (*words, versions, ", ".join(record.files))), *(Cell(f"{n:,}", n) for n in counts)])
    caption = "Records; + marks a commit with changes that were not committed"
    return Table("about", caption, columns, (False,) * 7 + (True,) * 2, rows)


def of_kernels(kernels: Iterable[Mapping[str, Any]], card: Card) -> Table:
    """Lists the GPU kernels that go through the steps of a series, and what bounds each."""
    columns = ("Kernel", "Of", "D or K", "m", "dtype", "Bound by", "Instructions a step", "Bytes a step")
    rows = []
    for row in kernels:
        moving = 1e6 * STEPS * row["bytes_per_step"] / card.bandwidth
        numbers = (row["per_step"], row["bytes_per_step"], row["floor_us"], moving, row["registers"], row["spilled_bytes"])
        words = [
            Cell(row["kernel"]),
            Cell(str(KERNEL_NAMES.get(row["family"], row["family"]))),
            *(Cell(str(row[n]), row[n]) for n in ("D", "m")),
        ]
        bound = Cell("bytes" if moving > row["floor_us"] else "instructions")
        rows.append([*words, Cell(row["dtype"]), bound, *(Cell(significant(x), x) for x in numbers)])
    columns = (*columns, "Issuing, µs", "Moving, µs", "Registers", "Spilled bytes")
    caption = f"Kernels at sm 90; floors for {STEPS:,} steps on {card.name}, from compiled code, not measured"
    return Table("kernels", caption, columns, (False, False, True, True, False, False, *(True,) * 6), rows, True)


def of_rows(key: str, record: Record) -> Table:
    """Lists every row of a record, also those without a time."""
    columns = ("Operation", "D or K", "m", "T", "B", "dtype", "Implementation", "Default", "p50", "p20 to p80")
    columns += ("Times dynamax sequential", "Error", "First call", "Temporary / in and out", "In flight", "Note")
    numeric = (False, True, True, True, True, False, False, False, *(True,) * 7, False)
    rows = []
    for case, found in by_case(record.rows).items():
        base, taken = found.get(SEQUENTIAL), chosen(found)
        for row in found.values():
            spread = row.p80 / row.p20 if row.p20 and row.p80 else None
            band = f"{seconds(row.p20)} to {seconds(row.p80)}" if row.p20 and row.p80 else ""
            gain = time(base) / time(row) if base and timed(base) and timed(row) else None
            share = row.temporary_bytes / row.bytes if row.temporary_bytes is not None and row.bytes else None
            rows.append(
                [
                    Cell(case.operation),
                    *(Cell(f"{n:,}", n) for n in (case.D, case.m, case.T, case.B)),
                    *map(Cell, (case.dtype, row.implementation, "default" if row is taken else "")),
                    _number(row.p50, seconds),
                    Cell(band, spread),
                    _number(gain, significant),
                    _number(row.error, lambda x: f"{x:.1e}" if x else "0"),
                    _number(row.first_call, seconds),
                    _number(share, significant),
                    _number(row.in_flight, seconds),
                    Cell(" ".join(filter(None, ("" if row.status == "ok" else f"{row.status}.", row.note)))),
                ]
            )
    return Table(key, f"{heading(record)}, commit {record.commit}", columns, numeric, rows, True)


def _number(x: float | None, text: Any) -> Cell:
    return Cell("") if x is None or math.isnan(x) else Cell(text(x), x)
