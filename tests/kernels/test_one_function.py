"""Loops that are compiled to one function: up to their limits they compile, and compute what the same loops do otherwise."""

import functools

import jax
import numpy as np
import pytest

from fastscan import hmm_posterior_mode, hmm_posterior_sample, hmm_smoother, lgssm_smoother
from fastscan.dispatch import choice as dispatch
from fastscan.dispatch.choice import choose, one_function_lanes
from fastscan.kernels import xla_hints
from fastscan.profiling.measure import operations
from fastscan.profiling.measure.cases import Case

MARK = 'xla_cpu_small_call = "true"'


def lowered(function, *args):
    """A new function every time, as compiled ones are kept by their function."""
    return jax.jit(lambda *args: function(*args)).lower(*args)


@pytest.mark.parametrize(
    ("operation", "D", "m", "T", "B", "dtype"),
    [
        ("lgssm_smoother_with_gaps", 16, 16, 11, 4, "float32"),
        ("lgssm_smoother_with_gaps", 4, 4, 17, 32, "float64"),
        ("lgssm_smoother", 16, 16, 11, 64, "float32"),
        ("lgssm_smoother", 4, 2, 11, 128, "float64"),
        ("lgssm_posterior_sample", 3, 8, 11, 128, "float32"),
        ("lgssm_loglik_gradient", 8, 8, 11, 1, "float32"),
        ("lgssm_mean_gradient", 4, 2, 11, 1, "float64"),
        ("hmm_smoother", 16, 0, 11, 64, "float32"),
        ("hmm_smoother", 9, 0, 11, 48, "float64"),
        ("hmm_posterior_mode", 16, 0, 11, 64, "float32"),
        ("hmm_posterior_sample", 9, 0, 11, 112, "float32"),
        ("hmm_posterior_sample", 2, 0, 11, 256, "float64"),
        ("hmm_loglik_gradient", 16, 0, 11, 1, "float64"),
    ],
)
def test_at_the_limits(operation, D, m, T, B, dtype, monkeypatch):
    case = Case(operation, D, m, T, B, dtype)
    data = operations.data(case)
    own_matrices = "gradient" in operation or "gaps" in operation
    assert B == 1 or one_function_lanes(max(D, m), dtype, chunked=False, shared=not own_matrices) == B
    one = lowered(operations.function(case, "sequential"), *data)
    assert MARK in one.as_text() or operation == "lgssm_mean_gradient"  # JAX differentiates loops as they are
    monkeypatch.setattr(xla_hints, "ONE_FUNCTION_BYTES", 0)
    jax.clear_caches()
    other = lowered(operations.function(case, "sequential"), *data)
    assert MARK not in other.as_text()
    got, wanted = (operations.results(program.compile()(*data)) for program in (one, other))
    assert operations.error(got, wanted) < (1e-5 if dtype == "float32" else 1e-11)


@pytest.mark.parametrize("K", [5, 16])
@pytest.mark.parametrize("name", ["smoother", "decoder", "sampler"])
def test_weights_that_vary_at_the_limit(name, K, monkeypatch):
    """By step and sequence."""
    B, T = one_function_lanes(K, "float32", chunked=False), 7
    r = np.random.default_rng(K)
    hmm = r.dirichlet(np.ones(K), size=B), r.dirichlet(np.ones(K), size=(B, T - 1, K)), r.standard_normal((B, T, K))
    hmm = [x.astype("float32") for x in hmm]

    run = {
        "smoother": lambda *hmm: hmm_smoother(*hmm, implementation="sequential").smoothed_probs,
        "decoder": functools.partial(hmm_posterior_mode, implementation="sequential"),
        "sampler": functools.partial(hmm_posterior_sample, jax.random.key(0), implementation="sequential"),
    }[name]
    one = lowered(run, *hmm)
    assert MARK in one.as_text()
    monkeypatch.setattr(xla_hints, "ONE_FUNCTION_BYTES", 0)
    jax.clear_caches()
    other = lowered(run, *hmm)
    assert MARK not in other.as_text()
    wanted = other.compile()(*hmm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one.compile()(*hmm), wanted)


@pytest.mark.parametrize(("D", "dtype"), [(4, "float32"), (7, "float64"), (8, "float32"), (9, "float32"), (16, "float32")])
@pytest.mark.parametrize("operation", ["lgssm_smoother", "hmm_smoother", "hmm_posterior_sample"])
def test_chunks_at_the_limits(operation, D, dtype):
    """The scan of summaries has two sides, that is twice as many lanes."""
    chunks = one_function_lanes(D, dtype, chunked=True)
    case = Case(operation, D, 0 if operation.startswith("hmm") else D, 4 * chunks + 1, 1, dtype)
    data = operations.data(case)
    assert case.choice(f"chunked:{chunks}").plan.chunks == chunks
    got = lowered(operations.function(case, f"chunked:{chunks}"), *data)
    assert MARK in got.as_text()
    wanted = operations.function(case, "sequential")(*data)
    error = operations.error(*(operations.results(out) for out in (got.compile()(*data), wanted)))
    assert error < (1e-4 if dtype == "float32" else 1e-11)


