"""How long one warp takes through machine code: instructions issue in order, as soon as what they read is there.

A model of an SM's quarter, in cycles: one scheduler, which issues at most one instruction of a warp in a cycle; pipes, which
an instruction of a warp keeps busy for some cycles; and latencies, after which a result can be read. What it leaves out:
instruction caches, register banks, tags of the L1 cache, and how schedulers choose among warps. Nothing here was measured.

Sources of `PIPES`, by the tag in each line:

* [1] CUDA C++ Programming Guide, "Arithmetic instructions", results per cycle and SM at compute capability 9.0: 128 of float32,
  64 of float64, 64 of integers, comparisons and logic, 16 of special functions and conversions. A quarter's share of a warp's
  32 is 1, 2, 2 and 8 cycles.
* [2] Latency of dependent arithmetic on H100: 4 cycles (Table 3 of PMC10448217); of add.f32 on A100: 4 (arXiv 2208.11174).
* [3] Leads, of Volta to Ampere, that nobody has checked on Hopper: IMAD 5, float64 8, special functions and conversions 23,
  shared memory and shuffles 29, constants 30, special registers 20, uniform registers 12, a taken branch 10.
* [4] An L1 cache that moves 128 bytes a cycle: a warp's 32 words of 4, 8 or 16 bytes take a quarter 4, 8 or 16 cycles.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fastscan.profiling.compiled.machine_code import Code

LOAD_FROM_L1 = 40
"""Cycles of a load that hits (a lead: arXiv 2402.13499 is said to have 41 on an H100)."""


class Pipe(NamedTuple):
    """A pipe, which runs some opcodes.

    Attributes:
        busy: cycles for which an instruction of a warp keeps a quarter's pipe.
        latency: cycles after which its result can be read.
        opcodes: of its instructions.
    """

    busy: int
    latency: int
    opcodes: str


_INTEGER = "IADD3 VIADD IABS IMNMX VIMNMX LEA SHF LOP3 ISETP PRMT FSEL SEL FSETP FMNMX FSET FCHK PLOP3 MOV P2R R2P"
PIPES = {
    "float32": Pipe(1, 4, "FFMA FADD FMUL HFMA2 HADD2 HMUL2"),  # [1] [2]
    "integer multiply": Pipe(2, 5, "IMAD"),  # [1] [3]
    "integer": Pipe(
        2, 4, "IADD3 VIADD IABS IMNMX VIMNMX LEA SHF LOP3 ISETP PRMT FSEL SEL FSETP FMNMX FSET FCHK PLOP3 MOV P2R R2P"
    ),
    "float64": Pipe(2, 8, "DFMA DADD DMUL DSETP DMNMX"),  # [1] [3]
    "special": Pipe(8, 23, "MUFU I2F I2FP F2I F2F F2FP FRND I2I POPC FLO"),  # [1] [3]
    "shared": Pipe(4, 29, "LDS STS LDSM STSM SHFL BAR ATOMS"),  # [3]
    "constant": Pipe(2, 30, "LDC ULDC"),  # [3]
    "register": Pipe(2, 20, "S2R S2UR CS2R"),  # [3]
    "uniform": Pipe(2, 12, "R2UR UMOV UIADD3 UIMAD USHF ULOP3 ULEA UISETP UPLOP3 UPRMT USEL"),  # [3]
    "branch": Pipe(1, 10, "BRA CALL RET BRX JMP EXIT"),  # [3]
    "memory": Pipe(4, LOAD_FROM_L1, "LDG LD STG ST LDL STL RED ATOM ATOMG LDGSTS"),  # [4]
    "other": Pipe(1, 4, ""),
}
_PIPE_OF = {opcode: name for name, pipe in PIPES.items() for opcode in pipe.opcodes.split()}
_STORES = {"STG", "ST", "STL", "STS", "STSM", "RED", "BRA", "EXIT", "CALL", "RET", "BAR", "NOP", "BRX", "JMP", "WARPSYNC"}
_LOADS = {"LDG", "LD"}
_QUEUED = {"memory", "shared", "special"}
"""Pipes with a queue: a warp that finds one busy goes on."""
_MODIFIED = {"64": 2, "128": 4}
_REGISTER = re.compile(r"(?<![A-Z\w])(U?R\d+|U?P\d+)(\.64|\.H\d|\.F32x2)?")
_PREDICATE = re.compile(r"!?U?P(\d+|T)$")


class Instruction(NamedTuple):
    """The registers that an instruction reads and writes, by their names, and the pipe that runs it."""

    pipe: str
    busy: int
    reads: frozenset[str]
    writes: frozenset[str]
    load: bool


class WarpTime(NamedTuple):
    """A warp's way through code.

    Attributes:
        cycles: that it takes by itself, from the first issue until the last result is there.
        chain: the longest chain of dependent results in it, were everything else free.
        busy: cycles for which the busiest of the scheduler and the pipes is taken: so many, at least, for every warp.
        busiest: which one that is.
    """

    cycles: float
    chain: float
    busy: float
    busiest: str


def instruction(parts: Sequence[str], operands: str, guard: str = "") -> Instruction:
    """Reads a line of `Code`.

    The first operand is written, and predicates that follow it; by stores and branches, none. An instruction under a guard
    keeps what it writes otherwise, so it reads that, too.
    """
    opcode, *modifiers = parts
    name = _PIPE_OF.get(opcode, "other")
    given = [x.strip() for x in re.split(r",(?![^\[]*\])", operands)] if operands else []
    width = next((_MODIFIED[m] for m in modifiers if m in _MODIFIED), 1)
    double = opcode.startswith("D") and name == "float64"
    long = 2 if double or (opcode == "IMAD" and "WIDE" in modifiers) or modifiers[:1] == ["F64"] else 1
    count = 0 if opcode in _STORES else 1
    if count:
        both = opcode in ("LOP3", "SHFL") and _PREDICATE.match(given[0]) if given else False
        while count < len(given) and (_PREDICATE.match(given[count]) or (both and count == 1)) and count < 3:
            count += 1
    written = width if name in ("memory", "shared", "constant") else long
    writes = {r for x in given[:count] for r in _registers(x, written)}
    reads = {r for x in given[count:] for r in _registers(x, 2 if double else 1)}
    if opcode == "IMAD" and long == 2 and given:
        reads |= _registers(given[-1], 2)
    if opcode in _STORES and name in ("memory", "shared") and given:
        reads |= _registers(given[-1], width)
    if guard:
        reads |= writes | _registers(guard.lstrip("@!"), 1)
    busy = PIPES[name].busy * (width if name == "memory" else 1)
    return Instruction(name, busy, frozenset(reads), frozenset(writes), opcode in _LOADS and "CONSTANT" not in modifiers)


def instructions(code: Code, indices: Iterable[int]) -> list[Instruction]:
    """Reads the instructions of some lines, in their order."""
    return [instruction(*code.lines[i]) for i in sorted(indices)]


def walk(path: Sequence[Instruction], load: float = LOAD_FROM_L1) -> WarpTime:
    """Takes a warp along a path, of which nothing is known before.

    Args:
        path: what it executes, in order.
        load: cycles until what is loaded can be read.
    """
    cycles, _ = _issue(path, load, {}, in_order=True)
    chain, _ = _issue(path, load, {}, in_order=False)
    return WarpTime(cycles, chain, *_busy(path))


def walk_loop(body: Sequence[Instruction], load: float = LOAD_FROM_L1, passes: int = 4) -> WarpTime:
    """Takes a warp round a loop; returns what one more pass takes once it goes round evenly."""
    ends = {}
    for in_order in (True, False):
        few, many = (_issue(list(body) * n, load, {}, in_order=in_order)[1] for n in (passes, 2 * passes))
        ends[in_order] = (many - few) / passes
    return WarpTime(ends[True], ends[False], *_busy(body))


def _issue(path: Sequence[Instruction], load: float, ready: dict[str, float], *, in_order: bool) -> tuple[float, float]:
    """Computes when the last result is there, and when the last instruction was issued, or, out of order, when a chain
    ended.
    """
    now, last, free = 0.0, 0.0, dict.fromkeys(PIPES, 0.0)
    for step in path:
        start = max((ready.get(r, 0.0) for r in step.reads), default=0.0)
        if in_order:
            start = max(start, now)
            now = start if step.pipe in _QUEUED else max(start, free[step.pipe])
            start = max(start, free[step.pipe])
            free[step.pipe] = start + step.busy
            now += PIPES["branch"].latency if step.pipe == "branch" else 1
        done = start + (load if step.load else PIPES[step.pipe].latency)
        for r in step.writes:
            ready[r] = done
        last = max(last, done)
    return last, now if in_order else last


def _busy(path: Sequence[Instruction]) -> tuple[float, str]:
    taken: Counter[str] = Counter()
    for step in path:
        taken[step.pipe] += step.busy
        taken["issue"] += 1
    busiest = max(taken, key=lambda name: (taken[name], name == "issue"), default="issue")
    return float(taken[busiest]), busiest


def _registers(operand: str, width: int) -> set[str]:
    """Lists the registers that an operand names: so many from each on, or a pair where it says so."""
    found = set()
    for name, part in _REGISTER.findall(operand):
        letters, number = re.match(r"([A-Z]+)(\d+)", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
        count = 2 if part == ".64" else width if letters in ("R", "UR") and "[" not in operand else 1
        found |= {f"{letters}{int(number) + k}" for k in range(count)}
    return found
