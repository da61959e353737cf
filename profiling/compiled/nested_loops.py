"""Costs of kernels whose programs hold a matrix together: within a step of time, loops go through a matrix's rows.

Such a loop's length is kept from the compiler (`gpu.arithmetic.FusedTile.times`), so that it unrolls none. Triton's IR has the
number, and machine code has the same loops in the same order.
"""

import re
from collections import defaultdict
from typing import NamedTuple

from fastscan.profiling.compiled.machine_code import Code, KernelCost, TritonKernel, active_warps, build

_CONSTANT = re.compile(r"(%[\w]+) = arith\.constant (?:dense<)?(-?\d+)>? : ")
_HIDDEN = re.compile(r'(%[\w]+) = tt\.elementwise_inline_asm "mov\.b32 \$0, \$1;".*\} (%[\w]+) :')
_SUMMED = re.compile(r'(%[\w]+) = "tt\.reduce"\((%[\w]+)\)')
_LOOP = re.compile(r"scf\.for %\w+ = %\w+ to (%\w+) step")


class Loop(NamedTuple):
    """A loop of Triton's IR: how often it is passed, and whether it is one over time, whose length the compiler knows."""

    times: int
    over_time: bool


def examine_nested(kernel: TritonKernel, capability: int) -> KernelCost:
    """Compiles a kernel, and reads its costs; those of "one pass" are of one time step, with all passes of inner loops.

    A kernel without a loop over time takes one step.

    Raises:
        ImportError: Triton is not installed.
        ValueError: the machine code has other loops than Triton's IR.
    """
    seconds, memory, code, ttgir = build(kernel, capability)
    often = executions(code, loops(ttgir), kernel.name)
    kinds: dict[str, float] = defaultdict(float)
    for i, times in often.items():
        for kind in code.kinds([i]):
            kinds[kind] += times
    step = round(sum(kinds.values()))
    occupancy = active_warps(memory[0], memory[-1], kernel.warps, capability)
    counts = len(code.lines), step, {kind: round(n) for kind, n in kinds.items()}, 1.0, 0, len(code.loops())
    return KernelCost(kernel.name, capability, seconds, *memory, *counts, occupancy)


def loops(ttgir: str) -> list[Loop]:
    """Lists the loops of Triton's IR, in order."""
    values: dict[str, int] = {}
    hidden: set[str] = set()
    found = []
    for line in ttgir.splitlines():
        if match := _CONSTANT.search(line):
            values[match[1]] = int(match[2])
        elif (match := _HIDDEN.search(line) or _SUMMED.search(line)) and match[2] in values:
            values[match[1]] = values[match[2]]
            hidden.add(match[1])
        elif match := _LOOP.search(line):
            found.append(Loop(values[match[1]], match[1] not in hidden))
    return found


def executions(code: Code, wanted: list[Loop], name: str) -> dict[int, float]:
    """Counts how often a warp executes every instruction in one step of time."""
    found = sorted(code.loops(), key=lambda loop: min(loop[1]))
    if not found and len(wanted) == 1:  # unrolled completely; of a loop over time, the share of a step
        times = wanted[0].times if wanted[0].over_time else 1
        return dict.fromkeys(code.reached, 1 / times)
    if len(found) != len(wanted):
        raise ValueError(f"{name}: machine code has {len(found)} loops, Triton's IR {len(wanted)}.")
    steps = [body for (_, body, _), loop in zip(found, wanted, strict=True) if loop.over_time]
    often: dict[int, float] = dict.fromkeys(steps[0] if steps else code.reached, 1.0)
    for (_, body, _), loop in zip(found, wanted, strict=True):
        for i in body & often.keys() if not loop.over_time else ():
            often[i] *= loop.times
    return often
