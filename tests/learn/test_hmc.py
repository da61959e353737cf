"""Hamiltonian Monte Carlo: the chain that dynamax's likelihood makes, and posteriors that are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dynamax.linear_gaussian_ssm import LinearGaussianSSM, lgssm_filter

from fastscan import lgssm_forecast, lgssm_marginal_loglik, lgssm_posterior_predictive
from fastscan.learn import LGSSM, convergence, fit_hmc, priors
from oracles.lgssm import cast, initial, random_params, simulate

T, D, M = 15, 1, 2
PARAMS = jax.tree.map(jnp.asarray, cast(random_params(1, D, M), "float64"))
Y = simulate(random_params(1, D, M), T, 0)
hmc = functools.partial(fit_hmc, progress=False)
judged = jax.jit(convergence)


def log_prior(params):
    normal = sum(-jnp.sum(x**2) / 2 for x in (params.initial.mean, *params.dynamics[:2], *params.emissions[:2]))
    covs = params.initial.cov, params.dynamics.cov, params.emissions.cov
    return normal + sum(priors.inverse_wishart(S, len(S) + 2.0, jnp.eye(len(S))) for S in covs)


def test_the_same_chain_as_on_the_likelihood_of_dynamax():
    """With the same key, but for the 1e-9 that dynamax adds to variances; and what the two say of the data.

    That, the functions of parameters that data identify, agrees within Monte Carlo error.
    """

    def log_likelihoods(params, emissions, inputs, missing):
        del inputs, missing
        return jax.vmap(lambda y: lgssm_filter(params, y).marginal_loglik)(emissions)

    params = initial(LinearGaussianSSM(D, M), jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    options = {"key": jax.random.key(1), "log_prior": log_prior, "num_samples": 250, "warmup_steps": 20}
    ours = hmc(LGSSM, params, Y, **options)
    theirs = hmc(LGSSM._replace(log_likelihoods=log_likelihoods), params, Y, **options)
    np.testing.assert_allclose(ours.log_probs[0, :5], theirs.log_probs[0, :5], rtol=1e-2)

    def identifiable(params):
        smoothed, deviations = lgssm_posterior_predictive(params, Y)
        *_, forecast, spread = lgssm_forecast(params, Y, 2)
        band = jnp.sqrt(jnp.diagonal(spread, axis1=-2, axis2=-1))
        numbers = lgssm_marginal_loglik(params, Y)[None], smoothed.ravel(), deviations.ravel(), forecast.ravel(), band.ravel()
        return jnp.concatenate(numbers)

    identify = jax.jit(jax.vmap(jax.vmap(identifiable)))
    functions = [identify(draws.params) for draws in (ours, theirs)]
    error = np.hypot(*(f.std((0, 1)) / np.sqrt(np.maximum(judged(f).ess, 1)) for f in functions))
    apart = functions[0].mean((0, 1)) - functions[1].mean((0, 1))
    assert np.all(np.abs(apart) < 5 * error + 1e-6)
    ratio = functions[0].std((0, 1)) / functions[1].std((0, 1))
    assert np.all((ratio > 0.5) & (ratio < 2))


def test_a_posterior_that_is_gaussian():
    """A flat prior on the emissions' bias alone: the log-likelihood is quadratic in it."""

    def loglik(bias):
        return lgssm_marginal_loglik(PARAMS._replace(emissions=PARAMS.emissions._replace(bias=bias)), Y)

    start = PARAMS.emissions.bias
    slope, curvature = jax.jit(lambda bias: (jax.grad(loglik)(bias), jax.hessian(loglik)(bias)))(start)
    cov = -np.linalg.inv(curvature)
    mean = start + cov @ slope
    frozen = ["initial", "dynamics", "emissions.weights", "emissions.cov"]
    options = {"num_samples": 600, "num_chains": 4, "warmup_steps": 200, "spread": 0.5}
    draws = hmc(LGSSM, PARAMS, Y, key=jax.random.key(0), frozen=frozen, **options)
    assert draws.params.emissions.bias.dtype == np.float64
    bias = np.asarray(draws.params.emissions.bias)
    assert bias.shape == (4, 600, M)
    np.testing.assert_array_equal(draws.params.dynamics.cov[2, 5], PARAMS.dynamics.cov)
    rhat, ess = judged(bias)
    assert np.all(rhat < 1.05)
    assert np.all(ess > 100)
    assert np.all(np.abs(bias.mean((0, 1)) - mean) < 5 * np.sqrt(np.diag(cov) / ess))
    np.testing.assert_allclose(np.cov(bias.reshape(-1, M).T), cov, rtol=0.3, atol=0.1 * np.diag(cov).max())
    np.testing.assert_allclose(draws.log_probs[1, 7], loglik(draws.params.emissions.bias[1, 7]), rtol=1e-9)
    assert np.all(draws.divergences == 0)
    assert np.all(draws.acceptance_rates > 0.5)


def test_single_precision():
    """Under x64, too, where blackjax moves chains in float64."""
    params = cast(PARAMS, "float32")
    draws = hmc(LGSSM, params, Y.astype("float32"), key=jax.random.key(0), num_samples=2, warmup_steps=2)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(draws.params))


def test_bad_input():
    with pytest.raises(ValueError, match=r"log_prior: shape \(1,\) returned"):
        hmc(LGSSM, PARAMS, Y, key=jax.random.key(0), log_prior=lambda p: p.initial.mean)
    with pytest.raises(ValueError, match=r"chains: shape \(3,\) given"):
        convergence(np.zeros(3))
    with pytest.raises(ValueError, match="num_chains: 0 given"):
        hmc(LGSSM, PARAMS, Y, key=jax.random.key(0), num_chains=0)
    with pytest.raises(ValueError, match="leaves nothing to sample"):
        hmc(LGSSM, PARAMS, Y, key=jax.random.key(0), frozen=["initial", "dynamics", "emissions"])
