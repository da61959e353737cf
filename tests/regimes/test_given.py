"""Regimes that are none, and parameters that can't be regimes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import Regimes, lgssm_filter, lgssm_forecast, lgssm_marginal_loglik, lgssm_smoother
from oracles.lgssm import close, random_params

T, D, M, R = 7, 2, 3, 2
PARAMS = random_params(0, D, M)
Y = np.random.default_rng(0).normal(size=(T, M))
INDEX = np.arange(T) % R
F = np.stack([PARAMS.dynamics.weights] * R)


def dynamics(x, name="weights"):
    return PARAMS._replace(dynamics=PARAMS.dynamics._replace(**{name: x}))


def emissions(**fields):
    return PARAMS._replace(emissions=PARAMS.emissions._replace(**fields))


@pytest.mark.parametrize(
    "given, error, message",
    [
        (Regimes(F, np.where(INDEX, 2, 0)), ValueError, r"dynamics.weights.index: 2 given, wanted numbers from 0 to 1"),
        (Regimes(F, -INDEX), ValueError, r"dynamics.weights.index: -1 given, wanted numbers from 0 to 1"),
        (Regimes(F, 1.0 * INDEX), TypeError, r"dynamics.weights.index: float64 given, wanted integers"),
        (Regimes(F, INDEX > 0), TypeError, r"dynamics.weights.index: bool given, wanted integers"),
        (Regimes(F[:0], INDEX), ValueError, r"dynamics.weights.values: shape \(0, 2, 2\) given, wanted at least one regime"),
        (Regimes(F, INDEX[:5]), ValueError, r"dynamics.weights.index: shape \(5,\) given, wanted \(7,\)"),
        (Regimes(F, INDEX[None]), ValueError, r"dynamics.weights.index: shape \(1, 7\) given, wanted \(7,\)"),
        (Regimes(F, np.int32(1)), ValueError, r"dynamics.weights.index: shape \(\) given, wanted \(7,\)"),
        (Regimes(F[0], INDEX), ValueError, r"dynamics.weights.values: shape \(2, 2\) given, wanted \(2, 2, 2\)"),
        (Regimes(F, None), TypeError, r"dynamics.weights.index: None given, wanted an array"),
        (Regimes(None, INDEX), TypeError, r"dynamics.weights.values: None given, wanted an array"),
    ],
)
def test_regimes_that_are_none(given, error, message):
    with pytest.raises(error, match=message):
        lgssm_filter(dynamics(given), Y)


def test_parameters_that_are_no_regimes():
    with pytest.raises(TypeError, match=r"initial.cov: fastscan.Regimes given, wanted an array"):
        lgssm_filter(PARAMS._replace(initial=PARAMS.initial._replace(cov=Regimes(F, INDEX))), Y)
    with pytest.raises(ValueError, match=r"emissions.cov.values: .* given, wanted \(2, 3, 3\) or \(2, 3\)"):
        lgssm_filter(emissions(cov=Regimes(F, INDEX)), Y)
    with pytest.raises(TypeError, match=r"emissions.cov.index: None given"):
        lgssm_filter(emissions(cov=Regimes(np.ones((R, M)), None)), Y)
    with pytest.raises(ValueError, match=r"dynamics.weights.index: shape \(7,\) given, wanted \(9,\)"):
        lgssm_forecast(dynamics(Regimes(F, INDEX)), Y, 2)
    H = np.stack([PARAMS.emissions.weights] * R)
    with pytest.raises(ValueError, match=r"emissions.cov.index: 1 given, wanted numbers from 0 to 0"):
        lgssm_filter(emissions(weights=Regimes(H, INDEX), cov=Regimes(np.eye(M)[None], INDEX)), Y)


def test_learning_says_what_to_do():
    learn = pytest.importorskip("fastscan.learn")
    for fit in (learn.fit_em, learn.fit_sgd):
        with pytest.raises(TypeError, match=r"dynamics.weights: fastscan.Regimes given.*gradient of lgssm_marginal_loglik"):
            fit(learn.LGSSM, dynamics(Regimes(F, INDEX)), Y, progress=False)


@pytest.mark.parametrize("wrong", [-1, R])
def test_numbers_that_nobody_sees_make_results_nan(wrong):
    """As they do by `jnp.take`: from that step on, or in what is smoothed everywhere."""
    filtered = jax.jit(lambda index: lgssm_filter(dynamics(Regimes(F, index)), Y))(jnp.asarray(INDEX).at[4].set(wrong))
    assert jnp.isnan(filtered.marginal_loglik)
    np.testing.assert_array_equal(jnp.isnan(filtered.filtered_covariances).any((1, 2)), np.arange(T) >= 4)
    index = jnp.asarray(INDEX).at[2].set(wrong)
    loglik = jax.jit(lambda index: lgssm_marginal_loglik(emissions(cov=Regimes(np.ones((R, M)), index)), Y))(index)
    assert jnp.isnan(loglik)


def test_entry_0_of_the_dynamics_is_not_read():
    wanted = lgssm_smoother(PARAMS, Y)
    found = lgssm_smoother(dynamics(Regimes(F, np.r_[9, INDEX[1:]])), Y)
    jax.tree.map(lambda a, b: close(a, b, 1e-9), found, wanted)


def test_an_indefinite_regime_makes_results_nan():
    Q = np.stack([PARAMS.dynamics.cov, np.diag([1.0, -1.0])])
    used, unused = (lgssm_marginal_loglik(dynamics(Regimes(Q, index), "cov"), Y) for index in (INDEX, 0 * INDEX))
    assert jnp.isnan(used)
    assert jnp.isfinite(unused)
