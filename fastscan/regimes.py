"""Parameters of regimes: checked, as tables that are looked up row by row, and products with their matrices."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.given import ShapeError, array, seen
from fastscan.kernels.arrays import matmul
from fastscan.kernels.tables import Table, is_table, look_up, scanned
from fastscan.types import Regimes

BLOCK_ENTRIES = 1 << 15
"""The entries of matrices that are worked on at once, which a cache should hold."""


def regimes_of_arrays(name: str, x: Regimes, *, shared: bool = False) -> Regimes:
    """Returns regimes as arrays.

    Args:
        name: of the parameter.
        x: regimes.
        shared: another parameter's index may hold, which is then None.

    Raises:
        TypeError: parts that are no arrays.
    """
    return Regimes(array(f"{name}.values", x.values), None if shared and x.index is None else array(f"{name}.index", x.index))


def check_index(name: str, x: Regimes, T: int, batch: int | None) -> None:
    """Refuses regimes that are none, and numbers that are not one for every step.

    Raises:
        TypeError: numbers that are no integers.
        ValueError: shapes.
    """
    if not jnp.shape(x.values)[:1] or not len(x.values):
        raise ShapeError(f"{name}.values: shape {jnp.shape(x.values)} given, wanted at least one regime, along the first axis.")
    if not jnp.issubdtype(x.index.dtype, jnp.integer):
        raise TypeError(
            f"{name}.index: {x.index.dtype} given, wanted integers: the number of every step's regime, from 0 to "
            f"{len(x.values) - 1}."
        )
    allowed = [(T,)] if batch is None else [(T,), (batch, T)]
    if x.index.shape not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ShapeError(f"{name}.index: shape {x.index.shape} given, wanted {wanted}: the number of every step's regime.")


def check_numbers(name: str, x: Any, unread: int) -> None:
    """Refuses numbers of regimes that there are none of, as far as their values are known, after some that are not read.

    Raises:
        ValueError: such numbers.
    """
    if not isinstance(x, Regimes) or x.index is None or not seen(x.index):
        return
    index, R = np.asarray(x.index), len(x.values) if jnp.ndim(x.values) else 0
    if not R or not index.ndim or index.dtype.kind not in "iu":
        return  # errors that the checks of shapes make
    index = index[..., unread:]
    if index.size and not 0 <= index.min() <= index.max() < R:
        wrong = index.min() if index.min() < 0 else index.max()
        raise ValueError(
            f"{name}.index: {wrong} given, wanted numbers from 0 to {R - 1}, of the {R} regimes that {name}.values has."
        )


def as_table(x: Regimes, shape: Sequence[int]) -> Table:
    """Returns checked regimes of matrices, or of vectors as columns, as a table; numbers of no regime are past its end."""
    R = len(x.values)
    values = x.values.reshape(1, R, *shape, *([1] if len(shape) == 1 else []))
    if x.index is None:
        return Table(values)
    index = jnp.where((x.index >= 0) & (x.index < R), x.index, R).astype(jnp.int32)
    return Table(values, index.reshape(-1, index.shape[-1], 1, 1))


def as_series(x: Any) -> Any:
    """Looks all rows of a table up at once; returns an array as it is."""
    return x.series() if is_table(x) else x


def products(matrices: Any, vectors: jax.Array) -> jax.Array:
    """Multiplies vectors (B or 1, T, p, 1) by matrices (B or 1, T or 1, n, p), by those of a table row by row."""
    if not is_table(matrices):
        return matmul(matrices, vectors)
    return over_rows(lambda M, v: (M * jnp.swapaxes(v, 0, 1)).sum(1, keepdims=True), matrices.filled(), vectors)


def over_rows(function: Any, *series: Any) -> jax.Array:
    """Applies a function of matrices in lanes (n, p, 1, B or 1) to every row of series (B or 1, T or 1, n, p), or tables, one
    after the other: (B or 1, T, n, p).
    """
    return _in_parts(1, function, *series)


def over_blocks(function: Any, *series: Any) -> jax.Array:
    """Does as `over_rows`, of sqrt(T) rows or more at once, which are lanes (n, p, C, B or 1)."""
    T = max(x.shape[1] for x in series)
    largest = max(x.shape[-1] * x.shape[-2] for x in series)
    return _in_parts(min(max(int(T**0.5), BLOCK_ENTRIES // largest, 1), T), function, *series)


def _in_parts(size: int, function: Any, *series: Any) -> jax.Array:
    """Applies a function to so many rows at a time, which are lanes."""
    T = max(x.shape[1] for x in series)
    count = -(-T // size)

    def lanes(x: Any) -> Any:
        if is_table(x):
            return x.in_lanes(lanes(x.index), alone=False)
        x = jnp.broadcast_to(x, (len(x), T, *x.shape[2:]))
        x = jnp.pad(x, [(0, 0), (0, count * size - T), (0, 0), (0, 0)])
        return x.reshape(len(x), count, size, *x.shape[2:]).transpose(1, 3, 4, 2, 0)

    parts = tuple(map(lanes, series))

    @jax.checkpoint
    def one(part: Any) -> jax.Array:
        return function(*look_up(parts, part))

    found = lax.map(one, scanned(parts)).transpose(4, 0, 3, 1, 2)
    return found.reshape(len(found), count * size, *found.shape[3:])[:, :T]
