"""dynamax's conventions, against dynamax's own sequential code; and its faults, which we must not have."""

import dynamax.linear_gaussian_ssm as dynamax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import fastscan
from fastscan import lgssm_filter, lgssm_joint_sample, lgssm_posterior_sample, lgssm_smoother, make_lgssm_params
from oracle import assert_moments, cast, close, random_params, simulate, textbook, tracking_params

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


@pytest.mark.parametrize("implementation", ["sequential", "chunked"])
@pytest.mark.parametrize("name", variants())
def test_conventions(name, implementation):
    arguments = variants()[name]
    theirs = dynamax.lgssm_smoother
    params = make_lgssm_params(**jax.tree.map(jnp.asarray, arguments))
    inputs = INPUTS if "input" in name or name == "time-varying" else None
    y = jnp.asarray(R.normal(size=(T, M)))
    inputs = None if inputs is None else jnp.asarray(inputs)
    wanted = theirs(params, y, inputs)
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


def test_dynamaxs_own_objects():
    model = dynamax.LinearGaussianSSM(D, M)
    params, _ = model.initialize(jr.PRNGKey(0))
    params = jax.tree.map(lambda x: x.astype("float64"), params)
    _, y = model.sample(params, jr.PRNGKey(1), T)
    for a, b in zip(lgssm_smoother(params, y), dynamax.lgssm_smoother(params, y), strict=True):
        close(a, b, 1e-7)


def test_entry_zero_of_the_dynamics_is_not_read():
    arguments = variants()["time-varying"]
    spoiled = {
        k: np.concatenate([np.full_like(v[:1], np.nan), v[1:]])
        for k, v in arguments.items()
        if k.startswith("dynamics") and len(v) == T
    }
    y = R.normal(size=(T, M))
    a = lgssm_smoother(make_lgssm_params(**arguments), y, INPUTS)
    b = lgssm_smoother(make_lgssm_params(**(arguments | spoiled)), y, INPUTS)
    for x, z in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, z)


def test_functions_of_time():
    arguments = variants()["time-varying"]
    arrays = make_lgssm_params(**arguments)
    functions = arrays._replace(
        dynamics=arrays.dynamics._replace(weights=lambda t: jnp.asarray(TRANSITIONS)[t], cov=lambda t: jnp.asarray(COVS)[t])
    )
    y = R.normal(size=(T, M))
    for a, b in zip(lgssm_smoother(arrays, y, INPUTS), lgssm_smoother(functions, y, INPUTS), strict=True):
        np.testing.assert_array_equal(a, b)


def test_none_fields():
    params = random_params(0, D, M)
    nones = params._replace(dynamics=params.dynamics._replace(bias=None), emissions=params.emissions._replace(bias=None))
    y = simulate(nones, T, 0)
    for implementation in fastscan.dispatch.XLA_IMPLEMENTATIONS:
        assert_moments(lgssm_smoother(nones, y[:4], implementation=implementation), textbook(nones, y[:4]), "float64")


def test_a_square_covariance_is_static_where_t_equals_n():
    params = random_params(0, 2, 3)
    y = simulate(params, 3, 0)
    assert_moments(lgssm_smoother(params, y), textbook(params, y), "float64")


def test_cross_covariances_are_second_moments_in_every_implementation():
    params = random_params(1, D, M)
    y = simulate(params, 5, 0)
    for implementation in fastscan.dispatch.XLA_IMPLEMENTATIONS:
        posterior = lgssm_smoother(params, y, implementation=implementation)
        close(posterior.smoothed_cross_covariances, textbook(params, y).cross, 1e-9)


def test_em_statistics():
    """dynamax's E step, from our posterior and its formulas' inputs."""
    model = dynamax.LinearGaussianSSM(D, M)
    params, _ = model.initialize(jr.PRNGKey(0))
    params = jax.tree.map(lambda x: x.astype("float64"), params)
    _, y = model.sample(params, jr.PRNGKey(1), T)
    (_, (sum_zpzp, sum_zpxn, sum_xnxn, _), _), _ = model.e_step(params, y)
    p = lgssm_smoother(params, y)
    second = p.smoothed_covariances + jnp.einsum("ti,tj->tij", p.smoothed_means, p.smoothed_means)
    close(second[:-1].sum(0), sum_zpzp[:D, :D], 1e-7)
    close(p.smoothed_cross_covariances.sum(0), sum_zpxn[:D], 1e-7)
    close(second[1:].sum(0), sum_xnxn, 1e-7)


