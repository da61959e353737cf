"""Probabilities of transitions from a posterior, and a check of weights that are meant to be probabilities."""

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.given import check_dtypes, promoted, seen
from fastscan.hmm import inference as hmm_inference
from fastscan.hmm.check import (
    ArrayLike,
    TransitionFn,
    check_transitions,
    check_weights,
    summed_by_default,
    transition_weights,
    weights_dtype,
)
from fastscan.kernels.ranges import ranged
from fastscan.sequences.packing import checked_starts
from fastscan.types import HMMPosterior, Regimes


@ranged
def compute_transition_probs(
    transition_matrix: ArrayLike | Regimes | None,
    hmm_posterior: HMMPosterior,
    transition_fn: TransitionFn = None,
    *,
    summed: bool | None = None,
    log_weights: bool = False,
    starts: ArrayLike | None = None,
) -> jax.Array:
    """Computes the probabilities of transitions, p(z_t, z_{t+1} | y_1..T).

    Args:
        transition_matrix: that of the posterior, as `hmm_filter` has it.
        hmm_posterior: of `hmm_smoother`, or dynamax's.
        transition_fn: that of the posterior, likewise.
        summed: over t, without keeping every t; default as dynamax: if the transition matrix is (K, K).
        log_weights: the transition matrices are logarithms.
        starts: those of the posterior, as `hmm_filter` has them: between two sequences there is no transition.

    Returns:
        (K, K) or (T - 1, K, K), for a batch with a leading axis.

    Raises:
        TypeError: arrays of anything but numbers, a key that is not a random key.
        ValueError: shapes that do not fit together, negative weights, neither a matrix nor a function, an unknown
            implementation.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    probs = jnp.asarray(hmm_posterior.smoothed_probs)
    batched, (T, K) = probs.ndim == 3, probs.shape[-2:]
    matrix, called = transition_weights(transition_matrix, transition_fn, probs)
    if seen(probs):
        check_weights(None, matrix, log_weights)
    given = {"hmm_posterior": probs.dtype} | ({} if matrix is None else {"transition_matrix": weights_dtype(matrix)})
    check_dtypes(given)
    A = check_transitions(matrix, called, probs.shape[0] if batched else None, T, K, promoted(given.values()))
    summed = summed_by_default(matrix, called) if summed is None else summed
    posterior = hmm_posterior if batched else jax.tree.map(lambda x: jnp.asarray(x)[None], hmm_posterior)
    marks = None if starts is None else checked_starts(starts, T, probs.shape[:-2])
    probs = hmm_inference.transition_probs(A, posterior, summed, log_weights, None, marks)
    return probs if batched else probs[0]


def check_hmm_weights(initial_distribution: ArrayLike, transition_matrix: ArrayLike, atol: float = 1e-5) -> None:
    """Finds weights that are no probability distributions. Inference takes any weights; this is for those meant to be.

    Values can't be checked under `jit`: call this outside of it.

    Args:
        initial_distribution: (K,), or with leading axes.
        transition_matrix: (K, K), or with leading axes.
        atol: how far from one a sum may be.

    Raises:
        ValueError: entries that are negative or NaN, sums that are not one; and where.
    """
    for name, weights in (("initial_distribution", initial_distribution), ("transition_matrix", transition_matrix)):
        weights = np.asarray(weights, np.float64)
        wrong = {
            "a negative or NaN entry": ~(weights >= 0).all(-1),
            "a sum that is not one": np.abs(weights.sum(-1) - 1) > atol,
        }
        for what, rows in wrong.items():
            if rows.any():
                first = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(rows)))
                where = f" in row {first}" if rows.ndim else ""
                raise ValueError(f"{name}: {what}{where} given, {rows.sum()} such; wanted probabilities that sum to one.")
