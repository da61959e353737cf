"""Kernels whose programs hold a large model together: interpreted, they are the other implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import Regimes, lgssm_filter, lgssm_marginal_loglik, lgssm_posterior_sample, lgssm_smoother
from fastscan.dispatch.choice import choose
from fastscan.kernels.lgssm import passes
from fastscan.kernels.plan import Launch, Plan
from fastscan.lgssm.check import check_model
from fastscan.lgssm.layout import series
from fastscan.profiling.compiled.kernel_report import program
from fastscan.profiling.compiled.machine_code import lower_for_gpu
from oracles.lgssm import SMOOTHER_KERNELS, assert_moments, close, random_params, simulate, textbook

KEY = jax.random.key(0)
DIMENSIONS = [7, 8, 12, 16, 17, 30, 32, 33, 64]
SIZES = [(D, m) for D in DIMENSIONS for m in (1, D // 2, D)]
FEW = {(7, 3)}


def gapped(params, T, B=None, dtype="float32"):
    """Emissions, some of them missing, of one sequence or of several."""
    y = np.stack([simulate(params, T, seed) for seed in range(B or 1)]).astype(dtype)
    y[:, T // 2, 0], y[:, -1:] = np.nan, np.nan
    return y if B else y[0]


@pytest.mark.parametrize(("D", "m"), [pytest.param(*s, marks=[] if s in FEW else pytest.mark.slow) for s in SIZES])
def test_sizes(D, m):
    """Of a smoother in chunks, in the order of time and back; and of what is sampled."""
    params, T = random_params(D + m, D, m, "float32"), 72
    y, reference = gapped(params, T), random_params(D + m, D, m)
    assert choose("pallas_interpret", T=T, B=1, D=D, m=m, dtype="float32").plan.launch.whole
    posterior = lgssm_smoother(params, y, implementation="pallas_interpret")
    assert_moments(posterior, textbook(reference, y.astype(np.float64)), "float32")
    given, wanted = (lgssm_posterior_sample(KEY, params, y, implementation=i) for i in ("pallas_interpret", "sequential"))
    close(given, wanted, 1e-4)


@pytest.mark.parametrize("T", [1, 2, 13, pytest.param(71, marks=pytest.mark.slow)])
def test_lengths(T):
    params = random_params(T, 9, 2, "float32")
    y = gapped(params, T)
    posterior = lgssm_smoother(params, y, implementation="pallas_interpret")
    assert_moments(posterior, textbook(random_params(T, 9, 2), y.astype(np.float64)), "float32")


@pytest.mark.parametrize(
    ("chunks", "group"), [(5, 2), *(pytest.param(*cut, marks=pytest.mark.slow) for cut in ((12, 4), (3, 2)))]
)
def test_ways_of_cutting_time(chunks, group):
    """12 rows of 2 sequences, in float64: padded chunks and whole ones, single rows, levels of summaries."""
    params = random_params(1, 7, 2)
    y = gapped(params, 13, 2, "float64")
    plan = Plan(12, chunks, launch=Launch(whole=True, group=group, interpret=True))
    model, _ = check_model(params, 13, 2, y.dtype)
    filtered, moments = jax.jit(lambda y: passes.smooth(plan, series(plan, model, y, True)))(y)
    for b in range(2):
        reference = textbook(params, y[b])
        close(filtered.log_density[b, :, 0, 0], reference.loglik, 1e-11)
        close(moments.mean[b, ..., 0], reference.smoothed_means, 1e-11)
        close(moments.cov[b], reference.smoothed_covariances, 1e-11)
        close(moments.cross[b], reference.cross, 1e-11)


def test_parameters_that_vary():
    """In time, between sequences, in both, and a diagonal noise."""
    params, T, B = random_params(2, 7, 2, "float32"), 5, 2
    r = np.random.default_rng(0)
    varying = params._replace(
        dynamics=params.dynamics._replace(
            weights=params.dynamics.weights * r.uniform(0.5, 1, (B, T, 1, 1)).astype(np.float32),
            bias=r.normal(size=(T, 7)).astype(np.float32),
        ),
        emissions=params.emissions._replace(cov=r.uniform(0.5, 1, (T, 2)).astype(np.float32)),
    )
    y = gapped(params, T, B)
    given, wanted = (lgssm_smoother(varying, y, implementation=i) for i in ("pallas_interpret", "sequential"))
    jax.tree.map(lambda a, b: close(a, b, 2e-5), given, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("D", [7, 17])
def test_regimes(D):
    """Of all that may have some; numbers of no regime make NaN."""
    params, T, B, m = random_params(5, D, 2, "float32"), 70, 2, 2
    r = np.random.default_rng(0)
    y = jnp.asarray(gapped(params, T, B))
    index = jnp.asarray(r.integers(0, 3, (B, T)))

    def call(index, implementation):
        def regimes(x):
            return Regimes(x * r.uniform(0.5, 1, (3, *[1] * x.ndim)).astype(np.float32), index)

        r = np.random.default_rng(1)
        dynamics = params.dynamics._replace(
            weights=regimes(params.dynamics.weights), bias=regimes(params.dynamics.bias), cov=regimes(params.dynamics.cov)
        )
        noise = regimes(np.full(m, 0.5, np.float32))
        emissions = params.emissions._replace(weights=regimes(params.emissions.weights), cov=noise)
        given = params._replace(dynamics=dynamics, emissions=emissions)
        return (
            lgssm_smoother(given, y, implementation=implementation),
            lgssm_posterior_sample(KEY, given, y, implementation=implementation),
        )

    given, wanted = (jax.jit(call, static_argnums=1)(index, i) for i in ("pallas_interpret", "sequential"))
    jax.tree.map(lambda a, b: close(a, b, 1e-4), given, wanted)
    lost = jax.jit(call, static_argnums=1)(index.at[0, 9].set(3), "pallas_interpret")[0]
    assert np.isnan(lost.filtered_means[0, 9:]).all()
    close(lost.filtered_means[1], wanted[0].filtered_means[1], 1e-4)


@pytest.mark.slow
def test_transformations():
    """vmap of kernels, and the derivative of the likelihood, which the score's kernel has in the interpreter."""
    params = random_params(3, 7, 3, "float32")
    ys = gapped(params, 9, 2)

    def loglik(params, y, implementation):
        return lgssm_marginal_loglik(params, y, implementation=implementation)

    one, other = (
        jax.vmap(jax.value_and_grad(lambda p, y, i=i: loglik(p, y, i)), (None, 0))(params, ys)
        for i in ("pallas_interpret", "sequential")
    )
    jax.tree.map(lambda a, b: close(a, b, 2e-5), one, other)


