"""Transition weights of regimes, and functions of t: against the arrays (T - 1, K, K) that they stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    Regimes,
    compute_transition_probs,
    hmm_backward_filter,
    hmm_filter,
    hmm_fixed_lag_smoother,
    hmm_marginal_loglik,
    hmm_posterior_mode,
    hmm_posterior_sample,
    hmm_smoother,
)
from programs.arrays_made import large_arrays

KEY = jax.random.key(0)


@functools.cache
def model(K, R, T, B=None, dtype="float64"):
    """Weights of R regimes, one of them with zeros, the numbers of T - 1 transitions, and log-likelihoods."""
    r = np.random.default_rng(K)
    A = r.dirichlet(np.ones(K), (R, K)) * r.uniform(0.5, 2, (R, 1, 1))
    A[0] = np.triu(A[0]) + 1e-3 * np.eye(K)
    ll = 2 * r.normal(size=(T, K) if B is None else (B, T, K))
    ll[..., T // 2, :] = np.nan
    index = r.integers(0, R, T - 1 if B is None else (B, T - 1)).astype(np.int32)
    return jnp.asarray(np.ones(K) / K, dtype), jnp.asarray(A, dtype), jnp.asarray(index), jnp.asarray(ll, dtype)


def results(initial, A, ll, function=None, **options):
    return (
        hmm_smoother(initial, A, ll, function, **options),
        hmm_filter(initial, A, ll, function, **options),
        hmm_marginal_loglik(initial, A, ll, function, **options),
        hmm_backward_filter(A, ll, function, **options),
        hmm_posterior_mode(initial, A, ll, function, **options),
        hmm_posterior_sample(KEY, initial, A, ll, function, **options),
    )


def same(found, wanted, tolerance=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance), found, wanted)


SLOW = [
    (None, 1, 5, False, "regimes", None),
    (None, 3, 2, True, "regimes", None),
    ("chunked:4", 12, 23, True, "function", None),
    ("associative", 3, 17, False, "regimes", 2),
    ("pallas_interpret", 3, 17, False, "regimes", 2),
    ("pallas_interpret", 12, 17, True, "function", None),
    ("chunked:3", 20, 40, True, "regimes", None),
    ("sequential", 12, 3, True, "function", None),
]


@pytest.mark.parametrize(
    "implementation, K, T, log_weights, kind, B",
    [
        ("sequential", 12, 23, False, "function", None),
        ("sequential", 20, 40, True, "regimes", 2),
        ("chunked:4", 3, 17, False, "regimes", 2),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in SLOW),
    ],
)
def test_are_what_they_stand_for(implementation, K, T, log_weights, kind, B):
    initial, A, index, ll = model(K, 3, T, B)
    if log_weights:
        initial, A = jnp.log(initial), jnp.log(A)
    options = {"implementation": implementation, "log_weights": log_weights}
    if kind == "regimes":
        found = jax.jit(functools.partial(results, **options))(initial, Regimes(A, index), ll)
    else:
        found = results(initial, None, ll, lambda t: A[index[t]], **options)
    same(found, results(initial, A[index], ll, **options))


@pytest.mark.parametrize("T", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_short_series(T):
    initial, A, index, ll = model(3, 2, T)
    same(results(initial, Regimes(A, index), ll), results(initial, A[index], ll))


@pytest.mark.parametrize("kind, K", [("regimes", 3), ("function", 12)])
def test_gradients(kind, K):
    initial, A, index, ll = model(K, 3, 30, 2)
    index = index[0] if kind == "function" else index

    def loglik(A, initial, ll, written_out=False, logs=False):
        given = {"log_weights": logs}
        if written_out:
            return hmm_marginal_loglik(initial, A[index], ll, **given).sum()
        if kind == "function":
            return hmm_marginal_loglik(initial, None, ll, lambda t: A[index[t]], **given).sum()
        return hmm_marginal_loglik(initial, Regimes(A, index), ll, **given).sum()

    gradient = jax.grad(loglik, (0, 1, 2))
    same(gradient(A, initial, ll), gradient(A, initial, ll, written_out=True))
    A, initial = jnp.log(jnp.abs(A) + 1e-2), jnp.log(initial)
    same(gradient(A, initial, ll, logs=True), gradient(A, initial, ll, written_out=True, logs=True))
    several = jnp.stack([A, A - 1.0])
    mapped = jax.vmap(lambda A: jax.grad(loglik)(A, initial, ll, logs=True))(several)
    same(mapped, jnp.stack([jax.grad(loglik)(a, initial, ll, True, True) for a in several]))


@pytest.mark.parametrize("log_weights", [False, True])
def test_transition_probs_and_windows(log_weights):
    initial, A, index, ll = model(3, 2, 9)
    if log_weights:
        initial, A = jnp.log(initial), jnp.log(A)
    given = {"log_weights": log_weights}
    posterior = hmm_smoother(initial, A[index], ll, **given)
    for summed in (None, True):
        found, wanted = (compute_transition_probs(x, posterior, summed=summed, **given) for x in (Regimes(A, index), A[index]))
        same(found, wanted)
    if not log_weights:
        found, wanted = (hmm_fixed_lag_smoother(initial, x, ll, 3) for x in (Regimes(A, index), A[index]))
        same(found, wanted)


@pytest.mark.parametrize("kind", ["regimes", "function"])
@pytest.mark.parametrize("log_weights", [False, True])
def test_nothing_with_a_matrix_a_step(kind, log_weights):
    K, R, T = 10, 3, 200
    initial, A, index, ll = (np.asarray(x) for x in model(K, R, T))

    def weights(A, index):
        return (Regimes(A, index), None) if kind == "regimes" else (None, lambda t: A[index[t]])

    def all_of_them(A, initial, ll, index, implementation):
        matrix, function = weights(A, index)
        given = {"implementation": implementation, "log_weights": log_weights}
        return (
            hmm_smoother(initial, matrix, ll, function, compute_trans_probs=False, **given),
            hmm_posterior_sample(KEY, initial, matrix, ll, function, **given),
            hmm_backward_filter(matrix, ll, function, **given),
            jax.grad(lambda A: hmm_marginal_loglik(initial, weights(A, index)[0], ll, weights(A, index)[1], **given))(A),
        )

    for implementation in ("sequential", "chunked"):
        run = functools.partial(all_of_them, implementation=implementation)
        assert not large_arrays(run, A, initial, ll, index, entries=T * K * K // 2)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda A, i: Regimes(A, i + 1), ValueError, r"transition_matrix.index: 2 given, wanted numbers from 0 to 1"),
        (lambda A, i: Regimes(A, i[:-1]), ValueError, r"transition_matrix.index: shape \(7,\) given, wanted \(8,\)"),
        (lambda A, i: Regimes(A, 1.0 * i), TypeError, r"transition_matrix.index: float64 given, wanted integers"),
        (lambda A, i: Regimes(A[0], i), ValueError, r"transition_matrix.values: shape \(3, 3\) given, wanted \(R, 3, 3\)"),
        (lambda A, i: Regimes(A[:0], i), ValueError, r"transition_matrix.values: shape \(0, 3, 3\) given, wanted at least one"),
        (lambda A, i: Regimes(-A, i), ValueError, r"transition_matrix: -.* given, wanted weights that are not negative"),
        (lambda A, _: Regimes(A, None), TypeError, r"transition_matrix.index: None given"),
    ],
)
def test_what_is_none_is_refused(change, error, message):
    initial, A, index, ll = (np.asarray(x) for x in model(3, 2, 9))
    index = index % 2
    index[0] = 1
    with pytest.raises(error, match=message):
        hmm_filter(initial, change(A, index), ll)


def test_negative_weights_of_a_function_are_refused():
    initial, A, index, ll = model(12, 3, 23)
    with pytest.raises(ValueError, match=r"transition_matrix: -.* given, wanted weights that are not negative"):
        hmm_filter(initial, None, ll, lambda t: A[index[t]] - 0.1)


def test_a_number_of_no_regime_is_not_silent():
    initial, A, index, ll = model(3, 2, 9)
    for wrong in (2, -1):
        run = jax.jit(lambda index: hmm_filter(initial, Regimes(A, index), ll).filtered_probs)
        found = np.asarray(run(index.at[4].set(wrong)))
        assert np.isfinite(found[:5]).all()
        assert np.isnan(found[5:]).any(1).all()
