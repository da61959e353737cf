"""On a GPU: every implementation against float64, at the sizes that kernels are for. Skipped where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    hmm_posterior_mode,
    hmm_posterior_sample,
    hmm_smoother,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_sample,
    lgssm_smoother,
)
from fastscan.dispatch.choice import choose, compiled_implementations
from fastscan.lds import lds_inference
from fastscan.mcmc import rw_metropolis
from oracles.hmm import random_model
from oracles.lds import random_chain
from oracles.lgssm import SMOOTHER_KERNELS, cast, random_params, tracking_params
from oracles.mcmc import correlated, mixture

pytestmark = pytest.mark.skipif("pallas" not in compiled_implementations(), reason="needs an NVIDIA GPU")

TOLERANCE = {"float32": 2e-3, "float64": 1e-8}
"""Relative to the largest entry; float32 of series as long as these, against the float64 of the same implementation on XLA."""

SHAPES = [(1, 1), (2, 3), (31, 1), (1_000, 1), (99_991, 1), (1_000_000, 1), (1_000, 1_024), (20, 100_000)]


def series(params, T, B=1, gaps=False):
    keys = jax.random.split(jax.random.key(0), B)
    y = jax.vmap(lambda key: lgssm_joint_sample(params, key, T, implementation="chunked")[1])(keys)
    return y.at[:, T // 3 : T // 2].set(jnp.nan) if gaps else y


def assert_same(given, wanted, tolerance):
    for name in given._fields:
        a, b = (np.asarray(getattr(p, name), np.float64) for p in (given, wanted))
        assert a.shape == b.shape, name
        assert np.all(np.isfinite(a)), name
        assert np.max(np.abs(a - b), initial=0) <= tolerance * np.max(np.abs(b), initial=1e-30), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("T", "B"), SHAPES)
def test_kernels_against_float64(T, B, dtype):
    params = tracking_params()
    y = series(params, T, B, gaps=T > 20)
    wanted = lgssm_smoother(params, y, implementation="chunked")
    given = lgssm_smoother(cast(params, dtype), y.astype(dtype), implementation="pallas")
    assert_same(given, wanted, TOLERANCE[dtype])


def test_ten_million_steps():
    params = cast(tracking_params(), "float32")
    y = series(params, 10_000_000)[0]
    given, wanted = (lgssm_smoother(params, y, implementation=i) for i in ("pallas", "chunked"))
    assert_same(given, wanted, TOLERANCE["float32"])


@pytest.mark.parametrize(("D", "m"), [(1, 1), (2, 1), (3, 3), (4, 4), (5, 2), (6, 3)])
def test_every_size(D, m):
    params = random_params(D, D, m)
    y = series(params, 4_099, 2, gaps=True)
    wanted = lgssm_smoother(params, y, implementation="sequential")
    for name in compiled_implementations():
        dtype = "float32" if name == "pallas" and D > 4 else "float64"  # a thread's registers hold no more
        if name != "associative" or D <= 2:
            given = lgssm_smoother(cast(params, dtype), y.astype(dtype), implementation=name)
            assert_same(given, wanted, TOLERANCE[dtype])


def test_samples_and_likelihoods():
    params = cast(tracking_params(), "float32")
    y = series(params, 50_000)[0]
    key = jax.random.key(1)
    given, wanted = (lgssm_posterior_sample(key, params, y, implementation=i) for i in ("pallas", "chunked"))
    np.testing.assert_allclose(given, wanted, atol=2e-3 * float(jnp.max(jnp.abs(wanted))))
    given, wanted = (lgssm_marginal_loglik(params, y, implementation=i) for i in ("pallas", "chunked"))
    np.testing.assert_allclose(given, wanted, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("T", "B"), [(1, 1), (2, 3), (31, 1), (99_991, 1), (1_000, 1_024)])
def test_values_and_gradients(T, B, dtype):
    """Of a log-likelihood, with respect to all parameters and the data; sums over time of terms of either sign.

    The model is stable: a walk leaves float32 behind, whose rounding of emissions of 1e6 is as large as their noise.
    """
    params = random_params(4, 4, 2)
    y = series(params, T, B, gaps=T > 20)
    wanted = value_and_gradient(params, y, "chunked")
    given = value_and_gradient(cast(params, dtype), y.astype(dtype), "pallas")
    tolerance = {"float32": 1e-3, "float64": 1e-7}[dtype]
    for g, w in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w)
        assert np.all(np.isfinite(g))
        assert np.max(np.abs(g - w)) <= tolerance * max(np.max(np.abs(w)), 1e-30)


@pytest.mark.parametrize(("D", "m", "dtype"), [(1, 1, "float64"), (3, 3, "float64"), (4, 4, "float64"), (5, 4, "float32")])
def test_gradients_of_every_size(D, m, dtype):
    """Parameters that all sequences share, whose derivatives are added up, and every sequence's own."""
    params = random_params(D, D, m)
    y = series(params, 1_009, 3, gaps=True)
    own = params._replace(dynamics=params.dynamics._replace(weights=jnp.stack([params.dynamics.weights] * 3)[:, None]))
    for model in (params, own):
        wanted = value_and_gradient(model, y, "sequential")
        given = value_and_gradient(cast(model, dtype), y.astype(dtype), "pallas")
        for g, w in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
            tolerance = {"float32": 1e-2, "float64": 1e-8}[dtype]
            np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * float(jnp.max(jnp.abs(w))))


