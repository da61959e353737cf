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
from typing import Any, NamedTuple

import jax

from fastscan import draws, lengths
from fastscan.dispatch.choice import How, Problem
from fastscan.given import array, check_key, log_likelihoods_array, seen
from fastscan.hmm import inference as hmm_inference
from fastscan.hmm.check import (
    ArrayLike,
    CheckedHMM,
    TransitionFn,
    calls_functions,
    check_hmm,
    check_weights,
    summed_by_default,
    transition_weights,
)
from fastscan.hmm.packed import going_on_from, last_rows, with_starts, without_first
from fastscan.kernels.ranges import ranged
from fastscan.sequences.packing import checked_starts
from fastscan.types import HMMPosterior, HMMPosteriorFiltered, Regimes


class Weights(NamedTuple):
    """Weights of paths as they are given: of the first state and of transitions; where sequences begin, or None; and
    probabilities of the state before the first step, or None.
    """

    initial: Any
    A: Any
    starts: Any
    state: Any


@ranged
def hmm_filter(
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | Regimes | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
    starts: ArrayLike | None = None,
    initial_state: ArrayLike | None = None,
) -> HMMPosteriorFiltered:
    """Computes the probabilities of the states given the data so far, by the forward filter.

    Args:
        initial_distribution: (K,) or (B, K).
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), `Regimes`, or None.
        log_likelihoods: (T, K) or (B, T, K); a row of NaN is missing.
        transition_fn: from t to (K, K), or None.
        implementation: None, or a name from the docstring of `fastscan.lgssm`.
        log_weights: the initial distribution and the transition matrices are logarithms.
        starts: (T,), or in a batch (B, T), True where a new sequence begins, of many on one time axis, as `pack_sequences`
            has them: its first state has the initial distribution. The log-likelihood is that of all of them, and data that
            are impossible in one of them are so in all.
        initial_state: probabilities (K,) or (B, K) of the state before the first step, as another piece's ``final_state`` says.
            The initial distribution is not read then, but at ``starts``, and transitions that vary are T, the first of them
            to the first step.

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
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights, starts, initial_state),
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
    starts: ArrayLike | None = None,
    initial_state: ArrayLike | None = None,
) -> jax.Array:
    """Computes log p(y_1..T) without keeping probabilities; its derivative costs one smoother's pass. Arguments and errors are
    those of `hmm_filter`.

    Returns:
        A scalar, or (B,).
    """
    return _by_length(
        _loglik,
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights, starts, initial_state),
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
    starts: ArrayLike | None = None,
    initial_state: ArrayLike | None = None,
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
        starts: as `hmm_filter`. Between two sequences there is no transition: 0 in the results.
        initial_state: as `hmm_filter`. Transitions are those among this piece's steps.

    Returns:
        The log-likelihood, filtered, predicted and smoothed probabilities, and those of the transitions.
    """
    return _by_length(
        _smooth,
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights, starts, initial_state),
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
        *_given(None, transition_matrix, transition_fn, log_likelihoods, log_weights, None), implementation, log_weights
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
    starts: ArrayLike | None = None,
) -> jax.Array:
    """Finds the most likely states, by Viterbi's algorithm. Arguments and errors are those of `hmm_filter`.

    Returns:
        States (T,) or (B, T), int32. Of equally likely paths, the one with the lower state where they first differ. If the
        data are impossible all are -1, which as an index means the last state: ask ``(states < 0).any()`` first.
    """
    return _by_length(
        _most_likely,
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights, starts),
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
    starts: ArrayLike | None = None,
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
        starts: as `hmm_filter`.

    Returns:
        The log-likelihood, and states (T,) or (B, T), int32. If the data are impossible, these are -inf and -1, which as an
        index means the last state: ask ``log_likelihood > -inf`` first.
    """
    check_key(key, " The order is (key, initial_distribution, transition_matrix, log_likelihoods).")
    return _sample(
        *_given(initial_distribution, transition_matrix, transition_fn, log_likelihoods, log_weights, starts),
        implementation,
        log_weights,
        key,
    )


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


def _given(
    initial: Any, matrix: Any, function: TransitionFn, log_likelihoods: Any, log_weights: bool, starts: Any, state: Any = None
) -> tuple[Weights, Any, bool]:
    """Returns the arguments of the compiled functions: arrays, and whether the matrix is the function's values."""
    ll = log_likelihoods_array(log_likelihoods)
    matrix, called = transition_weights(matrix, function, ll, state is not None)
    state = None if state is None else array("initial_state", state)
    if state is not None and seen(state):
        check_weights(state, None, False, "initial_state")
    initial = None if initial is None else array("initial_distribution", initial)
    if starts is not None and ll.ndim in (2, 3):
        starts = checked_starts(starts, ll.shape[-2], ll.shape[:-2])
    if seen(ll):
        check_weights(initial, matrix, log_weights)
    return Weights(initial, matrix, starts, state), ll, called


