"""Bad input: what was given, what was wanted, what to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    lgssm_filter,
    lgssm_forecast,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_predictive,
    lgssm_posterior_sample,
    lgssm_smoother,
)
from oracles.lgssm import random_params, simulate

T, D, M = 6, 3, 2
PARAMS = random_params(0, D, M)
Y = simulate(PARAMS, T, 0)
FUNCTIONS = [
    lgssm_filter,
    lgssm_smoother,
    lgssm_marginal_loglik,
    lambda *args, **kwargs: lgssm_posterior_sample(jax.random.key(0), *args, **kwargs),
]


def changed(part, **fields):
    return PARAMS._replace(**{part: getattr(PARAMS, part)._replace(**fields)})


BAD = [
    # params, emissions, inputs, error, message
    (PARAMS, Y[:, 0], None, ValueError, r"emissions: shape \(6,\) given, wanted \(T, m\) or \(B, T, m\).*emissions\[:, None\]"),
    (PARAMS, Y[:0], None, ValueError, r"emissions: shape \(0, 2\) given.*at least 1"),
    (PARAMS, Y[:, :1], None, ValueError, r"emissions: shape \(6, 1\) given, wanted \(6, 2\): emissions.weights has 2 rows"),
    (PARAMS, Y[None, None], None, ValueError, r"emissions: shape \(1, 1, 6, 2\) given"),
    (PARAMS, Y.astype("float16"), None, TypeError, r"emissions: float16 given, wanted float32 or float64; integers are conv"),
    (PARAMS, Y.astype(complex), None, TypeError, r"emissions: complex128 given, wanted float32 or float64"),
    (changed("dynamics", weights=np.eye(D, dtype="float16")), Y, None, TypeError, r"dynamics.weights: float16 given"),
    (changed("initial", mean=np.zeros(D + 1)), Y, None, ValueError, r"initial.mean: shape \(4,\) given, wanted \(3,\)"),
    (changed("initial", cov=np.zeros(D)), Y, None, ValueError, r"initial.cov: shape \(3,\) given, wanted \(3, 3\)"),
    (changed("dynamics", weights=np.zeros(D)), Y, None, ValueError, r"dynamics.weights: shape \(3,\) given, wanted \(D, D\)"),
    (
        changed("dynamics", weights=np.zeros((T - 1, D, D))),
        Y,
        None,
        ValueError,
        r"dynamics.weights: shape \(5, 3, 3\) given, wanted \(3, 3\) or \(6, 3, 3\)",
    ),
    (changed("dynamics", cov=np.zeros((D, D + 1))), Y, None, ValueError, r"dynamics.cov: shape \(3, 4\) given"),
    (
        changed("dynamics", bias=np.zeros(D + 1)),
        Y,
        None,
        ValueError,
        r"dynamics.bias: shape \(4,\) given, wanted \(3,\) or \(6, 3\)",
    ),
    (
        changed("emissions", weights=np.zeros((M, D + 1))),
        Y,
        None,
        ValueError,
        r"emissions.weights: shape \(2, 4\) given, wanted \(2, 3\)",
    ),
    (
        changed("emissions", cov=np.zeros((M, M + 1))),
        Y,
        None,
        ValueError,
        r"emissions.cov: shape \(2, 3\) given, wanted .*\(2,\) or \(6, 2\)",
    ),
    (changed("emissions", bias=np.zeros((T + 1, M))), Y, None, ValueError, r"emissions.bias: shape \(7, 2\) given"),
    (changed("dynamics", weights=None), Y, None, TypeError, r"dynamics.weights: None given, wanted an array"),
    (
        changed("dynamics", input_weights=np.zeros((D, 2))),
        Y,
        None,
        ValueError,
        r"inputs: None given, wanted shape \(6, 2\): dynamics.input_weights has 2",
    ),
    (
        changed("dynamics", input_weights=np.zeros((D, 2))),
        Y,
        np.zeros((T, 3)),
        ValueError,
        r"inputs: shape \(6, 3\) given, but dynamics.input_weights has 2",
    ),
    (PARAMS, Y, np.zeros((T + 1, 2)), ValueError, r"inputs: shape \(7, 2\) given, wanted \(6, 'U'\)"),
    (PARAMS, Y, np.zeros((T, 2), "float16"), TypeError, r"inputs: float16 given, wanted float32 or float64"),
    (PARAMS, Y, np.zeros(T), ValueError, r"inputs: shape \(6,\) given"),
    ((1, 2), Y, None, TypeError, r"params: tuple without a field initial.mean given; wanted fastscan.ParamsLGSSM"),
]


@pytest.mark.parametrize(("params", "emissions", "inputs", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(params, emissions, inputs, error, message):
    for function in FUNCTIONS:
        with pytest.raises(error, match=message):
            function(params, emissions, inputs)
    with pytest.raises(error, match=message):  # and before anything is traced
        jax.jit(lgssm_smoother)(params, emissions, inputs)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unknown_implementation(function):
    with pytest.raises(
        ValueError, match="implementation: 'fast' given, wanted None or one of sequential, associative, chunked"
    ):
        function(PARAMS, Y, implementation="fast")


def test_joint_sample():
    with pytest.raises(ValueError, match="num_timesteps: 0 given, wanted at least 1"):
        lgssm_joint_sample(PARAMS, jax.random.key(0), 0)
    with pytest.raises(ValueError, match="implementation: 'fast'"):
        lgssm_joint_sample(PARAMS, jax.random.key(0), 3, implementation="fast")


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("initial", "mean"),
        ("initial", "cov"),
        ("dynamics", "weights"),
        ("dynamics", "cov"),
        ("emissions", "weights"),
        ("emissions", "cov"),
        ("emissions", "bias"),
    ],
)
def test_nan_parameters(part, field):
    """Never a number that looks right, and never taken for a missing observation; a covariance that is seen is an error."""
    spoiled = getattr(getattr(PARAMS, part), field).copy()
    spoiled.flat[0] = np.nan
    posterior = TRACED(changed(part, **{field: spoiled}), Y)
    assert np.isnan(posterior.marginal_loglik)
    assert np.all(np.isnan(posterior.smoothed_means).any(-1))
    if field == "cov":
        with pytest.raises(ValueError, match=f"{part}.cov: NaN given, wanted a covariance"):
            lgssm_smoother(changed(part, **{field: spoiled}), Y)


TRACED = jax.jit(functools.partial(lgssm_smoother, implementation="chunked"))
INDEFINITE = {
    ("emissions", "cov"): [-np.eye(M), np.array([0.3, -0.1]), np.array([[1.0, 2.0], [2.0, 1.0]])],
    ("dynamics", "cov"): [np.diag([1.0, 1.0, -0.1])],
    ("initial", "cov"): [np.diag([-1.0, 1.0, 1.0])],
}


@pytest.mark.parametrize(("part", "field", "cov"), [(*k, cov) for k, covs in INDEFINITE.items() for cov in covs])
def test_an_indefinite_covariance(part, field, cov):
    """NaN under `jit`, and where it is seen an error of all functions."""
    params = changed(part, **{field: cov})
    posterior = TRACED(params, Y)
    assert jnp.isnan(posterior.marginal_loglik)
    assert np.all(np.isnan(posterior.smoothed_means).any(-1))
    seen = [*FUNCTIONS, lambda p, y: lgssm_joint_sample(p, jax.random.key(0), len(y))]
    for function in [*seen, lgssm_posterior_predictive, lambda p, y: lgssm_forecast(p, y, 2)]:
        for given in (params, jax.tree.map(jnp.asarray, params)):
            with pytest.raises(ValueError, match=rf"{part}.cov: .*(eigenvalue|variance) -.* given, wanted .*negative"):
                function(given, Y)


def test_kernels_that_cannot_run_here():
    """The pallas implementation is not replaced by another one: it says what it wants."""
    params, y = random_params(0, 2, 1), np.zeros((5, 1))
    message = r"'pallas' given, which wants an NVIDIA GPU; JAX computes on 'cpu'.*pallas_interpret"
    with pytest.raises(RuntimeError, match=message):
        lgssm_smoother(params, y, implementation="pallas")


@pytest.mark.parametrize(("D", "m"), [(65, 1), (2, 65)])
def test_models_that_are_too_large_for_kernels(D, m):
    params, y = random_params(0, D, m), np.zeros((5, m))
    message = rf"D = {D}, m = {m}, float64; kernels hold D and m up to 64. Take 'chunked'"
    with pytest.raises(ValueError, match=message):
        lgssm_smoother(params, y, implementation="pallas_interpret")
