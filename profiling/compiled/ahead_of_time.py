"""Public calls compiled for a GPU that is not here, by XLA's own compiler: what becomes of them, and how long that takes.

It wants a Python with the CUDA plugin and what compiles machine code, not a whole CUDA::

    pip install -e . "jax==0.11.2" "jax-cuda13-plugin==0.11.2" "jax-cuda13-pjrt==0.11.2" nvidia-cuda-nvcc nvidia-nvvm
    pip install rich blackjax optax
    python -m fastscan.profiling ahead-of-time

No program here calls a library, so there need be no cuDNN; the command tells the plugin not to look. It is not for CI.
"""

import contextlib
import csv
import json
import math
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from fastscan.profiling.compiled.machine_code import on_abstract_gpu
from fastscan.profiling.compiled.public_calls import PublicCall, large_calls, pretending, public_calls
from fastscan.profiling.measure.machine import describe, version
from fastscan.profiling.measure.progress import counted

DEVICES = {
    "NVIDIA H100 80GB HBM3": (3_352_320_000_000, 52_428_800, 84_942_979_072),
    "NVIDIA H200": (4_800_000_000_000, 52_428_800, 151_397_597_184),
}
"""Bytes a second of memory, of L2, and of memory, as XLA's own descriptions of these cards have them (its repository,
xla/backends/gpu/target_config/specs); all else that it asks for is the same."""

_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  name: "{name}" memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 device_address_bits: 64
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"
"""
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "replica-id"}
_VIEWS = {"bitcast", "transpose", "reshape"}
_FREE |= {"fusion-done", "copy-done", "async-done", "async-update"}


class HLOInstruction(NamedTuple):
    """A line of optimised HLO: name, shape of the result, opcode, operands' names, the rest, whether it is the result."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool


class Pass(NamedTuple):
    """A launch that XLA makes of its own, beside our kernels.

    Attributes:
        name: of the instruction.
        opcode: fusion, copy...
        times: how often a call runs it.
        bytes: that it reads and writes each time.
        source: the operation of JAX's that it came from.
    """

    name: str
    opcode: str
    times: int
    bytes: int
    source: str


class ProgramCounts(NamedTuple):
    """The launches and loops of one call of a program.

    Attributes:
        kernels: launches of our own.
        passes: XLA's launches.
        waits: loops whose next turn the host asks the device for, at least once each; in the record, how many.
        loops: all loops.
    """

    kernels: int
    passes: list[Pass]
    waits: int
    loops: int


class CompiledProgram(NamedTuple):
    """A compiled program; or, with ``error``, one that is not.

    Attributes:
        call, device: what was compiled, and for which GPU.
        lower_seconds, compile_seconds: tracing and lowering; compiling.
        kernels: launches of our own kernels in a call, where no seam has to be swept again.
        fusions, copies, others: launches of XLA's.
        loops, waits: see `ProgramCounts`.
        graphs, alone: CUDA graphs, those of loops' bodies included; and launches, as the program lists them, that are in none.
        xla_bytes: that XLA's launches read and write.
        temporary_bytes: that XLA allocates beside arguments and results.
        error: the first line, "" if there was none.
    """

    call: str
    device: str
    lower_seconds: float | None = None
    compile_seconds: float | None = None
    kernels: int | None = None
    fusions: int | None = None
    copies: int | None = None
    others: int | None = None
    loops: int | None = None
    waits: int | None = None
    graphs: int | None = None
    alone: int | None = None
    xla_bytes: int | None = None
    temporary_bytes: int | None = None
    error: str = ""


def target(name: str) -> str:
    """Describes one of `DEVICES` to XLA."""
    bandwidth, cache, memory = DEVICES[name]
    return _TARGET.format(name=name, bandwidth=bandwidth, cache=cache, memory=memory)


