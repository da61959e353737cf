"""Predictions of what public calls take on GPUs: written down before, so that a first measurement can be judged by them.

Every kernel that a call launches takes the longest of four times:

* issue: the busiest of a scheduler and its pipes, over all warps that it gets;
* latency: one warp's way through the machine code (`latency`), as often as its SM is filled anew;
* memory: the arrays' bytes over the copy bandwidth, where they do not stay in the L2 cache;
* cache: the sectors of 32 bytes that loads and stores touch, half filled or not, over those that L2 takes a second.

To these come the launches' gaps, XLA's own launches, as its compiler for the GPU made them (`ahead_of_time`, from the newest
record), and what the host waits for. Nothing here was measured but the copies and the rate of sectors. Taken for granted: loads
find in L1 what they loaded of a sector before; a loop that sweeps seams again has no turn; arrays of a launch that fill half of
L2 or more come from memory, others from L2; a launch begins when the one before has ended; a kernel whose loop cannot be told
from its machine code, as of some that one lane runs, is much as the widest of its name.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from fastscan.kernels.gpu.sectors import SECTOR, tiles
from fastscan.profiling.compiled import ahead_of_time, latency
from fastscan.profiling.compiled.machine_code import (
    KernelCost,
    TritonKernel,
    examine,
    inner_jaxprs,
    lower_for_gpu,
    triton_kernels,
)
from fastscan.profiling.compiled.public_calls import PublicCall, pretending

_NUMBERS = {1: "uint8", 2: "float16", 4: "float32", 8: "float64"}


class Processor(NamedTuple):
    """A GPU as predictions take it.

    Attributes:
        name: as JAX has it.
        multiprocessors: each of four schedulers.
        clock: cycles a second, at most.
        copy: bytes a second of a large copy, read and written.
        cache_bytes, cache_bandwidth: of L2.
        sectors: a second, that L2 takes from lanes whose records lie apart.
        cache_cycles, memory_cycles: until a load has its numbers, from L2 and from memory.
    """

    name: str
    multiprocessors: int
    clock: float
    copy: float
    cache_bytes: float
    cache_bandwidth: float
    sectors: float
    cache_cycles: float
    memory_cycles: float


CARDS = (
    Processor("NVIDIA H100 80GB HBM3", 132, 1.98e9, 3.0e12, 50e6, 5.5e12, 5e10, 270, 550),
    Processor("NVIDIA H200", 132, 1.98e9, 4.3e12, 50e6, 5.5e12, 5e10, 270, 550),
)
"""Copies, multiprocessors, and L2 of the H100: measured in this workplace, KINDS.md (H100 2026-11-13, H200 2026-10-28, where
PyTorch said 60 MB of L2; XLA's description of the card says 50). Clock: read on the H200, the H100's by XLA's description.
Sectors: those that the model counts for the sweeps of smoothers of a million steps (D = 4, K = 5), as kernels stored at
commit 447c3bc, over the times in that commit's record of a profile on an H200: 36 to 67 thousand million a second. L2's
bandwidth and both latencies are leads, not checked on these cards: 5.5 TB/s is what is said of an H100 PCIe; 263 and 479
cycles what arXiv 2402.13499 is said to have on one; L2 took 222 to 339 cycles on an L40 (arXiv 2606.22588)."""

LAUNCH_SECONDS = 1.3e-6, 2.5e-6
"""Seconds of a launch beside the kernel itself, least and most: by a CUDA graph, one by one in a stream. Assumptions."""
WAIT_SECONDS = 8e-6, 20e-6
"""Seconds that the host takes to ask whether a loop goes on. Assumptions."""


class Launched(NamedTuple):
    """A kernel as a call launches it.

    Attributes:
        name, grid: of the kernel, and its programs.
        steps: turns of its longest loop.
        times: how often a call launches it.
        reads, writes: arrays as (rows, entries of a record, bytes of an entry).
        shapes: all of them, in order.
    """

    name: str
    grid: int
    steps: int
    times: int
    reads: tuple[tuple[int, int, int], ...]
    writes: tuple[tuple[int, int, int], ...]
    shapes: tuple[tuple[int, ...], ...]


class Machine(NamedTuple):
    """A kernel's machine code in numbers: its costs; warps of a program; one warp's way through all and through its loop."""

    cost: KernelCost
    warps: int
    whole: tuple[latency.Instruction, ...]
    loop: tuple[latency.Instruction, ...]


class PredictedPart(NamedTuple):
    """A predicted part of a call; microseconds of all its launches together.

    Attributes:
        call, card: of what, where.
        part: a kernel's name; or "XLA", "launches, least", "launches, most", "waits, least", "waits, most", "all, least",
            "all, most".
        launches: how many.
        warps, steps, registers: of a launch.
        issue_us, latency_us, memory_us, cache_us: see above.
        us: the longest of them.
        bound: which that is.
        waste: bytes of sectors touched over bytes wanted.
    """

    call: str
    card: str
    part: str
    launches: int
    warps: int = 0
    steps: int = 0
    registers: int = 0
    issue_us: float = 0.0
    latency_us: float = 0.0
    memory_us: float = 0.0
    cache_us: float = 0.0
    us: float = 0.0
    bound: str = ""
    waste: float = 0.0


def launches(call: PublicCall) -> tuple[list[Launched], int]:
    """Lists the kernels that a call launches, in order; and how many loops the host waits for.

    Of branches, the one with most launches; of loops that end by what they find, no turn.
    """
    with pretending(CARDS[0].name):
        jaxpr = jax.make_jaxpr(call.function)(*call.arguments).jaxpr
    return _launches(jaxpr, 1)


def sectors(entries: int, itemsize: int, *, store: bool) -> float:
    """Counts the sectors that are touched for a record of so many entries, in the mean over where records begin.

    A store is of one of a record's tiles, a sector's bytes at most, by neighbouring lanes at once. What is loaded stays in L1
    until the rest of its sector is wanted, so loads take what the record's bytes fill.
    """
    size = entries * itemsize
    if not store:
        return size / SECTOR
    count = 0
    for start, width in tiles(entries, _NUMBERS[itemsize], past_the_end=True):
        for record in range(SECTOR):
            first = record * size + start * itemsize
            last = record * size + min(start + width, entries) * itemsize - 1
            count += last // SECTOR - first // SECTOR + 1
    return count / SECTOR


def seconds(
    active_warps: int, walks: tuple[latency.WarpTime, latency.WarpTime], passes: float, warps: int, card: Processor
) -> tuple[float, float]:
    """Predicts issue and latency of a launch.

    Args:
        active_warps: how many of the kernel's warps an SM holds.
        walks: of a warp through all its code, with one pass of its loop; and through one more pass.
        passes: through the loop, in all.
        warps: of the launch.
        card: where.
    """
    whole, loop = walks
    schedulers = 4 * card.multiprocessors
    alone = whole.cycles + (passes - 1) * loop.cycles
    busy = whole.busy + (passes - 1) * loop.busy
    each = -(-warps // schedulers)
    waves = -(-each // max(active_warps // 4, 1))
    return each * busy / card.clock, waves * alone / card.clock


def predicted(call: str, launched: Launched, machine: Machine, card: Processor) -> PredictedPart:
    """Predicts all launches of a kernel in a call."""
    arrays = [(rows, n, size, False) for rows, n, size in launched.reads] + [(*x, True) for x in launched.writes]
    wanted = sum(rows * n * size for rows, n, size, _ in arrays)
    touched = sum(SECTOR * rows * sectors(n, size, store=store) for rows, n, size, store in arrays)
    warps = launched.grid * machine.warps
    load = _load_cycles(launched, wanted, warps, card)
    walks = latency.walk(machine.whole, load), latency.walk_loop(machine.loop, load)
    passes = max(launched.steps / machine.cost.loop_step_ratio, 1)
    issue, wait = seconds(machine.cost.active_warps, walks, passes, warps, card)
    memory = wanted / card.copy if wanted >= card.cache_bytes / 2 else 0.0
    times = {"issue": issue, "latency": wait, "memory": memory, "cache": touched / SECTOR / card.sectors}
    bound = max(times, key=lambda name: times[name])
    us = {f"{name}_us": 1e6 * launched.times * time for name, time in times.items()}
    return PredictedPart(
        call,
        card.name,
        launched.name,
        launched.times,
        warps,
        launched.steps,
        machine.cost.registers,
        **us,
        us=us[f"{bound}_us"],
        bound=bound,
        waste=touched / wanted,
    )


def predict(call: PublicCall, compile_once: "Compiler", xla: ahead_of_time.CompiledProgram | None) -> list[PredictedPart]:
    """Predicts a call on all `CARDS`, kernel by kernel, then its launches, what is waited for, and all together."""
    launched, waits = launches(call)
    with pretending(CARDS[0].name):
        kernels = triton_kernels(lower_for_gpu(call.function, *call.arguments))
    machines = [compile_once(_candidates(one, kernels)) for one in launched]
    rows: list[PredictedPart] = []
    for card in CARDS:
        own = [predicted(call.name, one, machine, card) for one, machine in zip(launched, machines, strict=True)]
        rows += [*own, *_totals(call.name, card, own, waits, xla)]
    return rows


class Compiler:
    """Compiles kernels for an H100 or H200, those that differ in nothing but large numbers once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Machine | None] = {}

    def __call__(self, kernels: Sequence[TritonKernel]) -> Machine:
        """Compiles the first kernel whose loop can be told from its machine code.

        Raises:
            ValueError: there is none.
        """
        for kernel in kernels:
            key = kernel.name, re.sub(r"\d{2,}", "N", kernel.ttir)
            if key not in self._known:
                self._known[key] = self._compiled(kernel)
            found = self._known[key]
            if found is not None:
                return found
        raise ValueError(f"{kernels[0].name}: its loop cannot be told from its machine code.")

    def _compiled(self, kernel: TritonKernel) -> Machine | None:
        try:
            cost, code, loop = examine(kernel, 90)
        except ValueError:
            return None
        *_, (_, everything, _, _) = code.passes()
        parts = (tuple(latency.instructions(code, indices)) for indices in (everything, loop))
        return Machine(cost, kernel.warps, *parts)


