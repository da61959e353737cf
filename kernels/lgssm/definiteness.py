"""Whether what is given as a covariance is one, up to rounding."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import UNROLLED_TERMS, Stacked, eye, mirrored, pivots, select, stage
from fastscan.kernels.algebra.stages import matmul
from fastscan.kernels.algebra.systems import definite

ROUNDINGS = 16
"""The roundings of its scale, for every row, that a covariance may be below zero by, and still count as one."""


def indefinite(cov, scale):
    """Returns NaN if a covariance is indefinite, beyond what rounding explains, and else 0: (1, 1).

    Args:
        cov: (n, n).
        scale: (n, 1), of what it was computed from, or will be added to; at least the variances.
    """
    n = cov.shape[0]
    allowed = ROUNDINGS * n * float(np.finfo(cov.dtype).eps)
    given = mirrored(cov + eye(cov, n) * (scale * allowed))
    if isinstance(given, Stacked) and n > UNROLLED_TERMS:
        none = type(given).elementwise(jnp.zeros_like, given.columns(0, 1).block(0, 1))
        return lax.cond(definite(given), lambda: none, lambda: _indefinite(given))
    return _indefinite(given)


def _indefinite(cov):
    d = pivots(cov, checked=True)
    return type(d).elementwise(lambda x: select(x != x, x, jnp.zeros_like(x)), d).T.reduce(jnp.add)


def indefinite_model(Q, F, P, largest=None) -> tuple[Any, Any]:
    """Judges the covariances of a model: of the dynamics' noise Q, and of the initial state P.

    Args:
        Q: (D, D).
        F: the transition (D, D).
        P: (D, D).
        largest: the variances that Q is judged beside, beside those of F P F' (D, 1); default its own.

    Returns:
        `indefinite` of Q and of P.
    """
    own = _magnitude(Q.diagonal())
    moved = _magnitude(_moved_variances(F, matmul(F, P)))
    return indefinite(Q, moved + (own if largest is None else largest)), indefinite(P, _magnitude(P.diagonal()))


def _magnitude(x):
    return type(x).elementwise(jnp.abs, x)


@stage
def _moved_variances(F, FP):
    return (FP * F).reduce(jnp.add)
