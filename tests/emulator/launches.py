"""Kernels of a program executed without a GPU: lowered for one, compiled by Triton to PTX, and run by the emulator.

Within `emulate`, a Pallas kernel on a CPU is a call of the emulator; all else of the program runs as ever. So a public call
runs the very instructions that a GPU would, from what XLA gave its kernels to what it made of their results.
"""

import concurrent.futures
import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src.interpreters.mlir import _lowerings
from jax.experimental import pallas as pl
from jax.interpreters import mlir

from emulator.assembly import Kernel, parse
from emulator.machine import run
from emulator.memory import Array, FaultError, Memory
from fastscan.profiling.compiled.machine_code import TritonKernel, compiler_options, lower_for_gpu, triton_kernels
from fastscan.profiling.compiled.public_calls import pretending

POISON = 0xFF
"""Of bytes that nobody wrote: floating numbers are NaN."""


class Launched(NamedTuple):
    """A launch that the emulator executed.

    Attributes:
        kernel: its name.
        programs: how many.
        threads: in all.
        instructions: executed, of all threads together.
        room: for each output, how many rows were left free.
    """

    kernel: str
    programs: int
    threads: int
    instructions: int
    room: tuple[int, ...]


class Compiled(NamedTuple):
    """A kernel as PTX, and the bytes of shared memory that its launch adds."""

    kernel: Kernel
    shared_bytes: int
    text: str


class Emulator:
    """Executes launches, and keeps what was launched, in order.

    Attributes:
        capability: of the GPU that kernels are compiled for, 80 or 90.
        mend: ``(kernel's name, PTX) -> PTX``, by which tests plant faults.
        failure: of the first launch that failed.
    """

    def __init__(self, capability: int = 90, mend: Callable[[str, str], str] = lambda _, text: text):
        self.capability, self.mend = capability, mend
        self.launched: list[Launched] = []
        self.failure: Exception | None = None

    @property
    def kernels(self) -> set[str]:
        """The names of those that were launched."""
        return {launch.kernel for launch in self.launched}

    def launch(self, kernel: TritonKernel, outputs: Sequence[jax.ShapeDtypeStruct], *inputs: Any) -> list[np.ndarray]:
        """Executes a launch; `failure` is the first one's error.

        Where one failed, and after that, outputs are what nobody wrote.
        """
        results = [np.full(math.prod(s.shape) * s.dtype.itemsize, POISON, np.uint8).view(s.dtype) for s in outputs]
        try:
            if self.failure is None:
                self.launched.append(self.run(kernel, results, outputs, *inputs))
        except Exception as error:
            error.add_note(f"in the kernel {kernel.name}")
            self.failure = error
        return [x.reshape(s.shape) for x, s in zip(results, outputs, strict=True)]

    def run(self, kernel: TritonKernel, results: list[np.ndarray], outputs: Sequence[Any], *inputs: Any) -> Launched:
        """Writes a launch's results."""
        compiled = compile_to_ptx(kernel, self.capability)
        text = self.mend(kernel.name, compiled.text)
        kernel_ = compiled.kernel if text == compiled.text else parse(text)
        arrays = [Array(f"input {k}", np.asarray(x), written=False) for k, x in enumerate(inputs)]
        arrays += [Array(f"output {k}", x, written=True) for k, x in enumerate(results)]
        addresses = [int(Memory.address(k)) for k in range(len(arrays))]
        count = run(kernel_, kernel.grid, addresses, Memory(arrays), shared_bytes=compiled.shared_bytes)
        room = tuple(_room(kernel.name, a, s.shape) for a, s in zip(arrays[len(inputs) :], outputs, strict=True))
        programs = math.prod(kernel.grid)
        return Launched(kernel.name, programs, programs * kernel_.threads, count, room)


def _room(kernel: str, array: Array, shape: tuple[int, ...]) -> int:
    """Counts the rows that nobody wrote: a sweep may leave the last one of every sequence for what comes after it."""
    words = array.writer.size // math.prod(shape[:-1])
    left, counts = np.unique(array.unwritten // words, return_counts=True)
    if not left.size:
        return 0
    rows, rest = divmod(math.prod(shape[:-1]), left.size)
    is_last = left == np.arange(1, left.size + 1) * rows - 1
    if rest or rows == 1 or not is_last.all() or (counts < words).any() or not kernel.endswith("_sweep"):
        raise FaultError(f"nobody wrote {array.unwritten.size:,} words of {array.name}, the first in row {left[0]:,}")
    return left.size


@functools.lru_cache(maxsize=1024)
def compile_to_ptx(kernel: TritonKernel, capability: int) -> Compiled:
    """Compiles a kernel by Triton's own compiler, with the options that XLA has (see `compiled.machine_code`)."""
    import triton
    from triton._C.libtriton import ir
    from triton.backends.compiler import Language

    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    backend: Any = triton.compiler.make_backend(target)
    options = backend.parse_options(compiler_options(kernel))
    stages: dict[str, Callable] = {}
    backend.add_stages(stages, options, Language.TRITON)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ttir")
        path.write_text(kernel.ttir)
        module: Any = ir.parse_mlir_module(str(path), context)
        module.context = context
    metadata = {"target": target, **options.__dict__}
    for name, stage in stages.items():
        if name == "cubin":
            break
        module = stage(module, metadata)
    return Compiled(parse(module), metadata["shared"], module)


_current: list[Emulator] = []
_thread = concurrent.futures.ThreadPoolExecutor(1)
"""XLA's own threads take tiny numbers for zero, and several of them may call at once."""


def emulate(function: Callable, *arguments: Any, emulator: Emulator | None = None) -> Any:
    """Calls a function as on a GPU, its kernels in the emulator, which then knows what was launched.

    Raises:
        FaultError: a kernel did what none may do.
        UnknownInstructionError: it has an instruction that the emulator has not learned.
    """
    emulator = emulator or Emulator()
    _register()
    _current.append(emulator)
    try:
        with pretending("NVIDIA H100 80GB HBM3"):
            out = jax.block_until_ready(function(*arguments))
    finally:
        _current.pop()
    if emulator.failure is not None:
        raise emulator.failure
    return out


@functools.cache
def _register() -> None:
    """Tells JAX how a kernel is lowered for a CPU."""
    probe = jax.make_jaxpr(pl.pallas_call(lambda _: None, out_shape=jax.ShapeDtypeStruct((1,), "float32"), interpret=True))()
    primitive = next(e.primitive for e in probe.jaxpr.eqns if "pallas" in e.primitive.name)
    default = _lowerings[primitive].rule

    def rule(context: Any, *operands: Any, interpret: Any, **params: Any) -> Any:
        if interpret or not _current:
            return default(context, *operands, interpret=interpret, **params)
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in context.avals_out]

        def bound(*arrays: jax.Array) -> Any:
            return primitive.bind(*arrays, interpret=interpret, **params)

        (kernel,) = triton_kernels(lower_for_gpu(bound, *context.avals_in))

        def call(*arrays: Any) -> Any:
            arrays = tuple(np.asarray(x) for x in arrays)
            return tuple(_thread.submit(_current[-1].launch, kernel, shapes, *arrays).result())

        lowered = mlir.lower_fun(lambda *arrays: jax.pure_callback(call, tuple(shapes), *arrays), multiple_results=True)
        return lowered(context, *operands)

    mlir.register_lowering(primitive, rule, platform="cpu")
