"""Which implementation runs."""

import functools
import sys

import jax
import jax.experimental.pallas
import numpy as np
import pytest

import fastscan
from fastscan import lgssm_smoother
from fastscan.dispatch import choice as dispatch
from fastscan.dispatch.choice import IMPLEMENTATIONS, choose
from fastscan.kernels.gpu import lowerings
from fastscan.kernels.plan import Launch
from oracles.lgssm import random_params, simulate

SIZES = [(1, 1), (2, 1), (3, 1), (10, 1), (97, 5), (1024, 1), (65_536, 1), (1000, 64), (50, 100_000), (1_000_000, 1)]


@pytest.mark.parametrize(("T", "B"), SIZES)
@pytest.mark.parametrize("device", ["cpu", "NVIDIA H200"])
@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
@pytest.mark.parametrize("family", ["lgssm", "hmm_sample"])
def test_every_choice_can_run(T, B, device, implementation, family):
    if implementation == "pallas" and device == "cpu":
        pytest.skip("test_errors says what happens")
    m = 2 if family == "lgssm" else 0
    choice = choose(implementation, T=T, B=B, D=4, m=m, dtype=np.float32, device=device, family=family)
    assert choice.implementation == (implementation or choice.implementation)
    plan = choice.plan
    assert plan.steps == T - 1
    if T > 1:
        assert 1 <= plan.chunks <= T - 1
        assert (plan.chunks - 1) * plan.length < T - 1 <= plan.chunks * plan.length  # no chunk is empty
    if choice.implementation == "sequential":
        assert plan.chunks == 1
    if implementation == "chunked" and T > 2:
        assert plan.chunks > 1
    if implementation == "associative" and T > 1:
        assert (plan.chunks, plan.length, plan.scan) == (T - 1, 1, "associative")


def test_a_named_implementation_is_the_one_that_runs():
    """By what the lowered program holds: a loop over all rows, a loop over a chunk's rows, or none over rows."""
    params, T = random_params(0, 2, 1, "float32"), 1200
    y = np.zeros((T, 1), np.float32)

    def has_rows_of(implementation, shape):
        text = jax.jit(lambda y: lgssm_smoother(params, y, implementation=implementation)).lower(y).as_text()
        return f"tensor<{shape}xf32>" in text

    plan = choose("chunked", T=T, B=1, D=2, m=1, dtype=np.float32).plan
    assert has_rows_of("sequential", f"{T - 1}x2x2x1x1")
    assert has_rows_of("chunked", f"{plan.length}x2x2x{plan.chunks}x1")
    assert not has_rows_of("chunked", f"{T - 1}x2x2x1x1")
    assert has_rows_of("associative", f"2x2x{T - 1}x1")


def test_an_unmeasured_device_gets_the_stated_rule():
    assert choose(None, T=10, B=1, D=4, m=2, dtype=np.float32, device="abacus").implementation == "sequential"
    choice = choose(None, T=10_000, B=1, D=4, m=2, dtype=np.float32, device="abacus")
    assert choice.implementation == "chunked"
    assert "not measured" in choice.reason


def test_so_many_chunks_as_were_named():
    plan = choose("chunked:7", T=50, B=1, D=2, m=1, dtype=np.float64, device="cpu").plan
    assert plan.chunks == 7
    assert choose("chunked:7", T=3, B=1, D=2, m=1, dtype=np.float64, device="cpu").plan.chunks == 2
    params = random_params(0, 2, 1)
    y = simulate(params, 50, 0)
    seven, one = (lgssm_smoother(params, y, implementation=name) for name in ("chunked:7", "sequential"))
    np.testing.assert_allclose(seven.smoothed_means, one.smoothed_means, atol=1e-12)
    for wrong in ("chunked:", "chunked:0", "chunked:-1", "chunked:x", "sequential:3", "fast", ""):
        with pytest.raises(ValueError, match=f"'{wrong}' given, wanted None or one of .* or 'chunked:N' for N chunks"):
            lgssm_smoother(params, y, implementation=wrong)


