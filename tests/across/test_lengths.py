"""Programs that series of several lengths share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastscan as fs
from fastscan import lengths
from fastscan.kernels.plan import Plan
from fastscan.lgssm import api as lgssm_api
from oracles.hmm import random_model
from oracles.lgssm import cast, random_params, simulate

D, M, K, B = 2, 2, 3, 2
WAYS = ("sequential", "chunked:16")


def with_inputs(params, dtype):
    r = np.random.default_rng(4)
    dynamics = params.dynamics._replace(input_weights=r.normal(size=(D, 1)))
    emissions = params.emissions._replace(input_weights=r.normal(size=(M, 1)))
    return cast(params._replace(dynamics=dynamics, emissions=emissions), dtype)


@functools.cache
def calls(T, dtype="float32"):
    """Functions of an implementation, by name."""
    params = with_inputs(random_params(0, D, M), dtype)
    inputs = np.random.default_rng(1).normal(size=(T, 1)).astype(dtype)
    y = np.asarray(simulate(params, T, 2, inputs), dtype)
    batch = np.stack([y, y[::-1]])
    batch[1, T // 2] = np.nan
    initial, A, ll = (x.astype(dtype) for x in random_model(3, T, K, zeros=0.2))
    ll[T // 2] = np.nan
    logs = functools.partial(fs.hmm_filter, np.log(initial * 7), np.log(A * 3), ll[None], log_weights=True)
    return {
        "smoother": functools.partial(fs.lgssm_smoother, params, y, inputs),
        "filter, steps": functools.partial(fs.lgssm_filter, params, batch, inputs, per_step_loglik=True),
        "loglik": functools.partial(fs.lgssm_marginal_loglik, params, batch, inputs),
        "hmm smoother": functools.partial(fs.hmm_smoother, initial, A, ll),
        "hmm filter": logs,
        "hmm loglik": functools.partial(fs.hmm_marginal_loglik, initial, A, np.stack([ll, ll])),
        "hmm mode": functools.partial(fs.hmm_posterior_mode, initial, A, ll),
    }


def both(call):
    alone = call()
    with fs.use_shared_programs(True):
        return alone, call()


def same(alone, shared, tolerance=2e-5):
    assert jax.tree.structure(alone) == jax.tree.structure(shared)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", WAYS)
@pytest.mark.parametrize("T", [40, 131])
@pytest.mark.parametrize("name", list(calls(2)))
def test_results_are_those_of_one_length(name, T, implementation):
    same(*both(functools.partial(calls(T)[name], implementation=implementation)))


@pytest.mark.parametrize("T", [1, 2, 3, 34, 66, 700])
def test_awkward_lengths(T):
    for name in ("smoother", "hmm smoother", "hmm mode"):
        same(*both(calls(T)[name]))


def test_float64():
    with jax.enable_x64(True):
        for name, call in calls(131, "float64").items():
            alone, shared = both(call)
            same(alone, shared, 1e-11)
            assert all(x.dtype == "float64" for x in jax.tree.leaves(shared)) or name == "hmm mode"


def test_rows_fall_into_few_programs():
    rows = range(1, 5_000)
    most = [lengths.most_rows(n) for n in rows]
    assert all(n <= top <= n * 17 / 16 for n, top in zip(rows, most, strict=True))
    assert all(lengths.fewest_rows(top) <= n for n, top in zip(rows, most, strict=True))
    assert [lengths.most_rows(top) for top in most] == most
    assert len({top for top in most if 1_024 < top <= 2_048}) == 16


@pytest.mark.parametrize("chunks", [1, 2, 3, 16, 30, 64])
def test_no_chunk_is_ever_empty(chunks):
    for checked in (False, True):
        for most in {lengths.most_rows(n) for n in range(chunks, 3_000)}:
            fewest = lengths.fewest_rows(most)
            plan = Plan(most, min(chunks, most), relay=checked, checked=checked).from_fewest(fewest)
            assert plan.length * (plan.chunks - 1) < max(fewest, 1) <= most <= plan.length * plan.chunks


def test_one_program_serves_many_lengths():
    function = lgssm_api._smooth
    jax.clear_caches()
    with fs.use_shared_programs(True):
        for T in (131, 132, 133, 136):
            calls(T)["smoother"]()
        assert function._cache_size() == 1
        calls(137 + 4)["smoother"]()
        assert function._cache_size() == 2
    calls(131)["smoother"]()
    assert function._cache_size() == 3  # its own again


def test_models_that_vary_run_as_ever():
    T = 40
    params = random_params(0, D, M)
    y = simulate(params, T, 1)
    weights = np.broadcast_to(params.dynamics.weights, (T, D, D))
    params = params._replace(dynamics=params.dynamics._replace(weights=weights))
    same(*both(lambda: fs.lgssm_smoother(params, y)), 0)
    initial, A, ll = random_model(3, T, K)
    varying = np.broadcast_to(A, (T - 1, K, K))
    same(*both(lambda: fs.hmm_smoother(initial, varying, ll)), 0)
    same(*both(lambda: fs.hmm_smoother(initial, None, ll, lambda _: jnp.asarray(A))), 0)


def test_transformations_run_as_ever():
    T = 40
    params = random_params(0, D, M)
    y = jnp.asarray(simulate(params, T, 1))
    for function in (
        jax.grad(lambda F: fs.lgssm_marginal_loglik(params._replace(dynamics=params.dynamics._replace(weights=F)), y)),
        jax.jit(lambda F: fs.lgssm_smoother(params._replace(dynamics=params.dynamics._replace(weights=F)), y)),
    ):
        same(*both(functools.partial(function, jnp.asarray(params.dynamics.weights))), 0)


def test_errors_tell_of_the_length_that_was_given():
    params = random_params(0, D, M)
    with fs.use_shared_programs(True), pytest.raises(ValueError, match=r"\(1010, 'U'\)"):
        fs.lgssm_smoother(params, np.zeros((1010, M), "float32"), np.zeros((1009, 1), "float32"))
    wrong = params._replace(dynamics=params.dynamics._replace(bias=np.zeros(D + 1, "float32")))
    with fs.use_shared_programs(True), pytest.raises(ValueError, match=r"\(1010, 2\)"):
        fs.lgssm_smoother(wrong, np.zeros((1010, M), "float32"))
    with fs.use_shared_programs(True), pytest.raises(ValueError, match="'chunky' given"):
        fs.lgssm_smoother(params, np.zeros((10, M), "float32"), implementation="chunky")


def test_the_switch():
    with pytest.raises(TypeError, match="on: 1 given"):
        fs.use_shared_programs(1)
    fs.use_shared_programs(True)
    try:
        assert lengths._sharing
        with fs.use_shared_programs(False):
            assert not lengths._sharing
        assert lengths._sharing
    finally:
        fs.use_shared_programs(False)
    assert not lengths._sharing
