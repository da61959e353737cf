"""Ways to run a recurrence. They know it by its five functions only.

All of them cut time into C chunks of L rows, one lane each:

1. *summarise*: fold `append` over every chunk's rows;
2. *scan* the C summaries and `enter` each chunk: its entry state;
3. *sweep*: run `step` over every chunk's rows, from its entry state.

`chunked` does this with XLA, `pallas` with GPU kernels; they have the same functions. Series are pytrees of arrays
``(B or 1, T, rows, columns)``, everything else arrays ``(rows, columns, C or 1, B or 1)``; in between, each has its own
layout: `split` and `join` convert series, `matrices` and `arrays` the rest.
"""

from types import ModuleType
from typing import Any

import jax

from fastscan.kernels import chunked, pallas
from fastscan.kernels.plan import Plan
from fastscan.kernels.recurrence import Recurrence


def phases(plan: Plan) -> ModuleType:
    """The module that runs a plan; a series without rows needs no kernel."""
    return chunked if plan.launch is None or plan.steps == 0 else pallas


def run(
    plan: Plan, recurrence: Recurrence, params: Any, state: Any, series: Any, *, reverse: bool = False, room: Any = False
) -> tuple[Any, Any]:
    """A recurrence over a series.

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
    params, state, rows = by.matrices(plan, params), by.matrices(plan, state), by.split(plan, series)
    entries = state
    if plan.chunks > 1:
        summaries = by.summarise(plan, recurrence, params, state, rows, reverse=reverse)
        entries = by.entries(plan, recurrence, state, summaries, reverse=reverse)
    exits, outs = by.sweep(plan, recurrence, params, (entries,), rows, reverse=reverse, room=room)
    return last(plan, exits, reverse=reverse), outs


def last(plan: Plan, exits: Any, *, reverse: bool = False) -> Any:
    """The state after all chunks, as arrays, from the states after each."""
    chunk = slice(None, 1) if reverse else slice(-1, None)
    return jax.tree.map(lambda x: x[..., chunk, :], phases(plan).arrays(plan, exits))
