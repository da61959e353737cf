"""Extended and unscented filters, smoothers and samplers beside textbook recursions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.nonlinear import (
    ParamsNLGSSM,
    UKFHyperParams,
    extended_kalman_filter,
    extended_kalman_posterior_sample,
    extended_kalman_smoother,
    inference,
    iterated_extended_kalman_filter,
    unscented_kalman_filter,
    unscented_kalman_smoother,
)
from fastscan.nonlinear.check import checked
from oracles import nonlinear as oracle
from oracles.nonlinear_model import close, f, h, problem

CASES = [(11, False, False), (11, True, True), (1, False, True), (2, True, False)]
"""Steps; whether covariances vary, and whether there are inputs."""


@pytest.mark.parametrize(("T", "varying", "inputs"), CASES)
def test_extended(T, varying, inputs):
    params, ys, us, twin = problem(T, varying=varying, inputs=inputs)
    posterior = extended_kalman_smoother(params, ys, inputs=us)
    for x, wanted in zip(posterior, oracle.extended_smoother(twin, ys, us), strict=True):
        close(x, wanted)
    filtered = extended_kalman_filter(params, ys, us)
    for x, wanted in zip(filtered[:3], oracle.extended_filter(twin, ys, us), strict=True):
        close(x, wanted)
    again = extended_kalman_smoother(params, ys, filtered, us)
    for x, wanted in zip(again, posterior, strict=True):
        close(x, wanted)


@pytest.mark.parametrize(("T", "varying", "inputs"), CASES)
def test_unscented(T, varying, inputs):
    params, ys, us, twin = problem(T, varying=varying, inputs=inputs)
    for hyper in (UKFHyperParams(), UKFHyperParams(0.7, 2.0, 0.5)) if T == 11 else (UKFHyperParams(),):
        posterior = unscented_kalman_smoother(params, ys, hyper, us)
        for x, wanted in zip(posterior, oracle.unscented_smoother(twin, ys, us, *hyper), strict=True):
            close(x, wanted)
        filtered = unscented_kalman_filter(params, ys, hyper, us)
        for x, wanted in zip(filtered[:3], oracle.unscented_filter(twin, ys, us, *hyper), strict=True):
            close(x, wanted)


@pytest.mark.parametrize(
    ("implementation", "T"), [("chunked:3", 40), ("associative", 2), *(("pallas_interpret", T) for T in (1, 40))]
)
def test_the_way_back_by_every_implementation(implementation, T):
    """As None may choose it; in public only None and "sequential" are names."""
    params, ys, us, _ = problem(T, varying=True, inputs=True)
    given = checked(params, jnp.stack([ys, ys + 1]), us, None)
    model, noise = (given.functions, given.model, given.data, None), np.random.default_rng(0).normal(size=(2, T, 2))
    for run, more in ((inference.smooth_states, (None, None)), (inference.sample_states, (jnp.asarray(noise),))):
        for x, wanted in zip(run(*model, *more, implementation), run(*model, *more, "sequential"), strict=True):
            close(x, wanted)


@pytest.mark.parametrize("inputs", [False, True])
def test_an_iterated_filter_conditions_the_prediction(inputs):
    params, ys, us, twin = problem(11, varying=inputs, inputs=inputs)
    for n in (2, 4):
        wanted = oracle.extended_filter(twin, ys, us, n)
        for x, y in zip(iterated_extended_kalman_filter(params, ys, n, us)[:3], wanted, strict=True):
            close(x, y)


def test_predictions():
    """Entry t is of t + 1; the last one is there where nothing that varies is missing for it."""
    params, ys, us, _ = problem(11)
    out = extended_kalman_filter(params, ys, output_fields=["predicted_means", "predicted_covariances", "marginal_loglik"])
    assert out.filtered_means is None
    assert out.predicted_means.shape == (11, 2)
    filtered = extended_kalman_filter(params, ys)
    jacobian = jax.jacfwd(f)(filtered.filtered_means[-1])
    close(out.predicted_means[-1], f(filtered.filtered_means[-1]))
    moved = jacobian @ filtered.filtered_covariances[-1] @ jacobian.T + params.dynamics_covariance
    close(out.predicted_covariances[-1], moved)
    assert out.marginal_loglik.shape == (11,)
    close(out.marginal_loglik[-1], filtered.marginal_loglik)
    for given in ({"inputs": True}, {"varying": True}):
        params, ys, us, _ = problem(11, **given)
        assert extended_kalman_filter(params, ys, us).predicted_means.shape == (10, 2)


@pytest.mark.parametrize("function", [extended_kalman_smoother, unscented_kalman_smoother])
def test_batches_and_transformations(function):
    """A batch is its sequences, by an axis and by `vmap`; and `jit` changes nothing."""
    params, ys, us, _ = problem(11, inputs=True)
    batch, inputs = np.stack([ys, ys[::-1], 2 * ys]), np.stack([us, us[::-1], -us])
    own = function(params, batch, inputs=inputs)
    shared = function(params, batch, inputs=us)
    mapped = jax.vmap(lambda y, u: function(params, y, inputs=u))(jnp.asarray(batch), jnp.asarray(inputs))
    for k in range(3):
        alone = jax.jit(lambda y, u: function(params, y, inputs=u))(batch[k], inputs[k])
        for x, y, wanted in zip(own, mapped, alone, strict=True):
            close(x[k], wanted)
            close(y[k], wanted)
    close(shared.smoothed_means[1], function(params, batch[1], inputs=us).smoothed_means)


@pytest.mark.parametrize("function", [extended_kalman_filter, unscented_kalman_filter])
def test_derivatives(function):
    """With respect to what functions close over, and under `vmap`, beside central differences."""
    _, ys, _, _ = problem(11)

    def loglik(a):
        params = ParamsNLGSSM(
            jnp.zeros(2), jnp.eye(2), lambda z: a[0] * jnp.sin(z + a[1]), 0.1 * jnp.eye(2), h, a[2] * jnp.eye(2)
        )
        return function(params, ys).marginal_loglik

    value = jax.jit(loglik)
    a = jnp.array([0.8, 0.1, 0.2])
    numeric = [(value(a + e) - value(a - e)) / 2e-6 for e in 1e-6 * np.eye(3)]
    close(jax.grad(loglik)(a), numeric, 1e-7)
    close(jax.vmap(jax.grad(loglik))(jnp.stack([a, 2 * a]))[0], numeric, 1e-7)
    close(jax.jacfwd(loglik)(a), numeric, 1e-7)


def test_float32():
    params, ys, us, twin = problem(11, inputs=True)
    single = params._replace(**{k: np.float32(x) for k, x in params._asdict().items() if isinstance(x, np.ndarray)})
    for function, wanted in (
        (extended_kalman_smoother, oracle.extended_smoother(twin, ys, us)),
        (unscented_kalman_smoother, oracle.unscented_smoother(twin, ys, us)),
    ):
        posterior = function(single, np.float32(ys), inputs=us)
        assert posterior.smoothed_means.dtype == jnp.float32
        for x, y in zip(posterior, wanted, strict=True):
            close(x, y, 1e-5)


def test_dtypes_are_promoted():
    """A function that is float64 makes all so, as it would in JAX."""
    params, ys, _, _ = problem(11)
    single = params._replace(**{k: np.float32(x) for k, x in params._asdict().items() if isinstance(x, np.ndarray)})
    double = single._replace(emission_function=lambda z: h(z) + np.zeros(2))
    assert extended_kalman_filter(double, np.float32(ys)).filtered_means.dtype == jnp.float64


def test_singular_covariances():
    """States without noise, a start that is known, and an emission without noise."""
    params = ParamsNLGSSM(
        np.array([0.3, 0.1]),
        np.diag([1.0, 0.0]),
        lambda z: jnp.stack([jnp.sin(z[0]) + z[1], z[1]]),
        np.diag([0.1, 0.0]),
        lambda z: jnp.stack([z[0] ** 3, z[1]]),
        np.diag([0.1, 0.0]),
    )
    ys = np.stack([np.linspace(0, 1, 9), np.full(9, 0.1)], 1)
    for function in (extended_kalman_smoother, unscented_kalman_smoother):
        posterior = function(params, ys)
        assert np.isfinite(posterior.smoothed_means).all()
        assert np.isfinite(posterior.marginal_loglik)
        close(posterior.smoothed_means[:, 1], np.full(9, 0.1))
        one = function(params._replace(emission_function=lambda z: z[:1] ** 3, emission_covariance=0.1 * np.eye(1)), ys[:, :1])
        close(posterior.smoothed_means, one.smoothed_means)


def test_samples():
    """Their moments are those of the smoother, within six standard errors."""
    params, ys, us, _ = problem(11, inputs=True)
    draw = jax.jit(jax.vmap(lambda key: extended_kalman_posterior_sample(key, params, ys, us)))
    states = draw(jax.random.split(jax.random.key(0), 4_000))
    posterior = extended_kalman_smoother(params, ys, inputs=us)
    deviation = np.sqrt(np.diagonal(posterior.smoothed_covariances, axis1=1, axis2=2))
    assert (np.abs(states.mean(0) - posterior.smoothed_means) < 6 * deviation / np.sqrt(4_000)).all()
    second = np.einsum("nti,ntj->tij", states[:, :-1], states[:, 1:]) / 4_000
    assert np.abs(second - posterior.smoothed_cross_covariances).max() < 0.1
    assert (extended_kalman_posterior_sample(jax.random.key(0), params, ys[None], us).shape) == (1, 11, 2)
