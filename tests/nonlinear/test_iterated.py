"""Iterated smoothers beside dense Gauss-Newton, Laplace and posterior linearisation in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.nonlinear import (
    ParamsGGSSM,
    ParamsNLGSSM,
    UKFHyperParams,
    iterated_extended_kalman_smoother,
    iterated_unscented_kalman_smoother,
    poisson_params,
)
from fastscan.nonlinear.models import Bernoulli
from oracles import nonlinear as oracle
from oracles.nonlinear_model import close, f, h, problem

CASES = [(11, False, False), (11, True, True), (1, False, True), (2, True, False), (29, False, False)]
EVERY = ["sequential", "associative", "chunked:3", "pallas_interpret"]


def blocks(whole, T):
    """The covariances of single states, and second moments less means, from those of a whole path."""
    D = len(whole) // T
    parts = whole.reshape(T, D, T, D).transpose(0, 2, 1, 3)
    return np.stack([parts[t, t] for t in range(T)]), np.array([parts[t, t + 1] for t in range(T - 1)]).reshape(T - 1, D, D)


def stationary(twin, ys, us, path):
    """The objective's slope, by central differences, beside that at a path that is no mode."""

    def slope(at):
        steps = 1e-5 * np.eye(at.size).reshape(-1, *at.shape)
        return np.array([oracle.objective(twin, ys, us, at + e) - oracle.objective(twin, ys, us, at - e) for e in steps]) / 2e-5

    return np.abs(slope(path)).max() / np.abs(slope(0 * path)).max()


@pytest.mark.parametrize(("T", "varying", "inputs"), CASES)
def test_the_mode(T, varying, inputs):
    params, ys, us, twin = problem(T, varying=varying, inputs=inputs)
    posterior = iterated_extended_kalman_smoother(params, ys, inputs=us, tol=1e-10)
    assert posterior.converged
    assert posterior.iterations < 50
    assert stationary(twin, ys, us, np.asarray(posterior.smoothed_means)) < 1e-8
    assert (np.diff(posterior.objective) <= 1e-12 * np.abs(posterior.objective[1:])).all()
    path, whole, loglik = oracle.gauss_newton(twin, ys, us, np.asarray(posterior.smoothed_means), 1)
    covs, crosses = blocks(whole, T)
    close(posterior.smoothed_means, path, 1e-8)
    close(posterior.marginal_loglik, loglik, 1e-8)
    close(posterior.smoothed_covariances, covs, 1e-8)
    close(posterior.smoothed_cross_covariances, crosses + path[:-1, :, None] * path[1:, None], 1e-8)


@pytest.mark.parametrize(("T", "varying", "inputs"), CASES[:4])
def test_posterior_linearisation(T, varying, inputs):
    """At a fixed point the oracle's iteration moves nothing."""
    params, ys, us, twin = problem(T, varying=varying, inputs=inputs)
    hyper = UKFHyperParams()
    posterior = iterated_unscented_kalman_smoother(params, ys, hyper, 100, us, tol=1e-10)
    assert posterior.converged
    given = np.asarray(posterior.smoothed_means), np.asarray(posterior.smoothed_covariances)
    means, covs, loglik = oracle.posterior_linearization(twin, ys, us, *given, *hyper, 0)
    close(posterior.smoothed_means, means, 1e-8)
    close(posterior.smoothed_covariances, covs, 1e-8)
    close(posterior.marginal_loglik, loglik, 1e-8)


@pytest.mark.parametrize("implementation", EVERY)
def test_implementations(implementation):
    params, ys, _, _ = problem(29)
    wanted = iterated_extended_kalman_smoother(params, ys)
    posterior = iterated_extended_kalman_smoother(params, ys, implementation=implementation)
    for x, y in zip(posterior[:6], wanted[:6], strict=True):
        close(x, y, 1e-8)


COUNTS = np.random.default_rng(5).poisson(3.0, (17, 2)).astype(float)
COUNTS[4] = np.nan
C, BIAS = np.array([[1.0, 0.2], [0.0, 0.5]]), np.array([0.3, 1.0])
POISSON = poisson_params(np.zeros(2), np.eye(2), f, 0.1 * np.eye(2), lambda z: jnp.asarray(C, z.dtype) @ z + BIAS)


