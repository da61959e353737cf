"""GPU kernels: interpreted, they are the other implementations; and what is lowered for a GPU is they, in both lowerings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lgssm.test_hard import MODELS, T, check

from fastscan import lgssm_filter, lgssm_joint_sample, lgssm_marginal_loglik, lgssm_posterior_sample, lgssm_smoother
from fastscan.dispatch.choice import How, choose
from fastscan.kernels.algebra import Lanes
from fastscan.kernels.gpu.launch import launch
from fastscan.kernels.lgssm import passes
from fastscan.kernels.plan import Launch, Plan
from fastscan.lgssm import inference as lgssm_inference
from fastscan.lgssm.check import check_model
from fastscan.lgssm.layout import series
from fastscan.profiling.compiled.kernel_report import program
from fastscan.profiling.compiled.machine_code import inner_jaxprs, lower_for_gpu
from oracles.lgssm import SMOOTHER_KERNELS, assert_moments, close, random_params, simulate, textbook


def smoothed(params, y, plan, missing=False):
    """Filtered and smoothed moments of a plan, for emissions (B, T, m)."""
    model, _ = check_model(params, y.shape[1], len(y), y.dtype)
    return jax.jit(lambda y: passes.smooth(plan, series(plan, model, y, missing)))(y)


def compare(given, reference, b=0, rounding=1e-11):
    filtered, smoothed = given
    close(filtered.log_density[b, :, 0, 0], reference.loglik, rounding)
    close(filtered.mean[b, ..., 0], reference.filtered_means, rounding)
    close(filtered.cov[b], reference.filtered_covariances, rounding)
    close(smoothed.mean[b, ..., 0], reference.smoothed_means, rounding)
    close(smoothed.cov[b], reference.smoothed_covariances, rounding)
    close(smoothed.cross[b], reference.cross, rounding)


SIZES = [(1, 1), (2, 2), (3, 1), (4, 2)]
LARGE = [(1, 4), (6, 1)]


@pytest.mark.parametrize(("D", "m"), [*SIZES, *(pytest.param(*size, marks=pytest.mark.slow) for size in LARGE)])
def test_every_size(D, m):
    params = random_params(D * 31 + m, D, m)
    y = simulate(params, 13, D + m)
    compare(smoothed(params, y[None], Plan(12, 3, launch=Launch(interpret=True))), textbook(params, y))


CUTS = [(1, 2), (5, 3), (21, 8), (22, 4)]
MOSAIC_CUTS = [(5, 2), (22, 4)]


@pytest.mark.parametrize(
    ("chunks", "group", "lowering"), [(*cut, "triton") for cut in CUTS] + [(*cut, "mosaic") for cut in MOSAIC_CUTS]
)
def test_every_way_of_cutting_time(chunks, group, lowering):
    """22 rows of 3 sequences: exact chunks, padded ones, single rows; one level of summaries to five."""
    params = random_params(1, 2, 1)
    y = np.stack([simulate(params, 23, seed) for seed in range(3)])
    y[1, 4:7], y[2, -1] = np.nan, np.nan
    how = Launch(lowering, lanes=32, group=group, interpret=True)
    given = smoothed(params, y, Plan(22, chunks, launch=how), missing=True)
    for b in range(3):
        compare(given, textbook(params, y[b]), b)


@pytest.mark.parametrize("lanes", [1, 16, 128])
def test_programs_that_are_not_full(lanes):
    params = random_params(2, 1, 1)
    y = np.stack([simulate(params, 8, seed) for seed in range(5)])
    given = smoothed(params, y, Plan(7, 7, launch=Launch(lanes=lanes, interpret=True)))
    for b in range(5):
        compare(given, textbook(params, y[b]), b)


LENGTHS = [(T, "float64") for T in (1, 2, 3, 64, 65)] + [(1, "float32"), (65, "float32")]


@pytest.mark.parametrize(("T", "dtype"), LENGTHS)
def test_lengths_through_the_front_door(T, dtype):
    params, y = random_params(5, 1, 2, dtype), simulate(random_params(5, 1, 2), T, 1).astype(dtype)
    posterior = lgssm_smoother(params, y, implementation="pallas_interpret")
    assert {x.dtype for x in posterior} == {np.dtype(dtype)}
    assert_moments(posterior, textbook(params, y), dtype)


def test_missing_entries_of_correlated_noise():
    params = random_params(6, 2, 3)
    y = simulate(params, 70, 1)
    y[0], y[10:20], y[30, 1], y[-1, :2] = np.nan, np.nan, np.nan, np.nan
    assert_moments(lgssm_smoother(params, y, implementation="pallas_interpret"), textbook(params, y), "float64")


def test_independent_noise_takes_no_branch():
    params = random_params(6, 2, 2)
    params = params._replace(emissions=params.emissions._replace(cov=np.array([0.3, 0.7])))
    y = simulate(params, 70, 1)
    y[5, 0] = np.nan
    assert_moments(lgssm_smoother(params, y, implementation="pallas_interpret"), textbook(params, y), "float64")
    text = jax.jit(lambda y: lgssm_smoother(params, y, implementation="pallas_interpret")).lower(y).as_text()
    other = jax.jit(lambda y: lgssm_smoother(params, y, implementation="chunked")).lower(y).as_text()
    assert "stablehlo.case" in other
    assert "stablehlo.case" not in text


def test_parameters_that_vary():
    """In time and between sequences; some in both, some in neither."""
    T, B = 17, 3
    r = np.random.default_rng(0)
    params = random_params(7, 2, 1)
    scale = np.linspace(0.5, 2, T)[:, None, None]
    varying = params._replace(
        dynamics=params.dynamics._replace(cov=params.dynamics.cov * scale, bias=r.normal(size=(T, 2))),
        emissions=params.emissions._replace(weights=params.emissions.weights * scale),
    )
    weights = params.dynamics.weights * r.random((B, 1, 1, 1))
    y = np.stack([simulate(params, T, b) for b in range(B)])
    batch = varying._replace(dynamics=varying.dynamics._replace(weights=weights))
    given = smoothed(batch, y, Plan(T - 1, 5, launch=Launch(group=2, interpret=True)))
    for b in range(B):
        alone = varying._replace(dynamics=varying.dynamics._replace(weights=weights[b, 0]))
        compare(given, textbook(alone, y[b]), b)


def test_the_other_functions():
    params = random_params(8, 2, 1)
    y = simulate(params, 70, 1)
    key = jax.random.key(3)
    reference = textbook(params, y)
    assert_moments(lgssm_filter(params, y, implementation="pallas_interpret"), reference, "float64")
    densities = lgssm_marginal_loglik(params, y, implementation="pallas_interpret", per_step_loglik=True)
    close(densities, reference.loglik, 1e-10)
    for function, *arguments in ((lgssm_posterior_sample, key, params, y), (lgssm_joint_sample, params, key, 70)):
        given, wanted = (function(*arguments, implementation=i) for i in ("pallas_interpret", "sequential"))
        jax.tree.map(lambda a, b: close(a, b, 1e-10), given, wanted)


def test_transformations():
    """vmap of kernels, and the derivatives of what they stand for."""
    params = random_params(9, 1, 1)
    ys = np.stack([simulate(params, 66, seed) for seed in range(2)])

    def loglik(p, y, implementation):
        return lgssm_marginal_loglik(p, y, implementation=implementation)

    given = jax.jit(jax.vmap(lambda y: loglik(params, y, "pallas_interpret")))(ys)
    close(given, [textbook(params, y).loglik.sum() for y in ys], 1e-11)

    @functools.partial(jax.jit, static_argnames="implementation")
    def derivatives(implementation):
        backward = jax.grad(loglik)(jax.tree.map(jnp.asarray, params), ys[0], implementation)
        _, forward = jax.jvp(lambda y: loglik(params, y, implementation), (ys[0],), (ys[1],))
        return backward, forward

    given, wanted = derivatives("pallas_interpret"), derivatives("sequential")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), given, wanted)


def test_hard_models():
    """Those of one shape, one compiled program for all."""
    for params in MODELS.values():
        if params.emissions.weights.shape == (2, 4):
            check(params, T, ["pallas_interpret"])


def test_what_is_never_written_is_nan():
    """So a kernel that leaves something out can't pass for one that doesn't."""
    plan = Plan(4, 2, launch=Launch(interpret=True))
    x = jnp.ones((1, 4, 1, 1))

    def kernel(program):
        program.loop(lambda carry, row: (carry + row, row), Lanes([[np.float64(0)]]), 0, 0, False)

    form = Lanes([[jax.ShapeDtypeStruct((), x.dtype)]])
    outputs = [("step", form, True), ("chunk", form, False)]
    steps, chunks = launch(plan, "half", kernel, [("step", x)], outputs)
    np.testing.assert_array_equal(steps[0, :, 0, 0], [1, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(chunks, np.full((1, 2, 1, 1), np.nan))


def lowered_smoother(lowering):
    """The public smoother's program for a GPU that is not here: D = 4, m = 2."""
    T = 3_001
    params = random_params(10, 4, 2, "float32")
    model, _ = check_model(params, T, None, np.dtype("float32"))
    plan = choose("pallas", T=T, B=1, D=4, m=2, dtype=np.float32, device="NVIDIA H200").plan
    how = Launch() if lowering == "triton" else Launch("mosaic", lanes=128, warps=4)
    y = jax.ShapeDtypeStruct((1, T, 2), jnp.float32)
    how = How(plan._replace(launch=how), missing=False)
    return lower_for_gpu(lambda model, y: lgssm_inference.smooth_states(model, y, how, True), model, y).as_text()


