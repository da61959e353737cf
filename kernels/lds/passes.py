"""Inference in chains of Gaussian potentials: which recurrences run, and what one pass hands the next.

Arrays are as `driver.run` has them. A chain of T states has T - 1 rows, the pairs.
"""

from typing import NamedTuple

import jax

from fastscan.kernels.affine.maps import AFFINE_MAPS, AffineMap
from fastscan.kernels.arrays import as_lanes, as_rows
from fastscan.kernels.lds.potentials import (
    PAIR_FILTER,
    PAIR_HINDSIGHT,
    PAIR_LIKELIHOOD,
    PAIR_SAMPLER,
    NormalRow,
    PairInputs,
    Potential,
    draw,
    integral,
    moments,
)
from fastscan.kernels.lgssm.smoothing import BACKWARD_KERNELS, Smoothed
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import driver


class PotentialChain(NamedTuple):
    """A chain of potentials: what all say of the first state, a series of one row; and the rows' inputs, those that do not vary
    in ``params``.
    """

    first: Potential
    params: PairInputs
    rows: PairInputs


def smooth(plan: Plan, chain: PotentialChain) -> tuple[jax.Array, Smoothed]:
    """Computes the log of the product's integral, less T D/2 log 2 pi (B,); moments (B, T, ...), cross ones (B, T - 1, ...)."""
    by = driver.phases(plan)
    given = chain.params, as_lanes(chain.first), chain.rows
    _, _, ends, out = driver.run_with_futures(plan, PAIR_FILTER, PAIR_HINDSIGHT, *given)
    last = as_rows(driver.last(plan, ends[0]))
    room = Smoothed(mean=True, cov=True, cross=False)
    _, smoothed = by.sweep(BACKWARD_KERNELS, (), ends, out.kernel, begin=moments, reverse=True, room=room, exits=False)
    end = as_lanes(by.each_row("last_moments", moments, (last,)))
    mean, cov = (by.join(x, e) for x, e in zip(smoothed[:2], end, strict=True))
    return _total(plan, last, out.log_density), Smoothed(mean, cov, by.join(smoothed.cross))


def log_normalizer(plan: Plan, chain: PotentialChain) -> jax.Array:
    """Computes the first result of `smooth` alone."""
    last, densities = driver.run(plan, PAIR_LIKELIHOOD, chain.params, as_lanes(chain.first), chain.rows)
    return _total(plan, as_rows(last), densities)


def sample(plan: Plan, chain: PotentialChain, noise: jax.Array) -> jax.Array:
    """Draws states (B, T, D, 1), from standard normal noise of the same shape."""
    by = driver.phases(plan)
    rows = NormalRow(chain.rows, noise[:, :-1])
    last, maps = driver.run(plan, PAIR_SAMPLER, chain.params, as_lanes(chain.first), rows)
    end = as_lanes(by.each_row("draw_last", draw, (as_rows(last), noise[:, -1:])))
    maps = jax.tree.map(lambda x: by.join(x), maps)
    _, states = driver.run(plan, AFFINE_MAPS, AffineMap(), end, maps, reverse=True, room=True)
    return by.join(states, end)


def _total(plan: Plan, last: Potential, densities: jax.Array) -> jax.Array:
    by = driver.phases(plan)
    return by.each_row("integral", integral, (last,))[:, 0, 0, 0] + by.total(densities)
