"""A hidden Markov model of real counts: the world's major earthquakes, year by year, and its maximum likelihood.

Every state has a Poisson rate, and years move between states by a Markov chain, as in chapters 1 to 4 of Zucchini, MacDonald &
Langrock (2016), Hidden Markov Models for Time Series, 2nd ed.
"""

import csv
import functools
import importlib.resources
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import OptimizeResult, minimize

from fastscan.hmm import hmm_filter, hmm_posterior_mode, hmm_smoother

PUBLISHED_LOGLIKS = {2: -342.318, 3: -329.460}
"""Log-likelihoods of the book's stationary models of the earthquakes with 2 and 3 states (chapter 3)."""

_LEAST_PROBABILITY = 1e-2
"""The least probability of a transition where the search for the stationary model starts: the likelihood is flat in the
logarithms of small ones."""

_TOLERANCES = {"ftol": 1e-12, "gtol": 1e-6}
"""Tolerances of L-BFGS: relative, of the log-likelihood, and of its gradient; for rates that are right to three decimals."""

_IMPLEMENTATION = "sequential"
"""The implementation of the recurrences: a hundred steps take no time in any, and this one compiles in the least time."""


class PoissonHMM(NamedTuple):
    """A fitted model of K states, their rates ascending.

    Attributes:
        initial: (K,), the distribution of the first state.
        A: (K, K), row k the distribution of the state after k.
        rates: (K,), expected counts a step.
        logliks: (n,), log-likelihoods of the models that the fit went through, first its start, last this model.
    """

    initial: np.ndarray
    A: np.ndarray
    rates: np.ndarray
    logliks: np.ndarray


class Decoded(NamedTuple):
    """States given all counts.

    Attributes:
        states: (T,), int32, the most likely path.
        smoothed_probs: (T, K), of every state at every step.
    """

    states: np.ndarray
    smoothed_probs: np.ndarray


