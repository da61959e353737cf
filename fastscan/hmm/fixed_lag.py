"""Fixed-lag smoothing of hidden Markov models: all windows at once, one step of the lag after another."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.given import ShapeError, array, count, log_likelihoods_array, seen
from fastscan.hmm import hmm_filter
from fastscan.hmm.check import check_hmm, check_weights, transition_weights
from fastscan.kernels.hmm.probability import quotient
from fastscan.kernels.ranges import ranged
from fastscan.regimes import as_series
from fastscan.types import HMMPosterior, Regimes


@ranged
def hmm_fixed_lag_smoother(
    initial_distribution: jax.typing.ArrayLike,
    transition_matrix: jax.typing.ArrayLike | Regimes | None,
    log_likelihoods: jax.typing.ArrayLike,
    window_size: int,
    transition_fn: Callable[[Any], Any] | None = None,
    *,
    implementation: str | None = None,
) -> HMMPosterior:
    """Computes the probabilities of the last ``window_size`` states given the data up to t, for every t.

    Args:
        initial_distribution: (K,).
        transition_matrix: (K, K), (T - 1, K, K), `Regimes`, or None.
        log_likelihoods: (T, K); a row of NaN is missing.
        window_size: W, at least 1, the number of states up to t.
        transition_fn: from t to (K, K), or None.
        implementation: of the filter: None, or a name as in `fastscan.hmm`.

    Returns:
        As dynamax: for every t the log-likelihood of the window (T,), and the window's filtered, predicted and smoothed
        probabilities (T, W, K), the last one that of t, with zeros before the beginning; ``initial_probs`` is the first
        window's (W, K).

    Raises:
        TypeError: arrays of anything but numbers, a key that is not a random key.
        ValueError: shapes that do not fit together, negative weights, neither a matrix nor a function, an unknown
            implementation.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    window_size = count("window_size", window_size)
    ll = log_likelihoods_array(log_likelihoods)
    if ll.ndim == 3:
        raise ShapeError(f"log_likelihoods: shape {ll.shape} given, wanted (T, K); take `jax.vmap` for a batch.")
    matrix, called = transition_weights(transition_matrix, transition_fn, ll)
    initial = array("initial_distribution", initial_distribution)
    if seen(ll):
        check_weights(initial, matrix, False)
    return _fixed_lag(initial, matrix, ll, called, window_size, implementation)


@functools.partial(jax.jit, static_argnames=("called", "W", "implementation"))
def _fixed_lag(initial: Any, matrix: Any, ll: Any, called: bool, W: int, implementation: str | None) -> HMMPosterior:
    model, _ = check_hmm(initial, matrix, ll, called)
    filtered = hmm_filter(initial, matrix, ll, implementation=implementation)
    return _windows(as_series(model.A)[0], model.log_likelihoods[0], filtered.filtered_probs, filtered.predicted_probs, W)


def _windows(A: jax.Array, ll: jax.Array, filtered: jax.Array, predicted: jax.Array, W: int) -> HMMPosterior:
    T, K = filtered.shape
    A = jnp.broadcast_to(A, (T - 1, K, K))

    def earlier(x: jax.Array, lag: Any) -> jax.Array:
        """Returns ``x[t - lag]`` for every t, zeros before the beginning."""
        here = jnp.arange(len(x)) >= lag
        return jnp.where(here.reshape(-1, *[1] * (x.ndim - 1)), jnp.roll(x, lag, 0), 0)

    arrivals = jnp.concatenate([jnp.zeros_like(A[:1]) if T > 1 else jnp.zeros((1, K, K), A.dtype), A])

    def step(smoothed: jax.Array, lag: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Goes from the smoothed probabilities of t - lag + 1 to those of t - lag, for every t."""
        expected = earlier(predicted, lag - 1)
        change = quotient(smoothed, expected)
        weights = earlier(filtered, lag) * jnp.einsum("tij,tj->ti", earlier(arrivals, lag - 1), change, precision="highest")
        smoothed = quotient(weights, weights.sum(-1, keepdims=True))
        return smoothed, smoothed

    lags = jnp.arange(1, W)
    _, smoothed = lax.scan(step, filtered, lags)
    smoothed = jnp.concatenate([filtered[None], smoothed])
    densities = _log_densities(predicted, ll)
    loglik = jax.vmap(lambda lag: earlier(densities, lag))(jnp.arange(W)).sum(0)
    filtered, predicted = (jax.vmap(functools.partial(earlier, x))(jnp.arange(W)) for x in (filtered, predicted))
    filtered, predicted, smoothed = (x[::-1].swapaxes(0, 1) for x in (filtered, predicted, smoothed))
    return HMMPosterior(loglik, filtered, predicted, smoothed, smoothed[0])


def _log_densities(predicted: jax.Array, ll: jax.Array) -> jax.Array:
    ll = jnp.where(jnp.isnan(ll).all(-1, keepdims=True), 0, ll)
    return jax.scipy.special.logsumexp(ll, b=predicted, axis=-1)
