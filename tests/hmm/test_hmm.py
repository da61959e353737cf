"""HMM inference against the textbook recursions, all paths, and hmmlearn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hmmlearn.hmm import CategoricalHMM

import fastscan
from fastscan import hmm_backward_filter, hmm_filter, hmm_posterior_mode, hmm_posterior_sample, hmm_smoother
from fastscan.dispatch.choice import XLA_IMPLEMENTATIONS, How
from fastscan.hmm import inference as hmm_inference
from fastscan.hmm.check import check_hmm
from fastscan.kernels.plan import Launch, Plan
from oracles import hmm as hmm_oracle
from oracles.hmm import paths, random_model, textbook, viterbi
from oracles.lgssm import close

ALL = (*XLA_IMPLEMENTATIONS, "pallas_interpret")
TOLERANCE = {"float64": 1e-11, "float32": 5e-6}


def check(model, implementation, tolerance=None, **options):
    """Every function of one model against the references; returns a sample of its states."""
    dtype = str(model[2].dtype)
    tolerance = tolerance or TOLERANCE[dtype]
    wanted = textbook(*model)
    run = {"implementation": implementation, **options}
    posterior = hmm_smoother(*model, **run)
    close(posterior.marginal_loglik, wanted.loglik, tolerance, "loglik")
    close(posterior.filtered_probs, wanted.filtered, tolerance, "filtered")
    close(posterior.predicted_probs, wanted.predicted, tolerance, "predicted")
    close(posterior.smoothed_probs, wanted.smoothed, tolerance, "smoothed")
    close(posterior.initial_probs, wanted.smoothed[0], tolerance, "initial")
    pairs = wanted.pairs if np.ndim(model[1]) == 3 else wanted.pairs.sum(0)
    close(posterior.trans_probs, pairs, tolerance, "pairs")
    filtered = hmm_filter(*model, **run)
    close(filtered.filtered_probs, wanted.filtered, tolerance, "the filter's")
    assert {str(x.dtype) for x in (*posterior, *filtered)} == {dtype}
    total, messages = hmm_backward_filter(*model[1:], **run)
    both = wanted.filtered * messages
    close(both / both.sum(1, keepdims=True), wanted.smoothed, tolerance, "two filters")
    close(total, textbook(np.ones_like(model[0]), *model[1:]).loglik, tolerance, "backward loglik")
    np.testing.assert_array_equal(hmm_posterior_mode(*model, **run), viterbi(*model))
    loglik, states = hmm_posterior_sample(jax.random.key(0), *model, **run)
    close(loglik, wanted.loglik, tolerance, "the sampler's loglik")
    assert states.dtype == jnp.int32
    return np.asarray(states)


SIZES = [(1, 1, False), (1, 3, True), (2, 2, False), (3, 1, True), (17, 3, True), (67, 5, False)]
FEWER = {
    "sequential": [(1, 1, False), (2, 2, False), (17, 3, True)],
    "associative": [(2, 2, False), (5, 3, True)],
    "pallas_interpret": [(2, 2, False), (66, 2, True)],
}
CASES = [(*size, i) for i in ALL for size in FEWER.get(i, SIZES)]


@pytest.mark.parametrize(("T", "K", "varying", "implementation"), CASES)
def test_every_size(T, K, varying, implementation):
    """And one key draws one path in all implementations."""
    model = random_model(T + K, T, K, varying=varying, zeros=0.3, spread=3)
    states = check(model, implementation)
    wanted = hmm_posterior_sample(jax.random.key(0), *model, implementation="sequential")[1]
    np.testing.assert_array_equal(states, wanted)


@pytest.mark.parametrize("chunks", [2, 5, 11, 12])
def test_every_way_of_cutting_time(chunks):
    """12 rows: exact chunks, padded ones, one row a chunk; every scan of the summaries."""
    model = random_model(1, 13, 2, zeros=0.3)
    wanted = textbook(*model)
    checked, _ = check_hmm(model[0], model[1], model[2])
    for scan in ("doubling", "associative"):
        plan = Plan(12, chunks, scan, "staged")
        posterior = hmm_inference.smooth_states(checked, How(plan), False, True)
        close(posterior.marginal_loglik[0], wanted.loglik, 1e-12)
        close(posterior.smoothed_probs[0], wanted.smoothed, 1e-12)
        close(posterior.trans_probs[0], wanted.pairs.sum(0), 1e-12)
        np.testing.assert_array_equal(hmm_inference.most_likely_states(checked, How(plan), False)[0], viterbi(*model))


def test_kernels_of_several_levels():
    """Summaries of summaries, in kernels: 22 rows, 11 chunks, groups of 2."""
    model = random_model(2, 23, 2, zeros=0.3)
    wanted = textbook(*model)
    checked, _ = check_hmm(model[0], model[1], model[2])
    plan = Plan(22, 11, launch=Launch(group=2, interpret=True))
    posterior = hmm_inference.smooth_states(checked, How(plan), False, True)
    close(posterior.smoothed_probs[0], wanted.smoothed, 1e-12)
    close(posterior.trans_probs[0], wanted.pairs.sum(0), 1e-12)
    np.testing.assert_array_equal(hmm_inference.most_likely_states(checked, How(plan), False)[0], viterbi(*model))


@pytest.mark.parametrize("implementation", ["sequential", "chunked", "pallas_interpret"])
def test_single_precision(implementation):
    check(random_model(1, 70, 2, "float32", spread=2), implementation)


@pytest.mark.parametrize(("K", "implementation"), [(9, "chunked"), (17, "sequential"), (64, "chunked")])
def test_many_states(K, implementation):
    """Maps of more than one word, products of more terms than are unrolled."""
    model = random_model(K, 70, K, zeros=0.5)
    states = check(model, implementation)
    np.testing.assert_array_equal(states, hmm_posterior_sample(jax.random.key(0), *model, implementation="sequential")[1])


def test_all_paths():
    initial, A, ll = random_model(4, 5, 3, zeros=0.2)
    every, weights = paths(initial, A, ll)
    loglik = hmm_oracle.logsumexp(weights)
    probs = np.exp(weights - loglik)
    posterior = hmm_smoother(initial, A, ll)
    close(posterior.marginal_loglik, loglik, 1e-12)
    marginals = np.array([[probs[every[:, t] == k].sum() for k in range(3)] for t in range(5)])
    close(posterior.smoothed_probs, marginals, 1e-12)
    pairs = np.zeros((3, 3))
    for t in range(4):
        np.add.at(pairs, (every[:, t], every[:, t + 1]), probs)
    close(posterior.trans_probs, pairs, 1e-12)
    np.testing.assert_array_equal(hmm_posterior_mode(initial, A, ll), every[weights.argmax()])


@pytest.mark.parametrize("implementation", ALL)
def test_equally_likely_paths(implementation):
    """The first in lexicographic order: no rounding decides, weights are powers of two."""
    A = np.array([[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5]])
    ll = np.log(2.0) * np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]])
    initial = np.array([0.25, 0.5, 0.25])
    every, weights = paths(initial, A, ll)
    best = np.flatnonzero(weights > weights.max() - 1e-9)
    assert len(best) > 1
    np.testing.assert_array_equal(hmm_posterior_mode(initial, A, ll, implementation=implementation), every[best[0]])


@pytest.mark.parametrize("implementation", ["sequential", "chunked"])
def test_distribution_of_sampled_paths(implementation):
    """Chi-squared over 100,000 paths; below the 0.999 quantile."""
    initial, A, ll = random_model(7, 4, 3, zeros=0.2)
    _, weights = paths(initial, A, ll)
    probs = np.exp(weights - hmm_oracle.logsumexp(weights))
    draw = functools.partial(hmm_posterior_sample, implementation=implementation)
    _, states = jax.jit(jax.vmap(lambda key: draw(key, initial, A, ll)))(jax.random.split(jax.random.key(1), 100_000))
    counts = np.bincount(np.asarray(states) @ 3 ** np.arange(3, -1, -1), minlength=81)
    assert counts[probs == 0].sum() == 0
    possible = probs > 0
    expected = 100_000 * probs[possible]
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    assert statistic < freedom + 3.1 * np.sqrt(2 * freedom) + 5, statistic


def test_neighbours_are_drawn_together():
    """Transitions of sampled paths occur as often as the smoother expects."""
    model = random_model(8, 40, 4)
    keys = jax.random.split(jax.random.key(2), 20_000)
    _, states = jax.jit(jax.vmap(lambda key: hmm_posterior_sample(key, *model)))(keys)
    states = np.asarray(states)
    counts = np.zeros((4, 4))
    np.add.at(counts, (states[:, :-1], states[:, 1:]), 1 / len(keys))
    np.testing.assert_allclose(counts, textbook(*model).pairs.sum(0), atol=0.1)


def test_against_hmmlearn():
    r = np.random.default_rng(0)
    initial, A, _ = random_model(9, 2, 6)
    emission = r.dirichlet(np.ones(10), size=6)
    y = r.integers(10, size=(2_000, 1))
    theirs = CategoricalHMM(6)
    theirs.startprob_, theirs.transmat_, theirs.emissionprob_ = initial, A, emission
    loglik, smoothed = theirs.score_samples(y)
    ll = np.log(emission[:, y[:, 0]]).T
    posterior = hmm_smoother(initial, A, ll, implementation="chunked")
    close(posterior.marginal_loglik, loglik, 1e-12)
    close(posterior.smoothed_probs, smoothed, 1e-9)
    _, states = theirs.decode(y)
    np.testing.assert_array_equal(hmm_posterior_mode(initial, A, ll, implementation="chunked"), states)


@pytest.mark.slow
def test_a_long_series_in_single_precision():
    """T = 30,000 against logarithms in double precision; the best path scores as the best."""
    model = random_model(3, 30_000, 4, "float32", zeros=0.2, spread=2)
    wanted = textbook(*model)
    posterior = hmm_smoother(*model, implementation="chunked")
    close(posterior.marginal_loglik, wanted.loglik, 2e-6)
    close(posterior.smoothed_probs, wanted.smoothed, 1e-5)
    close(posterior.trans_probs, wanted.pairs.sum(0), 1e-5)
    states = np.asarray(hmm_posterior_mode(*model, implementation="chunked"))
    best = viterbi(*model)
    assert (states != best).mean() < 1e-3
    gap = hmm_oracle.score(*model, best) - hmm_oracle.score(*model, states)
    assert 0 <= gap < 1e-3
    samples = [hmm_posterior_sample(jax.random.key(0), *model, implementation=i)[1] for i in ("chunked", "sequential")]
    assert (samples[0] != samples[1]).mean() < 1e-3  # where a number lies within rounding of a boundary


def test_names():
    assert fastscan.hmm_two_filter_smoother is hmm_smoother
    model = random_model(5, 20, 3)
    wanted = hmm_smoother(*model)
    for posterior in (
        fastscan.parallel_hmm_smoother(initial_probs=model[0], transition_matrix=model[1], log_likelihoods=model[2]),
        fastscan.parallel_hmm_filter(initial_probs=model[0], transition_matrix=model[1], log_likelihoods=model[2]),
    ):
        for name in posterior._fields:
            close(getattr(posterior, name), getattr(wanted, name), 1e-12)