def load_earthquakes() -> tuple[np.ndarray, np.ndarray]:
    """Reads counts of major earthquakes, magnitude 7 or more, 1900 to 2006; ``data/earthquakes.csv`` names their source.

    Returns:
        Years (107,) and counts a year (107,), int64.
    """
    text = importlib.resources.files("fastscan.profiling.demos").joinpath("data/earthquakes.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    return np.array([int(row["year"]) for row in rows]), np.array([int(row["count"]) for row in rows])


def poisson_log_likelihoods(counts: jax.typing.ArrayLike, rates: jax.typing.ArrayLike) -> jax.Array:
    """Computes log p(count | state), (T, K).

    Args:
        counts: (T,), integers from 0.
        rates: (K,), positive; counts a step. Float64 where JAX has it enabled and they are, else float32.
    """
    rates = jnp.asarray(rates)
    counts = jnp.asarray(counts, rates.dtype)[:, None]
    return counts * jnp.log(rates) - rates - jax.lax.lgamma(counts + 1)


def fit_poisson_hmm(counts: np.ndarray, K: int, iterations: int = 300) -> PoissonHMM:
    """Fits by maximum likelihood with a free initial distribution, by expectation-maximisation (chapter 4 of the book).

    Starts from K quantiles of the counts as rates and a chain that tends to stay where it is. In float64 where JAX has it
    enabled, else in float32, where log-likelihoods increase up to rounding.

    Args:
        counts: (T,), integers from 0.
        K: states, from 1.
        iterations: of expectation and maximisation.

    Returns:
        The model, with ``iterations + 1`` log-likelihoods.

    Raises:
        ValueError: K quantiles of the counts are not K positive numbers.
    """
    quantiles = np.quantile(counts, (np.arange(K) + 0.5) / K)
    if K < 1 or len(np.unique(quantiles)) < K or quantiles[0] <= 0:
        raise ValueError(f"counts: {K} quantiles {quantiles} given, wanted K different ones, K from 1, all positive.")
    start = (np.full(K, 1 / K), (4 * np.eye(K) + 1) / (4 + K), quantiles)
    return _ascending(*_expect_and_maximise(counts, start, iterations))


def fit_stationary_poisson_hmm(counts: np.ndarray, K: int) -> PoissonHMM:
    """Fits by maximum likelihood where A's own stationary distribution is the initial one, as in chapter 3 of the book.

    By L-BFGS from where `fit_poisson_hmm` ends, in float64 whatever JAX has enabled, over logarithms of the rates, and
    logarithms of A relative to its diagonal.

    Args:
        counts: (T,), integers from 0.
        K: states, from 1.

    Returns:
        The model, in float64.

    Raises:
        ValueError: as `fit_poisson_hmm`.
        RuntimeError: the optimiser did not converge.
    """
    off_diagonal = ~np.eye(K, dtype=bool)

    def unpack(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        A = jax.nn.softmax(jnp.zeros((K, K)).at[off_diagonal].set(x[K:]), axis=-1)
        return stationary_distribution(A), A, jnp.exp(x[:K])

    @jax.jit
    @jax.value_and_grad
    def loss(x: jax.Array) -> jax.Array:
        initial, A, rates = unpack(x)
        return -hmm_filter(initial, A, poisson_log_likelihoods(counts, rates), implementation=_IMPLEMENTATION).marginal_loglik

    with jax.enable_x64(True):
        free = fit_poisson_hmm(counts, K)
        logits = np.log(np.maximum(free.A, _LEAST_PROBABILITY) / np.diag(free.A)[:, None])
        x = np.concatenate([np.log(free.rates), logits[off_diagonal]])
        logliks = [-float(loss(x)[0])]

        def note(intermediate_result: OptimizeResult) -> None:
            logliks.append(-float(intermediate_result.fun))

        found = minimize(
            lambda x: tuple(map(np.asarray, loss(x))), x, jac=True, method="L-BFGS-B", callback=note, options=_TOLERANCES
        )
        if not found.success:
            raise RuntimeError(f"No most likely model found: {found.message}")
        initial, A, rates = jax.jit(unpack)(found.x)
    return _ascending(initial, A, rates, logliks)


def stationary_distribution(A: jax.Array) -> jax.Array:
    """Computes the distribution (K,) that a chain with transitions A (K, K) keeps, if it is the only one."""
    K = A.shape[-1]
    return jnp.linalg.solve((jnp.eye(K, dtype=A.dtype) - A + 1).T, jnp.ones(K, A.dtype))


def decode(model: PoissonHMM, counts: np.ndarray) -> Decoded:
    """Finds the most likely path of states, and every state's probability, given all counts (T,).

    In float64 where JAX has it enabled and the model is, else in float32.
    """
    arguments = (model.initial, model.A, poisson_log_likelihoods(counts, model.rates))
    states = hmm_posterior_mode(*arguments, implementation=_IMPLEMENTATION)
    posterior = hmm_smoother(*arguments, compute_trans_probs=False, implementation=_IMPLEMENTATION)
    return Decoded(np.asarray(states), np.asarray(posterior.smoothed_probs))


@functools.partial(jax.jit, static_argnames="iterations")
def _expect_and_maximise(counts: jax.Array, start: tuple, iterations: int) -> tuple[jax.Array, ...]:
    """Returns initial distribution, transition matrix and rates after iterations, and ``iterations + 1`` log-likelihoods."""

    def step(models: tuple, _: None) -> tuple[tuple, jax.Array]:
        initial, A, rates = models[0]
        posterior = hmm_smoother(initial, A, poisson_log_likelihoods(counts, rates), implementation=_IMPLEMENTATION)
        smoothed, transitions = posterior.smoothed_probs, jnp.asarray(posterior.trans_probs)
        better = (smoothed[0], transitions / transitions.sum(1, keepdims=True), counts @ smoothed / smoothed.sum(0))
        return (better, models[0]), posterior.marginal_loglik

    # One step more, for the log-likelihood of the model that it is given.
    (_, model), logliks = jax.lax.scan(step, (start, start), length=iterations + 1)
    return *model, logliks


def _ascending(
    initial: jax.typing.ArrayLike, A: jax.typing.ArrayLike, rates: jax.typing.ArrayLike, logliks: jax.Array | list[float]
) -> PoissonHMM:
    initial, A, rates = map(np.asarray, (initial, A, rates))
    order = np.argsort(rates)
    return PoissonHMM(initial[order], A[np.ix_(order, order)], rates[order], np.asarray(logliks))
