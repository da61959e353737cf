"""Smoothing of one long sequence of large matrices, whose copies would take a good part of the time.

Results are written where they are to stay, and F and Q are read where they were given, in rows of which the first is not read.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import stable_carry
from fastscan.kernels.arrays import at, blank, put
from fastscan.kernels.lgssm.gaussian import Gaussian, Transition
from fastscan.kernels.lgssm.kalman import KALMAN_FILTER, Filtered, FilterInputs
from fastscan.kernels.lgssm.smoothing import RTS_SMOOTHER, RTS_SMOOTHER_CENTRAL, Smoothed, SmootherInputs
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.xla import OnXLA


def applies(plan: Plan) -> bool:
    """Tells whether a plan is for one sequence of large matrices, whose program is not differentiated."""
    return plan.algebra == "staged alone" and plan.steps > 0 and not plan.padded


def smooth(
    plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs, *, central: bool
) -> tuple[Filtered, Smoothed]:
    """Computes filtered moments (1, T, ...), log densities of the rows (1, T - 1, 1, 1), and smoothed moments, from the first
    filtered state: see `passes.smooth`.
    """
    by, R = OnXLA(plan), plan.steps
    given, begun = by.matrices((params, state))
    split = by.split(rows._replace(F=None, Q=None))

    def inputs(t: Any) -> FilterInputs:
        F, Q = (None if x is None else at(x[0], t + x.shape[1] - R) for x in (rows.F, rows.Q))
        return by.matrices(at(split, t)._replace(F=F, Q=Q))

    def forward(t: Any, carry: tuple) -> tuple:
        state, kept, densities = carry
        state, out = KALMAN_FILTER.step(given, state, inputs(t))
        return state, put(kept, by.arrays(state), t + 1), put(densities, by.arrays(out.log_density), t)

    begun = stable_carry(lambda s, t: (KALMAN_FILTER.step(given, s, inputs(t))[0], None), begun, jnp.int32(0))
    density = blank(begun.mean.array, (R, 1, 1, 1, 1))
    kept = jax.tree.map(lambda x: blank(x, (R + 1, *x.shape)).at[0].set(x), by.arrays(begun))
    last, filtered, density = lax.fori_loop(0, R, forward, (begun, kept, density))

    smoother, of_all = RTS_SMOOTHER_CENTRAL if central else RTS_SMOOTHER, Transition(given.F, given.c, given.Q)

    def back(n: Any, carry: tuple) -> tuple:
        state, kept, crosses = carry
        t = R - 1 - n
        x = inputs(t)
        row = SmootherInputs(by.matrices(at(filtered, t)), Transition(x.F, x.c, x.Q))
        state, out = smoother.step(of_all, state, row)
        return state, put(kept, by.arrays(state), t), put(crosses, by.arrays(out.cross), t)

    kept = jax.tree.map(lambda x, end: blank(x, x.shape).at[R].set(end), filtered, by.arrays(last))
    _, smoothed, cross = lax.fori_loop(0, R, back, (last, kept, blank(filtered.cov, (R, *filtered.cov.shape[1:]))))
    mean, cov, smoothed_mean, smoothed_cov, cross, density = (
        x.reshape(1, *x.shape[:3]) for x in (*filtered, *smoothed, cross, density)
    )
    return Filtered(mean, cov, density), Smoothed(smoothed_mean, smoothed_cov, cross)