@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("chunks", [16])
def test_arguments_that_nothing_reads(K, chunks):
    """XLA aborted the process where its simplifications left one, as they do in these loops."""
    T = chunks * dispatch.WHOLE_VECTOR_ROWS + 1
    r = np.random.default_rng(0)
    hmm = r.dirichlet(np.ones(K)), r.dirichlet(np.ones(K), size=K), r.standard_normal((T, K))
    key = jax.random.key(0)
    loglik, states = hmm_posterior_sample(key, *hmm, implementation=f"chunked:{chunks}")
    assert choose(f"chunked:{chunks}", T=T, B=1, D=K, dtype="float64", family="hmm_sample").plan.one_function
    wanted = hmm_posterior_sample(key, *hmm, implementation="sequential")
    np.testing.assert_allclose(loglik, wanted[0], rtol=1e-12)
    np.testing.assert_array_equal(states, wanted[1])


@pytest.mark.parametrize("name", ["sequential", "chunked:8"])
def test_constants_that_XLA_moves_into_a_function(name):
    """It aborted the process then, too: where a program holds its model, and where a derivative needs but a part."""
    params, y = operations.data(Case("lgssm_smoother", 2, 1, 90))
    whole = lgssm_smoother(params, y, implementation=name)
    closed = jax.jit(lambda: lgssm_smoother(params, y, implementation=name))()
    np.testing.assert_allclose(closed.smoothed_means, whole.smoothed_means, rtol=1e-5, atol=1e-5)
    loglik = jax.jit(jax.value_and_grad(lambda scale: lgssm_smoother(params, y * scale, implementation=name).marginal_loglik))
    value, slope = loglik(np.float32(1))
    np.testing.assert_allclose(value, whole.marginal_loglik, rtol=1e-5)
    assert np.isfinite(slope)
    initial, A, ll = operations.data(Case("hmm_smoother", 3, 0, 90))
    probs = jax.jit(lambda ll: hmm_smoother(initial, A, ll, implementation=name).smoothed_probs)(ll)
    np.testing.assert_allclose(probs, hmm_smoother(initial, A, ll, implementation=name).smoothed_probs, atol=1e-5)


def test_more_sequences_under_vmap_have_their_own_plan():
    case = Case("lgssm_smoother", 4, 2, 12, 65)
    params, y = operations.data(case)

    def smooth(y):
        return lgssm_smoother(params, y, implementation="sequential")

    assert MARK in lowered(jax.vmap(smooth), y[:64]).as_text()
    assert MARK not in lowered(jax.vmap(smooth), y).as_text()
    gradient = jax.vmap(jax.grad(lambda y: smooth(y).smoothed_means.sum()))
    assert MARK not in lowered(gradient, y).as_text()


def test_an_hmm_of_one_chunk_is_staged_where_that_pays():
    def algebra(K, B):
        return choose("sequential", T=100, B=B, D=K, dtype="float32", family="hmm_mode", device="cpu").plan.algebra

    assert [algebra(16, B) for B in (4, 5, 31, 32)] == ["staged", "stacked", "stacked", "staged"]
    assert algebra(17, 32) == "staged vectors"  # one sequence after the other
    assert algebra(513, 32) == "stacked"


def test_where_loops_are_one_function():
    sizes = {"T": 1_000, "dtype": np.float32}

    def is_one(name, device="cpu", **more):
        return choose(name, **sizes, **more, device=device).plan.one_function

    assert is_one("sequential", D=15, m=1, B=4)
    assert not is_one("sequential", D=15, m=1, B=5)
    assert is_one("sequential", D=16, m=1, B=5)  # one sequence after the other
    assert is_one("sequential", D=16, m=1, B=64, shared=True)
    assert not is_one("chunked:4", D=16, m=1, B=64, shared=True)
    assert not is_one("sequential", D=17, m=1, B=1)
    assert not is_one("sequential", D=1, m=17, B=1)
    assert not is_one("sequential", D=4, m=2, B=1, device="NVIDIA H200")
    assert not is_one("pallas_interpret", D=4, m=2, B=1)
    assert not is_one("associative", D=1, m=1, B=1)
    assert is_one("sequential", D=1, m=1, B=1)
    assert not is_one("sequential", D=1, B=1, family="hmm_sample")
    assert is_one("chunked:32", D=4, m=2, B=1)
    assert not is_one("chunked:64", D=4, m=2, B=1)
