"""Hamiltonian Monte Carlo over parameters: blackjax samples, fastscan says how likely they make the data."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.diagnostics import ess_bulk, rhat
from jax import lax
from rich.progress import Progress

from fastscan.given import check_key, count
from fastscan.learn.constraints import from_unconstrained, log_det_jac_constrain, to_unconstrained
from fastscan.learn.learnable import Learnable, Target, prepare

BLOCK = 50
"""Samples between two updates of the progress bar."""


class Draws(NamedTuple):
    """Samples of `fit_hmc`, of C chains with S samples each.

    Attributes:
        params: samples (C, S, ...); frozen ones are repeated.
        log_probs: log joint densities of parameters and emissions (C, S).
        acceptance_rates: mean probability of acceptance after warm-up (C,).
        divergences: how many trajectories diverged after warm-up (C,).
    """

    params: Any
    log_probs: jax.Array
    acceptance_rates: jax.Array
    divergences: jax.Array


class Convergence(NamedTuple):
    """Diagnostics of every number that was sampled.

    Attributes:
        rhat: rank-normalised split R-hat, near 1 where chains agree.
        ess: effective number of samples, of all chains together.
    """

    rhat: Any
    ess: Any


def fit_hmc(
    model: Learnable,
    params: Any,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    key: jax.Array,
    frozen: Iterable[str] = (),
    log_prior: Callable[[Any], jax.Array] | None = None,
    num_samples: int = 1000,
    num_chains: int = 1,
    warmup_steps: int = 100,
    num_integration_steps: int = 5,
    spread: float = 0.0,
    progress: bool = True,
) -> Draws:
    """Draws parameters from their posterior distribution, by Hamiltonian Monte Carlo in unconstrained coordinates.

    All chains run at once, as lanes of one likelihood. Every chain adapts its own step size and diagonal mass matrix while it
    warms up (blackjax's window adaptation).

    Args:
        model: the family, such as `LGSSM` or ``HMM(GAUSSIAN)``.
        params: where chains start.
        emissions: one sequence (T, ...) or a batch (B, T, ...); missing ones as the family has them.
        inputs: (T, U), (B, T, U) or None.
        key: a JAX random key.
        frozen: parameters that keep their values, as "initial" or "dynamics.cov".
        log_prior: from parameters to a log density; None is flat, which may leave the posterior improper.
        num_samples: of every chain, after warm-up.
        num_chains: how many.
        warmup_steps: of every chain.
        num_integration_steps: leapfrog steps of a trajectory, one gradient each.
        spread: standard deviation of chains' starts about ``params``, in unconstrained coordinates.
        progress: show a bar.

    Returns:
        Samples; ``convergence(draws.params)`` judges them.

    Raises:
        TypeError: parameters or data that are not arrays of numbers; a key that is not a random key.
        ValueError: shapes that do not fit together, unknown names in ``frozen``, a setting out of range.
    """
    num_samples, num_chains = count("num_samples", num_samples), count("num_chains", num_chains)
    warmup_steps = count("warmup_steps", warmup_steps)
    num_integration_steps = count("num_integration_steps", num_integration_steps)
    check_key(key)
    target, params, emissions, inputs = prepare(model, params, emissions, inputs, frozen, log_prior)
    position = to_unconstrained(params, target.constraints)
    if not jax.tree.leaves(position):
        raise ValueError(f"frozen: {frozen} given, which leaves nothing to sample.")
    start_key, warm_key, key = jax.random.split(key, 3)
    starts = _starts(start_key, position, num_chains, spread)
    data = params, emissions, inputs
    with Progress(disable=not progress) as bars:
        warming = bars.add_task("Warm-up", total=None)
        keys = jax.random.split(warm_key, num_chains)
        states, tuned = _warm_up(target, num_integration_steps, warmup_steps, keys, starts, data)
        bars.update(warming, total=1, completed=1)
        sampling = bars.add_task("HMC", total=num_samples)
        blocks = []
        size = min(BLOCK, num_samples)
        for block_key in jax.random.split(key, -(-num_samples // size)):
            states, drawn = _draw(target, num_integration_steps, size, block_key, states, tuned, data)
            blocks.append(jax.block_until_ready(drawn))
            bars.advance(sampling, size)
    positions, log_probs, accepted, divergent = jax.tree.map(lambda *x: jnp.concatenate(x, 1)[:, :num_samples], *blocks)
    return Draws(_constrained(target, positions, params), log_probs, accepted.mean(1), divergent.sum(1))


def convergence(chains: Any) -> Convergence:
    """Computes how far chains have converged, as blackjax does.

    Args:
        chains: any tree of arrays (C, S, ...), such as a `Draws`' ``params`` or what these imply; one chain is compared with
            itself.

    Raises:
        ValueError: an array without these two axes.
    """
    for x in jax.tree.leaves(chains):
        if jnp.ndim(x) < 2:
            raise ValueError(
                f"chains: shape {jnp.shape(x)} given, wanted (C, S, ...). Of a Draws, take its params or log_probs."
            )

    def flat(function: Callable) -> Callable:
        return lambda x: jax.vmap(function, 2)(x.reshape(*x.shape[:2], -1)).reshape(x.shape[2:]) if x.size else x[0, 0]

    return Convergence(jax.tree.map(flat(rhat), chains), jax.tree.map(flat(ess_bulk), chains))


def _starts(key: jax.Array, position: Any, num_chains: int, spread: float) -> Any:
    leaves, tree = jax.tree.flatten(position)
    keys = jax.random.split(key, len(leaves))
    dtype = jnp.result_type(float)  # which chains move in, whatever the parameters' is: blackjax's step sizes have it
    noise = [jax.random.normal(k, (num_chains, *x.shape), dtype) for k, x in zip(keys, leaves, strict=True)]
    return tree.unflatten([x[None] + spread * n for x, n in zip(leaves, noise, strict=True)])


@functools.partial(jax.jit, static_argnames=("target", "leapfrogs", "steps"))
def _warm_up(target: Target, leapfrogs: int, steps: int, keys: jax.Array, positions: Any, data: tuple) -> tuple[Any, Any]:
    """Warms every chain up: its state, and the step size and mass matrix that it found."""

    def one(key: jax.Array, position: Any) -> tuple[Any, Any]:
        density = functools.partial(_log_density, target, data)
        adapt = blackjax.window_adaptation(blackjax.hmc, density, num_integration_steps=leapfrogs)
        run: Callable[..., Any] = adapt.run
        (state, tuned), _ = run(key, position, num_steps=steps)
        return state, (tuned["step_size"], tuned["inverse_mass_matrix"])

    return jax.vmap(one)(keys, positions)


@functools.partial(jax.jit, static_argnames=("target", "leapfrogs", "size"))
def _draw(target: Target, leapfrogs: int, size: int, key: jax.Array, states: Any, tuned: Any, data: tuple) -> tuple[Any, Any]:
    """Draws from all chains: their next states, and of every sample its position, log joint density, acceptance rate and
    divergence.
    """
    kernel = blackjax.hmc.build_kernel()

    def one(key: jax.Array, state: Any, tuned: Any) -> tuple[Any, Any]:
        state, info = kernel(key, state, functools.partial(_log_density, target, data), *tuned, leapfrogs)
        log_prob = state.logdensity - log_det_jac_constrain(state.position, target.constraints)
        return state, (state.position, log_prob, info.acceptance_rate, info.is_divergent)

    def step(states: Any, key: jax.Array) -> tuple[Any, Any]:
        return jax.vmap(one)(jax.random.split(key, len(tuned[0])), states, tuned)

    states, drawn = lax.scan(step, states, jax.random.split(key, size))
    return states, jax.tree.map(lambda x: x.swapaxes(0, 1), drawn)


@functools.partial(jax.jit, static_argnames="target")
def _constrained(target: Target, positions: Any, params: Any) -> Any:
    """Maps positions (C, S, ...) to parameters."""
    return jax.vmap(jax.vmap(lambda position: from_unconstrained(position, target.constraints, params)))(positions)


def _log_density(target: Target, data: tuple, position: Any) -> jax.Array:
    return target.log_density(position, *data)
