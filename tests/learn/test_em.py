"""Expectation maximisation: against dynamax, hmmlearn, and the gradient that its statistics imply."""

import functools

import hmmlearn.hmm as hmmlearn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dynamax.linear_gaussian_ssm import LinearGaussianSSM

from fastscan import lgssm_marginal_loglik, make_lgssm_params
from fastscan.learn import (
    CATEGORICAL,
    GAUSSIAN,
    HMM,
    LGSSM,
    POISSON,
    CategoricalEmissions,
    GaussianEmissions,
    ParamsHMM,
    PoissonEmissions,
    fit_em,
)
from fastscan.learn.lgssm.regression import products
from oracles.lgssm import cast, random_params, simulate

T, D, M, B = 12, 2, 3, 2
em = functools.partial(fit_em, progress=False)


def lgssm(missing=0.0, diagonal=False, seed=0):
    """Parameters and a batch of emissions."""
    r = np.random.default_rng(seed)
    params = cast(random_params(1, D, M), "float64")
    if diagonal:
        params = params._replace(emissions=params.emissions._replace(cov=np.diag(params.emissions.cov)))
    y = np.stack([simulate(random_params(1, D, M), T, seed) for seed in range(B)])
    y[r.random(y.shape) < missing] = np.nan
    return jax.tree.map(jnp.asarray, params), y


def test_steps_are_those_of_dynamax():
    """Of one sequence: of N of them, dynamax takes N times too much from the initial covariance."""
    model = LinearGaussianSSM(D, M)
    params, props = model.initialize(jax.random.key(0))
    y = lgssm()[1][0]
    wanted, wanted_logliks = model.fit_em(params, props, jnp.asarray(y), num_iters=3, verbose=False)
    given, logliks = em(LGSSM, params, y, num_iters=3)
    np.testing.assert_allclose(logliks, wanted_logliks, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), given, wanted)


@pytest.mark.parametrize(("missing", "diagonal"), [(0.0, False), (0.3, False), (0.3, True)])
def test_no_step_makes_the_data_less_likely(missing, diagonal):
    params, y = lgssm(missing, diagonal)
    fitted, logliks = em(LGSSM, params, y, num_iters=20)
    assert logliks[-1] > logliks[0] + 1
    assert np.all(np.diff(logliks) > -1e-9)
    assert jnp.shape(fitted.emissions.cov) == jnp.shape(params.emissions.cov)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_statistics_are_the_gradient(missing):
    """Where EM starts, its objective has the log-likelihood's gradient (Fisher): in W it is Q^-1 E[r x'], and so in Q."""
    params, y = lgssm(missing)
    inputs = np.random.default_rng(1).normal(size=(B, T, 1))
    params = params._replace(
        dynamics=params.dynamics._replace(input_weights=jnp.ones((D, 1))),
        emissions=params.emissions._replace(input_weights=jnp.ones((M, 1))),
    )
    statistics, _ = jax.jit(LGSSM.expect, static_argnums=3)(params, y, inputs, missing > 0)
    score = jax.jit(jax.grad(lambda p: lgssm_marginal_loglik(p, y, inputs).sum()))(params)
    for name in ("dynamics", "emissions"):
        part, of, sums = getattr(params, name), getattr(score, name), getattr(statistics, name)
        precision = np.linalg.inv(part.cov)
        coefficients = np.concatenate([of.weights, of.input_weights, of.bias[:, None]], 1)
        xr, rr = products(sums, D, np.zeros_like(coefficients))
        np.testing.assert_allclose(precision @ xr.T, coefficients, rtol=1e-8, atol=1e-9)
        of_cov = (precision @ rr @ precision - sums.x.shape[0] * sums.x.shape[1] * precision) / 2
        np.testing.assert_allclose(of_cov, of.cov, rtol=1e-8, atol=1e-9)
    precision = np.linalg.inv(params.initial.cov)
    xr, _ = products(statistics.initial, 0, np.zeros((D, 1)))
    np.testing.assert_allclose(precision @ xr[0], score.initial.mean, rtol=1e-8, atol=1e-9)


