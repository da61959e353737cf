"""The smoother: back from the end, until the smoothed covariance has settled, and through what came before the filter's had."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import stable_carry
from fastscan.kernels.algebra.stages import matmul_add, subtract
from fastscan.kernels.arrays import at, blank, matmul, put
from fastscan.kernels.converged.filtering import Way, all_covs, run_filter
from fastscan.kernels.converged.vectors import as_series, vectors
from fastscan.kernels.lgssm.gaussian import Gaussian, Transition, smoothing_gain
from fastscan.kernels.lgssm.kalman import Filtered, FilterInputs
from fastscan.kernels.lgssm.smoothing import RTS_SMOOTHER_CENTRAL, Smoothed, SmootherInputs, covariance_back
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.settling import fill, until_settled
from fastscan.kernels.scan.xla import OnXLA


def smooth(
    plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs, *, central: bool
) -> tuple[Filtered, Smoothed]:
    """Computes filtered means (B, T, D, 1), covariances (1, T, D, D) and the rows' log densities (B, T - 1, 1, 1); and smoothed
    moments, with cross moments or covariances (B or 1, T - 1, D, D).
    """
    by, R = OnXLA(plan), plan.steps
    way, given = run_filter(plan, state, params, rows, moments=True), by.matrices(params)
    begin, means, covs = way.begin, way.means, all_covs(plan, way)
    G, L = smoothing_gain(way.settled.cov, given.F, given.Q)

    def settle(cov: Any, kept: tuple) -> tuple[Any, tuple]:
        def back(cov: Any, kept: tuple, n: Any) -> tuple[Any, tuple]:
            GP, cov = covariance_back(G, L, cov)
            return cov, put(kept, by.arrays((cov, GP)), R - 1 - n)

        done = until_settled(back, lambda cov: cov.array, cov, kept, R - begin)
        return (done.rows, done.state), done.outputs

    kept = blank(covs, covs.shape).at[R].set(covs[R]), blank(covs, (R, *covs.shape[1:]))
    (done, cov), kept = by.compiled(settle)(by.matrices(covs[R]), kept)
    GP, cov = by.arrays(covariance_back(G, L, cov))
    kept = tuple(fill(x, one, begin, R - done) for x, one in zip(kept, (cov, GP), strict=True))

    smoothed = jnp.concatenate([later_smoothed(plan, begin, params, rows, G, means), means[R:]])
    drift = None if rows.c is None else by.split(rows.c)
    series = SmootherInputs(Gaussian(means[:R], covs[:R]), Transition(None, drift, None))
    start = at(Gaussian(smoothed, kept[0]), begin)
    before = functools.partial(_smooth_before, by, Transition(given.F, given.c, given.Q), way)
    mean, cov, cross = by.compiled(before)(by.matrices(start), Smoothed(smoothed, *kept), series)
    if not central:
        cross = cross + mean[:-1] * jnp.swapaxes(mean[1:], 1, 2)
    return Filtered(as_series(means), as_series(covs), way.densities), Smoothed(*map(as_series, (mean, cov, cross)))


def _smooth_before(
    by: OnXLA, transition: Transition, way: Way, state: Gaussian, kept: Smoothed, series: SmootherInputs
) -> Smoothed:
    """Smooths the rows before the filter had settled for good, from the state after them; writes to ``kept``.

    Between gaps the filter may have been settled, too: the gain is constant there, and the smoothed covariance may settle.
    """

    def row(carry: tuple) -> tuple:
        t, state, kept = carry
        state, out = RTS_SMOOTHER_CENTRAL.step(transition, state, by.matrices(by.row(series, t - 1)[0]))
        return t - 1, state, put(kept, by.arrays(out), t - 1)

    if way.stretches is None:
        return lax.while_loop(lambda c: c[0] > 0, row, (way.begin, state, kept))[2]

    def stretch_before(t: Any) -> Any:
        return lax.dynamic_index_in_dim(way.stretches, jnp.maximum(t - 1, 0), keepdims=False)

    def stretch(carry: tuple) -> tuple:
        end, state, kept = lax.while_loop(lambda c: (c[0] > 0) & (stretch_before(c[0]) < 0), row, carry)
        start = jnp.where(end > 0, stretch_before(end), 0)
        x = by.matrices(by.row(series, start)[0])
        G, L = smoothing_gain(x.filtered.cov, transition.F, transition.Q)

        def mean_back(mean: Any, t: Any) -> Any:
            (filtered, moved), _ = by.row(series, t)
            m, c = by.matrices(filtered.mean), transition.c if moved.c is None else by.matrices(moved.c)
            return matmul_add(G, subtract(mean, matmul_add(transition.F, m, c)), m)

        def settle(state: Gaussian, kept: Smoothed, n: Any) -> tuple[Gaussian, Smoothed]:
            GP, cov = covariance_back(G, L, state.cov)
            state = Gaussian(mean_back(state.mean, end - 1 - n), cov)
            return state, put(kept, by.arrays(Smoothed(*state, GP)), end - 1 - n)

        done = until_settled(settle, lambda state: state.cov.array, state, kept, end - start)
        GP, cov = covariance_back(G, L, done.state.cov)

        def means(n: Any, carry: tuple) -> tuple:
            mean, kept = carry
            mean = mean_back(mean, end - 1 - n)
            return mean, put(kept, by.arrays(Smoothed(mean, cov, GP)), end - 1 - n)

        mean, kept = lax.fori_loop(done.rows, end - start, means, (done.state.mean, done.outputs))
        return start, Gaussian(mean, done.state.cov), kept

    state = stable_carry(lambda s, t: (row((t, s, kept))[1], None), state, jnp.int32(1))
    return lax.while_loop(lambda c: c[0] > 0, stretch, (way.begin, state, kept))[2]


def later_smoothed(plan: Plan, begin: Any, params: FilterInputs, rows: FilterInputs, G: Any, means: jax.Array) -> jax.Array:
    """Computes the smoothed means before all rows, which are right from row ``begin`` on."""
    R = plan.steps
    F, G = params.F[:, :, 0, 0], G.to_array()[:, :, 0, 0]

    def step(mean: jax.Array, row: FilterInputs) -> tuple[jax.Array, tuple]:
        before = row.y + matmul(G, mean - matmul(F, row.y) - row.c)
        return before, (before,)

    filtered = rows._replace(y=as_series(means[:R]), weight=None)
    return vectors(plan, step, G, means[R][:, 0, 0], FilterInputs(c=params.c), filtered, begin, reverse=True)[0]
