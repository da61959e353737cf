"""Whether chains end up where they should: moments, tails, whole distributions, balance and rates, within Monte Carlo error.

Chains are independent, so they tell the error of their mean themselves.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fastscan.mcmc import rw_metropolis
from oracles.mcmc import LOC, SCALE, WEIGHTS, correlated, mixture, mixture_cdf

SEEDS = range(5)
SURE = 4.5  # standard errors: once in 150,000 checks


def within(estimates, wanted, sure=SURE):
    """Independent estimates, one a chain (chains, ...)."""
    estimates = np.asarray(estimates, "float64")
    error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
    np.testing.assert_array_less(np.abs(estimates.mean(0) - wanted), sure * error)


@functools.cache
def mixture_samples(seed):
    """(samples, chains), from exact draws of the target, so that there is no beginning to forget."""
    r = np.random.default_rng(seed)
    part = r.choice(4, size=2_000, p=WEIGHTS)
    start = r.normal(LOC[part], SCALE[part]).astype("float32")[None]
    run = rw_metropolis(jax.random.key(seed), mixture, start, 400, step_size=4.0, thin=3)
    return np.asarray(run.samples[:, 0], "float64")


@pytest.mark.parametrize("seed", SEEDS)
def test_mixture(seed):
    x = mixture_samples(seed)
    mean, second = WEIGHTS @ LOC, WEIGHTS @ (SCALE**2 + LOC**2)
    within(x.mean(0), mean)
    within((x**2).mean(0), second)
    for edge in (-6.0, -3.0, 6.0, 12.0):
        within((x < edge).mean(0), mixture_cdf(edge))
    independent = x[-1]  # of every chain its last one
    assert stats.kstest(independent, mixture_cdf).pvalue > 1e-5
    distance = np.abs(mixture_cdf(np.sort(x.ravel())) - np.linspace(0, 1, x.size)).max()
    assert distance < 3 / np.sqrt(len(independent))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_correlated_gaussian(seed):
    log_density, cov = correlated(10)
    factor = np.linalg.cholesky(cov)
    start = (factor @ np.random.default_rng(seed).normal(size=(10, 1_000))).astype("float32")
    run = rw_metropolis(jax.random.key(seed), log_density, start, 300, step_size=0.75 * factor.astype("float32"), thin=5)
    x = np.asarray(run.samples, "float64")
    within(x.mean(0).T, np.zeros(10))
    within(np.einsum("nic,njc->cij", x, x) / len(x), cov)
    whitened = np.linalg.solve(factor, x[-1])
    assert stats.kstest((whitened**2).sum(0), "chi2", args=(10,)).pvalue > 1e-5
    within((np.linalg.solve(factor, x.transpose(1, 0, 2).reshape(10, -1))**2).sum(0).reshape(x.shape[::2]).T > 16,
           stats.chi2.sf(16, 10))  # fmt: skip


def test_detailed_balance_on_a_few_states():
    """A density that is constant on four intervals: of moves between any two, as many there as back."""
    weights = np.array([0.1, 0.4, 0.2, 0.3])

    def steps(x):
        inside = (x[0] >= 0) & (x[0] < 4)
        levels = jnp.where(x[0] < 1, np.log(weights[0]), jnp.where(x[0] < 2, np.log(weights[1]),
                           jnp.where(x[0] < 3, np.log(weights[2]), np.log(weights[3]))))  # fmt: skip
        return jnp.where(inside, levels, -jnp.inf)

    r = np.random.default_rng(0)
    chains = 1_000
    start = (r.choice(4, size=(1, chains), p=weights) + r.uniform(size=(1, chains))).astype("float32")
    run = rw_metropolis(jax.random.key(1), steps, start, 500, step_size=1.5)
    states = np.floor(np.concatenate([start[None], np.asarray(run.samples)])[:, 0]).astype(int)
    for i in range(4):
        within((states == i).mean(0), weights[i])
        for j in range(i):
            there, back = (((states[:-1] == a) & (states[1:] == b)).mean(0) for a, b in ((i, j), (j, i)))
            within(there - back, 0)
            assert there.mean() > 0.001


@pytest.mark.parametrize("size", [0.5, 2.4, 10.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_acceptance_rate_of_a_gaussian(size, dtype):
    """In one dimension it is 2/pi arctan(2/s) for steps of s standard deviations."""
    start = np.random.default_rng(2).normal(size=(1, 1_000)).astype(dtype)
    run = rw_metropolis(jax.random.key(3), lambda x: -0.5 * x[0] ** 2, start, 500, step_size=size, keep="last")
    within(run.acceptance_rate, 2 / np.pi * np.arctan(2 / size))
