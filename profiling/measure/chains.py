"""Two families of cases that dynamax has nothing for: chains of Gaussian potentials, and Metropolis in many Markov chains."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan import lds
from fastscan.mcmc import rw_metropolis
from fastscan.profiling.measure.cases import Case
from fastscan.profiling.measure.models import LOC, SCALE, WEIGHTS, mixture

STEP = 6.4
"""The size of proposals in the article's mixture: about what a warm-up finds, so that moments are soon known."""
MOMENTS_BOUND = 0.03
"""Errors of the moments of a million steps or more, in what they should be: several times what chance makes."""
DECISIONS_BOUND = 0.02
"""The share of chains that may go elsewhere, because one decision in their few hundred steps was as close as rounding."""

_HUNDREDTHS = 100
_MEAN = float((WEIGHTS * LOC).sum())
_DEVIATION = float(np.sqrt((WEIGHTS * (SCALE**2 + LOC**2)).sum() - _MEAN**2))


def potentials(case: Case) -> tuple:
    """Makes a chain's potentials, with pairs that vary in time and are no conditional densities, as in a switching system."""
    r = np.random.default_rng(0)
    T, D = case.T, case.D

    def precisions(count: int, size: int) -> np.ndarray:
        A = r.standard_normal((count, size, size + 1), "float32").astype(case.dtype)
        return A @ A.swapaxes(-1, -2) / size + np.asarray(0.3 * np.eye(size), case.dtype)

    def vectors(count: int) -> np.ndarray:
        return r.standard_normal((count, D), "float32").astype(case.dtype)

    both = precisions(T - 1, 2 * D)
    pair = lds.PairPotential(vectors(T - 1), both[:, :D, :D], -both[:, :D, D:], both[:, D:, D:], vectors(T - 1))
    first = lds.InitialPotential(vectors(1)[0], precisions(1, D)[0])
    return lds.NodePotential(vectors(T), precisions(T, D)), first, pair


def moments(case: Case, implementation: str | None) -> Callable[[jax.Array], jax.Array]:
    """Makes a function of a key to the mean and variance of all steps of all chains, each in what it should be."""

    def run(key: jax.Array) -> jax.Array:
        found = _walk(case, key, implementation, "moments").moments
        mean = found.mean.mean()
        variance = (found.variance + found.mean**2).mean() - mean**2
        return jnp.stack([1 + (mean - _MEAN) / _DEVIATION, variance / _DEVIATION**2])

    return run


def moments_reference(_: Case) -> Callable[[jax.Array], jax.Array]:
    """Makes a function of a key to what `moments` should find."""
    return lambda key: jnp.ones(2) + 0 * key.sum()


def positions(case: Case, implementation: str | None) -> Callable[[jax.Array], jax.Array]:
    """Makes a function of a key to where chains are after their steps, in hundredths, as whole numbers."""

    def run(key: jax.Array) -> jax.Array:
        return jnp.round(_HUNDREDTHS * _walk(case, key, implementation, "last").state.position[0]).astype(jnp.int32)

    return run


def positions_reference(case: Case) -> Callable[[jax.Array], jax.Array]:
    """Makes a function of a key to where `positions` should find them: by XLA, with the same random numbers in float32."""
    return positions(case, "xla")


def _walk(case: Case, key: jax.Array, implementation: str | None, keep: Any) -> Any:
    start = np.zeros((1, case.B), case.dtype)
    return rw_metropolis(key, mixture, start, case.T, step_size=STEP, keep=keep, implementation=implementation)
