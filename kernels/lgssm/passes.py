"""Filtering, smoothing and sampling of linear-Gaussian series: which recurrences run, and what one pass hands the next.

The smoother needs one set of chunk summaries for both directions: its prefix scan gives every chunk's entry state, its
suffix scan what the future says of every chunk's last state.

All arrays are as `driver.run` has them: series (B or 1, T, rows, columns), the rest (rows, columns, 1, B or 1). A series
of T observations has T - 1 rows, the transitions and what is observed after each.
"""

from typing import Any, NamedTuple

import jax

from fastscan.kernels.affine.maps import AFFINE_MAPS, AffineMap
from fastscan.kernels.arrays import as_lanes, as_rows, prepend
from fastscan.kernels.lgssm import in_blocks, in_place
from fastscan.kernels.lgssm.gaussian import Gaussian, Transition, square_root
from fastscan.kernels.lgssm.kalman import (
    KALMAN_FILTER,
    KALMAN_HINDSIGHT,
    KALMAN_LIKELIHOOD,
    Filtered,
    FilterInputs,
    condition_on_future,
    observe,
)
from fastscan.kernels.lgssm.scoring import KALMAN_SCORE, ScoreRow, begin_scoring, observe_back
from fastscan.kernels.lgssm.smoothing import (
    BACKWARD_KERNELS,
    FILTER_FOR_SAMPLING,
    RTS_SMOOTHER,
    RTS_SMOOTHER_CENTRAL,
    BackwardKernel,
    SamplerInputs,
    SamplerMap,
    SamplerParams,
    Smoothed,
    SmootherInputs,
    kernel,
)
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import driver


class Series(NamedTuple):
    """A model and its observations.

    Attributes:
        prior: of the first state, before its observation; a series of one row.
        first: the first observation, likewise; its transition is not read.
        params, rows: the rows' inputs, split into what is the same in every row and what is not. F and Q may have one row more,
            at the beginning, that is not read. F, Q and H of the rows may be tables.
    """

    prior: Gaussian
    first: FilterInputs
    params: FilterInputs
    rows: FilterInputs


def filter_moments(plan: Plan, series: Series) -> Filtered:
    """Computes filtered moments (B or 1, T, ...) and log densities (B, T, 1, 1)."""
    join = driver.phases(plan).join
    state, density = first(plan, series)
    if in_place.applies(plan):
        filtered = in_place.filter_moments(plan, state, series.params, series.rows)
        return filtered._replace(log_density=prepend(density, filtered.log_density))
    last, out = driver.run(plan, KALMAN_FILTER, series.params, state, series.rows, room=_FILTERED_ROOM)
    return Filtered(join(out.mean, last.mean), join(out.cov, last.cov), prepend(density, join(out.log_density)))


def filter_log_densities(plan: Plan, series: Series) -> jax.Array:
    """Computes log densities (B, T, 1, 1) alone; no moments are kept."""
    state, density = first(plan, series)
    if in_place.applies(plan):
        return prepend(density, in_place.log_densities(plan, state, series.params, series.rows))
    _, densities = driver.run(plan, KALMAN_LIKELIHOOD, series.params, state, series.rows)
    return prepend(density, driver.phases(plan).join(densities))


def score(plan: Plan, series: Series) -> tuple[jax.Array, Series]:
    """Computes the log density of all observations (B,), and every sequence's derivatives with respect to a series' numbers.

    They have the series' form, with a lane or an entry for every sequence; None where there are none: of weights, and of what
    only the backward pass takes.
    """
    by = driver.phases(plan)
    state, density = first(plan, series)
    given = series.params, state, series.rows
    if in_blocks.applies(plan, series.rows):
        total, message, of_params, of_rows = in_blocks.score(plan, state, series.params, series.rows)
    else:
        params, rows, ends, out = driver.run_with_futures(plan, KALMAN_FILTER, KALMAN_HINDSIGHT, *given)
        back = ScoreRow(Gaussian(out.mean, out.cov), rows)
        before, of_rows = by.sweep(KALMAN_SCORE, params, ends, back, begin=begin_scoring, reverse=True)
        message, of_params = by.arrays(before)
        total, of_rows = by.total(out.log_density), jax.tree.map(lambda x: by.join(x), of_rows)
    message = as_rows(jax.tree.map(lambda x: x[..., :1, :], message))
    _, of_prior, of_first = by.each_row("first_score", observe_back, (series.prior, series.first, message))
    of_params = jax.tree.map(lambda x: x.sum(-2, keepdims=True), of_params)
    return density[:, 0, 0, 0] + total, Series(of_prior, of_first, of_params, of_rows)


