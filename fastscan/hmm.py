"""Inference in hidden Markov models, as dynamax 1.0.3 has it.

Log-likelihoods are (T, K), or (B, T, K) for B sequences, of any magnitude: -inf is an impossible state, and a row of NaN (or
of zeros) a missing observation. The initial distribution is (K,) or (B, K), the transition matrix (K, K), (T - 1, K, K) with
entry t from t to t + 1, or for a batch (B, T - 1, K, K) or (B, 1, K, K); or ``transition_fn`` takes t to (K, K), and then the
matrix is not read. Entries may be zero, and need not sum to one: they are weights of paths, and the log-likelihood is the
logarithm of the sum over all paths. With ``log_weights`` both are logarithms.

In float32 a state whose filtered probability falls below 1e-38 counts as impossible from then on. If the data are impossible,
the log-likelihood is -inf, probabilities are zero, and states are -1.

``implementation`` is as in `fastscan.lgssm`. Everything is float32 or float64 throughout, as the log-likelihoods are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.dispatch import How, Problem
from fastscan.hmm_model import (
    HMM,
    Scales,
    check_hmm,
    check_transitions,
    log_series,
    relative_weights,
    scaled_series,
    unscaled_loglik,
)
from fastscan.kernels import hmm_passes
from fastscan.kernels.hmm import FilteredStates
from fastscan.kernels.hmm_passes import HMMSeries
from fastscan.kernels.plan import Plan
from fastscan.kernels.probability import quotient
from fastscan.kernels.ranges import ranged
from fastscan.transforms import batch_size, scored, transformable
from fastscan.types import HMMPosterior, HMMPosteriorFiltered

ArrayLike = jax.typing.ArrayLike
TransitionFn = Callable[[Any], Any] | None


@ranged
def hmm_filter(
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> HMMPosteriorFiltered:
    """Forward filter.

    Args:
        initial_distribution: (K,) or (B, K).
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), or None.
        log_likelihoods: (T, K) or (B, T, K); a row of NaN is missing.
        transition_fn: from t to (K, K), or None.
        implementation: None, or a name as above.
        log_weights: the initial distribution and the transition matrices are logarithms.

    Returns:
        The log-likelihood, filtered and predicted probabilities.

    Raises:
        TypeError, ValueError: what was given, what was wanted.
    """
    model, batched, how = _prepare(initial_distribution, transition_matrix, transition_fn, log_likelihoods, implementation)
    out = _filter(model, how, log_weights)
    return out if batched else _first(out)


@ranged
def hmm_marginal_loglik(
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> jax.Array:
    """Log p(y_1..T), without keeping probabilities; its derivative is one smoother's pass. Arguments as `hmm_filter`.

    Returns:
        A scalar, or (B,).
    """
    model, batched, how = _prepare(initial_distribution, transition_matrix, transition_fn, log_likelihoods, implementation)
    loglik = _loglik(model, how, log_weights)
    return loglik if batched else loglik[0]


@ranged
def hmm_smoother(
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    compute_trans_probs: bool = True,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> HMMPosterior:
    """Forward filter and backward smoother.

    Args:
        initial_distribution: (K,) or (B, K).
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), or None.
        log_likelihoods: (T, K) or (B, T, K); a row of NaN is missing.
        transition_fn: from t to (K, K), or None.
        compute_trans_probs: return also what `compute_transition_probs` says.
        implementation: as `hmm_filter`.
        log_weights: as `hmm_filter`.

    Returns:
        The log-likelihood, filtered, predicted and smoothed probabilities, and those of the transitions.
    """
    model, batched, how = _prepare(initial_distribution, transition_matrix, transition_fn, log_likelihoods, implementation)
    summed = _sums(transition_matrix, transition_fn)
    counting = compute_trans_probs and summed and (how.plan.chunks > 1 or how.plan.launch is not None)
    posterior = _smooth(model, how, log_weights, counting)
    if compute_trans_probs and not counting:
        posterior = posterior._replace(trans_probs=_transition_probs(model.A, posterior, summed, log_weights))
    return posterior if batched else _first(posterior)


@ranged
def hmm_backward_filter(
    transition_matrix: ArrayLike | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Backward information filter. Arguments and errors as `hmm_filter`.

    Returns:
        The logarithm of the sum over all paths without initial weights, and messages proportional to p(y_{t+1..T} | z_t),
        (T, K): ones at the end, and before it ``A @ b`` with b the normalised product of message and likelihood at t + 1.
    """
    model, batched, how = _prepare(None, transition_matrix, transition_fn, log_likelihoods, implementation)
    out = _filter_backward(model, how, log_weights)
    return out if batched else _first(out)