def compiled(call: PublicCall, name: str) -> tuple[CompiledProgram, list[Pass], str]:
    """Compiles a call for a GPU that need not be there; the passes that XLA makes, and the optimised HLO."""
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    topology = topologies.get_topology_desc(platform="cuda", target_config=target(name), topology="1x1x1")
    there = SingleDeviceSharding(topology.devices[0])
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), call.arguments)
    start = time.perf_counter()
    with pretending(name), on_abstract_gpu(), _quiet():
        lowered = jax.jit(call.function).trace(*arguments).lower(lowering_platforms=("cuda",))
    between = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        program = lowered.compile({"xla_dump_to": folder})
        end = time.perf_counter()
        graphs, alone = count_graphs(
            "".join(f.read_text() for f in Path(folder).glob("*thunk_sequence_after_thunk_passes.txt"))
        )
    text, usage = program.as_text() or "", program.memory_analysis()
    found = count(text)
    fusions, copies, all_passes = (sum(p.times for p in found.passes if p.opcode.startswith(k)) for k in ("fusion", "copy", ""))
    row = CompiledProgram(
        call.name,
        name,
        lower_seconds=between - start,
        compile_seconds=end - between,
        kernels=found.kernels,
        fusions=fusions,
        copies=copies,
        others=all_passes - fusions - copies,
        loops=found.loops,
        waits=found.waits,
        graphs=graphs,
        alone=alone,
        xla_bytes=sum(p.times * p.bytes for p in found.passes),
        temporary_bytes=usage.temp_size_in_bytes if usage else None,
    )
    return row, found.passes, text


def count(text: str) -> ProgramCounts:
    """Counts what one call of a program runs, from its optimised HLO.

    A loop whose number of turns XLA knows runs as often; any other is one that sweeps seams again and, as models need it
    rarely, none at all. In-place updates count what they write; what a fusion slices counts as the slice.
    """
    computations = _computations(text)
    passes: list[Pass] = []
    kernels = waits = loops = 0

    def visit(name: str, times: int) -> None:
        nonlocal kernels, waits, loops
        lines = computations[name]
        for line in lines.values():
            called = dict(re.findall(r"(\w+)=%([\w.\-]+)", line.rest))
            if line.opcode == "while":
                turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line.rest)
                loops, waits = loops + 1, waits + times * (not turns)
                visit(called["body"], times * int(turns[1]) if turns else 0)
            elif line.opcode == "call":
                visit(called["to_apply"], times)
            elif line.opcode == "custom-call" and "xla.gpu.triton" in line.rest:
                kernels += times
            elif line.opcode not in _FREE and times:
                source = re.search(r'op_name="([^"]*)"', line.rest)
                moved = _moved(line, lines, computations.get(called.get("calls", ""), {}))
                passes.append(Pass(line.name, line.opcode, times, moved, source[1] if source else ""))

    entry = next((name for name in computations if name.startswith("ENTRY ")), None)
    if entry is None:
        raise ValueError("No entry computation in the HLO.")
    visit(entry, 1)
    return ProgramCounts(kernels, passes, waits, loops)


def count_graphs(thunks: str) -> tuple[int, int]:
    """Counts the command buffers, which are CUDA graphs, of a list of thunks as XLA dumps it; and launches outside of them."""
    graphs = alone = 0
    inside = None  # of a command buffer at this depth
    for line in thunks.splitlines():
        if match := re.match(r"( *)\d+: (k\w+)", line):
            depth = len(match[1])
            inside = None if inside is not None and depth <= inside else inside
            if match[2] == "kCommandBuffer":
                graphs, inside = graphs + 1, depth
            elif inside is None and match[2] in ("kCustomKernel", "kKernel", "kCopy", "kMemset32BitValue", "kMemzero"):
                alone += 1
    return graphs, alone


def run_ahead_of_time(folder: Path, only: str, devices: list[str], out: Path | None) -> None:
    """Compiles all calls for some of `DEVICES`; writes a record ``*-ahead-of-time.csv`` as it goes, and a json beside it.

    Args:
        folder: of the record.
        only: calls whose name holds this.
        devices: names of GPUs.
        out: where optimised HLO goes; None keeps none.
    """
    about = describe("python -m fastscan.profiling ahead-of-time")
    about["versions"] |= {name: version(name) for name in ("jax-cuda13-plugin", "nvidia-cuda-nvcc")}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{about['date']}-ahead-of-time.csv"
    large: dict[str, list] = {}
    calls = [call for call in (*public_calls(), *large_calls()) if only in call.name]
    with path.open("w", newline="") as file, counted(Console(), len(devices) * len(calls)) as begin:
        writer = csv.writer(file)
        writer.writerow(CompiledProgram._fields)
        for name in devices:
            for call in calls:
                begin(f"{call.name} for {name}")
                try:
                    row, passes, text = compiled(call, name)
                    large[f"{call.name}, {name}"] = [p._asdict() for p in passes if p.bytes * p.times >= 1 << 16]
                    if out is not None:
                        out.mkdir(parents=True, exist_ok=True)
                        (out / f"{re.sub(r'[^a-zA-Z0-9]+', '_', call.name)}.hlo").write_text(text)
                except Exception as error:  # one that does not compile is a line of the record, not its end
                    row = CompiledProgram(call.name, name, error=f"{type(error).__name__}: {error}".splitlines()[0][:200])
                print(f"{call.name} for {name}: {_sentence(row)}", flush=True)
                writer.writerow("" if x is None else f"{x:.3g}" if isinstance(x, float) else x for x in row)
                file.flush()
                jax.clear_caches()
    path.with_suffix(".json").write_text(json.dumps(about | {"passes of 64 KiB or more": large}, indent=1) + "\n")
    print(f"record: {path}")