H200 = functools.partial(choose, m=2, dtype=np.float32, device="NVIDIA H200")


def test_kernels_are_chosen_on_a_gpu_where_they_fit():
    assert H200(None, T=1_000, B=1, D=4).implementation == "pallas"
    assert H200(None, T=1_000, B=1, D=6).plan.launch == Launch()
    assert H200(None, T=1_000, B=1, D=65).implementation == "chunked"
    assert H200(None, T=1_000, B=1, D=5, dtype=np.float64).implementation == "chunked"
    with pytest.raises(ValueError, match=r"'pallas' given for D = 5, m = 2, float64; .* 4 for D = 4. Take 'chunked'"):
        H200("pallas", T=1_000, B=1, D=5, dtype=np.float64)
    assert dispatch.compiled_implementations("NVIDIA H200") == (*dispatch.XLA_IMPLEMENTATIONS, "pallas")
    assert dispatch.compiled_implementations("cpu") == dispatch.XLA_IMPLEMENTATIONS


@pytest.fixture
def no_triton_backend(monkeypatch):
    """As if JAX had dropped it."""
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr(jax.experimental.pallas, "triton", raising=False)
    lowerings.hindrance.cache_clear()
    yield
    lowerings.hindrance.cache_clear()


@pytest.mark.usefixtures("no_triton_backend")
def test_a_jax_without_the_triton_backend():
    choice = H200(None, T=1_000, B=1, D=4)
    assert choice.implementation == "chunked"
    assert "no kernels: Kernels want jax.experimental.pallas.triton, which jax" in choice.reason
    assert "no kernels" not in H200(None, T=1_000, B=1, D=65).reason  # there never were any
    assert "no kernels" not in choose(None, T=1_000, B=1, D=4, m=2, dtype=np.float32, device="cpu").reason
    assert dispatch.compiled_implementations("NVIDIA H200") == dispatch.XLA_IMPLEMENTATIONS
    with pytest.raises(RuntimeError, match=r"'pallas' given. Kernels want .*triton, which jax .* lacks. Take"):
        H200("pallas", T=1_000, B=1, D=4)
    params = random_params(0, 2, 1)
    with pytest.raises(ImportError, match=r"Kernels want .*triton, which jax .* lacks. Take implementation=None or 'chunked'"):
        lgssm_smoother(params, simulate(params, 98, 0), implementation="pallas_interpret")


@pytest.mark.usefixtures("no_triton_backend")
def test_what_was_measured_of_kernels_is_not_taken_without_them():
    size = {"D": 4, "m": 2, "B": 1, "dtype": "float32", "T": [100, 10_000], "chunks": [8, 8], "wins": {}}
    seconds = {"pallas": [1e-5, 1e-5], "chunked": [1e-4, 1e-4]}
    table = {"families": {"lgssm": [size | {"seconds": seconds}]}}
    fastscan.use_crossover_table({"devices": {"NVIDIA H200": table}})
    assert H200(None, T=1_000, B=1, D=4).implementation == "chunked"
    fastscan.use_crossover_table({"devices": {"NVIDIA H200": table | {"launch": {"lowering": "mosaic"}}}})
    assert H200(None, T=1_000, B=1, D=4).implementation == "pallas"  # by the other backend


def test_kernels_fill_a_gpu():
    for T, B, lanes in ((1_000_001, 1, 30_000), (1_001, 1_024, 25_000), (100_001, 1, 6_000)):
        plan = H200("pallas", T=T, B=B, D=4).plan
        assert lanes <= plan.chunks * B <= 45_000
    assert H200("pallas", T=20, B=100_000, D=4).plan.chunks == 1
    assert H200("pallas", T=1_000, B=40_000, D=4).plan.chunks == 1


def test_a_table_says_how_kernels_are_launched():
    fastscan.use_crossover_table({"devices": {"NVIDIA H200": {"launch": {"group": 16, "rows": 40}}}})
    plan = H200("pallas", T=1_001, B=1, D=4).plan
    assert plan.launch == Launch(group=16, rows=40)
    assert plan.chunks == 25
