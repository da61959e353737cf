"""The filter, until its covariance has settled, and from there on; again after every gap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import eye, stable_carry, zeros
from fastscan.kernels.arrays import alike, as_rows, blank, matmul, put
from fastscan.kernels.converged.vectors import as_series, from_row, vectors
from fastscan.kernels.lgssm.gaussian import Gaussian, Innovations, Transition, condition, log_density, push
from fastscan.kernels.lgssm.kalman import KALMAN_FILTER, FilterInputs, complete
from fastscan.kernels.lgssm.passes import Series
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.recurrence import merge
from fastscan.kernels.scan.settling import fill, until_settled
from fastscan.kernels.scan.xla import OnXLA


class Gain(NamedTuple):
    """A settled filter's gain, and what it makes of innovations.

    Attributes:
        moved: what the mean moves by per innovation, (D, m).
        whitening: the coefficients of innovations that are independent (m, m).
        variance, inverse: of these, (m, 1), as `Innovations` has them.
    """

    moved: Any
    whitening: Any
    variance: Any
    inverse: Any


class Way(NamedTuple):
    """A filter's way.

    Attributes:
        begin: the row from which on the covariance is constant.
        settled: the state before that row.
        means: at all times, in their order, if asked for.
        covs: those up to that row, likewise, and zeros after it; or of every ``apart`` rows alone, and one more that is none.
        densities: the log densities of the rows (B, T - 1, 1, 1).
        stretches: where entries may be missing, for every row before ``begin`` the first of the stretch that it lies in, over
            which the covariance is constant, too; or -1.
    """

    begin: Any
    settled: Gaussian
    means: Any
    covs: Any
    densities: jax.Array
    stretches: Any = None


def applies(plan: Plan, series: Series) -> bool:
    """Tells whether covariances may settle: they are the same in all sequences, and nothing varies in time but means, and what
    is missing in one sequence.
    """
    params, weight = series.params, series.rows.weight
    constant = (params.F, params.Q, params.H, params.noise)
    alone = all(x is not None and x.shape[-1] == 1 for x in constant) and len(series.prior.cov) == 1
    return plan.vectors > 0 and plan.steps > 0 and alone and (weight is None or len(weight) == 1)


def run_filter(plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs, *, moments: bool, apart: int = 1) -> Way:
    """Filters; with means, and every so many rows the covariance, if they are asked for."""
    by, R = OnXLA(plan), plan.steps
    given, state = by.matrices((params, state))
    series = by.split(rows)

    def write(kept: tuple, new: tuple, t: Any) -> tuple:
        slot = t + 1 if apart == 1 else jnp.where((t + 1) % apart == 0, (t + 1) // apart, slots)
        return tuple(put(x, one, n) for x, one, n in zip(kept, new, (t, t + 1, slot), strict=False))

    def settle(state: Gaussian, kept: tuple, series: FilterInputs, gap: jax.Array | None) -> tuple:
        def step(state: Gaussian, kept: tuple, t: Any) -> tuple[Gaussian, tuple]:
            x, _ = by.row(series, t)
            after, out = KALMAN_FILTER.step(given, state, by.matrices(x))
            return after, write(kept, by.arrays((out.log_density, after.mean, after.cov)), t)

        if gap is None:
            done = until_settled(step, _cov, state, kept, jnp.int32(R))
            return (done.state, done.rows), done.outputs, None

        return _between_gaps(by, given, step, write, state, kept, series, gap)

    x = by.matrices(by.row(series, 0)[0])
    (mean, cov), out = jax.eval_shape(lambda s: by.arrays(KALMAN_FILTER.step(given, s, x)), state)
    slots = R // apart + (apart > 1)
    lengths = (R, R + 1, slots + 1) if moments else (R,)
    kept = tuple(blank(x, (n, *x.shape)) for n, x in zip(lengths, (out.log_density, mean, cov), strict=False))
    if moments:
        kept = kept[0], *(x.at[0].set(one) for x, one in zip(kept[1:], by.arrays(tuple(state)), strict=True))
    (settled, begin), (density, *kept), stretches = by.compiled(settle)(state, kept, series, _next_gap(rows.weight))
    later_means, later_density = _later_filtered(plan, begin, params, rows, settled)
    density = from_row(begin, later_density, density)
    if not moments:
        return Way(begin, settled, None, None, as_series(density))
    mean, cov = kept
    mean = jnp.concatenate([mean[:1], from_row(begin, later_means, mean[1:])])
    return Way(begin, settled, mean, cov, as_series(density), stretches)


def _between_gaps(
    by: OnXLA,
    given: FilterInputs,
    step: Callable,
    write: Callable,
    state: Gaussian,
    kept: tuple,
    series: FilterInputs,
    gap: jax.Array,
) -> tuple[tuple[Gaussian, Any], tuple, jax.Array]:
    """Filters rows until the covariance has settled, and means alone until the next gap, again and again.

    Returns:
        The state where the covariance has settled for good, and before which row; what was kept; and `Way.stretches`.
    """
    R = len(gap) - 1

    def stretch(carry: tuple) -> tuple:
        start, _, state, kept, stretches, _ = carry
        done = until_settled(step, _cov, state, kept, jnp.int32(R), start=start, constant=lambda t, stop: gap[t] >= stop)
        begin, cov, end = done.rows, done.state.cov, gap[done.rows]
        move, last = _mean_step(given, steady_gain(given, done.state)), end >= R

        def row(t: Any, carry: tuple) -> tuple:
            mean, kept, stretches = carry
            x = merge(given, by.matrices(by.row(series, t)[0]))
            after, (_, density) = move(
                mean.to_array()[:, 0, 0], FilterInputs(c=x.c.to_array()[:, 0, 0], y=x.y.to_array()[:, 0, 0])
            )
            mean = type(mean).from_array(after[:, None, None])
            kept = write(kept, (density[:, None, None], *by.arrays((mean, cov))), t)
            return mean, kept, put(stretches, begin, t)

        rows = lax.fori_loop(begin, jnp.where(last, begin, end), row, (done.state.mean, done.outputs, stretches))
        mean, kept, stretches = rows
        return jnp.where(last, R, end), begin, Gaussian(mean, cov), kept, stretches, last

    state = stable_carry(lambda s, t: (step(s, kept, t)[0], None), state, jnp.int32(0))
    begun = jnp.int32(0), jnp.int32(0), state, kept, jnp.full(R, -1, jnp.int32), jnp.bool_(False)
    begun = alike(begun, series)
    _, begin, state, kept, stretches, _ = lax.while_loop(lambda c: (c[0] < R) & ~c[-1], stretch, begun)
    return (state, begin), kept, stretches


def _cov(state: Gaussian) -> jax.Array:
    return state.cov.array


def _next_gap(weight: jax.Array | None) -> jax.Array | None:
    """Finds for every row, and after the last one, the next one in which something is missing, of weights (1, T - 1, m, 1)."""
    if weight is None:
        return None
    R = weight.shape[1]
    gaps = jnp.where(weight.all((0, 2, 3)), R, jnp.arange(R, dtype=jnp.int32))
    return jnp.append(lax.cummin(gaps, reverse=True), R).astype(jnp.int32)


def all_moments(plan: Plan, way: Way) -> tuple[jax.Array, jax.Array]:
    """Returns the means (B, T, D, 1) and covariances (1, T, D, D) of a way that kept them."""
    return as_series(way.means), as_series(all_covs(plan, way))


def all_covs(plan: Plan, way: Way) -> jax.Array:
    """Returns the covariances at all times, in their order."""
    return fill(way.covs, OnXLA(plan).arrays(way.settled.cov), way.begin, plan.steps + 1)


def _later_filtered(
    plan: Plan, begin: Any, params: FilterInputs, rows: FilterInputs, settled: Gaussian
) -> tuple[jax.Array, jax.Array]:
    """Computes the means after all rows and their log densities, which are right from row ``begin`` on."""
    given = OnXLA(plan).matrices(params)
    gain = steady_gain(given, settled)
    F, H, K = (m.to_array()[:, :, 0, 0] for m in (given.F, given.H, gain.moved))
    closed, mean = F - matmul(K, matmul(H, F)), settled.mean.to_array()[:, 0, 0]
    rows = rows._replace(weight=None)
    means, densities = vectors(
        plan, _mean_step(given, gain), closed, mean, FilterInputs(c=params.c), rows, begin, reverse=False
    )
    return means, densities


def _mean_step(given: FilterInputs, gain: Gain) -> Callable:
    """Makes the filter's step of means (D, lanes) alone, which also reports what `vectors` wants, and log densities."""
    F, H, K, E = (m.to_array()[:, :, 0, 0] for m in (given.F, given.H, gain.moved, gain.whitening))
    weight = complete(given).weight

    def step(mean: jax.Array, row: FilterInputs) -> tuple[jax.Array, tuple]:
        predicted = matmul(F, mean) + row.c
        innovation = row.y - matmul(H, predicted)
        after = predicted + matmul(K, innovation)
        kind = type(given.H)
        e, size = (kind(x[:, None]) for x in (matmul(E, innovation), matmul(H * H, predicted**2) + row.y**2))
        variance, inverse, one = (kind(m.to_array()[..., 0]) for m in (gain.variance, gain.inverse, weight))
        density = log_density(Innovations((), (e,), variance, inverse, None), one, size)
        return after, (after, density.array[0])

    return step


def steady_gain(params: FilterInputs, settled: Gaussian) -> Gain:
    """Computes what a filter does with innovations where its covariance has settled."""
    m = params.H.shape[0]
    *_, H, noise, _, weight = complete(params)
    nothing = zeros(params.F, params.F.shape[0], 1)
    _, predicted = push(Transition(params.F, nothing, params.Q), (nothing,), settled.cov)
    start, each = zeros(params.F, params.F.shape[0], m), eye(params.F, m)
    _, (moved,), seen = condition(predicted, (start,), (each,), H, weight, noise, learning=False)
    return Gain(moved, seen.values[0], seen.variance, seen.inverse)


def innovations(params: FilterInputs, rows: FilterInputs, means: jax.Array) -> jax.Array:
    """Computes the innovations (B, T - 1, m, 1) of rows, from the means before them (B, T - 1, D, 1)."""
    F, H = params.F[:, :, 0, 0], params.H[:, :, 0, 0]
    return rows.y - matmul(H, matmul(F, means) + (as_rows(params.c) if rows.c is None else rows.c))
