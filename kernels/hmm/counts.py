"""Transitions of weights that rows take from tables: what rows add up to, where no array may hold a matrix a row (XLA)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.arrays import blank
from fastscan.kernels.tables import Computed, Table, add_to, is_computed, look_up, scanned


def expected_counts(A: Any, past: jax.Array, future: jax.Array) -> jax.Array:
    """Sums ``A_t past_t future_t'``, entry by entry in A, over rows.

    Args:
        A: a table (B or 1, T, K, K).
        past: (B, T, K, 1).
        future: likewise.

    Returns:
        (B, K, K).
    """
    rows = A.in_lanes(_lanes(A.index), False), _lanes(past), _lanes(future)

    def add(sums: jax.Array, row: Any) -> tuple[jax.Array, None]:
        weights, before, after = look_up(rows, row)
        return sums + weights * before * jnp.swapaxes(after, 0, 1), None

    nothing = blank(past, (past.shape[2], future.shape[2], 1, len(past)))
    return lax.scan(add, nothing, scanned(rows))[0][:, :, 0].transpose(2, 0, 1)


def changes(A: Any, past: jax.Array, change: jax.Array) -> Any:
    """Sums ``past_t change_t'`` over the rows of each matrix: derivatives with respect to a table.

    Args:
        A: a table (B or 1, T, K, K).
        past: (B, T, K, 1).
        change: likewise.

    Returns:
        A table without numbers, whose values are (B, R, K, K), or of a function's numbers a tuple of arrays (B, ...).
    """
    if is_computed(A):
        return _changes_of_function(A, past, change)
    rows = _lanes(A.index), _lanes(past), _lanes(change)

    def add(sums: jax.Array, row: Any) -> tuple[jax.Array, None]:
        index, before, after = row
        return add_to(sums, index, before * jnp.swapaxes(after, 0, 1)), None

    K, R = past.shape[2], A.values.shape[1]
    sums = lax.scan(add, blank(past, (R + 1, K, K, 1, len(past))), rows)[0]  # and one for numbers past the table's end
    return Table(sums[:R, :, :, 0].transpose(3, 0, 1, 2))


def _changes_of_function(A: Computed, past: jax.Array, change: jax.Array) -> tuple[jax.Array, ...]:
    """Does as `changes`, sqrt(T) rows at a time: a function's pass back may be through all of its constants."""
    T = past.shape[1]
    size = max(int(T**0.5), 1)
    count = -(-T // size)

    def blocks(x: jax.Array) -> jax.Array:
        x = jnp.pad(_lanes(x), [(0, count * size - T)] + [(0, 0)] * 4)
        return x.reshape(count, size, *x.shape[1:])

    def add(sums: tuple[jax.Array, ...], block: Any) -> tuple[tuple[jax.Array, ...], None]:
        index, before, after = block
        return A.add_to(sums, index, before * jnp.swapaxes(after, 1, 2)), None

    nothing = tuple(blank(x, (len(past), *x.shape[1:])) for x in A.numbers)
    return lax.scan(add, nothing, tuple(map(blocks, (A.index, past, change))))[0]


def _lanes(x: jax.Array) -> jax.Array:
    """Transposes a series (B or 1, T, n, p) to rows in lanes (T, n, p, 1, B or 1)."""
    return x.transpose(1, 2, 3, 0)[..., None, :]
