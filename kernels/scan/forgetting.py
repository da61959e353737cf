"""Sweeping chunks before their entry states are known, from the row on where these no longer matter (XLA).

After some rows a hidden Markov model has forgotten the state before them, up to rounding. From there on a chunk can be
swept without its entry state, and its summary needs no more matrix products: it is one state, the same for all states
before the chunk. So the phases of `driver` become

1. *look ahead*: fold `append` until every chunk has forgotten its beginning, then run `step` to the chunks' ends;
2. scan the summaries, `enter` each chunk;
3. *catch up*: run `step` over the rows that the first phase folded.

How many rows that takes is found out as it runs. A model that never forgets folds all of them, as `xla` does.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import blank, stable_carry
from fastscan.kernels.ranges import phase
from fastscan.kernels.scan.recurrence import InChunks, Recurrence
from fastscan.kernels.scan.xla import OnXLA, where

BLOCK = 16
"""Rows from one look at the summaries to the next."""

TOLERANCE = 8
"""Roundings by which states count as the same: about as many as they differ by from rounding alone."""


class Ahead(NamedTuple):
    """The outcome of looking ahead.

    Attributes:
        rows: how many of every chunk are left to sweep.
        further: whether a chunk has other rows (C, 1).
        exits: the state after every chunk that has.
        outputs: of these other rows.
    """

    rows: jax.Array
    further: jax.Array
    exits: Any
    outputs: Any


@phase("summarise")
def look_ahead(
    xla: OnXLA, recurrence: Recurrence, sweep: InChunks, params: Any, state: Any, rows: Any, *, reverse: bool
) -> tuple[Any, Ahead]:
    """Finds every chunk's summary, and sweeps what needs no entry state. Arguments as `Phases.summarise` and `sweep`."""
    forgetting = recurrence.forgetting
    assert forgetting is not None, f"{recurrence.name} does not say how to tell that it has forgotten"

    def append(t, summary):
        x, present = _row(xla, recurrence, rows, t, reverse)
        return where(present, recurrence.append(params, summary, x), summary)

    def block(carry):
        start, summary, _ = carry
        stop = jnp.minimum(start + BLOCK, xla.plan.length)
        summary = lax.fori_loop(start, stop, append, summary)
        _, difference = forgetting.settled(summary)
        tolerance = TOLERANCE * jnp.finfo(difference.dtype).eps
        same = xla.arrays(difference)[0, 0] <= tolerance
        return stop, summary, (same | ~_further(xla, stop, reverse)).all()

    summary = stable_carry(lambda s, t: (append(t, s), None), recurrence.identity(state), jnp.int32(0))
    start = stable_carry(lambda carry, _: (block(carry), None), (jnp.int32(0), summary, jnp.bool_(False)), None)

    def until_forgotten(start):
        return lax.while_loop(lambda carry: (carry[0] < xla.plan.length) & ~carry[2], block, start)

    W, summary, _ = xla.compiled(until_forgotten)(start)
    further = _further(xla, W, reverse)
    settled, _ = forgetting.settled(summary)
    begun = sweep.begin(settled) if sweep.begin else settled
    exits, outputs = _sweep(xla, sweep.recurrence, params, begun, rows, None, W, xla.plan.length, reverse)
    after = exits[0] if sweep.begin else exits
    summary = where(further, forgetting.extend(summary, after), summary)
    return summary, Ahead(W, further, exits, outputs)


@phase("sweep", directed=True)
def catch_up(
    xla: OnXLA, sweep: InChunks, params: Any, entries: Any, rows: Any, ahead: Ahead, *, reverse: bool
) -> tuple[Any, Any]:
    """Sweeps the rows that are left: the states after every chunk, and the outputs of all rows, as `Phases.sweep`."""
    begun = sweep.begin(entries) if sweep.begin else entries
    exits, outputs = _sweep(xla, sweep.recurrence, params, begun, rows, ahead.outputs, 0, ahead.rows, reverse)
    return where(ahead.further, sweep.merge(exits, ahead.exits), exits), outputs


def _sweep(xla: OnXLA, recurrence: Recurrence, params, state, rows, outputs, start, stop, reverse) -> tuple[Any, Any]:
    """Sweeps some rows of every chunk, in the order of the recurrence, and puts their outputs among the others."""

    def step(t, state):
        x, present = _row(xla, recurrence, rows, t, reverse)
        after, out = recurrence.step(params, state, x)
        return where(present, after, state), xla.arrays(out)

    def body(t, carry):
        state, outputs = carry
        state, out = step(t, state)
        row = xla.plan.length - 1 - t if reverse else t
        return state, jax.tree.map(lambda all, one: lax.dynamic_update_index_in_dim(all, one, row, 0), outputs, out)

    state = stable_carry(lambda s, t: step(t, s), state, jnp.int32(0))
    if outputs is None:
        shapes = jax.eval_shape(step, 0, state)[1]
        outputs = jax.tree.map(lambda x: blank(x, (xla.plan.length, *x.shape)), shapes)

    def loop(state, outputs, start, stop):
        return lax.fori_loop(start, stop, body, (state, outputs))

    return xla.compiled(loop)(state, outputs, start, stop)


def _row(xla: OnXLA, recurrence: Recurrence, rows: Any, t: Any, reverse: bool) -> tuple[Any, jax.Array | None]:
    """Returns the t-th row of every chunk in the order of the recurrence, prepared, and whether there is one."""
    row = xla.plan.length - 1 - t if reverse else t
    x = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, row, keepdims=False), rows)
    x = xla.matrices(x)
    return recurrence.prepare(x) if recurrence.prepare else x, xla.present(row)


def _further(xla: OnXLA, t: Any, reverse: bool) -> jax.Array:
    """Tells whether chunks have rows after the first t (C, 1)."""
    more = t < xla.plan.length
    some = xla.present(0 if reverse else t)
    return jnp.broadcast_to(more, (xla.plan.chunks, 1)) if some is None else more & some
