"""Fits the crossover table to records: what each implementation takes at every length, and from which length on it wins."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastscan
from fastscan.dispatch import crossovers
from fastscan.dispatch.choice import choose
from fastscan.profiling.measure.cases import MEASURED_BY, family_of, held_out
from fastscan.profiling.measure.rows import Row, by_case

COMMITTED = Path(crossovers.__file__).with_name("crossover.json")

LENGTHS = 3
"""That a slice has at least: what was measured at one length says nothing of others."""

FEWER = 1.03
"""More chunks must be so many times faster than fewer."""


def fit(rows: Iterable[Row]) -> dict:
    """Fits the table of all devices in some records; of several times of one thing the last counts. Held-out cases are left
    out.

    A slice's ``wins`` says for each implementation from which T on it is `crossovers.MARGIN` times as fast as the sequential
    one up to the longest series measured, None if it isn't there; and the band of T in which the spread of the samples
    (between their 20th and 80th percentiles) leaves open who is faster.
    """
    table: dict[str, Any] = {"devices": {}}
    groups: dict[tuple, list[Row]] = {}
    apart = set(held_out())
    for case, measured in by_case(rows).items():
        if case in apart:
            continue
        for row in measured.values():
            ours = row.implementation.split(":")[0] in ("sequential", "associative", "chunked", "pallas")
            if row.p50 and ours and case.operation in MEASURED_BY.values():
                groups.setdefault((row.device, case.family, row.dtype, row.D, row.m, row.B), []).append(row)
    for (device, family, dtype, D, m, B), mine in sorted(groups.items()):
        if len({row.T for row in mine}) < LENGTHS:
            continue
        entry = table["devices"].setdefault(device, {"measured": _about(mine[-1]), "families": {}})
        sizes = {"D": D, "m": m, "B": B, "dtype": dtype}
        entry["families"].setdefault(family, []).append(sizes | _slice(mine))
    return table


def _about(row: Row) -> dict[str, Any]:
    return {
        "machine": f"{row.machine}, {row.cores} cores",
        "driver": row.driver,
        "versions": {"python": row.python, "jax": row.jax, "jaxlib": row.jaxlib},
        "commit": row.commit + ("+" if row.dirty else ""),
        "date": row.date,
    }


def _slice(rows: Sequence[Row]) -> dict[str, Any]:
    lengths = sorted({row.T for row in rows})
    best = {T: _best([row for row in rows if row.T == T]) for T in lengths}
    names = sorted({name for found in best.values() for name in found})
    seconds = {name: [_rounded(best[T][name].p50) if name in best[T] else None for T in lengths] for name in names}
    chunks = [_chunks(best[T].get("chunked")) for T in lengths]
    wins = {name: _win(best, lengths, name) for name in names if name != "sequential"}
    return {"T": lengths, "seconds": seconds, "chunks": chunks, "wins": wins}


def _best(rows: Sequence[Row]) -> dict[str, Row]:
    """Returns one row an implementation, of several numbers of chunks the fastest."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: _chunks(row) or 0):
        name = row.implementation.split(":")[0]
        if name not in found or _p50(row) * FEWER < _p50(found[name]):
            found[name] = row
    return found


def _chunks(row: Row | None) -> int | None:
    """Returns how many chunks were asked for; by a name without a number, how many dispatch takes."""
    if row is None:
        return None
    if ":" in row.implementation:
        return int(row.implementation.split(":")[1])
    return row.case.choice("chunked", device=row.device).plan.chunks if row.implementation == "chunked" else None


def _win(best: dict[int, dict[str, Row]], lengths: Sequence[int], name: str) -> dict[str, Any]:
    """Finds where the logarithm of the gain over the sequential one crosses that of the margin for the last time."""
    both = [T for T in lengths if name in best[T] and "sequential" in best[T]]
    gains = {"from": ("p50", "p50"), "low": ("p80", "p20"), "high": ("p20", "p80")}
    found = {
        key: _crossing(both, [math.log(_seconds(best[T]["sequential"], of) / _seconds(best[T][name], mine)) for T in both])
        for key, (of, mine) in gains.items()
    }
    return {"from": found["from"], "band": [found["low"], found["high"]]}


def _crossing(lengths: Sequence[int], gains: Sequence[float]) -> float | None:
    margin = math.log(crossovers.MARGIN)
    if not gains or gains[-1] < margin:
        return None
    below = [i for i, gain in enumerate(gains) if gain < margin]
    if not below:
        return lengths[0]
    i = below[-1]
    share = (margin - gains[i]) / (gains[i + 1] - gains[i])
    return _rounded(math.exp(np.interp(share, [0, 1], np.log(lengths[i : i + 2]))))


