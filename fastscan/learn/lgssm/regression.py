"""Least squares on states that are known only in distribution, and the covariance of what they leave."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.kernels.arrays import matmul
from fastscan.learn.floors import factor, leaning
from fastscan.learn.priors import MatrixNormalInverseWishart

RANK = 10
"""Regressors are redundant in directions whose eigenvalue is at most ``RANK n eps``: of the n normal equations with a unit
diagonal, with eps that of the dtype. Rounding of their sums is as large."""


class Regression(NamedTuple):
    """Expectations of B T residuals r = y - W x, given all data.

    Sums are left undone. Squares of residuals about new weights are a covariance, whatever is rounded; differences of sums
    about old ones would not be.

    Attributes:
        x: E[x], (B, T, n). The state comes first, if it is among the regressors; the rest is known.
        r: E[r], (B, T, m).
        loadings: (S, m, q). The uncertain part of r is these times w, of which the first are the state's; S is B T, or 1.
        cov: of w, (S, q, q), summed over all steps where S is 1.
        rest: the summed covariance of what is neither known nor of w (m, m).
        there: (B, T, 1), 1 where there is a residual and 0 where there is none, where x, r and cov are 0, too; None for all.
    """

    x: jax.Array
    r: jax.Array
    loadings: jax.Array
    cov: jax.Array
    rest: jax.Array
    there: jax.Array | None = None

    @property
    def count(self) -> Any:
        """The number of residuals."""
        return self.x.shape[0] * self.x.shape[1] if self.there is None else self.there.sum()


def normal_equations(of: Regression, states: int, prior: MatrixNormalInverseWishart | None = None) -> jax.Array:
    """Sum E[x x'] (n, n), of which the first ``states`` are uncertain."""
    xx = _gram(of.x, of.x).at[:states, :states].add(of.cov[:, :states, :states].sum(0))
    return xx if prior is None else xx + prior.precision


def products(
    of: Regression, states: int, change: jax.Array, prior: MatrixNormalInverseWishart | None = None, weights: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Sum E[x r'] (n, m) and E[r r'] (m, m) about weights that are changed (m, n).

    With a prior, which knows the ``weights`` before the change, they are its terms of both, too.
    """
    left = of.r - jnp.einsum("mn,btn->btm", change, of.x, precision="highest")
    loadings = of.loadings.at[:, :, :states].add(-change[:, :states])
    with_state = jnp.einsum("sdq,smq->dm", of.cov[:, :states], loadings, precision="highest")
    xr = _gram(of.x, left).at[:states].add(with_state)
    rr = _gram(left, left) + _spread(loadings, of.cov) + of.rest
    if prior is not None:
        apart = prior.loc - weights - change
        pull = matmul(prior.precision, apart.T)
        xr, rr = xr + pull, rr + matmul(apart, pull) + prior.scale
    return xr, (rr + rr.T) / 2


def fit(
    of: Regression, states: int, free: Any, bias: bool, prior: MatrixNormalInverseWishart | None = None, weights: Any = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Find the change of weights that leaves least, of minimum norm where regressors are redundant.

    Normal equations of unit diagonal, whose eigenvalues say what is redundant: see `RANK`.

    Args:
        of: about the weights before the change.
        states: how many regressors are the state.
        free: which weights may change, indices.
        bias: the last regressor is a constant and may change. Without a prior the others are centred then, which makes the
            decision about their rank, and the rounding, independent of their means.
        prior: of the weights and the covariance, or None.
        weights: before the change, for the prior.

    Returns:
        The change (m, n), E[r r'] about the changed weights, summed (m, m), and which regressors are redundant (n,).
    """
    n = of.x.shape[-1]
    change, redundant = jnp.zeros((of.r.shape[-1], n), of.r.dtype), jnp.zeros(n, bool)
    mean = jnp.zeros(n, of.x.dtype)
    if bias and prior is None:
        mean = (of.x.sum((0, 1)) / of.count).at[-1].set(0)
        x = of.x - (mean if of.there is None else mean * of.there)
        of = of._replace(x=jnp.where((x**2).sum((0, 1)) / of.count > (8 * jnp.finfo(x.dtype).eps * mean) ** 2, x, 0))
    if len(free):
        basis, left_out = _whitening(normal_equations(of, states, prior)[free][:, free])
        for _ in range(2):  # the second time about the new weights, which takes the first one's rounding away
            xr, _ = products(of, states, change, prior, weights)
            change = change.at[:, free].add(matmul(basis, matmul(basis.T, xr[free])).T)
        redundant = redundant.at[free].set(left_out)
    _, rr = products(of, states, change, prior, weights)
    if bias and prior is None:
        change = change.at[:, -1].add(-matmul(change, mean))
    return change, rr, redundant


def _whitening(xx: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find V with V V' the pseudo-inverse of the normal equations, scaled to a unit diagonal; and the redundant regressors."""
    n, eps = len(xx), jnp.finfo(xx.dtype).eps
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(xx), 0))
    inverse = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    values, vectors = jnp.linalg.eigh(xx * inverse[:, None] * inverse)
    kept = values > RANK * n * eps
    roots = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1)), 0)
    return inverse[:, None] * vectors * roots, leaning(vectors, ~kept)


def _spread(loadings: jax.Array, cov: jax.Array) -> jax.Array:
    """Sum loadings cov loadings'."""
    if len(cov) == 1:
        root = matmul(loadings[0], factor(cov[0]))
        return matmul(root, root.T)
    return jnp.einsum("smq,snq->mn", matmul(loadings, cov), loadings, precision="highest")


def _gram(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("bti,btj->ij", x, y, precision="highest")
