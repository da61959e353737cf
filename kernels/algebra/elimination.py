"""Symmetric elimination of a matrix that a whole program holds: by halves, whose products are matrix units', down to a block.

With A = [[A1, B], [B', A2]] and A1 = L1 D1 L1', what is left of A2 is A2 - B' A1^-1 B. All factors are inverted: the bounds of
the errors of what is multiplied by them are those of substitution (Higham 2002, Accuracy and Stability of Numerical
Algorithms, section 14.2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCK = 16
"""The rows of a block, whose pivots are taken one after another."""


class Arithmetic(Protocol):
    """The operations of arrays that a compiler has words of its own for: see `Tile`, whose kinds have them."""

    dot: Callable
    fused: Callable
    times: Callable


class Factors(NamedTuple):
    """A = L diag(d) L', as arrays: W = L^-1, d, its inverses or 0, and L if it was asked for, else something of its shape."""

    W: Any
    pivots: Any
    inverses: Any
    L: Any


def factors(by: Arithmetic, a: jax.Array, diagonal: jax.Array, n: int, settle: Callable, *, lower: bool) -> Factors:
    """Factorises.

    Args:
        by: how to compute.
        a: A, its sides a power of two; only the first n rows and columns are not zero.
        diagonal: what each pivot started from.
        n: rows.
        settle: ``(pivot, diagonal) -> pivot, inverse``: see `fastscan.kernels.algebra`.
        lower: whether L is wanted.
    """
    half = len(a) // 2
    if len(a) <= BLOCK:
        return _block(by, a, diagonal, n, settle, lower=lower)
    first = factors(by, _quarter(a, 0, 0), _half(diagonal, 0), min(n, half), settle, lower=lower)
    if n <= half:
        none, nothing = jnp.zeros_like(first.W), jnp.zeros_like(first.pivots)
        W, L = (_joined(x, none, none) for x in (first.W, first.L))
        return Factors(W, _ends(first.pivots, nothing), _ends(first.inverses, nothing), L)
    across = _quarter(a, 0, 1)
    reduced = by.dot(first.W, across)
    scaled = (reduced * first.inverses[:, None]).T  # L of the second half's rows
    rest = _quarter(a, 1, 1) - by.dot(scaled, reduced)
    second = factors(by, rest, _half(diagonal, 1), n - half, settle, lower=lower)
    W = _joined(first.W, -by.dot(second.W, by.dot(scaled, first.W)), second.W)
    L = _joined(first.L, scaled, second.L) if lower else W
    pivots, inverses = _ends(first.pivots, second.pivots), _ends(first.inverses, second.inverses)
    return Factors(W, pivots, inverses, L)


def _block(by: Arithmetic, a: jax.Array, diagonal: jax.Array, n: int, settle: Callable, *, lower: bool) -> Factors:
    """Takes one pivot after another. One array holds what is left of A, from a pivot's column on, and the rows of W before."""
    number = lax.iota(jnp.int32, len(a))

    def step(k: Any, carry: tuple) -> tuple:
        left, pivots, inverses, L = carry
        row = picked(left, k)
        pivot, inverse = settle(picked(row, k), picked(diagonal, k))
        column = jnp.where(number > k, row * inverse, 0)
        row = jnp.where(number == k, 1, row)[None]
        kept = left * jnp.where(number == k, 0, jnp.ones_like(column))[None]
        left = by.fused(-column[:, None], row, kept)
        L = jnp.where((number == k)[None], column[:, None], L) if lower else L
        return left, jnp.where(number == k, pivot, pivots), jnp.where(number == k, inverse, inverses), L

    nothing = jnp.zeros_like(diagonal)
    start = a, nothing, nothing, jnp.zeros_like(a) if lower else nothing
    first = np.int32(0)
    W, pivots, inverses, L = step(first, start) if n == 1 else lax.fori_loop(first, by.times(n), step, start)
    return Factors(_with_unit(W, n), pivots, inverses, _with_unit(L, n) if lower else W)


def picked(array: jax.Array, k: Any) -> jax.Array:
    """Returns row k of a matrix, or entry k of a vector: a sum in which all others count as zero."""
    if array.ndim == 0:
        return array
    return jnp.where(lax.broadcasted_iota(jnp.int32, array.shape, 0) == k, array, 0).sum(0, dtype=array.dtype)


def _with_unit(x: jax.Array, n: int) -> jax.Array:
    row, column = (lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in (0, 1))
    return jnp.where((row == column) & (row < n), 1, x)


def _half(x: jax.Array, number: int) -> jax.Array:
    halves = x.reshape(2, len(x) // 2)
    return picked(halves, np.int32(number))


def _quarter(x: jax.Array, i: int, j: int) -> jax.Array:
    half = len(x) // 2
    quarters = x.reshape(2, half, 2, half)
    row, column = (lax.broadcasted_iota(jnp.int32, quarters.shape, axis) for axis in (0, 2))
    return jnp.where((row == i) & (column == j), quarters, 0).sum((0, 2))


def _ends(first: jax.Array, second: jax.Array) -> jax.Array:
    half = len(first)
    number = lax.broadcasted_iota(jnp.int32, (2, half), 0)
    return jnp.where(number == 0, first[None], second[None]).reshape(2 * half)


def _joined(first: jax.Array, below: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the lower triangular matrix of three quarters."""
    half = len(first)
    row, column = (lax.broadcasted_iota(jnp.int32, (2, half, 2, half), axis) for axis in (0, 2))
    first, below, second = (x[None, :, None] for x in (first, below, second))
    rows = jnp.where(row == 0, jnp.where(column == 0, first, 0), jnp.where(column == 0, below, second))
    return rows.reshape(2 * half, 2 * half)
