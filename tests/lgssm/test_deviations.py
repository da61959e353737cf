"""Standard deviations of variances that are zero, or that rounding made less: never NaN, and NaN where they are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import lgssm_joint_sample, lgssm_posterior_predictive
from fastscan.arrays import deviation
from oracles.lgssm import cast, random_params, simulate


def test_values_and_derivatives():
    x = jnp.array([4.0, 0.0, -1e-9, -1.0, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(deviation(x), [2.0, 0.0, np.nan, np.nan, np.nan, np.inf])
    np.testing.assert_array_equal(jax.vmap(jax.grad(deviation))(x[:2]), [0.25, 0.0])


@pytest.mark.parametrize("seed", range(3))
def test_exact_sensors(seed):
    """What is seen without noise has no deviation; float32 leaves it a variance of rounding's size, of either sign."""
    params = random_params(seed, 3, 2)
    params = cast(params._replace(emissions=params.emissions._replace(cov=np.zeros((2, 2)))), "float32")
    y = simulate(params, 60, seed).astype("float32")
    mean, sd = lgssm_posterior_predictive(params, y)
    np.testing.assert_allclose(mean, y, atol=1e-4)
    assert np.all(np.asarray(sd) >= 0)
    assert np.all(np.asarray(sd) <= 3e-3)


@pytest.mark.slow
def test_derivatives_at_exact_sensors():
    params = random_params(0, 2, 1)
    y = simulate(params, 4, 0)

    def total(r, which):
        p = params._replace(emissions=params.emissions._replace(cov=r))
        return (lgssm_posterior_predictive(p, y)[1] if which else lgssm_joint_sample(p, jax.random.key(0), 4)[1]).sum()

    for which in (False, True):
        assert np.isfinite(jax.grad(total)(jnp.zeros(1), which)).all()


def test_variances_that_are_none_stay_so():
    params, y = random_params(0, 2, 1), np.zeros((3, 1))
    bad = params._replace(emissions=params.emissions._replace(cov=np.array([-0.5])))
    assert np.isnan(jax.jit(lgssm_posterior_predictive)(bad, y)[1]).all()
    assert np.isnan(jax.jit(lambda p: lgssm_joint_sample(p, jax.random.key(0), 3)[1])(bad)).all()