def read_rows(path: Path) -> list[CompiledProgram]:
    """Reads a record."""
    with path.open(newline="") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: dict[str, str]) -> CompiledProgram:
    numbers: dict[str, Any] = {}
    for name in CompiledProgram._fields[2:-1]:
        kind = float if name.endswith("seconds") else int
        numbers[name] = kind(line[name]) if line[name] else None
    return CompiledProgram(line["call"], line["device"], **numbers, error=line["error"])


def _sentence(row: CompiledProgram) -> str:
    if row.error:
        return row.error
    return (
        f"lowered in {row.lower_seconds:.1f} s, compiled in {row.compile_seconds:.1f} s; {row.kernels} kernels, {row.fusions} "
        f"fusions, {row.copies} copies, {row.others} others, {row.loops} loops, of which {row.waits} are waited for; "
        f"{row.graphs} graphs, {row.alone} launches in none; {row.xla_bytes or 0:,} bytes moved by XLA, "
        f"{row.temporary_bytes or 0:,} temporary"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Pallas.*Triton", category=DeprecationWarning)
        yield


def _computations(text: str) -> dict[str, dict[str, HLOInstruction]]:
    """Instructions by name, by computation; the entry's name has ENTRY before it."""
    found: dict[str, dict[str, HLOInstruction]] = {}
    lines: dict[str, HLOInstruction] = {}
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = found.setdefault((match[1] or "") + match[2], {})
        elif match := _INSTRUCTION.match(line):
            inside, rest = _split_call(match[5])
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            lines[match[2]] = HLOInstruction(match[2], match[3], match[4], operands, rest, bool(match[1]))
    return found


def _split_call(text: str) -> tuple[str, str]:
    """Splits a text at the parenthesis that ends a call."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def _bytes(shape: str) -> int:
    def one(kind: str, sizes: str) -> int:
        width = 1 if kind == "pred" else int(re.sub(r"\D", "", kind[1:] if kind != "bf16" else "16")) // 8
        return width * math.prod(int(n) for n in sizes.split(",") if n)

    return sum(one(*match) for match in _ARRAY.findall(shape))


def _moved(line: HLOInstruction, around: dict[str, HLOInstruction], inside: dict[str, HLOInstruction]) -> int:
    """Counts the bytes that a launch reads and writes."""
    if not inside:
        return _bytes(line.shape) + sum(_bytes(around[x].shape) for x in line.operands if x in around)
    total = 0
    for inner in inside.values():
        if inner.opcode == "parameter":
            users = _users(inner.name, inside)
            if users and all(user.opcode in ("slice", "dynamic-slice") for user, _ in users):
                total += sum(_bytes(user.shape) for user, _ in users)
            elif not any(user.opcode == "dynamic-update-slice" and user.operands[0] == x for user, x in users):
                total += _bytes(inner.shape)
    updates = [x for x in inside.values() if x.opcode == "dynamic-update-slice"]
    if updates:
        return total + sum(_bytes(inside[x.operands[1]].shape) for x in updates)
    return total + sum(_bytes(x.shape) for x in inside.values() if x.root)


def _users(name: str, inside: dict[str, HLOInstruction]) -> list[tuple[HLOInstruction, str]]:
    """Lists what computes with a number of a fusion, in whichever view of it, and the view's name."""
    found = []
    for user in inside.values():
        if name in user.operands:
            found += _users(user.name, inside) if user.opcode in _VIEWS and not user.root else [(user, name)]
    return found


def newest_record(records: Path) -> Path | None:
    """Finds the last one of this kind in a folder of records."""
    return max((records / "ahead-of-time").glob("*.csv"), default=None)
