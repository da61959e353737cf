"""Costs of Pallas-Triton kernels, found on a machine without a GPU.

A kernel is lowered for CUDA, compiled by Triton's own compiler, and its machine code is read: registers, spills, occupancy, and
the instructions of its loop over time. XLA contracts no a * b + c of a Pallas kernel to an FMA and flushes no denormals (so the
code that jax 0.10.2 and 0.12.0 compile for sm_90a); `compile_kernel` asks the same of Triton, whose own defaults differ.
"""

import contextlib
import math
import re
import subprocess
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxlib.mlir import ir
from jaxlib.mlir.passmanager import PassManager

# Per SM: registers, bytes of shared memory, warps, blocks. Then SMs and clock of the card, A100 and H200.
_SM = {80: (65536, 164 * 1024, 64, 32), 90: (65536, 228 * 1024, 64, 32)}
_CARD = {80: (108, 1.41e9), 90: (132, 1.98e9)}
_KINDS = {
    "fma": "FFMA DFMA HFMA2",
    "add_mul": "FADD FMUL DADD DMUL HADD2 HMUL2",
    "matrix": "HMMA DMMA HGMMA",
    "special": "MUFU I2F I2FP F2I F2F F2FP FRND I2I",
    "load": "LDG LD LDGSTS",
    "store": "STG ST RED ATOM ATOMG",
    "local": "LDL STL",
    "shared": "LDS STS LDSM STSM SHFL BAR ATOMS",
    "integer": "IADD3 VIADD UIADD3 IMAD UIMAD IABS IMNMX VIMNMX LEA ULEA SHF USHF LOP3 ULOP3 ISETP UISETP PRMT UPRMT POPC FLO",
    "select": "FSEL SEL USEL FSETP DSETP FMNMX FSET FCHK PLOP3 UPLOP3 P2R R2P",
    "move": "MOV UMOV S2R S2UR CS2R R2UR LDC ULDC",
}
_KIND = {opcode: kind for kind, opcodes in _KINDS.items() for opcode in opcodes.split()}
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
_SIZES = "num_warps", "num_stages", "grid_x", "grid_y", "grid_z"
_SASS = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_LABEL = re.compile(r"([.$][\w.$]+):")
_TARGET = re.compile(r"`\((.+?)\)|(0x[0-9a-f]+)$")
_ONLY_MOVES = re.compile(r"(?:IMAD|HFMA2) \w+, -?RZ, RZ,")
_MOVED = re.compile(r"tt\.(load|store) .*!tt\.ptr<[a-z]+(\d+)")
_SHAPE = re.compile(r"tensor<((?:\d+x)+)")


class TritonKernel(NamedTuple):
    """A kernel of a lowered program: Triton IR, warps per program, pipeline stages, launch grid, and arrays' shapes."""

    name: str
    ttir: str
    warps: int
    stages: int
    grid: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...] = ()


class KernelCost(NamedTuple):
    """The costs of a compiled kernel. Instructions are those of one warp; bytes are per thread, but shared ones per program."""

    name: str
    capability: int
    seconds: float  # to compile, cold
    registers: int
    spilled_bytes: int  # LOCAL of cuobjdump, or what STL instructions store: ptxas 12 and 13 spill to the stack and say LOCAL:0
    stack_bytes: int
    shared_bytes: int
    instructions: int  # all, subroutines included, padding not
    loop_instructions: int  # of one pass, slow_path apart; inner loops once, both sides of branches; of all code if unrolled
    loop_kinds: dict[str, int]  # the same by kind
    loop_step_ratio: float  # iterations of the Triton loop in one pass: above 1, LLVM or ptxas unrolled it
    slow_path: int  # needed rarely: conditional calls (as float64 divisions and roots make), subroutines, code behind the loop
    inner_loops: int
    active_warps: int  # per SM, of 64, that registers, shared memory and warps per program allow

    @property
    def instructions_per_step(self) -> float:
        """The instructions of one warp, for one iteration of the Triton loop."""
        return self.loop_instructions / self.loop_step_ratio