def scaled_q(params, factor):
    return params._replace(dynamics=params.dynamics._replace(cov=params.dynamics.cov.astype("float64") * factor))


@pytest.mark.parametrize("implementation", ["sequential", "chunked"])
def test_fault_log_likelihood_of_the_tracking_model_in_float32(implementation):
    """Theirs, in parallel: relative error 2.0 at this length, and a gradient wrong by ten times its size."""
    params, y = tracking_params("float32"), simulate(tracking_params(), 10_000, 0).astype("float32")

    def loglik(p, log_q):
        scaled = p._replace(dynamics=p.dynamics._replace(cov=p.dynamics.cov * jnp.exp(log_q)))
        return fastscan.lgssm_marginal_loglik(scaled, y.astype(p.initial.mean.dtype), implementation=implementation)

    given, slope = jax.value_and_grad(loglik, 1)(params, np.float32(0))
    close(given, textbook(params, y).loglik.sum(), 1e-5)
    h = 1e-4
    precise = [textbook(scaled_q(params, factor), y).loglik.sum() for factor in (np.exp(h), np.exp(-h))]
    close(slope, (precise[0] - precise[1]) / (2 * h), 1e-2)


@pytest.mark.parametrize("implementation", fastscan.dispatch.XLA_IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32"])
def test_fault_singular_covariances(implementation, dtype):
    """Theirs: NaN likelihoods, gradients and samples."""
    params = random_params(2, 3, 2)
    direction = np.array([[1.0], [0.5], [0.0]])
    params = params._replace(
        initial=params.initial._replace(cov=np.zeros((3, 3))), dynamics=params.dynamics._replace(cov=direction @ direction.T)
    )
    y = simulate(params, 3, 0)
    params, y = cast(params, dtype), y.astype(dtype)
    assert_moments(lgssm_smoother(params, y, implementation=implementation), textbook(params, y), dtype, scale=5)
    assert np.all(np.isfinite(lgssm_posterior_sample(jr.key(0), params, y, implementation=implementation)))
    gradient = jax.grad(lambda p: fastscan.lgssm_marginal_loglik(p, y, implementation=implementation))(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


def test_fault_one_missing_emission_spoils_the_rest():
    params = random_params(0, D, M)
    y = simulate(params, T, 0)
    y[4] = np.nan
    assert all(np.all(np.isfinite(x)) for x in lgssm_smoother(params, y))


def test_fault_float32_parameters_under_x64():
    assert jax.config.jax_enable_x64
    params = random_params(0, D, M, "float32")
    y = simulate(params, T, 0).astype("float32")
    padded = dynamax.inference.make_lgssm_params(
        *map(jnp.asarray, (params.initial.mean, params.initial.cov, params.dynamics.weights, params.dynamics.cov)),
        jnp.asarray(params.emissions.weights),
        jnp.asarray(params.emissions.cov),
    )
    assert padded.dynamics.bias.dtype == np.float64  # dynamax's zeros, in JAX's default dtype
    for p in (params, padded):
        assert {x.dtype for x in lgssm_smoother(p, y)} == {np.dtype("float32")}
        assert lgssm_filter(p, y).filtered_means.dtype == np.float32
        assert lgssm_posterior_sample(jr.key(0), p, y).dtype == np.float32
        assert {x.dtype for x in lgssm_joint_sample(p, jr.key(0), 5)} == {np.dtype("float32")}


def test_fault_gradients_with_respect_to_covariances_agree_between_forms():
    params = random_params(4, 2, 1)
    y = simulate(params, 4, 0)

    def gradient(implementation):
        g = jax.grad(lambda p: fastscan.lgssm_marginal_loglik(p, y, implementation=implementation))(params)
        return [x + x.T if x.ndim == 2 and x.shape[0] == x.shape[1] else x for x in jax.tree.leaves(g)]

    wanted = gradient("sequential")
    for implementation in ("associative", "chunked"):
        for a, b in zip(gradient(implementation), wanted, strict=True):
            close(a, b, 1e-8)
