"""Passes back over rows of which the filter kept one state a block: the others are filtered again, block by block (XLA).

For models in one chunk whose rows take matrices from tables. So nothing there is of the size of a matrix a row; of what rows
took from a table, derivatives are added up in a table. Of what a function made of constants, they are added up for these, once
a block, as its pass back may be through all of the constants.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.affine.maps import AFFINE_MAPS, AffineMap
from fastscan.kernels.algebra import stable_carry
from fastscan.kernels.arrays import blank
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.kernels.lgssm.kalman import KALMAN_FILTER, FilterInputs
from fastscan.kernels.lgssm.scoring import KALMAN_SCORE, ScoreRow, begin_scoring, nothing_shared
from fastscan.kernels.lgssm.smoothing import FILTER_FOR_SAMPLING, SamplerInputs, SamplerParams
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.recurrence import Recurrence
from fastscan.kernels.scan.xla import OnXLA, where
from fastscan.kernels.tables import Computed, Table, add_to, has_tables, is_computed, look_up, scanned

KEPT_BYTES = 8 << 20
"""The most memory that a matrix a row may take in a sampler."""


def applies(plan: Plan, rows: FilterInputs) -> bool:
    """Tells whether a plan has one chunk, under XLA, and rows take matrices from tables."""
    return plan.launch is None and plan.chunks == 1 and plan.steps > 0 and has_tables(rows)


def fits(plan: Plan, state: Gaussian) -> bool:
    """Tells whether a matrix a row takes so little memory that it is kept, and no row is filtered twice."""
    return plan.steps * state.cov.size * state.cov.dtype.itemsize <= KEPT_BYTES


class Blocks(NamedTuple):
    """Rows (L, ...), block by block: what loops go over (blocks, rows, ...), and where it is no padding, or None."""

    rows: Any
    scanned: Any
    present: Any

    @classmethod
    def of(cls, rows: Any) -> "Blocks":
        """Cuts rows into about as many blocks as each has rows."""
        arrays = scanned(rows)
        L = jax.tree.leaves(arrays)[0].shape[0]
        size = max(int(L**0.5), 1)
        count = -(-L // size)

        def cut(x: jax.Array) -> jax.Array:
            return jnp.pad(x, [(0, count * size - L)] + [(0, 0)] * (x.ndim - 1)).reshape(count, size, *x.shape[1:])

        present = None if count * size == L else cut(jnp.ones(L, bool))
        return cls(rows, jax.tree.map(cut, arrays), present)

    @property
    def row(self) -> tuple[Any, Any]:
        """The form of a row, and of whether it is one."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), (self.scanned, self.present))

    def joined(self, tree: Any) -> Any:
        """Takes arrays (blocks, rows, ...) to (L, ...)."""
        L = jax.tree.leaves(scanned(self.rows))[0].shape[0]
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:L], tree)


def sample(
    plan: Plan, state: Gaussian, params: SamplerParams, rows: SamplerInputs, draw: Callable[[Gaussian], jax.Array]
) -> jax.Array:
    """Draws states (B, T, D, 1) from their posterior.

    Args:
        plan: how.
        state: the first filtered one.
        params: of `FILTER_FOR_SAMPLING`.
        rows: likewise.
        draw: the last state's deviation from its mean (D, 1, 1, B), from its moments.
    """
    by, given = OnXLA(plan), OnXLA(plan).matrices(params)
    blocks = Blocks.of(by.split(rows))
    forward = functools.partial(_stepper, by, FILTER_FOR_SAMPLING, given, blocks.rows)
    last, entries, _ = _filtered(by, forward(lambda _: None), by.matrices(state), blocks)
    end, mapped = draw(by.arrays(last)), forward(by.arrays)

    def move(deviation: Any, row: tuple) -> tuple[Any, Any]:
        maps, present = row
        after, _ = AFFINE_MAPS.step(AffineMap(), deviation, by.matrices(maps.deviation))
        after = where(present, after, deviation)
        return after, maps.mean + by.arrays(after)

    def back(deviation: Any, block: tuple) -> tuple[Any, Any]:
        entry, *rows = block
        _, maps = lax.scan(mapped, by.matrices(entry), rows)
        return lax.scan(move, deviation, (maps, rows[1]), reverse=True)

    def run(deviation: Any, blocks: tuple) -> tuple[Any, Any]:
        return lax.scan(jax.checkpoint(back, prevent_cse=False), deviation, blocks, reverse=True)

    maps = jax.eval_shape(lambda state, row: mapped(state, row)[1], last, blocks.row)
    begun = stable_carry(move, by.matrices(end), (maps, blocks.row[1]))
    _, states = by.compiled(run)(begun, (entries, blocks.scanned, blocks.present))
    return by.join(blocks.joined(states), by.arrays(last).mean + end)


