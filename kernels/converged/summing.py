"""Smoothed means, and sums over time of smoothed covariances: no array holds a covariance for every step."""

from typing import Any

import jax
import jax.numpy as jnp

from fastscan.kernels.algebra import stable_carry
from fastscan.kernels.arrays import alike, at, put
from fastscan.kernels.converged.checkpoints import back_over, rows_apart
from fastscan.kernels.converged.filtering import run_filter
from fastscan.kernels.converged.smoothing import later_smoothed
from fastscan.kernels.converged.vectors import as_series
from fastscan.kernels.lgssm.gaussian import Gaussian, Transition, smoothing_gain
from fastscan.kernels.lgssm.kalman import FilterInputs
from fastscan.kernels.lgssm.smoothing import RTS_SMOOTHER_CENTRAL, SmootherInputs, SmootherSums, covariance_back
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.settling import until_settled
from fastscan.kernels.scan.xla import OnXLA


def summed(plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs) -> tuple[jax.Array, jax.Array, SmootherSums]:
    """Computes the rows' log densities (B, T - 1, 1, 1), smoothed means (B, T, D, 1), and sums (1, D, D)."""
    by, R = OnXLA(plan), plan.steps
    apart = rows_apart(R)
    way, given = run_filter(plan, state, params, rows, moments=True, apart=apart), by.matrices(params)
    begin, last = way.begin, way.settled.cov
    G, L = smoothing_gain(last, given.F, given.Q)

    def settle(cov: Any, sums: tuple, _: Any) -> tuple[Any, tuple]:
        GP, cov = covariance_back(G, L, cov)
        return cov, (sums[0] + cov, sums[1] + GP)

    nothing = alike((last * 0.0, last * 0.0), rows)
    done = until_settled(settle, lambda cov: cov.array, last, nothing, R - begin)
    GP, cov = covariance_back(G, L, done.state)
    left = (R - begin - done.rows).astype(cov.dtype)
    between, cross = (type(x)(x.array + left * one.array) for x, one in zip(done.outputs, (cov, GP), strict=True))
    cov = type(cov)(jnp.where(left > 0, cov.array, done.state.array))

    means = jnp.concatenate([later_smoothed(plan, begin, params, rows, G, way.means), way.means[R:]])
    transition = Transition(given.F, given.c, given.Q)

    def back(carry: tuple, t: Any, filtered: Gaussian, x: FilterInputs) -> tuple:
        state, means, between, cross = carry
        inputs = SmootherInputs(filtered, Transition(None, x.c, None))
        state, out = RTS_SMOOTHER_CENTRAL.step(transition, state, by.matrices(inputs))
        between = type(between)(between.array + jnp.where(t > 0, out.cov.array, 0))
        return state, put(means, out.mean.to_array(), t), between, cross + out.cross

    def first_row(carry: tuple, x: FilterInputs) -> tuple[tuple, None]:
        return back(carry, 0, Gaussian(at(way.means, 0), at(way.covs, 0)), x), None

    split = by.split(rows)
    carry = Gaussian(by.matrices(at(means, begin)), cov), means, between, cross
    carry = stable_carry(first_row, carry, by.row(split, 0)[0])
    (_, first), means, between, cross = back_over(plan, way, apart, given, split, back, carry)
    sums = by.arrays(SmootherSums(first, between + first, between + last, cross))
    return way.densities, as_series(means), SmootherSums(*(x.transpose(3, 2, 0, 1)[:, 0] for x in sums))