def _p50(row: Row) -> float:
    return _seconds(row, "p50")


def _seconds(row: Row, percentile: str) -> float:
    return getattr(row, percentile)


def _rounded(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.3g}")


def merged(old: dict, new: dict) -> dict:
    """Puts the new table's families into the old table in place of its own; other devices, families and launches stay.

    A family that was measured on another occasion than the rest may say so by hand, in "measured_apart".
    """
    devices = {name: dict(entry) for name, entry in old["devices"].items()}
    for name, entry in new["devices"].items():
        before = devices.get(name, {})
        devices[name] = before | entry | {"families": before.get("families", {}) | entry["families"]}
    return {"devices": devices}


def changes(old: dict, new: dict) -> list[str]:
    """Lists what a new table says that the old one does not, a line each: T* of the chunks, or of kernels, slice by slice."""
    before, after = _lengths(old), _lengths(new)
    lines = []
    for key, length in after.items():
        was = before.get(key, "not measured")
        if was != length:
            device, family, dtype, D, B, name = key
            lines.append(f"{device} {family} {dtype} D={D} B={B}: {name} wins from T = {_text(length)} on (was {_text(was)})")
    return lines


def _lengths(table: dict) -> dict[tuple, Any]:
    return {
        (device, family, s["dtype"], s["D"], s["B"], name): win["from"]
        for device, entry in table["devices"].items()
        for family, slices in entry.get("families", {}).items()
        for s in slices
        for name, win in s["wins"].items()
        if name != "associative"
    }


def _text(length: Any) -> str:
    return "never" if length is None else length if isinstance(length, str) else f"{length:,.0f}"


def write(table: dict, path: Path) -> None:
    """Writes a table as JSON with one slice a line, so that a new measurement is a readable diff."""
    text = json.dumps(table, indent=1)

    def on_a_line(slice_: re.Match[str]) -> str:
        return re.sub(r"\s+", " ", slice_[0]).replace("[ ", "[").replace(" ]", "]").replace("{ ", "{").replace(" }", "}")

    flat = re.sub(r'\{\s*"D":.*?\n {5}\}', on_a_line, text, flags=re.DOTALL)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(flat + "\n")


def explain(
    operation: str, *, D: int, T: int, B: int = 1, m: int | None = None, dtype: str = "float32", varying: bool = False
) -> str:
    """Says which implementation would run here, and the measurements that say so, in words.

    Args:
        operation: a public function's name, for one "lgssm_smoother".
        D: state dimensions; of an HMM its number of states.
        T: time steps.
        B: sequences.
        m: emission dimensions; default half of D. They decide only whether a GPU's kernels can run.
        dtype: "float32" or "float64".
        varying: of a linear-Gaussian model, whether its dynamics vary in time.

    Raises:
        ValueError: a function that fastscan does not have.
    """
    if not callable(getattr(fastscan, operation, None)) or not operation.removeprefix("parallel_").startswith(("lgssm", "hmm")):
        raise ValueError(f"{operation!r} given, wanted one of fastscan's functions, as 'lgssm_smoother' or 'hmm_filter'.")
    bare = operation.removeprefix("parallel_")
    family = family_of(bare)
    m = (m or max(D // 2, 1)) if family == "lgssm" else 0
    family = "lgssm_varying" if varying and family == "lgssm" else family
    choice = choose(None, T=T, B=B, D=D, m=m, dtype=dtype, family=family)
    chunks = f", {choice.plan.chunks:,} chunks of {choice.plan.length:,} steps" if choice.plan.chunks > 1 else ""
    lines = [f"{operation} runs as {choice.implementation!r}{chunks}", choice.reason]
    device = fastscan.dispatch.choice.device_kind()
    slices = crossovers.slices_of(device, family, dtype)
    if slices:
        near = min(slices, key=lambda s: abs(math.log(s["D"] / D)) + abs(math.log(s["B"] / B)))
        for name, win in near["wins"].items():
            low, high = map(_text, win["band"])
            length = f"from T = {win['from']:,.0f} on (open from {low} to {high})" if win["from"] else "nowhere"
            sizes = f"D={near['D']}, B={near['B']}, {near['dtype']}, T = {near['T'][0]:,} to {near['T'][-1]:,}"
            lines.append(f"nearest measured, {sizes}: {name} wins {length}")
        entry = crossovers.of_device(device)
        about = entry.get("measured_apart", {}).get(family, entry["measured"])
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        lines.append(f"on {about['machine']}, {versions}, commit {about['commit']}, {about['date']}")
    return "\n".join(lines)