def test_models_that_no_kernel_holds():
    for D, m, dtype in ((65, 1, "float32"), (7, 65, "float32"), (7, 1, "float64")):
        with pytest.raises(ValueError, match="kernels hold"):
            choose("pallas", T=10, B=1, D=D, m=m, dtype=dtype, device="NVIDIA H200")
        assert choose(None, T=10, B=1, D=D, m=m, dtype=dtype, device="NVIDIA H200").implementation != "pallas"


def test_kernels_are_chosen_on_a_gpu():
    choice = choose(None, T=1_000, B=1, D=12, m=1, dtype="float32", device="NVIDIA H200")
    assert choice.implementation == "pallas"
    assert choice.plan.launch.whole
    assert choice.reason == "a rule for large models on NVIDIA GPUs: kernels whose programs hold one"


def test_lowered_programs():
    """What is lowered for a GPU that is not here are the same kernels, by their names."""
    for D, m in ((12, 6), (33, 20)):
        how = choose("pallas", T=8_193, B=1, D=D, m=m, dtype="float32", device="NVIDIA H200").plan.launch
        text = lower_for_gpu(*_flat(program("smoother", D, m, "float32", how))).as_text()
        assert all(f'name = "{name}"' in text for name in SMOOTHER_KERNELS)


def _flat(function_and_arguments):
    function, arguments = function_and_arguments
    return function, *arguments


def test_filters_are_those_of_the_smoother():
    params = random_params(4, 9, 3, "float32")
    y = jnp.asarray(gapped(params, 6))
    filtered = lgssm_filter(params, y, implementation="pallas_interpret")
    assert_moments(filtered, textbook(random_params(4, 9, 3), np.asarray(y, np.float64)), "float32")
