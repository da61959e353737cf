"""Filtering, smoothing and sampling of linear-Gaussian series: which recurrences run, and what one pass hands the next.

The smoother needs one set of chunk summaries for both directions: its prefix scan gives every chunk's entry state, its
suffix scan what the future says of every chunk's last state.

All arrays are as `driver.run` has them: series (B or 1, T, rows, columns), the rest (rows, columns, 1, B or 1). A series
of T observations has T - 1 rows, the transitions and what is observed after each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastscan.kernels import driver
from fastscan.kernels.driver import Plan, arrays, join, matrices, split
from fastscan.kernels.gaussian import Gaussian, square_root
from fastscan.kernels.kalman import KALMAN_FILTER, Filtered, FilterInputs, condition_on_future, observe
from fastscan.kernels.smoothing import (
    AFFINE_MAPS,
    FILTER_FOR_SAMPLING,
    RTS_SMOOTHER,
    AffineMap,
    Arrival,
    SamplerInputs,
    SamplerParams,
    Smoothed,
    SmootherInputs,
)


class Series(NamedTuple):
    """A model and its observations.

    Attributes:
        prior: of the first state, before its observation.
        first: the first observation; its transition is not read.
        params, rows: the rows' inputs, split into what is the same in every row and what is not.
        arrival_params, arrival_rows: the rows' transitions for the backward pass, split likewise.
    """

    prior: Gaussian
    first: FilterInputs
    params: FilterInputs
    rows: FilterInputs
    arrival_params: Arrival
    arrival_rows: Arrival


def filter_moments(plan: Plan, series: Series) -> Filtered:
    """Filtered moments (B or 1, T, ...) and log densities (B, T, 1, 1)."""
    state, density = _first(plan, series)
    last, out = driver.run(plan, KALMAN_FILTER, series.params, state, series.rows)
    return Filtered(_end(out.mean, last.mean), _end(out.cov, last.cov), _begin(density, out.log_density))


def filter_log_densities(plan: Plan, series: Series) -> jax.Array:
    """Log densities (B, T, 1, 1) alone; no moments are kept."""

    def step(params, state, x):
        state, out = KALMAN_FILTER.step(params, state, x)
        return state, out.log_density

    state, density = _first(plan, series)
    _, densities = driver.run(plan, KALMAN_FILTER._replace(step=step), series.params, state, series.rows)
    return _begin(density, densities)


def smooth(plan: Plan, series: Series) -> tuple[Filtered, Smoothed]:
    """Filtered and smoothed moments (B or 1, T, ...), cross moments (B, T - 1, ...)."""
    initial, density = _first(plan, series)
    params, state, rows = matrices(plan, series.params), matrices(plan, initial), split(plan, series.rows)
    entries, future = state, None
    if plan.chunks > 1:
        summaries = driver.summarise(plan, KALMAN_FILTER, params, state, rows)
        past, future = driver.scan_summaries(plan, KALMAN_FILTER, state, summaries, "before", "after")
        entries = KALMAN_FILTER.enter(state, past)
    exits, filtered = driver.sweep(plan, KALMAN_FILTER, params, entries, rows)
    last = jax.tree.map(lambda x: x[..., -1:, :], arrays(plan, exits))
    if future is not None:
        exits = condition_on_future(exits, future)
    inputs = SmootherInputs(Gaussian(filtered.mean, filtered.cov), split(plan, series.arrival_rows))
    _, smoothed = driver.sweep(plan, RTS_SMOOTHER, matrices(plan, series.arrival_params), exits, inputs, reverse=True)
    filtered, smoothed = join(plan, filtered), join(plan, smoothed)
    return (
        Filtered(_end(filtered.mean, last.mean), _end(filtered.cov, last.cov), _begin(density, filtered.log_density)),
        Smoothed(_end(smoothed.mean, last.mean), _end(smoothed.cov, last.cov), smoothed.cross),
    )


def sample(plan: Plan, series: Series, noise: jax.Array, jitter: jax.Array) -> jax.Array:
    """States drawn from their posterior, (B, T, D, 1).

    Args:
        plan: how.
        series: what.
        noise: standard normal (B, T, D, 1).
        jitter: (1, 1, 1, 1), added to the conditional variances of all but the last state.
    """
    initial, _ = _first(plan, series)
    params = SamplerParams(series.params, series.arrival_params, jitter)
    rows = SamplerInputs(series.rows, series.arrival_rows, noise[:, :-1])
    last, (maps, means) = driver.run(plan, FILTER_FOR_SAMPLING, params, initial, rows)
    root = square_root(matrices(plan, last.cov))
    end = arrays(plan, root @ matrices(plan, noise[:, -1:].transpose(2, 3, 1, 0)))
    _, deviations = driver.run(plan, AFFINE_MAPS, AffineMap(), end, maps, reverse=True)
    return _end(means + deviations, last.mean + end)


def affine_states(plan: Plan, initial: jax.Array, params: AffineMap, maps: AffineMap) -> jax.Array:
    """States (B, T, D, 1) under T - 1 affine maps, from the first one (D, 1, 1, B)."""
    _, states = driver.run(plan, AFFINE_MAPS, params, initial, maps)
    return _begin(initial, states)


def _first(plan: Plan, series: Series) -> tuple[Gaussian, jax.Array]:
    prior, first = matrices(plan, (series.prior, series.first))
    return arrays(plan, observe(Gaussian(*prior), first.H, first.noise, first.y, first.weight))


def _as_series(x: jax.Array) -> jax.Array:
    """(n, p, 1, B) to (B, 1, n, p)."""
    return x.transpose(3, 2, 0, 1)


def _end(rows: jax.Array, last: jax.Array) -> jax.Array:
    return _concatenate(rows, _as_series(last))


def _begin(first: jax.Array, rows: jax.Array) -> jax.Array:
    return _concatenate(_as_series(first), rows)


def _concatenate(*parts: jax.Array) -> jax.Array:
    B = max(p.shape[0] for p in parts)
    return jnp.concatenate([jnp.broadcast_to(p, (B, *p.shape[1:])) for p in parts], 1)
