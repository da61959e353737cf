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
        log_likelihoods: ``(params, emissions)`` to log p(y_t | z_t = k), (..., T, K); of missing ones, anything.
        maximise: ``(params, weights, emissions)`` to the most likely parameters, if state k had a share ``weights[..., k]`` in
            an emission, none in a missing one; a state without any share keeps its own.
        missing: ``emissions`` to whether each is missing (..., T).
        check: ``(params, emissions)``, raises where the two do not go together.
        constraints: of the parameters' fields.
        event_dims: axes of one time step's emission.
    """

    log_likelihoods: Callable[[Any, jax.Array], jax.Array]
    maximise: Callable[[Any, jax.Array, jax.Array], Any]
    missing: Callable[[jax.Array], jax.Array]
    check: Callable[[Any, jax.Array], None]
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
    return -0.5 * ((white**2).sum(-1) + m * math.log(2 * math.pi)) - log_det


def _gaussian_maximise(params: Any, weights: jax.Array, emissions: jax.Array) -> Any:
    total, share = _shares(weights)
    apart = _filled(emissions)[..., None, :] - params.means  # which rounds less than moments about zero
    change = jnp.einsum("...k,...ki->ki", share, apart, precision="highest")
    covs = jnp.einsum("...k,...ki,...kj->kij", share, apart, apart, precision="highest")
    covs = covs - change[:, :, None] * change[:, None, :]
    found = GaussianEmissions(params.means + change, (covs + covs.mT) / 2)
    return _where_visited(total, type(params)(*found), params)


def _poisson_log_likelihoods(params: Any, emissions: jax.Array) -> jax.Array:
    y = _filled(emissions).astype(params.rates.dtype)[..., None, :]
    return (xlogy(y, params.rates) - params.rates - gammaln(y + 1)).sum(-1)


def _poisson_maximise(params: Any, weights: jax.Array, emissions: jax.Array) -> Any:
    total, share = _shares(weights)
    rates = jnp.einsum("...k,...i->ki", share, _filled(emissions), precision="highest")
    return _where_visited(total, type(params)(rates), params)


def _categorical_log_likelihoods(params: Any, emissions: jax.Array) -> jax.Array:
    """NaN for symbols that there are none of."""
    of_states = jnp.log(params.probs).at[:, emissions].get(mode="fill", fill_value=jnp.nan)
    return jnp.moveaxis(of_states, 0, -1)


def _categorical_maximise(params: Any, weights: jax.Array, emissions: jax.Array) -> Any:
    symbols = jax.nn.one_hot(emissions, params.probs.shape[-1], dtype=weights.dtype)
    counts = jnp.einsum("...k,...c->kc", weights, symbols, precision="highest")
    total = counts.sum(-1)
    return _where_visited(total, type(params)(counts / jnp.where(total == 0, 1, total)[:, None]), params)


def _filled(emissions: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(emissions), 0, emissions)


def _shares(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Every state's total weight (K,), and its shares (..., K) in it."""
    total = weights.reshape(-1, weights.shape[-1]).sum(0)
    return total, weights / jnp.where(total == 0, 1, total)


def _where_visited(total: jax.Array, found: Any, params: Any) -> Any:
    return jax.tree.map(lambda x, old: jnp.where((total > 0).reshape(-1, *[1] * (x.ndim - 1)), x, old), found, params)


def _any_nan(emissions: jax.Array) -> jax.Array:
    return jnp.isnan(emissions).any(-1)


def _check_gaussian(params: Any, emissions: jax.Array) -> None:
    _check_width(emissions, "means", params.means)
    if emissions.dtype != params.means.dtype:
        raise TypeError(f"emissions: {emissions.dtype} given, wanted {params.means.dtype}, which the means have.")


def _check_poisson(params: Any, emissions: jax.Array) -> None:
    _check_width(emissions, "rates", params.rates)


def _check_width(emissions: jax.Array, name: str, x: jax.Array) -> None:
    if x.ndim != 2 or emissions.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"emissions: (..., T, {emissions.shape[-1]}) given with {name} of shape {x.shape}; the last axes must agree."
        )


def _check_categorical(params: Any, emissions: jax.Array) -> None:
    if not jnp.issubdtype(emissions.dtype, jnp.integer):
        raise TypeError(f"emissions: {emissions.dtype} given, wanted integers, symbols from 0 on; negative ones are missing.")
    C = params.probs.shape[-1]
    if not isinstance(emissions, jax.core.Tracer) and int(emissions.max()) >= C:
        raise ValueError(
            f"emissions: symbol {int(emissions.max())} given, wanted less than C = {C}, the length of a row of probs."
        )


GAUSSIAN = Emissions(
    _gaussian_log_likelihoods, _gaussian_maximise, _any_nan, _check_gaussian, (REAL, POSITIVE_DEFINITE), event_dims=1
)
POISSON = Emissions(_poisson_log_likelihoods, _poisson_maximise, _any_nan, _check_poisson, (POSITIVE,), event_dims=1)
CATEGORICAL = Emissions(
    _categorical_log_likelihoods, _categorical_maximise, lambda y: y < 0, _check_categorical, (SIMPLEX,), event_dims=0
)
