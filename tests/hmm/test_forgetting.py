"""Chunks swept ahead of their entry states, from where a hidden Markov model has forgotten them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.dispatch.choice import How
from fastscan.hmm import inference as hmm_inference
from fastscan.hmm.check import check_hmm
from fastscan.hmm.layout import log_series, scaled_series
from fastscan.kernels.hmm import passes as hmm_passes
from fastscan.kernels.hmm.filtering import HMM_FILTER
from fastscan.kernels.hmm.viterbi import VITERBI_PATH, ViterbiInputs
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import driver, forgetting
from fastscan.kernels.scan.recurrence import InChunks
from oracles.hmm import random_model, textbook, viterbi
from oracles.lgssm import close

K, CHUNKS = 3, 4


def mixing(T):
    return random_model(0, T, K, zeros=0.2, spread=2)


def never(T):
    """The state stays where it was, and the data hardly tell."""
    initial, _, ll = random_model(1, T, K, spread=0.01)
    return initial, np.eye(K), ll


def around(T):
    """A cycle without a choice."""
    initial, _, ll = random_model(2, T, K)
    return initial, np.roll(np.eye(K), 1, 1), ll


def absorbed(T):
    """Left to right, some of the data impossible, some missing."""
    initial, _, ll = random_model(3, T, K)
    ll[T // 2 :, 0], ll[5:40], ll[T - 3, 1] = -np.inf, np.nan, -np.inf
    return initial, np.array([[0.9, 0.1, 0], [0, 0.95, 0.05], [0, 0, 1]]), ll


MODELS = (mixing, never, around, absorbed)


def known(ll):
    return np.where(np.isnan(ll).all(-1, keepdims=True), 0, ll)


@pytest.mark.parametrize("T", [301, 270])
def test_nothing_changes(T):
    """Exact chunks, and one that is padding for the most part."""
    plan = Plan(T - 1, CHUNKS, algebra="staged", forgetting=True)
    for make in MODELS:
        model = make(T)
        initial, A, ll = model[0], model[1], known(model[2])
        wanted = textbook(initial, A, ll)
        checked, _ = check_hmm(model[0], model[1], model[2])
        posterior = hmm_inference.smooth_states(checked, How(plan), False, True)
        close(posterior.marginal_loglik[0], wanted.loglik, 1e-11, make.__name__)
        close(posterior.filtered_probs[0], wanted.filtered, 1e-11, make.__name__)
        close(posterior.predicted_probs[0], wanted.predicted, 1e-11, make.__name__)
        close(posterior.smoothed_probs[0], wanted.smoothed, 1e-11, make.__name__)
        close(posterior.trans_probs[0], wanted.pairs.sum(0), 1e-11, make.__name__)
        np.testing.assert_array_equal(
            hmm_inference.most_likely_states(checked, How(plan), False)[0], viterbi(initial, A, ll), make.__name__
        )
        uniform = jax.random.uniform(jax.random.key(0), (1, T, 1, 1), "float64")
        loglik, states = hmm_inference.sample_states(checked, uniform, How(plan), False)
        close(loglik[0], wanted.loglik, 1e-11, make.__name__)
        _, sequential = hmm_inference.sample_states(checked, uniform, How(Plan(T - 1, 1)), False)
        np.testing.assert_array_equal(states, sequential, make.__name__)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_looked_at(dtype):
    """A model that forgets is found to, by filter and Viterbi's algorithm; one that does not is not."""
    T = 301
    plan = Plan(T - 1, CHUNKS, algebra="staged", forgetting=True)
    by = driver.phases(plan)

    def rows_folded(model, decoding):
        checked, _ = check_hmm(model[0].astype(dtype), model[1].astype(dtype), model[2].astype(dtype))
        if decoding:
            series = log_series(checked, False)
            inputs = ViterbiInputs(series.A[0, 0, :, :, None, None]), ViterbiInputs(None, series.log_likelihood[:, 1:])
            recurrence, in_chunks = VITERBI_PATH.recurrence, VITERBI_PATH.in_chunks
        else:
            series, _ = scaled_series(checked, False)
            recurrence, in_chunks = HMM_FILTER, InChunks(HMM_FILTER)
            inputs = hmm_passes._inputs(series, None)[::2]
        params, rows = inputs
        state = by.matrices(jnp.full((K, 1, 1, 1), 1 / K, dtype))
        given = by.matrices(params), state, by.split(rows)
        return int(forgetting.look_ahead(by, recurrence, in_chunks, *given, reverse=decoding)[1].rows)

    for decoding in (False, True):
        assert rows_folded(mixing(T), decoding) <= 5 * forgetting.BLOCK
        assert rows_folded(never(T), decoding) == plan.length


def test_derivatives():
    """Of loops without a fixed length."""
    initial, A, ll = mixing(298)
    how = Plan(297, CHUNKS, algebra="staged", forgetting=True)

    def loglik(logits, plan):
        checked, _ = check_hmm(initial, jax.nn.softmax(logits), ll)
        return hmm_inference.filter_states(checked, How(plan), False).marginal_loglik[0]

    logits, plain = jnp.log(A + 0.01), how._replace(forgetting=False)

    @functools.partial(jax.jit, static_argnums=1)
    def derivatives(logits, plan):
        return jax.grad(loglik)(logits, plan), jax.jacfwd(loglik)(logits, plan)

    wanted, _ = derivatives(logits, plain)
    for given in derivatives(logits, how):
        close(given, wanted, 1e-9)