def lower_for_gpu(function: Callable, *shapes: Any) -> jax.stages.Lowered:
    """Lowers a jittable function for an H200 that need not be there; shapes are arrays or `jax.ShapeDtypeStruct`s."""
    with on_abstract_gpu(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Pallas.*Triton", category=DeprecationWarning)
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",))


def triton_kernels(lowered: jax.stages.Lowered) -> list[TritonKernel]:
    """Finds the Pallas-Triton kernels of a program in order, wherever they are called; identical ones once.

    Their IR is simplified as XLA begins with it. Triton, given IR, leaves that step out, and then takes up to twice as long.
    """
    from jaxlib.triton import dialect

    module: Any = lowered.compiler_ir("stablehlo")
    kernels: dict[tuple, TritonKernel] = {}
    with ir.Context() as context:
        dialect.register_dialect(context)
        context.load_all_available_dialects()
        simplify = PassManager.parse("builtin.module(canonicalize,cse)")
        for call in _triton_calls(module.operation):
            config = ir.DictAttr(call.attributes["mhlo.backend_config"])
            name, code = ir.StringAttr(config["name"]).value, ir.StringAttr(config["ir"]).value_bytes
            warps, stages, *grid = (ir.IntegerAttr(config[key]).value for key in _SIZES)
            kernel = ir.Module.parse(code)
            simplify.run(kernel.operation)
            ttir = str(kernel.operation.get_asm())
            shapes = tuple(tuple(ir.ShapedType(value.type).shape) for value in (*call.operands, *call.results))
            kernels.setdefault((name, ttir, warps, stages), TritonKernel(name, ttir, warps, stages, tuple(grid), shapes))
    return list(kernels.values())


def pallas_calls(jaxpr: Any) -> Iterator[Any]:
    """Lists the equations that launch kernels, in order, wherever they are called."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in inner_jaxprs(equation):
                yield from pallas_calls(inner)


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """Lists what an equation calls: bodies of loops, branches, functions."""
    for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(leaf):
            yield getattr(leaf, "jaxpr", leaf)


def compiler_options(kernel: TritonKernel) -> dict[str, Any]:
    """Asks of Triton's compiler what XLA asks of it: no contraction of products and sums, denormals as they are."""
    return {"num_warps": kernel.warps, "num_stages": kernel.stages, "enable_fp_fusion": False, "enable_reflect_ftz": False}


def compile_kernel(kernel: TritonKernel, capability: int) -> KernelCost:
    """Compiles a kernel, with no cache, and reads its costs; arguments and errors as of `examine`."""
    return examine(kernel, capability)[0]


def examine(kernel: TritonKernel, capability: int) -> "tuple[KernelCost, Code, set[int]]":
    """Compiles a kernel, with no cache; returns its costs, its machine code, and which instructions are its usual time loop.

    The time loop is the largest natural loop of the machine code's flow graph: a branch from behind it into it makes no larger
    one. How many steps a pass makes is told by memory: bytes that a thread stores (if none, loads) in the pass, over those in
    the Triton loop's body after Triton's passes. Only unrolling changes these (of a loop within the body, too, if bytes move in
    it). Seen: bodies of up to 60 instructions unrolled 4 to 35 times or completely, not always as often by XLA as by Triton;
    longer ones in loops of 2 steps only. Loops that were not unrolled had at most 5 instructions more or less in XLA's code.

    Args:
        kernel: one of `triton_kernels`.
        capability: 80 (A100) or 90 (H100, H200).

    Raises:
        ImportError: Triton is not installed.
        ValueError: bytes fit no whole number of steps; or none move, and float operations are 1.6 times those of Triton's IR.
    """
    seconds, memory, code, ttgir = build(kernel, capability)
    loop, slow, inner, ratio = _time_loop(code, ttgir, 32 * kernel.warps)
    counts = len(code.lines), len(loop), dict(code.kinds(loop)), ratio, len(slow), inner
    occupancy = active_warps(memory[0], memory[-1], kernel.warps, capability)
    return KernelCost(kernel.name, capability, seconds, *memory, *counts, occupancy), code, loop


def build(kernel: TritonKernel, capability: int) -> "tuple[float, tuple[int, int, int, int], Code, str]":
    """Compiles a kernel; returns seconds, its registers, spilled, stack and shared bytes, its code, and Triton's last IR."""
    if capability not in _SM:
        raise ValueError(f"Known compute capabilities are {sorted(_SM)}, not {capability}.")
    ttgir, shared, seconds, usage, sass = _compile(kernel, capability)
    code = Code(sass)
    found = dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage))
    registers, stack, static, local = (int(found[key]) for key in ("REG", "STACK", "SHARED", "LOCAL"))
    return seconds, (registers, max(local, code.bytes(range(len(code.lines)), "STL")), stack, shared + static), code, ttgir


