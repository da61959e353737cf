"""Texts of the READMEs on GPUs: that none was measured, or what was measured on each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastscan.profiling.measure.cases import Case, cases
from fastscan.profiling.measure.operations import PARALLEL
from fastscan.profiling.measure.rows import Row, all_records, by_case

_NONE = "No GPU has been measured yet"
_XLA = "chunked", "xla"
_SMOOTHERS = "lgssm_smoother", "hmm_smoother"


def gpu_texts(records: Path) -> dict[str, str]:
    """Writes the texts by name, from the newest record of every NVIDIA GPU in a folder."""
    found = _newest(records)
    if not found:
        return {
            "gpu-state": f"{_NONE}: the kernels were compiled for some, and run in Pallas's interpreter on CPUs.",
            "gpu-measured": f"{_NONE}.",
            "gpu-limits": f"- {_NONE}.",
        }
    named = " and ".join(found)
    return {
        "gpu-state": "\n".join(
            [
                f"The kernels were measured on {named}: see [GPU kernels](profiling/README.md#gpu-kernels).",
                *_short(*max(found.items(), key=lambda item: max(row.date for row in item[1]))),
            ]
        ),
        "gpu-measured": "\n\n".join(_measured(rows, ceilings(records, device)) for device, rows in found.items()),
        "gpu-limits": f"- Of GPUs, only {named} {'was' if len(found) == 1 else 'were'} measured.",
    }


def ceilings(records: Path, device: str | None = None) -> dict[str, Any]:
    """Reads what the newest run on a GPU, or on one of this kind, found that it can do, with its "device"; {} without one."""
    runs = [json.loads(path.read_text()) for path in sorted((records / "gpu").glob("*.json"))]
    runs = [run for run in runs if device in (None, run["device"]) and run.get("ceilings")]
    newest = max(runs, key=lambda run: run["date"], default=None)
    return {} if newest is None else newest["ceilings"] | {"device": newest["device"]}


def _newest(records: Path) -> dict[str, list[Row]]:
    newest: dict[str, tuple[str, list[Row]]] = {}
    for _, rows in all_records(records):
        device = rows[0].device if rows else ""
        date = max((row.date for row in rows), default="")
        if device.startswith("NVIDIA") and date >= newest.get(device, ("", []))[0]:
            newest[device] = date, rows
    return {device: rows for device, (_, rows) in sorted(newest.items())}


def _short(device: str, rows: Sequence[Row]) -> list[str]:
    """Says what the longest series that the kernels of each smoother were timed on took on a GPU."""
    told = []
    for operation in _SMOOTHERS:
        timed = {case: by_name for case, by_name in by_case(rows).items() if case.operation == operation}
        timed = {case: cells for case, by_name in timed.items() if (cells := _cells(case, by_name))}
        if timed:
            name, kernels, _, xla, _, theirs, _ = timed[max(timed, key=lambda case: case.T)]
            theirs = "" if theirs == "-" else f", dynamax's parallel code {theirs}"
            told.append(f"{name} takes {kernels} on {device}, under XLA {xla}{theirs}.")
    return told


def _measured(rows: Sequence[Row], known: dict[str, Any]) -> str:
    """Makes one GPU's table: the cases that its kernels were timed in, those for scarce minutes first."""
    row, measured = rows[-1], by_case(rows)
    order = [case for case in cases("gpu") if case in measured]
    order += [case for case in measured if case not in order]
    lines = [
        f"{row.device}, driver {row.driver}, Python {row.python}, jax {row.jax}, {row.date}, commit {row.commit}"
        f"{'+' if row.dirty else ''}.{_told(known)}",
        "Kernels, XLA's chunks (of Metropolis, its loop over steps) and dynamax's parallel code are jitted and warm; times are",
        "of calls that are waited for, and of kernels also of one call among many in flight.",
        "",
        "| work | kernels | in flight | XLA | speed-up | dynamax parallel | error |",
        "|---|" + "---|" * 6,
    ]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for case in order if (cells := _cells(case, measured[case])))])


def _cells(case: Case, found: dict[str, Row]) -> tuple[str, ...]:
    """Makes a row of the table above; () if the kernels were not timed."""
    kernels, xla = found.get("pallas"), next((found[name] for name in _XLA if name in found), None)
    if kernels is None or kernels.p50 is None:
        return ()
    times = _time(kernels.p50), _time(kernels.in_flight), _time(xla and xla.p50)
    ratio = f"{float(f'{xla.p50 / kernels.p50:.2g}'):,g}" if xla and xla.p50 else "-"
    theirs = _time(getattr(found.get(PARALLEL), "p50", None))
    error = "-" if kernels.error is None else f"{kernels.error:.0e}"
    return str(case).removesuffix(" float32"), *times, ratio, theirs, error


def _told(known: dict[str, Any]) -> str:
    rate, start = (known.get(name) for name in ("copy_bytes_per_second", "kernel_seconds"))
    told = [f"copies {rate / 1e12:.2f} TB/s"] if isinstance(rate, float) else []
    told += [f"starts a kernel in {1e6 * start:.1f} us"] if isinstance(start, float) else []
    return f" It {' and '.join(told)}." if told else ""


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"
