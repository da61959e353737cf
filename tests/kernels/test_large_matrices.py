"""Matrices for a library: as accurate as one observation after another, and as hard to break."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastscan
from fastscan.dispatch.choice import choose
from fastscan.kernels.algebra import Stacked, UnrolledStacked, solve
from fastscan.kernels.algebra.systems import blocked, definite, inverse_of_transpose
from fastscan.kernels.lgssm import at_once, passes
from fastscan.kernels.lgssm.gaussian import square_root
from fastscan.kernels.plan import Plan
from fastscan.lgssm.check import check_model
from fastscan.lgssm.layout import series
from oracles.lgssm import close, random_params, simulate, textbook
from programs.arrays_made import equations

D, M, T = 18, 4, 40
ONES = np.ones((M, 1))


def changed(**fields):
    """A model of D states with some parameters changed."""
    params = random_params(0, D, M)
    names = {"P": ("initial", "cov"), "mean": ("initial", "mean"), "Q": ("dynamics", "cov")}
    names |= {"H": ("emissions", "weights"), "R": ("emissions", "cov"), "F": ("dynamics", "weights")}
    for name, value in fields.items():
        part, field = names[name]
        params = params._replace(**{part: getattr(params, part)._replace(**{field: value})})
    return params


H = random_params(0, D, M).emissions.weights
TWICE = np.concatenate([H[:3], H[:1]])
MODELS = {
    "ordinary": changed(),
    "accurate": changed(R=1e-6 * np.eye(M)),
    "vague": changed(R=1e6 * np.eye(M)),
    "one exact": changed(R=np.diag([1.0, 0.5, 0.0, 1.0])),
    "all exact": changed(R=np.zeros((M, M))),
    "the same twice": changed(H=TWICE, R=np.diag([1e-6, 1.0, 1.0, 1e-6])),
    "diffuse": changed(P=1e6 * np.eye(D)),
    "known": changed(P=np.zeros((D, D))),
    "no noise": changed(Q=np.zeros((D, D))),
    "noise of rank one": changed(Q=np.outer(np.arange(D), np.arange(D)) / 256),
    "units": changed(P=np.diag(10.0 ** np.linspace(-6, 6, D))),
    "far away": changed(mean=np.full(D, 1e4)),
}


@functools.partial(jax.jit, static_argnames=("algebra", "missing"))
def smooth(model, y, algebra, missing):
    plan = Plan(T - 1, 1, algebra=algebra)
    return passes.smooth(plan, series(plan, model, y, missing))


def run(params, y, algebra, dtype, missing):
    model, _ = check_model(jax.tree.map(lambda x: jnp.asarray(x, dtype), params), T, 1, dtype)
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(smooth(model, y[None].astype(dtype), algebra, missing))]


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
def test_errors_are_no_larger_than_by_rows(name, gaps):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.float64(np.float32(x)), MODELS[name])
        y = np.float64(np.float32(simulate(params, T, 1)))
        if gaps:
            y[5:9], y[20, 0], y[T - 1, 1:] = np.nan, np.nan, np.nan
        truth = run(params, y, "unrolled stacked", "float64", gaps)
        for wanted, x in zip(truth, run(params, y, "staged alone", "float64", gaps), strict=True):
            close(x, wanted, 1e-7 if name in ("units", "diffuse", "no noise", "the same twice") else 1e-9, name)
        by_rows, at_once = (run(params, y, algebra, "float32", gaps) for algebra in ("unrolled stacked", "staged alone"))
        for wanted, a, b in zip(truth, at_once, by_rows, strict=True):
            error, allowed = (np.abs(x - wanted).max() / np.abs(wanted).max() for x in (a, b))
            assert error <= 8 * allowed + 5e-6, (name, error, allowed)


@pytest.mark.parametrize("algebra", ["stacked", "staged alone"])
def test_against_the_textbook(algebra):
    with jax.enable_x64(True):
        params = MODELS["ordinary"]
        y = simulate(params, T, 1)
        wanted = textbook(params, y)
        mean, cov, density, *_, cross = run(params, y, algebra, "float64", False)
        close(mean[0, ..., 0], wanted.filtered_means, 1e-10)
        close(cov[0], wanted.filtered_covariances, 1e-10)
        close(density[0, :, 0, 0], wanted.loglik, 1e-10)
        close(cross[0], wanted.cross, 1e-10)


@pytest.mark.parametrize(("name", "care"), [("vague", 0), ("ordinary", 1), ("one exact", 2), ("all exact", 2)])
def test_care_is_what_the_noise_asks_for(name, care):
    """No repair, a repair, one observation after another: models above take every way, by themselves and where one ends."""
    part, P = MODELS[name].emissions, Stacked(jnp.asarray(MODELS[name].initial.cov)[..., None, None] * 10)
    H, noise, weight = (Stacked(jnp.asarray(x)[..., None, None]) for x in (part.weights, np.diag(part.cov)[:, None], ONES))
    assert at_once.update(P, [], H, weight, noise).care == care


@pytest.mark.parametrize("n", [1, 2, 7, 16, 17, 33, 50, 64])
def test_inverses_of_factors(n):
    r = np.random.default_rng(n)
    L = np.tril(r.normal(size=(n, n))) / np.sqrt(n) + np.eye(n)
    with jax.enable_x64(True):
        close(inverse_of_transpose(Stacked(jnp.asarray(L)[..., None, None])).array[..., 0, 0], np.linalg.inv(L).T, 1e-12)


def test_an_indefinite_covariance_at_one_time():
    """What comes before it is right; nothing after it looks so."""
    params = random_params(0, D, M)
    Q = np.tile(params.dynamics.cov, (T, 1, 1))
    Q[20, 3, 3] *= -1
    model, _ = check_model(jax.tree.map(jnp.asarray, changed(Q=jnp.asarray(Q))), T, 1, "float32")
    _, cov, _ = jax.jit(filtered)(model, simulate(params, T, 1)[None].astype("float32"))
    assert np.isfinite(cov[0, :20]).all()
    assert np.isnan(cov[0, 20:]).all(axis=(1, 2)).all()


def filtered(model, y):
    plan = Plan(T - 1, 1, algebra="staged alone")
    return passes.filter_moments(plan, series(plan, model, y, False))


@pytest.mark.parametrize("varying", [False, True])
def test_in_place(varying):
    """A filter, and log densities alone, are the smoother's; F and Q may be read where they are."""
    with jax.enable_x64(True):
        params = random_params(0, D, M)
        r, scale = np.random.default_rng(1), np.ones((T, 1, 1)) if varying else 1.0
        if varying:
            scale[1:] = r.uniform(0.8, 1.1, (T - 1, 1, 1))
        params = changed(F=scale * params.dynamics.weights, Q=scale * params.dynamics.cov)
        y = jnp.asarray(simulate(params, T, 1))
        model, _ = check_model(jax.tree.map(jnp.asarray, params), T, 1, "float64")
        wanted = textbook(params, y)
        mean, cov, density = jax.jit(filtered)(model, y[None])
        close(mean[0, ..., 0], wanted.filtered_means, 1e-10)
        close(cov[0], wanted.filtered_covariances, 1e-10)
        close(density[0, :, 0, 0], wanted.loglik, 1e-10)
        close(jax.jit(densities)(model, y[None])[0, :, 0, 0], wanted.loglik, 1e-10)
        for name in ("unrolled staged alone", "staged alone"):
            *_, smoothed, _, _ = jax.tree.leaves(smooth(model, y[None], name, False))
            close(smoothed[0, ..., 0], wanted.smoothed_means, 1e-10)


