"""Covariances with nothing in some direction, or a rounding below nothing: what is known already says nothing new."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    ParamsLGSSM,
    ParamsLGSSMDynamics,
    ParamsLGSSMEmissions,
    ParamsLGSSMInitial,
    lgssm_marginal_loglik,
    lgssm_smoother,
    make_lgssm_params,
)
from oracles.lgssm import cast, close, dense, simulate, textbook

T = 12
F, Q = np.array([[1, 0.3], [0, 0.9]]), np.array([[1, 0.2], [0.2, 0.5]])
H = np.array([[0.3, 0.7]])
WAYS = ["sequential", "chunked:3", "associative"]
DTYPES = ["float32", "float64"]


def exact(H, P0=None, Q=Q, mean=(0.5, -1.0)):
    """A model whose observations have no noise."""
    P0 = np.eye(2) if P0 is None else P0
    return jax.tree.map(np.asarray, make_lgssm_params(np.array(mean), P0, F, Q, H, np.zeros((len(H), len(H)))))


def observed(H, seed=0, P0=None):
    return simulate(exact(H, P0), T, seed)


def alone(params, y, rows):
    """The log-likelihood of some emissions' rows, of the joint Gaussian."""
    emissions = ParamsLGSSMEmissions(params.emissions.weights[rows], None, None, np.zeros((len(rows), len(rows))))
    return dense(params._replace(emissions=emissions), y[:, rows])[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("implementation", WAYS)
def test_an_observation_of_what_is_known_says_nothing(implementation, dtype):
    """A sensor twice, in other units, or the sum of two others': the log-likelihood is that of the model without it."""
    two = np.array([[0.3, 0.7], [1.0, -0.2]])
    for sensors, rows in ((np.r_[H, H], [0]), (np.r_[H, 1000 * H], [0]), (np.r_[two, two[:1] + two[1:]], [0, 1])):
        params = exact(sensors)
        y = observed(sensors)
        wanted = alone(params, y, rows)
        run = jax.jit(lambda p, y: lgssm_marginal_loglik(p, y, implementation=implementation, missing=False))
        given = run(cast(params, dtype), y.astype(dtype))
        close(given, wanted, 2e-5 if dtype == "float32" else 1e-10)
        assert run(cast(params, dtype), (y + np.eye(len(sensors))[-1]).astype(dtype)) == -np.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_start_that_is_known_and_observed(dtype):
    """P0 = 0 and R = 0: the first emission is known before, and impossible if it is another one."""
    params = exact(H, np.zeros((2, 2)))
    y = observed(H, P0=np.zeros((2, 2)))
    rest = params._replace(
        initial=params.initial._replace(mean=F @ params.initial.mean, cov=Q),
    )
    wanted = dense(rest, y[1:])[0]
    posterior = lgssm_smoother(cast(params, dtype), y.astype(dtype))
    close(posterior.marginal_loglik, wanted, 2e-5 if dtype == "float32" else 1e-10)
    close(posterior.smoothed_means[0], params.initial.mean, 1e-6)
    assert lgssm_marginal_loglik(cast(params, dtype), (y + np.eye(T)[:1].T).astype(dtype)) == -np.inf


def test_gradients_are_those_of_the_model_without_it():
    """With respect to all that the observation does not name."""
    params, y = exact(np.r_[H, H]), observed(np.r_[H, H])
    one = exact(H)

    def gradient(params, y):
        found = jax.jit(jax.grad(lambda p: lgssm_marginal_loglik(p, y, missing=False)))(jax.tree.map(jnp.asarray, params))
        return found.initial, found.dynamics

    for given, wanted in zip(jax.tree.leaves(gradient(params, y)), jax.tree.leaves(gradient(one, y[:, :1])), strict=True):
        close(given, wanted, 1e-9)


def test_accurate_observations_of_the_same_are_not_passed_over():
    """As long as there is noise, it is known how much."""
    params = exact(np.r_[H, H])
    params = params._replace(emissions=params.emissions._replace(cov=np.diag([1e-10, 3e-10])))
    y = simulate(params, T, 0)
    close(lgssm_marginal_loglik(params, y), dense(params, y)[0], 1e-6)


def matern(times, dtype, lengthscale=1.0):
    """Matern 3/2, whose Q is found by subtraction in its own dtype, as Gaussian processes' libraries do."""
    rate = float(np.sqrt(3) / lengthscale)
    h = np.diff(times, prepend=times[0]).astype(dtype)[:, None, None]
    e = np.exp(-rate * h)
    A = e * (np.eye(2, dtype=dtype) + h * np.array([[rate, 1], [-(rate**2), -rate]], dtype))
    P = np.diag([1, rate**2]).astype(dtype)
    cov = P - A @ P @ np.swapaxes(A, 1, 2)
    cov = (cov + np.swapaxes(cov, 1, 2)) / 2
    one = np.ones((1, 1), dtype)
    return ParamsLGSSM(
        ParamsLGSSMInitial(np.zeros(2, dtype), P),
        ParamsLGSSMDynamics(A, None, None, cov),
        ParamsLGSSMEmissions(np.array([[1, 0]], dtype), None, None, one / 100),
    )


@pytest.mark.parametrize("implementation", ["sequential", "chunked:4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_covariance_by_subtraction_is_a_covariance(dtype, implementation):
    """Some are a rounding below zero, of what they were subtracted from; and the results are the dense process's."""
    r = np.random.default_rng(0)
    times = np.cumsum(np.exp(r.uniform(np.log(1e-3), 0, 120)))
    y = np.sin(times) + 0.1 * r.normal(size=120)
    params = matern(times, dtype)
    assert dtype == "float64" or np.linalg.eigvalsh(params.dynamics.cov.astype(float)).min() < 0
    d = np.sqrt(3) * np.abs(times[:, None] - times)
    K = (1 + d) * np.exp(-d) + 0.01 * np.eye(120)
    wanted = -0.5 * (np.linalg.slogdet(2 * np.pi * K)[1] + y @ np.linalg.solve(K, y))
    posterior = lgssm_smoother(params, y[:, None].astype(dtype), implementation=implementation)
    close(posterior.marginal_loglik, wanted, 1e-5 if dtype == "float32" else 1e-10)
    mean = (K - 0.01 * np.eye(120)) @ np.linalg.solve(K, y)
    close(posterior.smoothed_means[:, 0], mean, 1e-4 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("implementation", ["sequential", "chunked:3", "pallas_interpret"])
def test_a_covariance_that_is_none_gives_nan_in_every_implementation(implementation):
    params = exact(H)
    emissions = params.emissions._replace(cov=np.eye(1))
    y = simulate(params._replace(emissions=emissions), T, 0)
    run = jax.jit(lambda p: lgssm_marginal_loglik(p, y, implementation=implementation, missing=False))
    for cov, wrong in (
        (np.diag([1.0, -1e-3]), True),
        (np.array([[1, 1.01], [1.01, 1.0]]), True),
        (np.diag([1.0, -1e-15]), False),
    ):
        given = run(params._replace(emissions=emissions, dynamics=params.dynamics._replace(cov=cov)))
        assert bool(jnp.isnan(given)) == wrong


@pytest.mark.parametrize("units", [1.0, 1e-6, 1e6])
def test_the_scale_that_covariances_are_judged_by_has_no_units(units):
    times = np.arange(1, 8) * 1e-3
    params = matern(times, "float32")
    scaled = params._replace(
        initial=params.initial._replace(cov=params.initial.cov * np.float32(units)),
        dynamics=params.dynamics._replace(cov=params.dynamics.cov * np.float32(units)),
        emissions=params.emissions._replace(cov=params.emissions.cov * np.float32(units)),
    )
    y = np.sin(times)[:, None].astype("float32") * np.float32(np.sqrt(units))
    given = jax.jit(lambda p, y: lgssm_smoother(p, y, implementation="sequential", missing=False))(scaled, y)
    wanted = textbook(scaled, y)
    close(given.smoothed_means, wanted.smoothed_means, 1e-3)
