"""From a checked model to what the passes take: one layout and one scale.

Logarithms of weights become weights relative to the largest of a matrix; what was taken away is put back into the
log-likelihood of the whole.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.hmm.check import CheckedHMM
from fastscan.kernels.hmm.passes import HMMSeries
from fastscan.kernels.tables import is_computed, is_table
from fastscan.regimes import over_rows


class Scales(NamedTuple):
    """Logarithms of the factors that weights were divided by: of the initial weights (B or 1,), of A (B or 1, T - 1 or 1)."""

    initial: jax.Array
    A: jax.Array


def scaled_series(model: CheckedHMM, log_weights: bool, steps: int) -> tuple[HMMSeries, Scales]:
    """Returns the input of the passes for probabilities, with weights in linear scale.

    Where there are as many ``steps`` of the plan as log-likelihoods, initial weights are probabilities of a state before them.
    """
    ll = model.log_likelihoods
    if log_weights:
        initial, largest = model.initial, jnp.zeros(1, ll.dtype)
        if ll.shape[1] != steps:
            initial, largest = relative_weights(model.initial, (-1,))
        A, matrices = relative_matrices(model.A)
    else:
        largest, matrices = (jnp.zeros((1,) * n, ll.dtype) for n in (1, 2))
        initial, A = model.initial, model.A
    return HMMSeries(initial[:, None, :, None], A, ll[..., None]), Scales(largest, matrices)


def log_series(model: CheckedHMM, log_weights: bool) -> HMMSeries:
    """Returns the input of the pass for the most likely states, with logarithms of weights."""
    initial, A = model.initial, model.A
    if not log_weights:
        initial, A = jnp.log(initial), A.changed(jnp.log) if is_table(A) else jnp.log(A)
    return HMMSeries(initial[:, None, :, None], A, model.log_likelihoods[..., None])


def unscaled_loglik(density: jax.Array, scales: Scales, transitions: Any) -> jax.Array:
    """Computes the log-likelihood (B,) from the log density (B,) of a series with so many transitions, under weights that were
    scaled.
    """
    matrices = scales.A.sum(-1) * (transitions if scales.A.shape[1] == 1 else 1)
    return density + scales.initial + matrices


def relative_matrices(log_A: Any) -> tuple[Any, jax.Array]:
    """Returns every matrix' weights over its largest one, and that one's logarithm (B or 1, T or 1); of a table, row by row."""
    if not is_table(log_A):
        return relative_weights(log_A, (-2, -1))
    if is_computed(log_A):
        largest = over_rows(lambda M: _largest(M, (0, 1)), log_A)
    else:
        largest = log_A.changed(lambda matrices: _largest(matrices, (-2, -1))).series()
    return log_A.changed(_relative), largest[..., 0, 0]


def _relative(log_A: jax.Array) -> jax.Array:
    return relative_weights(log_A, (-2, -1))[0]


def relative_weights(log_weights: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Weights over the largest one along some axes, and that one's logarithm, without these axes."""
    largest = _largest(log_weights, axes)
    return jnp.exp(log_weights - largest), largest.squeeze(axes)


def _largest(log_weights: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    largest = jax.lax.stop_gradient(log_weights.max(axes, keepdims=True))
    return jnp.where(jnp.isfinite(largest), largest, 0)
