"""The figures this project is held to: ours against dynamax, in one process, both jitted and warm."""

import csv
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import fastscan
from fastscan.profiling.bench_gradients import gradient_rows
from fastscan.profiling.bench_hmc import hmc_rows
from fastscan.profiling.bench_hmm import hmm_rows
from fastscan.profiling.bench_rows import Row
from fastscan.profiling.machine import describe
from fastscan.profiling.models import random_params, simulate, tracking_params
from fastscan.profiling.timing import first_call_seconds, in_subprocess, medians


def speed_rows() -> Iterator[Row]:
    """Ours against dynamax's sequential code."""
    import dynamax.linear_gaussian_ssm as dynamax

    def row(work: str, ours: Callable, theirs: Callable, args: tuple, at_least: str, aim: str, repeats: int = 9) -> Row:
        slow, fast = medians([jax.jit(theirs), jax.jit(ours)], *args, repeats=repeats)
        return Row(work, "dynamax sequential", fast, slow, slow / fast, at_least, aim)

    tracking = tracking_params()
    for T, least in ((1_024, "9x"), (8_192, "15x"), (65_536, "12x")):
        y = jnp.asarray(simulate(tracking, T, 0))
        yield row(f"smoother D=4 m=2 T={T:,}", fastscan.lgssm_smoother, dynamax.lgssm_smoother, (tracking, y), least, "25x")
    for D, m, least, aim in ((1, 1, "8x", "20x"), (2, 1, "8x", "20x"), (16, 8, "1.3x", "3x")):
        params = random_params(D, m)
        y = jnp.asarray(simulate(params, 10_000, 0))
        work = f"smoother D={D} m={m} T=10,000"
        yield row(work, fastscan.lgssm_smoother, dynamax.lgssm_smoother, (params, y), least, aim)
    y = jnp.asarray(np.stack([simulate(tracking, 1_000, seed) for seed in range(64)]))
    mapped = jax.vmap(dynamax.lgssm_smoother, (None, 0))
    yield row("smoother D=4 m=2 T=1,000 B=64", fastscan.lgssm_smoother, mapped, (tracking, y), "3x", "8x")
    y, key = jnp.asarray(simulate(tracking, 10_000, 0)), jax.random.PRNGKey(0)
    args = (key, tracking, y)
    work = "posterior sample D=4 m=2 T=10,000"
    yield row(work, fastscan.lgssm_posterior_sample, dynamax.lgssm_posterior_sample, args, "8x", "20x")


_AGAINST_PARALLEL = """
import jax
from dynamax.linear_gaussian_ssm import parallel_lgssm_smoother
import fastscan
from fastscan.profiling.models import tracking_params, simulate
from fastscan.profiling.timing import first_call_seconds, medians
p = tracking_params()
y = jax.numpy.asarray(simulate(p, 10_000, 0))
theirs, ours = jax.jit(parallel_lgssm_smoother), jax.jit(fastscan.lgssm_smoother)
first = first_call_seconds(theirs, p, y)
print(first, *medians([theirs, ours], p, y))
"""


def parallel_and_first_call_rows() -> Iterator[Row]:
    """Ours against dynamax's parallel smoother, in a process with a time limit, tried twice; and first calls."""
    numbers = in_subprocess(_AGAINST_PARALLEL, timeout=100) or in_subprocess(_AGAINST_PARALLEL, timeout=100)
    first, theirs, ours = numbers or (None, None, None)
    ratio = None if ours is None or theirs is None else theirs / ours
    yield Row("smoother D=4 m=2 T=10,000", "dynamax parallel", ours, theirs, ratio, "20x", "50x")
    params = tracking_params()
    for T in (1_000, 10_000, 100_000):
        y = jnp.asarray(simulate(params, T, 0))
        ours = first_call_seconds(jax.jit(fastscan.lgssm_smoother), params, y)
        theirs = first if T == 10_000 else None
        yield Row(f"first call D=4 m=2 T={T:,}", "seconds; dynamax parallel", ours, theirs, None, "5 s", "2 s")


def default_rows() -> Iterator[Row]:
    """The default choice against the best of our own implementations."""
    problems = [(tracking_params(), T, 1) for T in (10, 100, 1_000, 8_192, 65_536)]
    problems += [(random_params(D, m), T, 1) for D, m in ((1, 1), (2, 1), (16, 8)) for T in (10, 100, 10_000)]
    problems += [(tracking_params(), 1_000, 64)]
    for params, T, B in problems:
        y = jnp.asarray(np.stack([simulate(params, T, seed) for seed in range(B)]))
        y = y if B > 1 else y[0]
        names = [None, "sequential", "chunked", *(["associative"] if T <= 100 else [])]
        runs = [jax.jit(functools.partial(fastscan.lgssm_smoother, implementation=name)) for name in names]
        default, *others = medians(runs, params, y, repeats=15)
        best = min(others)
        work = f"default D={params.dynamics.weights.shape[-1]} T={T:,}" + (f" B={B}" if B > 1 else "")
        yield Row(work, f"{names[1:][int(np.argmin(others))]}, our best", default, best, default / best, "1.25x", "1.1x")


def memory_rows() -> Iterator[Row]:
    """What one call allocates by XLA's own account, over the bytes of its inputs and outputs. No row where XLA has none."""
    y = jax.ShapeDtypeStruct((1_000_000, 2), jnp.float32)
    usage = jax.jit(fastscan.lgssm_smoother).lower(tracking_params(), y).compile().memory_analysis()
    if usage is None:
        return
    needed = usage.argument_size_in_bytes + usage.output_size_in_bytes
    used = needed + usage.temp_size_in_bytes
    yield Row("memory D=4 m=2 T=1,000,000 (bytes)", "inputs + outputs", used, needed, used / needed, "4x", "2.5x")


GROUPS = {
    "lgssm": (speed_rows, parallel_and_first_call_rows, default_rows, memory_rows),
    "hmm": (hmm_rows,),
    "gradients": (gradient_rows,),
    "hmc": (hmc_rows,),
}


def run_bench(out: Path, families: Sequence[str] = tuple(GROUPS)) -> list[Row]:
    """Measures everything of some families, prints it as it comes, and writes ``bench.csv`` and ``bench.json``."""
    out.mkdir(parents=True, exist_ok=True)
    about = describe(f"python -m fastscan.profiling bench --families {' '.join(families)}")
    (out / "bench.json").write_text(json.dumps(about, indent=2) + "\n")
    console = Console(width=140)
    console.print(about)
    rows = []
    with (out / "bench.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        for group in (group for family in families for group in GROUPS[family]):
            for row in group():
                rows.append(row)
                writer.writerow(f"{x:.6g}" if isinstance(x, float) else x for x in row)
                file.flush()
                console.print(f"[dim]{row.work}: {_ratio(row.value)}[/dim]")
    table = Table("work", "against", "ours", "theirs", "ratio", "at least", "aim", title="fastscan against its yardsticks")
    for row in rows:
        table.add_row(row.work, row.against, _number(row.ours), _number(row.theirs), _ratio(row.value), row.at_least, row.aim)
    console.print(table)
    return rows


def _number(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x / 1e6:,.0f} MB" if x > 1e5 else f"{x * 1e3:,.3f} ms" if x < 1 else f"{x:,.2f} s"


def _ratio(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}x"
