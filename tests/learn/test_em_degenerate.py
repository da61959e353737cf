"""EM where data, regressors or states are degenerate: no NaN, no fall, and a verdict that says where."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from fastscan import make_lgssm_params
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
from fastscan.learn.floors import FLOOR, Floor, factor, floor, raised
from fastscan.learn.lgssm.regression import Regression, fit

em = functools.partial(fit_em, progress=False)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def never_falls(fit, cov, rows):
    """But for rounding: of the log-likelihood, and of covariances (..., m, m), which change squares of ``rows`` residuals."""
    eps, cov = np.finfo(fit.log_likelihoods.dtype).eps, np.atleast_3d(np.asarray(cov, float))
    values = np.maximum(np.linalg.eigvalsh((cov + cov.mT) / 2), 1e-300)
    spread = (values[..., -1:] / values).sum()
    allowed = 20 * eps * np.abs(fit.log_likelihoods).max() + rows * eps * spread
    assert fit.verdict.finite, str(fit.verdict)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(fit.params))
    assert fit.verdict.worst_fall <= allowed, (fit.verdict.worst_fall, allowed)


# --- redundant regressors --------------------------------------------------------------------------------------------------


def regression_on(u, dtype, T=120):
    """A walk with inputs that are seen in it; the inputs' coefficients in the transitions are frozen."""
    r = np.random.default_rng(0)
    x, wave = np.zeros(T), np.sin(np.arange(T) / 7)
    for t in range(1, T):
        x[t] = 0.9 * x[t - 1] + r.normal()
    y = (x + 2 * wave + 1 + 0.5 * r.normal(size=T))[:, None]
    one, none = np.ones((1, 1)), np.zeros((1, u.shape[1]))
    start = np.where(u.any(0), none, 0.25)
    params = make_lgssm_params(np.zeros(1), one, 0.5 * one, one, one, one, None, none, np.zeros(1), start)
    params, y, u = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, y, u))
    frozen = ["dynamics.input_weights", "dynamics.bias", "emissions.weights"]
    return em(LGSSM, params, y, u, frozen=frozen, num_iters=8)


T = 120
WAVE = np.sin(np.arange(T) / 7)[:, None]
MONTHS = np.eye(4)[np.arange(T) % 4]
REDUNDANT = {
    "a dummy that is never one": (np.c_[WAVE, np.zeros(T)], WAVE, "emissions.input_weights[:, 1]"),
    "a constant beside the bias": (np.c_[WAVE, np.full(T, 0.1)], WAVE, "emissions.input_weights[:, 1]"),
    "a column twice": (np.c_[WAVE, WAVE], WAVE, "emissions.input_weights[:, 0], emissions.input_weights[:, 1]"),
    "of other scales": (np.c_[1e-4 * WAVE, 1e5 * WAVE], WAVE, "emissions.input_weights[:, 0], emissions.input_weights[:, 1]"),
    "seasons beside the bias": (
        np.c_[WAVE, MONTHS],
        np.c_[WAVE, MONTHS[:, 1:]],
        ", ".join(f"emissions.input_weights[:, {i}]" for i in range(1, 5)),
    ),
}


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "float32") for kind in REDUNDANT), ("seasons beside the bias", "float64")]
)
def test_redundant_regressors_change_nothing(kind, dtype):
    u, enough, named = REDUNDANT[kind]
    fit, wanted = regression_on(u, dtype), regression_on(enough, dtype)
    np.testing.assert_allclose(fit.log_likelihoods[-1], wanted.log_likelihoods[-1], rtol=1e-5)
    assert f"redundant regressors: {named}" in str(fit.verdict)
    assert "redundant" not in str(wanted.verdict)
    never_falls(fit, fit.params.emissions.cov, T)
    if kind == "a dummy that is never one":
        assert fit.params.emissions.input_weights[0, 1] == 0.25


def test_a_trend_far_from_zero_is_not_redundant():
    """Years beside a bias, in single precision: centred, they are no constant."""
    years = 2000 + np.arange(T)[:, None] / 12
    fit = regression_on(np.c_[WAVE, years], "float32")
    near = regression_on(np.c_[WAVE, years - years.mean()], "float32")
    assert "redundant" not in str(fit.verdict)
    np.testing.assert_allclose(fit.log_likelihoods[-1], near.log_likelihoods[-1], rtol=1e-4)