def active_warps(registers: int, shared_bytes: int, warps: int, capability: int) -> int:
    """Warps that fit on an SM, of 64, by registers per thread, and shared bytes (CUDA adds 1 KiB) and warps per program."""
    file, memory, most_warps, most_blocks = _SM[capability]
    by_registers = file // 4 // (-(-registers * 32 // 256) * 256) * 4 // warps
    by_memory = memory // (-(-shared_bytes // 128) * 128 + 1024)
    return min(by_registers, by_memory, most_warps // warps, most_blocks) * warps


def floor_seconds(steps: int, instructions_per_step: float, capability: int) -> float:
    """Computes the seconds that no launch undercuts: in each clock, each scheduler of an A100 (80) or H200 (90) issues one
    instruction of a warp.

    `steps` are those of all lanes together, one lane a thread.
    """
    multiprocessors, clock = _CARD[capability]
    return steps / 32 * instructions_per_step / (multiprocessors * 4) / clock


def on_abstract_gpu() -> contextlib.AbstractContextManager:
    """Says which GPU is meant, which from jax 0.11 lowering a Pallas kernel asks."""
    try:
        from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

        device: Any = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
        return use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
    except (ImportError, TypeError):
        return contextlib.nullcontext()


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def _triton_calls(op: Any) -> Iterator[Any]:
    for inner in (inner for region in op.regions for block in region.blocks for inner in block.operations):
        if inner.operation.name == "stablehlo.custom_call" and "xla.gpu.triton" in str(inner.attributes["call_target_name"]):
            yield inner
        yield from _triton_calls(inner.operation)


def _compile(kernel: TritonKernel, capability: int) -> tuple[str, int, float, str, str]:
    """Triton's IR after its passes, dynamic shared bytes, seconds, and what cuobjdump and nvdisasm say of the binary."""
    try:
        import triton
        import triton.backends.compiler
        import triton.knobs
    except ImportError as error:
        raise ImportError("A kernel's cost needs Triton's compiler, which is not installed: pip install triton") from error
    knobs: Any = triton.knobs
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir, knobs.compilation.always_compile = folder, True
        source, cubin = Path(folder, "kernel.ttir"), Path(folder, "kernel.cubin")
        source.write_text(kernel.ttir)
        start = time.perf_counter()
        compiled: Any = triton.compile(str(source), target=target, options=compiler_options(kernel))
        seconds = time.perf_counter() - start
        cubin.write_bytes(compiled.asm["cubin"])
        commands = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin], [knobs.nvidia.nvdisasm.path, cubin]
        texts = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands]
    return compiled.asm["ttgir"], compiled.metadata.shared, seconds, texts[0], texts[1]


class Code:
    """Machine code from the text of nvdisasm or cuobjdump, less the padding at its end; its flow graph is by instruction.

    A line is an opcode in parts, its operands, and the predicate that guards it, "" if none does.
    """

    def __init__(self, sass: str) -> None:
        labels, pending, lines = {}, [], []
        for line in sass.splitlines():
            if match := _LABEL.match(line):
                pending.append(match[1])
            elif match := _SASS.match(line):
                labels |= dict.fromkeys([*pending, hex(int(match[1], 16))], len(lines))
                pending = []
                lines.append((match[3].split("."), match[4].strip(), (match[2] or "").strip()))
        targets = [labels.get(match[1] or match[2]) if (match := _TARGET.search(line[1])) else None for line in lines]
        while lines and (lines[-1][0][0] == "NOP" or targets[len(lines) - 1] == len(lines) - 1):
            lines.pop()
        self.lines = lines
        self.calls = {i: j for i, line in enumerate(lines) if line[0][0] == "CALL" and (j := targets[i]) is not None}
        self.next: list[list[int]] = []
        for i, ((opcode, *_), operands, guarded) in enumerate(lines):
            never = not guarded and opcode in ("BRA", "EXIT", "RET", "BRX", "JMP")
            follows = not never or (opcode == "BRA" and "," in operands)
            ahead = [i + 1] * follows + [targets[i]] * (opcode == "BRA")
            self.next.append([j for j in ahead if j is not None and j < len(lines)])
        for i, target in list(self.calls.items()):
            if all(lines[j][0][0] != "RET" for j in _closure(self.next, [target], set())):  # for sm_80, a jump to the EXIT
                self.next[i] = self.next[i] * bool(lines[i][2]) + [self.calls.pop(i)]
        self.before = [[] for _ in lines]
        for i, j in ((i, j) for i, ahead in enumerate(self.next) for j in ahead):
            self.before[j].append(i)
        self.dominators, new = [], [1] + [-1] * (len(lines) - 1)  # as bits; -1: not reached
        while self.dominators != new:
            self.dominators, new = new, new[:]
            for i in range(1, len(lines)):
                new[i] = -1
                for j in self.before[i]:
                    new[i] &= new[j]
                new[i] |= 1 << i  # leaves -1 as it is

    def kinds(self, indices: Iterable[int]) -> Counter[str]:
        """Counts the instructions of each of `_KINDS`."""
        names = [(self.lines[i][0][0], self.lines[i][1]) for i in indices]
        return Counter("move" if _ONLY_MOVES.match(" ".join(name)) else _KIND.get(name[0], "other") for name in names)

    def bytes(self, indices: Iterable[int], *opcodes: str) -> int:
        """Counts the bytes that a thread moves with these opcodes."""
        found = (self.lines[i][0] for i in indices if self.lines[i][0][0] in opcodes and "CONSTANT" not in self.lines[i][0])
        return sum(next((_WIDTHS[x] for x in modifiers if x in _WIDTHS), 4) for _, *modifiers in found)

    @property
    def reached(self) -> set[int]:
        """The instructions that can be reached from the first one, subroutines not included."""
        return {i for i, bits in enumerate(self.dominators) if bits >= 0}

    def loops(self) -> list[tuple[int, set[int], list[int]]]:
        """Finds the natural loops: their first instructions, all of them, and those that end a pass."""
        latches: dict[int, list[int]] = defaultdict(list)
        for i in sorted(self.reached):
            for header in (j for j in self.next[i] if self.dominators[i] >> j & 1):
                latches[header].append(i)
        return [(header, _closure(self.before, ends, {header}), ends) for header, ends in latches.items()]

    def passes(self) -> Iterator[tuple[bool, set[int], set[int], int]]:
        """Finds the largest natural loop, if any, then all code: whether it is all, usual and rare instructions, inner
        loops.
        """
        loops = self.loops()
        everything = self.reached, [i for i in sorted(self.reached) if self.lines[i][0][0] == "EXIT"][-1:], True
        largest = sorted(loops, key=lambda loop: len(loop[1]))[-1:]
        for body, ends, whole in [*((body, ends, False) for _, body, ends in largest), everything]:
            usual, rare = set(), {i for i in body if i > max(ends)}
            for call in body & self.calls.keys():
                always = all(self.dominators[end] >> call & 1 for end in ends)
                (usual if always and not self.lines[call][2] else rare).update(_closure(self.next, [self.calls[call]], set()))
                while not always and self.before[call] == [call - 1] and self.next[call - 1] == [call]:
                    call -= 1
                rare |= set() if always else {i for i in body if self.dominators[i] >> call & 1}
            yield whole, usual | body - rare, rare, sum(header in body for header, *_ in loops) - (not whole)


