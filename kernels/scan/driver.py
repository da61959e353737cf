"""The drivers: ways to run a recurrence, which know it by its five functions only.

All of them cut time into C chunks of L rows, one lane each:

1. *summarise*: fold `append` over every chunk's rows;
2. *scan* the C summaries and `enter` each chunk: its entry state;
3. *sweep*: run `step` over every chunk's rows, from its entry state.

`OnXLA` does this with XLA, `OnGPU` with kernels; both are `Phases`. `forgetting` sweeps most rows ahead of the others, where
the plan says so and the recurrence can.
"""

from typing import Any

import jax

from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import forgetting
from fastscan.kernels.scan.forgetting import Ahead
from fastscan.kernels.scan.pallas import OnGPU
from fastscan.kernels.scan.phases import Phases
from fastscan.kernels.scan.recurrence import Hindsight, InChunks, Recurrence
from fastscan.kernels.scan.xla import OnXLA


def phases(plan: Plan) -> Phases:
    """Finds what carries a plan out; a series without rows needs no kernel."""
    return OnXLA(plan) if plan.launch is None or plan.steps == 0 else OnGPU(plan)


def run(
    plan: Plan, recurrence: Recurrence, params: Any, state: Any, series: Any, *, reverse: bool = False, room: Any = False
) -> tuple[Any, Any]:
    """Runs a recurrence over a series.

    Args:
        plan: how.
        recurrence: what to run.
        params: arrays (rows, columns, 1, B or 1).
        state: the state before the first row (with ``reverse``, after the last): arrays (rows, columns, 1, B or 1).
        series: arrays (B or 1, T, rows, columns).
        reverse: time runs from the series' end to its beginning.
        room: for each output, whether `join` is to put one more row at its end.

    Returns:
        The last state, arrays (rows, columns, 1, B or 1), and the outputs, for `join`.
    """
    by = phases(plan)
    params, state, rows = by.matrices(params), by.matrices(state), by.split(series)
    entries, ahead, in_chunks = state, None, InChunks(recurrence)
    if plan.chunks > 1:
        summaries, ahead = summarise(plan, recurrence, in_chunks, params, state, rows, reverse=reverse)
        entries = by.entries(recurrence, state, summaries, reverse=reverse)
    exits, outs = sweep(plan, in_chunks, params, entries, rows, ahead, reverse=reverse, room=room)
    return last(plan, exits, reverse=reverse), outs


def run_with_futures(
    plan: Plan, recurrence: Recurrence, hindsight: Hindsight, params: Any, state: Any, series: Any, *, room: Any = False
) -> tuple[Any, Any, tuple[Any, *tuple[Any, ...]], Any]:
    """Runs a recurrence over a series, for a pass that comes back: arguments as `run`.

    Returns:
        The params and the rows as the phases take them; what the way back begins from, the state after every chunk and, of more
        chunks than one, what all that follows says of it; and the outputs.
    """
    by = phases(plan)
    params, state, rows = by.matrices(params), by.matrices(state), by.split(series)
    entries, ahead, futures, in_chunks = state, None, (), InChunks(recurrence)
    if plan.chunks > 1:
        summaries, ahead = summarise(plan, recurrence, in_chunks, params, state, rows)
        entries, *futures = by.entries_and_futures(recurrence, hindsight, state, summaries)
    exits, outputs = sweep(plan, in_chunks, params, entries, rows, ahead, room=room)
    return params, rows, (exits, *futures), outputs


def summarise(
    plan: Plan, recurrence: Recurrence, in_chunks: InChunks, params: Any, state: Any, rows: Any, *, reverse: bool = False
) -> tuple[Any, Ahead | None]:
    """Finds every chunk's summary, and what was swept on the way; arguments as `Phases.summarise`."""
    if plan.forgetting and plan.launch is None and recurrence.forgetting:
        return forgetting.look_ahead(OnXLA(plan), recurrence, in_chunks, params, state, rows, reverse=reverse)
    return phases(plan).summarise(recurrence, params, state, rows, reverse=reverse), None


def sweep(
    plan: Plan,
    in_chunks: InChunks,
    params: Any,
    entries: Any,
    rows: Any,
    ahead: Ahead | None,
    *,
    reverse: bool = False,
    room: Any = False,
) -> tuple[Any, Any]:
    """Runs the recursion within every chunk, as far as it was not swept ahead; arguments and results as `Phases.sweep`."""
    if ahead is not None:
        return forgetting.catch_up(OnXLA(plan), in_chunks, params, entries, rows, ahead, reverse=reverse)
    begin = in_chunks.begin
    return phases(plan).sweep(in_chunks.recurrence, params, (entries,), rows, begin=begin, reverse=reverse, room=room)


def last(plan: Plan, exits: Any, *, reverse: bool = False) -> Any:
    """Returns the state after all chunks, as arrays, from the states after each."""
    chunk = slice(None, 1) if reverse else slice(-1, None)
    return jax.tree.map(lambda x: x[..., chunk, :], phases(plan).arrays(exits))