def _by_length(function: Callable, weights: Weights, ll: Any, called: bool, implementation: str | None, *options: Any):
    """Calls a compiled function, or the program that lengths share."""
    shared = lengths.shareable(implementation) and not called and getattr(weights.A, "ndim", 0) == 2
    shared = shared and weights.starts is None and weights.state is None
    options = called, implementation, *options
    return lengths.by_length(function, (weights,), (ll,), *options, shared=shared, whole=("initial_probs", "trans_probs"))


def _prepare(
    weights: Weights,
    ll: jax.Array,
    called: bool,
    implementation: str | None,
    family: str = "hmm",
    count: Any = None,
) -> tuple[CheckedHMM, bool, How]:
    """Returns the checked model, whether it has a batch axis, and how to run it."""
    resumed = weights.state is not None
    model, batched = check_hmm(weights.initial, weights.A, ll, called, resumed)
    model = going_on_from(weights.state, with_starts(model, weights.starts, resumed=resumed), batched=batched)
    B, T, K = model.log_likelihoods.shape
    fewest = None if count is None else lengths.fewest_rows(T - 1)
    problem = Problem(
        implementation, T + resumed, K, 0, str(model.A.dtype), family, model.A.shape[0] == 1, fewest, calls_functions(model)
    )
    return model, batched, How(problem.plan(B), problem)


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _filter(weights, ll, called, implementation, log_weights, count=None) -> HMMPosteriorFiltered:
    model, batched, how = _prepare(weights, ll, called, implementation, count=count)
    posterior = hmm_inference.filter_states(model, how, log_weights, count)
    return _unbatch(batched, posterior if weights.state is None else without_first(posterior))


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _loglik(weights, ll, called, implementation, log_weights, count=None) -> jax.Array:
    model, batched, how = _prepare(weights, ll, called, implementation, count=count)
    return _unbatch(batched, hmm_inference.loglik(model, how, log_weights, count))


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights", "transitions"))
def _smooth(weights, ll, called, implementation, log_weights, transitions, count=None) -> HMMPosterior:
    model, batched, how = _prepare(weights, ll, called, implementation, count=count)
    summed, alone = summed_by_default(weights.A, called), weights.starts is None and weights.state is None
    counting = transitions and summed and alone and hmm_inference.counts_on_the_way(how.plan, model)
    posterior = hmm_inference.smooth_states(model, how, log_weights, counting, count)
    if weights.state is not None:
        posterior = without_first(posterior)
    if transitions and not counting:
        A = check_hmm(weights.initial, weights.A, ll, called, weights.state is not None)[0].A
        A = last_rows(A, posterior.smoothed_probs.shape[1] - 1)
        probs = hmm_inference.transition_probs(A, posterior, summed, log_weights, count, weights.starts)
        posterior = posterior._replace(trans_probs=probs)
    return _unbatch(batched, posterior)


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _filter_backward(weights, ll, called, implementation, log_weights) -> tuple[jax.Array, jax.Array]:
    model, batched, how = _prepare(weights, ll, called, implementation)
    return _unbatch(batched, hmm_inference.filter_backward(model, how, log_weights))


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _most_likely(weights, ll, called, implementation, log_weights, count=None) -> jax.Array:
    model, batched, how = _prepare(weights, ll, called, implementation, "hmm_mode", count)
    return _unbatch(batched, hmm_inference.most_likely_states(model, how, log_weights, count))


@functools.partial(jax.jit, static_argnames=("called", "implementation", "log_weights"))
def _sample(weights, ll, called, implementation, log_weights, key) -> tuple[jax.Array, jax.Array]:
    model, batched, how = _prepare(weights, ll, called, implementation, "hmm_sample")
    uniform = draws.uniform(key, (*model.log_likelihoods.shape[:2], 1, 1), model.A.dtype)
    return _unbatch(batched, hmm_inference.sample_states(model, uniform, how, log_weights))


def _unbatch(batched: bool, tree: Any) -> Any:
    return tree if batched else jax.tree.map(lambda x: x[0], tree)
