"""Models that turn out linear: they are found, and run by `fastscan.lgssm`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import lgssm_filter, lgssm_posterior_sample, lgssm_smoother, make_lgssm_params
from fastscan.nonlinear import (
    ParamsNLGSSM,
    extended_kalman_filter,
    extended_kalman_posterior_sample,
    extended_kalman_smoother,
    unscented_kalman_smoother,
)
from fastscan.nonlinear.check import checked
from fastscan.nonlinear.layout import is_linear
from oracles.nonlinear_model import close, covariances

T, D, m = 33, 3, 2
RNG = np.random.default_rng(3)
F, H, B = 0.4 * RNG.normal(size=(D, D)), RNG.normal(size=(m, D)), RNG.normal(size=(D, 2))
b, d = RNG.normal(size=D), RNG.normal(size=m)
MEAN, P, Q, R = RNG.normal(size=D), covariances(RNG, D), covariances(RNG, D), covariances(RNG, m)
YS, US = RNG.normal(size=(T, m)), RNG.normal(size=(T, 2))
YS[4], YS[7, 1] = np.nan, np.nan

PLAIN = ParamsNLGSSM(MEAN, P, lambda z: F @ z + b, Q, lambda z: H @ z + d, R)
LINEAR = make_lgssm_params(MEAN, P, F, Q, H, R, b, None, d)


@pytest.mark.parametrize("implementation", [None, "sequential", "chunked", "associative", "pallas_interpret"])
def test_the_same_numbers(implementation):
    posterior = extended_kalman_smoother(PLAIN, YS, implementation=implementation)
    for x, wanted in zip(posterior, lgssm_smoother(LINEAR, YS, implementation=implementation), strict=True):
        np.testing.assert_array_equal(x, wanted)


def test_filter_sample_and_sigma_points():
    wanted = lgssm_smoother(LINEAR, YS)
    for x, y in zip(unscented_kalman_smoother(PLAIN, YS), wanted, strict=True):
        np.testing.assert_array_equal(x, y)
    filtered = extended_kalman_filter(PLAIN, YS)
    close(filtered.filtered_means, lgssm_filter(LINEAR, YS).filtered_means)
    close(filtered.predicted_means, filtered.filtered_means @ F.T + b)
    close(filtered.predicted_covariances, F @ filtered.filtered_covariances @ F.T + Q)
    key = jax.random.key(0)
    close(extended_kalman_posterior_sample(key, PLAIN, YS), lgssm_posterior_sample(key, LINEAR, YS))


def test_inputs_and_time():
    """Inputs make biases vary, or matrices; covariances may vary, too."""
    varying = np.broadcast_to(Q, (T, D, D)).copy()
    varying[0] = np.nan
    params = PLAIN._replace(
        dynamics_function=lambda z, u: F @ z + B @ u, dynamics_covariance=varying, emission_function=lambda z, u: u[0] * (H @ z)
    )
    linear = make_lgssm_params(MEAN, P, F, varying, US[:, :1, None] * H, R, None, B)
    filtered = extended_kalman_filter(params, YS, US)
    close(filtered.predicted_means, filtered.filtered_means[:-1] @ F.T + US[1:] @ B.T)
    for x, wanted in zip(extended_kalman_smoother(params, YS, inputs=US), lgssm_smoother(linear, YS, US), strict=True):
        close(x, wanted)
    batch = np.stack([YS, 2 * YS])
    own = extended_kalman_smoother(params, batch, inputs=np.stack([US, -US]))
    close(own.smoothed_means[1], extended_kalman_smoother(params, batch[1], inputs=-US).smoothed_means)


@pytest.mark.parametrize(
    ("function", "linear"),
    [
        (lambda z: z, True),
        (lambda z: F @ z + b, True),
        (lambda z: jnp.stack([z[1], z[0] - z[2], 2.0 * z[2]]), True),
        (jax.jit(lambda z: jnp.where(jnp.arange(3) < 2, z, 0.5 * z[::-1])), True),
        (lambda z: 0 * z, True),
        (lambda z: jnp.cumsum(z) / 2 + jnp.sin(1.0), True),
        (lambda z: z * z, False),
        (lambda z: z * jnp.sum(z), False),
        (jax.jit(jnp.sin), False),
        (lambda z: jnp.where(z > 0, z, 2 * z), False),
        (lambda z: jnp.maximum(z, 0.0), False),
    ],
)
def test_what_is_linear(function, linear):
    problem = checked(PLAIN._replace(dynamics_function=function), YS, None)
    assert is_linear(problem.functions) == linear
    assert is_linear(checked(PLAIN._replace(emission_function=lambda z: function(z)[:2]), YS, None).functions) == linear


def test_under_transformations():
    """Values that are closed over are arguments: of `jit`, `grad` and `vmap`."""

    def loglik(a):
        return extended_kalman_filter(PLAIN._replace(dynamics_function=lambda z: a * (F @ z)), YS).marginal_loglik

    def wanted(a):
        return lgssm_filter(make_lgssm_params(MEAN, P, a * F, Q, H, R, None, None, d), YS).marginal_loglik

    close(jax.jit(jax.grad(loglik))(0.7), jax.grad(wanted)(0.7))
    close(jax.vmap(loglik)(jnp.array([0.5, 0.7]))[1], wanted(0.7))
