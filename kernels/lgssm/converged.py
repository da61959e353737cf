"""Filtering and smoothing of time-invariant models, whose covariances converge: see the module `settling`.

Rows before the covariance has settled are those of the ordinary recursion. From there on the gain is constant, and so is what
whitens the innovations. On the way back the smoother's gain is constant over the same rows; from the end on the smoothed
covariance settles, and the rows at the beginning are the ordinary ones again.

Arrays in the order of time are (T, rows, columns, 1, B or 1) here.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import eye, stable_carry, zeros
from fastscan.kernels.algebra.stages import matmul_add, subtract
from fastscan.kernels.arrays import as_rows
from fastscan.kernels.lgssm.gaussian import Gaussian, Innovations, Transition, condition, log_density, push, smoothing_gain
from fastscan.kernels.lgssm.kalman import KALMAN_FILTER, Filtered, FilterInputs, complete
from fastscan.kernels.lgssm.smoothing import RTS_SMOOTHER_CENTRAL, Smoothed, SmootherInputs, covariance_back
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.recurrence import merge
from fastscan.kernels.scan.settling import fill, put, sweep_vectors, until_settled
from fastscan.kernels.scan.xla import OnXLA


class Gain(NamedTuple):
    """What a filter does with innovations where its covariance has settled.

    Attributes:
        moved: what the mean moves by per innovation, (D, m).
        whitening: the coefficients of innovations that are independent (m, m).
        variance, inverse: of these, (m, 1), as `Innovations` has them.
    """

    moved: Any
    whitening: Any
    variance: Any
    inverse: Any


def applies(plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs) -> bool:
    """Tells whether covariances may settle: they are the same in all sequences, and nothing varies in time but means, and what
    is missing in one sequence.
    """
    constant = (params.F, params.Q, params.H, params.noise)
    alone = all(x is not None and x.shape[-1] == 1 for x in (*constant, state.cov))
    return plan.vectors > 0 and plan.steps > 0 and alone and (rows.weight is None or len(rows.weight) == 1)


def log_densities(plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs) -> jax.Array:
    """Computes the rows' log densities (B, T - 1, 1, 1) alone."""
    return run_filter(plan, state, params, rows, moments=False).densities


def moments(plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs) -> Filtered:
    """Computes filtered means (B, T, D, 1), covariances (1, T, D, D), and the rows' log densities (B, T - 1, 1, 1)."""
    way = run_filter(plan, state, params, rows, moments=True)
    return Filtered(as_series(way.means), as_series(_all_covs(plan, way)), way.densities)


def smooth(
    plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs, *, central: bool
) -> tuple[Filtered, Smoothed]:
    """Computes the results of `moments`; and smoothed ones, with cross moments (B or 1, T - 1, D, D)."""
    by, R = OnXLA(plan), plan.steps
    way, given = run_filter(plan, state, params, rows, moments=True), by.matrices(params)
    begin, means, covs = way.begin, way.means, _all_covs(plan, way)
    G, L = smoothing_gain(way.settled.cov, given.F, given.Q)

    def settle(cov: Any, kept: tuple) -> tuple[Any, tuple]:
        def back(cov: Any, kept: tuple, n: Any) -> tuple[Any, tuple]:
            GP, cov = covariance_back(G, L, cov)
            return cov, tuple(put(x, new, R - 1 - n) for x, new in zip(kept, by.arrays((cov, GP)), strict=True))

        done = until_settled(back, lambda cov: cov.array, cov, kept, R - begin)
        return (done.rows, done.state), done.outputs

    kept = jnp.zeros_like(covs).at[R].set(covs[R]), jnp.zeros_like(covs[:R])
    (done, cov), kept = by.compiled(settle)(by.matrices(covs[R]), kept)
    GP, cov = by.arrays(covariance_back(G, L, cov))
    kept = tuple(fill(x, one, begin, R - done) for x, one in zip(kept, (cov, GP), strict=True))

    smoothed = jnp.concatenate([_later_smoothed(plan, begin, params, rows, G, means), means[R:]])
    series = SmootherInputs(
        Gaussian(means[:R], covs[:R]), Transition(None, by.split(rows.c) if rows.c is not None else None, None)
    )
    start = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, begin, keepdims=False), Gaussian(smoothed, kept[0]))
    before = functools.partial(_smooth_before, by, Transition(given.F, given.c, given.Q), way)
    mean, cov, cross = by.compiled(before)(by.matrices(start), Smoothed(smoothed, *kept), series)
    if not central:
        cross = cross + mean[:-1] * jnp.swapaxes(mean[1:], 1, 2)
    return Filtered(as_series(means), as_series(covs), way.densities), Smoothed(*map(as_series, (mean, cov, cross)))


def as_series(x: jax.Array) -> jax.Array:
    """Transposes an array in the order of time to (B, T, rows, columns)."""
    return x[:, :, :, 0].transpose(3, 0, 1, 2)


