"""The relay: chunks are swept side by side before their entry states are known, and hand on what they end with (XLA).

After some rows most models have forgotten the state before them, up to rounding. So a chunk is swept from a guess, and again
from its neighbour's exit state, but no further than to where its states are what they were the last time: what follows stays
as it is. Every round makes at least one more chunk what the sequential recursion would make it; two are enough for a model
that forgets within a chunk. No summaries are needed.

Chunks that are entered with what a scan of summaries found (see `seams`) are run in the same way. Most fit together at once.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import blank, in_form_of, stable_carry, vary_over, varying
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
    blocks = length // block

    def run(entries: Any, rows: Any) -> tuple[Any, Any]:
        start = stable_carry(lambda state, t: step(state, by.row(rows, t)), begin(entries), jnp.int32(0))
        entered, zeros = start
        shapes = jax.eval_shape(lambda state: step(state, by.row(rows, 0))[1], start)
        outputs = jax.tree.map(lambda x: blank(x, (length, *x.shape)), shapes)
        kept = jax.tree.map(lambda x: blank(x, (blocks, *x.shape)), start)

        def at(tree: Any, k: Any) -> Any:
            return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, k, keepdims=False), tree)

        def select(chosen: Any, new: Any, old: Any) -> Any:
            return jax.tree.map(lambda x, y: lax.select(jnp.broadcast_to(chosen, y.shape), x, y), new, old)

        def put(tree: Any, new: Any, k: Any) -> Any:
            return jax.tree.map(lambda x, one: lax.dynamic_update_index_in_dim(x, one, k, 0), tree, new)

        def next_block(carry: Any) -> Any:
            k, state, exits, outputs, kept, added, apart, first, _ = carry
            before, last = apart, at(kept, k)
            apart = lax.select(first, far, seam.apart(by.arrays(state), by.arrays(last)).astype(far.dtype))
            # never chosen: what is written depends on what was read, or XLA copies all of it between the two
            kept = put(kept, select(apart < 0, last, state), k)

            def row(j: Any, carry: Any) -> Any:
                state, outputs = carry
                t = length - 1 - k * block - j if reverse else k * block + j
                state, out = step(state, by.row(rows, t))
                return state, put(outputs, out, t)

            (state, of_block), outputs = lax.fori_loop(0, block, row, ((state, zeros), outputs))
            exits = select(k == blocks - 1, state, exits)
            left = (k == blocks - 1) | (apart <= tight)
            close = (apart <= tight) | ((apart <= seams.tolerance(apart.dtype)) & (2 * apart >= before))
            fit = (k == 0) & ~first & close
            state = select(left, in_form_of(seams.neighbours(entered, exits, reverse=reverse), state), state)
            apart = lax.select(k == 0, apart, before)
            return (
                lax.select(left, jnp.zeros_like(k), k + 1),
                state,
                exits,
                outputs,
                kept,
                put(added, of_block, k),
                apart,
                first & ~left,
                fit,
            )

        dtype = jax.tree.leaves(entered)[0].dtype
        far = jnp.full((), jnp.inf, dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32)
        over = frozenset().union(*map(varying, jax.tree.leaves(entered)))
        far, yes, no, k = (vary_over(over, x) for x in (far, jnp.bool_(True), jnp.bool_(False), jnp.int32(0)))
        tight = seams.rounding(far.dtype)
        carry = k, entered, entered, outputs, *kept, far, yes, no
        _, _, exits, outputs, _, added, *_ = lax.while_loop(lambda carry: ~carry[-1], next_block, carry)
        # by a loop, as one function holds no XLA reduction
        total = lax.fori_loop(0, blocks, lambda k, total: jax.tree.map(jnp.add, total, at(added, k)), zeros) if zeros else ()
        return (exits, total), outputs

    return by.compiled(run)(entries, rows)
