"""The kernel report: every GPU kernel compiled on a machine without a GPU, and what its machine code says it costs."""

import csv
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from fastscan.dispatch import launches
from fastscan.kernels.hmm import passes as hmm_passes
from fastscan.kernels.lds import passes as potential_passes
from fastscan.kernels.lds import potentials
from fastscan.kernels.lgssm import passes
from fastscan.kernels.mcmc.metropolis import Schedule
from fastscan.kernels.plan import Launch, Plan
from fastscan.lgssm import inference as lgssm_inference
from fastscan.lgssm.check import Model, check_model
from fastscan.lgssm.layout import series
from fastscan.mcmc import inference as mcmc_inference
from fastscan.mcmc.target import Form
from fastscan.profiling.compiled.machine_code import (
    KernelCost,
    compile_kernel,
    floor_seconds,
    lower_for_gpu,
    pallas_calls,
    triton_kernels,
)
from fastscan.profiling.compiled.nested_loops import examine_nested
from fastscan.profiling.measure.machine import describe
from fastscan.profiling.measure.models import mixture, random_params
from fastscan.profiling.measure.progress import counted

STEPS, CHUNKS = 8_192, 512
"""The length of the series that the kernels are compiled for, whose sizes are constants in them: chunks of 16 steps, but for
models whose kernels take time in one."""
FLOOR_STEPS = 1_000_000
FAMILIES = ("smoother", "likelihood", "score", "sampler", "lds", "hmm_smoother", "hmm_mode", "hmm_sampler", "metropolis")
"""Families that the report can be of: four programs of a linear-Gaussian model ("score": the value and gradient of its
log-likelihood), one of a chain of potentials that vary, three of an HMM with time-invariant weights; random-walk Metropolis: in
the article's mixture, where D is 1, or in a correlated Gaussian."""

_DISPATCHED = {"hmm_smoother": "hmm", "hmm_mode": "hmm_mode", "hmm_sampler": "hmm_sample"}
_OF_THREADS = "lds", "metropolis"


class KernelRow(NamedTuple):
    """One kernel of one family at one size, compiled for one architecture.

    Attributes:
        family: what was asked for, one of `FAMILIES`.
        kernel: its name in the compiled program.
        D, m, dtype: the model's sizes and numbers; an HMM's D is its K, and its m is 0.
        sm: compute capability, 80 or 90.
        registers, spilled_bytes, shared_bytes, active_warps, seconds: see `machine_code.KernelCost`.
        per_step: machine instructions for a time step: of a warp for 32 sequences or chunks, or, of a model that a whole
            program holds, of all its warps for one; 0 for kernels that go through no steps of the series.
        kinds: of these, by kind.
        bytes_per_step: what the kernel's step-long inputs and outputs hold, per time step.
        floor_us: microseconds that issuing the instructions of a million steps takes at least, on an H200 (sm 90) or A100 (80).
        warps: of a program, if it holds a whole model; 0 if a thread does.
    """

    family: str
    kernel: str
    D: int
    m: int
    dtype: str
    sm: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    active_warps: int
    seconds: float
    per_step: float
    kinds: str
    bytes_per_step: float
    floor_us: float
    warps: int = 0


