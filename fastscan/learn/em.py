"""Expectation maximisation."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from rich.progress import track

from fastscan.learn.learnable import Learnable, Target, prepare


def fit_em(
    model: Learnable,
    params: Any,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    frozen: Iterable[str] = (),
    num_iters: int = 50,
    progress: bool = True,
) -> tuple[Any, jax.Array]:
    """Most likely parameters, by expectation maximisation: no step makes the data less likely.

    Args:
        model: the family, such as `LGSSM` or ``HMM(GAUSSIAN)``.
        params: where to start.
        emissions: one sequence (T, ...) or a batch (B, T, ...); missing ones as the family has them.
        inputs: (T, U), (B, T, U) or None.
        frozen: parameters that keep their values, as "initial" or "dynamics.cov".
        num_iters: iterations.
        progress: show a bar.

    Returns:
        Parameters, and the log-likelihood of all data before every iteration (num_iters,).

    Raises:
        TypeError, ValueError: what was given, what was wanted.
    """
    if num_iters < 1:
        raise ValueError(f"num_iters: {num_iters} given, wanted at least 1.")
    target, params, emissions, inputs = prepare(model, params, emissions, inputs, frozen)
    log_likelihoods = []
    for _ in track(range(num_iters), "EM", disable=not progress):
        params, log_likelihood = _iterate(target, params, emissions, inputs)
        log_likelihoods.append(log_likelihood)
    return params, jnp.stack(log_likelihoods)


@functools.partial(jax.jit, static_argnames="target")
def _iterate(target: Target, params: Any, emissions: jax.Array, inputs: jax.Array | None) -> tuple[Any, jax.Array]:
    statistics, log_likelihoods = target.model.expect(params, emissions, inputs, target.missing)
    return target.model.maximise(params, statistics, target.constraints), log_likelihoods.sum()