def test_poisson_counts():
    """Newton's method: the mode, the curvature there, and Laplace's approximation."""
    posterior = iterated_extended_kalman_smoother(POISSON, COUNTS, tol=1e-10)
    _, _, _, twin = problem(17)
    twin = twin._replace(m0=np.zeros(2), P0=np.eye(2), Q=np.broadcast_to(0.1 * np.eye(2), (17, 2, 2)))
    path, whole, loglik = oracle.laplace(twin, COUNTS, None, np.zeros((17, 2)), 100, *oracle.poisson(C, BIAS))
    assert posterior.converged
    close(posterior.smoothed_means, path, 1e-8)
    close(posterior.smoothed_covariances, blocks(whole, 17)[0], 1e-8)
    close(posterior.marginal_loglik, loglik, 1e-8)


def test_entries_that_are_missing():
    """One count of two is missing; and it is said of a density of all entries together that it can't do without."""
    some = COUNTS.copy()
    some[6, 0] = np.nan
    posterior = iterated_extended_kalman_smoother(POISSON, some)
    assert posterior.converged
    assert np.isfinite(posterior.marginal_loglik)
    whole = POISSON._replace(emission_dist=Whole)
    close(
        iterated_extended_kalman_smoother(whole, COUNTS).marginal_loglik,
        iterated_extended_kalman_smoother(POISSON, COUNTS).marginal_loglik,
    )
    with pytest.raises(ValueError, match="emission_dist: one log density"):
        iterated_extended_kalman_smoother(whole, some)


class Whole:
    """Poisson counts with one log density."""

    def __init__(self, mean, cov):
        self.mean, self.cov = mean, cov

    def log_prob(self, y):
        return jax.scipy.stats.poisson.logpmf(y, self.mean).sum()


def test_gaussian_emissions_by_either_form():
    """As `ParamsGGSSM` with a covariance that does not depend on the state, a model is the same."""
    params, ys, _, _ = problem(11)
    R = params.emission_covariance

    class Normal:
        def __init__(self, mean, cov):
            self.mean, self.cov = mean, cov

        def log_prob(self, y):
            return jax.scipy.stats.multivariate_normal.logpdf(y, self.mean, self.cov)

    general = ParamsGGSSM(*params[:4], h, lambda z: R + 0 * z[0], Normal)
    whole = np.where(np.isnan(ys).any(1, keepdims=True), np.nan, ys)
    wanted, given = (iterated_extended_kalman_smoother(p, whole, tol=1e-9) for p in (params, general))
    for x, y in zip(given[:6], wanted[:6], strict=True):
        close(x, y, 1e-8)


def test_events():
    """Bernoulli emissions: a step in their rate is seen."""
    params = ParamsGGSSM(
        np.zeros(1),
        np.eye(1),
        lambda z: z,
        0.3 * np.eye(1),
        jax.nn.sigmoid,
        lambda z: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z),
        Bernoulli,
    )
    posterior = iterated_extended_kalman_smoother(params, np.repeat([[0.0], [1.0]], 30, 0))
    assert posterior.converged
    means = np.asarray(posterior.smoothed_means[:, 0])
    assert means[10] < -1 < 1 < means[-10]