def _totals(
    call: str, card: Processor, own: list[PredictedPart], waits: int, xla: ahead_of_time.CompiledProgram | None
) -> Iterator[PredictedPart]:
    count, kernels = sum(row.launches for row in own), sum(row.us for row in own)
    others = moved = 0
    if xla is not None:
        others = (xla.fusions or 0) + (xla.copies or 0) + (xla.others or 0)
        moved, waits = xla.xla_bytes or 0, xla.waits or 0
    passes = 1e6 * moved / (card.copy if moved >= card.cache_bytes / 2 else card.cache_bandwidth)
    yield PredictedPart(call, card.name, "XLA", others, us=passes, bound="memory" if others else "not counted")
    for which, launch, wait in zip(("least", "most"), LAUNCH_SECONDS, WAIT_SECONDS, strict=True):
        gaps, waited = 1e6 * launch * (count + others), 1e6 * wait * waits
        yield PredictedPart(call, card.name, f"launches, {which}", count + others, us=gaps)
        yield PredictedPart(call, card.name, f"waits, {which}", waits, us=waited)
        yield PredictedPart(call, card.name, f"all, {which}", count + others, us=kernels + passes + gaps + waited)


def _load_cycles(launched: Launched, wanted: float, warps: int, card: Processor) -> float:
    """Counts the cycles of a load in the mean: of a record smaller than a sector, some steps find theirs in L1."""
    far = card.memory_cycles if wanted >= card.cache_bytes / 2 else card.cache_cycles
    long = [(n, size) for rows, n, size in launched.reads if rows > 32 * warps]
    loads = [(len(tiles(n, _NUMBERS[size])), min(1.0, n * size / SECTOR)) for n, size in long]
    count = sum(n for n, _ in loads)
    share = sum(n * part for n, part in loads) / count if count else 1.0
    return share * far + (1 - share) * latency.LOAD_FROM_L1


