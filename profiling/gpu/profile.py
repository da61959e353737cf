"""Profiles of a few public calls: JAX's, kernel by kernel, and Nsight Compute's counters where it is there."""

import csv
import json
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jax.profiler import ProfileData

from fastscan.profiling.gpu.calls import CALLS, CODE, ENVIRONMENT, TOY_CALLS, TRACED
from fastscan.profiling.gpu.counters import Counted, count
from fastscan.profiling.gpu.run import Run
from fastscan.profiling.measure.limited import run_limited

MOST_BYTES = 15 << 20
"""The most bytes of all traces together, packed: more would not come back from a machine that is lent."""

SHARE = 0.55
"""The share of the time left that a trace may take, as counters come after it."""

KEPT, LONGEST = 30, 8
"""Kernels of every call that are written down, and printed: the longest ones."""

_RECORD = "profile.csv"
_COLUMNS = {
    "us": ("seconds", 1e6),
    "GB/s": ("bytes_per_second", 1e-9),
    "% of peak": ("bandwidth_percent", 1.0),
    "% issuing": ("issue_percent", 1.0),
    "% of warps": ("occupancy_percent", 1.0),
    "registers": ("registers", 1.0),
}


class TracedKernel(NamedTuple):
    """One kernel, or operation, of one call: launches and seconds in a call."""

    call: str
    kernel: str
    launches: float
    seconds: float


def traced(run: Run) -> str:
    """Traces the calls with JAX's profiler, in a process of their own; packs the traces into ``traces.zip``."""
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-c", CODE, json.dumps({"toy": run.dry_run, "traces": folder})]
        seconds = max(SHARE * run.left(), 1)
        status = run_limited(program, Path(folder) / "out.txt", seconds, **ENVIRONMENT)
        said = (Path(folder) / "out.txt").read_text(errors="replace")
        files = {path.relative_to(folder).parts[0]: path for path in sorted(Path(folder).rglob("*.xplane.pb"))}
        found = [row for call, path in files.items() for row in read_trace(call, path)[:KEPT]]
        _write(run.out / _RECORD, "jax", found)
        left_out = _pack(run.out / "traces.zip", files)
    told = [line for line in said.splitlines() if line.split(":")[0] in {*CALLS, *TOY_CALLS}]
    lost = [line for line in told if not line.endswith(": ok")]
    if status is None:
        return f"failed: not ended in {seconds:.0f} s"
    if status or lost or not found:
        return f"failed: {'; '.join(lost) or said.strip().splitlines()[-1:]}"
    return f"ok, but for {left_out}" if left_out else "ok"


def counted(run: Run) -> str:
    """Reads the kernels' counters."""
    with tempfile.TemporaryDirectory() as folder:
        found = count(Path(folder), max(run.left() - 10, 1), toy=run.dry_run)
    if isinstance(found, str):
        return found
    _write(run.out / _RECORD, "ncu", found)
    return "ok"


def read_trace(call: str, path: Path) -> list[TracedKernel]:
    """Lists what ran on the device in a trace, the longest first: kernels of a GPU, operations of a CPU."""
    planes = {plane.name: plane for plane in ProfileData.from_file(str(path)).planes}
    gpu = [plane for name, plane in planes.items() if name.startswith("/device:GPU")]
    totals: dict[str, list[float]] = {}
    for plane in gpu or [plane for name, plane in planes.items() if name == "/host:CPU"]:
        for line in plane.lines:
            if line.name.startswith("Stream") if gpu else "XLA" in line.name:
                for event in line.events:
                    totals.setdefault(event.name, []).append(1e-9 * event.duration_ns)
    rows = [TracedKernel(call, name, len(times) / TRACED, sum(times) / TRACED) for name, times in totals.items()]
    return sorted(rows, key=lambda row: -row.seconds)


def table(run: Run) -> list[str]:
    """Writes lines of what is known: of every call its longest kernels, of every kernel its counters."""
    lines = [f"{'JAX profiler: call, kernel':72}{'launches':>10}{'us a call':>12}"]
    rows = _read(run.out / _RECORD)
    calls: dict[str, int] = {}
    for row in (row for row in rows if row["profiler"] == "jax"):
        calls[row["call"]] = calls.get(row["call"], 0) + 1
        if calls[row["call"]] <= LONGEST:
            name = f"{row['call']}: {row['kernel']}"
            lines.append(f"{name[:70]:72}{_text(row['launches']):>10}{_text(row['seconds'], 1e6):>12}")
    counters = [row for row in rows if row["profiler"] == "ncu"]
    if counters:
        lines.append(f"{'Nsight Compute: kernel':44}" + "".join(f"{name:>11}" for name in _COLUMNS) + "  stalls (warps)")
    for row in counters:
        cells = [_text(row[field], factor) for field, factor in _COLUMNS.values()]
        lines.append(f"{row['kernel'][:42]:44}" + "".join(f"{cell:>11}" for cell in cells) + f"  {row['stalls']}")
    return lines


def _text(number: str, factor: float = 1.0) -> str:
    return f"{factor * float(number):.4g}" if number else "-"


def _read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def _write(path: Path, profiler: str, rows: Sequence[TracedKernel | Counted]) -> None:
    """Replaces one profiler's rows in a file that may hold those of another one."""
    columns = ["profiler", *dict.fromkeys((*TracedKernel._fields, *Counted._fields))]
    others = [row for row in _read(path) if row["profiler"] != profiler]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(others)
        writer.writerows({"profiler": profiler} | row._asdict() for row in rows)


def _pack(path: Path, files: dict[str, Path]) -> str:
    """Packs traces, one for every call; says in words if they are too large."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for call, file in files.items():
            packed.write(file, f"{call}.xplane.pb")
    if path.stat().st_size <= MOST_BYTES:
        return ""
    path.unlink()
    return f"the traces, of more than {MOST_BYTES:,} bytes"