@ranged
def hmm_posterior_mode(
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> jax.Array:
    """The most likely states, by Viterbi's algorithm. Arguments and errors as `hmm_filter`.

    Returns:
        States (T,) or (B, T), int32. Of equally likely paths, the one with the lower state where they first differ.
    """
    given = initial_distribution, transition_matrix, transition_fn, log_likelihoods, implementation
    model, batched, how = _prepare(*given, family="hmm_mode")
    states = _most_likely(model, how, log_weights)
    return states if batched else states[0]


@ranged
def hmm_posterior_sample(
    key: jax.Array,
    initial_distribution: ArrayLike,
    transition_matrix: ArrayLike | None,
    log_likelihoods: ArrayLike,
    transition_fn: TransitionFn = None,
    *,
    implementation: str | None = None,
    log_weights: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """One draw of the states given the data, by filtering forward and sampling backward.

    One uniform number a step is drawn before the recurrences run, and every step inverts the cumulative distribution of its
    state at it; so every implementation returns the same path for a key, unless a number lies within rounding of a boundary.
    (Not dynamax's path for it.)

    Args:
        key: a JAX random key.
        initial_distribution: (K,) or (B, K).
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), or None.
        log_likelihoods: (T, K) or (B, T, K); a row of NaN is missing.
        transition_fn: from t to (K, K), or None.
        implementation: None, or a name as above.
        log_weights: the initial distribution and the transition matrices are logarithms.

    Returns:
        The log-likelihood, and states (T,) or (B, T), int32.
    """
    given = initial_distribution, transition_matrix, transition_fn, log_likelihoods, implementation
    model, batched, how = _prepare(*given, family="hmm_sample")
    uniform = jax.random.uniform(key, (*model.log_likelihoods.shape[:2], 1, 1), model.log_likelihoods.dtype)
    out = _sample(model, uniform, how, log_weights)
    return out if batched else _first(out)


@ranged
def compute_transition_probs(
    transition_matrix: ArrayLike | None,
    hmm_posterior: HMMPosterior,
    transition_fn: TransitionFn = None,
    *,
    summed: bool | None = None,
    log_weights: bool = False,
) -> jax.Array:
    """Probabilities of transitions p(z_t, z_{t+1} | y_1..T).

    Args:
        transition_matrix: that of the posterior, as `hmm_filter` has it.
        hmm_posterior: of `hmm_smoother`, or dynamax's.
        transition_fn: that of the posterior, likewise.
        summed: over t, without keeping every t; default as dynamax: if the transition matrix is (K, K).
        log_weights: the transition matrices are logarithms.

    Returns:
        (K, K) or (T - 1, K, K), for a batch with a leading axis.

    Raises:
        TypeError, ValueError: what was given, what was wanted.
    """
    probs = jnp.asarray(hmm_posterior.smoothed_probs)
    batched, (T, K) = probs.ndim == 3, probs.shape[-2:]
    A = check_transitions(transition_matrix, transition_fn, probs.shape[0] if batched else None, T, K, probs.dtype)
    summed = _sums(transition_matrix, transition_fn) if summed is None else summed
    posterior = hmm_posterior if batched else jax.tree.map(lambda x: jnp.asarray(x)[None], hmm_posterior)
    probs = _transition_probs(A, posterior, summed, log_weights)
    return probs if batched else probs[0]


def parallel_hmm_filter(
    initial_probs: ArrayLike, transition_matrix: ArrayLike, log_likelihoods: ArrayLike, **options: Any
) -> HMMPosteriorFiltered:
    """`hmm_filter`, by the name and with the argument's name that dynamax's parallel code has."""
    return hmm_filter(initial_probs, transition_matrix, log_likelihoods, **options)


def parallel_hmm_smoother(
    initial_probs: ArrayLike, transition_matrix: ArrayLike, log_likelihoods: ArrayLike, **options: Any
) -> HMMPosterior:
    """`hmm_smoother`, by the name and with the argument's name that dynamax's parallel code has."""
    return hmm_smoother(initial_probs, transition_matrix, log_likelihoods, **options)


parallel_hmm_posterior_sample = hmm_posterior_sample
hmm_two_filter_smoother = hmm_smoother


def _prepare(
    initial: Any, matrix: Any, function: TransitionFn, log_likelihoods: Any, implementation: str | None, family: str = "hmm"
) -> tuple[HMM, bool, How]:
    """The checked model, whether it has a batch axis, and how to run it."""
    model, batched = check_hmm(initial, matrix, function, log_likelihoods)
    B, T, K = model.log_likelihoods.shape
    problem = Problem(implementation, T, K, 0, str(model.log_likelihoods.dtype), family)
    return model, batched, How(problem.plan(B), problem)


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


def _sums(transition_matrix: Any, transition_fn: TransitionFn) -> bool:
    """Whether dynamax would sum the probabilities of transitions over time."""
    return transition_fn is None and jnp.ndim(transition_matrix) == 2


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)


def _run(how: How, run: Callable[..., Any], series: HMMSeries, *noise: jax.Array) -> Any:
    """``run(plan, series, *noise)``, for every sequence there is log-likelihoods, weights or noise for."""

    def infer(plan: Plan, series: HMMSeries, *noise: jax.Array) -> Any:
        B, ll = batch_size((series, noise)), series.log_likelihood
        return run(plan, series._replace(log_likelihood=jnp.broadcast_to(ll, (B, *ll.shape[1:]))), *noise)

    return transformable(how, infer)(series, *noise)


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def _filter(model: HMM, how: How, log_weights: bool) -> HMMPosteriorFiltered:
    series, scales = scaled_series(model, log_weights)
    return _filtered(how, series, _run(how, hmm_passes.filter_states, series), scales, log_weights)


@functools.partial(jax.jit, static_argnames=("how", "log_weights", "counting"))
def _smooth(model: HMM, how: How, log_weights: bool, counting: bool) -> HMMPosterior:
    series, scales = scaled_series(model, log_weights)
    smooth = functools.partial(hmm_passes.smooth_states, counting=counting)
    states, smoothed, counts = _run(how, smooth, series)
    smoothed = smoothed[..., 0]
    filtered = _filtered(how, series, states, scales, log_weights)
    return HMMPosterior(*filtered, smoothed, smoothed[:, 0], counts if counts is None else counts * series.A[:, 0])


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def _loglik(model: HMM, how: How, log_weights: bool) -> jax.Array:
    series, scales = scaled_series(model, log_weights)
    density = _run(how, hmm_passes.filter_loglik, jax.lax.stop_gradient(series))
    return unscaled_loglik(_scored(how, series, density), scales, how.plan.steps + 1)


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def _filter_backward(model: HMM, how: How, log_weights: bool) -> tuple[jax.Array, jax.Array]:
    series, scales = scaled_series(model, log_weights)
    predicted, density = _run(how, hmm_passes.filter_backward, series)
    messages = predicted[..., 0]
    if log_weights:
        messages = messages.at[:, :-1].multiply(jnp.exp(scales.A)[..., None])
    scales = scales._replace(initial=jnp.zeros_like(scales.initial))
    return unscaled_loglik(density, scales, how.plan.steps + 1), messages


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def _most_likely(model: HMM, how: How, log_weights: bool) -> jax.Array:
    states, score = _run(how, hmm_passes.most_likely_states, log_series(model, log_weights))
    return _unless_impossible(states, score[:, 0, 0, 0])


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def _sample(model: HMM, uniform: jax.Array, how: How, log_weights: bool) -> tuple[jax.Array, jax.Array]:
    series, scales = scaled_series(model, log_weights)
    states, density = _run(how, hmm_passes.sample_states, series, uniform)
    loglik = unscaled_loglik(density, scales, how.plan.steps + 1)
    return loglik, _unless_impossible(states, loglik)


@functools.partial(jax.jit, static_argnames=("summed", "log_weights"))
def _transition_probs(A: jax.Array, posterior: Any, summed: bool, log_weights: bool) -> jax.Array:
    filtered, predicted, smoothed = (
        jnp.asarray(x) for x in (posterior.filtered_probs, posterior.predicted_probs, posterior.smoothed_probs)
    )
    if log_weights:  # which may lie below any float, as predictions do then: relative to the largest ones both are ordinary
        A, _ = relative_weights(A, (-2, -1))
        moved = (filtered[:, :-1, None] @ A)[..., 0, :]
        predicted = jnp.concatenate([predicted[:, :1], moved], 1)
    past, future = filtered[:, :-1], quotient(smoothed, predicted)[:, 1:]
    if summed and A.shape[1] == 1:
        return A[:, 0] * jnp.einsum("bti,btj->bij", past, future, precision="highest")
    probs = past[..., :, None] * A * future[..., None, :]
    return probs.sum(1) if summed else probs


def _scored(how: How, series: HMMSeries, density: jax.Array) -> jax.Array:
    """The log density (B,), with its derivative."""
    return scored(functools.partial(_run, how, hmm_passes.score), density, series)


def _filtered(how: How, series: HMMSeries, states: FilteredStates, scales: Scales, log_weights: bool) -> HMMPosteriorFiltered:
    predicted = states.predicted[..., 0]
    if log_weights:
        predicted = predicted.at[:, :1].multiply(jnp.exp(scales.initial)[:, None, None])
        predicted = predicted.at[:, 1:].multiply(jnp.exp(scales.A)[..., None])
    loglik = unscaled_loglik(_scored(how, series, states.log_density), scales, predicted.shape[1])
    return HMMPosteriorFiltered(loglik, states.filtered[..., 0], predicted)


def _unless_impossible(states: jax.Array, loglik: jax.Array) -> jax.Array:
    """States (B, T), or -1 where the data of a sequence are impossible, or no numbers."""
    return jnp.where(loglik[:, None] > -jnp.inf, states[..., 0, 0].astype(jnp.int32), -1)
