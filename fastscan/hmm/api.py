"""Inference in hidden Markov models, as dynamax 1.0.3 has it.

Log-likelihoods are (T, K), or (B, T, K) for B sequences, of any magnitude: -inf is an impossible state, and a row of NaN (or
of zeros) a missing observation. The initial distribution is (K,) or (B, K), the transition matrix (K, K), (T - 1, K, K) with
entry t from t to t + 1, or for a batch (B, T - 1, K, K) or (B, 1, K, K); or ``transition_fn`` takes t to (K, K), and then the
matrix is not read. Entries may be zero, and need not sum to one: they are weights of paths, and the log-likelihood is the
logarithm of the sum over all paths. With ``log_weights`` both are logarithms.

In float32 a state whose filtered probability falls below 1e-38 counts as impossible from then on. If the data are impossible,
the log-likelihood is -inf, probabilities are zero, and states are -1, all of a sequence's. As an index -1 means the last state:
ask ``(states < 0).any()`` before indexing by states.

``implementation`` is as in `fastscan.lgssm`. Arrays of different dtypes are promoted as JAX promotes them, to float32 or
float64, integers to floats; so are results. States are int32, whatever ``jax_enable_x64`` says. Arrays may be JAX's or
NumPy's, or what NumPy takes for one; masked rows of log-likelihoods are missing ones. Outside of `jit`, weights that are
negative or NaN are an error; where values can't be checked, they make results NaN.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan import draws, lengths
from fastscan.dispatch.choice import How, Problem
from fastscan.given import array, check_dtypes, check_key, log_likelihoods_array, promoted, seen
from fastscan.hmm import inference as hmm_inference
from fastscan.hmm.check import (
    CheckedHMM,
    calls_functions,
    check_hmm,
    check_transitions,
    check_weights,
    transition_weights,
    weights_dtype,
)
from fastscan.kernels.ranges import ranged
from fastscan.types import HMMPosterior, HMMPosteriorFiltered, Regimes

ArrayLike = jax.typing.ArrayLike
TransitionFn = Callable[[Any], Any] | None


@ranged
def hmm_filter(
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | Regimes | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> HMMPosteriorFiltered:
    """Computes the probabilities of the states given the data so far, by the forward filter.

    Args:
        initial_distribution: (K,) or (B, K).
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), `Regimes`, or None.
        log_likelihoods: (T, K) or (B, T, K); a row of NaN is missing.
        transition_fn: from t to (K, K), or None.
        implementation: None, or a name from the docstring of `fastscan.lgssm`.
        log_weights: the initial distribution and the transition matrices are logarithms.

    Returns:
        The log-likelihood, filtered and predicted probabilities.

    Raises:
        TypeError: arrays of anything but numbers, a key that is not a random key.
        ValueError: shapes that do not fit together, negative weights, neither a matrix nor a function, an unknown
            implementation.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    return _by_length(
        _filter,
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights),
        implementation,
        log_weights,
    )


@ranged
def hmm_marginal_loglik(
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | Regimes | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> jax.Array:
    """Computes log p(y_1..T) without keeping probabilities; its derivative costs one smoother's pass. Arguments and errors are
    those of `hmm_filter`.

    Returns:
        A scalar, or (B,).
    """
    return _by_length(
        _loglik,
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights),
        implementation,
        log_weights,
    )


@ranged
def hmm_smoother(
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | Regimes | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    compute_trans_probs: bool = True,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> HMMPosterior:
    """Computes the probabilities of the states given all data, by the forward filter and the backward smoother. Errors are
    those of `hmm_filter`.

    Args:
        initial_distribution: (K,) or (B, K).
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), `Regimes`, or None.
        log_likelihoods: (T, K) or (B, T, K); a row of NaN is missing.
        transition_fn: from t to (K, K), or None.
        compute_trans_probs: return also what `compute_transition_probs` says.
        implementation: as `hmm_filter`.
        log_weights: as `hmm_filter`.

    Returns:
        The log-likelihood, filtered, predicted and smoothed probabilities, and those of the transitions.
    """
    return _by_length(
        _smooth,
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights),
        implementation,
        log_weights,
        compute_trans_probs,
    )