@both_dtypes
def test_least_squares_of_minimum_norm(dtype):
    """Of known regressors of unit size, against NumPy's; what is left is orthogonal to all of them, and a covariance."""
    r = np.random.default_rng(1)
    x = r.normal(size=(1, 50, 3))
    x = np.concatenate([x, x[..., :1] - 2 * x[..., 1:2], np.zeros((1, 50, 1))], -1)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    y = r.normal(size=(1, 50, 2))
    nothing = jnp.zeros((1, 2, 0), dtype), jnp.zeros((1, 0, 0), dtype), jnp.zeros((2, 2), dtype)
    of = Regression(jnp.asarray(x, dtype), jnp.asarray(y, dtype), *nothing)
    change, rr, redundant = fit(of, 0, np.arange(5), bias=False)
    wanted = np.linalg.lstsq(x[0], y[0], rcond=1e-5)[0].T
    scale = 1e2 * np.finfo(dtype).eps
    np.testing.assert_allclose(change, wanted, atol=scale)
    left = y[0] - x[0] @ wanted.T
    np.testing.assert_allclose(rr, left.T @ left, atol=scale * 50)
    np.testing.assert_array_equal(redundant, [True, True, False, True, True])


def test_accurate_residuals_after_a_poor_start():
    """Squares about the new weights: the old ones' residuals are a million times larger."""
    r = np.random.default_rng(2)
    x, noise = r.normal(size=(1, 200, 2)), 1e-3 * r.normal(size=(1, 200, 1))
    y = 1e3 * x[..., :1] - 5e2 * x[..., 1:] + noise
    nothing = jnp.zeros((1, 1, 0), "float32"), jnp.zeros((1, 0, 0), "float32"), jnp.zeros((1, 1), "float32")
    y32, x32 = y.astype("float32"), x.astype("float32")
    _, rr, _ = fit(Regression(jnp.asarray(x32), jnp.asarray(y32), *nothing), 0, np.arange(2), bias=False)
    x64, y64 = x32[0].astype(float), y32[0].astype(float)
    left = y64 - x64 @ np.linalg.lstsq(x64, y64)[0]
    np.testing.assert_allclose(rr[0, 0], (left**2).sum(), rtol=0.05)


# --- floors ----------------------------------------------------------------------------------------------------------------


def test_a_floor_is_a_constrained_maximum():
    """By numerical maximisation over all covariances that are at least the floor."""
    r = np.random.default_rng(0)
    x = r.normal(size=(3, 3))
    S, scale = x @ x.T / 3, np.array([1.0, 2.0, 0.5])
    low = Floor(jnp.asarray(scale), jnp.asarray(0.4))
    found, _ = raised(jnp.asarray(S), low)
    triangle = np.tril_indices(3)

    def cov(v):
        L = np.zeros((3, 3))
        L[triangle] = v
        return 0.4 * np.diag(scale**2) + L @ L.T

    def loss(v):
        return np.linalg.slogdet(cov(v))[1] + np.trace(np.linalg.solve(cov(v), S))

    best = min((optimize.minimize(loss, r.normal(size=6), tol=1e-12) for _ in range(5)), key=lambda x: x.fun)
    np.testing.assert_allclose(found, cov(best.x), atol=1e-4)


@both_dtypes
def test_what_lies_above_a_floor_keeps_its_bits(dtype):
    x = np.random.default_rng(0).normal(size=(4, 50))
    S = jnp.asarray(x @ x.T / 50, dtype)
    low = floor(jnp.asarray(x.T[None], dtype), S)
    assert low.fraction == FLOOR[jnp.dtype(dtype)]
    np.testing.assert_array_equal(raised(S, low)[0], S)
    np.testing.assert_array_equal(raised(jnp.diag(S), low)[0], jnp.diag(S))
    np.testing.assert_allclose(factor(S) @ factor(S).T, S, atol=1e2 * np.finfo(dtype).eps)


def test_a_floor_is_not_above_the_start():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(1, 50, 2)))
    assert floor(y, 1e-20 * jnp.eye(2)).fraction < 1e-19
    assert floor(y, jnp.array([1.0, 0])).fraction == 0
    again = floor(y, raised(jnp.zeros((2, 2)), floor(y, jnp.eye(2)))[0])
    assert again.fraction == FLOOR[y.dtype]


