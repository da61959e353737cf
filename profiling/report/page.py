"""The report: one page of HTML, complete in itself, from the records of `measure`, of kernels and of crossovers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from fastscan.dispatch import crossovers
from fastscan.profiling.measure.operations import PARALLEL, SEQUENTIAL
from fastscan.profiling.measure.rows import RECORDS, by_case
from fastscan.profiling.report import figures as report_figures
from fastscan.profiling.report.data import (
    Record,
    gather,
    latest,
    median,
    read_kernels,
    seconds,
    significant,
    time,
    timed,
)
from fastscan.profiling.report.figures import ISSUED, Card, Figure, card
from fastscan.profiling.report.gpu_tables import ceilings
from fastscan.profiling.report.tables import Table, about, heading, of_kernels, of_rows
from fastscan.profiling.verdicts.judge import chosen


class Group(NamedTuple):
    """A section's part on one machine."""

    heading: str
    note: str = ""
    figures: Sequence[Figure] = ()
    table: Table | None = None


class Section(NamedTuple):
    """One section of the page."""

    key: str
    heading: str
    text: str
    groups: Sequence[Group]


def write_report(out: Path, records: Path = RECORDS, table: dict | None = None) -> Path:
    """Writes ``report.html``: what the records say, in figures and tables; the same records make the same page.

    Args:
        out: folder, which is made if it is missing.
        records: folder with records of `measure` and kernel reports, as `measure.rows.RECORDS`.
        table: the crossover table; default: the committed one.

    Returns:
        The page's path.

    Raises:
        ValueError: the folder holds no record of `measure`.
    """
    found = gather(records)
    if not found:
        raise ValueError(f"{records} holds no measured/*.csv with rows: run `fastscan measure` first.")
    lengths = crossovers.committed_table() if table is None else table
    kernels, source = read_kernels(records)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["svg"] = Markup
    template = environment.from_string(Path(__file__).with_name("page.html.jinja").read_text())
    newest = latest(found)
    page = template.render(
        summary=[line for record in newest for line in summary(record)],
        sections=sections(found, newest, lengths, kernels, source, card(ceilings(records))),
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    path.write_text(page + "\n", encoding="utf-8")
    return path


def summary(record: Record) -> list[str]:
    """Sentences on one machine's record: where our default is sooner than dynamax's faster code, and where it is not."""
    place, cases = heading(record), by_case(record.rows)
    gains, own = {}, []
    for case, found in cases.items():
        ours, theirs = chosen(found), [time(r) for name in (SEQUENTIAL, PARALLEL) if timed(r := found.get(name)) and r]
        if ours and theirs:
            gains[case] = min(theirs) / time(ours)
        sequential = found.get("sequential")
        if ours and sequential and timed(sequential):
            own.append(time(sequential) / time(ours))
    lines = []
    if gains:
        ranked = sorted(gains, key=lambda case: gains[case])
        won = [case for case in ranked if gains[case] > 1]
        middle = significant(median(list(gains.values())), 2)
        lines.append(
            f"On {place}, our default is sooner than the faster of dynamax's codes in {len(won)} of {len(gains)} cases: "
            f"{middle} times in the median, {significant(gains[ranked[-1]], 2)} times at most ({ranked[-1]})."
        )
        if len(won) < len(gains):
            lost = "; ".join(
                f"{case} ({significant(gains[case], 2)} times)" for case in ranked[: min(3, len(gains) - len(won))]
            )
            lines.append(
                f"Where it is not sooner there, {'the worst first' if len(gains) - len(won) > 1 else 'one case'}: {lost}."
            )
    elif own:
        lines.append(
            f"On {place}, no dynamax was measured; our default is {significant(median(own), 2)} times as fast as "
            f"our own sequential code{f' in the median of {len(own)} cases' if len(own) > 1 else ', in one case'}."
        )
    else:
        lines.append(f"On {place}, no case has times that can be compared.")
    bad = [row for row in record.rows if row.status not in ("ok", "skipped")]
    if bad:
        kinds = ", ".join(f"{sum(r.status == s for r in bad)} {s}" for s in sorted({r.status for r in bad}))
        lines.append(f"Without a time there, though it was tried: {kinds}.")
    return lines


def sections(
    records: Sequence[Record],
    newest: Sequence[Record],
    table: Mapping[str, Any],
    kernels: Sequence[dict],
    source: str,
    card: Card,
) -> list[Section]:
    """Lists the page's sections, in order."""

    def each(draw: Any, prefix: str, missing: str) -> list[Group]:
        """Makes a group for each machine; the prefix keeps ids apart."""
        groups = []
        for number, record in enumerate(newest):
            figures = draw(f"{prefix}{number}", record.rows)
            groups.append(Group(heading(record), "" if figures else missing, figures))
        return groups

    curves = each(report_figures.seed_curves, "seed", "The record has none of these cases.")
    curves = [
        group if any(row.implementation in (SEQUENTIAL, PARALLEL) and timed(row) for row in record.rows)
        else group._replace(note=group.note or "The record has no times of dynamax, so there are no speed-ups over it.")
        for group, record in zip(curves, newest, strict=True)
    ]  # fmt: skip
    balance = significant(card.bandwidth / ISSUED, 2)
    roofs = report_figures.rooflines(kernels, card)
    return [
        Section("measured-on", "What was measured", "Every record, the newest last.", [Group("", table=about(records))]),
        Section(
            "curves",
            "Speed-up curves",
            "The curves of the two notebooks that the project began with: parallel against serial code. Times are medians of "
            "warm, compiled calls that are waited for; the wide grey line is what fastscan chooses by itself.",
            curves,
        ),
        Section(
            "crossover",
            "Crossover lengths",
            "The length from which splitting a series wins over going through it step by step, by size and batch; "
            "smaller, the range that is left open. Stronger colour: sooner. Grey: at no length measured.",
            _crossovers(table),
        ),
        Section(
            "roofline",
            "GPU kernels: bytes or instructions",
            f"From compiled code for sm 90, not measured. Below the line, issuing a kernel's instructions takes {card.name} "
            f"longer than moving its bytes at {card.bandwidth / 1e12:.1f} TB/s; the two are equal at {balance} bytes an "
            f"instruction. A million steps of 100 instructions take {seconds(1e8 / ISSUED)} at least, 100 bytes "
            f"{seconds(1e8 / card.bandwidth)}.",
            [Group("", f"Compiled from: {source}.", roofs, of_kernels(kernels, card))]
            if kernels
            else [Group("", "There is no record of the kernel report: `python -m fastscan.profiling kernels` makes one.")],
        ),
        Section(
            "accuracy",
            "Accuracy against time",
            "The largest error of any result against a float64 reference, over that result's largest entry; of sampled or most "
            "likely states, the share that differs. One point a case and implementation.",
            each(report_figures.accuracy, "accuracy", "The record has no errors."),
        ),
        Section("memory", "Memory", "", each(report_figures.memory, "memory", "The record has no sizes of memory.")),
        Section("compile", "Compile time", "", each(report_figures.compile_times, "compile", "The record has no first calls.")),
        Section(
            "history",
            "History",
            "The same cases over the commits that were measured on one machine.",
            _histories(records, newest),
        ),
        Section(
            "rows",
            "All rows",
            "The newest record of every machine. A column's heading sorts by it; the box keeps rows that have all its words.",
            [Group(heading(record), table=of_rows(f"rows{number}", record)) for number, record in enumerate(newest)],
        ),
    ]


def _histories(records: Sequence[Record], newest: Sequence[Record]) -> list[Group]:
    groups = []
    for number, record in enumerate(newest):
        same = [other for other in records if other.machine == record.machine]
        figures = report_figures.history(f"history{number}", same) if len(same) > 1 else []
        note = "" if len(same) > 1 else f"There is one commit's record so far, {record.commit}; curves begin with a second one."
        groups.append(Group(heading(record), note, figures))
    return groups


def _crossovers(table: Mapping[str, Any]) -> list[Group]:
    groups = []
    for number, (device, entry) in enumerate(table.get("devices", {}).items()):
        figures = report_figures.heat_maps(f"cross{number}", entry.get("families", {}))
        measured = entry.get("measured", {})
        told = [f"{name} {measured[name]}" for name in ("commit", "date") if name in measured]
        note = ", ".join([str(measured.get("machine", "")), *told]).strip(", ")
        if figures:
            groups.append(Group(device, f"Measured on {note}." if note else "", figures))
    return groups or [Group("", "The crossover table holds no lengths: `fastscan fit` fits them.")]
