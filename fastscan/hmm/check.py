"""From what a user of the HMM functions passes to what the kernels take: checks first, then one layout and one scale.

Logarithms of weights become weights relative to the largest of a matrix; what was taken away is put back into the
log-likelihood of the whole.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.given import ShapeError, array, check_dtypes, promoted
from fastscan.kernels.hmm.passes import HMMSeries
from fastscan.lgssm.timing import tabulated as tabulate


class CheckedHMM(NamedTuple):
    """Checked arrays: initial (B or 1, K), A (B or 1, T - 1 or 1, K, K), log_likelihoods (B, T, K)."""

    initial: jax.Array
    A: jax.Array
    log_likelihoods: jax.Array


class Scales(NamedTuple):
    """What was taken away, as logarithms: of the initial weights (B or 1,), of A (B or 1, T - 1 or 1)."""

    initial: jax.Array
    A: jax.Array


def tabulated(matrix: Any, function: Callable | None, series: Any) -> tuple[Any, bool]:
    """Transition weights as an array or None, and whether they are the function's, for the steps of a series (..., T, K)."""
    if function is not None:
        steps = jnp.shape(series)[-2] - 1 if jnp.ndim(series) > 1 else 0
        return tabulate("transition_fn", function, steps, "Entry t is of the transition from t to t + 1."), True
    return None if matrix is None else array("transition_matrix", matrix), False


def check_hmm(initial: Any, transition_matrix: Any, log_likelihoods: Any, called: bool = False) -> tuple[CheckedHMM, bool]:
    """Arguments in one layout and one dtype, and whether the log-likelihoods had a batch axis.

    Args:
        initial: (K,), (B, K), or None for functions that have no use for it.
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), or None.
        log_likelihoods: (T, K) or (B, T, K).
        called: the transition matrix is what a ``transition_fn`` returned, (T - 1, K, K).

    All are promoted to one dtype as JAX promotes, float32 or float64.

    Raises:
        TypeError: dtypes that are neither these nor integers.
        ValueError: shapes; neither a matrix nor a function.
    """
    ll = jnp.asarray(log_likelihoods)
    given = {"log_likelihoods": ll.dtype}
    for name, x in (("initial_distribution", initial), ("transition_fn" if called else "transition_matrix", transition_matrix)):
        given |= {} if x is None else {name: jnp.asarray(x).dtype}
    check_dtypes(given)
    if ll.ndim not in (2, 3) or 0 in ll.shape:
        raise ShapeError(
            f"log_likelihoods: shape {ll.shape} given, wanted (T, K) or (B, T, K) with T, K and B at least 1: one number "
            "for every step and state."
        )
    batched, (T, K) = ll.ndim == 3, ll.shape[-2:]
    B, dtype = ll.shape[0] if batched else None, promoted(given.values())
    if initial is not None and transition_matrix is not None and jnp.ndim(initial) > 1 == jnp.ndim(transition_matrix):
        raise ShapeError(
            f"initial_distribution, transition_matrix: shapes {jnp.shape(initial)} and {jnp.shape(transition_matrix)} given, "
            f"wanted {(K,)} and {(K, K)}. Are the two exchanged?"
        )
    initial = jnp.ones(K, dtype) if initial is None else initial
    initial = _checked("initial_distribution", initial, dtype, [(K,), *([(B, K)] if batched else [])])
    A = check_transitions(transition_matrix, called, B, T, K, dtype)
    return CheckedHMM(initial.reshape(-1, K), A, ll.astype(dtype).reshape(-1, T, K)), batched


def check_transitions(matrix: Any, called: bool, B: int | None, T: int, K: int, dtype: Any) -> jax.Array:
    """Transition weights (B or 1, T - 1 or 1, K, K); arguments and errors as `check_hmm`, B None without a batch axis."""
    if called:
        return _checked("transition_fn", matrix, dtype, [(T - 1, K, K)])[None]
    if matrix is None:
        raise ValueError("transition_matrix: None given and no transition_fn; wanted one of the two.")
    batch = [] if B is None else [(B, T - 1, K, K), (B, 1, K, K)]
    matrix = _checked("transition_matrix", matrix, dtype, [(K, K), (T - 1, K, K), *batch])
    return matrix.reshape((1,) * (4 - matrix.ndim) + matrix.shape)


def scaled_series(model: CheckedHMM, log_weights: bool) -> tuple[HMMSeries, Scales]:
    """What the passes for probabilities take, with weights in linear scale."""
    ll = model.log_likelihoods
    if log_weights:
        initial, largest = relative_weights(model.initial, (-1,))
        A, matrices = relative_weights(model.A, (-2, -1))
    else:
        largest, matrices = (jnp.zeros((1,) * n, ll.dtype) for n in (1, 2))
        initial, A = model.initial, model.A
    return HMMSeries(initial[:, None, :, None], A, ll[..., None]), Scales(largest, matrices)


def log_series(model: CheckedHMM, log_weights: bool) -> HMMSeries:
    """What the pass for the most likely states takes, with logarithms of weights."""
    initial, A = (model.initial, model.A) if log_weights else (jnp.log(model.initial), jnp.log(model.A))
    return HMMSeries(initial[:, None, :, None], A, model.log_likelihoods[..., None])


def unscaled_loglik(density: jax.Array, scales: Scales, T: int) -> jax.Array:
    """The log-likelihood (B,), from the log density (B,) of T observations under weights that were scaled."""
    matrices = scales.A.sum(-1) * ((T - 1) if scales.A.shape[1] == 1 else 1)
    return density + scales.initial + matrices


def _checked(name: str, x: Any, dtype: Any, allowed: list[tuple]) -> jax.Array:
    x = jnp.asarray(x)
    if x.shape not in allowed:
        wanted = " or ".join(map(str, dict.fromkeys(allowed)))
        raise ShapeError(f"{name}: shape {x.shape} given, wanted {wanted}.")
    return x.astype(dtype)


def relative_weights(log_weights: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Weights over the largest one along some axes, and that one's logarithm, without these axes."""
    largest = jax.lax.stop_gradient(log_weights.max(axes, keepdims=True))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.exp(log_weights - largest), largest.squeeze(axes)