def value_and_gradient(params, y, implementation):
    def loglik(params, y):
        return lgssm_marginal_loglik(params, y, implementation=implementation).sum()

    return jax.jit(jax.value_and_grad(loglik, (0, 1)))(params, y)


def test_the_kernels_are_what_runs():
    params = cast(tracking_params(), "float32")
    assert choose(None, T=10_000, B=1, D=4, m=2, dtype=np.float32).implementation == "pallas"
    text = jax.jit(lambda y: lgssm_smoother(params, y)).lower(jnp.zeros((10_000, 2), jnp.float32)).compile().as_text()
    assert all(name in text for name in SMOOTHER_KERNELS)


@pytest.mark.parametrize(("T", "K"), [(1, 2), (31, 3), (4_099, 5), (1_000_000, 5), (4_099, 8)])
def test_hmm_kernels(T, K):
    """Probabilities and paths; a float32 path may differ where a number lies within rounding of a boundary."""
    model = random_model(K, T, K, zeros=0.2, spread=2)
    single = tuple(x.astype("float32") for x in model)
    wanted = hmm_smoother(*model, implementation="chunked")
    assert_same(hmm_smoother(*single, implementation="pallas"), wanted, TOLERANCE["float32"])
    key = jax.random.key(0)
    for decode in (hmm_posterior_mode, lambda *m, **how: hmm_posterior_sample(key, *m, **how)[1]):
        given, chunked = (np.asarray(decode(*single, implementation=i)) for i in ("pallas", "chunked"))
        assert np.mean(given != chunked) <= 1e-4


@pytest.mark.parametrize(("T", "D"), [(2, 1), (31, 2), (4_099, 3), (99_991, 4)])
@pytest.mark.parametrize("static", [True, False])
def test_chains_of_potentials(T, D, static):
    chain = random_chain(T, T, D, static=static)
    single = jax.tree.map(lambda x: x.astype("float32"), chain)
    wanted = lds_inference(*chain, implementation="chunked")
    given = lds_inference(*single, implementation="pallas")
    assert_same(given.statistics, wanted.statistics, TOLERANCE["float32"])
    np.testing.assert_allclose(given.log_normalizer, wanted.log_normalizer, rtol=1e-4)


@pytest.mark.parametrize(("D", "log_density"), [(1, mixture), (3, correlated(3)[0])])
@pytest.mark.parametrize("chains", [1, 33, 5_000])
def test_chains_of_metropolis(D, log_density, chains):
    """Nearly all chains make the same decisions; where one is close, rounding may make another.

    XLA's products are made as precise as the kernels': by default a GPU rounds their factors to 11 bits.
    """
    start = np.zeros((D, chains), "float32")
    with jax.default_matmul_precision("highest"):
        given, wanted = (
            rw_metropolis(jax.random.key(0), log_density, start, 200, thin=2, warmup=50, implementation=i)
            for i in ("pallas", "xla")
        )
    assert np.mean(np.abs(np.asarray(given.samples) - wanted.samples) > 1e-3) < 0.02
    moments = rw_metropolis(jax.random.key(0), log_density, start, 3_000, keep="moments", implementation="pallas").moments
    assert np.isfinite(moments.mean).all()
    assert (np.asarray(moments.variance) > 0).all()
