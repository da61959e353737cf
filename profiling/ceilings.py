"""What the work takes on a GPU, ours and dynamax's in turns, and the ceilings of the device it is held against."""

import functools
import importlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from fastscan.dispatch import choose
from fastscan.profiling.gpu_programs import Problem, Program, Programs
from fastscan.profiling.gpu_record import Record, TimingRow, first_line

SEQUENTIAL, PARALLEL = "dynamax sequential", "dynamax parallel"
BATCH_SECONDS, REPEATS = 0.02, 25
"""A batch of calls in flight lasts at least so long, and is repeated so often; in all at most `MOST_SECONDS` or 3 times."""
MOST_SECONDS = 1.5


def problems(dry_run: bool) -> list[Problem]:
    """What is timed, most important first."""
    if dry_run:
        return [
            Problem("smoother", 1, 1, 65),
            Problem("smoother", 1, 1, 6, B=3),
            Problem("loglik", 1, 1, 6),
            Problem("posterior sample", 1, 1, 6),
            Problem("filter", 1, 1, 6),
        ]
    return [
        Problem("smoother", 4, 2, 100_000),
        Problem("smoother", 4, 2, 1_000_000),
        Problem("smoother", 4, 2, 1_000, B=1_024),
        Problem("smoother", 4, 2, 10_000),
        Problem("smoother", 4, 2, 1_000),
        Problem("smoother", 4, 2, 10_000_000),
        Problem("loglik", 4, 2, 1_000_000),
        Problem("posterior sample", 4, 2, 1_000_000),
        Problem("smoother", 2, 1, 1_000_000),
        Problem("smoother", 1, 1, 1_000_000),
        Problem("filter", 4, 2, 1_000_000),
        Problem("smoother", 4, 2, 20, B=100_000),
        Problem("smoother", 6, 1, 100_000),
        Problem("smoother", 4, 2, 100_000, dtype="float64"),
    ]


def implementations(problem: Problem, dry_run: bool, dynamax: bool = True) -> list[str | None]:
    """Who is timed: the default by a name of its own only if it is none of the others; dynamax where it ends in time."""
    names: list[str | None] = ["pallas_interpret" if dry_run else "pallas", "chunked"]
    rows = problem.T * max(problem.B, 1)
    if rows <= (20 if dry_run else 100_000):
        names.append("associative")
    if not any(is_default(problem, name) for name in names):
        names.append(None)
    if dynamax and problem.dtype == "float32":
        names += [SEQUENTIAL] * (problem.T <= 10_000) + [PARALLEL] * (rows <= (20 if dry_run else 1_100_000))
    return names


def is_default(problem: Problem, name: str | None) -> bool:
    """Whether this is what None chooses."""
    if name is None or name.startswith("dynamax"):
        return name is None
    sizes: dict[str, Any] = {"T": problem.T, "B": max(problem.B, 1), "D": problem.D, "m": problem.m, "dtype": problem.dtype}
    return choose(None, **sizes).plan == choose(name, **sizes).plan


def run_timings(record: Record, programs: Programs, settled: float, until: float) -> None:
    """Times the problems once nothing is compiled any more, or no more than the share ``settled`` of the time is left."""
    everyone = everyones(record)
    for problem, names in everyone.items():
        for name in names:
            programs.ahead(problem, name)
    programs.settle(record.left_until(settled))
    for problem, names in everyone.items():
        what = f"timing {problem}"

        def blank(status: str, note: str, problem: Problem = problem) -> None:
            record.write(_row(problem, None, status, note)._replace(implementation="all", default=False))

        if record.left_until(until) < (0 if record.dry_run else 10):
            record.skip(what, "no time left", blank)
        else:
            record.attempt(what, 5, functools.partial(_time, record, programs, problem, names, until), blank)


def everyones(record: Record) -> dict[Problem, list[str | None]]:
    """The problems, and who is timed."""
    found = record.facts.setdefault("dynamax", _import_dynamax())
    return {problem: implementations(problem, record.dry_run, found == "ok") for problem in problems(record.dry_run)}


@functools.cache
def _import_dynamax() -> str:
    """Whether there is one: "ok", or why not (a package that it needs may be missing, or too new); a run goes on without."""
    try:
        importlib.import_module("dynamax.linear_gaussian_ssm")
    except Exception as error:
        return f"none: {first_line(error)}"
    return "ok"