@ranged
def hmm_backward_filter(
    transition_matrix: ArrayLike | Regimes | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Computes what the data after t say of the state at t, by the backward information filter. Arguments and errors are those
    of `hmm_filter`.

    Returns:
        The logarithm of the sum over all paths without initial weights, and messages proportional to p(y_{t+1..T} | z_t),
        (T, K): ones at the end, and before it ``A @ b`` with b the normalised product of message and likelihood at t + 1.
    """
    return _filter_backward(
        *_given(None, transition_matrix, transition_fn, log_likelihoods, log_weights), implementation, log_weights
    )


@ranged
def hmm_posterior_mode(
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | Regimes | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> jax.Array:
    """Finds the most likely states, by Viterbi's algorithm. Arguments and errors are those of `hmm_filter`.

    Returns:
        States (T,) or (B, T), int32. Of equally likely paths, the one with the lower state where they first differ. If the
        data are impossible all are -1, which as an index means the last state: ask ``(states < 0).any()`` first.
    """
    return _by_length(
        _most_likely,
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights),
        implementation,
        log_weights,
    )


@ranged
def hmm_posterior_sample(
    key: jax.Array,
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | Regimes | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Draws states given the data, by filtering forward and sampling backward. Errors are those of `hmm_filter`.

    One uniform number a step is drawn before the recurrences run, and every step inverts the cumulative distribution of its
    state at it; so every implementation returns the same path for a key, unless a number lies within rounding of a boundary.
    (Not dynamax's path for it.)

    Args:
        key: a JAX random key.
        initial_distribution: (K,) or (B, K).
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), `Regimes`, or None.
        log_likelihoods: (T, K) or (B, T, K); a row of NaN is missing.
        transition_fn: from t to (K, K), or None.
        implementation: None, or a name from the docstring of `fastscan.lgssm`.
        log_weights: the initial distribution and the transition matrices are logarithms.

    Returns:
        The log-likelihood, and states (T,) or (B, T), int32. If the data are impossible, these are -inf and -1, which as an
        index means the last state: ask ``log_likelihood > -inf`` first.
    """
    check_key(key, " The order is (key, initial_distribution, transition_matrix, log_likelihoods).")
    return _sample(
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights),
        implementation,
        log_weights,
        key,
    )


@ranged
def compute_transition_probs(
    transition_matrix: ArrayLike | Regimes | None,
    hmm_posterior: HMMPosterior,
    transition_fn: TransitionFn = None,
    *,
    summed: bool | None = None,
    log_weights: bool = False,
) -> jax.Array:
    """Computes the probabilities of transitions, p(z_t, z_{t+1} | y_1..T).

    Args:
        transition_matrix: that of the posterior, as `hmm_filter` has it.
        hmm_posterior: of `hmm_smoother`, or dynamax's.
        transition_fn: that of the posterior, likewise.
        summed: over t, without keeping every t; default as dynamax: if the transition matrix is (K, K).
        log_weights: the transition matrices are logarithms.

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
    summed = _sums(matrix, called) if summed is None else summed
    posterior = hmm_posterior if batched else jax.tree.map(lambda x: jnp.asarray(x)[None], hmm_posterior)
    probs = hmm_inference.transition_probs(A, posterior, summed, log_weights)
    return probs if batched else probs[0]


def parallel_hmm_filter(
    initial_probs: ArrayLike, transition_matrix: ArrayLike | Regimes, log_likelihoods: ArrayLike, **options: Any
) -> HMMPosteriorFiltered:
    """Calls `hmm_filter`, with the names that dynamax's parallel code has."""
    return hmm_filter(initial_probs, transition_matrix, log_likelihoods, **options)


def parallel_hmm_smoother(
    initial_probs: ArrayLike, transition_matrix: ArrayLike | Regimes, log_likelihoods: ArrayLike, **options: Any
) -> HMMPosterior:
    """Calls `hmm_smoother`, with the names that dynamax's parallel code has."""
    return hmm_smoother(initial_probs, transition_matrix, log_likelihoods, **options)


parallel_hmm_posterior_sample = hmm_posterior_sample
hmm_two_filter_smoother = hmm_smoother


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