def _smooth_before(
    by: OnXLA, transition: Transition, way: "Way", state: Gaussian, kept: Smoothed, series: SmootherInputs
) -> Smoothed:
    """Smooths the rows before the filter had settled for good, from the state after them; writes to ``kept``.

    Between gaps the filter may have been settled, too: the gain is constant there, and the smoothed covariance may settle.
    """

    def row(carry: tuple) -> tuple:
        t, state, kept = carry
        state, out = RTS_SMOOTHER_CENTRAL.step(transition, state, by.matrices(by.row(series, t - 1)[0]))
        return t - 1, state, _put_all(kept, by.arrays(tuple(out)), t - 1)

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
            return state, _put_all(kept, by.arrays((*state, GP)), end - 1 - n)

        done = until_settled(settle, lambda state: state.cov.array, state, kept, end - start)
        GP, cov = covariance_back(G, L, done.state.cov)

        def means(n: Any, carry: tuple) -> tuple:
            mean, kept = carry
            mean = mean_back(mean, end - 1 - n)
            return mean, _put_all(kept, by.arrays((mean, cov, GP)), end - 1 - n)

        mean, kept = lax.fori_loop(done.rows, end - start, means, (done.state.mean, done.outputs))
        return start, Gaussian(mean, done.state.cov), kept

    state = stable_carry(lambda s, t: (row((t, s, kept))[1], None), state, jnp.int32(1))
    return lax.while_loop(lambda c: c[0] > 0, stretch, (way.begin, state, kept))[2]


def _put_all(kept: Smoothed, new: tuple, t: Any) -> Smoothed:
    return Smoothed(*(put(x, one, t) for x, one in zip(kept, new, strict=True)))


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


def _all_covs(plan: Plan, way: Way) -> jax.Array:
    return fill(way.covs, OnXLA(plan).arrays(way.settled.cov), way.begin, plan.steps + 1)


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

        def part(state: Gaussian) -> jax.Array:
            return state.cov.array

        if gap is None:
            done = until_settled(step, part, state, kept, jnp.int32(R))
            return (done.state, done.rows), done.outputs, None

        def stretch(carry: tuple) -> tuple:
            start, _, state, kept, stretches, _ = carry
            done = until_settled(step, part, state, kept, jnp.int32(R), start=start, alike=lambda t, stop: gap[t] >= stop)
            end = gap[done.rows]
            gain, last = steady_gain(given, done.state), end >= R
            means_alone = _mean_step(given, gain)

            def row(t: Any, carry: tuple) -> tuple:
                mean, kept, stretches = carry
                x = merge(given, by.matrices(by.row(series, t)[0]))
                after, (_, density) = means_alone(mean.array[:, 0, 0], FilterInputs(c=x.c.array[:, 0, 0], y=x.y.array[:, 0, 0]))
                mean = type(mean)(after[:, None, None])
                new = (density[:, None, None], mean.array, done.state.cov.array)
                return mean, write(kept, new, t), put(stretches, done.rows, t)

            given_rows = (done.state.mean, done.outputs, stretches)
            mean, kept, stretches = lax.fori_loop(done.rows, jnp.where(last, done.rows, end), row, given_rows)
            return jnp.where(last, R, end), done.rows, Gaussian(mean, done.state.cov), kept, stretches, last

        state = stable_carry(lambda s, t: (step(s, kept, t)[0], None), state, jnp.int32(0))
        begun = (jnp.int32(0), jnp.int32(0), state, kept, jnp.full(R, -1, jnp.int32), jnp.bool_(False))
        _, begin, state, kept, stretches, _ = lax.while_loop(lambda c: (c[0] < R) & ~c[-1], stretch, begun)
        return (state, begin), kept, stretches

    x = by.matrices(by.row(series, 0)[0])
    (mean, cov), out = jax.eval_shape(lambda s: by.arrays(KALMAN_FILTER.step(given, s, x)), state)
    slots = R // apart + (apart > 1)
    lengths = (R, R + 1, slots + 1) if moments else (R,)
    kept = tuple(jnp.zeros((n, *x.shape), x.dtype) for n, x in zip(lengths, (out.log_density, mean, cov), strict=False))
    if moments:
        kept = kept[0], *(x.at[0].set(one) for x, one in zip(kept[1:], by.arrays(tuple(state)), strict=True))
    (settled, begin), (density, *kept), stretches = by.compiled(settle)(state, kept, series, _next_gap(rows.weight))
    later_means, later_density = _later_filtered(plan, begin, params, rows, settled)
    density = _from(begin, later_density, density)
    if not moments:
        return Way(begin, settled, None, None, as_series(density))
    mean, cov = kept
    mean = jnp.concatenate([mean[:1], _from(begin, later_means, mean[1:])])
    return Way(begin, settled, mean, cov, as_series(density), stretches)


