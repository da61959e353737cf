"""Non-negative matrices whose rows have scales of their own, powers of two: numbers far outside a float's range.

An HMM's probability of a stretch of observations, given the state before it, is smaller than any float after some hundred
steps, and its rows, one for every such state, may lie thousands of orders of magnitude apart. Scales are exponents, held as
integers in floats; they are read off and applied as bits, which is cheaper than logarithms and rounds nothing.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import eye, product, select, stage

LOWEST = -(2.0**126)
"""The scale of a row of zeros. No sum of others comes near it."""

_FORMATS = {"float32": (23, 127, jnp.int32), "float64": (52, 1023, jnp.int64)}


class Scaled(NamedTuple):
    """The matrix whose row i is ``2^scale_i values_i``: values (n, p) of ordinary size, scale (n, 1)."""

    values: Any
    scale: Any


def identity(like, size: int) -> Scaled:
    """Returns the identity of a size, in the representation of ``like``."""
    unit = eye(like, size)
    return Scaled(unit, unit.constant(np.zeros((size, 1))))


def exponential(column) -> Scaled:
    """Computes every entry's exponential: values from 1 to 2, or 0."""
    binary = column * (1 / math.log(2))
    scale = type(binary).elementwise(lambda x: _raised(jnp.floor(lax.stop_gradient(x))), binary)
    return Scaled(type(binary).elementwise(lambda x, n: jnp.exp2(x - n), binary, scale), scale)


def normalized(matrix: Scaled) -> Scaled:
    """Returns the same matrix, with every row's largest value between 1 and 2."""
    return times_diagonal(matrix, Scaled(matrix.scale.constant(np.ones((1, 1))), matrix.scale.constant(np.zeros((1, 1)))))


def times_diagonal(matrix: Scaled, diagonal: Scaled) -> Scaled:
    """Computes ``matrix @ diag(diagonal)``, normalised; the diagonal is a column."""
    factors, scale = diagonal.values.T, diagonal.scale.T
    largest = _largest(_exponents(matrix.values, factors, scale))
    return Scaled(_shift(matrix.values, factors, scale, largest), plus(matrix.scale, largest))


def multiply(left: Scaled, right: Scaled) -> Scaled:
    """Computes ``left @ right``, normalised, and scaled so that the largest scale is 0: summaries are known up to a factor."""
    ones = left.scale.constant(np.ones((1, 1)))
    left = times_diagonal(left, Scaled(ones, right.scale))
    values, scale = normalized(Scaled(product(left.values, right.values), left.scale))
    return Scaled(values, _centered(scale))


@stage
def unscaled(values, scale):
    """Returns the matrix itself, where a float has room for it."""
    return type(values).elementwise(lambda x, n: x * power_of_two(n), values, scale)


def exponent(x: jax.Array) -> jax.Array:
    """Returns the integer n with ``2^n <= x < 2^(n+1)``, as a float; `LOWEST` for zero."""
    fraction, bias, integer = _FORMATS[str(x.dtype)]
    n = (lax.bitcast_convert_type(lax.stop_gradient(x), integer) >> fraction) - bias
    return select(x == 0, LOWEST, n.astype(x.dtype))


def power_of_two(n: jax.Array) -> jax.Array:
    """Computes ``2^n`` of integers in floats; 0 below a float's normal range, and not more than its last one above."""
    fraction, bias, integer = _FORMATS[str(n.dtype)]
    biased = jnp.minimum(jnp.maximum(lax.stop_gradient(n) + bias, 0), 2 * bias).astype(integer)
    return lax.bitcast_convert_type(biased << fraction, n.dtype)


def _raised(n: jax.Array) -> jax.Array:
    return jnp.maximum(n, LOWEST)


@stage
def _exponents(values, factors, scale):
    return type(values).elementwise(lambda x, f, n: exponent(x * f) + n, values, factors, scale)


@stage
def _largest(exponents):
    """Returns every row's largest exponent, a column."""
    return type(exponents).elementwise(_raised, exponents.reduce(jnp.maximum))


@stage
def _shift(values, factors, scale, largest):
    return type(values).elementwise(lambda x, f, n, c: x * f * power_of_two(n - c), values, factors, scale, largest)


@stage
def plus(a, b):
    """Adds scales."""
    return type(a).elementwise(lambda x, y: _raised(x + y), a, b)


@stage
def _centered(scale):
    largest = scale.T.reduce(jnp.maximum)
    return type(scale).elementwise(lambda n, c: _raised(n - c), scale, largest)
