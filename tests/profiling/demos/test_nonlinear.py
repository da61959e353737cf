"""The demonstration of nonlinear models: its parts beside plain NumPy, and that it does its work at small sizes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln, logsumexp

from fastscan.profiling.demos import nonlinear
from fastscan.profiling.measure import models

NOTHING = jnp.zeros(2)


@pytest.mark.parametrize("rate", [0.0, 1e-9, -40.0])
def test_a_turn_is_an_arc(rate):
    """Velocities, as complex numbers, turn at a rate; their integral is where the target is."""
    steps = np.linspace(0, models.DT, 10_001)
    velocity = (1.0 - 0.5j) * np.exp(1j * rate * steps)
    place = 0.2 + 0.1j + np.trapezoid(velocity, steps)
    moved = models.turn(jnp.array([0.2, 0.1, 1.0, -0.5, rate]), NOTHING)
    wanted = [place.real, place.imag, velocity[-1].real, velocity[-1].imag, rate]
    np.testing.assert_allclose(moved, wanted, rtol=0, atol=1e-10)


def test_bearings_are_near_what_was_seen():
    state, near = jnp.array([0.3, -0.7, 0, 0, 0]), jnp.array([9.0, -4.0])
    angles = np.asarray(models.bearings(state, near))
    away = np.asarray(state[:2]) - models.SENSORS
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    np.testing.assert_allclose(directions, away / np.linalg.norm(away, axis=1, keepdims=True), atol=1e-12)
    assert np.abs(angles - near).max() <= np.pi


@pytest.mark.slow
def test_simulated_targets_have_the_model_s_noise():
    params = models.turning_params()
    states, emissions = jax.jit(lambda key: models.simulate_targets(params, 50, 40, key))(jax.random.key(1))
    assert (states.shape, emissions.shape) == ((40, 50, 5), (40, 50, 2))
    moved = jax.jit(jax.vmap(jax.vmap(lambda z: params.dynamics_function(z, NOTHING))))(states[:, :-1])
    moves = np.asarray(states[:, 1:] - moved).reshape(-1, 5)
    root = np.linalg.cholesky(params.dynamics_covariance)
    whitened = np.linalg.solve(root, moves.T)
    np.testing.assert_allclose(whitened @ whitened.T / len(moves), np.eye(5), rtol=0, atol=0.15)
    seen = jax.vmap(jax.vmap(params.emission_function))(states, emissions)
    np.testing.assert_allclose(np.std(emissions - seen), models.BEARING_STD, rtol=0.1)


def test_importance_sampling_beside_quadrature():
    """Two counts, by a sum over a fine grid of both log rates."""
    rate, counts = nonlinear.LogRate(1.0, 0.6, 0.2), np.array([2, 6])
    grid = np.linspace(-4, 6, 801)
    first, second = grid[:, None], grid
    variance = rate.variance / (1 - rate.persistence**2)

    def normal(x, variance):
        return -(x**2) / variance / 2 - np.log(2 * np.pi * variance) / 2

    logs = normal(first - rate.mean, variance)
    logs = logs + normal(second - rate.mean - rate.persistence * (first - rate.mean), rate.variance)
    for x, count in zip((first, second), counts, strict=True):
        logs = logs + count * x - np.exp(x) - gammaln(count + 1)
    wanted = logsumexp(logs) + 2 * np.log(grid[1] - grid[0])
    found = nonlinear.sample_loglik(rate, counts, np.array([1.0, 1.4]), 20_000)
    assert abs(found.loglik - wanted) < 4 * found.error < 0.02
    assert 15_000 < found.effective < 20_000


def test_the_rate_is_stationary():
    rate = nonlinear.LogRate(2.0, 0.9, 0.05)
    params = nonlinear.rate_params(rate)
    moved = [params.dynamics_function(jnp.array([x])) for x in (2.0, 3.0)]
    np.testing.assert_allclose(moved, [[2.0], [2.9]])
    np.testing.assert_allclose(0.9**2 * params.initial_covariance + params.dynamics_covariance, params.initial_covariance)


@pytest.mark.slow
def test_demo(tmp_path, capsys, monkeypatch):
    """With two of the four smoothers, as each takes its time to compile."""
    few = {name: nonlinear.SMOOTHERS[name] for name in (nonlinear.EXTENDED, nonlinear.ITERATED)}
    monkeypatch.setattr(nonlinear, "SMOOTHERS", few)
    with jax.enable_x64(False):
        nonlinear.run_nonlinear(tmp_path, steps=64, targets=2, draws=2_000)
    text = capsys.readouterr().out
    assert all(f"│ {name} " in text for name in nonlinear.SMOOTHERS)
    laplace, sampled = (float(x) for x in re.findall(r"(\S+) by (?:Laplace|importance)", text))
    assert abs(laplace - sampled) < 0.1
    for name in ("bearings.png", "earthquake_rate.png"):
        assert (tmp_path / name).stat().st_size > 20_000