def _next_gap(weight: jax.Array | None) -> jax.Array | None:
    """Finds for every row, and after the last one, the next one in which something is missing, of weights (1, T - 1, m, 1)."""
    if weight is None:
        return None
    R = weight.shape[1]
    gaps = jnp.where(weight.all((0, 2, 3)), R, jnp.arange(R, dtype=jnp.int32))
    return jnp.append(lax.cummin(gaps, reverse=True), R).astype(jnp.int32)


def _from(begin: Any, later: jax.Array, before: jax.Array) -> jax.Array:
    """Takes rows of one array from ``begin`` on, and of the other before."""
    return jnp.where(jnp.arange(len(before)).reshape(-1, *(1,) * (before.ndim - 1)) >= begin, later, before)


def _later_filtered(
    plan: Plan, begin: Any, params: FilterInputs, rows: FilterInputs, settled: Gaussian
) -> tuple[jax.Array, jax.Array]:
    """Computes the means after all rows and their log densities, which are right from row ``begin`` on."""
    given = OnXLA(plan).matrices(params)
    gain = steady_gain(given, settled)
    F, H, K = (m.array[:, :, 0, 0] for m in (given.F, given.H, gain.moved))
    closed, mean = F - dot(K, dot(H, F)), settled.mean.array[:, 0, 0]
    rows = rows._replace(weight=None)
    return vectors(plan, _mean_step(given, gain), closed, mean, FilterInputs(c=params.c), rows, begin, reverse=False)


def _mean_step(given: FilterInputs, gain: Gain) -> Callable:
    """Makes the filter's step of means (D, lanes) alone, which also reports what `vectors` wants, and log densities."""
    F, H, K, E = (m.array[:, :, 0, 0] for m in (given.F, given.H, gain.moved, gain.whitening))
    weight = complete(given).weight

    def step(mean: jax.Array, row: FilterInputs) -> tuple[jax.Array, tuple]:
        predicted = dot(F, mean) + row.c
        innovation = row.y - dot(H, predicted)
        after = predicted + dot(K, innovation)
        kind = type(given.H)
        e, size = (kind(x[:, None]) for x in (dot(E, innovation), dot(H * H, predicted**2) + row.y**2))
        alone = [kind(m.array[..., 0]) for m in (gain.variance, gain.inverse, weight)]
        density = log_density(Innovations((), (e,), *alone[:2], None), alone[2], size)
        return after, (after, density.array[0])

    return step


def _later_smoothed(plan: Plan, begin: Any, params: FilterInputs, rows: FilterInputs, G: Any, means: jax.Array) -> jax.Array:
    """Computes the smoothed means before all rows, which are right from row ``begin`` on."""
    R = plan.steps
    F, G = params.F[:, :, 0, 0], G.array[:, :, 0, 0]

    def step(mean: jax.Array, row: FilterInputs) -> tuple[jax.Array, tuple]:
        before = row.y + dot(G, mean - dot(F, row.y) - row.c)
        return before, (before,)

    filtered = rows._replace(y=as_series(means[:R]), weight=None)
    return vectors(plan, step, G, means[R][:, 0, 0], FilterInputs(c=params.c), filtered, begin, reverse=True)[0]


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
    return rows.y - dot(H, dot(F, means) + (as_rows(params.c) if rows.c is None else rows.c))


def vectors(
    plan: Plan,
    step: Callable,
    matrix: jax.Array,
    state: jax.Array,
    same: FilterInputs,
    series: FilterInputs,
    begin: Any,
    *,
    reverse: bool,
) -> tuple[jax.Array, ...]:
    """Runs a recursion of vectors over the rows from ``begin`` on: see `sweep_vectors`.

    Args:
        plan: how.
        step: of columns (D, lanes), and one row of the series.
        matrix: by which it moves them.
        state: (D, B), before the first row.
        same: columns that are the same in every row, (n, 1, 1, B or 1).
        series: those that are not, (B or 1, T - 1, n, 1).
        begin: a number.
        reverse: time runs from the last row to the first.

    Returns:
        The outputs, in the order of time.
    """
    B = state.shape[-1]
    by = OnXLA(plan._replace(chunks=plan.vectors))
    L, C = by.plan.length, by.plan.chunks
    row = jax.tree.map(lambda x: jnp.broadcast_to(x[:, :, 0], (L, x.shape[1], C, B)), by.split(series))
    lanes = jax.tree.map(lambda x: jnp.broadcast_to(x[:, 0], (len(x), C, B)).reshape(len(x), C * B), same)

    def there(t: Any) -> jax.Array:
        number = jnp.arange(C)[:, None] * L + t
        return (number >= begin) & (number < plan.steps)

    out = sweep_vectors(lambda s, x: step(s, merge(lanes, x)), matrix, state, row, there, reverse=reverse)
    return tuple(by.join(x[:, :, None]).transpose(1, 2, 3, 0)[:, :, :, None] for x in out)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies two matrices, as precisely as their dtype allows."""
    return jnp.matmul(a, b, precision="highest")
