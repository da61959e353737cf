"""Learning hidden Markov models: their parameters and constraints, and the two steps of EM (Baum & Welch)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.hmm import hmm_marginal_loglik, hmm_smoother
from fastscan.learn.constraints import FROZEN, SIMPLEX
from fastscan.learn.hmm.emissions import Emissions, normalised, nothing
from fastscan.learn.learnable import Learnable
from fastscan.learn.priors import Dirichlet


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
    """The input of `maximise`: expected first states (K,) and transitions, (K, K) or one for every t; and emissions.

    ``probs`` are those of their states (B, T, K), zero where an emission is missing.
    """

    first: jax.Array
    transitions: jax.Array
    probs: jax.Array
    emissions: jax.Array


@functools.cache
def HMM(family: Emissions) -> Learnable:
    """Makes a family of hidden Markov models from a family of emissions; its parameters are a `ParamsHMM`. They take no
    inputs.
    """

    def check(params: ParamsHMM, emissions: jax.Array, inputs: Any) -> None:
        if inputs is not None:
            raise ValueError(f"inputs: shape {jnp.shape(inputs)} given; HMMs take none.")
        K, initial, A = params.initial_distribution.shape[-1], params.initial_distribution, params.transition_matrix
        T = emissions.shape[-1 - family.event_dims]
        if initial.shape != (K,) or A.shape not in ((K, K), (T - 1, K, K)):
            raise ValueError(
                f"initial_distribution, transition_matrix: shapes {initial.shape}, {A.shape} given, wanted (K,) and (K, K) or "
                f"(T - 1, K, K), the same for all sequences; T = {T}."
            )
        family.check(params.emissions, emissions)

    def arguments(params: ParamsHMM, emissions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the arguments of inference. A row of NaN counts as missing there, so parameters that give NaN for an emission
        that was seen must not look so.
        """
        missing = family.missing(emissions)
        ll = family.log_likelihoods(params.emissions, emissions)
        wrong = (jnp.isnan(ll).all(-1) & ~missing).any()
        initial = jnp.where(wrong, jnp.nan, params.initial_distribution)
        return initial, params.transition_matrix, jnp.where(missing[..., None], jnp.nan, ll)

    def log_likelihoods(params: ParamsHMM, emissions: jax.Array, inputs: None, missing: bool | None = None) -> jax.Array:
        del inputs, missing
        return hmm_marginal_loglik(*arguments(params, emissions))

    def constraints(params: ParamsHMM) -> ParamsHMM:
        return params._replace(
            initial_distribution=SIMPLEX,
            transition_matrix=SIMPLEX,
            emissions=type(params.emissions)(*family.constraints),
        )

    def expect(
        params: ParamsHMM,
        emissions: jax.Array,
        inputs: None,
        missing: bool | None = None,
        starts: jax.Array | None = None,
    ) -> tuple[Statistics, jax.Array]:
        del inputs, missing
        posterior: Any = hmm_smoother(*arguments(params, emissions), starts=starts)
        first = posterior.initial_probs
        if starts is not None:
            first = jnp.where(starts[..., None], posterior.smoothed_probs, 0).sum(1)
        sums = first.sum(0), posterior.trans_probs.sum(0)
        probs = jnp.where(family.missing(emissions)[..., None], 0, posterior.smoothed_probs)
        return Statistics(*sums, probs, emissions), posterior.marginal_loglik

    def maximise(
        params: ParamsHMM, statistics: Statistics, constraints: ParamsHMM, priors: dict[str, Any], floors: dict[str, Any]
    ) -> tuple[ParamsHMM, dict[str, Any]]:
        rows = {"initial_distribution": statistics.first, "transition_matrix": statistics.transitions}
        found = {
            name: normalised(counts, getattr(params, name), priors.get(name))
            for name, counts in rows.items()
            if getattr(constraints, name) is not FROZEN
        }
        given = constraints.emissions, priors.get("emissions"), floors.get("emissions")
        emissions, low = family.maximise(params.emissions, statistics.probs, statistics.emissions, *given)
        notes = {
            "floored": {f"emissions.{name}": mask for name, mask in low.items()},
            "unvisited": {"states": nothing(statistics.probs.sum((0, 1)))},
        }
        return params._replace(**found, emissions=emissions), notes

    def log_prior(params: ParamsHMM, given: dict[str, Any]) -> jax.Array:
        total = jnp.zeros((), params.initial_distribution.dtype)
        for name, prior in given.items():
            of = getattr(params, name)
            total += family.log_prior(of, prior) if name == "emissions" and family.log_prior else prior.log_density(of)
        return total

    def floors(params: ParamsHMM, emissions: jax.Array) -> dict[str, Any]:
        return {"emissions": family.floor(params.emissions, emissions)} if family.floor else {}

    priors = {"initial_distribution": (Dirichlet,), "transition_matrix": (Dirichlet,), "emissions": family.priors}
    return Learnable(
        log_likelihoods,
        constraints,
        expect,
        maximise,
        check,
        family.event_dims,
        floors=floors,
        log_prior=log_prior,
        priors=tuple((name, types) for name, types in priors.items() if types),
    )