def densities(model, y):
    plan = Plan(T - 1, 1, algebra="staged alone")
    return passes.filter_log_densities(plan, series(plan, model, y, False))


def test_sequences_run_in_turn():
    """Each has parameters of its own, and gaps: moments, samples, scores, and draws of the prior are those of each alone."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, random_params(0, D, M))
        scales, key = jnp.asarray([1.0, 0.9, 1.1]), jax.random.key(0)
        y = np.stack([simulate(params, 30, seed) for seed in range(3)])
        y[1, 5:9], y[2, 3, 0] = np.nan, np.nan
        assert choose(None, T=30, B=3, D=D, m=M, dtype="float64", device="cpu").plan.in_turn

        def scaled(scale):
            return params._replace(dynamics=params.dynamics._replace(weights=params.dynamics.weights * scale))

        for function in (
            lambda scale, y, **how: fastscan.lgssm_smoother(scaled(scale), y, **how),
            lambda scale, y, **how: fastscan.lgssm_posterior_sample(key, scaled(scale), y, **how),
            lambda scale, y, **how: jax.grad(lambda s: fastscan.lgssm_marginal_loglik(scaled(s), y, **how))(scale),
            lambda scale, y, **how: fastscan.lgssm_joint_sample(scaled(scale), key, len(y), **how),
        ):
            together = jax.jit(jax.vmap(function))(scales, y)
            for k in range(3):
                alone = function(scales[k], y[k], implementation="chunked:3")
                jax.tree.map(lambda a, b, k=k: close(a[k], b, 1e-9), together, alone)


def test_a_library_gets_one_matrix_a_call():
    """As batches may wait for each other (see `factor`): also of several sequences, under `vmap`, and of derivatives."""
    params = jax.tree.map(lambda x: jnp.asarray(x, "float32"), MODELS["ordinary"])
    y = jnp.asarray(np.stack([simulate(MODELS["ordinary"], 70, s) for s in (1, 2)]), "float32")
    F = jnp.broadcast_to(params.dynamics.weights, (70, D, D))
    varying = params._replace(dynamics=params.dynamics._replace(weights=F))
    found = [
        primitive
        for program in (
            lambda y: fastscan.lgssm_smoother(params, y, missing=False),
            lambda y: fastscan.lgssm_smoother(varying, y[0]),
            lambda y: jax.vmap(lambda y: fastscan.lgssm_filter(varying, y))(y),
            lambda y: jax.grad(lambda y: fastscan.lgssm_marginal_loglik(params, y[0], missing=False))(y),
        )
        for primitive in equations(jax.make_jaxpr(program)(y).jaxpr)
    ]
    of_a_library = [e for e in found if e.primitive.name in ("cholesky", "triangular_solve")]
    assert of_a_library
    assert all(v.aval.ndim == 2 for e in of_a_library for v in e.invars)
    products = [e for e in found if e.primitive.name == "dot_general" and e.outvars[0].aval.dtype == np.float32]
    assert products
    assert all(e.params["precision"] is not None for e in products), "a GPU would round factors to ten bits"


def test_what_is_not_sound_is_done_otherwise():
    """A matrix without Cholesky's factor has a solution still."""
    r = np.random.default_rng(0)
    half = r.normal(size=(20, 12))
    singular, right = half @ half.T, half @ r.normal(size=(12, 3))
    with jax.enable_x64(True):
        matrix, b = (Stacked(jnp.asarray(x)[..., None, None]) for x in (singular, right))
        assert blocked(matrix)
        *_, x = solve(matrix, b)
        close(singular @ x.array[..., 0, 0], right, 1e-9)
        whole = Stacked(matrix.array + 5 * jnp.eye(20)[..., None, None])
        for found, wanted in zip(solve(whole, b), solve(UnrolledStacked(whole.array), UnrolledStacked(b.array)), strict=True):
            close(found.array, wanted.array, 1e-10)
        assert definite(whole)
        assert not definite(Stacked(matrix.array - jnp.eye(20)[..., None, None]))


@pytest.mark.parametrize("rank", [D, D - 1, 1, 0])
def test_square_roots(rank):
    """A library's factor, and where a covariance is singular one row after another."""
    with jax.enable_x64(True):
        columns = np.random.default_rng(rank).normal(size=(D, rank))
        cov = columns @ columns.T
        S = np.asarray(jax.jit(lambda cov: square_root(Stacked(cov[..., None, None])).array[..., 0, 0])(cov))
    np.testing.assert_array_equal(S, np.tril(S))
    close(S @ S.T, cov, 1e-12)
    if rank == D:
        close(S, np.linalg.cholesky(cov), 1e-9)