def test_frozen_parameters():
    """The rest goes on to be fitted, given those."""
    params, y = lgssm()
    frozen = ["initial", "dynamics.weights", "emissions.cov"]
    fitted, logliks = em(LGSSM, params, y, frozen=frozen, num_iters=15)
    assert np.all(np.diff(logliks) > -1e-9)
    for part, fields in {"initial": ("mean", "cov"), "dynamics": ("weights",), "emissions": ("cov",)}.items():
        for field in fields:
            np.testing.assert_array_equal(getattr(getattr(fitted, part), field), getattr(getattr(params, part), field))
    assert np.abs(fitted.dynamics.cov - params.dynamics.cov).max() > 1e-3


def test_one_time_step_leaves_the_dynamics_alone():
    params, y = lgssm()
    fitted, _ = em(LGSSM, params, y[:, :1], frozen=["emissions"], num_iters=2)
    jax.tree.map(np.testing.assert_array_equal, fitted.dynamics, params.dynamics)
    assert np.isfinite(fitted.initial.mean).all()


def hmm(emissions):
    r = np.random.default_rng(0)
    return ParamsHMM(*(jnp.asarray(x) for x in (np.full(3, 1 / 3), r.dirichlet(np.ones(3), size=3))), emissions)


def gaussian():
    params = hmm(GaussianEmissions(jnp.array([[-1.0, 0], [0, 0.5], [2, 1]]), jnp.tile(jnp.eye(2), (3, 1, 1))))
    theirs = hmmlearn.GaussianHMM(3, "full", covars_prior=0, covars_weight=0, min_covar=0)
    theirs.means_, theirs.covars_ = map(np.asarray, params.emissions)
    return HMM(GAUSSIAN), params, theirs, np.random.default_rng(0).normal(size=(2, 40, 2)), ("means_", "covars_")


def poisson():
    params = hmm(PoissonEmissions(jnp.array([[1.0], [3], [9]])))
    theirs = hmmlearn.PoissonHMM(3)
    theirs.lambdas_ = np.asarray(params.emissions.rates)
    return HMM(POISSON), params, theirs, np.random.default_rng(0).poisson(4.0, size=(2, 40, 1)).astype(float), ("lambdas_",)


def categorical():
    params = hmm(CategoricalEmissions(jnp.array([[0.2, 0.8, 0], [0.1, 0.3, 0.6], [0.5, 0.4, 0.1]])))
    theirs = hmmlearn.CategoricalHMM(3, n_features=3)
    theirs.emissionprob_ = np.asarray(params.emissions.probs)
    return HMM(CATEGORICAL), params, theirs, np.random.default_rng(0).integers(0, 3, size=(2, 40)), ("emissionprob_",)


@pytest.mark.parametrize("make", [gaussian, poisson, categorical])
def test_steps_are_those_of_hmmlearn(make):
    model, params, theirs, y, names = make()
    fitted, logliks = em(model, params, y, num_iters=4)
    theirs.n_iter, theirs.tol, theirs.init_params = 4, -np.inf, ""
    theirs.startprob_, theirs.transmat_ = map(np.asarray, params[:2])
    theirs.fit(y.reshape(80, -1), [40, 40])
    np.testing.assert_allclose(logliks, theirs.monitor_.history, rtol=1e-9)
    wanted = theirs.startprob_, theirs.transmat_, *(getattr(theirs, name) for name in names)
    for a, b in zip(jax.tree.leaves(fitted), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [gaussian, poisson, categorical])
def test_missing_emissions_of_hidden_states(make):
    """They are as good as absent: their weights are nobody's; likelihoods never fall; frozen parameters stay."""
    model, params, _, y, _ = make()
    gaps = np.random.default_rng(3).random(y.shape[:2]) < 0.3
    y[gaps] = -1 if y.dtype == int else np.nan
    fitted, logliks = em(model, params, y, frozen=["initial_distribution"], num_iters=10)
    assert np.all(np.diff(logliks) > -1e-9)
    np.testing.assert_array_equal(fitted.initial_distribution, params.initial_distribution)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(fitted))