# --- linear-Gaussian models ------------------------------------------------------------------------------------------------


def walks(kind, dtype, T=100, m=5, seed=0):
    """Emissions of a two-dimensional walk (T, m), of some kind, and a start with three dimensions."""
    r = np.random.default_rng(seed)
    z = np.zeros((T, 2))
    for t in range(1, T):
        z[t] = 0.95 * z[t - 1] + 0.3 * r.normal(size=2)
    signal, noise = z @ r.normal(size=(2, m)), r.normal(size=(T, m))
    y = signal + {"no noise": 0, "noise of a thousandth": 1e-3}.get(kind, 0.3) * noise
    y[:, -1] = {"a constant channel": 0, "a constant far away": 1e4}.get(kind, y[:, -1])
    y[:, 0] = y[:, 1] if kind == "a channel twice" else y[:, 0]
    D, H = 3, r.normal(size=(m, 3)) / 3
    params = make_lgssm_params(np.zeros(D), np.eye(D), 0.9 * np.eye(D), 0.1 * np.eye(D), H, np.eye(m))
    params = params._replace(emissions=params.emissions._replace(bias=y.mean(0) * (kind == "a constant far away")))
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, y / np.maximum(y.std(0), 1)))


@both_dtypes
@pytest.mark.parametrize(
    "kind",
    ["ordinary", "a constant channel", "a constant far away", "a channel twice", "noise of a thousandth", "no noise"],
)
def test_degenerate_channels(kind, dtype):
    params, y = walks(kind, dtype)
    fit = em(LGSSM, params, y, num_iters=100)
    never_falls(fit, fit.params.emissions.cov, y.size)
    line = str(fit.verdict)
    if kind == "ordinary":
        assert "floor" not in line
    elif kind.startswith("a constant"):
        assert line.endswith("; noise at its floor: emissions.cov[4]")
    elif kind == "a channel twice":
        assert line.endswith("; noise at its floor: emissions.cov[0], emissions.cov[1]")
    elif kind == "no noise":
        assert "noise at its floor: emissions.cov[" in line


SHAPES = [
    # bias, inputs, diagonal R, missing entries, dtype
    (True, 0, False, False, "float32"),
    (True, 3, False, True, "float32"),
    (False, 1, True, True, "float32"),
    (True, 3, True, False, "float64"),
    (False, 3, False, True, "float64"),
    (True, 1, True, True, "float64"),
]


@pytest.mark.parametrize(("bias", "U", "diagonal", "missing", "dtype"), SHAPES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["ordinary", "a constant channel", "a channel twice", "noise of a thousandth", "no noise"]),
    inputs=st.sampled_from(["ordinary", "zero", "constant", "twice", "tiny"]),
    seed=st.integers(0, 9),
)
def test_no_linear_gaussian_step_falls(bias, U, diagonal, missing, dtype, kind, inputs, seed):
    B, T, m, r = 2, 40, 4, np.random.default_rng(seed)
    params, _ = walks(kind, dtype, T, m, seed)
    y = jnp.stack([walks(kind, dtype, T, m, seed + i)[1] for i in range(B)])
    if missing:
        y = jnp.where(r.random(y.shape) < 0.2, jnp.nan, y).at[0, 3].set(jnp.nan)
    u = r.normal(size=(B, T, U))
    u[..., -1:] = {"zero": 0, "constant": 3.0, "twice": u[..., :1], "tiny": 1e-6 * u[..., -1:]}.get(inputs, u[..., -1:])
    emissions, dynamics = params.emissions, params.dynamics
    emissions = emissions._replace(
        cov=jnp.diag(emissions.cov) if diagonal else emissions.cov,
        bias=emissions.bias if bias else None,
        input_weights=jnp.zeros((m, U), dtype) if U else None,
    )
    dynamics = dynamics._replace(input_weights=jnp.zeros((3, U), dtype) if U else None)
    params = params._replace(emissions=emissions, dynamics=dynamics)
    fit = em(LGSSM, params, y, jnp.asarray(u, dtype) if U else None, num_iters=25)
    R = fit.params.emissions.cov
    never_falls(fit, jnp.diag(R) if diagonal else R, y.size)