def program(family: str, D: int, m: int, dtype: str = "float32", how: Launch | None = None) -> tuple[Callable, tuple]:
    """Makes a family's computation with kernels, time-invariant full matrices and nothing missing; and its arguments.

    Args:
        family: one of `FAMILIES`.
        D: state dimensions; an HMM's K.
        m: emission dimensions; 0 for an HMM and for a chain of potentials.
        dtype: "float32" or, with JAX's x64, "float64".
        how: of the kernels' launches; default that of the model's size.

    Returns:
        A function to be jitted, and arrays or `jax.ShapeDtypeStruct`s.
    """
    kind = _DISPATCHED.get(family, "lgssm")
    how = how or (Launch() if family in _OF_THREADS else launches.launched(kind, D, m, dtype, {}, interpreted=False))
    chunks = min(CHUNKS, launches.chunks(how, kind, D, STEPS, 1)) if how.whole else CHUNKS
    plan = Plan(STEPS, chunks, launch=how)
    if family.startswith("hmm"):
        return _hmm_program(family, plan, D, dtype)
    if family == "metropolis":
        return _metropolis_program(plan, D, dtype)
    if family == "lds":
        return functools.partial(potential_passes.smooth, plan), (_chain(D, dtype),)
    model, _ = check_model(random_params(D, m, dtype), STEPS + 1, None, np.dtype(dtype))
    emissions, noise = (jax.ShapeDtypeStruct((1, STEPS + 1, n), dtype) for n in (m, D))

    def smoother(model: Model, emissions: jax.Array) -> Any:
        return passes.smooth(plan, series(plan, model, emissions, missing=False))

    def likelihood(model: Model, emissions: jax.Array) -> Any:
        return passes.filter_log_densities(plan, series(plan, model, emissions, missing=False)).sum()

    def sampler(model: Model, emissions: jax.Array, noise: jax.Array) -> Any:
        jitter = jnp.zeros((1, 1, 1, 1), dtype)
        return passes.sample(plan, series(plan, model, emissions, missing=False), noise[..., None], jitter)

    score = functools.partial(lgssm_inference.score, plan, False)
    function = {"smoother": smoother, "likelihood": likelihood, "score": score, "sampler": sampler}[family]
    return function, (model, emissions, noise) if family == "sampler" else (model, emissions)


def _chain(D: int, dtype: str) -> potential_passes.PotentialChain:
    """Pairs that vary, as in a switching system."""

    def series(steps: int, *fields: str) -> dict[str, Any]:
        return {f: jax.ShapeDtypeStruct((1, steps, D, D if f[0] in "JR" else 1), dtype) for f in fields}

    rows = potentials.PairInputs(**series(STEPS, *potentials.PairInputs._fields))
    return potential_passes.PotentialChain(potentials.Potential(**series(1, "h", "J")), potentials.PairInputs(), rows)


def _hmm_program(family: str, plan: Plan, K: int, dtype: str) -> tuple[Callable, tuple]:
    shapes = (1, 1, K, 1), (1, 1, K, K), (1, STEPS + 1, K, 1)
    arrays: list[Any] = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    arguments = (hmm_passes.HMMSeries(*arrays),)
    if family == "hmm_smoother":
        return functools.partial(hmm_passes.smooth_states, plan, counting=True), arguments
    if family == "hmm_mode":
        return functools.partial(hmm_passes.most_likely_states, plan), arguments
    uniform = jax.ShapeDtypeStruct((1, STEPS + 1, 1, 1), dtype)
    return functools.partial(hmm_passes.sample_states, plan), (*arguments, uniform)


