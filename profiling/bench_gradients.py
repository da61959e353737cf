"""What learning costs: values and gradients against JAX's through dynamax's filters, all parameters and float32."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import fastscan
from fastscan.profiling.bench_rows import Row
from fastscan.profiling.hmm_sampling import random_hmm
from fastscan.profiling.models import random_params, simulate
from fastscan.profiling.timing import first_call_seconds, medians


def gradient_rows() -> Iterator[Row]:
    """Log-likelihoods of an LGSSM and of an HMM, their memory and first call, and a smoothed mean."""
    import dynamax.hidden_markov_model as hmm
    import dynamax.linear_gaussian_ssm as lgssm

    params = jax.tree.map(jnp.asarray, random_params(4, 2))
    y = jnp.asarray(simulate(params, 10_000, 0))
    work = "LGSSM D=4 m=2 T=10,000, value and gradient"
    ours = _loglik_gradient(lambda params: fastscan.lgssm_marginal_loglik(params, y))
    theirs = _loglik_gradient(lambda params: lgssm.lgssm_filter(params, y).marginal_loglik)
    yield Row(f"{work}, first call", "seconds", first_call_seconds(ours, params), None, None, "8 s", "3 s")
    yield _speed(work, theirs, ours, (params,), "12x", "40x")
    yield _memory(work, theirs, ours, (params,), "1/3", "1/10")

    model = jax.device_put(random_hmm(5, 100_000))  # whose log-likelihoods carry the emissions' parameters
    ours = _loglik_gradient(lambda model: fastscan.hmm_marginal_loglik(*model))
    theirs = _loglik_gradient(lambda model: hmm.hmm_filter(*model).marginal_loglik)
    yield _speed("HMM K=5 T=100,000, value and gradient", theirs, ours, (model,), "3x", "10x")

    ours = _mean_gradient(lambda params: fastscan.lgssm_smoother(params, y))
    theirs = _mean_gradient(lambda params: lgssm.lgssm_smoother(params, y))
    work = "LGSSM D=4 m=2 T=10,000, gradient of a smoothed mean"
    yield _speed(work, theirs, ours, (params,), "5x", "15x")
    yield _memory(work, theirs, ours, (params,), "-", "-")


def _loglik_gradient(loglik: Callable[[Any], Any]) -> Any:
    return jax.jit(jax.value_and_grad(loglik))


def _mean_gradient(smoother: Callable[[Any], Any]) -> Any:
    return jax.jit(jax.grad(lambda params: smoother(params).smoothed_means[5_000].sum()))


def _speed(work: str, theirs: Any, ours: Any, arguments: tuple, at_least: str, aim: str) -> Row:
    slow, fast = medians([theirs, ours], *arguments)
    return Row(work, "dynamax sequential", fast, slow, slow / fast, at_least, aim)


def _memory(work: str, theirs: Any, ours: Any, arguments: tuple, at_least: str, aim: str) -> Row:
    bound, used = (_temporary_bytes(function, *arguments) for function in (theirs, ours))
    return Row(f"{work}, bytes beside results", "dynamax sequential", used, bound, used / bound, at_least, aim)


def _temporary_bytes(function: Any, *arguments: Any) -> float:
    """What XLA allocates beside arguments and results."""
    return function.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