def smooth(plan: Plan, series: Series, central: bool = False) -> tuple[Filtered, Smoothed]:
    """Computes filtered and smoothed moments (B or 1, T, ...), and cross moments, with ``central`` covariances (B, T - 1,
    ...).
    """
    by = driver.phases(plan)
    state, density = first(plan, series)
    if in_place.applies(plan):
        filtered, smoothed = in_place.smooth(plan, state, series.params, series.rows, central=central)
        return filtered._replace(log_density=prepend(density, filtered.log_density)), smoothed
    given = series.params, state, series.rows
    params, rows, ends, filtered = driver.run_with_futures(plan, KALMAN_FILTER, KALMAN_HINDSIGHT, *given, room=_FILTERED_ROOM)
    last = driver.last(plan, ends[0])
    inputs = SmootherInputs(Gaussian(filtered.mean, filtered.cov), _transition(rows))
    begin = condition_on_future if len(ends) > 1 else None
    room, smoother = Smoothed(mean=True, cov=True, cross=False), RTS_SMOOTHER_CENTRAL if central else RTS_SMOOTHER
    params = _transition(params)
    _, smoothed = by.sweep(smoother, params, ends, inputs, begin=begin, reverse=True, room=room, exits=False)
    (mean, cov), (smoothed_mean, smoothed_cov) = (
        [by.join(x, end) for x, end in zip(some, last, strict=False)] for some in (filtered, smoothed)
    )
    return (
        Filtered(mean, cov, prepend(density, by.join(filtered.log_density))),
        Smoothed(smoothed_mean, smoothed_cov, by.join(smoothed.cross)),
    )


def sample(plan: Plan, series: Series, noise: jax.Array, jitter: jax.Array) -> jax.Array:
    """Draws states from their posterior, (B, T, D, 1).

    Args:
        plan: how.
        series: what.
        noise: standard normal (B, T, D, 1).
        jitter: (1, 1, 1, 1), added to the conditional variances of all but the last state.
    """
    by = driver.phases(plan)
    initial, _ = first(plan, series)
    params, rows = SamplerParams(series.params, jitter), SamplerInputs(series.rows, noise[:, :-1])

    def draw(last: Gaussian) -> jax.Array:
        return as_lanes(by.each_row("draw", color, (as_rows(last.cov), noise[:, -1:])))

    if in_blocks.applies(plan, series.rows) and not in_blocks.fits(plan, initial):
        return in_blocks.sample(plan, initial, params, rows, draw)
    room = SamplerMap(deviation=False, mean=True)
    last, (maps, means) = driver.run(plan, FILTER_FOR_SAMPLING, params, initial, rows, room=room)
    end = draw(last)
    maps = jax.tree.map(lambda x: by.join(x), maps)
    _, deviations = driver.run(plan, AFFINE_MAPS, AffineMap(), end, maps, reverse=True, room=True)
    return by.join(means, last.mean) + by.join(deviations, end)


def backward_kernels(plan: Plan, filtered: Gaussian, F: jax.Array, c: jax.Array, Q: jax.Array) -> BackwardKernel:
    """Computes what the next state says of every filtered one: series (B, rows, ...), from those of the filtered moments and
    the transitions that leave them (B or 1, rows or 1, ...).
    """
    return driver.phases(plan).each_row("backward_kernels", kernel, (filtered, F, c, Q))


def smooth_from(plan: Plan, kernels: BackwardKernel, last: Gaussian) -> Smoothed:
    """Computes smoothed moments (B, rows, ...) of the states whose kernels are given, and second moments with the next ones,
    from the smoothed moments (D, ..., 1, B) of the state after them.
    """
    _, out = driver.run(plan, BACKWARD_KERNELS, (), last, kernels, reverse=True)
    return jax.tree.map(driver.phases(plan).join, out)


def affine_states(plan: Plan, initial: jax.Array, params: AffineMap, maps: AffineMap) -> jax.Array:
    """Computes states (B, T, D, 1) under T - 1 affine maps, from the first one (D, 1, 1, B)."""
    _, states = driver.run(plan, AFFINE_MAPS, params, initial, maps)
    return prepend(as_rows(initial), driver.phases(plan).join(states))


_FILTERED_ROOM = Filtered(mean=True, cov=True, log_density=False)


def first(plan: Plan, series: Series) -> tuple[Gaussian, jax.Array]:
    """Computes the first filtered state (n, p, 1, B or 1), and the log densities of the first observations (B, 1, 1, 1)."""
    by = driver.phases(plan)
    state, density = by.each_row("first_observation", observe, (series.prior, series.first))
    return as_lanes(state), density


def _transition(x: FilterInputs) -> Transition:
    return Transition(x.F, x.c, x.Q)


def color(cov: Any, noise: Any) -> Any:
    """Draws from N(0, cov), given standard normal noise. A function of its own, so that kernels know it by its name."""
    return square_root(cov) @ noise