def _given(
    initial: Any, matrix: Any, function: TransitionFn, log_likelihoods: Any, log_weights: bool
) -> tuple[Any, Any, Any, bool]:
    """Returns the arguments of the compiled functions: arrays, and whether the matrix is the function's values."""
    ll = log_likelihoods_array(log_likelihoods)
    matrix, called = transition_weights(matrix, function, ll)
    initial = None if initial is None else array("initial_distribution", initial)
    if seen(ll):
        check_weights(initial, matrix, log_weights)
    return initial, matrix, ll, called


def _by_length(function: Callable, initial: Any, matrix: Any, ll: Any, called: bool, implementation: str | None, *options: Any):
    """Calls a compiled function, or the program that lengths share."""
    shared = lengths.shareable(implementation) and not called and getattr(matrix, "ndim", 0) == 2
    options = called, implementation, *options
    return lengths.by_length(
        function, (initial, matrix), (ll,), *options, shared=shared, whole=("initial_probs", "trans_probs")
    )


def _prepare(
    initial: Any, matrix: Any, ll: jax.Array, called: bool, implementation: str | None, family: str = "hmm", count: Any = None
) -> tuple[CheckedHMM, bool, How]:
    """Returns the checked model, whether it has a batch axis, and how to run it."""
    model, batched = check_hmm(initial, matrix, ll, called)
    B, T, K = model.log_likelihoods.shape
    fewest = None if count is None else lengths.fewest_rows(T - 1)
    problem = Problem(
        implementation, T, K, 0, str(model.A.dtype), family, model.A.shape[0] == 1, fewest, calls_functions(model)
    )
    return model, batched, How(problem.plan(B), problem)


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _filter(initial, matrix, ll, called, implementation, log_weights, count=None) -> HMMPosteriorFiltered:
    model, batched, how = _prepare(initial, matrix, ll, called, implementation, count=count)
    return _unbatch(batched, hmm_inference.filter_states(model, how, log_weights, count))


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _loglik(initial, matrix, ll, called, implementation, log_weights, count=None) -> jax.Array:
    model, batched, how = _prepare(initial, matrix, ll, called, implementation, count=count)
    return _unbatch(batched, hmm_inference.loglik(model, how, log_weights, count))


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights", "transitions"))
def _smooth(initial, matrix, ll, called, implementation, log_weights, transitions, count=None) -> HMMPosterior:
    model, batched, how = _prepare(initial, matrix, ll, called, implementation, count=count)
    summed = _sums(matrix, called)
    counting = transitions and summed and hmm_inference.counts_on_the_way(how.plan, model)
    posterior = hmm_inference.smooth_states(model, how, log_weights, counting, count)
    if transitions and not counting:
        probs = hmm_inference.transition_probs(model.A, posterior, summed, log_weights, count)
        posterior = posterior._replace(trans_probs=probs)
    return _unbatch(batched, posterior)


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _filter_backward(initial, matrix, ll, called, implementation, log_weights) -> tuple[jax.Array, jax.Array]:
    model, batched, how = _prepare(initial, matrix, ll, called, implementation)
    return _unbatch(batched, hmm_inference.filter_backward(model, how, log_weights))


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _most_likely(initial, matrix, ll, called, implementation, log_weights, count=None) -> jax.Array:
    model, batched, how = _prepare(initial, matrix, ll, called, implementation, "hmm_mode", count)
    return _unbatch(batched, hmm_inference.most_likely_states(model, how, log_weights, count))


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _sample(initial, matrix, ll, called, implementation, log_weights, key) -> tuple[jax.Array, jax.Array]:
    model, batched, how = _prepare(initial, matrix, ll, called, implementation, "hmm_sample")
    uniform = draws.uniform(key, (*model.log_likelihoods.shape[:2], 1, 1), model.A.dtype)
    return _unbatch(batched, hmm_inference.sample_states(model, uniform, how, log_weights))


def _sums(matrix: Any, called: bool) -> bool:
    """Tells whether dynamax would sum the probabilities of transitions over time."""
    return not called and not isinstance(matrix, Regimes) and jnp.ndim(matrix) == 2


def _unbatch(batched: bool, tree: Any) -> Any:
    return tree if batched else jax.tree.map(lambda x: x[0], tree)
