"""Filtering and smoothing of one long sequence of large matrices, whose copies would take a good part of the time.

Results are written where they are to stay, and F and Q are read where they were given, in rows of which the first is not read.
"""

from collections.abc import Callable
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
from fastscan.kernels.scan.recurrence import merge
from fastscan.kernels.scan.xla import OnXLA
from fastscan.kernels.tables import is_table, row_of


def applies(plan: Plan) -> bool:
    """Tells whether a plan is for one sequence of large matrices, whose program is not differentiated."""
    return plan.algebra == "staged alone" and plan.steps > 0 and not plan.padded


def log_densities(plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs) -> jax.Array:
    """Computes the log densities of the rows (1, T - 1, 1, 1), from the first filtered state."""
    _, _, density = _run_filter(OnXLA(plan), state, params, rows, moments=False)
    return density.reshape(1, *density.shape[:3])


def filter_moments(plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs) -> Filtered:
    """Computes filtered moments (1, T, ...), and the log densities of the rows."""
    _, filtered, density = _run_filter(OnXLA(plan), state, params, rows, moments=True)
    return Filtered(*(x.reshape(1, *x.shape[:3]) for x in (*filtered, density)))


def smooth(
    plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs, *, central: bool
) -> tuple[Filtered, Smoothed]:
    """Computes as `filter_moments`, and smoothed moments: see `passes.smooth`."""
    by, R = OnXLA(plan), plan.steps
    given, inputs = by.matrices(params), _reader(by, rows)
    last, filtered, density = _run_filter(by, state, params, rows, moments=True)
    smoother, of_all = RTS_SMOOTHER_CENTRAL if central else RTS_SMOOTHER, Transition(given.F, given.c, given.Q)

    def back(n: Any, carry: tuple) -> tuple:
        state, kept, crosses = carry
        t = R - 1 - n
        x = inputs(t)
        row = SmootherInputs(by.matrices(at(filtered, t)), Transition(x.F, x.c, x.Q))
        state, out = smoother.step(of_all, state, row)
        return state, put(kept, by.arrays(state), t), put(crosses, by.arrays(out.cross), t)

    kept = jax.tree.map(lambda x, end: blank(x, x.shape).at[R].set(end), filtered, by.arrays(last))
    crosses = blank(filtered.cov, (R, *filtered.cov.shape[1:]))
    _, smoothed, cross = lax.fori_loop(0, R, back, (last, kept, crosses))
    mean, cov, density, *moments = (x.reshape(1, *x.shape[:3]) for x in (*filtered, density, *smoothed, cross))
    return Filtered(mean, cov, density), Smoothed(*moments)


def _run_filter(
    by: OnXLA, state: Gaussian, params: FilterInputs, rows: FilterInputs, *, moments: bool
) -> tuple[Gaussian, Any, jax.Array]:
    """Computes the last state, as matrices; all of them if they are asked for, arrays (T, n, p, 1, 1); and log densities."""
    R, given, begun, inputs = by.plan.steps, by.matrices(params), by.matrices(state), _reader(by, rows)

    def step(state: Gaussian, t: Any) -> tuple[Gaussian, Filtered]:
        return KALMAN_FILTER.step(given, state, inputs(t))

    def forward(t: Any, carry: tuple) -> tuple:
        state, kept, densities = carry
        state, out = step(state, t)
        kept = put(kept, by.arrays(state), t + 1) if moments else kept
        return state, kept, put(densities, by.arrays(out.log_density), t)

    begun = stable_carry(step, begun, jnp.int32(0))
    density = blank(begun.mean.array, (R, 1, 1, 1, 1))
    kept = jax.tree.map(lambda x: blank(x, (R + 1, *x.shape)).at[0].set(x), by.arrays(begun)) if moments else ()
    return lax.fori_loop(0, R, forward, (begun, kept, density))


def _reader(by: OnXLA, rows: FilterInputs) -> Callable[[Any], FilterInputs]:
    """Makes the function that reads one row of inputs."""
    whole = FilterInputs(*(x if name in ("F", "Q") and not is_table(x) else None for name, x in rows._asdict().items()))
    split, R = by.split(FilterInputs(*(x if w is None else None for x, w in zip(rows, whole, strict=True)))), by.plan.steps

    def inputs(t: Any) -> FilterInputs:
        as_given = FilterInputs(*(None if x is None else at(x[0], t + x.shape[1] - R) for x in whole))
        return by.matrices(merge(as_given, row_of(split, t)))

    return inputs
