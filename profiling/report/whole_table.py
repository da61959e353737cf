"""The README's table of kernels whose programs hold a large model: what their machine code says they cost."""

import json
from collections.abc import Iterator
from pathlib import Path

from fastscan.profiling.compiled.ahead_of_time import DEVICES
from fastscan.profiling.compiled.kernel_report import FLOOR_STEPS
from fastscan.profiling.report.data import kernel_rows

_SIZES = [("smoother", D, m) for D, m in ((8, 4), (12, 6), (16, 8), (20, 4), (30, 16), (32, 16), (64, 32))]
_SIZES += [("sampler", D, m) for D, m in ((12, 6), (30, 16), (64, 32))]
_SIZES += [(f"hmm_{name}", K, 0) for K in (16, 32, 64, 100, 128) for name in ("smoother", "mode", "sampler")]
_COLUMNS = (
    "model",
    "warps",
    "registers",
    "spilled bytes",
    "instructions a step",
    "of matrix units",
    "floor, T = 1e6",
    "bytes a step",
    "H100 / H200 move them in",
    "compiled in",
)


def whole_table(records: Path) -> str:
    """Makes the table, from the newest records of kernels in a folder of records; "" if there are none."""
    lines = list(_lines(records))
    return "\n".join([f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS), *lines]) if lines else ""


def _lines(records: Path) -> Iterator[str]:
    rows = [row for row in kernel_rows(records) if int(row.get("warps") or 0)]
    for family, D, m in _SIZES:
        mine = [r for r in rows if (r["family"], int(r["D"]), int(r["m"]), r["sm"]) == (family, D, m, "90")]
        if not mine:
            continue
        moved = sum(float(r["bytes_per_step"]) for r in mine)
        floor, seconds = (sum(float(r[field]) for r in mine) for field in ("floor_us", "seconds"))
        registers, spilled = (max(int(r[field]) for r in mine) for field in ("registers", "spilled_bytes"))
        stepping = [r for r in mine if float(r["per_step"])]
        warps = max(int(r["warps"]) for r in stepping)
        matrix = sum(json.loads(r["kinds"]).get("matrix", 0) * int(r["warps"]) for r in stepping)
        of_bytes = " / ".join(f"{1e6 * moved * FLOOR_STEPS / bandwidth:,.0f}" for bandwidth, *_ in DEVICES.values())
        instructions = " + ".join(f"{float(r['per_step']):,.0f}" for r in stepping)
        size = f"K={D}" if family.startswith("hmm") else f"D={D}, m={m}"
        cells = (
            f"{family.removeprefix('hmm_')}, {size}",
            warps,
            registers,
            spilled,
            f"{instructions} = {sum(float(r['per_step']) for r in stepping):,.0f}",
            f"{matrix:,}",
            f"{floor:,.0f} us",
            f"{moved:,.0f}",
            f"{of_bytes} us",
            f"{seconds:.0f} s",
        )
        yield f"| {' | '.join(map(str, cells))} |"
