"""The tables of the READMEs, from records: all between ``<!-- table: NAME -->`` and ``<!-- end -->`` is written by this."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastscan.profiling.measure.cases import BATCH, Case
from fastscan.profiling.measure.operations import PARALLEL, PUBLIC, SEQUENTIAL
from fastscan.profiling.measure.rows import RECORDS, Row, all_records, by_case
from fastscan.profiling.report.data import kernel_rows
from fastscan.profiling.report.demo_tables import demo_tables
from fastscan.profiling.report.first_call_table import first_call_table
from fastscan.profiling.report.gpu_tables import gpu_texts
from fastscan.profiling.report.peer_tables import (
    adopted_first,
    adopted_table,
    large_table,
    moseq_table,
    nonlinear_table,
    scans_table,
)
from fastscan.profiling.report.whole_table import whole_table
from fastscan.profiling.verdicts.judge import chosen

ROOT = Path(__file__).resolve().parents[2]
READMES = tuple(ROOT / folder / "README.md" for folder in ("", "fastscan", "kernels", "profiling"))

_MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_SMOOTHER = "lgssm_smoother"
_FIRST = {
    "Kalman smoother, 4 states, 10,000 steps": Case(_SMOOTHER, 4, 2, 10_000),
    "the same, 64 series of 1,000 steps": Case(_SMOOTHER, 4, 2, 1_000, BATCH),
    "log-likelihood and gradient, 4 states, 10,000 steps": Case("lgssm_loglik_gradient", 4, 2, 10_000),
    "HMM posterior sample, 5 states, 100,000 steps": Case("hmm_posterior_sample", 5, 0, 100_000),
    "HMM smoother, 5 states, 100,000 steps": Case("hmm_smoother", 5, 0, 100_000),
    "HMM smoother, 5 states, 1,000 steps": Case("hmm_smoother", 5, 0, 1_000),
}
_LGSSM = {
    "smoother, D=4, m=2, T=1,000": Case(_SMOOTHER, 4, 2, 1_000),
    "smoother, D=4, m=2, T=10,000": Case(_SMOOTHER, 4, 2, 10_000),
    "smoother, D=4, m=2, T=100,000": Case(_SMOOTHER, 4, 2, 100_000),
    "smoother, D=1, m=1, T=10,000": Case(_SMOOTHER, 1, 1, 10_000),
    "smoother, D=2, m=1, T=10,000": Case(_SMOOTHER, 2, 1, 10_000),
    "smoother, D=8, m=4, T=10,000": Case(_SMOOTHER, 8, 4, 10_000),
    "smoother, D=16, m=8, T=10,000": Case(_SMOOTHER, 16, 8, 10_000),
    "smoother, D=4, m=2, 64 sequences of T=1,000, against `vmap`": Case(_SMOOTHER, 4, 2, 1_000, BATCH),
    "filter, D=4, m=2, T=10,000": Case("lgssm_filter", 4, 2, 10_000),
    "posterior sample, D=4, m=2, T=10,000": Case("lgssm_posterior_sample", 4, 2, 10_000),
}
_HMM = {
    "`hmm_smoother`, K=5, T=1,000": Case("hmm_smoother", 5, 0, 1_000),
    "`hmm_smoother`, K=5, T=100,000": Case("hmm_smoother", 5, 0, 100_000),
    "`hmm_filter`, K=5, T=100,000": Case("hmm_filter", 5, 0, 100_000),
    "`hmm_posterior_sample`, K=5, T=1,000": Case("hmm_posterior_sample", 5, 0, 1_000),
    "`hmm_posterior_sample`, K=5, T=100,000": Case("hmm_posterior_sample", 5, 0, 100_000),
    "`hmm_posterior_mode`, K=5, T=100,000": Case("hmm_posterior_mode", 5, 0, 100_000),
    "`hmm_smoother`, K=32, T=10,000": Case("hmm_smoother", 32, 0, 10_000),
}
_LEARNING = {
    "log-likelihood and gradient, LGSSM, D=4, m=2, T=10,000": Case("lgssm_loglik_gradient", 4, 2, 10_000),
    "log-likelihood and gradient, HMM, K=5, T=100,000": Case("hmm_loglik_gradient", 5, 0, 100_000),
    "gradient of a smoothed mean, LGSSM, D=4, m=2, T=10,000": Case("lgssm_mean_gradient", 4, 2, 10_000),
    "5 leapfrogs of HMC, D=2, m=10, T=100": Case("lgssm_leapfrogs", 2, 10, 100),
    "same, 64 chains at once": Case("lgssm_leapfrogs", 2, 10, 100, BATCH),
}
_LGSSM_SIZES = (1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (4, 4), (5, 1), (6, 1)
_LGSSM_KERNELS = {("smoother", D, m): f"{D}, {m}" for D, m in _LGSSM_SIZES}
_SCORE_KERNELS = {("score", D, m): f"{D}, {m}" for D, m in _LGSSM_SIZES}
_HMM_KERNELS = {(f"hmm_{name}", K, 0): f"{K} | {name}" for K in (2, 5, 8) for name in ("smoother", "mode", "sampler")}


def newest(records: Path = RECORDS, device: str = "cpu") -> list[Row]:
    """Reads the last record of a kind of device.

    Raises:
        ValueError: the folder has none.
    """
    found = [(max(row.date for row in rows), path, rows) for path, rows in all_records(records) if rows]
    found = [(date, path, rows) for date, path, rows in found if rows[0].device == device]
    if not found:
        raise ValueError(f"{records} has no record of {device!r}. Run `fastscan measure`.")
    return max(found, key=lambda x: (x[0], x[1].name))[2]


def generated(records: Path = RECORDS) -> dict[str, str]:
    """Makes the text of every table, by name."""
    rows = newest(records)
    measured = by_case(rows)
    return {
        "machine": _machine(rows),
        "first": "\n".join([_first(measured), *adopted_first(records)]),
        "lgssm": _speed(measured, _LGSSM),
        "hmm": _speed(measured, _HMM),
        "learning": _speed(measured, _LEARNING),
        "calls": _calls(measured),
        "lgssm-kernels": _kernels(records, _LGSSM_KERNELS, "D, m"),
        "score-kernels": _kernels(records, _SCORE_KERNELS, "D, m"),
        "hmm-kernels": _kernels(records, _HMM_KERNELS, "K | function"),
        "whole-kernels": whole_table(records),
        "first-calls": first_call_table(records),
        "large": large_table(records),
        "adopted": adopted_table(records),
        "moseq": moseq_table(records),
        "nonlinear": nonlinear_table(records),
        "scans": scans_table(records),
        **demo_tables(records),
        **gpu_texts(records),
    }


def write_tables(readmes: Sequence[Path] = READMES, records: Path = RECORDS) -> None:
    """Writes the tables into READMEs.

    Args:
        readmes: files with marked places for tables.
        records: folder of the records that the tables are made of.

    Raises:
        ValueError: a README asks for a table that does not exist, or the folder has no record.
    """
    tables = generated(records)
    for readme in readmes:
        readme.write_text(rewritten(readme.read_text(), tables))


def rewritten(text: str, tables: dict[str, str]) -> str:
    """Returns a README's text with the tables in their places.

    Args:
        text: with marked places for tables.
        tables: their texts by name.

    Raises:
        ValueError: it asks for a table that does not exist.
    """

    def table(found: re.Match[str]) -> str:
        if found[2] not in tables:
            raise ValueError(f"A README asks for a table {found[2]!r}; there are {', '.join(tables)}.")
        return f"{found[1]}{tables[found[2]]}\n{found[3]}"

    return _MARKED.sub(table, text)


def _machine(rows: Sequence[Row]) -> str:
    row = rows[-1]
    commits = " and ".join(dict.fromkeys(f"{r.commit}{'+' if r.dirty else ''}" for r in rows))
    return (
        f"{row.machine}, {row.cores} cores, Python {row.python}, jax {row.jax}, jaxlib {row.jaxlib}, dynamax {row.dynamax}, "
        f"{row.date}, commit {commits}."
    )


def _first(measured: dict[Case, dict[str, Row]]) -> str:
    """Makes the short table that a newcomer sees first."""
    lines = ["| work | fastscan | dynamax | speed-up |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells[:4])} |" for cells in _cells(measured, _FIRST))])


def _speed(measured: dict[Case, dict[str, Row]], works: dict[str, Case]) -> str:
    lines = ["| work | fastscan | dynamax | speed-up | dynamax parallel | first call | memory |", "|---|" + "---|" * 6]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in _cells(measured, works))])


def _cells(measured: dict[Case, dict[str, Row]], works: dict[str, Case]) -> Iterator[tuple[str, ...]]:
    """Makes a table's rows, of the works that were measured."""
    for name, case in works.items():
        rows = measured.get(case, {})
        ours = chosen(rows)
        theirs, parallel = (getattr(rows.get(who), "p50", None) for who in (SEQUENTIAL, PARALLEL))
        if ours is None or ours.p50 is None:
            continue
        ratio = "-" if theirs is None else f"{float(f'{theirs / ours.p50:.2g}'):,g}"
        memory = _memory(ours, rows.get(SEQUENTIAL))
        yield name, _time(ours.p50), _time(theirs), ratio, _time(parallel), _time(ours.first_call), memory


