"""Filtering, smoothing, scoring and sampling of linear-Gaussian series, whose covariances may converge.

Where the plan does not ask for it, and for models that vary in time, these are the passes of `lgssm.passes`, which tells of
arguments and results, too.
"""

import jax

from fastscan.kernels.arrays import as_rows, prepend
from fastscan.kernels.converged import sampling, scoring, smoothing, summing
from fastscan.kernels.converged.filtering import all_moments, applies, run_filter
from fastscan.kernels.lgssm import passes
from fastscan.kernels.lgssm.kalman import Filtered
from fastscan.kernels.lgssm.passes import Series, first
from fastscan.kernels.lgssm.scoring import observe_back
from fastscan.kernels.lgssm.smoothing import Smoothed, SmootherSums, added_up
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import driver


def filter_moments(plan: Plan, series: Series) -> Filtered:
    """Computes filtered moments (B or 1, T, ...) and log densities (B, T, 1, 1)."""
    if not applies(plan, series):
        return passes.filter_moments(plan, series)
    state, density = first(plan, series)
    way = run_filter(plan, state, series.params, series.rows, moments=True)
    return Filtered(*all_moments(plan, way), prepend(density, way.densities))


def filter_log_densities(plan: Plan, series: Series) -> jax.Array:
    """Computes log densities (B, T, 1, 1) alone; no moments are kept."""
    if not applies(plan, series):
        return passes.filter_log_densities(plan, series)
    state, density = first(plan, series)
    return prepend(density, run_filter(plan, state, series.params, series.rows, moments=False).densities)


def smooth(plan: Plan, series: Series, central: bool = False) -> tuple[Filtered, Smoothed]:
    """Computes filtered and smoothed moments (B or 1, T, ...), and cross moments or covariances."""
    if not applies(plan, series):
        return passes.smooth(plan, series, central)
    state, density = first(plan, series)
    filtered, smoothed = smoothing.smooth(plan, state, series.params, series.rows, central=central)
    return filtered._replace(log_density=prepend(density, filtered.log_density)), smoothed


def smooth_summed(plan: Plan, series: Series) -> tuple[jax.Array, jax.Array, SmootherSums]:
    """Computes log densities (B, T, 1, 1), smoothed means (B or 1, T, D, 1) and sums of smoothed covariances."""
    if applies(plan, series) and series.rows.weight is None:
        state, density = first(plan, series)
        densities, means, sums = summing.summed(plan, state, series.params, series.rows)
        return prepend(density, densities), means, sums
    filtered, (means, covs, cross) = smooth(plan, series, central=True)
    return filtered.log_density, means, added_up(covs, cross)


def score(plan: Plan, series: Series) -> tuple[jax.Array, Series]:
    """Computes the log density of all observations (B,), and every sequence's derivatives."""
    if not applies(plan, series) or series.rows.weight is not None:
        return passes.score(plan, series)
    state, density = first(plan, series)
    densities, message, of_params, of_rows = scoring.score(plan, state, series.params, series.rows)
    given = series.prior, series.first, as_rows(message)
    _, of_prior, of_first = driver.phases(plan).each_row("first_score", observe_back, given)
    return (density + densities.sum(1, keepdims=True))[:, 0, 0, 0], Series(of_prior, of_first, of_params, of_rows)


def sample(plan: Plan, series: Series, noise: jax.Array, jitter: jax.Array) -> jax.Array:
    """Draws states from their posterior, (B, T, D, 1)."""
    if not applies(plan, series):
        return passes.sample(plan, series, noise, jitter)
    state, _ = first(plan, series)
    return sampling.sample(plan, state, series.params, series.rows, noise, jitter)
