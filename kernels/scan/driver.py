"""The drivers: ways to run a recurrence, which know it by its five functions only.

All of them cut time into C chunks of L rows, one lane each:

1. *summarise*: fold `append` over every chunk's rows;
2. *scan* the C summaries and `enter` each chunk: its entry state;
3. *sweep*: run `step` over every chunk's rows, from its entry state.

`OnXLA` does this with XLA, `OnGPU` with kernels; both are `Phases`. Where the plan says so, models that forget need no
summaries: every chunk is entered with a guess, and swept again as far as that matters (see the module `relay`).
"""

from typing import Any

import jax

from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.pallas import OnGPU
from fastscan.kernels.scan.phases import Phases
from fastscan.kernels.scan.recurrence import Hindsight, Recurrence
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
    entries = enter_chunks(plan, recurrence, params, state, rows, reverse=reverse)
    exits, outs = by.sweep(recurrence, params, (entries,), rows, reverse=reverse, room=room)
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
    entries, futures = state, ()
    if summarised(plan, recurrence):
        summaries = by.summarise(recurrence, params, state, rows)
        entries, *futures = by.entries_and_futures(recurrence, hindsight, state, summaries)
    exits, outputs = by.sweep(recurrence, params, (entries,), rows, room=room)
    return params, rows, (exits, *futures), outputs


def summarised(plan: Plan, recurrence: Recurrence) -> bool:
    """Tells whether the entry states of a recurrence's chunks come from summaries, and not from guesses."""
    relayed = plan.relay and plan.launch is None and recurrence.seam is not None and recurrence.seam.guess is not None
    return plan.chunks > 1 and not relayed


def enter_chunks(plan: Plan, recurrence: Recurrence, params: Any, state: Any, rows: Any, *, reverse: bool = False) -> Any:
    """Finds the state before every chunk, or returns that before the first where others are entered with guesses; arguments as
    `Phases.summarise`.
    """
    if not summarised(plan, recurrence):
        return state
    by = phases(plan)
    return by.entries(recurrence, state, by.summarise(recurrence, params, state, rows, reverse=reverse), reverse=reverse)


def last(plan: Plan, exits: Any, *, reverse: bool = False) -> Any:
    """Returns the state after all chunks, as arrays, from the states after each."""
    chunk = slice(None, 1) if reverse else slice(-1, None)
    return jax.tree.map(lambda x: x[..., chunk, :], phases(plan).arrays(exits))
