"""HMMs that break naive code: huge log-likelihoods, impossible states, missing data, weights that are no distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    check_hmm_weights,
    compute_transition_probs,
    hmm_filter,
    hmm_posterior_mode,
    hmm_posterior_sample,
    hmm_smoother,
)
from oracles.hmm import random_model, textbook, viterbi
from oracles.lgssm import close

EACH = pytest.mark.parametrize("implementation", ["sequential", "chunked"])
T, K = 70, 3


def check(model, implementation, tolerance=1e-11):
    wanted = textbook(*model)
    posterior = hmm_smoother(*model, implementation=implementation)
    close(posterior.marginal_loglik, wanted.loglik, tolerance, "loglik")
    close(posterior.filtered_probs, wanted.filtered, tolerance, "filtered")
    close(posterior.smoothed_probs, wanted.smoothed, tolerance, "smoothed")
    close(posterior.trans_probs, wanted.pairs.sum(0), tolerance, "pairs")


@EACH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_likelihoods_of_any_magnitude(implementation, dtype):
    """One compiled program for all: +-1e30 in whole rows and in single states, -inf, and states 1,000 nats apart."""
    initial, A, ll = random_model(1, T, K, dtype)
    tolerance = 1e-9 if dtype == "float64" else 5e-6  # the reference's logarithms, of some 1e5, are rounded themselves
    check((initial, A, 1e3 * ll), implementation, tolerance)
    apart = ll.copy()
    apart[3], apart[5, 1], apart[T // 2, 0] = 1e30, -np.inf, -1e30
    posterior = hmm_smoother(initial, A, apart, implementation=implementation)
    assert posterior.marginal_loglik == pytest.approx(1e30)
    level = np.where(np.arange(T)[:, None] == 3, 0, apart)
    close(posterior.smoothed_probs, textbook(initial, A, level).smoothed, tolerance)
    np.testing.assert_array_equal(
        hmm_posterior_mode(initial, A, apart, implementation=implementation), viterbi(initial, A, level)
    )
    lower = np.where(np.arange(T)[:, None] == 3, -1e30, apart).astype(dtype)
    close(hmm_smoother(initial, A, lower, implementation=implementation).smoothed_probs, posterior.smoothed_probs, tolerance)


@EACH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chains_that_cannot_go_back(implementation, dtype):
    """Left to right into an absorbing state, with data that the states already left would explain far better."""
    A = np.array([[0.9, 0.1, 0], [0, 0.95, 0.05], [0, 0, 1]], dtype)
    initial = np.array([1, 0, 0], dtype)
    ll = np.zeros((T, K), dtype)
    ll[:, 0], ll[30, 1] = -1, -300
    ll[:20, 1:], ll[40:, :2] = -np.inf, -np.inf
    ll[50:, 2] = -1e4
    tolerance = 1e-9 if dtype == "float64" else 5e-6  # as above
    check((initial, A, ll), implementation, tolerance)
    alike = (initial, np.eye(K, dtype=dtype), np.where(np.isinf(ll), -5, ll))  # nothing moves: rows lie nats apart
    check(alike, implementation, tolerance)
    loglik, states = hmm_posterior_sample(jax.random.key(1), initial, A, ll, implementation=implementation)
    assert np.isfinite(loglik)
    assert (np.diff(states) >= 0).all()
    assert (states[40:] == 2).all()


@EACH
def test_impossible_data(implementation):
    """From the step on at which nothing is possible: log-likelihood -inf, no probabilities, no states."""
    initial, A, ll = random_model(2, T, K)
    ll[T // 2] = -np.inf
    posterior = hmm_smoother(initial, A, ll, implementation=implementation)
    assert posterior.marginal_loglik == -np.inf
    close(posterior.filtered_probs[: T // 2], textbook(initial, A, ll[: T // 2]).filtered, 1e-11)
    assert not posterior.filtered_probs[T // 2 :].any()
    assert not posterior.smoothed_probs.any()
    assert (hmm_posterior_mode(initial, A, ll, implementation=implementation) == -1).all()
    loglik, states = hmm_posterior_sample(jax.random.key(0), initial, A, ll, implementation=implementation)
    assert loglik == -np.inf
    assert (states == -1).all()


@EACH
def test_the_impossible_sequences_of_a_batch_alone_have_no_states(implementation):
    initial, A, ll = random_model(2, T, K)
    batch = np.stack([ll, np.where(np.arange(T)[:, None] == 7, -np.inf, ll), ll + 1, ll])
    batch[3, 5, 0] = np.nan
    decode = functools.partial(hmm_posterior_mode, initial, A, implementation=implementation)
    states = np.asarray(decode(batch))
    alone = [decode(ll) for ll in batch]
    np.testing.assert_array_equal(states, alone)
    np.testing.assert_array_equal(jax.vmap(decode)(batch), alone)
    np.testing.assert_array_equal(jax.vmap(decode)(np.stack([batch, batch[::-1]])), [alone, alone[::-1]])
    assert (states[1] == -1).all()
    assert (states[[0, 2]] >= 0).all()
    drawn = np.asarray(hmm_posterior_sample(jax.random.key(0), initial, A, batch, implementation=implementation)[1])
    assert (drawn[1] == -1).all()
    assert (drawn[[0, 2]] >= 0).all()


@EACH
def test_missing_data(implementation):
    """A row of NaN says what a row of zeros says, at the ends too; a row with some NaN is an error that shows."""
    initial, A, ll = random_model(3, T, K)
    gaps = ll.copy()
    gaps[0], gaps[10:20], gaps[-1] = np.nan, np.nan, np.nan
    check((initial, A, gaps), implementation)
    zeros = np.nan_to_num(gaps)
    np.testing.assert_array_equal(
        hmm_posterior_mode(initial, A, gaps, implementation=implementation),
        hmm_posterior_mode(initial, A, zeros, implementation=implementation),
    )
    gaps[30, 1] = np.nan
    posterior = hmm_smoother(initial, A, gaps, implementation=implementation)
    assert np.isnan(posterior.marginal_loglik)
    assert np.isnan(posterior.smoothed_probs).any(1).all()
    assert (hmm_posterior_sample(jax.random.key(0), initial, A, gaps, implementation=implementation)[1] == -1).all()


@EACH
@pytest.mark.parametrize("varying", [False, True])
def test_weights_that_are_no_distributions(implementation, varying):
    """Sub-normalised weights, large ones, and the same as logarithms."""
    initial, A, ll = random_model(4, T, K, varying=varying)
    r = np.random.default_rng(0)
    initial, A = 7 * initial, A * r.random((K, K))
    wanted = textbook(initial, A, ll)
    for log_weights in (False, True):
        weights = (np.log(initial), np.log(A)) if log_weights else (initial, A)
        options = {"implementation": implementation, "log_weights": log_weights}
        posterior = hmm_smoother(*weights, ll, **options)
        close(posterior.marginal_loglik, wanted.loglik, 1e-12)
        close(posterior.smoothed_probs, wanted.smoothed, 1e-11)
        close(posterior.predicted_probs, wanted.predicted, 1e-11)
        close(posterior.trans_probs, wanted.pairs if varying else wanted.pairs.sum(0), 1e-11)
        summed = compute_transition_probs(weights[1], posterior, summed=True, log_weights=log_weights)
        close(summed, wanted.pairs.sum(0), 1e-11)
        np.testing.assert_array_equal(hmm_posterior_mode(*weights, ll, **options), viterbi(initial, A, ll))


def test_logarithms_of_weights_below_any_float():
    initial, A, ll = random_model(5, T, K)
    given = hmm_smoother(np.log(initial) - 2e3, np.log(A) - 1e3, ll, log_weights=True)
    wanted = textbook(initial, A, ll)
    close(given.marginal_loglik, wanted.loglik - 2e3 - (T - 1) * 1e3, 1e-12)
    close(given.smoothed_probs, wanted.smoothed, 1e-11)
    close(given.trans_probs, wanted.pairs.sum(0), 1e-11)


@EACH
def test_a_batch_is_its_sequences(implementation):
    """Shared weights, weights per sequence, and vmap; in one and in several chunks."""
    models = [random_model(seed, T, K) for seed in range(3)]
    initials, As, lls = (np.stack(x) for x in zip(*models, strict=True))
    wanted = [textbook(*m) for m in models]
    batch = hmm_smoother(initials, As[:, None], lls, compute_trans_probs=False, implementation=implementation)
    mapped = jax.vmap(lambda *m: hmm_smoother(*m, implementation=implementation))(initials, As, lls)
    for b in range(3):
        for posterior in (batch, mapped):
            close(posterior.marginal_loglik[b], wanted[b].loglik, 1e-12)
            close(posterior.smoothed_probs[b], wanted[b].smoothed, 1e-11)
        close(mapped.trans_probs[b], wanted[b].pairs.sum(0), 1e-11)
    shared = hmm_smoother(initials[0], As[0], lls, implementation=implementation)
    alone = textbook(initials[0], As[0], lls[2])
    close(shared.smoothed_probs[2], alone.smoothed, 1e-11)
    close(shared.trans_probs[2], alone.pairs.sum(0), 1e-11)
    modes = hmm_posterior_mode(initials, As[:, None], lls, implementation=implementation)
    np.testing.assert_array_equal(modes, [viterbi(*m) for m in models])
    logliks, states = hmm_posterior_sample(jax.random.key(0), initials, As[:, None], lls, implementation=implementation)
    assert states.shape == (3, T)
    close(logliks, [w.loglik for w in wanted], 1e-12)


@pytest.mark.parametrize("implementation", ["chunked", "pallas_interpret"])
def test_gradients(implementation):
    """Of the log-likelihood: the expected statistics, which the textbook has; of kernels and of chunks."""
    initial, A, ll = random_model(6, 66, 2)

    def loglik(log_initial, log_A, ll):
        return hmm_filter(jnp.exp(log_initial), jnp.exp(log_A), ll, implementation=implementation).marginal_loglik

    wanted = textbook(initial, A, ll)
    given = jax.jit(jax.grad(loglik, (0, 1, 2)))(np.log(initial), np.log(A), ll)
    close(given[0], wanted.smoothed[0], 1e-10)
    close(given[1], wanted.pairs.sum(0), 1e-10)
    close(given[2], wanted.smoothed, 1e-10)


def test_inside_transformations():
    model = random_model(7, T, K)
    wanted = hmm_smoother(*model)
    close(jax.jit(hmm_smoother)(*model).smoothed_probs, wanted.smoothed_probs, 1e-12)
    _, inside = jax.lax.scan(lambda c, ll: (c, hmm_filter(*model[:2], ll).marginal_loglik), 0, jnp.stack([model[2]] * 2))
    close(inside, [wanted.marginal_loglik] * 2, 1e-12)


def test_errors():
    initial, A, ll = random_model(8, 5, 3)
    with pytest.raises(ValueError, match=r"transition_matrix: shape \(2, 2\) given, wanted \(3, 3\) or \(4, 3, 3\)"):
        hmm_filter(initial, np.eye(2), ll)
    with pytest.raises(ValueError, match="transition_matrix: None given and no transition_fn"):
        hmm_filter(initial, None, ll)
    with pytest.raises(ValueError, match=r"transition_fn: shape \(4, 2, 2\) given"):
        hmm_filter(initial, None, ll, lambda t: jnp.eye(2) + t)
    with pytest.raises(ValueError, match=r"log_likelihoods: shape \(5,\) given, wanted \(T, K\) or \(B, T, K\)"):
        hmm_filter(initial, A, ll[:, 0])
    with pytest.raises(TypeError, match="initial_distribution: float16 given, wanted float32 or float64; integers are conv"):
        hmm_filter(initial.astype("float16"), A, ll)
    with pytest.raises(TypeError, match="log_likelihoods: complex128 given"):
        hmm_filter(initial, A, ll.astype(complex))
    with pytest.raises(ValueError, match="'fastest' given"):
        hmm_filter(initial, A, ll, implementation="fastest")
    big = random_model(9, 5, 129)
    with pytest.raises(ValueError, match=r"'pallas_interpret' given for K = 129, float64; .* K up to 128. Take 'chunked'"):
        hmm_filter(*big, implementation="pallas_interpret")


def test_finding_weights_that_are_meant_to_be_distributions():
    initial, A, _ = random_model(10, 5, 3, varying=True)
    check_hmm_weights(initial, A)
    A[2, 1] *= 1.1
    with pytest.raises(ValueError, match=r"transition_matrix: a sum that is not one in row \(2, 1\) given, 1 such"):
        check_hmm_weights(initial, A)
    with pytest.raises(ValueError, match="initial_distribution: a negative or NaN entry given"):
        check_hmm_weights([0.5, np.nan, 0.5], A)
