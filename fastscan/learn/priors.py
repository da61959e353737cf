"""Priors: log densities, plain functions of parameters to add up for a model's; and conjugate ones, as `fit_em` takes them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, multigammaln, xlogy

from fastscan.kernels.arrays import matmul


def inverse_wishart(cov: jax.Array, df: float | jax.Array, scale: jax.Array) -> jax.Array:
    """Computes the log density at a covariance matrix (n, n), with degrees of freedom above n - 1 and a scale matrix (n, n)."""
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
    """Computes the log density at a matrix (n, p), whose rows have covariance ``cov`` (n, n) and whose columns a precision (p,
    p).
    """
    n, p = weights.shape
    if jnp.shape(loc) != (n, p):
        raise ValueError(f"loc: shape {jnp.shape(loc)} given, wanted {(n, p)}, which the weights have.")
    if jnp.shape(cov) != (n, n) or jnp.shape(precision) != (p, p):
        given = f"{jnp.shape(cov)}, {jnp.shape(precision)}"
        raise ValueError(f"cov, precision: shapes {given} given with weights {(n, p)}, wanted {(n, n)} and {(p, p)}.")
    L, P = jnp.linalg.cholesky(cov), jnp.linalg.cholesky(precision)
    root = jax.scipy.linalg.solve_triangular(L, matmul(weights - loc, P), lower=True)
    return n * _half_log_det(P) - p * _half_log_det(L) - (root**2).sum() / 2 - n * p / 2 * math.log(2 * math.pi)


def normal_inverse_wishart(
    mean: jax.Array, cov: jax.Array, loc: jax.Array, concentration: float, df: float | jax.Array, scale: jax.Array
) -> jax.Array:
    """Computes the log density at a mean (n,) and a covariance matrix (n, n): N(mean; loc, cov / concentration) IW(cov; df,
    scale).
    """
    precision = jnp.full((1, 1), concentration, cov.dtype)
    return matrix_normal(mean[:, None], loc[:, None], cov, precision) + inverse_wishart(cov, df, scale)


def matrix_normal_inverse_wishart(
    weights: jax.Array, cov: jax.Array, loc: jax.Array, precision: jax.Array, df: float | jax.Array, scale: jax.Array
) -> jax.Array:
    """Computes the log density at weights (n, p) and a covariance matrix (n, n): MN(weights; loc, cov, precision) IW(cov; df,
    scale).
    """
    return matrix_normal(weights, loc, cov, precision) + inverse_wishart(cov, df, scale)


def inverse_gamma(variance: jax.Array, shape: float, scale: float) -> jax.Array:
    """Computes the log density at variances (...), summed."""
    one = shape * math.log(scale) - gammaln(shape) - (shape + 1) * jnp.log(variance) - scale / variance
    return one.sum()


def gamma(rates: jax.Array, concentration: jax.typing.ArrayLike, rate: jax.typing.ArrayLike) -> jax.Array:
    """Computes the log density at rates (...), summed; of mean ``concentration / rate``, numbers or arrays that broadcast."""
    one = xlogy(concentration - 1, rates) + xlogy(concentration, rate) - rate * rates - gammaln(concentration)
    return one.sum()


def dirichlet(probs: jax.Array, concentration: jax.typing.ArrayLike) -> jax.Array:
    """Computes the log density at probabilities (..., K), summed over rows; concentrations are a number, (K,) or (..., K)."""
    given, wanted = jnp.shape(concentration), jnp.shape(probs)
    if given not in ((), wanted[-1:], wanted):
        raise ValueError(f"concentration: shape {given} given, wanted a number, {wanted[-1:]} or {wanted}.")
    c = jnp.broadcast_to(jnp.asarray(concentration, probs.dtype), wanted)
    return (xlogy(c - 1, probs) - gammaln(c)).sum() + gammaln(c.sum(-1)).sum()


class NormalInverseWishart(NamedTuple):
    """N(mean; loc, cov / concentration) IW(cov; df, scale), of a mean (n,) and a covariance (n, n).

    `fit_em` takes it for "initial" of linear-Gaussian models, and for "emissions" of Gaussian hidden Markov models, where all
    states have it.

    Attributes:
        loc: (n,).
        concentration: how many observations it is worth, positive.
        df: degrees of freedom, above n - 1.
        scale: (n, n), positive definite.
    """

    loc: jax.Array
    concentration: jax.typing.ArrayLike
    df: float | jax.Array
    scale: jax.Array

    def log_density(self, mean: jax.Array, cov: jax.Array) -> jax.Array:
        """Compute the log density at a mean (n,), or one as a column (n, 1), and a covariance matrix (n, n)."""
        return self.of_regression().log_density(mean.reshape(-1, 1), cov)

    def of_regression(self) -> "MatrixNormalInverseWishart":
        """Return the same density as that of a regression on a constant."""
        precision = jnp.asarray(self.concentration).reshape(1, 1)
        return MatrixNormalInverseWishart(self.loc[:, None], precision, self.df, self.scale)


class MatrixNormalInverseWishart(NamedTuple):
    """MN(weights; loc, cov, precision) IW(cov; df, scale), of weights (n, p) and a covariance (n, n).

    `fit_em` takes it for "dynamics" and "emissions" of linear-Gaussian models. Weights are then ``weights``,
    ``input_weights`` and ``bias`` beside each other, of what there is.

    Attributes:
        loc: (n, p).
        precision: of columns (p, p), positive definite.
        df: degrees of freedom, above n - 1.
        scale: (n, n), positive definite.
    """

    loc: jax.Array
    precision: jax.Array
    df: float | jax.Array
    scale: jax.Array

    def log_density(self, weights: jax.Array, cov: jax.Array) -> jax.Array:
        """Compute the log density at weights (n, p) and a covariance matrix (n, n)."""
        return matrix_normal_inverse_wishart(weights, cov, *self)

    def of_regression(self) -> "MatrixNormalInverseWishart":
        """Return itself, which is about a regression already."""
        return self


class InverseWishart(NamedTuple):
    """IW(cov; df, scale), of a covariance (n, n).

    `fit_em` takes it for "emissions" of Gaussian hidden Markov models, whose means then have a flat prior.

    Attributes:
        df: degrees of freedom, above n - 1.
        scale: (n, n), positive definite.
    """

    df: float | jax.Array
    scale: jax.Array

    def log_density(self, mean: jax.Array, cov: jax.Array) -> jax.Array:
        """Compute the log density at a covariance matrix (n, n), whatever the mean."""
        del mean
        return inverse_wishart(cov, *self)


class Dirichlet(NamedTuple):
    """A distribution of probabilities (..., K), row by row.

    `fit_em` takes it for "initial_distribution" and "transition_matrix" of hidden Markov models, and for "emissions" of
    categorical ones.

    Attributes:
        concentration: a number, (K,) or (..., K), at least 1 everywhere; by default dynamax's.
    """

    concentration: jax.typing.ArrayLike = 1.1

    def log_density(self, probs: jax.Array) -> jax.Array:
        """Compute the log density at probabilities (..., K), summed over rows."""
        return dirichlet(probs, *self)


class Gamma(NamedTuple):
    """A distribution of rates, of mean ``concentration / rate``; by default dynamax's.

    `fit_em` takes it for "emissions" of Poisson hidden Markov models.

    Attributes:
        concentration: a number, or (K, m), at least 1.
        rate: a number, or (K, m), positive.
    """

    concentration: jax.typing.ArrayLike = 1.1
    rate: jax.typing.ArrayLike = 0.1

    def log_density(self, rates: jax.Array) -> jax.Array:
        """Compute the log density at rates (...), summed."""
        return gamma(rates, *self)


def _half_log_det(L: jax.Array) -> jax.Array:
    return jnp.log(jnp.diagonal(L)).sum()
