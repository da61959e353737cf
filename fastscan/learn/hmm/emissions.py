"""Emissions of hidden states: families of distributions, with their most likely parameters under weighted data."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln

from fastscan.kernels.arrays import matmul
from fastscan.learn.constraints import FROZEN, POSITIVE, POSITIVE_DEFINITE, REAL, SIMPLEX, Constraint
from fastscan.learn.floors import floor, raised
from fastscan.learn.priors import Dirichlet, Gamma, InverseWishart, NormalInverseWishart

BLOCK = 2**16
"""Numbers that the distances of emissions from all states may take: steps are taken as many at a time as that allows."""


class Emissions(NamedTuple):
    """A family of emission distributions.

    Attributes:
        log_likelihoods: ``(params, emissions)`` to log p(y_t | z_t = k), (..., T, K); of missing ones, anything.
        maximise: ``(params, weights, emissions, constraints, prior, floor)`` to the most likely parameters, if state k had a
            share ``weights[..., k]`` in an emission, none in a missing one, and to which states' are at a floor, as
            ``{field: (K,)}``; a state with `nothing` keeps its own, frozen fields keep theirs.
        missing: ``emissions`` to whether each is missing (..., T).
        check: ``(params, emissions)``, raises where the two do not go together.
        constraints: of the parameters' fields.
        event_dims: axes of one time step's emission.
        priors: the conjugate ones that ``maximise`` takes beside None.
        log_prior: ``(params, prior)`` to the log density of all states' parameters.
        floor: ``(params, emissions)`` to what ``maximise`` takes.
    """

    log_likelihoods: Callable[[Any, jax.Array], jax.Array]
    maximise: Callable[[Any, jax.Array, jax.Array, Any, Any, Any], tuple[Any, dict[str, jax.Array]]]
    missing: Callable[[jax.Array], jax.Array]
    check: Callable[[Any, jax.Array], None]
    constraints: tuple[Constraint, ...]
    event_dims: int
    priors: tuple[type, ...] = ()
    log_prior: Callable[[Any, Any], jax.Array] | None = None
    floor: Callable[[Any, jax.Array], Any] | None = None


class GaussianEmissions(NamedTuple):
    """Parameters of y_t (m,): means (K, m), covariances (K, m, m). An emission with a NaN entry is missing."""

    means: jax.Array
    covs: jax.Array


class PoissonEmissions(NamedTuple):
    """Parameters of counts y_t (m,), independent given the state: rates (K, m). An emission with a NaN entry is missing."""

    rates: jax.Array


class CategoricalEmissions(NamedTuple):
    """Parameters of one of C symbols, y_t in 0..C-1, integers: probs (K, C). A negative symbol is missing."""

    probs: jax.Array


def _gaussian_log_likelihoods(params: Any, emissions: jax.Array) -> jax.Array:
    K, m = params.means.shape
    L = jnp.linalg.cholesky(params.covs)
    whiten = solve_triangular(L, jnp.broadcast_to(jnp.eye(m, dtype=L.dtype), L.shape), lower=True)
    log_det = jnp.log(jnp.diagonal(L, axis1=-2, axis2=-1)).sum(-1)

    def of_one(y: jax.Array) -> jax.Array:
        white = jnp.einsum("kij,kj->ki", whiten, y - params.means, precision="highest")
        return -0.5 * ((white**2).sum(-1) + m * math.log(2 * math.pi)) - log_det

    rows = _filled(emissions).reshape(-1, m)
    steps = max(1, BLOCK // (K * m))
    found = jax.vmap(of_one)(rows) if len(rows) <= steps else lax.map(jax.checkpoint(of_one), rows, batch_size=steps)
    return found.reshape(*emissions.shape[:-1], K)


def _gaussian_maximise(params: Any, weights: jax.Array, emissions: jax.Array, constraints: Any, prior: Any, floor: Any) -> Any:
    """Means first, then squares about those: which are covariances, whatever is rounded."""
    K, m = params.means.shape
    y, dtype = _filled(emissions).reshape(-1, m), params.means.dtype
    total, share = _shares(weights.reshape(-1, K))
    known = NormalInverseWishart(jnp.zeros(m, dtype), 0.0, -m - 2.0, jnp.zeros((m, m), dtype))  # which says nothing
    if isinstance(prior, InverseWishart):
        known = known._replace(df=prior.df - 1, scale=prior.scale)
    elif prior is not None:
        known = prior

    def apart(share: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum("nk,nki->ki", share, y[:, None] - params.means, precision="highest")

    means = params.means
    if constraints.means is not FROZEN:
        worth = total + known.concentration
        pull = (known.concentration / jnp.where(worth > 0, worth, 1))[:, None]
        means += (1 - pull) * _sum_in_blocks(apart, (share, y), K * m) + pull * (known.loc - means)
    if constraints.covs is FROZEN:
        return type(params)(means, params.covs), {}

    def squares(root: jax.Array, y: jax.Array) -> jax.Array:
        scaled = root[:, :, None] * (y[:, None] - means)
        return jnp.einsum("nki,nkj->kij", scaled, scaled, precision="highest")

    off, worth = means - known.loc, total + known.df + m + 2
    sums = total[:, None, None] * _sum_in_blocks(squares, (jnp.sqrt(share), y), K * m)
    sums += known.scale + known.concentration * off[:, :, None] * off[:, None, :]
    covs = sums / jnp.where(worth > 0, worth, 1)[:, None, None]
    covs, low = jax.vmap(raised, (0, None))((covs + covs.mT) / 2, floor)
    covs = jnp.where((worth > 0)[:, None, None], covs, params.covs)
    return type(params)(means, covs), {"covs": (worth > 0) & low.any(-1)}


def _gaussian_log_prior(params: Any, prior: Any) -> jax.Array:
    return jax.vmap(prior.log_density)(params.means, params.covs).sum()


def _poisson_log_likelihoods(params: Any, emissions: jax.Array) -> jax.Array:
    y = _filled(emissions).astype(params.rates.dtype)
    never = params.rates == 0
    log_rates = jnp.where(never, 0, jnp.log(jnp.where(never, 1, params.rates)))
    impossible = matmul((y > 0).astype(y.dtype), never.astype(y.dtype).T) > 0
    found = matmul(y, log_rates.T) - params.rates.sum(-1) - gammaln(y + 1).sum(-1, keepdims=True)
    return jnp.where(impossible, -jnp.inf, found)


def _poisson_maximise(params: Any, weights: jax.Array, emissions: jax.Array, constraints: Any, prior: Any, floor: Any) -> Any:
    del floor
    if constraints.rates is FROZEN:
        return params, {}
    total = weights.reshape(-1, weights.shape[-1]).sum(0)
    counts = jnp.einsum("...k,...i->ki", weights, _filled(emissions).astype(weights.dtype), precision="highest")
    concentration, rate = (1.0, 0.0) if prior is None else prior
    worth = jnp.broadcast_to(jnp.where(nothing(total), 0, total)[:, None] + rate, counts.shape)
    rates = (counts + concentration - 1) / jnp.where(worth > 0, worth, 1)
    return type(params)(jnp.where(worth > 0, rates, params.rates)), {}


def _categorical_log_likelihoods(params: Any, emissions: jax.Array) -> jax.Array:
    """Looks log-likelihoods up; NaN for a symbol outside of 0..C-1."""
    of_states = jnp.log(params.probs).at[:, emissions].get(mode="fill", fill_value=jnp.nan)
    return jnp.moveaxis(of_states, 0, -1)


def _categorical_maximise(
    params: Any, weights: jax.Array, emissions: jax.Array, constraints: Any, prior: Any, floor: Any
) -> Any:
    del floor
    if constraints.probs is FROZEN:
        return params, {}
    symbols = jax.nn.one_hot(emissions, params.probs.shape[-1], dtype=weights.dtype)
    counts = jnp.einsum("...k,...c->kc", weights, symbols, precision="highest")
    return type(params)(normalised(counts, params.probs, prior)), {}


def _log_prior_of_field(params: Any, prior: Any) -> jax.Array:
    return prior.log_density(*params)


def nothing(total: jax.Array) -> jax.Array:
    """Say whether weights add up to so little that their ratios are rounded away: less than the smallest number over eps."""
    return total < jnp.finfo(total.dtype).tiny / jnp.finfo(total.dtype).eps


def normalised(counts: jax.Array, otherwise: jax.Array, prior: Any = None) -> jax.Array:
    """Find rows that sum to one, the most likely ones for counts (..., K) and a `Dirichlet` prior; where counts are `nothing`,
    the others.
    """
    counts = counts if prior is None else counts + prior.concentration - 1
    total = counts.sum(-1, keepdims=True)
    visited = ~nothing(total)
    return jnp.where(visited, counts / jnp.where(visited, total, 1), otherwise)


def _sum_in_blocks(function: Callable[..., jax.Array], rows: tuple[jax.Array, ...], width: int) -> jax.Array:
    """Sum over time what a function sums over some rows, with `BLOCK` numbers, ``width`` a row, at a time."""
    steps, N = max(1, BLOCK // width), len(rows[0])
    if steps >= N:
        return function(*rows)
    whole = N // steps * steps
    blocks = tuple(x[:whole].reshape(-1, steps, *x.shape[1:]) for x in rows)
    first = function(*(x[whole:] for x in rows))
    return lax.scan(lambda total, some: (total + function(*some), None), first, blocks)[0]


def _filled(emissions: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(emissions), 0, emissions)


def _shares(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes every state's total weight (K,), zero if it is as good as `nothing`, and its shares (N, K) in it."""
    total = weights.sum(0)
    total = jnp.where(nothing(total), 0, total)
    return total, jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 0)


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
    _gaussian_log_likelihoods,
    _gaussian_maximise,
    _any_nan,
    _check_gaussian,
    (REAL, POSITIVE_DEFINITE),
    event_dims=1,
    priors=(NormalInverseWishart, InverseWishart),
    log_prior=_gaussian_log_prior,
    floor=lambda params, emissions: floor(emissions, params.covs),
)
POISSON = Emissions(
    _poisson_log_likelihoods,
    _poisson_maximise,
    _any_nan,
    _check_poisson,
    (POSITIVE,),
    event_dims=1,
    priors=(Gamma,),
    log_prior=_log_prior_of_field,
)
CATEGORICAL = Emissions(
    _categorical_log_likelihoods,
    _categorical_maximise,
    lambda y: y < 0,
    _check_categorical,
    (SIMPLEX,),
    event_dims=0,
    priors=(Dirichlet,),
    log_prior=_log_prior_of_field,
)
