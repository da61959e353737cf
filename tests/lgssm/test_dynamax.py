"""dynamax's conventions, against dynamax's own sequential code; and its faults, which we must not have."""

import dynamax.linear_gaussian_ssm as dynamax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import fastscan
from fastscan import lgssm_filter, lgssm_joint_sample, lgssm_posterior_sample, lgssm_smoother, make_lgssm_params
from oracles.lgssm import assert_moments, cast, close, initial, random_params, simulate, textbook, tracking_params

T, D, M, U = 11, 3, 2, 2
R = np.random.default_rng(0)
TRANSITIONS = 0.5 * R.normal(size=(T, D, D))
COVS = np.einsum("tij,tkj->tik", R.normal(size=(T, D, D)), R.normal(size=(T, D, D)) * 0) + np.eye(D) * R.uniform(
    0.5, 1, (T, 1, 1)
)
INPUTS = R.normal(size=(T, U))
FULL = np.array([[0.5, 0.2], [0.2, 0.4]])


def variants():
    base = {
        "initial_mean": R.normal(size=D),
        "initial_cov": np.eye(D) * 0.7,
        "dynamics_weights": TRANSITIONS[0],
        "dynamics_cov": COVS[0],
        "emissions_weights": R.normal(size=(M, D)),
        "emissions_cov": FULL,
    }
    moving = {"dynamics_weights": TRANSITIONS, "dynamics_cov": COVS, "dynamics_bias": R.normal(size=(T, D))}
    inputs = {"dynamics_input_weights": R.normal(size=(D, U)), "emissions_input_weights": R.normal(size=(M, U))}
    return {
        "static": base,
        "biases": base | {"dynamics_bias": R.normal(size=D), "emissions_bias": R.normal(size=M)},
        "inputs": base | inputs,
        "time-varying": base | moving | inputs,
        "time-varying input weights": base
        | {"dynamics_input_weights": R.normal(size=(T, D, U)), "emissions_input_weights": R.normal(size=(T, M, U))},
        "time-varying emissions": base
        | {"emissions_weights": R.normal(size=(T, M, D)), "emissions_bias": R.normal(size=(T, M))},
        "diagonal R": base | {"emissions_cov": np.array([0.3, 0.6])},
        "time-varying diagonal R": base | {"emissions_cov": R.uniform(0.2, 1, (T, M))},
        "time-varying full R": base | {"emissions_cov": np.einsum("t,ij->tij", R.uniform(0.5, 1, T), FULL)},
    }


CHUNKED = {"static", "time-varying", "time-varying emissions", "time-varying diagonal R", "time-varying full R"}
their_smoother = jax.jit(dynamax.lgssm_smoother)


@pytest.mark.parametrize("name", variants())
def test_conventions(name):
    arguments = variants()[name]
    params = make_lgssm_params(**jax.tree.map(jnp.asarray, arguments))
    inputs = INPUTS if "input" in name or name == "time-varying" else None
    y = jnp.asarray(R.normal(size=(T, M)))
    inputs = None if inputs is None else jnp.asarray(inputs)
    wanted = their_smoother(params, y, inputs)
    for implementation in ("sequential", "chunked") if name in CHUNKED else ("sequential",):
        given = lgssm_smoother(params, y, inputs, implementation=implementation)
        assert given._fields == wanted._fields
        for field, a, b in zip(given._fields, given, wanted, strict=True):
            close(a, b, 1e-7, field)  # dynamax adds 1e-9 to the matrices it inverts


def test_fields_names_and_signatures_are_dynamaxs():
    assert fastscan.ParamsLGSSM._fields == dynamax.ParamsLGSSM._fields
    for ours, theirs in (
        (fastscan.ParamsLGSSMInitial, dynamax.ParamsLGSSMInitial),
        (fastscan.ParamsLGSSMDynamics, dynamax.ParamsLGSSMDynamics),
        (fastscan.ParamsLGSSMEmissions, dynamax.ParamsLGSSMEmissions),
        (fastscan.PosteriorGSSMFiltered, dynamax.PosteriorGSSMFiltered),
        (fastscan.PosteriorGSSMSmoothed, dynamax.PosteriorGSSMSmoothed),
    ):
        assert ours._fields == theirs._fields


def test_dynamaxs_own_objects_and_em_statistics():
    """Its parameters work here; its E step is had from our posterior and its formulas' inputs."""
    model = dynamax.LinearGaussianSSM(D, M)
    params = initial(model, jr.PRNGKey(0))
    params = jax.tree.map(lambda x: x.astype("float64"), params)
    y = jnp.asarray(simulate(params, T, 1))
    p = lgssm_smoother(params, y)
    for a, b in zip(p, their_smoother(params, y), strict=True):
        close(a, b, 1e-7)
    (_, (sum_zpzp, sum_zpxn, sum_xnxn, _), _), _ = jax.jit(model.e_step)(params, y)
    second = p.smoothed_covariances + jnp.einsum("ti,tj->tij", p.smoothed_means, p.smoothed_means)
    close(second[:-1].sum(0), sum_zpzp[:D, :D], 1e-7)
    close(p.smoothed_cross_covariances.sum(0), sum_zpxn[:D], 1e-7)
    close(second[1:].sum(0), sum_xnxn, 1e-7)


