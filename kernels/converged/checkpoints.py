"""The way back over rows before the filter had settled, of which the covariances of some alone were kept."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.arrays import at, blank, put
from fastscan.kernels.converged.filtering import Way
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.kernels.lgssm.kalman import KALMAN_FILTER, FilterInputs
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.xla import OnXLA


def rows_apart(rows: int) -> int:
    """Counts the rows from one covariance that is kept to the next: as many as there are stretches between them."""
    return max(int(rows**0.5), 1)


def back_over(plan: Plan, way: Way, apart: int, params: FilterInputs, rows: Any, back: Callable, carry: Any) -> Any:
    """Goes back over the rows before ``way.begin``, stretch by stretch, in which covariances are computed again.

    Args:
        plan: how.
        way: with the covariances of every ``apart`` rows.
        apart: their distance.
        params: of the filter, as matrices.
        rows: split.
        back: ``(carry, t, filtered, x) -> carry``, with the filtered state before row t, and the row's inputs, arrays.
        carry: after the last of these rows.

    Returns:
        The carry before the first row.
    """
    by = OnXLA(plan)

    def stretch(k: Any, carry: Any) -> Any:
        start = ((way.begin - 1) // apart - k) * apart
        length = jnp.minimum(way.begin - start, apart)
        state = by.matrices(Gaussian(at(way.means, start), at(way.covs, start // apart)))

        def forward(n: Any, carry: tuple) -> tuple:
            state, covs = carry
            covs = put(covs, state.cov.to_array(), n)
            return KALMAN_FILTER.step(params, state, by.matrices(by.row(rows, start + n)[0]))[0], covs

        def row(n: Any, carry: Any) -> Any:
            place = length - 1 - n
            t = start + place
            return back(carry, t, Gaussian(at(way.means, t), at(covs, place)), by.row(rows, t)[0])

        nothing: jax.Array = blank(way.covs, (apart, *way.covs.shape[1:]))
        _, covs = lax.fori_loop(0, length, forward, (state, nothing))
        return lax.fori_loop(0, length, row, carry)

    return lax.fori_loop(0, (way.begin + apart - 1) // apart, stretch, carry)
