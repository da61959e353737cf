"""The compiled part of inference in hidden Markov models: checked models in, probabilities, states and samples out.

All have a batch axis: a `CheckedHMM`, results (B, T, ...).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fastscan.dispatch.choice import How
from fastscan.functions import written_for
from fastscan.hmm.check import CheckedHMM
from fastscan.hmm.layout import Scales, log_series, relative_matrices, scaled_series, unscaled_loglik
from fastscan.kernels.algebra import UNROLLED_TERMS
from fastscan.kernels.arrays import matmul
from fastscan.kernels.hmm import counts
from fastscan.kernels.hmm import passes as hmm_passes
from fastscan.kernels.hmm.filtering import FilteredStates
from fastscan.kernels.hmm.passes import HMMSeries
from fastscan.kernels.hmm.probability import quotient
from fastscan.kernels.plan import Plan
from fastscan.kernels.tables import is_table
from fastscan.regimes import as_series, over_rows
from fastscan.transforms import batch_size, in_turn, scored, transformable
from fastscan.types import HMMPosterior, HMMPosteriorFiltered


def _run(how: How, run: Callable[..., Any], series: HMMSeries, *noise: jax.Array, count: jax.Array | None = None) -> Any:
    """Calls ``run(plan, series, *noise)`` with a batch of as many sequences as log-likelihoods, weights or noise have, and with
    a count of rows in a program for several lengths.
    """

    def infer(plan: Plan, series: HMMSeries, *noise: jax.Array) -> Any:
        B, ll = batch_size((series, noise)), series.log_likelihood
        series = series._replace(log_likelihood=jnp.broadcast_to(ll, (B, *ll.shape[1:])))
        return in_turn(plan, lambda series, *noise: run(plan, written_for(plan, series), *noise), series, *noise)

    return transformable(how, infer, count)(series, *noise)


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def filter_states(model: CheckedHMM, how: How, log_weights: bool, count: jax.Array | None = None) -> HMMPosteriorFiltered:
    """Computes log-likelihoods, filtered and predicted probabilities."""
    series, scales = scaled_series(model, log_weights, how.plan.steps)
    return _filtered(how, series, _run(how, hmm_passes.filter_states, series, count=count), scales, log_weights, count)


@functools.partial(jax.jit, static_argnames=("how", "log_weights", "counting"))
def smooth_states(
    model: CheckedHMM, how: How, log_weights: bool, counting: bool, count: jax.Array | None = None
) -> HMMPosterior:
    """Computes these and smoothed probabilities; if ``counting``, expected transitions, for weights that do not vary."""
    series, scales = scaled_series(model, log_weights, how.plan.steps)
    smooth = functools.partial(hmm_passes.smooth_states, counting=counting)
    states, smoothed, transitions = _run(how, smooth, series, count=count)
    smoothed = smoothed[..., 0]
    filtered = _filtered(how, series, states, scales, log_weights, count)
    return HMMPosterior(*filtered, smoothed, smoothed[:, 0], None if transitions is None else transitions * series.A[:, 0])


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def loglik(model: CheckedHMM, how: How, log_weights: bool, count: jax.Array | None = None) -> jax.Array:
    """Computes the log-likelihood (B,) alone."""
    series, scales = scaled_series(model, log_weights, how.plan.steps)
    density = _run(how, hmm_passes.filter_loglik, jax.lax.stop_gradient(series), count=count)
    return unscaled_loglik(_scored(how, series, density, count), scales, _rows(how, count))


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def filter_backward(model: CheckedHMM, how: How, log_weights: bool) -> tuple[jax.Array, jax.Array]:
    """Computes the sum over all paths without initial weights, as a logarithm (B,), and messages (B, T, K)."""
    series, scales = scaled_series(model, log_weights, how.plan.steps)
    predicted, density = _run(how, hmm_passes.filter_backward, series)
    messages = predicted[..., 0]
    if log_weights:
        messages = messages.at[:, :-1].multiply(jnp.exp(scales.A)[..., None])
    scales = scales._replace(initial=jnp.zeros_like(scales.initial))
    return unscaled_loglik(density, scales, how.plan.steps), messages


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def most_likely_states(model: CheckedHMM, how: How, log_weights: bool, count: jax.Array | None = None) -> jax.Array:
    """Finds the most likely states (B, T)."""
    states, score = _run(how, hmm_passes.most_likely_states, log_series(model, log_weights), count=count)
    return _unless_impossible(how.plan, states, score[:, 0, 0, 0])


@functools.partial(jax.jit, static_argnames=("how", "log_weights"))
def sample_states(model: CheckedHMM, uniform: jax.Array, how: How, log_weights: bool) -> tuple[jax.Array, jax.Array]:
    """Draws states (B, T) by uniform numbers (B, T, 1, 1), and computes the log-likelihood (B,)."""
    series, scales = scaled_series(model, log_weights, how.plan.steps)
    states, density = _run(how, hmm_passes.sample_states, series, uniform)
    loglik = unscaled_loglik(density, scales, how.plan.steps)
    return loglik, _unless_impossible(how.plan, states, loglik)


def counts_on_the_way(plan: Plan, model: CheckedHMM) -> bool:
    """Tells whether a smoother should add up transitions as it goes, and not from its results by one product of matrices, which
    pays for many states.
    """
    alone = plan.one_function and len(model.log_likelihoods) == 1 and model.A.shape[-1] <= UNROLLED_TERMS
    return plan.chunks > 1 or plan.launch is not None or alone


@functools.partial(jax.jit, static_argnames=("summed", "log_weights"))
def transition_probs(
    A: Any, posterior: Any, summed: bool, log_weights: bool, count: jax.Array | None = None, starts: jax.Array | None = None
) -> jax.Array:
    """Computes probabilities of transitions from a posterior with a batch axis: (B, K, K) or (B, T - 1, K, K); in a program for
    several lengths, of so many; of none to where a sequence ``starts`` (T,) or (B, T).
    """
    filtered, predicted, smoothed = (
        jnp.asarray(x) for x in (posterior.filtered_probs, posterior.predicted_probs, posterior.smoothed_probs)
    )
    if log_weights:  # which may lie below any float, as predictions do then: relative to the largest ones both are ordinary
        A, _ = relative_matrices(A)
        moved = _moved(A, filtered[:, :-1])
        predicted = jnp.concatenate([predicted[:, :1], moved], 1)
    past, future = filtered[:, :-1], quotient(smoothed, predicted)[:, 1:]
    if starts is not None:
        past = jnp.where(starts[..., 1:, None], 0, past)
    if count is not None:
        there = jnp.arange(past.shape[1])[:, None] < count
        past, future = jnp.where(there, past, 0), jnp.where(there, future, 0)
    if summed and is_table(A):
        return counts.expected_counts(A, past[..., None], future[..., None])
    A = as_series(A)
    if summed and A.shape[1] == 1:
        return A[:, 0] * jnp.einsum("bti,btj->bij", past, future, precision="highest")
    probs = past[..., :, None] * A * future[..., None, :]
    return probs.sum(1) if summed else probs


def _moved(A: Any, probs: jax.Array) -> jax.Array:
    """Multiplies weights (B, T, K) by transition weights."""
    if is_table(A):
        return over_rows(lambda M, p: (M * p).sum(0, keepdims=True), A, probs[..., None])[..., 0, :]
    return matmul(probs[:, :, None], A)[..., 0, :]


def _rows(how: How, count: jax.Array | None) -> Any:
    return how.plan.steps if count is None else count


def _scored(how: How, series: HMMSeries, density: jax.Array, count: jax.Array | None) -> jax.Array:
    """Gives the log density (B,) its derivative, but in a program for several lengths, which is not differentiated. Every
    sequence needs matrices of its own for it.
    """
    if count is not None:
        return density
    return scored(functools.partial(_run, how.of_batch(len(density)), hmm_passes.score), density, series)


def _filtered(
    how: How, series: HMMSeries, states: FilteredStates, scales: Scales, log_weights: bool, count: jax.Array | None
) -> HMMPosteriorFiltered:
    predicted = states.predicted[..., 0]
    if log_weights:
        predicted = predicted.at[:, :1].multiply(jnp.exp(scales.initial)[:, None, None])
        predicted = predicted.at[:, 1:].multiply(jnp.exp(scales.A)[..., None])
    loglik = unscaled_loglik(_scored(how, series, states.log_density, count), scales, _rows(how, count))
    return HMMPosteriorFiltered(loglik, states.filtered[..., 0], predicted)


def _unless_impossible(plan: Plan, states: jax.Array, loglik: jax.Array) -> jax.Array:
    """Replaces states (B, T) by -1 where the data of a sequence are impossible, or no numbers.

    Where loops are one function, on conditions and in a loop: XLA:CPU hands programs that compute more than a little outside of
    loops to a thread, which takes longer than they do.
    """
    states, possible = states[..., 0, 0], loglik > -jnp.inf
    if not plan.one_function:
        return jnp.where(possible[:, None], states, -1)

    def marked() -> jax.Array:
        return jax.lax.map(lambda x: jax.lax.cond(x[0], lambda: x[1], lambda: jnp.full_like(x[1], -1)), (possible, states))

    return jax.lax.cond(possible.all(), lambda: states, marked)