# --- hidden Markov models --------------------------------------------------------------------------------------------------


def states(emissions, K, dtype):
    A = 0.9 * np.eye(K) + 0.1 / K
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), ParamsHMM(np.ones(K) / K, A, emissions))


def gaussian(kind, dtype, seed=0):
    """Two channels, three states, of which the last may be degenerate."""
    r = np.random.default_rng(seed)
    y, means = r.normal(size=(2, 60, 2)), np.array([[0.0, 0], [1, 1], [-1, 2]])
    if kind == "equal data":
        y[0, 20:] = means[2] = 5.0
    elif kind == "one outlier":
        y[1, 7] = means[2] = 50.0
    elif kind == "two that agree in a channel":
        y[0, 10:12] = means[2] = [30.0, 31.0]
    elif kind == "no data":
        means[2] = 1e6
    elif kind == "a constant channel":
        y[..., 1] = 3.0
    elif kind == "far from zero":
        y, means = y + 1e4, means + 1e4
    params = states(GaussianEmissions(means, np.tile(np.eye(2), (3, 1, 1))), 3, dtype)
    return HMM(GAUSSIAN), params, jnp.asarray(y, dtype)


def poisson(kind, dtype, seed=0):
    r = np.random.default_rng(seed)
    y, rates = r.poisson(3.0, size=(2, 60, 2)).astype(float), np.array([[1.0, 2], [4, 3], [9, 9]])
    if kind == "equal data":
        y[0, 20:], rates[2] = 0, 0.1
    elif kind == "one outlier":
        y[1, 7] = rates[2] = 500
    elif kind == "no data":
        rates[2] = 1e6
    return HMM(POISSON), states(PoissonEmissions(rates), 3, dtype), jnp.asarray(y, dtype)


def categorical(kind, dtype, seed=0):
    r = np.random.default_rng(seed)
    y, probs = r.integers(0, 3, size=(2, 60)), r.dirichlet(np.ones(4), size=3)
    if kind == "equal data":
        y[0, 20:] = 3
    elif kind == "one outlier":
        y[1, 7] = 3
    elif kind == "no data":
        probs[2] = [0, 0, 0, 1]
    return HMM(CATEGORICAL), states(CategoricalEmissions(probs), 3, dtype), jnp.asarray(y)


KINDS = [
    "ordinary",
    "equal data",
    "one outlier",
    "no data",
    "two that agree in a channel",
    "a constant channel",
    "far from zero",
]


@both_dtypes
@pytest.mark.parametrize("make", [gaussian, poisson, categorical])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 9), missing=st.booleans())
def test_no_step_of_hidden_states_falls(make, dtype, kind, seed, missing):
    model, params, y = make(kind, dtype, seed)
    gaps = np.random.default_rng(seed).random(y.shape[:2]) < 0.2 * missing
    y = jnp.where(gaps, -1, y) if make is categorical else jnp.where(gaps[..., None], jnp.nan, y)
    fit = em(model, params, y, num_iters=30)
    covs = fit.params.emissions.covs if make is gaussian else np.ones((1, 1, 1))
    never_falls(fit, covs, y.size)


@both_dtypes
@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("equal data", "noise at its floor: emissions.covs[2]"),
        ("one outlier", "noise at its floor: emissions.covs[2]"),
        ("no data", "without data: states[2]"),
    ],
)
def test_verdicts_name_the_state(kind, line, dtype):
    model, params, y = gaussian(kind, dtype)
    fit = em(model, params, y, num_iters=30)
    assert str(fit.verdict).endswith(f"iterations; {line}")
    if kind == "no data":
        np.testing.assert_array_equal(fit.params.emissions.means[2], params.emissions.means[2])


def test_frozen_means_have_covariances_about_them():
    model, params, y = gaussian("ordinary", "float64")
    fit = em(model, params, y, frozen=["emissions.means"], num_iters=30)
    assert fit.verdict.worst_fall < 1e-9
    np.testing.assert_array_equal(fit.params.emissions.means, params.emissions.means)
    assert em(model, params, y, num_iters=1).params.emissions.covs.shape == (3, 2, 2)
