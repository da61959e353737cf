"""What is wrong with an input is said: what was given, what was wanted, what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import make_lgssm_params
from fastscan.nonlinear import (
    extended_kalman_filter,
    extended_kalman_posterior_sample,
    extended_kalman_smoother,
    iterated_extended_kalman_smoother,
    unscented_kalman_smoother,
)
from oracles.nonlinear_model import f, problem

PARAMS, YS, _, _ = problem(11)
US = np.ones((11, 1))
ALONE = PARAMS._replace(dynamics_function=lambda z: f(z))


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"dynamics_function": lambda z: z[:1]}, ValueError, r"dynamics_function: .* \(1,\) given, wanted \(2,\)"),
        ({"dynamics_function": 3.0}, TypeError, "dynamics_function: float given, wanted a function"),
        ({"dynamics_function": lambda z, u: z + u}, TypeError, "dynamics_function: .* as inputs are None"),
        ({"dynamics_function": lambda z: (z, z)}, TypeError, "dynamics_function: .* wanted one array"),
        (
            {"emission_function": lambda z: z[jnp.array([0, 1, 0])]},
            ValueError,
            r"emission_function: .* \(3,\) given, wanted \(2,\)",
        ),
        ({"initial_mean": np.zeros((2, 1))}, ValueError, r"initial_mean: shape \(2, 1\) given, wanted \(D,\)"),
        ({"initial_covariance": np.eye(3)}, ValueError, r"initial_covariance: shape \(3, 3\) given, wanted \(2, 2\)"),
        ({"dynamics_covariance": np.ones((5, 2, 2))}, AssertionError, r"dynamics_covariance: .* or \(11, 2, 2\)"),
        ({"emission_covariance": np.ones(2)}, ValueError, "emission_covariance: shape"),
        ({"emission_covariance": "none"}, TypeError, "emission_covariance"),
    ],
)
def test_models(change, error, told):
    with pytest.raises(error, match=told):
        extended_kalman_filter(PARAMS._replace(**change), YS)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: extended_kalman_filter(PARAMS, YS[None, None]), ValueError, "emissions: shape"),
        (lambda: extended_kalman_filter(ALONE, YS, US), TypeError, "dynamics_function: .* as inputs are given"),
        (lambda: extended_kalman_filter(PARAMS, YS, US[:5]), ValueError, r"inputs: shape \(5, 1\) given, wanted \(11, ...\)"),
        (lambda: extended_kalman_filter(PARAMS, YS, num_iter=0), ValueError, "num_iter: 0 given"),
        (lambda: extended_kalman_filter(PARAMS, YS, output_fields=["means"]), ValueError, "output_fields: means given"),
        (lambda: extended_kalman_filter(PARAMS, YS, missing=False), ValueError, "missing: False given"),
        (lambda: extended_kalman_filter(PARAMS, YS, implementation="chunked"), ValueError, "runs step by step"),
        (lambda: extended_kalman_filter(YS, PARAMS), TypeError, "without a field initial_mean"),
        (lambda: extended_kalman_posterior_sample(PARAMS, YS, YS), TypeError, "The order is"),
        (lambda: iterated_extended_kalman_smoother(PARAMS, YS, start=YS[:3]), ValueError, r"start: shape \(3, 2\) given"),
        (lambda: iterated_extended_kalman_smoother(PARAMS, YS, tol=-1.0), ValueError, "tol: -1.0 given"),
        (
            lambda: extended_kalman_filter(make_lgssm_params(np.zeros(2), *5 * [np.eye(2)]), YS),
            TypeError,
            "A linear model, fastscan.ParamsLGSSM, goes to lgssm_smoother",
        ),
    ],
)
def test_arguments(call, error, told):
    with pytest.raises(error, match=told):
        call()


def test_functions_that_are_nan():
    """The function is named, and the state; a Jacobian that is NaN where the value is not, too."""
    root = PARAMS._replace(emission_function=lambda z: jnp.sqrt(z - 100.0))
    with pytest.raises(ValueError, match="emission_function: it is NaN at the state"):
        extended_kalman_filter(root, YS)
    norm = PARAMS._replace(initial_mean=np.zeros(2), emission_function=lambda z: jnp.sqrt(z**2))
    with pytest.raises(ValueError, match=r"emission_function: its Jacobian is NaN at the state .* step 0"):
        extended_kalman_smoother(norm, YS)
    later = PARAMS._replace(dynamics_function=lambda z: jnp.where(jnp.abs(z) < 1e3, jnp.log(z - 50.0), z))
    with pytest.raises(ValueError, match=r"dynamics_function: it is NaN at the state .* step \d"):
        iterated_extended_kalman_smoother(later, YS)
    inside = jax.jit(lambda: extended_kalman_filter(root, YS))()
    assert np.isnan(inside.marginal_loglik)


@pytest.mark.parametrize("name", ["initial_covariance", "dynamics_covariance", "emission_covariance"])
def test_covariances_that_are_none(name):
    """Outside of `jit` an error; within, results are NaN."""
    indefinite = PARAMS._replace(**{name: np.diag([1.0, -1.0])})
    for function in (extended_kalman_smoother, unscented_kalman_smoother):
        with pytest.raises(ValueError, match=name):
            function(indefinite, YS)
    assert np.isnan(jax.jit(lambda y: extended_kalman_smoother(indefinite, y).marginal_loglik)(YS))
    with pytest.raises(ValueError, match=f"{name}: NaN"):
        extended_kalman_smoother(PARAMS._replace(**{name: np.full((2, 2), np.nan)}), YS)


def test_no_convergence_is_said():
    with pytest.warns(UserWarning, match="iterated_extended_kalman_smoother: not converged after 2 iterations"):
        posterior = iterated_extended_kalman_smoother(PARAMS, YS, 2)
    assert not posterior.converged
    assert posterior.iterations == 2
