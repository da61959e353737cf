"""Stochastic gradients: dynamax's own losses, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dynamax.linear_gaussian_ssm import LinearGaussianSSM

from fastscan.learn import GAUSSIAN, HMM, LGSSM, GaussianEmissions, ParamsHMM, fit_sgd, sgd
from oracles.lgssm import cast, random_params, simulate

Y = np.stack([simulate(random_params(1, 2, 3), 12, seed) for seed in range(3)])


def test_losses_are_those_of_dynamax():
    """The same coordinates, minibatches and updates, with one minibatch smaller than the others."""
    model = LinearGaussianSSM(2, 3)
    params, props = model.initialize(jax.random.key(0))
    options = {"optimizer": optax.adam(1e-2), "batch_size": 2, "num_epochs": 4}
    wanted, wanted_losses = model.fit_sgd(params, props, jnp.asarray(Y), **options)
    fitted, losses = fit_sgd(LGSSM, params, Y, progress=False, **options)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), fitted, wanted)


def test_hidden_states_with_gaps_a_prior_and_frozen_parameters():
    y = Y.copy()
    y[0, 3] = np.nan
    emissions = GaussianEmissions(jnp.array([[-1.0, 0, 0], [1, 0, 0]]), jnp.tile(jnp.eye(3), (2, 1, 1)))
    params = ParamsHMM(jnp.array([0.5, 0.5]), jnp.array([[0.9, 0.1], [0.2, 0.8]]), emissions)
    fitted, losses = fit_sgd(
        HMM(GAUSSIAN),
        params,
        y,
        frozen=["initial_distribution", "emissions.means"],
        log_prior=lambda p: jnp.log(p.transition_matrix).sum(),
        optimizer=optax.adam(0.05),
        shuffle=True,
        num_epochs=20,
        progress=False,
    )
    assert losses[-1] < losses[0] - 0.05
    np.testing.assert_array_equal(fitted.emissions.means, params.emissions.means)
    np.testing.assert_array_equal(fitted.initial_distribution, params.initial_distribution)
    np.testing.assert_allclose(fitted.transition_matrix.sum(1), 1)


def test_nothing_is_compiled_twice():
    params = cast(random_params(1, 2, 3), "float32")
    compiled = []
    for _ in range(2):
        fitted, _ = fit_sgd(LGSSM, params, Y.astype("float32"), num_epochs=1, batch_size=3, progress=False)
        compiled.append(sgd._epoch._cache_size())
    assert compiled[0] == compiled[1]
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(fitted))


def test_bad_input():
    with pytest.raises(ValueError, match="wanted at least 1"):
        fit_sgd(LGSSM, random_params(1, 2, 3), Y, batch_size=0)
