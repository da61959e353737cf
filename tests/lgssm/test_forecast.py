"""Forecasts and predictive distributions: against dynamax, and one Gaussian over all states and emissions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dynamax.linear_gaussian_ssm import LinearGaussianSSM

from fastscan import lgssm_forecast, lgssm_posterior_predictive
from fastscan.learn import priors
from oracles.lgssm import initial, random_params, simulate, textbook


def test_as_dynamax():
    model = LinearGaussianSSM(2, 3)
    params = initial(model, jax.random.key(0))
    y = jnp.asarray(simulate(random_params(1, 2, 3), 9, 0))
    for given, wanted in (
        (lgssm_posterior_predictive(params, y), jax.jit(model.posterior_predictive)(params, y)),
        (lgssm_forecast(params, y, 4), jax.jit(functools.partial(model.forecast, num_forecast_timesteps=4))(params, y)),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), given, wanted)


def test_as_the_textbook_with_inputs_gaps_and_a_batch():
    """States to come are those of missing observations; emissions have the states' moments through H, D u, d and R."""
    T, N, D, m = 7, 3, 2, 2
    params = random_params(1, D, m)
    r = np.random.default_rng(0)
    weights = {"input_weights": r.normal(size=(D, 1))}, {"input_weights": r.normal(size=(m, 1)), "bias": r.normal(size=m)}
    params = params._replace(dynamics=params.dynamics._replace(**weights[0]), emissions=params.emissions._replace(**weights[1]))
    y, u = r.normal(size=(2, T, m)), r.normal(size=(2, T + N, 1))
    y[0, 3, 1] = np.nan
    given = lgssm_forecast(params, y, N, u[:, :T], u[:, T:])
    predictive = lgssm_posterior_predictive(params, y, u[:, :T])
    H, G, d, R = params.emissions.weights, params.emissions.input_weights, params.emissions.bias, params.emissions.cov
    for b in range(2):
        whole = textbook(params, np.concatenate([y[b], np.full((N, m), np.nan)]), u[b])
        mean, cov = whole.filtered_means[T:], whole.filtered_covariances[T:]
        wanted = mean, cov, mean @ H.T + u[b, T:] @ G.T + d, H @ cov @ H.T + R
        for a, w in zip(given, wanted, strict=True):
            np.testing.assert_allclose(a[b], w, rtol=1e-9, atol=1e-10)
        smoothed = textbook(params, y[b], u[b, :T])
        wanted = (
            smoothed.smoothed_means @ H.T + u[b, :T] @ G.T + d,
            np.sqrt(np.diagonal(H @ smoothed.smoothed_covariances @ H.T + R, axis1=1, axis2=2)),
        )
        for a, w in zip(predictive, wanted, strict=True):
            np.testing.assert_allclose(a[b], w, rtol=1e-9, atol=1e-10)


def test_bad_input():
    params, y = random_params(1, 2, 3), np.zeros((4, 3))
    with pytest.raises(ValueError, match="num_forecast_timesteps: 0 given"):
        lgssm_forecast(params, y, 0)
    with pytest.raises(ValueError, match=r"shapes \(3, 1\) and \(3, 1\) given, wanted \(..., 4, U\) and \(..., 2, U\)"):
        lgssm_forecast(params, y, 2, np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"cov: shape \(2, 3, 3\) given, wanted \(3, 3\)"):
        priors.inverse_wishart(np.ones((2, 3, 3)), 4.0, np.eye(3))
    with pytest.raises(ValueError, match="wanted both or none"):
        lgssm_forecast(params, y, 2, forecast_inputs=np.zeros((2, 1)))


def test_priors():
    """Against scipy and dynamax."""
    from dynamax.utils.distributions import MatrixNormalInverseWishart, NormalInverseWishart
    from scipy import stats

    r = np.random.default_rng(0)
    cov, scale, precision = (np.cov(r.normal(size=(n, 20))) for n in (3, 3, 2))
    weights, loc = r.normal(size=(2, 3, 2))
    np.testing.assert_allclose(priors.inverse_wishart(cov, 4.5, scale), stats.invwishart(4.5, scale).logpdf(cov))
    wanted = stats.matrix_normal(loc, cov, np.linalg.inv(precision)).logpdf(weights)
    np.testing.assert_allclose(priors.matrix_normal(weights, loc, cov, precision), wanted)

    @jax.jit
    def of_dynamax():
        normal = NormalInverseWishart(loc[:, 0], 2.0, 4.5, scale)
        matrix_normal = MatrixNormalInverseWishart(loc, precision, 4.5, scale)
        return normal.log_prob((cov, weights[:, 0])), matrix_normal.log_prob((cov, weights))

    given = (
        priors.normal_inverse_wishart(weights[:, 0], cov, loc[:, 0], 2.0, 4.5, scale),
        priors.matrix_normal_inverse_wishart(weights, cov, loc, precision, 4.5, scale),
    )
    np.testing.assert_allclose(given, of_dynamax(), rtol=1e-6)
    variances, probs = r.uniform(0.5, 2, size=3), r.dirichlet(np.ones(3), size=2)
    np.testing.assert_allclose(
        priors.inverse_gamma(variances, 2.5, 0.7), stats.invgamma(2.5, scale=0.7).logpdf(variances).sum()
    )
    wanted = sum(stats.dirichlet(np.full(3, 1.7)).logpdf(p) for p in probs)
    np.testing.assert_allclose(priors.dirichlet(probs, 1.7), wanted)