def _time(record: Record, programs: Programs, problem: Problem, names: list[str | None], until: float) -> str:
    """Times all of a problem's programs that compile and run, in turns, and writes their rows."""
    with jax.enable_x64(problem.dtype == "float64"):
        data = jax.device_put(problem.data())
        ready: dict[str | None, Program] = {}
        failed = 0
        for name in names:
            try:
                program = programs.get(problem, name, 0.1 if programs.background else record.left_until(until))
                jax.block_until_ready(program.call(*data))
                ready[name] = program
            except TimeoutError as error:
                record.write(_row(problem, name, "skipped", str(error)))
            except Exception as error:
                record.fail(f"timing {name} {problem}", error)
                record.write(_row(problem, name, "failed", first_line(error)))
                failed += 1
        calls = {name: functools.partial(program.call, *data) for name, program in ready.items()}
        compiling = programs.compiling
        clocks = clock(calls, lambda: record.left_until(until), toy=record.dry_run)
    yardsticks = [float(np.median(clocks[x].in_flight)) if x in clocks else None for x in (PARALLEL, SEQUENTIAL)]
    copy = record.facts.get("ceilings", {}).get("copy_bytes_per_second")
    for name, program in ready.items():
        seconds = np.percentile(clocks[name].in_flight, [20, 50, 80]).tolist()
        alone = np.percentile(clocks[name].alone, [20, 50, 80]).tolist()
        ratios = [x / seconds[1] if x else None for x in yardsticks]
        share = program.bytes / seconds[1] / copy if program.bytes and isinstance(copy, float) else None
        sizes = (program.bytes, program.temporary_bytes, share)
        costs = (program.lower_seconds, program.compile_seconds, program.beside, compiling)
        counts = clocks[name].calls, len(clocks[name].in_flight)
        row = _row(problem, name, "ok")
        record.write(TimingRow(*row[: row._fields.index("p20")], *seconds, *counts, *alone, *ratios, *sizes, *costs))
    return "failed in part" if failed else "ok" if ready else "skipped"


def _row(problem: Problem, name: str | None, status: str, note: str = "") -> TimingRow:
    default = is_default(problem, name)
    sizes = problem.D, problem.m, problem.T, max(problem.B, 1), problem.dtype
    return TimingRow(problem.function, name or "default", default, *sizes, status, note=note)


class Clock(NamedTuple):
    """Seconds of a call: in batches of so many ``calls`` that are in flight together, and of one that is waited for."""

    calls: int
    in_flight: list[float]
    alone: list[float]


def clock(
    calls: dict[Any, Callable[[], Any]],
    seconds_left: Callable[[], float] = lambda: 1e9,
    toy: bool = False,
) -> dict[Any, Clock]:
    """Times warm functions in turns, so that all see the same machine; each before it counts runs once that does not."""
    batch_seconds, repeats = (1e-3, 2) if toy else (BATCH_SECONDS, REPEATS)
    clocks, most, quick = {}, {}, {}
    for name, call in calls.items():
        seconds, n = _batch(call, 1), 1
        while n * seconds < batch_seconds and n < 512:
            n = min(512, max(2 * n, int(1.2 * batch_seconds / seconds)))
            seconds = _batch(call, n)
        clocks[name] = Clock(n, [], [])
        most[name], quick[name] = min(repeats, max(3, int(MOST_SECONDS / (n * seconds)))), seconds < 0.3
    for turn in range(max(most.values(), default=0)):
        for name, call in calls.items():
            if turn >= most[name] or (turn and seconds_left() <= 0):
                continue
            if quick[name]:
                _batch(call, 1)
            clocks[name].in_flight.append(_batch(call, clocks[name].calls))
            single = clocks[name].calls == 1
            clocks[name].alone.extend(clocks[name].in_flight[-1:] if single else [_batch(call, 1) for _ in range(4)])
    return clocks


def _batch(call: Callable[[], Any], n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        out = call()
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / n


def run_ceilings(record: Record) -> None:
    """What the device copies in a second, and what it takes to start something on it.

    ``copy_bytes_per_second`` counts bytes read and written; ``call_seconds`` is that of a tiny program waited for,
    ``call_in_flight_seconds`` that of one among many, ``kernel_seconds`` that of each of a program's 100 Pallas kernels, and
    ``loop_step_seconds`` that of each step of a loop under XLA, which holds one small kernel.
    """
    ceilings = record.facts.setdefault("ceilings", {})

    def add(case: str, function: Callable, size: int, measure: Callable[[Clock], dict[str, float]]) -> None:
        def run() -> str:
            x = jnp.ones(size, "float32")
            call = functools.partial(jax.jit(function), x)
            jax.block_until_ready(call())
            found = clock({0: call}, record.left, toy=record.dry_run)[0]
            ceilings.update(measure(found))
            return "ok"

        with jax.enable_x64(False):
            record.attempt(f"ceiling {case}", 5, run, lambda status, note: ceilings.update({case: f"{status}: {note}"}))

    def starts(c: Clock) -> dict[str, float]:
        return {"call_seconds": _median(c.alone), "call_in_flight_seconds": _median(c.in_flight)}

    size = 1 << (16 if record.dry_run else 28)
    add("copy", lambda x: x + 1, size, lambda c: {"copy_bytes_per_second": 8 * size / _median(c.in_flight)})
    add("call", lambda x: x + 1, 1, starts)
    chain = functools.partial(_chain, interpret=record.dry_run)
    add("kernels", chain, 128, lambda c: {"kernel_seconds": _median(c.in_flight) / 100})
    add("loop", _loop, 128, lambda c: {"loop_step_seconds": _median(c.in_flight) / 1000})


def _chain(x: jax.Array, interpret: bool) -> jax.Array:
    from jax.experimental.pallas import triton

    def kernel(x: Any, out: Any) -> None:
        out[...] = x[...] + 1

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    how = None if interpret else triton.CompilerParams(num_warps=1)
    add_one = pl.pallas_call(kernel, out_shape=shape, interpret=interpret, compiler_params=how)
    return functools.reduce(lambda x, _: add_one(x), range(100), x)


def _loop(x: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 1000, lambda _, x: jnp.sin(x), x)


def _median(seconds: list[float]) -> float:
    return float(np.median(seconds))
