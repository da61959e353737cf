"""dynamax's functions of nonlinear models under `fastscan.adopt`: against themselves without."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dynamax import nonlinear_gaussian_ssm as package
from dynamax.linear_gaussian_ssm import inference as lgssm
from dynamax.nonlinear_gaussian_ssm import inference_ekf as ekf
from dynamax.nonlinear_gaussian_ssm import inference_ukf as ukf

from fastscan import adopt, nonlinear
from fastscan.adoption import nonlinear as answers

T, D, M = 7, 2, 2
R = np.random.default_rng(0)
Y, U = jnp.asarray(R.normal(size=(T, M))), jnp.asarray(R.normal(size=(T, 1)))
A, C = jnp.asarray(R.normal(size=(D, D)) / 2), jnp.asarray(R.normal(size=(M, D)))
NOISE = 0.2 * jnp.eye(D) + 0.1
KEYS = jax.random.split(jax.random.key(0), 3)
POINTS = ukf.UKFHyperParams()
FUNCTIONS = {
    ekf: ("extended_kalman_filter", "extended_kalman_smoother", "extended_kalman_posterior_sample"),
    ukf: ("unscented_kalman_filter", "unscented_kalman_smoother"),
}

PLAIN = package.ParamsNLGSSM(
    jnp.ones(D), jnp.eye(D), lambda z: jnp.sin(A @ z) + 0.1 * z, NOISE, lambda z: jnp.tanh(C @ z), 0.3 * NOISE
)
WITH_INPUTS = PLAIN._replace(
    dynamics_function=lambda z, u: jnp.sin(A @ z) + u * z,
    dynamics_covariance=(NOISE * jnp.linspace(0.5, 2.0, T)[:, None, None]).at[0].set(jnp.nan),
    emission_function=lambda z, u: jnp.tanh(C @ z + u),
    emission_covariance=NOISE * jnp.linspace(1.0, 0.3, T)[:, None, None],
)
LINEAR = PLAIN._replace(dynamics_function=lambda z: A @ z, emission_function=lambda z: C @ z)


def call(name, params, y=Y, u=None, **more):
    """Calls a function as dynamax's module has it now; samples are of several keys."""
    if name.startswith("unscented"):
        return getattr(ukf, name)(params, y, POINTS, inputs=u, **more)
    if name.endswith("sample"):
        return jax.vmap(lambda key: getattr(ekf, name)(key, params, y, u, **more))(KEYS)
    return getattr(ekf, name)(params, y, inputs=u, **more)


def same(found, wanted, tolerance=1e-6):
    """Compares results; dynamax adds 1e-9 to the diagonals of what it inverts."""
    assert type(found) is type(wanted)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, tolerance, tolerance)


def as_without(function, *given):
    """Compares what a function of dynamax's returns under adoption with what it returns without, both within `jit`."""
    with adopt():
        found = jax.jit(lambda *given: function(*given))(*given)
    same(found, jax.jit(function)(*given))


NAMES = [name for names in FUNCTIONS.values() for name in names]


