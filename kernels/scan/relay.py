"""The relay: chunks are swept side by side before their entry states are known, and hand on what they end with (XLA).

After some rows most models have forgotten the state before them, up to rounding. So a chunk is swept from a guess, and again
from its neighbour's exit state, but no further than to where its states are what they were the last time: what follows stays
as it is. Every round makes at least one more chunk what the sequential recursion would make it; two are enough for a model
that forgets within a chunk. No summaries are needed.

Chunks that are entered with what a scan of summaries found (see `seams`) are run in the same way. Most fit together at once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import blank, in_form_of, select, stable_carry, vary_over, varying
from fastscan.kernels.arrays import alike, at, put
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import seams
from fastscan.kernels.scan.recurrence import Seam


class Runner(Protocol):
    """XLA's phases, as far as the relay asks for them."""

    @property
    def plan(self) -> Plan:
        """How many chunks of how many rows there are."""
        ...

    def arrays(self, tree: Any) -> Any:
        """Does as `Phases.arrays`."""
        ...

    def row(self, rows: Any, t: Any) -> Any:
        """Returns one row of every chunk, and whether it is one."""
        ...

    def compiled(self, scan: Callable) -> Callable:
        """Does as `OnXLA.compiled`."""
        ...


class Progress(NamedTuple):
    """A relay on its way.

    Attributes:
        k: the block that is next, in the order of time.
        state: before it, of every chunk.
        exits: the states after every chunk, as they were found last.
        outputs: of all rows, likewise.
        kept: the states before every block, likewise.
        sums: of every block, likewise.
        apart: how far entry states were from those of the round before.
        first: whether this is the first round.
        over: whether chunks fit together.
    """

    k: Any
    state: Any
    exits: Any
    outputs: Any
    kept: Any
    sums: Any
    apart: Any
    first: Any
    over: Any


def sweep(
    by: Runner, seam: Seam, step: Callable, begin: Callable, entries: Any, rows: Any, *, reverse: bool
) -> tuple[Any, Any]:
    """Sweeps all chunks, as often as it takes until they fit together.

    Args:
        by: what runs it.
        seam: how to tell that states are the same.
        step: ``((state, sums), (row, present)) -> ((state, sums), outputs)``.
        begin: ``(entries) -> (state, sums)`` that chunks are entered with, or a guess but for the one where time begins; and
            zeros in the form of what is added up over the rows, or () for nothing.
        entries: what ``begin`` takes.
        rows: of the series.
        reverse: go from a chunk's last row to its first.

    Returns:
        The states after every chunk with their sums, and the outputs of all rows.
    """
    length, block = by.plan.length, by.plan.block
    blocks = -(-length // block)

    def run(entries: Any, rows: Any) -> tuple[Any, Any]:
        start = stable_carry(lambda state, t: step(state, by.row(rows, t)), begin(entries), jnp.int32(0))
        entered, zeros = start
        far = _infinity(entered)
        tight, loose = seams.rounding(far.dtype), seams.tolerance(far.dtype)

        def next_block(was: Progress) -> Progress:
            k, last = was.k, at(was.kept, was.k)
            apart = lax.select(was.first, far, seam.apart(by.arrays(was.state), by.arrays(last)).astype(far.dtype))
            # never chosen: what is written depends on what was read, or XLA copies all of it between the two
            kept = put(was.kept, _select(apart < 0, last, was.state), k)

            def row(j: Any, carry: Any) -> Any:
                state, outputs = carry
                t = length - 1 - k * block - j if reverse else k * block + j
                state, out = step(state, by.row(rows, t))
                return state, put(outputs, out, t)

            several = block if length % block == 0 else jnp.minimum(block, length - k * block)
            (state, sums), outputs = lax.fori_loop(0, several, row, ((was.state, zeros), was.outputs))
            exits = _select(k == blocks - 1, state, was.exits)
            as_before = apart <= tight  # and so is all that follows in this round
            next_round = (k == blocks - 1) | as_before
            resumed = in_form_of(seams.neighbours(entered, exits, reverse=reverse), state)
            rounding_alone = (apart <= loose) & (2 * apart >= was.apart)  # not tight, but it won't be
            return Progress(
                k=lax.select(next_round, jnp.zeros_like(k), k + 1),
                state=_select(next_round, resumed, state),
                exits=exits,
                outputs=outputs,
                kept=kept,
                sums=put(was.sums, sums, k),
                apart=lax.select(k == 0, apart, was.apart),
                first=was.first & ~next_round,
                over=(k == 0) & ~was.first & (as_before | rounding_alone),
            )

        shapes = jax.eval_shape(lambda state: step(state, by.row(rows, 0))[1], start)
        outputs = jax.tree.map(lambda x: blank(x, (length, *x.shape)), shapes)
        kept, sums = jax.tree.map(lambda x: blank(x, (blocks, *x.shape)), start)
        first, over, k = (vary_over(varying(far), x) for x in (jnp.bool_(True), jnp.bool_(False), jnp.int32(0)))
        begun = Progress(k, entered, entered, outputs, kept, sums, far, first, over)
        end = lax.while_loop(lambda now: ~now.over, next_block, begun)
        if not zeros:
            return (end.exits, ()), end.outputs
        # by a loop, as one function holds no XLA reduction
        total = lax.fori_loop(0, blocks, lambda k, total: jax.tree.map(jnp.add, total, at(end.sums, k)), zeros)
        return (end.exits, total), end.outputs

    return by.compiled(run)(entries, rows)


def _infinity(state: Any) -> jax.Array:
    """Returns the distance between states that have nothing to do with one another, in the type of distances."""
    leaves = jax.tree.leaves(state)
    dtype = leaves[0].dtype if jnp.issubdtype(leaves[0].dtype, jnp.floating) else jnp.float32
    return alike(jnp.full((), jnp.inf, dtype), state)


def _select(chosen: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(functools.partial(select, chosen), new, old)
