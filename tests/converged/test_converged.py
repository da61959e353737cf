"""Covariances that settle, and are then computed no more."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import fastscan
from fastscan import lgssm_filter, lgssm_marginal_loglik, lgssm_posterior_sample, lgssm_smoother
from fastscan.dispatch.choice import choose
from fastscan.dispatch.large import SETTLING_SIZE
from fastscan.kernels.converged import passes
from fastscan.kernels.converged.filtering import run_filter
from fastscan.kernels.lgssm.passes import first
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.settling import fill, settled
from fastscan.learn.lgssm.expectations import smoothed_sums
from fastscan.lgssm.check import check_model
from fastscan.lgssm.layout import series
from oracles.lgssm import assert_moments, cast, close, random_params, simulate, textbook, tracking_params

D, M = 3, 2


def of(params, **changes):
    for part, fields in changes.items():
        params = params._replace(**{part: getattr(params, part)._replace(**fields)})
    return params


def level(q, r=1.0, p=1.0, f=1.0):
    one = np.eye(1)
    return fastscan.make_lgssm_params(np.zeros(1), p * one, f * one, q * one, one, r * one)


MODELS = {
    "random": random_params(0, D, M),
    "tracking": tracking_params(),
    "near a unit root": level(1e-4, f=0.99999),
    "unit root, little noise": level(1e-6),
    "no noise in the dynamics": level(0.0),
    "hardly any news": level(0.0, p=1e-6),
    "tiny R": of(random_params(1, D, M), emissions={"cov": 1e-6 * np.eye(M)}),
    "huge R": of(random_params(1, D, M), emissions={"cov": 1e6 * np.eye(M)}),
    "exact observations": of(random_params(2, D, 1), emissions={"cov": np.zeros((1, 1))}),
    "known from the beginning": of(tracking_params(), initial={"cov": np.zeros((4, 4))}),
    "far away": of(tracking_params(), initial={"mean": np.full(4, 1e4)}),
    "unstable": level(0.5, f=1.02),
}


def prepared(params, y, vectors):
    model, _ = check_model(params, y.shape[1], len(y), y.dtype)
    plan = Plan(y.shape[1] - 1, 1, algebra="staged", vectors=vectors)
    return plan, series(plan, model, y, False)


@functools.partial(jax.jit, static_argnames=("vectors", "what"))
def run(params, y, vectors, what):
    plan, given = prepared(params, y, vectors)
    if what == "smooth":
        return passes.smooth(plan, given)
    return {"score": passes.score, "sums": passes.smooth_summed, "densities": passes.filter_log_densities}[what](plan, given)


def data(params, T, dtype, B=1):
    return np.stack([simulate(params, T, seed) for seed in range(B)]).astype(dtype)


T = 400


@functools.cache
def plain(name, what, dtype):
    """Without a look at whether anything settles, from numbers of float32."""
    params = cast(cast(MODELS[name], "float32"), dtype)
    return jax.tree.leaves(run(params, data(MODELS[name], T, "float32").astype(dtype), 0, what))


@pytest.mark.parametrize(
    ("name", "what"),
    [(name, what) for name in MODELS for what in ("smooth", "score")]
    + [(name, "sums") for name in ("random", "near a unit root", "no noise in the dynamics")],
)
def test_results_are_those_of_the_plain_recursion(name, what):
    """In float64; and float32 errs no more."""
    y = data(MODELS[name], T, "float32")
    with jax.enable_x64(True):
        truth, params = plain(name, what, "float64"), cast(cast(MODELS[name], "float32"), "float64")
        for wanted, x in zip(truth, jax.tree.leaves(run(params, y.astype("float64"), 7, what)), strict=True):
            close(x, wanted, 1e-9 if name == "far away" else 1e-11, name)
    for wanted, once, x in zip(
        truth, plain(name, what, "float32"), jax.tree.leaves(run(cast(MODELS[name], "float32"), y, 7, what)), strict=True
    ):
        size = max(np.abs(wanted).max(), 1e-30)
        error, allowed = (np.sqrt(np.mean((np.asarray(a, "float64") - wanted) ** 2)) / size for a in (x, once))
        assert error <= 4 * allowed + 2e-6, (name, error, allowed)


@pytest.mark.parametrize(("T", "vectors"), [(2, 1), (3, 2), (17, 1), (18, 7), (33, 64), (34, 3), (65, 7), (97, 64), (131, 2)])
def test_awkward_lengths(T, vectors):
    params = MODELS["random"]
    with jax.enable_x64(True):
        y = data(params, T, "float64", B=2)
        for what in ("smooth", "densities", "score", "sums") if T == 65 else ("score", "sums") if T % 2 else ("smooth",):
            once, given = (jax.tree.leaves(run(params, y, v, what)) for v in (0, vectors))
            for wanted, x in zip(once, given, strict=True):
                close(x, wanted, 1e-10, (what, vectors))


@pytest.mark.parametrize("one_function", [False, True])
@pytest.mark.parametrize("gaps", [[], [(0, 3)], [(100, 105), (200, 201)], [(296, 300)], [(50, 52), (70, 72), (100, 250)]])
def test_gaps(gaps, one_function):
    """Before anything has settled, between settled stretches, at the end; single entries, and all of a row."""
    params = MODELS["random"]
    params = of(params, emissions={"cov": np.diagonal(params.emissions.cov)})
    with jax.enable_x64(True):
        y = data(params, 300, "float64")
        for start, stop in gaps:
            y[0, start + 1 : stop], y[0, start, 0] = np.nan, np.nan
        model, _ = check_model(params, 300, 1, y.dtype)
        once, given = (jax.tree.leaves(_with_gaps(model, y, vectors, one_function)) for vectors in (0, 7))
        for wanted, x in zip(once, given, strict=True):
            close(x, wanted, 1e-11)


@functools.partial(jax.jit, static_argnames=("vectors", "one_function"))
def _with_gaps(model, y, vectors, one_function):
    plan = Plan(y.shape[1] - 1, 1, algebra="staged", vectors=vectors, one_function=one_function)
    return passes.smooth(plan, series(plan, model, y, True))


def test_a_covariance_settles_as_soon_as_it_should():
    rows = {}
    for name in ("random", "near a unit root", "no noise in the dynamics", "hardly any news"):
        params = cast(MODELS[name], "float32")
        plan, given = prepared(params, data(params, 5_000, "float32"), 8)
        way = run_filter(plan, first(plan, given)[0], given.params, given.rows, moments=False)
        rows[name] = int(way.begin)
    assert rows["random"] <= 64
    assert 500 < rows["near a unit root"] < 4_999  # a gain of 1 %: 1,600 rows until exp(-2 * 0.01 * rows) rounds, less for half
    assert rows["no noise in the dynamics"] == 4_999  # moves by 1 / t for ever
    assert rows["hardly any news"] > 16


def test_what_still_moves_is_not_settled():
    eps = float(jnp.finfo("float32").eps)
    cov = jnp.eye(2, dtype="float32")
    assert settled(cov, cov, jnp.int32(16))
    assert settled(cov, cov * (1 + 6 * eps), jnp.int32(16))
    assert not settled(cov, cov * (1 + 20 * eps), jnp.int32(16))
    assert not settled(cov, cov.at[1, 1].add(1e-3), jnp.int32(500))
    assert not settled(cov, cov.at[0, 1].add(jnp.nan), jnp.int32(500))
    assert settled(jnp.zeros((2, 2)), jnp.zeros((2, 2)), jnp.int32(16))


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (3, 3), (3, 5), (49, 50), (10, 26), (10, 27), (0, 16), (34, 50)])
def test_fill(start, stop):
    wanted = np.arange(50.0)[:, None] * np.ones(2)
    given = fill(jnp.asarray(wanted), jnp.array([-1.0, -2.0]), jnp.int32(start), jnp.int32(stop))
    wanted[start:stop] = [-1, -2]
    np.testing.assert_array_equal(given, wanted)


LARGE = SETTLING_SIZE + 1


@pytest.mark.parametrize(
    ("size", "m", "dtype"), [(LARGE, 1, "float64"), (LARGE, 3, "float32"), (17, 17, "float64"), (33, 2, "float32")]
)
def test_large_models_against_the_textbook(size, m, dtype):
    """Gaps, correlated noise, inputs: under `jit`, and outside of it."""
    with jax.enable_x64(dtype == "float64"):
        r, T = np.random.default_rng(size), 90
        params, u = random_params(size, size, m), r.normal(size=(T, 2))
        weights = {
            "dynamics": {"input_weights": r.normal(size=(size, 2))},
            "emissions": {"input_weights": r.normal(size=(m, 2))},
        }
        params = of(params, **weights)
        y = simulate(params, T, 1, u)
        gaps = y.copy()
        gaps[20:25], gaps[60, 0] = np.nan, np.nan
        assert choose(None, T=T, B=1, D=size, m=m, dtype=dtype, device="cpu").plan.vectors
        given, u_given = cast(params, dtype), u.astype(dtype)
        for emissions in (y, gaps):
            wanted = textbook(params, emissions, u)
            for function in (lgssm_smoother, jax.jit(lgssm_smoother)):
                assert_moments(function(given, emissions.astype(dtype), u_given), wanted, dtype)


@pytest.mark.parametrize("size", [LARGE, 18])
def test_a_batch_of_large_ones(size):
    T = 80
    params = cast(random_params(1, size, 2), "float32")
    y = data(params, T, "float32", B=3)
    together = lgssm_smoother(params, y)
    assert choose(None, T=T, B=3, D=size, m=2, dtype="float32", shared=True, device="cpu").plan.vectors
    for k in range(3):
        jax.tree.map(lambda a, b: close(a, b, 2e-5), jax.tree.map(lambda x, k=k: x[k], together), lgssm_smoother(params, y[k]))
    unknown = jax.jit(lgssm_smoother)
    jax.tree.map(lambda a, b: close(a, b, 2e-5), unknown(params, y), together)
    y[1, 5] = np.nan
    close(unknown(params, y).smoothed_means[0], together.smoothed_means[0], 2e-5)
    alone = lgssm_filter(params, y[1])
    close(lgssm_filter(params, y).filtered_covariances[1], alone.filtered_covariances, 2e-5)
    mapped = jax.vmap(lambda y: lgssm_filter(params, y))(y)
    close(mapped.filtered_means[1], alone.filtered_means, 2e-5)


def test_statistics_of_a_large_one():
    """By way of the public smoother, in another implementation."""
    params, B, T = random_params(0, 18, 4), 2, 70
    y = data(params, T, "float64", B)
    with jax.enable_x64(True):
        loglik, means, sums = jax.jit(smoothed_sums)(cast(params, "float64"), y, None)
        wanted = lgssm_smoother(params, y, implementation="chunked", central=True)
        covs, cross = wanted.smoothed_covariances, wanted.smoothed_cross_covariances
        close(loglik, wanted.marginal_loglik, 1e-11)
        close(means, wanted.smoothed_means, 1e-10)
        for x, of_all in zip(sums, (covs[:, :1], covs[:, :-1], covs[:, 1:], cross), strict=True):
            close(x, of_all.sum(1), 1e-10)


@pytest.mark.parametrize("gaps", [False, True])
def test_samples_are_those_of_chunks(gaps):
    with jax.enable_x64(True):
        params, key = random_params(0, LARGE, 3), jax.random.key(1)
        y = data(params, 100, "float64", B=2)
        if gaps:
            y[0, 50:60], y[1, 3, 1] = np.nan, np.nan
        y = y if not gaps else y[0]
        wanted = lgssm_posterior_sample(key, params, y, jitter=1e-3, implementation="chunked")
        close(lgssm_posterior_sample(key, params, y, jitter=1e-3), wanted, 1e-9)


@pytest.mark.parametrize("size", [LARGE, 18])
def test_transformations_of_a_large_one(size):
    """Gradients, of sequences mapped, and second derivatives, against those of chunks, and differences."""
    with jax.enable_x64(True):
        params, T = random_params(1, size, 2), 70
        y = jnp.asarray(data(params, T, "float64", B=2))

        def loglik(F, y, **options):
            return lgssm_marginal_loglik(of(params, dynamics={"weights": F}), y, **options)

        F = jnp.asarray(params.dynamics.weights)
        wanted = jax.grad(loglik)(F, y[0], implementation="chunked")
        close(jax.grad(loglik)(F, y[0]), wanted, 1e-9)
        close(jax.jit(jax.vmap(jax.grad(loglik), (None, 0)))(F, y)[0], wanted, 1e-9)
        slope = jax.jvp(jax.grad(lambda F: loglik(F, y[0])), (F,), (jnp.ones_like(F),))[1]
        step = 1e-5
        near = [jax.grad(loglik)(F + sign * step, y[0]) for sign in (1, -1)]
        close(slope, (near[0] - near[1]) / (2 * step), 1e-6)


def test_shard_map():
    """On a mesh of one device: types tell devices apart all the same."""
    params = cast(random_params(1, LARGE, 2), "float32")
    params = of(params, emissions={"cov": np.diagonal(params.emissions.cov).copy()})
    y = data(params, 80, "float32")
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,))

    def everything(params, y):
        sample = lgssm_posterior_sample(jax.random.key(0), params, y, missing=False)
        slope = jax.grad(lambda y: lgssm_marginal_loglik(params, y, missing=False).sum())(y)
        return lgssm_smoother(params, y), lgssm_filter(params, y, missing=False), sample, slope

    shared = jax.jit(jax.shard_map(everything, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch")))(params, y)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), shared, everything(params, y))