def but_for(*names):
    """Lists all functions, of which the others' tests are slow."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", but_for("extended_kalman_posterior_sample", "unscented_kalman_smoother"))
def test_with_inputs_and_time_varying_covariances(name):
    as_without(lambda y, u: call(name, WITH_INPUTS, y, u), Y, U)


@pytest.mark.parametrize("name", but_for("extended_kalman_filter"))
def test_without_inputs(name):
    as_without(lambda y: call(name, PLAIN, y), Y)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_linear_models(name):
    as_without(lambda y: call(name, LINEAR, y), Y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["extended_kalman_filter", "unscented_kalman_filter"])
@pytest.mark.parametrize("fields", [["predicted_means", "marginal_loglik", "what dynamax passes over"], []])
def test_fields(name, fields):
    as_without(lambda y: call(name, PLAIN, y, output_fields=fields), Y)


@pytest.mark.slow
def test_smoother_of_what_is_filtered():
    """Even where its log-likelihood is that of every step."""
    fields = ["filtered_means", "filtered_covariances", "marginal_loglik"]

    def smoothed(y):
        filtered = ekf.extended_kalman_filter(PLAIN, y, output_fields=fields)
        return ekf.extended_kalman_smoother(PLAIN, y, filtered)

    as_without(smoothed, Y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["extended_kalman_filter", "unscented_kalman_smoother"])
def test_of_covariances_with_few_entries_the_last_is_read_again(name):
    few = PLAIN._replace(emission_covariance=WITH_INPUTS.emission_covariance[:3])
    as_without(lambda y: call(name, few, y), Y)


@pytest.mark.slow
def test_single_emissions():
    """Which have no axis of their own."""
    single = PLAIN._replace(emission_function=lambda z: jnp.tanh(z[:1]), emission_covariance=jnp.eye(1))
    as_without(lambda y: call("extended_kalman_smoother", single, y), Y[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["extended_kalman_filter", "unscented_kalman_filter"])
def test_gradients(name):
    def loglik(A, y):
        return call(name, PLAIN._replace(dynamics_function=lambda z: jnp.sin(A @ z)), y).marginal_loglik

    as_without(jax.grad(loglik), A, Y)


def test_references_are_replaced_and_put_back():
    before = [getattr(module, name) for module, names in FUNCTIONS.items() for name in names]
    with adopt() as adoption:
        for module, names in FUNCTIONS.items():
            for name in names:
                assert f"{module.__name__}.{name}" in map(str, adoption.replaced)
                assert getattr(package, name) is getattr(module, name) is not getattr(nonlinear, name)
                assert getattr(module, name) not in before
        assert f"{ekf.__name__}.extended_kalman_filter: with num_iter > 1 every linearisation" in str(adoption)
        assert f"{ekf.__name__}.extended_kalman_smoother: within jax.jit, of a model of more than 12 states" in str(adoption)
        assert f"{ukf.__name__}.unscented_kalman_filter: within jax.jit, of a model of more than 8 states" in str(adoption)
        assert "parallel_inference.hmm_posterior_sample: draws other states" in str(adoption)
        assert "extended_kalman_filter: fastscan has none" not in str(adoption)
    assert before == [getattr(module, name) for module, names in FUNCTIONS.items() for name in names]


def test_iterated_filters_are_ours():
    """A linear model's moments don't change by it, which those of dynamax's filter do."""
    with adopt():
        found = call("extended_kalman_filter", LINEAR, num_iter=3)
        same(found, call("extended_kalman_filter", LINEAR), 1e-12)
    assert type(found) is ekf.PosteriorGSSMFiltered


@pytest.mark.parametrize("name", but_for("extended_kalman_filter", "unscented_kalman_smoother"))
def test_of_many_states_dynamax_s_functions_are_called(name, monkeypatch):
    """Where ours is slower: in a function that is traced, of a model that is not linear, and with one linearisation."""
    called = []
    module = ekf if name.startswith("extended") else ukf
    original = getattr(module, name)

    def theirs(*args, **kwargs):
        called.append(name)
        return original(*args, **kwargs)

    def calls(params, **more):
        called.clear()
        jax.eval_shape(lambda y: call(name, params, y, **more), Y)
        return name in called

    monkeypatch.setattr(module, name, theirs)
    with adopt():
        assert not calls(PLAIN)
    monkeypatch.setattr(answers, f"MOST_{name.split('_')[0].upper()}", D - 1)
    with adopt():
        assert calls(PLAIN)
        assert not calls(LINEAR)
        assert name != "extended_kalman_filter" or not calls(PLAIN, num_iter=2)
        if name == "unscented_kalman_filter":
            called.clear()
            call(name, PLAIN)
            assert not called


def test_versions_with_another_convention_of_time_keep_theirs(monkeypatch):
    before = ekf.extended_kalman_filter, lgssm.lgssm_filter
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.0.2")
    with adopt() as adoption:
        assert ekf.extended_kalman_filter is package.extended_kalman_filter is before[0]
        assert lgssm.lgssm_filter is not before[1]
        for module, names in FUNCTIONS.items():
            assert all(f"{module.__name__}.{name}: in version 1.0.2 covariance" in str(adoption) for name in names)


@pytest.mark.parametrize("name", but_for("extended_kalman_filter", "unscented_kalman_filter"))
def test_errors_are_those_that_users_of_dynamax_catch(name):
    short = WITH_INPUTS._replace(dynamics_covariance=WITH_INPUTS.dynamics_covariance[1:])
    with adopt(), pytest.raises(AssertionError, match="dynamics_covariance"):
        call(name, short, u=U)