def test_dynamics_of_time_and_their_entry_zero_which_is_not_read():
    """As arrays, as arrays whose entry zero is spoiled, and as functions."""
    arguments = variants()["time-varying"]
    spoiled = {
        k: np.concatenate([np.full_like(v[:1], np.nan), v[1:]])
        for k, v in arguments.items()
        if k.startswith("dynamics") and len(v) == T
    }
    arrays = make_lgssm_params(**arguments)
    functions = arrays._replace(
        dynamics=arrays.dynamics._replace(weights=lambda t: jnp.asarray(TRANSITIONS)[t], cov=lambda t: jnp.asarray(COVS)[t])
    )
    y = R.normal(size=(T, M))
    wanted = lgssm_smoother(arrays, y, INPUTS)
    for params in (make_lgssm_params(**(arguments | spoiled)), functions):
        for a, b in zip(lgssm_smoother(params, y, INPUTS), wanted, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("implementation", fastscan.dispatch.choice.XLA_IMPLEMENTATIONS)
def test_none_fields_and_cross_covariances_which_are_second_moments(implementation):
    params = random_params(1, 2, 1)
    params = params._replace(dynamics=params.dynamics._replace(bias=None), emissions=params.emissions._replace(bias=None))
    y = simulate(params, 4, 0)
    assert_moments(lgssm_smoother(params, y, implementation=implementation), textbook(params, y), "float64")


def test_a_square_covariance_is_static_where_t_equals_n():
    params = random_params(0, 2, 3)
    y = simulate(params, 3, 0)
    assert_moments(lgssm_smoother(params, y), textbook(params, y), "float64")


def scaled_q(params, factor):
    return params._replace(dynamics=params.dynamics._replace(cov=params.dynamics.cov.astype("float64") * factor))


def test_fault_log_likelihood_of_the_tracking_model_in_float32():
    """Theirs, in parallel: relative error 2.0 at this length, and a gradient wrong by ten times its size."""
    params, y = tracking_params("float32"), simulate(tracking_params(), 10_000, 0).astype("float32")

    def loglik(log_q, p, implementation):
        scaled = p._replace(dynamics=p.dynamics._replace(cov=p.dynamics.cov * jnp.exp(log_q)))
        return fastscan.lgssm_marginal_loglik(scaled, y.astype(p.initial.mean.dtype), implementation=implementation)

    h = 1e-4
    wanted, *precise = [textbook(scaled_q(params, factor), y).loglik.sum() for factor in (1, np.exp(h), np.exp(-h))]
    for implementation in ("sequential", "chunked"):
        given, slope = jax.jit(jax.value_and_grad(loglik), static_argnums=2)(np.float32(0), params, implementation)
        close(given, wanted, 1e-5)
        close(slope, (precise[0] - precise[1]) / (2 * h), 1e-2)


@pytest.mark.parametrize("implementation", fastscan.dispatch.choice.XLA_IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32"])
def test_fault_singular_covariances(implementation, dtype):
    """Theirs: NaN likelihoods, gradients and samples."""
    params = random_params(2, 2, 1)
    direction = np.array([[1.0], [0.5]])
    params = params._replace(
        initial=params.initial._replace(cov=np.zeros((2, 2))), dynamics=params.dynamics._replace(cov=direction @ direction.T)
    )
    y = simulate(params, 3, 0)
    params, y = cast(params, dtype), y.astype(dtype)
    assert_moments(lgssm_smoother(params, y, implementation=implementation), textbook(params, y), dtype, scale=5)
    assert np.all(np.isfinite(lgssm_posterior_sample(jr.key(0), params, y, implementation=implementation)))
    gradient = jax.jit(jax.grad(lambda p: fastscan.lgssm_marginal_loglik(p, y, implementation=implementation)))(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_fault_one_missing_emission_spoils_the_rest():
    params = random_params(0, D, M)
    y = simulate(params, T, 0)
    y[4] = np.nan
    assert all(np.all(np.isfinite(x)) for x in lgssm_smoother(params, y))


def test_fault_float32_parameters_under_x64():
    assert jax.config.jax_enable_x64
    params = random_params(0, 2, 1, "float32")
    y = simulate(params, 5, 0).astype("float32")
    padded = dynamax.inference.make_lgssm_params(
        *map(jnp.asarray, (params.initial.mean, params.initial.cov, params.dynamics.weights, params.dynamics.cov)),
        jnp.asarray(params.emissions.weights),
        jnp.asarray(params.emissions.cov),
    )
    assert padded.dynamics.bias.dtype == np.float64  # dynamax's zeros, in JAX's default dtype
    functions = (
        lgssm_smoother,
        lgssm_filter,
        lambda p, y: lgssm_posterior_sample(jr.key(0), p, y),
        lambda p, _: lgssm_joint_sample(p, jr.key(0), 5),
    )
    for p in (params, padded):
        for function in functions:  # dtypes are known when they are traced
            assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(function, p, y))} == {np.dtype("float32")}


def test_fault_gradients_with_respect_to_covariances_agree_between_forms():
    params = random_params(4, 2, 1)
    y = simulate(params, 3, 0)

    def gradient(implementation):
        g = jax.jit(jax.grad(lambda p: fastscan.lgssm_marginal_loglik(p, y, implementation=implementation)))(params)
        return [x + x.T if x.ndim == 2 and x.shape[0] == x.shape[1] else x for x in jax.tree.leaves(g)]

    wanted = gradient("sequential")
    for implementation in ("associative", "chunked"):
        for a, b in zip(gradient(implementation), wanted, strict=True):
            close(a, b, 1e-8)
