"""Observations in coordinates with independent noise, row by row, with a derivative that kernels can run.

XLA differentiates the elimination itself. A kernel is a program that JAX does not look into; its derivative is another.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.kernels.algebra import eye, select
from fastscan.kernels.lgssm.gaussian import Decorrelated, decorrelate
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import driver


def decorrelate_rows(plan: Plan, H: jax.Array, noise_cov: jax.Array) -> Decorrelated:
    """Decorrelates every row: H (B or 1, rows or 1, m, D), noise_cov (B or 1, rows or 1, m, m)."""
    by = driver.phases(plan)
    if by.differentiable:
        return by.each_row("decorrelate", decorrelate, (H, noise_cov))
    return _in_kernels(plan, H, noise_cov)


def decorrelate_back(apart: Decorrelated, change: Decorrelated) -> tuple[Any, Any]:
    """Turns derivatives with respect to what `gaussian.decorrelate` returns into those with respect to what it takes.

    With W the change of coordinates and d the variances, ``W dR W' = X + X' + diag(dd)``, where X is strictly lower triangular,
    and ``dW = -X diag(1 / d) W``.

    Args:
        apart: what `gaussian.decorrelate` returned.
        change: derivatives with respect to it.

    Returns:
        Derivatives with respect to H (m, D) and the noise's covariance (m, m), not made symmetric.
    """
    m = apart.noise.shape[0]
    below = apart.change.constant(np.tril(np.ones((m, m)), -1))
    W = apart.change * below + eye(apart.change, m)  # whose zeros and ones are then known
    inverse = type(W).elementwise(lambda d: select(d > 0, 1 / select(d > 0, d, 1), 0), apart.noise)
    lower = (change.change @ W.T + change.H @ apart.H.T) * below * inverse.T
    return W.T @ change.H, W.T @ (eye(W, m) * change.noise - lower) @ W


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_kernels(plan: Plan, H: jax.Array, noise_cov: jax.Array) -> Any:
    return driver.phases(plan).each_row("decorrelate", decorrelate, (H, noise_cov))


def _forward(plan: Plan, H: jax.Array, noise_cov: jax.Array) -> tuple[Any, tuple]:
    apart = _in_kernels(plan, H, noise_cov)
    return apart, (apart, H.shape, noise_cov.shape)


def _backward(plan: Plan, kept: tuple, change: Decorrelated) -> tuple[jax.Array, ...]:
    apart, *shapes = kept
    of = driver.phases(plan).each_row("decorrelate_back", decorrelate_back, (apart, change))
    return tuple(map(_summed, of, shapes))


def _summed(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sums over the axes that an array of this shape was repeated along."""
    repeated = tuple(axis for axis, (n, size) in enumerate(zip(x.shape, shape, strict=True)) if n != size)
    return jnp.sum(x, repeated, keepdims=True)


_in_kernels.defvjp(_forward, _backward)
