"""Varying models of 9 to 15 states, which run in matrices of 16: nothing of the added states shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    Regimes,
    lgssm_filter,
    lgssm_marginal_loglik,
    lgssm_posterior_sample,
    lgssm_smoother,
)
from fastscan.dispatch import large
from fastscan.kernels import xla_hints
from fastscan.learn.lgssm.model import smoothed_sums
from oracles.lgssm import assert_moments, close, random_params, simulate, textbook

U = 2


def model(D, m, T, of, units=1.0, dtype="float64"):
    """Matrices of three regimes, as ``of(values, index)`` has them, with inputs; states in other units."""
    base, r = random_params(D, D, m), np.random.default_rng(D)
    F = base.dynamics.weights * np.array([1.0, 0.9, 0.5])[:, None, None]
    Q = base.dynamics.cov * np.array([1.0, 2.0, 1e-3])[:, None, None] * units**2
    index = r.integers(3, size=T)
    initial = base.initial._replace(mean=base.initial.mean * units, cov=base.initial.cov * units**2)
    emissions = base.emissions._replace(weights=base.emissions.weights / units, input_weights=r.normal(size=(m, U)))
    dynamics = base.dynamics._replace(bias=base.dynamics.bias * units, input_weights=r.normal(size=(D, U)) * units)
    initial, emissions, dynamics, F, Q = jax.tree.map(lambda x: jnp.asarray(x, dtype), (initial, emissions, dynamics, F, Q))
    return base._replace(
        initial=initial, emissions=emissions, dynamics=dynamics._replace(weights=of(F, index), cov=of(Q, index))
    )


def arrays(x, index):
    return x[index]


def functions(x, index):
    index = jnp.asarray(index)
    return lambda t: x[index[t]]


def data(D, m, T, dtype="float64", gaps=True):
    y, u = simulate(random_params(D, D, m), T, 0), np.random.default_rng(T).normal(size=(T, U))
    if gaps and T > 4:
        y[2], y[4, 0] = np.nan, np.nan
    return y.astype(dtype), u.astype(dtype)


def test_which_sizes_are_widened():
    widths = [large.width(None, "cpu", "lgssm_varying", D) for D in (8, 9, 15, 16, 17)]
    assert widths == ([8, 16, 16, 16, 17] if xla_hints.hints_are_on() else [8, 9, 15, 16, 17])
    assert large.width(None, "cpu", "lgssm", 12) == large.width("chunked", "cpu", "lgssm_varying", 12) == 12
    assert large.width(None, "NVIDIA H100", "lgssm_varying", 12) == 12


@pytest.mark.parametrize("of", [arrays, Regimes, functions])
@pytest.mark.parametrize(("D", "m", "T", "dtype"), [(9, 2, 1, "float64"), (15, 1, 2, "float64"), (12, 16, 37, "float32")])
def test_moments(D, m, T, dtype, of):
    y, u = data(D, m, T, dtype)
    wanted = textbook(model(D, m, T, arrays, dtype=dtype), y, u)
    assert_moments(lgssm_smoother(model(D, m, T, of, dtype=dtype), y, u), wanted, dtype)


@pytest.mark.parametrize("units", [1e-9, 1e9])
def test_units_of_the_states(units):
    """Added states have variances of 1, whatever the others have: what is a covariance stays one, and no more is."""
    D, m, T = 9, 2, 11
    y, u = data(D, m, T)
    given, wanted = (lgssm_smoother(model(D, m, T, Regimes, s), y, u) for s in (units, 1.0))
    close(given.marginal_loglik, wanted.marginal_loglik, 1e-9)
    close(given.smoothed_means / units, wanted.smoothed_means, 1e-9)
    close(given.smoothed_covariances / units**2, wanted.smoothed_covariances, 1e-9)
    params = model(D, m, T, arrays, units)
    indefinite = params.dynamics.cov.at[5, 0, 0].set(-0.1 * units**2)
    params = params._replace(dynamics=params.dynamics._replace(cov=indefinite))
    assert np.isnan(lgssm_marginal_loglik(params, y, u))


def close_to_narrow(monkeypatch, function):
    """Compares results with those of matrices as wide as the model."""
    given = jax.tree.leaves(function())
    with monkeypatch.context() as patch:
        patch.setattr(large, "width", lambda *sizes: sizes[-1])
        jax.clear_caches()
        wanted = jax.tree.leaves(function())
    jax.clear_caches()
    for x, w in zip(given, wanted, strict=True):
        close(x, w, 1e-9)


@pytest.mark.parametrize("of", [arrays, Regimes, functions])
def test_filtered_moments_and_samples(monkeypatch, of):
    """Of a batch, and under `vmap`."""
    D, m, T = 10, 3, 9
    (y, u), key = data(D, m, T), jax.random.key(0)
    params, ys = model(D, m, T, of), jnp.stack([y, 2 * y])
    drawn = lgssm_posterior_sample(key, params, y, u)
    mapped = jax.vmap(lambda y: lgssm_posterior_sample(key, params, y, u))(ys)
    close(mapped[0], drawn, 1e-9)
    close_to_narrow(monkeypatch, lambda: lgssm_posterior_sample(key, params, ys, u))
    close_to_narrow(monkeypatch, lambda: lgssm_filter(params, ys, u, per_step_loglik=True)[:3])


@pytest.mark.parametrize("of", [arrays, Regimes, functions])
def test_derivatives(monkeypatch, of):
    """Of log-likelihoods, with respect to the emissions and what matrices are made of; and of moments."""
    D, m, T = 9, 2, 5
    y, u = data(D, m, T)

    def slope():
        def loglik(y, scale):
            def scaled(x, index):
                return of(x * scale, index)

            return lgssm_marginal_loglik(model(D, m, T, scaled), y, u)

        return jax.grad(loglik, (0, 1))(y, jnp.ones(()))

    close_to_narrow(monkeypatch, slope)


def test_derivatives_of_moments(monkeypatch):
    D, m, T = 9, 2, 4
    y, u = data(D, m, T)
    params = model(D, m, T, arrays)
    close_to_narrow(monkeypatch, lambda: jax.grad(lambda y: lgssm_smoother(params, y, u).smoothed_means.sum())(y))


def test_sums_of_em():
    D, m, T = 11, 2, 6
    y, u = data(D, m, T, gaps=False)
    _, means, sums = smoothed_sums(model(D, m, T, arrays), jnp.asarray(y)[None], jnp.asarray(u))
    wanted = textbook(model(D, m, T, arrays), y, u)
    close(means[0], wanted.smoothed_means, 1e-9)
    close(sums.after[0], wanted.smoothed_covariances[1:].sum(0), 1e-9)
