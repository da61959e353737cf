"""Whether what is given as a covariance is one, up to rounding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import Stacked, eye, mirrored, pivots, select, stage
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
    d = pivots(_allowing(cov, scale), checked=True)
    return type(d).elementwise(lambda x: select(x != x, x, jnp.zeros_like(x)), d).T.reduce(jnp.add)


def _allowing(cov, scale) -> Any:
    """Adds to variances what a covariance may be below zero by."""
    n = cov.shape[0]
    allowed = ROUNDINGS * n * float(np.finfo(cov.dtype).eps)
    return mirrored(cov + eye(cov, n) * (scale * allowed))


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
    own = magnitudes(Q)
    return indefinite_beside(Q, P, moved_variances(F, P) + (own if largest is None else largest))


def moved_variances(F, P) -> Any:
    """Computes the sizes of the variances of F P F', (D, 1)."""
    return _magnitude(_moved_variances(F, matmul(F, P)))


def indefinite_beside(Q, P, scale) -> tuple[Any, Any]:
    """Does as `indefinite_model`, of a Q that is judged beside given variances (D, 1)."""
    return indefinite(Q, scale), indefinite(P, magnitudes(P))


def magnitudes(cov) -> Any:
    """Computes the sizes of a covariance's variances, (D, 1)."""
    return _magnitude(cov.diagonal())


def surely_definite(covs: jax.Array) -> jax.Array:
    """Tells of large covariances (B or 1, T or 1, n, n), beside their own variances, whether none is indefinite: by a library's
    factors, which take less time than to tell which.
    """

    def one(cov: jax.Array) -> jax.Array:
        matrix: Any = Stacked(cov[..., None, None])
        return definite(_allowing(matrix, magnitudes(matrix)))

    return lax.map(one, covs.reshape(-1, *covs.shape[2:])).all()


def _magnitude(x):
    return type(x).elementwise(jnp.abs, x)


@stage
def _moved_variances(F, FP):
    return (FP * F).reduce(jnp.add)