def score(
    plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs
) -> tuple[jax.Array, Any, FilterInputs, FilterInputs]:
    """Computes the sum of the rows' log densities (B,), and its derivatives.

    Returns:
        The sum; r and N of the state before the first row, as arrays; derivatives with respect to what all rows share, as
        arrays; and with respect to rows, series (B, T - 1, n, p), or tables whose values are (B, R, n, p), or of functions'
        constants, a tuple of arrays (B, ...).
    """
    by, given, split = OnXLA(plan), OnXLA(plan).matrices(params), OnXLA(plan).split(rows)
    blocks = Blocks.of(split)
    forward = functools.partial(_stepper, by, KALMAN_FILTER, given, split)
    last, entries, densities = _filtered(by, forward(_density), by.matrices(state), blocks)
    reported = forward(by.arrays)

    def step_back(carry: tuple, row: tuple) -> tuple[tuple, Any]:
        before, tables = carry
        filtered, x, present = row
        after, own = KALMAN_SCORE.step(given, before, by.matrices(ScoreRow(filtered, look_up(split, x))))
        own = where(present, by.arrays(own), jax.tree.map(jnp.zeros_like, by.arrays(own)))
        tables = FilterInputs(*(None if t is None else add_to(t, *a) for t, *a in zip(tables, x, own, strict=True)))
        own = FilterInputs(*(d if t is None else None for t, d in zip(tables, own, strict=True)))
        return (where(present, after, before), tables), own

    def back(carry: tuple, block: tuple) -> tuple[tuple, Any]:
        (entry, *rows), (before, sums) = block, carry
        _, filtered = lax.scan(reported, by.matrices(entry), rows)
        after, own = lax.scan(step_back, before, (Gaussian(filtered.mean, filtered.cov), *rows), reverse=True)
        of_functions = zip(split, sums, rows[0], own, strict=True)
        sums = FilterInputs(*(None if s is None else f.add_to(s, index, d) for f, s, index, d in of_functions))
        return (after, sums), FilterInputs(*(d if s is None else None for s, d in zip(sums, own, strict=True)))

    def run(carry: tuple, blocks: tuple) -> tuple[tuple, Any]:
        return lax.scan(back, carry, blocks, reverse=True)

    filtered, own = (jax.eval_shape(by.arrays, last), blocks.row[0])
    begun = begin_scoring(last)
    begun = begun, nothing_shared(given, begun)
    of_row = jax.eval_shape(
        lambda state, x: by.arrays(KALMAN_SCORE.step(given, begun, by.matrices(ScoreRow(state, look_up(split, x))))[1]),
        *(filtered, own),
    )
    forms = tuple(zip(split, of_row, strict=True))
    tables = FilterInputs(*(jnp.zeros((len(x.values), *d.shape), d.dtype) if isinstance(x, Table) else None for x, d in forms))
    sums = FilterInputs(*(_no_sums(x, d) if is_computed(x) else None for x, d in forms))
    begun = stable_carry(step_back, (begun, tables), (filtered, *blocks.row))
    (((message, of_params), tables), sums), own = by.compiled(run)((begun, sums), (entries, blocks.scanned, blocks.present))
    own = jax.tree.map(by.join, blocks.joined(own))
    added = (None if t is None else Table(t[..., 0, :].transpose(3, 0, 1, 2)) for t in tables)
    added = (s if t is None else t for t, s in zip(added, sums, strict=True))
    of_rows = FilterInputs(*(d if t is None else t for t, d in zip(added, own, strict=True)))
    return by.total(blocks.joined(densities)), *by.arrays((message, of_params)), of_rows


def _no_sums(x: Computed, change: Any) -> tuple[jax.Array, ...]:
    """Returns derivatives of zero with respect to a function's numbers, (B, ...), from the form of a row's."""
    return tuple(blank(n, (change.shape[-1], *n.shape[1:])) for n in x.numbers)


def _density(out: Any) -> Any:
    return out.log_density.to_array()


def _stepper(by: OnXLA, recurrence: Recurrence, params: Any, tables: Any, outputs: Callable) -> Callable:
    """Makes the step of a recursion from a row as `Blocks` has it."""

    def step(state: Any, row: tuple) -> tuple[Any, Any]:
        x, present = row
        after, out = recurrence.step(params, state, by.matrices(look_up(tables, x)))
        return where(present, after, state), outputs(out)

    return step


def _filtered(by: OnXLA, step: Callable, state: Any, blocks: Blocks) -> tuple[Any, Any, Any]:
    """Computes the state after all rows; those before every block, as arrays; and outputs of all rows, (blocks, rows, ...)."""

    def forward(state: Any, block: tuple) -> tuple[Any, tuple]:
        after, outs = lax.scan(step, state, block)
        return after, (by.arrays(state), outs)

    def run(state: Any, rows: tuple) -> tuple[Any, tuple]:
        return lax.scan(jax.checkpoint(forward, prevent_cse=False), state, rows)

    after, (entries, outs) = by.compiled(run)(stable_carry(step, state, blocks.row), (blocks.scanned, blocks.present))
    return after, entries, outs
