"""No array with a matrix a step is made of regimes: what is traced is searched for such arrays, and nothing is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    ParamsLGSSM,
    ParamsLGSSMDynamics,
    ParamsLGSSMEmissions,
    ParamsLGSSMInitial,
    Regimes,
    lgssm_filter,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_predictive,
    lgssm_posterior_sample,
    lgssm_smoother,
)
from fastscan.kernels.lgssm import in_blocks
from programs.arrays_made import large_arrays

T, R, D, M, U, B = 400, 3, 5, 4, 4, 2
ENOUGH = T * M * min(D, U)
"""The entries of the smallest of the arrays that there should not be."""
KEY = jax.random.key(0)
STEPS = np.arange(T) % R
Y, INPUTS = np.ones((T, M)), np.ones((T, U))
VALUES = {
    "F": np.stack([0.9 * np.eye(D)] * R),
    "b": np.ones((R, D)),
    "B": np.ones((R, D, U)),
    "Q": np.stack([np.eye(D)] * R),
    "H": np.ones((R, M, D)),
    "d": np.ones((R, M)),
    "C": np.ones((R, M, U)),
    "R": np.ones((R, M)),
}
FULL = {**VALUES, "R": np.stack([np.eye(M)] * R)}


def model(values, index, of=Regimes):
    first = ParamsLGSSMInitial(np.zeros(D), np.eye(D))
    x = {name: of(jnp.asarray(value), index) for name, value in values.items()}
    return ParamsLGSSM(
        first, ParamsLGSSMDynamics(x["F"], x["b"], x["B"], x["Q"]), ParamsLGSSMEmissions(x["H"], x["d"], x["C"], x["R"])
    )


def large(function, *args, times=1, looked_up=False):
    """The largest arrays that a program makes of ``times`` sequences; or of these, those that are looked up."""
    return large_arrays(function, *args, entries=times * ENOUGH, by=("gather", "dynamic_slice") if looked_up else None)


def loglik(values, index, y, **options):
    return lgssm_marginal_loglik(model(values, index), y, INPUTS, **options)


def sample(values, index, y, **options):
    return lgssm_posterior_sample(KEY, model(values, index), y, INPUTS, **options)


def gradient(values, index, y, **options):
    return jax.grad(lambda values: loglik(values, index, y, **options).sum())(values)


def joint(values, index, _, **options):
    return lgssm_joint_sample(model(values, index), KEY, T, INPUTS, **options)


@pytest.fixture
def nothing_kept(monkeypatch):
    """Samplers keep no matrix a row, however few bytes it takes."""
    monkeypatch.setattr(in_blocks, "KEPT_BYTES", 0)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("values", [VALUES, FULL], ids=["diagonal", "full"])
@pytest.mark.parametrize("function", [loglik, sample, gradient, joint])
def test_nothing_with_a_matrix_a_step(function, values):
    def run(values, index, y, implementation="sequential"):
        more = {} if function is joint else {"missing": False}
        return function(values, index, y, implementation=implementation, **more)

    assert not large(run, values, STEPS, Y)
    if function in (loglik, joint):
        assert not large(lambda *x: run(*x, implementation="chunked"), values, STEPS, Y)
    mapped = jax.vmap(run, (None, 0, None))
    assert not large(mapped, values, np.stack([STEPS] * B), Y, times=B)
    if function is not joint:
        assert not large(run, values, np.stack([STEPS] * B), np.stack([Y] * B), times=B)


@pytest.mark.parametrize("implementation", [None, "sequential", "chunked"])
@pytest.mark.parametrize("function", [lgssm_filter, lgssm_smoother, lgssm_posterior_predictive])
def test_moments_are_all_there_is(function, implementation):
    """Which are returned, and of which copies are made; but no matrices are looked up to as large an array."""

    def run(values, index, y):
        return function(model(values, index), y, INPUTS, implementation=implementation)

    assert not large(run, VALUES, STEPS, Y, looked_up=True)
    assert not large(jax.vmap(run, (None, 0, None)), VALUES, np.stack([STEPS] * B), Y, times=B, looked_up=True)


def test_gaps_in_independent_noise_change_nothing():
    y = np.where(np.arange(T)[:, None] % 7 == 0, np.nan, Y)
    assert not large(lambda y: loglik(VALUES, STEPS, y, implementation="sequential"), y)


def test_such_arrays_are_found():
    def written_out(y):
        arrays = model(VALUES, jnp.asarray(STEPS), lambda x, index: x[index])
        return lgssm_marginal_loglik(arrays, y, INPUTS, implementation="sequential")

    assert large(written_out, Y)
    assert large(written_out, Y, looked_up=True)


@pytest.mark.parametrize("steps", [2, 17])
def test_samples_are_those_of_kept_matrices(request, steps):
    """Rows that are filtered again give the same states as rows whose maps were kept."""

    index, y = STEPS[:steps], np.random.default_rng(0).normal(size=(steps, M))

    def states():
        one, batch = model(VALUES, index), model(VALUES, np.stack([index, index[::-1]]))
        given = (one, y), (batch, np.stack([y, -y]))
        return [lgssm_posterior_sample(KEY, *x, INPUTS[:steps]) for x in given]

    kept = states()
    request.getfixturevalue("nothing_kept")
    for x, wanted in zip(states(), kept, strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-9, atol=1e-9)
