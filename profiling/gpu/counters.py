"""Nsight Compute's counters of kernels: how it is asked for them, and how its answer is read."""

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from fastscan.profiling.gpu.calls import CODE, ENVIRONMENT
from fastscan.profiling.measure.limited import run_limited

SECTIONS = "SpeedOfLight", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats", "Occupancy", "LaunchStats"
"""Sections of Nsight Compute's; it knows which counters they need."""

KERNELS = "regex:sweep|summarise|begin|metropolis"
"""Those that go through time, by their names."""

MOST_LAUNCHES = 40
STALLS = 2
"""Reasons to wait that are told of a kernel, the longest ones."""

_SCALES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BASE = re.compile(r"^([numKMGT]?)(s|second|byte/s|byte/second)$")
_STALLED = re.compile(r"issue_stalled_(?P<why>\w+?)_per_(?:issue_active|warp_active)")
_OF_PEAK = "pct_of_peak_sustained"
_METRICS = {
    "seconds": ("gpu__time_duration.sum",),
    "bytes_per_second": ("dram__bytes.sum.per_second",),
    "bandwidth_percent": tuple(f"{x}__{y}throughput.avg.{_OF_PEAK}_elapsed" for x, y in (("gpu", "dram_"), ("dram", ""))),
    "issue_percent": (f"smsp__issue_active.avg.{_OF_PEAK}_active", f"sm__inst_issued.avg.{_OF_PEAK}_active"),
    "issue": ("smsp__issue_active.avg.per_cycle_active",),
    "occupancy_percent": (f"sm__warps_active.avg.{_OF_PEAK}_active",),
    "registers": ("launch__registers_per_thread",),
}


class Counted(NamedTuple):
    """A kernel's launch, the longest of those with its name; what the counters don't say is None.

    Attributes:
        kernel: its name.
        launches: with that name.
        seconds: that it took, under the profiler, at the clock that the card had.
        bytes_per_second: to and from the card's memory.
        bandwidth_percent: of what the memory can do.
        issue_percent: of the cycles in which a scheduler issued an instruction.
        occupancy_percent: of the warps that a processor holds at most.
        registers: of a thread.
        stalls: what warps waited for, the longest first, and how many warps at a time an instruction issued.
    """

    kernel: str
    launches: int
    seconds: float | None
    bytes_per_second: float | None
    bandwidth_percent: float | None
    issue_percent: float | None
    occupancy_percent: float | None
    registers: float | None
    stalls: str


def count(scratch: Path, seconds: float, *, toy: bool = False) -> list[Counted] | str:
    """Runs the calls under Nsight Compute; says in words why not, where it can't be."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return "absent: no ncu"
    answer = scratch / "ncu.csv"
    options = ["--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(answer)]
    options += ["--kernel-name", KERNELS, "--launch-count", str(MOST_LAUNCHES)]
    options += [option for section in SECTIONS for option in ("--section", section)]
    program = [sys.executable, "-c", CODE, json.dumps({"toy": toy, "traces": None})]
    status = run_limited([ncu, *options, *program], scratch / "ncu.txt", seconds, **ENVIRONMENT)
    said = "\n".join(path.read_text(errors="replace") for path in (answer, scratch / "ncu.txt") if path.exists())
    found = read_counters(said)
    if found:
        return found
    if status is None:
        return f"failed: ncu did not end in {seconds:.0f} s"
    errors = [line for line in said.splitlines() if line.startswith("==ERROR==")] or said.strip().splitlines()[-1:]
    refused = re.search("ERR_NVGPUCTRPERM|Failed to initialize the profiler", said)
    return f"{'absent: ncu reads no counters here' if refused else 'failed: ncu'}: {' '.join(errors)[:300]}"


def read_counters(text: str) -> list[Counted]:
    """Reads the kernels of Nsight Compute's raw page as CSV: names of columns, their units, then a line a launch."""
    start = text.find('"ID"')
    if start < 0:
        return []
    names, units, *lines = csv.reader(io.StringIO(text[start:]))
    launches: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        if len(line) == len(names):
            cells = dict(zip(names, line, strict=True))
            numbers = {name: _number(cells[name], unit) for name, unit in zip(names, units, strict=True)}
            launches.setdefault(cells["Kernel Name"], []).append({n: x for n, x in numbers.items() if x is not None})
    return [_counted(kernel, mine) for kernel, mine in launches.items()]


def _counted(kernel: str, launches: list[dict[str, float]]) -> Counted:
    longest = max(launches, key=lambda launch: launch.get("gpu__time_duration.sum", 0.0))
    found = {key: next((longest[n] for n in names if n in longest), None) for key, names in _METRICS.items()}
    issue = found.pop("issue")
    if found["issue_percent"] is None and issue is not None:
        found["issue_percent"] = 100 * issue
    waits = {m["why"]: x for name, x in longest.items() if (m := _STALLED.search(name)) and "not_issued" not in m["why"]}
    worst = sorted(waits.items(), key=lambda wait: -wait[1])[:STALLS]
    stalls = ", ".join(f"{why} {x:.1f}" for why, x in worst)
    return Counted(kernel, len(launches), **found, stalls=stalls)


def _number(cell: str, unit: str) -> float | None:
    try:
        value = float(cell.replace(",", ""))
    except ValueError:
        return None
    scaled = _BASE.match(unit)
    return value * _SCALES.get(scaled[1], 1.0) if scaled else value
