"""The report's figures: which lines and points of the records each of them shows."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fastscan.profiling.measure.cases import MEASURED_BY, Case
from fastscan.profiling.measure.operations import SEQUENTIAL
from fastscan.profiling.measure.rows import Row, by_case
from fastscan.profiling.report.data import Record, best, crossing, over_lengths, seconds, significant, time
from fastscan.profiling.report.svg import DEFAULT, STYLES, HeatCell, Point, draw_heat, draw_lines, draw_points

SEEDS = {
    "Smoothing, linear-Gaussian, D\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}4, m\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}2": Case(
        "lgssm_smoother", 4, 2, 0
    ),
    "Sampling an HMM's path, K\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}5": Case("hmm_posterior_sample", 5, 0, 0),
    "Sampling an HMM's path, K\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}2": Case("hmm_posterior_sample", 2, 0, 0),
}
"""The curves of the two notebooks that the project began with; T is what they run over."""
KERNEL_NAMES = {
    "smoother": "Linear-Gaussian smoother",
    "likelihood": "Linear-Gaussian likelihood",
    "score": "Linear-Gaussian gradient",
    "sampler": "Linear-Gaussian sampler",
    "hmm_smoother": "HMM smoother",
    "hmm_mode": "HMM, most likely path",
    "hmm_sampler": "HMM sampler",
}
FAMILY_NAMES = {
    "lgssm": "Linear-Gaussian smoother",
    "lgssm_varying": "the same, dynamics that vary",
    "hmm": "HMM smoother",
    "hmm_mode": "HMM, most likely path",
    "hmm_sample": "HMM, posterior sample",
}
ISSUED = 32 * 132 * 4 * 1.98e9
"""Instructions of a thread that an H100 or H200 issues a second: warps of 32, 4 schedulers on 132 processors each, 1.98 GHz."""


class Card(NamedTuple):
    """A GPU that kernels' costs are held against: its name, and the bytes a second that it copies."""

    name: str
    bandwidth: float


H200 = Card("an H200", 4.3e12)
"""Measured apart from any run that has a record."""


def card(ceilings: Mapping[str, Any]) -> Card:
    """Finds the card whose ceilings a run on a GPU has measured, if `ISSUED` is right of it; else an H200."""
    name, bandwidth = ceilings.get("device", ""), ceilings.get("copy_bytes_per_second")
    return Card(name, bandwidth) if isinstance(bandwidth, float) and ("H100" in name or "H200" in name) else H200


class Figure(NamedTuple):
    """One figure of the page."""

    title: str
    caption: str
    svg: str


def seed_curves(key: str, rows: Sequence[Row]) -> list[Figure]:
    """Draws time per call against length, and how many times faster than dynamax's sequential code that is."""
    figures = []
    for number, (title, case) in enumerate(SEEDS.items()):
        lines = over_lengths(rows, case)
        if not lines:
            continue
        points = {n: [Point(r.T, time(r), r.p20, r.p80) for r in found] for n, found in lines.items()}
        alt = f"{title}: time of a compiled call against the length of the series, for {_listed(lines)}."
        svg = draw_lines(f"{key}-time-{number}", alt, points, "time per call", unit="s")
        figures.append(Figure(f"{title}: time per call", _ends(lines), svg))
        base = {r.T: time(r) for r in lines.get(SEQUENTIAL, [])}
        gains = {
            name: [Point(r.T, base[r.T] / time(r), *_gain_band(base[r.T], r)) for r in found if r.T in base]
            for name, found in lines.items()
            if name != SEQUENTIAL
        }
        gains = {name: found for name, found in gains.items() if found}
        if gains:
            alt = f"{title}: how many times faster than dynamax's sequential code {_listed(gains)} are, against length."
            svg = draw_lines(f"{key}-gain-{number}", alt, gains, "times faster", level=1)
            figures.append(Figure(f"{title}: speed-up", "Times sooner than dynamax's sequential code, the line at 1.", svg))
    return figures