def _closure(edges: list[list[int]], start: Iterable[int], found: set[int]) -> set[int]:
    """Follows edges from the start, and no further than what is found already."""
    todo = list(start)
    while todo:
        if (i := todo.pop()) not in found:
            found.add(i)
            todo += edges[i]
    return found


def _time_loop(code: Code, ttgir: str, threads: int) -> tuple[set[int], set[int], int, float]:
    """Finds usual and rare instructions, inner loops, and steps, of one pass through the largest loop of Triton's IR."""
    lines, start, depth, outer, body = ttgir.splitlines(), None, 0, 0, range(0)
    for n, line in enumerate(lines):
        if start is None and re.search(r"\bscf\.(for|while)\b", line):
            start, outer = n, depth
        depth += line.count("{") - line.count("}")
        if start is not None and depth == outer:
            start, body = None, max(body, range(start, n), key=len)
    moved, floats, steps = Counter(), 0, 0.0  # moved: bytes by what moves them and whether in the loop
    for n, line in enumerate(lines):
        lanes = max([1, *(math.prod(map(int, shape[:-1].split("x"))) // threads for shape in _SHAPE.findall(line))])
        for op, bits in _MOVED.findall(line):
            moved[op, n in body] += lanes * max(1, int(bits) // 8)
        guess = 48 if re.search(r"divf|math\.|extern_", line) else bool(re.search("(add|sub|mul)f", line))
        floats += lanes * guess * (n in body)
    op, *opcodes = ("store", "STG", "ST") if moved["store", True] else ("load", "LDG", "LD", "LDGSTS")
    for whole, usual, rare, inner in code.passes():
        if moved[op, True]:
            steps = (code.bytes(usual, *opcodes) - whole * moved[op, False]) / moved[op, True]
        elif body or whole:
            kinds = code.kinds(usual)
            steps = 0.5 if body and kinds["fma"] + kinds["add_mul"] > 1.6 * floats else 1.0
        if op == "load" and steps % 1 > 0.5:
            steps = float(math.ceil(steps))  # LLVM drops loads of what nobody reads
        if steps >= 1 and steps == int(steps):
            return usual, rare, inner, steps
        if steps:  # if not, the loop is of a slow path
            break
    raise ValueError(f"How many steps a pass through the loop of the machine code makes cannot be told: {steps}.")
