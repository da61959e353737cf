"""Means that move by one matrix, as columns of products of matrices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fastscan.kernels.lgssm.kalman import FilterInputs
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.recurrence import merge
from fastscan.kernels.scan.settling import sweep_vectors
from fastscan.kernels.scan.xla import OnXLA


def vectors(
    plan: Plan,
    step: Callable,
    matrix: jax.Array,
    state: jax.Array,
    same: FilterInputs,
    series: FilterInputs,
    begin: Any,
    *,
    reverse: bool,
) -> tuple[jax.Array, ...]:
    """Runs a recursion of vectors over the rows from ``begin`` on: see `sweep_vectors`.

    Args:
        plan: how.
        step: of columns (D, lanes), and one row of the series.
        matrix: by which it moves them.
        state: (D, B), before the first row.
        same: columns that are the same in every row, (n, 1, 1, B or 1).
        series: those that are not, (B or 1, T - 1, n, 1).
        begin: a number.
        reverse: time runs from the last row to the first.

    Returns:
        The outputs, in the order of time.
    """
    B = state.shape[-1]
    by = OnXLA(plan._replace(chunks=plan.vectors))
    L, C = by.plan.length, by.plan.chunks
    row = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :, 0], (L, x.shape[1], C, B)), by.split(series))
    lanes = jax.tree.map(lambda x: jnp.broadcast_to(x[:, 0], (len(x), C, B)).reshape(len(x), C * B), same)

    def there(t: Any) -> jax.Array:
        number = jnp.arange(C)[:, None] * L + t
        return (number >= begin) & (number < plan.steps)

    out = sweep_vectors(lambda s, x: step(s, merge(lanes, x)), matrix, state, row, there, reverse=reverse)
    return tuple(by.join(x[:, :, None]).transpose(1, 2, 3, 0)[:, :, :, None] for x in out)


def as_series(x: jax.Array) -> jax.Array:
    """Transposes an array in the order of time to (B, T, rows, columns)."""
    return x[:, :, :, 0].transpose(3, 0, 1, 2)


def from_row(begin: Any, later: jax.Array, before: jax.Array) -> jax.Array:
    """Takes rows of one array from ``begin`` on, and of the other before."""
    return jnp.where(jnp.arange(len(before)).reshape(-1, *(1,) * (before.ndim - 1)) >= begin, later, before)
