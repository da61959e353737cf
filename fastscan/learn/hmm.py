"""Learning hidden Markov models: their parameters and constraints, and the two steps of EM (Baum & Welch)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.hmm import hmm_marginal_loglik, hmm_smoother
from fastscan.learn.constraints import FROZEN, SIMPLEX
from fastscan.learn.emissions import Emissions
from fastscan.learn.learnable import Learnable


class ParamsHMM(NamedTuple):
    """A hidden Markov model.

    Attributes:
        initial_distribution: (K,).
        transition_matrix: (K, K), rows sum to one.
        emissions: what its family of emissions wants.
    """

    initial_distribution: jax.Array
    transition_matrix: jax.Array
    emissions: Any


class Statistics(NamedTuple):
    """Expected ones: first states (K,), transitions (K, K); probabilities of states (B, T, K), and the emissions."""

    first: jax.Array
    transitions: jax.Array
    probs: jax.Array
    emissions: jax.Array


@functools.cache
def HMM(family: Emissions) -> Learnable:
    """Hidden Markov models with a family of emissions, and a `ParamsHMM`. They take no inputs."""

    def arguments(params: ParamsHMM, emissions: jax.Array, inputs: None) -> tuple[jax.Array, jax.Array, jax.Array]:
        if inputs is not None:
            raise ValueError(f"inputs: shape {jnp.shape(inputs)} given; HMMs take none.")
        return params.initial_distribution, params.transition_matrix, family.log_likelihoods(params.emissions, emissions)

    def log_likelihoods(params: ParamsHMM, emissions: jax.Array, inputs: None, missing: bool | None = None) -> jax.Array:
        del missing
        return hmm_marginal_loglik(*arguments(params, emissions, inputs))

    def constraints(params: ParamsHMM) -> ParamsHMM:
        return params._replace(
            initial_distribution=SIMPLEX,
            transition_matrix=SIMPLEX,
            emissions=type(params.emissions)(*family.constraints),
        )

    def expect(
        params: ParamsHMM, emissions: jax.Array, inputs: None, missing: bool | None = None
    ) -> tuple[Statistics, jax.Array]:
        del missing
        posterior: Any = hmm_smoother(*arguments(params, emissions, inputs))
        sums = posterior.initial_probs.sum(0), posterior.trans_probs.sum(0)
        return Statistics(*sums, posterior.smoothed_probs, emissions), posterior.marginal_loglik

    def maximise(params: ParamsHMM, statistics: Statistics, constraints: ParamsHMM) -> ParamsHMM:
        found = ParamsHMM(
            _normalised(statistics.first, params.initial_distribution),
            _normalised(statistics.transitions, params.transition_matrix),
            family.maximise(params.emissions, statistics.probs, statistics.emissions),
        )
        return jax.tree.map(lambda c, new, old: old if c is FROZEN else new, constraints, found, params)

    return Learnable(log_likelihoods, constraints, expect, maximise, family.event_dims)


def _normalised(counts: jax.Array, otherwise: jax.Array) -> jax.Array:
    """Rows that sum to one; of zeros, the other ones."""
    total = counts.sum(-1, keepdims=True)
    return jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), otherwise)
