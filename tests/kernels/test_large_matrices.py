"""Matrices for a library: as accurate as one observation after another, and as hard to break."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.kernels.algebra import Stacked, UnrolledStacked, solve
from fastscan.kernels.algebra.systems import blocked, definite
from fastscan.kernels.lgssm import passes
from fastscan.kernels.plan import Plan
from fastscan.lgssm.check import check_model
from fastscan.lgssm.layout import series
from oracles.lgssm import close, random_params, simulate, textbook

D, M, T = 18, 4, 40


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
        for wanted, x in zip(truth, run(params, y, "stacked", "float64", gaps), strict=True):
            close(x, wanted, 1e-7 if name in ("units", "diffuse", "no noise", "the same twice") else 1e-9, name)
        by_rows, at_once = (run(params, y, algebra, "float32", gaps) for algebra in ("unrolled stacked", "stacked"))
        for wanted, a, b in zip(truth, at_once, by_rows, strict=True):
            error, allowed = (np.abs(x - wanted).max() / np.abs(wanted).max() for x in (a, b))
            assert error <= 8 * allowed + 5e-6, (name, error, allowed)


def test_against_the_textbook():
    with jax.enable_x64(True):
        params = MODELS["ordinary"]
        y = simulate(params, T, 1)
        wanted = textbook(params, y)
        mean, cov, density, *_, cross = run(params, y, "stacked", "float64", False)
        close(mean[0, ..., 0], wanted.filtered_means, 1e-10)
        close(cov[0], wanted.filtered_covariances, 1e-10)
        close(density[0, :, 0, 0], wanted.loglik, 1e-10)
        close(cross[0], wanted.cross, 1e-10)


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
