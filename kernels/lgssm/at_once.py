"""Conditioning and smoothing gains of large matrices, by a library's factors.

The module `gaussian` takes one observation, or one row of a matrix, after the other. The factors' columns are what these would
have met. That is not sound where little more than rounding is left of a pivot: it is then done ``otherwise``, as every function
here is told.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import eye, mirrored, multiply_add, select, stage, symmetric
from fastscan.kernels.algebra.stages import hadamard, matmul, matmul_add, symmetrized
from fastscan.kernels.algebra.systems import blocked, factor, inverse_of_transpose, sound, transposed_times
from fastscan.kernels.lgssm.joseph import repaired

SOUND = 64
"""The fewest roundings of an innovation's variance that are noise, and left once others are known, to condition at once."""

LOUD = 32
"""How many times as large as its noise whatever is observed may be, at most, to need no repair: a covariance is then right up
to so many roundings also along it."""


class Update(NamedTuple):
    """The effect of observations on a Gaussian.

    Attributes:
        W: what a mean moves by per innovation that is independent, of variance 1, (D, n).
        whitened: such innovations, of several means.
        root: the standard deviations that they were divided by (n, 1).
        reduced: the covariance, as it is without a repair.
        repair: makes the covariance of it where it needs one.
        care: 0 if it needs none, 1 if it does, 2 where that is not enough.
    """

    W: Any
    whitened: list
    root: Any
    reduced: Any
    repair: Callable
    care: jax.Array


def conditions(cov, H, weight, noise) -> bool:
    """Tells whether observations are taken at once: several, of a large state, with the same matrices in all sequences."""
    return H.shape[0] > 1 and blocked(cov, H, weight, noise)


def condition(cov, means: tuple, innovations: list, H, weight, noise, *, otherwise: Callable) -> tuple[Any, tuple, tuple]:
    """Conditions a Gaussian, as `gaussian.condition`, from the innovations of every mean (n, columns).

    Returns:
        The covariance, the means, and what `Innovations` has, but for rows.
    """
    of = update(cov, innovations, H, weight, noise)
    means = tuple(matmul_add(of.W, z, M) for M, z in zip(means, of.whitened, strict=True))
    seen = _as_by_rows(of.W, of.root, *of.whitened)
    return _by_care(of, lambda cov: (cov, means, seen), otherwise)


def observe(mean, cov, innovation, H, weight, noise, *, otherwise: Callable) -> tuple[Any, Any, Any]:
    """Computes a filtered mean and covariance from predicted ones, and the observation's log density (1, 1)."""
    of = update(cov, [innovation], H, weight, noise)
    (z,) = of.whitened
    mean, density = matmul_add(of.W, z, mean), _log_density(z, of.root, weight)
    return _by_care(of, lambda cov: (mean, cov, density), otherwise)


def smoothing_gain(cov, F, Q, *, otherwise: Callable) -> tuple[Any, Any]:
    """Computes G and L, as `gaussian.smoothing_gain`."""
    PF = _times_transposed(mirrored(cov), F)
    S = matmul_add(F, PF, Q)
    L, root = factor(S)
    inverse = inverse_of_transpose(L)
    W = matmul(PF, inverse)
    G = _times_transposed(W, inverse)
    return lax.cond(sound(root, S), lambda: (G, _less_square(mirrored(cov), W)), otherwise)


def square_root(cov, *, otherwise: Callable) -> Any:
    """Computes a lower triangular S with S S' = cov, as `gaussian.square_root`."""
    L, root = factor(cov)
    return lax.cond(sound(root, cov), lambda: L, otherwise)


def update(cov, innovations: list, H, weight, noise) -> Update:
    """Computes what observations do: ``innovations`` are of several means, each (n, columns)."""
    h = hadamard(H, weight)
    PH = _times_transposed(mirrored(cov), h)
    variances = _innovation_variances(h, PH, weight, noise)
    L, root = factor(variances)
    inverse = inverse_of_transpose(L)
    W, whitened = matmul(PH, inverse), [transposed_times(inverse, x) for x in innovations]
    reduced = _less_square_symmetric(mirrored(cov), W)

    def repair() -> Any:
        gain = _times_transposed(W, inverse)
        return symmetrized(repaired(reduced, h, gain, noise, eye(H, 1)))

    care = _care(root, variances, weight, noise).array.max()
    return Update(W, whitened, root, reduced, repair, care)


def _by_care(of: Update, result: Callable, otherwise: Callable) -> Any:
    return lax.switch(of.care, [lambda: result(of.reduced), lambda: result(of.repair()), otherwise])


@stage
def _innovation_variances(h, PH, weight, noise):
    """Adds the noise's variances; those of what is missing are 1."""
    noise = type(noise).elementwise(lambda r, w: select(w > 0, r, 1), noise, weight)
    return multiply_add(h, PH, eye(h, h.shape[0]) * noise)


@stage
def _as_by_rows(W, root, *whitened):
    variance = root * root
    inverse = type(root).elementwise(lambda x: 1 / x, variance)
    return tuple(z * root for z in whitened), variance, inverse, W.T * (root * inverse)


@stage
def _less_square(cov, W):
    """Computes ``cov - W W'``."""
    return cov - W @ W.T


@stage
def _less_square_symmetric(cov, W):
    return symmetric(cov - W @ W.T)


@stage
def _times_transposed(a, b):
    return a @ b.T


@stage
def _log_density(z, root, weight):
    def one(z, root, w):
        return -0.5 * (z * z + w * math.log(2 * math.pi)) - jnp.log(root)

    return type(z).elementwise(one, z, root, weight).T.reduce(jnp.add)


@stage
def _care(root, variances, weight, noise):
    """Tells what care an observation needs (see `Update`): 2 also where something is NaN."""
    least = SOUND * float(np.finfo(root.dtype).eps)
    noise = type(noise).elementwise(lambda r, w: select(w > 0, r, 1), noise, weight)
    scale = type(noise).elementwise(lax.rsqrt, noise)
    largest = type(noise).elementwise(jnp.abs, variances) @ scale * scale

    def care(pivot, s, r, largest):
        sound = (pivot * pivot > least * s) & (r > least * s)
        return select(sound, select(largest <= LOUD, 0, 1), 2)

    return type(noise).elementwise(care, root, variances.diagonal(), noise, largest)