def heat_maps(key: str, families: Mapping[str, Any]) -> list[Figure]:
    """Draws the lengths from which an implementation wins, over sizes and batches."""
    figures = []
    for family, name in FAMILY_NAMES.items():
        slices = families.get(family)
        if not isinstance(slices, list):
            continue
        for rival in sorted({r for s in slices for r in s.get("wins", {})}):
            # Chunks are what the section is about; of the others only those that win somewhere.
            if rival != "chunked" and all(s["wins"].get(rival, {}).get("from") is None for s in slices):
                continue
            cells: dict[tuple[str, str], HeatCell] = {}
            for at in sorted((s for s in slices if rival in s["wins"]), key=lambda s: (s["dtype"], s["D"], s["m"], s["B"])):
                double = "" if at["dtype"] == "float32" else f", {at['dtype']}"
                row = (f"K = {at['D']}" if family.startswith("hmm") else f"D = {at['D']}, m = {at['m']}") + double
                cells[row, f"B = {at['B']:,}"] = _heat_cell(at["wins"][rival], max(at["T"], default=0))
            rows = list(dict.fromkeys(row for row, _ in cells))
            columns = sorted({c for _, c in cells}, key=lambda c: int(c[4:].replace(",", "")))
            told = "; ".join(f"{r}, {c}: {cell.text} {cell.detail}".strip() for (r, c), cell in cells.items())
            if cells:
                svg = draw_heat(
                    f"{key}-from-{family}-{rival}", f"{name}, length from which {rival} wins. {told}.", rows, columns, cells
                )
                figures.append(Figure(f"{name}: {rival}", f"Steps from which {rival} beats sequential code.", svg))
    return figures


def rooflines(kernels: Iterable[Mapping[str, Any]], card: Card) -> list[Figure]:
    """Draws a figure for each family of kernels: bytes a step over instructions a step, in float32."""
    families: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in kernels:
        if row["dtype"] == "float32":
            kernel = re.sub(r"paths_of_\d+", "paths_of_K", row["kernel"])
            families.setdefault(row["family"], {}).setdefault(kernel, []).append((row["per_step"], row["bytes_per_step"]))
    figures = []
    for family, name in KERNEL_NAMES.items():
        if not (groups := families.get(family)):
            continue
        bound = [y > x * card.bandwidth / ISSUED for found in groups.values() for x, y in found]
        alt = f"Kernels, {name}: bytes over instructions of a time step; {sum(bound)} of {len(bound)} bound by bytes."
        svg = draw_points(
            f"roofline-{family}", alt, groups, "instructions a step", "bytes a step",
            slope=card.bandwidth / ISSUED, sides=("bound by bytes", "bound by instructions"),
        )  # fmt: skip
        caption = f"{sum(bound)} of {len(bound)} points bound by bytes. From compiled code, not measured."
        figures.append(Figure(name, caption, svg))
    return figures


def accuracy(key: str, rows: Iterable[Row]) -> list[Figure]:
    """Draws error over time a step, for all float32 cases."""
    figures = []
    for prefix, name in (("lgssm", "Linear-Gaussian models"), ("hmm", "Hidden Markov models")):
        groups: dict[str, list[tuple[float, float]]] = {}
        for case, found in by_case(r for r in rows if r.operation.startswith(prefix) and r.dtype == "float32").items():
            for line, row in best(found).items():
                if line != DEFAULT and row.error is not None and math.isfinite(row.error):
                    groups.setdefault(line, []).append((time(row) / (case.T * case.B), row.error))
        groups = {line: groups[line] for line in STYLES if line in groups}
        if groups:
            alt = f"{name}: error against time a step, for {_listed(groups)}."
            svg = draw_points(f"{key}-error-{prefix}", alt, groups, "time per step and sequence", "error", unit="s")
            figures.append(Figure(f"{name}: error against time", "Every float32 case; further down and left is better.", svg))
    return figures


def memory(key: str, rows: Iterable[Row]) -> list[Figure]:
    """Draws what is allocated beside arguments and results, over their size, against length."""

    def point(row: Row) -> Point | None:
        return Point(row.T, row.temporary_bytes / row.bytes) if row.temporary_bytes is not None and row.bytes else None

    drawn = _seeds(f"{key}-memory", rows, point, "temporary memory", "temporary / in and out", log=False)
    return [Figure(title, "What XLA allocates beside arguments and results, over their size.", svg) for title, svg in drawn]