def test_a_state_without_a_share_keeps_its_parameters():
    params = hmm(PoissonEmissions(jnp.array([[1.0], [3], [9]])))
    A = jnp.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    params = params._replace(initial_distribution=jnp.array([0.5, 0.5, 0]), transition_matrix=A)
    fitted, _ = em(HMM(POISSON), params, np.ones((9, 1)), num_iters=2)
    np.testing.assert_array_equal(fitted.transition_matrix[2], A[2])
    assert fitted.emissions.rates[2, 0] == 9


def test_bad_input():
    params, y = lgssm()
    with pytest.raises(ValueError, match="num_iters: 0 given"):
        em(LGSSM, params, y, num_iters=0)
    with pytest.raises(ValueError, match=r"emissions: shape \(3,\) given, wanted \(T, m\) or \(B, T, m\)"):
        em(LGSSM, params, y[0, 0])
    varying = params._replace(dynamics=params.dynamics._replace(cov=jnp.tile(params.dynamics.cov, (T, 1, 1))))
    with pytest.raises(ValueError, match=r"dynamics.cov: shape \(12, 2, 2\) given, wanted \(2, 2\): EM"):
        em(LGSSM, varying, y)
    batched = params._replace(initial=jax.tree.map(lambda x: x[None], params.initial))
    with pytest.raises(ValueError, match=r"initial.mean: shape \(1, 2\) given, wanted \(2,\), which all sequences share"):
        em(LGSSM, batched, y)
    with pytest.raises(ValueError, match=r"inputs: shape \(1, 1\) given, wanted \(12, 'U'\) or \(2, 12, 'U'\)"):
        em(LGSSM, params, y, np.ones((1, 1)))
    with pytest.raises(TypeError, match=r"dynamics.weights: a function given"):
        em(LGSSM, params._replace(dynamics=params.dynamics._replace(weights=jnp.diag)), y)


def test_bad_input_of_hidden_states():
    model, params, _, y, _ = poisson()
    with pytest.raises(ValueError, match="HMMs take none"):
        em(model, params, y, np.ones((2, 40, 1)))
    with pytest.raises(ValueError, match=r"emissions: \(..., T, 3\) given .*rates of shape \(3, 1\)"):
        em(model, params, np.tile(y, 3))
    with pytest.raises(ValueError, match=r"the same for all sequences"):
        em(model, params._replace(initial_distribution=jnp.ones((2, 3)) / 3), y)
    model, params, _, y, _ = categorical()
    with pytest.raises(TypeError, match=r"emissions: float64 given, wanted integers"):
        em(model, params, y.astype(float))
    with pytest.raises(ValueError, match="symbol 3 given, wanted less than"):
        em(model, params, y + 1)


def test_parameters_that_are_no_numbers_do_not_look_like_missing_data():
    model, params, _, y, _ = gaussian()
    broken = params._replace(emissions=params.emissions._replace(covs=-params.emissions.covs))
    assert np.isnan(em(model, broken, y, num_iters=1)[1]).all()


def test_single_precision_far_from_zero():
    """Covariances of transitions are no differences of second moments."""
    r = np.random.default_rng(0)
    level = 1e4 + np.cumsum(0.3 * r.normal(size=400))
    y = (level + 0.5 * r.normal(size=400))[:, None]
    one = np.ones((1, 1))
    params = make_lgssm_params(np.array([1e4]), one, one, 0.1 * one, one, 0.2 * one)
    frozen = ["initial", "dynamics.weights", "dynamics.bias", "emissions.weights", "emissions.bias"]
    fitted = [
        em(LGSSM, cast(params, dtype), y.astype(dtype), frozen=frozen, num_iters=5)[0] for dtype in ("float32", "float64")
    ]
    assert fitted[0].dynamics.cov.dtype == np.float32
    np.testing.assert_allclose(fitted[0].dynamics.cov, fitted[1].dynamics.cov, rtol=0.02)


def test_optional_parameters_of_another_dtype():
    """As dynamax makes them: zeros of JAX's default dtype."""
    params, y = lgssm()
    params = cast(params, "float32")
    params = params._replace(dynamics=params.dynamics._replace(bias=np.zeros(D)))
    fitted, _ = em(LGSSM, params, y.astype("float32"), num_iters=2)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(fitted))
