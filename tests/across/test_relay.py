"""Chunks that are swept before their entry states are known, and again as far as that matters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import lgssm_smoother
from fastscan.dispatch.choice import How
from fastscan.hmm import inference as hmm_inference
from fastscan.hmm.check import check_hmm
from fastscan.hmm.layout import scaled_series
from fastscan.kernels.hmm import passes as hmm_passes
from fastscan.kernels.hmm.filtering import HMM_FILTER
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import driver, seams
from fastscan.kernels.scan.recurrence import Seam
from oracles.hmm import random_model, viterbi
from oracles.hmm import textbook as hmm_textbook
from oracles.lgssm import TOLERANCE, cast, close, random_params, simulate, textbook

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
    plan = Plan(T - 1, CHUNKS, algebra="staged", relay=True, checked=True)
    for make in MODELS:
        model = make(T)
        initial, A, ll = model[0], model[1], known(model[2])
        wanted = hmm_textbook(initial, A, ll)
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
@pytest.mark.parametrize("reverse", [False, True])
def test_blocks_swept_again(dtype, reverse):
    """A model that forgets is swept again for some rows, one that does not for all of every chunk's."""
    T = 641
    plan = Plan(T - 1, CHUNKS, algebra="staged", relay=True, checked=True)
    looks = []

    def apart(entered, left):
        far = seams.weights_apart(entered, left)
        jax.debug.callback(lambda _: looks.append(1), far)
        return far

    def blocks(model):
        looks.clear()
        checked, _ = check_hmm(*(x.astype(dtype) for x in model))
        series, _ = scaled_series(checked, False, plan.steps)
        params, rows = hmm_passes._inputs(plan, series, None)[::2]
        recurrence = HMM_FILTER._replace(seam=Seam(apart, HMM_FILTER.seam.guess))
        state = jnp.full((K, 1, 1, 1), 1 / K, dtype) * (jnp.arange(K)[:, None, None, None] + 1)
        jax.block_until_ready(jax.jit(lambda: driver.run(plan, recurrence, params, state, rows, reverse=reverse))())
        jax.effects_barrier()
        return len(looks)

    whole = plan.length // plan.block
    assert whole == 10
    assert blocks(mixing(T)) <= whole + 7
    assert blocks(never(T)) == whole * CHUNKS + 1


def random_walk(T, dtype):
    """A level that wanders, a slope that hardly does, and a state that never changes: nothing is forgotten."""
    params = random_params(0, 3, 2)
    weights, noise = np.array([[1.0, 0.1, 0], [0, 1, 0], [0, 0, 1]]), np.diag([0.5, 1e-5, 0])
    dynamics = params.dynamics._replace(weights=weights, cov=noise, bias=None)
    params = params._replace(dynamics=dynamics)
    return cast(params, dtype), simulate(params, T, 1).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("T", [2, 3, 18, 97])
def test_linear_models(T, dtype):
    """Those that forget and those that do not, short and long: filters, smoothers, samples and scores."""
    forgets = random_params(1, 3, 2)
    tolerance = TOLERANCE[dtype]["moments"]
    for name, (params, y) in {
        "forgets": (cast(forgets, dtype), simulate(forgets, T, 1).astype(dtype)),
        "never": random_walk(T, dtype),
    }.items():
        wanted = textbook(params, y)
        for chunks in (2, 7):
            how = {"implementation": f"chunked:{chunks}"}
            given = lgssm_smoother(params, y, **how)
            close(given.marginal_loglik, wanted.loglik.sum(), tolerance, name)
            close(given.filtered_means, wanted.filtered_means, tolerance, name)
            close(given.filtered_covariances, wanted.filtered_covariances, tolerance, name)
            close(given.smoothed_means, wanted.smoothed_means, tolerance, name)
            close(given.smoothed_covariances, wanted.smoothed_covariances, tolerance, name)


def test_plans_leave_no_chunk_empty_and_pad_none_in_vain():
    for steps in (*range(1, 200), 999, 1000, 4096, 9999, 100_003):
        for chunks in (2, 3, 16, 32, 48):
            if chunks > steps:
                continue
            chunks = -(-steps // -(-steps // chunks))  # as dispatch chooses them
            plan, rows = Plan(steps, chunks, relay=True, checked=True), -(-steps // chunks)
            assert plan.length * (plan.chunks - 1) < steps <= plan.length * plan.chunks
            assert rows <= plan.length <= 1.15 * rows
            assert plan.padded == (rows * chunks > steps)


def test_derivatives():
    """Of loops without a fixed length."""
    initial, A, ll = mixing(298)
    how = Plan(297, CHUNKS, algebra="staged", relay=True, checked=True)

    def loglik(logits, plan):
        checked, _ = check_hmm(initial, jax.nn.softmax(logits), ll)
        return hmm_inference.filter_states(checked, How(plan), False).marginal_loglik[0]

    logits, plain = jnp.log(A + 0.01), how._replace(relay=False, checked=False)

    @functools.partial(jax.jit, static_argnums=1)
    def derivatives(logits, plan):
        return jax.grad(loglik)(logits, plan), jax.jacfwd(loglik)(logits, plan)

    wanted, _ = derivatives(logits, plain)
    for given in derivatives(logits, how):
        close(given, wanted, 1e-9)