def test_lowered_for_triton():
    """The kernels by their names, and nothing that goes through time outside of them."""
    text = lowered_smoother("triton")
    assert all(f'name = "{name}"' in text for name in SMOOTHER_KERNELS), SMOOTHER_KERNELS
    assert text.count("stablehlo.while") == 2  # which sweep again, forward and back, where chunks do not fit together


@pytest.mark.parametrize("D", [1, 2, 3, 4])
def test_lowered_for_mosaic(D):
    text = lowered_smoother("mosaic") if D == 4 else lower_for_gpu(*program_of(D)).as_text()
    assert text.count("mosaic_gpu") >= len(SMOOTHER_KERNELS)
    assert "__gpu$xla.gpu.triton" not in text
    assert text.count("stablehlo.while") == (2 if D == 4 else 0)


def program_of(D):
    function, arguments = program("smoother", D, 1, how=Launch("mosaic", lanes=128, warps=4))
    return function, *arguments


def products_of_rows(jaxpr, rows):
    """Counts the products of matrices that XLA makes for every row."""
    own = sum(e.primitive.name == "dot_general" and rows in e.outvars[0].aval.shape for e in jaxpr.eqns)
    return own + sum(products_of_rows(inner, rows) for e in jaxpr.eqns for inner in inner_jaxprs(e))


def test_beside_kernels_xla_multiplies_no_row_by_a_matrix():
    """It takes longer for that on a GPU than for all that reads the rows."""
    rows = 37
    params = random_params(0, 2, 3)
    y = simulate(params, rows, 0)[None]
    model, _ = check_model(params, rows, 1, y.dtype)
    plans = Plan(rows - 1, 6), Plan(rows - 1, 6, launch=Launch(interpret=True))
    by_xla, by_kernels = (jax.make_jaxpr(lambda y, plan=plan: series(plan, model, y, False))(y) for plan in plans)
    assert products_of_rows(by_xla.jaxpr, rows) == 1
    assert products_of_rows(by_kernels.jaxpr, rows) == 0
    for given, wanted in zip(
        *(jax.tree.leaves(jax.jit(lambda y, p=p: series(p, model, y, False))(y)) for p in plans), strict=True
    ):
        close(given, wanted, 1e-13)