def compile_times(key: str, rows: Iterable[Row]) -> list[Figure]:
    """Draws seconds of the first call against length."""

    def point(row: Row) -> Point | None:
        return Point(row.T, row.first_call) if row.first_call else None

    drawn = _seeds(f"{key}-first", rows, point, "first call", "first call", unit="s")
    return [Figure(title, "Tracing, compiling and one run.", svg) for title, svg in drawn]


def history(key: str, records: Sequence[Record]) -> list[Figure]:
    """Draws time a step of the default, and the length from which chunks win, over the commits of one machine."""
    names = [record.commit[:8] for record in records]
    steps: dict[str, list[Point]] = {}
    wins: dict[str, list[Point]] = {}
    for family, operation in MEASURED_BY.items():
        case = Case(operation, *((4, 2) if family == "lgssm" else (5, 0)), 0)
        lines = [over_lengths(record.rows, case) for record in records]
        lengths = [{row.T for row in found.get(DEFAULT, [])} for found in lines]
        common = set.intersection(*(found for found in lengths if found)) if any(lengths) else set()
        for place, found in enumerate(lines):
            at = next((row for row in found.get(DEFAULT, []) if common and max(common) == row.T), None)
            if at:
                name = f"{FAMILY_NAMES[family]}, T = {at.T:,}"
                steps.setdefault(name, []).append(Point(place, *(x / at.T for x in (time(at), at.p20, at.p80) if x)))
            length = crossing(found.get("our sequential", []), found.get("our chunked", []))
            if length:
                wins.setdefault(FAMILY_NAMES[family], []).append(Point(place, length))
    figures = []
    for part, lines_, title, ylabel, unit in (
        ("steps", steps, "Time a step of our default", "time per step", "s"),
        ("wins", wins, "Length from which chunks win", "T* (steps)", ""),
    ):
        if lines_:
            alt = f"{title} over the commits {', '.join(names)}, for {_listed(lines_)}."
            svg = draw_lines(f"{key}-{part}", alt, lines_, ylabel, unit=unit, xlabel="commit, oldest first", names=names)
            figures.append(Figure(title, "Models of D = 4, m = 2 and of K = 5, one sequence, float32.", svg))
    return figures


def _seeds(
    key: str, rows: Iterable[Row], point: Callable[[Row], Point | None], what: str, ylabel: str, **how: Any
) -> Iterable[tuple[str, str]]:
    """Draws a figure for each of `SEEDS` that has any points: title and figure."""
    rows = list(rows)
    for number, (title, case) in enumerate(SEEDS.items()):
        lines = {n: [p for r in f if (p := point(r))] for n, f in over_lengths(rows, case).items() if n != DEFAULT}
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            alt = f"{title}: {what} against the length of the series, for {_listed(lines)}."
            yield f"{title}: {what}", draw_lines(f"{key}-{number}", alt, lines, ylabel, **how)


def _gain_band(base: float, row: Row) -> tuple[float | None, float | None]:
    """Returns the band of a gain, with the base's median, as the bands of the two are measured apart."""
    return (base / row.p80, base / row.p20) if row.p20 and row.p80 else (None, None)


def _heat_cell(win: Mapping[str, Any], longest: int) -> HeatCell:
    start = win.get("from")
    if start is None:
        return HeatCell("not by", f"T = {longest:,}", None)
    low, high = (_rough(x) if x is not None else "" for x in win.get("band") or (None, None))
    band = f"{low}\N{EN DASH}{high}" if low and high else f"above {low}" if low else f"below {high}" if high else ""
    strength = min(max(1 - (math.log10(max(start, 1)) - 1) / 4, 0.0), 1.0)
    return HeatCell(_rough(start), band, strength)


def _rough(length: float) -> str:
    return significant(float(f"{length:.2g}"), 2)


def _ends(lines: Mapping[str, Sequence[Row]]) -> str:
    """Finds the times at the longest series that most lines have."""
    counts: dict[int, int] = {}
    for found in lines.values():
        for row in found:
            counts[row.T] = counts.get(row.T, 0) + 1
    T = max(counts, key=lambda T: (counts[T], T))
    told = [f"{name} {seconds(time(row))}" for name, found in lines.items() for row in found if row.T == T]
    return f"Bands from p20 to p80. At T = {T:,}: {', '.join(told)}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
