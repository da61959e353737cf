"""Models with many states, whose loops over one sequence multiply vectors a few at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import Regimes, hmm_backward_filter, hmm_marginal_loglik, hmm_posterior_mode, hmm_posterior_sample, hmm_smoother
from fastscan.dispatch.choice import choose
from oracles.hmm import random_model, textbook, viterbi
from oracles.lgssm import close

TOLERANCE = {"float64": 1e-11, "float32": 1e-5}
KEY = jax.random.key(0)


def model_of(K, T, dtype="float64", **options):
    initial, A, ll = random_model(K, T, K, zeros=0.3, spread=3, **options)
    ll[0, : K // 2], ll[max(T // 2, 1) :][:1] = -np.inf, np.nan
    return tuple(x.astype(dtype) for x in (initial, A, ll))


def without_missing(model):
    initial, A, ll = model
    return initial, A, np.where(np.isnan(ll).all(-1, keepdims=True), 0, ll)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("K", "T"), [(17, 40), (32, 2), (33, 1), (100, 12)])
def test_against_the_textbook(K, T, dtype):
    with jax.enable_x64(dtype == "float64"):
        model = model_of(K, T, dtype)
        assert T == 1 or choose("sequential", T=T, B=1, D=K, dtype=dtype, family="hmm").plan.algebra == "staged vectors"
        wanted, tolerance = textbook(*model), TOLERANCE[dtype]
        posterior = hmm_smoother(*model, implementation="sequential")
        close(posterior.marginal_loglik, wanted.loglik, tolerance, "loglik")
        close(posterior.filtered_probs, wanted.filtered, tolerance, "filtered")
        close(posterior.predicted_probs, wanted.predicted, tolerance, "predicted")
        close(posterior.smoothed_probs, wanted.smoothed, tolerance, "smoothed")
        close(posterior.trans_probs, wanted.pairs.sum(0), tolerance, "pairs")
        _, messages = hmm_backward_filter(*model[1:], implementation="sequential")
        both = wanted.filtered * messages
        close(both / both.sum(1, keepdims=True), wanted.smoothed, tolerance, "two filters")
        mode = hmm_posterior_mode(*model, implementation="sequential")
        if dtype == "float64":
            np.testing.assert_array_equal(mode, viterbi(*without_missing(model)))


@pytest.mark.parametrize("K", [17, 40])
def test_samples_are_those_of_the_associative_scan(K):
    model = model_of(K, 30, "float32")
    one, other = (hmm_posterior_sample(KEY, *model, implementation=name)[1] for name in ("sequential", "associative"))
    np.testing.assert_array_equal(one, other)


def test_samples_have_the_posterior_s_frequencies():
    initial, A, ll = model_of(20, 6, "float32")
    keys = jax.random.split(KEY, 4_000)
    states = jax.vmap(lambda key: hmm_posterior_sample(key, initial, A, ll)[1])(keys)
    frequencies = (np.asarray(states)[..., None] == np.arange(20)).mean(0)
    np.testing.assert_allclose(frequencies, textbook(initial, A, ll).smoothed, atol=5 * np.sqrt(0.25 / 4_000))
    alone = hmm_posterior_sample(keys[7], initial, A, ll, implementation="sequential")[1]
    np.testing.assert_array_equal(alone, states[7])


def test_transitions_that_vary():
    with jax.enable_x64(True):
        model = model_of(20, 25, varying=True)
        wanted = textbook(*model)
        posterior = hmm_smoother(*model, implementation="sequential")
        close(posterior.smoothed_probs, wanted.smoothed, 1e-11)
        close(posterior.trans_probs, wanted.pairs, 1e-11)
        np.testing.assert_array_equal(hmm_posterior_mode(*model, implementation="sequential"), viterbi(*without_missing(model)))


def test_ties_and_impossible_data():
    K, T = 20, 5
    initial, A = np.full(K, 1 / K, "float32"), np.full((K, K), 1 / K, "float32")
    np.testing.assert_array_equal(hmm_posterior_mode(initial, A, np.zeros((T, K), "float32")), np.zeros(T))
    ll = np.full((T, K), -np.inf, "float32")
    assert hmm_marginal_loglik(initial, A, ll) == -np.inf
    np.testing.assert_array_equal(hmm_posterior_mode(initial, A, ll), -np.ones(T))
    np.testing.assert_array_equal(hmm_posterior_sample(KEY, initial, A, ll)[1], -np.ones(T))


def test_transformations():
    """jit, vmap, grad, and vmap of grad, of a batch and of its sequences."""
    initial, A, ll = model_of(18, 20, "float32")
    several = jnp.stack([ll, ll[::-1]])

    def loglik(A, ll):
        return hmm_marginal_loglik(initial, A, ll)

    one_by_one = [jax.value_and_grad(loglik)(jnp.asarray(A), x) for x in several]
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loglik), (None, 0)))(A, several)
    close(values, [v for v, _ in one_by_one], 1e-6)
    close(gradients, [g for _, g in one_by_one], 1e-5)
    close(hmm_marginal_loglik(initial, A, several), values, 1e-6)
    close(one_by_one[0][1] * A, textbook(initial, A, ll).pairs.sum(0), 1e-5)


UNIFORM = np.full(18, 1 / 18)
IN_TURN = {
    "smoother": lambda A, ll, **how: hmm_smoother(UNIFORM, A, ll, **how),
    "mode": lambda A, ll, **how: hmm_posterior_mode(UNIFORM, A, ll, **how),
    "sampler": lambda A, ll, **how: hmm_posterior_sample(KEY, UNIFORM, A, ll, **how),
    "gradient": lambda A, ll, **how: jax.grad(lambda A: hmm_marginal_loglik(UNIFORM, A, ll, **how))(A),
}


@pytest.mark.parametrize("name", IN_TURN)
@pytest.mark.parametrize("tables", [False, True])
def test_sequences_run_in_turn(name, tables):
    """With weights of their own, or from a table that they share: results are those of each alone."""
    with jax.enable_x64(True):
        models = [random_model(seed, 12, len(UNIFORM), zeros=0.1) for seed in range(3)]
        A, ll = (jnp.stack([model[part] for model in models]) for part in (1, 2))
        index = jnp.asarray(np.random.default_rng(0).integers(0, 3, (3, 11)))
        family = {"mode": "hmm_mode", "sampler": "hmm_sample"}.get(name, "hmm")
        assert choose(None, T=12, B=3, D=len(UNIFORM), dtype="float64", family=family, device="cpu").plan.in_turn

        def run(own, ll, **how):
            if tables:
                own = A[0] if name == "gradient" else Regimes(A, own)
            return IN_TURN[name](own, ll, **how)

        together = jax.jit(jax.vmap(run))(index if tables else A, ll)
        for k in range(3):
            alone = run(index[k] if tables else A[k], ll[k], implementation="associative")
            jax.tree.map(lambda a, b, k=k: close(a[k], b, 1e-9), together, alone)
        if name == "smoother":  # of one batch, and of one that is longer than sequences that run in turn
            batch = IN_TURN[name](A[0], jnp.concatenate([ll] * 4))
            jax.tree.map(lambda a, b: close(a[7], b, 1e-9), batch, IN_TURN[name](A[0], ll[1]))
