"""Posterior and joint samples: their moments, and that every implementation draws the same ones."""

import jax
import numpy as np
import pytest

from fastscan import lgssm_joint_sample, lgssm_posterior_sample
from fastscan.dispatch.choice import XLA_IMPLEMENTATIONS
from oracles.lgssm import close, random_params, simulate, textbook, tracking_params

DRAWS = 100_000


def moments(draws):
    """Means, covariances and second cross moments, with the standard error of each, of draws (N, T, D)."""
    n = len(draws)
    outer = np.einsum("nti,ntj->ntij", draws, draws)
    cross = np.einsum("nti,ntj->ntij", draws[:, :-1], draws[:, 1:])
    return [(x.mean(0), x.std(0) / np.sqrt(n)) for x in (draws, outer, cross)]


@pytest.mark.parametrize("implementation", ["sequential", "chunked"])
def test_posterior_samples_have_the_smoothers_moments(implementation):
    params = random_params(5, 2, 1)
    y = simulate(params, 6, 0)
    y[3] = np.nan
    keys = jax.random.split(jax.random.key(0), DRAWS)
    draws = jax.jit(jax.vmap(lambda k: lgssm_posterior_sample(k, params, y, implementation=implementation)))(keys)
    reference = textbook(params, y)
    mean = reference.smoothed_means
    second = reference.smoothed_covariances + np.einsum("ti,tj->tij", mean, mean)
    for (given, se), wanted in zip(moments(np.asarray(draws)), (mean, second, reference.cross), strict=True):
        assert np.max(np.abs(given - wanted) / se) < 5


def test_joint_samples_have_the_models_moments():
    params = random_params(6, 2, 2)
    u = np.random.default_rng(0).normal(size=(4, 1))
    weights = np.array([[1.0], [-0.5]])
    params = params._replace(
        dynamics=params.dynamics._replace(input_weights=weights), emissions=params.emissions._replace(input_weights=weights)
    )
    keys = jax.random.split(jax.random.key(1), DRAWS)
    states, emissions = jax.jit(jax.vmap(lambda k: lgssm_joint_sample(params, k, 4, u)))(keys)
    mean, cov = params.initial.mean, params.initial.cov
    p = params
    for t in range(4):
        if t:
            mean = p.dynamics.weights @ mean + p.dynamics.bias + weights @ u[t]
            cov = p.dynamics.weights @ cov @ p.dynamics.weights.T + p.dynamics.cov
        H = p.emissions.weights
        pairs = (
            (states[:, t], mean, cov),
            (emissions[:, t], H @ mean + p.emissions.bias + weights @ u[t], H @ cov @ H.T + p.emissions.cov),
        )
        for draws, m, c in pairs:
            draws = np.asarray(draws)
            assert np.max(np.abs(draws.mean(0) - m) / np.sqrt(np.diag(c) / DRAWS)) < 5
            np.testing.assert_allclose(np.cov(draws.T), c, atol=0.03 * np.max(c))


@pytest.mark.parametrize("T", [1, 2, 9])
def test_same_key_same_sample_in_every_implementation(T):
    params = random_params(5, 2, 2)
    y = simulate(params, T, 0)
    names = XLA_IMPLEMENTATIONS if T < 3 else ("sequential", "chunked")
    draws = [lgssm_posterior_sample(jax.random.key(0), params, y, implementation=i) for i in names]
    joint = [lgssm_joint_sample(params, jax.random.key(0), T, implementation=i) for i in names]
    for other, pair in zip(draws[1:], joint[1:], strict=True):
        close(other, draws[0], 1e-10)
        close(pair[0], joint[0][0], 1e-10)
        close(pair[1], joint[0][1], 1e-10)
    assert draws[0].shape == (T, 2)
    assert np.max(np.abs(lgssm_posterior_sample(jax.random.key(1), params, y) - draws[0])) > 1e-3


def test_same_sample_in_float32_on_a_long_series():
    params = tracking_params("float32")
    y = simulate(tracking_params(), 2_000, 0).astype("float32")
    a, b = (lgssm_posterior_sample(jax.random.key(0), params, y, implementation=i) for i in ("sequential", "chunked"))
    close(a, b, 1e-5)


def test_a_batch_of_samples_and_jitter():
    params = random_params(5, 2, 2)
    y = np.stack([simulate(params, 5, s) for s in range(3)])
    draws = lgssm_posterior_sample(jax.random.key(0), params, y)
    assert draws.shape == (3, 5, 2)
    still = params._replace(dynamics=params.dynamics._replace(cov=np.zeros((2, 2)), weights=np.eye(2)))
    plain, jittered = (lgssm_posterior_sample(jax.random.key(0), still, y[0], None, j) for j in (0.0, 1.0))
    bias = params.dynamics.bias
    np.testing.assert_allclose(plain[1:] - plain[:-1], np.broadcast_to(bias, (4, 2)), atol=1e-7)
    assert np.min(np.abs(jittered[1:] - jittered[:-1] - bias)) > 1e-3


def test_time_varying_covariances_of_joint_samples():
    """A transition with no noise is deterministic; entry 0 of the dynamics is not read."""
    params = random_params(5, 2, 2)
    Q = np.stack([np.full((2, 2), np.nan), np.zeros((2, 2)), np.eye(2)])
    params = params._replace(dynamics=params.dynamics._replace(cov=Q), emissions=params.emissions._replace(cov=np.zeros(2)))
    z, y = lgssm_joint_sample(params, jax.random.key(0), 3)
    F, b = params.dynamics.weights, params.dynamics.bias
    np.testing.assert_allclose(z[1], F @ z[0] + b, rtol=1e-12)
    assert np.max(np.abs(z[2] - F @ z[1] - b)) > 1e-2
    np.testing.assert_allclose(y, z @ params.emissions.weights.T + params.emissions.bias, rtol=1e-12)
