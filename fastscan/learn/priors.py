"""Log densities for priors: plain functions of parameters. Add them up for a model's."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, multigammaln

from fastscan.model import product


def inverse_wishart(cov: jax.Array, df: float, scale: jax.Array) -> jax.Array:
    """Log density at a covariance matrix (n, n), with degrees of freedom above n - 1 and a scale matrix (n, n)."""
    n = len(scale)
    if jnp.shape(cov) != (n, n):
        raise ValueError(
            f"cov: shape {jnp.shape(cov)} given, wanted {(n, n)}, as the scale has it. Take `jax.vmap` for several."
        )
    L, S = jnp.linalg.cholesky(cov), jnp.linalg.cholesky(scale)
    root = jax.scipy.linalg.solve_triangular(L, S, lower=True)
    constant = df * n / 2 * math.log(2) + multigammaln(jnp.asarray(df / 2, jnp.result_type(cov)), n)
    return df * _half_log_det(S) - (df + n + 1) * _half_log_det(L) - (root**2).sum() / 2 - constant


def matrix_normal(weights: jax.Array, loc: jax.Array, cov: jax.Array, precision: jax.Array) -> jax.Array:
    """Log density at a matrix (n, p), whose rows have covariance ``cov`` (n, n) and whose columns a precision (p, p)."""
    n, p = weights.shape
    if jnp.shape(cov) != (n, n) or jnp.shape(precision) != (p, p):
        given = f"{jnp.shape(cov)}, {jnp.shape(precision)}"
        raise ValueError(f"cov, precision: shapes {given} given with weights {(n, p)}, wanted {(n, n)} and {(p, p)}.")
    L, P = jnp.linalg.cholesky(cov), jnp.linalg.cholesky(precision)
    root = jax.scipy.linalg.solve_triangular(L, product(weights - loc, P), lower=True)
    return n * _half_log_det(P) - p * _half_log_det(L) - (root**2).sum() / 2 - n * p / 2 * math.log(2 * math.pi)


def normal_inverse_wishart(
    mean: jax.Array, cov: jax.Array, loc: jax.Array, concentration: float, df: float, scale: jax.Array
) -> jax.Array:
    """Log density at a mean (n,) and a covariance matrix (n, n): N(mean; loc, cov / concentration) IW(cov; df, scale)."""
    precision = jnp.full((1, 1), concentration, cov.dtype)
    return matrix_normal(mean[:, None], loc[:, None], cov, precision) + inverse_wishart(cov, df, scale)


def matrix_normal_inverse_wishart(
    weights: jax.Array, cov: jax.Array, loc: jax.Array, precision: jax.Array, df: float, scale: jax.Array
) -> jax.Array:
    """Log density at weights (n, p) and a covariance matrix (n, n): MN(weights; loc, cov, precision) IW(cov; df, scale)."""
    return matrix_normal(weights, loc, cov, precision) + inverse_wishart(cov, df, scale)


def inverse_gamma(variance: jax.Array, shape: float, scale: float) -> jax.Array:
    """Log density at variances (...), summed."""
    one = shape * math.log(scale) - gammaln(shape) - (shape + 1) * jnp.log(variance) - scale / variance
    return one.sum()


def dirichlet(probs: jax.Array, concentration: float) -> jax.Array:
    """Log density at probabilities (..., K), symmetric, summed over rows."""
    K, rows = probs.shape[-1], math.prod(probs.shape[:-1])
    return (concentration - 1) * jnp.log(probs).sum() + rows * (gammaln(K * concentration) - K * gammaln(concentration))


def _half_log_det(L: jax.Array) -> jax.Array:
    return jnp.log(jnp.diagonal(L)).sum()