def _launches(jaxpr: Any, times: int) -> tuple[list[Launched], int]:
    found: list[Launched] = []
    waits = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            arrays = [[v.aval for v in some] for some in (equation.invars, equation.outvars)]
            reads, writes = (tuple((*_record(a.shape), a.dtype.itemsize) for a in some) for some in arrays)
            shapes = tuple(tuple(a.shape) for some in arrays for a in some)
            grid = math.prod(equation.params["grid_mapping"].grid)
            steps = _turns(equation.params["jaxpr"])
            found.append(Launched(equation.params["name"], grid, steps, times, reads, writes, shapes))
        elif equation.primitive.name == "while":
            waits += times
        elif equation.primitive.name == "cond":
            branches = [_launches(branch.jaxpr, times) for branch in equation.params["branches"]]
            more, waited = max(branches, key=lambda branch: sum(one.times for one in branch[0]))
            found, waits = found + more, waits + waited + times
        else:
            turns = equation.params["length"] if equation.primitive.name == "scan" else 1
            for inner in inner_jaxprs(equation):
                more, waited = _launches(inner, times * turns)
                found, waits = found + more, waits + waited
    return found, waits


def _turns(jaxpr: Any) -> int:
    inner = (_turns(x) for equation in jaxpr.eqns for x in inner_jaxprs(equation))
    own = (equation.params["length"] for equation in jaxpr.eqns if equation.primitive.name == "scan")
    return max([1, *own, *inner])


def _candidates(launched: Launched, kernels: list[TritonKernel]) -> list[TritonKernel]:
    """Lists the kernel that is launched, then others of its name, the widest first, whose code is much the same."""
    named = [kernel for kernel in kernels if kernel.name == launched.name]
    return sorted(named, key=lambda kernel: (kernel.shapes != launched.shapes, -kernel.grid[0]))


def _record(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])