def _metropolis_program(plan: Plan, D: int, dtype: str) -> tuple[Callable, tuple]:
    """Makes a run of chains enough for one warp, which keep their samples."""
    log_density = mixture
    if D > 1:
        precision = np.linalg.inv(0.5 ** np.abs(np.subtract.outer(np.arange(D), np.arange(D)))).astype(dtype)

        def log_density(x: jax.Array) -> jax.Array:
            return -0.5 * (x * (precision @ x)).sum(0)

    form = Form(jax.tree.structure(0), ((D,),), dtype)
    task = mcmc_inference.Task(log_density, form, plan.launch)
    chains = (plan.launch or Launch()).lanes
    shapes = ((D, chains), dtype), *[((chains,), dtype)] * 2, *[((chains,), "uint32")] * 2
    walkers = mcmc_inference.Walkers(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    words, factor = jax.ShapeDtypeStruct((2,), "uint32"), jax.ShapeDtypeStruct((1, 1), dtype)

    def run(words: jax.Array, factor: jax.Array, walkers: mcmc_inference.Walkers) -> mcmc_inference.Outcome:
        return mcmc_inference.run(task, Schedule(keep="samples"), STEPS, words, factor, walkers)

    return run, (words, factor, walkers)


def report(family: str, D: int, m: int, dtype: str = "float32", capabilities: Sequence[int] = (80, 90)) -> Iterator[KernelRow]:
    """Compiles every kernel of a family; those that run at several levels of the summaries' scan, for the widest."""
    function, arguments = program(family, D, m, dtype)
    whole = _whole(family, D, m, dtype)
    widest = {}
    for kernel in triton_kernels(lower_for_gpu(function, *arguments)):
        if kernel.name not in widest or kernel.grid > widest[kernel.name].grid:
            widest[kernel.name] = kernel
    moved = step_bytes(function, *arguments)
    for kernel in widest.values():
        for capability in capabilities:
            cost = examine_nested(kernel, capability) if whole else compile_kernel(kernel, capability)
            yield _row(cost, family, D, m, dtype, moved[kernel.name], kernel.warps if whole else 0)


def _whole(family: str, D: int, m: int, dtype: str) -> bool:
    return family not in _OF_THREADS and launches.in_programs(_DISPATCHED.get(family, "lgssm"), D, m, dtype)


def step_bytes(function: Callable, *arguments: Any) -> dict[str, float]:
    """Counts, for every kernel of a program, the bytes of those inputs and outputs that hold something for every step, per
    step.
    """
    found: dict[str, float] = {}
    for equation in pallas_calls(jax.make_jaxpr(function)(*arguments).jaxpr):
        tables = [v.aval for v in (*equation.invars, *equation.outvars)]
        long = [a.size * a.dtype.itemsize for a in tables if a.ndim and a.shape[0] >= STEPS]
        found[equation.params["name"]] = sum(long) / STEPS
    return found


def run_report(out: Path, sizes: Sequence[tuple[int, int]], families: Sequence[str], dtype: str) -> list[KernelRow]:
    """Compiles, prints, and writes ``kernels.csv`` as it goes and ``kernels.json`` (what it ran on)."""
    out.mkdir(parents=True, exist_ok=True)
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    about = describe("python -m fastscan.profiling kernels") | {"triton": _triton_version()}
    (out / "kernels.json").write_text(json.dumps(about, indent=2) + "\n")
    console, rows = Console(width=150), []
    columns = ["kernel", "D", "m", "sm", "registers", "spilled", "warps", "s to compile", "per step", "bytes/step", "floor us"]
    table = Table(*columns, title=f"GPU kernels, {dtype}; floors for {FLOOR_STEPS:,} steps: of instructions, not measured")
    with (out / "kernels.csv").open("w", newline="") as file, counted(console, len(sizes) * len(families)) as begin:
        writer = csv.writer(file)
        writer.writerow(KernelRow._fields)
        for family, (D, m) in ((f, size) for size in sizes for f in families):
            begin(f"{family} D={D} m={m} {dtype}")
            for row in report(family, D, m, dtype):
                rows.append(row)
                writer.writerow(f"{x:.6g}" if isinstance(x, float) else x for x in row)
                file.flush()
                console.print(f"[dim]{row.family} D={D} m={m} sm_{row.sm} {row.kernel}: {row.per_step:.0f} a step[/dim]")
                cells = (row.kernel, D, m, row.sm, row.registers, row.spilled_bytes, row.active_warps)
                numbers = (row.seconds, row.per_step, row.bytes_per_step, row.floor_us)
                table.add_row(*map(str, cells), *(f"{x:.1f}" for x in numbers))
    console.print(table)
    return rows


def _row(cost: KernelCost, family: str, D: int, m: int, dtype: str, moved: float, warps: int) -> KernelRow:
    per_step = cost.instructions_per_step * max(warps, 1) if moved else 0.0
    lanes = FLOOR_STEPS * (32 if warps else 1)
    return KernelRow(
        family,
        cost.name,
        D,
        m,
        dtype,
        cost.capability,
        cost.registers,
        cost.spilled_bytes,
        cost.shared_bytes,
        cost.active_warps,
        cost.seconds,
        per_step,
        json.dumps(cost.loop_kinds) if moved else "{}",
        moved,
        1e6 * floor_seconds(lanes, per_step, cost.capability),
        warps,
    )


@functools.cache
def _triton_version() -> str:
    import triton

    return triton.__version__
