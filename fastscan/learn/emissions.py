"""What hidden states emit: families of distributions, with their most likely parameters under weighted data."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln, xlogy

from fastscan.learn.constraints import POSITIVE, POSITIVE_DEFINITE, REAL, SIMPLEX, Constraint


class Emissions(NamedTuple):
    """A family of emission distributions.

    Attributes:
        log_likelihoods: ``(params, emissions)`` to log p(y_t | z_t = k), (..., T, K); NaN where an emission is missing.
        maximise: ``(params, weights, emissions)`` to the most likely parameters, if state k had a share ``weights[..., k]`` in
            an emission; a state without any share keeps its own.
        constraints: of the parameters' fields.
        event_dims: axes of one time step's emission.
    """

    log_likelihoods: Callable[[Any, jax.Array], jax.Array]
    maximise: Callable[[Any, jax.Array, jax.Array], Any]
    constraints: tuple[Constraint, ...]
    event_dims: int


class GaussianEmissions(NamedTuple):
    """Of y_t (m,): means (K, m), covariances (K, m, m). An emission with a NaN entry is missing."""

    means: jax.Array
    covs: jax.Array


class PoissonEmissions(NamedTuple):
    """Of counts y_t (m,), independent given the state: rates (K, m). An emission with a NaN entry is missing."""

    rates: jax.Array


class CategoricalEmissions(NamedTuple):
    """Of one of C symbols, y_t in 0..C-1, integers: probs (K, C). A negative symbol is missing."""

    probs: jax.Array


def _gaussian_log_likelihoods(params: Any, emissions: jax.Array) -> jax.Array:
    m = params.means.shape[-1]
    L = jnp.linalg.cholesky(params.covs)
    whiten = solve_triangular(L, jnp.broadcast_to(jnp.eye(m, dtype=L.dtype), L.shape), lower=True)
    apart = _filled(emissions)[..., None, :] - params.means
    white = jnp.einsum("kij,...kj->...ki", whiten, apart, precision="highest")
    log_det = jnp.log(jnp.diagonal(L, axis1=-2, axis2=-1)).sum(-1)
    return _unless_missing(-0.5 * ((white**2).sum(-1) + m * math.log(2 * math.pi)) - log_det, emissions)


def _gaussian_maximise(params: Any, weights: jax.Array, emissions: jax.Array) -> Any:
    total, share = _shares(weights, emissions)
    apart = _filled(emissions)[..., None, :] - params.means  # which rounds less than moments about zero
    change = jnp.einsum("...k,...ki->ki", share, apart, precision="highest")
    covs = jnp.einsum("...k,...ki,...kj->kij", share, apart, apart, precision="highest")
    covs = covs - change[:, :, None] * change[:, None, :]
    found = GaussianEmissions(params.means + change, (covs + covs.mT) / 2)
    return _where_visited(total, type(params)(*found), params)


def _poisson_log_likelihoods(params: Any, emissions: jax.Array) -> jax.Array:
    y = _filled(emissions)[..., None, :]
    return _unless_missing((xlogy(y, params.rates) - params.rates - gammaln(y + 1)).sum(-1), emissions)


def _poisson_maximise(params: Any, weights: jax.Array, emissions: jax.Array) -> Any:
    total, share = _shares(weights, emissions)
    rates = jnp.einsum("...k,...i->ki", share, _filled(emissions), precision="highest")
    return _where_visited(total, type(params)(rates), params)


def _categorical_log_likelihoods(params: Any, emissions: jax.Array) -> jax.Array:
    ll = jnp.moveaxis(jnp.log(params.probs)[:, emissions], 0, -1)
    return jnp.where(emissions[..., None] < 0, jnp.nan, ll)


def _categorical_maximise(params: Any, weights: jax.Array, emissions: jax.Array) -> Any:
    symbols = jax.nn.one_hot(emissions, params.probs.shape[-1], dtype=weights.dtype)
    counts = jnp.einsum("...k,...c->kc", weights, symbols, precision="highest")
    total = counts.sum(-1)
    return _where_visited(total, type(params)(counts / jnp.where(total == 0, 1, total)[:, None]), params)


def _filled(emissions: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(emissions), 0, emissions)


def _unless_missing(log_likelihoods: jax.Array, emissions: jax.Array) -> jax.Array:
    """NaN where missing: chosen at the end, so that derivatives do not meet it."""
    return jnp.where(jnp.isnan(emissions).any(-1, keepdims=True), jnp.nan, log_likelihoods)


def _shares(weights: jax.Array, emissions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every state's total weight (K,) of what is not missing, and its shares (..., K) in it."""
    weights = jnp.where(jnp.isnan(emissions).any(-1, keepdims=True), 0, weights)
    total = weights.reshape(-1, weights.shape[-1]).sum(0)
    return total, weights / jnp.where(total == 0, 1, total)


def _where_visited(total: jax.Array, found: Any, params: Any) -> Any:
    return jax.tree.map(lambda x, old: jnp.where((total > 0).reshape(-1, *[1] * (x.ndim - 1)), x, old), found, params)


GAUSSIAN = Emissions(_gaussian_log_likelihoods, _gaussian_maximise, (REAL, POSITIVE_DEFINITE), 1)
POISSON = Emissions(_poisson_log_likelihoods, _poisson_maximise, (POSITIVE,), 1)
CATEGORICAL = Emissions(_categorical_log_likelihoods, _categorical_maximise, (SIMPLEX,), 0)