def _calls(measured: dict[Case, dict[str, Row]]) -> str:
    """Compares a call of 10 steps by a user with the same call within one `jax.jit`: the cost of calling."""
    lines = ["| 10 steps of | called | under one `jax.jit` | ratio |", "|---|---|---|---|"]
    for case, rows in measured.items():
        called, jitted = rows.get(PUBLIC), chosen(rows)
        if called and called.p50 and jitted and jitted.p50 and case.T == 10 and case.B == 1:
            name = str(case).removesuffix(f" T=10 {case.dtype}")
            lines.append(f"| {name} | {_time(called.p50)} | {_time(jitted.p50)} | {called.p50 / jitted.p50:.2f} |")
    return "\n".join(lines)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _memory(ours: Row, theirs: Row | None) -> str:
    """Divides our bytes beside arguments and results by dynamax's."""
    if theirs is None or not theirs.temporary_bytes or ours.temporary_bytes is None:
        return "-"
    return f"{ours.temporary_bytes / theirs.temporary_bytes:.2g}"


def _kernels(records: Path, works: dict[tuple[str, int, int], str], title: str) -> str:
    """Sums up what kernels cost by their code for sm_90, in float32: by family, D and m, under the names given."""
    rows = kernel_rows(records)
    columns = f"{title} | registers, at most | spilled | instructions a step | floor, T = 1e6 | bytes a step | compiled in"
    lines = [f"| {columns} |", "|" + "---|" * (columns.count("|") + 1)]
    for key, name in works.items():
        mine = [r for r in rows if (r["family"], int(r["D"]), int(r["m"])) == key]
        mine = [r for r in mine if r["sm"] == "90" and r["dtype"] == "float32"]
        parts = " + ".join(f"{float(r['per_step']):,.0f}" for r in mine if float(r["per_step"]))
        fields = "per_step", "floor_us", "bytes_per_step", "seconds"
        total, floor, moved, seconds = (sum(float(r[field]) for r in mine) for field in fields)
        registers, spilled = (max(int(r[field]) for r in mine) for field in ("registers", "spilled_bytes"))
        costs = f"{registers} | {spilled} | {parts} = {total:,.0f} | {floor:.0f} us | {moved:.0f} | {seconds:.0f} s"
        lines.append(f"| {name} | {costs} |")
    return "\n".join(lines)
