"""What a step of HMC costs, the same blackjax code on ours and on dynamax's likelihood; and what `vmap` costs."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import fastscan
from fastscan.learn import LGSSM, from_unconstrained, log_det_jac_constrain, to_unconstrained
from fastscan.profiling.bench_rows import Row
from fastscan.profiling.models import random_params, simulate, tracking_params
from fastscan.profiling.timing import first_call_seconds, medians

D, M, T = 2, 10, 100
LEAPFROGS, STEP_SIZE = 5, 1e-3
SEQUENCES = 64


def hmc_rows() -> Iterator[Row]:
    """One step of one chain, and of 64 at once; and vmap over 64 sequences against the batch axis."""
    import dynamax.linear_gaussian_ssm as dynamax

    params = jax.tree.map(jnp.asarray, random_params(D, M))
    y = jnp.asarray(simulate(params, T, 0))
    ours = functools.partial(fastscan.lgssm_marginal_loglik, emissions=y)
    theirs = functools.partial(_dynamax_loglik, dynamax.lgssm_filter, emissions=y)
    for chains, least, aim in ((1, "1.5x", "5x"), (64, "4x", "20x")):
        steps, arguments = zip(*(_hmc_step(loglik, params, chains) for loglik in (theirs, ours)), strict=True)
        work = f"HMC step, {LEAPFROGS} leapfrogs, D={D} m={M} T={T}, {chains} chain{'s' * (chains > 1)}"
        yield Row(f"{work}, first call", "seconds", first_call_seconds(steps[1], *arguments[1]), None, None, "-", "-")
        slow, fast = medians(steps, *arguments[0])
        yield Row(work, "dynamax sequential", fast, slow, slow / fast, least, aim)
    yield from vmap_rows()


def vmap_rows() -> Iterator[Row]:
    """Ours under `vmap` against ours with a batch axis."""
    params = tracking_params()
    y = jnp.asarray(np.stack([simulate(params, 1_000, seed) for seed in range(SEQUENCES)]))
    many = jax.tree.map(lambda x: jnp.stack([x] * SEQUENCES), params)
    tiled = jax.tree.map(lambda x: x[:, None], many)._replace(initial=many.initial)

    def gradient(params: Any, y: jax.Array) -> Any:
        return jax.grad(lambda params: fastscan.lgssm_marginal_loglik(params, y).sum())(params)

    cases = {
        "smoother": (fastscan.lgssm_smoother, (None, 0), params, params),
        "smoother, a model each": (fastscan.lgssm_smoother, (0, 0), tiled, many),
        "gradient, a model each": (gradient, (0, 0), tiled, many),
    }
    for name, (function, axes, native, mapped) in cases.items():
        calls = [jax.jit(function), jax.jit(jax.vmap(function, axes))]
        batch, vmapped = medians([lambda c=c, p=p: c(p, y) for c, p in zip(calls, (native, mapped), strict=True)])
        work = f"vmap over {SEQUENCES} sequences D=4 m=2 T=1,000, {name}"
        yield Row(work, "the batch axis", vmapped, batch, vmapped / batch, "1.3x", "-")


def _dynamax_loglik(filter_: Callable[..., Any], params: Any, emissions: jax.Array) -> jax.Array:
    return filter_(params, emissions).marginal_loglik


def _hmc_step(loglik: Callable[[Any], jax.Array], params: Any, chains: int) -> tuple[Any, tuple[Any, Any]]:
    """A jitted step of all chains, and its arguments: keys and states."""
    constraints = LGSSM.constraints(params)

    def log_density(position: Any) -> jax.Array:
        return loglik(from_unconstrained(position, constraints, params)) + log_det_jac_constrain(position, constraints)

    position = to_unconstrained(params, constraints)
    algorithm = blackjax.hmc(log_density, STEP_SIZE, jnp.ones(sum(x.size for x in jax.tree.leaves(position))), LEAPFROGS)
    positions = jax.tree.map(lambda x: jnp.stack([x] * chains), position)
    keys = jax.random.split(jax.random.key(0), chains)
    if chains == 1:
        return jax.jit(algorithm.step), (keys[0], jax.jit(algorithm.init)(position))
    return jax.jit(jax.vmap(algorithm.step)), (keys, jax.jit(jax.vmap(algorithm.init))(positions))