@pytest.mark.slow
@pytest.mark.parametrize("unscented", [False, True])
def test_implicit_gradients(unscented):
    """Beside central differences of what has converged, of every result, in reverse and forward mode, and under `vmap`."""
    _, ys, _, _ = problem(11)
    weights = np.random.default_rng(1).normal(size=(11, 2))

    def total(a):
        params = ParamsNLGSSM(
            jnp.zeros(2), jnp.eye(2), lambda z: a[0] * f(z), a[1] * jnp.eye(2), lambda z: h(z) + a[2], 0.2 * jnp.eye(2)
        )
        function = iterated_unscented_kalman_smoother if unscented else iterated_extended_kalman_smoother
        out = function(params, ys, num_iter=200, tol=1e-12)
        return out.marginal_loglik + (weights * out.smoothed_means).sum() + out.smoothed_covariances.sum()

    a = jnp.array([0.9, 0.2, 0.1])
    value = jax.jit(total)
    numeric = [(value(a + e) - value(a - e)) / 2e-5 for e in 1e-5 * np.eye(3)]
    gradient = jax.jit(jax.grad(total))(a)
    close(gradient, numeric, 1e-6)
    close(jax.jit(lambda a: jax.jvp(total, (a,), (a,))[1])(a), gradient @ a, 1e-8)
    if not unscented:
        close(jax.jit(jax.vmap(jax.grad(total)))(jnp.stack([a, 0.9 * a]))[0], gradient, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("function", [iterated_extended_kalman_smoother, iterated_unscented_kalman_smoother])
def test_gradients_of_emissions_alone(function):
    """Which move no covariance of a linearised model: beside central differences, and under `vmap`."""
    params, ys, _, _ = problem(5)
    weights = np.random.default_rng(1).normal(size=ys.shape)

    def total(ys):
        out = function(params, ys, num_iter=200, tol=1e-12)
        return out.marginal_loglik + (weights * out.smoothed_means).sum() + out.smoothed_covariances.sum()

    value = jax.jit(total)
    numeric = [(value(ys + e) - value(ys - e)) / 2e-5 for e in 1e-5 * np.eye(ys.size).reshape(-1, *ys.shape)]
    gradients = jax.jit(jax.vmap(jax.grad(total)))(jnp.stack([ys, 0.9 * ys]))
    close(gradients[0].ravel(), numeric, 1e-6)


def test_damping():
    """Whole steps go back and forth between the sides of a mode; damped ones reach it, from far away."""
    params, ys, us, twin = problem(11, varying=True, seed=7)
    start = np.full((11, 2), 3.0)
    posterior = iterated_extended_kalman_smoother(params, ys, 200, start=start)
    assert posterior.converged
    assert stationary(twin, ys, us, np.asarray(posterior.smoothed_means)) < 1e-6
    cubes = ParamsNLGSSM(np.zeros(1), 100 * np.eye(1), jnp.tanh, 0.1 * np.eye(1), lambda z: jnp.arctan(5 * z), 1e-3 * np.eye(1))
    far = np.full((3, 1), 8.0)
    emissions = np.full((3, 1), 0.1)
    with pytest.warns(UserWarning, match="not converged"):
        assert not iterated_extended_kalman_smoother(cubes, emissions, start=far, damped=False).converged
    assert iterated_extended_kalman_smoother(cubes, emissions, start=far).converged


def test_batches():
    params, ys, us, _ = problem(11, inputs=True)
    batch, inputs = np.stack([ys, ys[::-1]]), np.stack([us, -us])
    own = iterated_extended_kalman_smoother(params, batch, inputs=inputs)
    alone = [iterated_extended_kalman_smoother(params, y, inputs=u) for y, u in zip(batch, inputs, strict=True)]
    for k, wanted in enumerate(alone):
        for x, y in zip(own[:6], wanted[:6], strict=True):
            close(x[k], y, 1e-7)
        assert own.iterations[k] == wanted.iterations
        assert own.converged[k]
    start = np.stack([np.asarray(x.smoothed_means) for x in alone])
    assert (iterated_extended_kalman_smoother(params, batch, inputs=inputs, start=start).iterations <= 3).all()


def test_float32():
    params, ys, _us, _twin = problem(29)
    wanted = iterated_extended_kalman_smoother(params, ys)
    single = params._replace(**{k: np.float32(x) for k, x in params._asdict().items() if isinstance(x, np.ndarray)})
    posterior = iterated_extended_kalman_smoother(single, np.float32(ys))
    assert posterior.converged
    assert posterior.smoothed_means.dtype == jnp.float32
    for x, y in zip(posterior[:6], wanted[:6], strict=True):
        close(x, y, 2e-3)
