"""Derivatives of log-likelihoods by kernels: interpreted, they are those of XLA; and what is lowered for a GPU is they."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import lgssm_marginal_loglik
from fastscan.dispatch.choice import How, choose
from fastscan.kernels.lgssm import passes
from fastscan.kernels.lgssm.decorrelation import decorrelate_rows
from fastscan.kernels.plan import Launch, Plan
from fastscan.lgssm import inference as lgssm_inference
from fastscan.lgssm.check import check_model
from fastscan.lgssm.layout import series
from fastscan.profiling.compiled.machine_code import lower_for_gpu
from oracles.lgssm import close, dense, random_params, simulate

INTERPRETED = Launch(interpret=True)


def data(params, T, B, gaps=False):
    y = np.stack([simulate(params, T, seed) for seed in range(B)])
    if gaps:
        y[np.random.default_rng(0).random(y.shape) < 0.3] = np.nan
    return y


def scored(plan, params, y):
    """The log-likelihood and all derivatives of a series' numbers."""
    model, _ = check_model(params, y.shape[1], len(y), y.dtype)
    missing = bool(np.isnan(y).any())
    return jax.jit(lambda y: passes.score(plan, series(plan, model, y, missing)))(y)


def compare(params, y, chunks, how=INTERPRETED, rounding=1e-11, **options):
    """Kernels, against the sequential recursion under XLA; a batch's results may be the same for all sequences there."""
    steps = y.shape[1] - 1
    given = scored(Plan(steps, chunks, launch=how, **options), params, y)
    wanted = scored(Plan(steps, 1), params, y)

    def same(path, a, b):
        close(*np.broadcast_arrays(a, b), rounding, jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(same, given, wanted)


SIZES = [(1, 1), (1, 3), (2, 2), (3, 1), (4, 2)]


@pytest.mark.parametrize(("D", "m"), SIZES)
def test_every_size(D, m):
    params = random_params(D * 31 + m, D, m)
    compare(params, data(params, 13, 1), 3)


@pytest.mark.parametrize(("T", "chunks"), [(2, 1), (3, 2), (12, 2), (13, 3), (14, 3), (23, 1), (23, 22), (24, 5)])
def test_every_way_of_cutting_time(T, chunks):
    """Single rows, exact chunks, one row less and one more, primes; sequences that share their parameters, with gaps."""
    params = random_params(1, 2, 1)
    compare(params, data(params, T, 3, gaps=True), chunks, INTERPRETED._replace(group=3))


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("lowering", ["triton", "mosaic"])
def test_noise_with_gaps(diagonal, lowering):
    params = random_params(2, 2, 2)
    if diagonal:
        params = params._replace(emissions=params.emissions._replace(cov=np.diag(params.emissions.cov)))
    compare(params, data(params, 14, 2, gaps=True), 4, Launch(lowering, interpret=True))


@pytest.mark.parametrize("B", [1, 3])
def test_parameters_that_vary(B):
    T = 11
    each = [random_params(t, 2, 2) for t in range(T)]
    varying = jax.tree.map(lambda *xs: np.stack(xs), *each)._replace(initial=each[0].initial)
    compare(varying, data(varying, T, B), 3)
    weights = varying.dynamics.weights * np.linspace(0.5, 1, B)[:, None, None, None]
    mixed = each[0]._replace(dynamics=varying.dynamics._replace(weights=weights, cov=each[0].dynamics.cov))
    compare(mixed, data(each[0], T, B), 3)


def test_checked_where_chunks_meet():
    params = random_params(3, 2, 1)
    compare(params, data(params, 14, 2), 4, checked=True)


def test_single_precision():
    params = random_params(4, 2, 2, "float32")
    compare(params, data(params, 40, 2).astype("float32"), 4, rounding=1e-4)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_decorrelation_has_a_derivative(gaps, varying):
    """The one of XLA's program, also where a variance is zero or a sequence shares the others' matrix."""
    r = np.random.default_rng(0)
    rows, B, m, D = 5, 2, 3, 2
    root = r.normal(size=(1, rows if varying else 1, m, m))
    R = jnp.asarray(root @ np.swapaxes(root, -1, -2))
    H, y = jnp.asarray(r.normal(size=(B, 1, m, D))), r.normal(size=(B, rows, m, m))
    observed = jnp.asarray(r.random((B, rows, m, 1)) > 0.4)

    def value(plan, H, R):
        if gaps:
            R = jnp.where(observed & jnp.swapaxes(observed, -1, -2), R, 0)
        apart = decorrelate_rows(plan, H, (R + R.mT) / 2)
        return sum(jnp.sum(jnp.sin(x + y[..., : x.shape[-1]])) for x in apart)

    given, wanted = (
        jax.jit(jax.grad(functools.partial(value, Plan(rows, 1, launch=how)), (0, 1)))(H, R) for how in (INTERPRETED, None)
    )
    for g, w in zip(given, wanted, strict=True):
        close(g, w, 1e-12)


def loglik(params, y, implementation="pallas_interpret"):
    return lgssm_marginal_loglik(params, y, implementation=implementation)


@pytest.mark.parametrize("T", [1, 2, 7])
def test_against_differences_of_a_dense_gaussian(T):
    params, y = random_params(T, 2, 2), simulate(random_params(T, 2, 2), T, 0)
    y[T // 2, 0] = np.nan
    value, gradient = jax.value_and_grad(loglik)(jax.tree.map(jnp.asarray, params), jnp.asarray(y))
    close(value, dense(params, y)[0], 1e-11)
    r = np.random.default_rng(0)
    for field in ("initial", "dynamics", "emissions"):
        for name, x in getattr(params, field)._asdict().items():
            if x is None:
                continue
            direction = r.normal(size=x.shape)
            direction = direction + direction.T if name == "cov" else direction

            def moved(h, field=field, name=name, x=x, direction=direction):
                part = getattr(params, field)._replace(**{name: x + h * direction})
                return dense(params._replace(**{field: part}), y)[0]

            difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
            derivative = np.sum(np.asarray(getattr(getattr(gradient, field), name)) * direction)
            np.testing.assert_allclose(derivative, difference, rtol=1e-6, atol=1e-7)


def test_transformations():
    """vmap of the gradient is the gradient of a batch; second derivatives are those of XLA's pass."""
    params, ys = jax.tree.map(jnp.asarray, random_params(5, 1, 1)), jnp.asarray(data(random_params(5, 1, 1), 5, 2))
    given = jax.jit(jax.vmap(jax.value_and_grad(loglik), (None, 0)))(params, ys)
    for b in range(2):
        wanted = jax.jit(functools.partial(jax.value_and_grad(loglik), implementation="sequential"))(params, ys[b])
        jax.tree.map(lambda a, w, b=b: close(a[b], w, 1e-11), given, wanted)

    def of_noise(q, implementation):
        return loglik(params._replace(dynamics=params.dynamics._replace(cov=q)), ys[0], implementation)

    q = params.dynamics.cov
    for derivative in (jax.hessian, lambda f: jax.jacfwd(f)):
        one, other = (
            jax.jit(derivative(functools.partial(of_noise, implementation=i)))(q) for i in ("pallas_interpret", "sequential")
        )
        close(one, other, 1e-10)


KERNELS = {
    "kalman_filter_summarise",
    "kalman_filter_sweep",
    "kalman_filter_hindsight_sweep",
    "kalman_score_begin",
    "kalman_score_sweep",
    "first_score",
    "decorrelate",
    "decorrelate_back",
}


def lowered_gradient(D, m, T=3_001, dtype="float32", missing=False):
    """The program of the public function's value and gradient, for a GPU that is not here."""
    params = random_params(10, D, m, dtype)
    model, _ = check_model(params, T, None, np.dtype(dtype))
    how = How(choose("pallas", T=T, B=1, D=D, m=m, dtype=dtype, device="NVIDIA H200").plan, missing=missing)
    y = jax.ShapeDtypeStruct((1, T, m), dtype)

    def value(model, y):
        return lgssm_inference.loglik(model, y, how, False).sum()

    return lower_for_gpu(jax.value_and_grad(value, (0, 1)), model, y).as_text()


@pytest.mark.parametrize(("D", "m", "dtype"), [(4, 9, "float32"), (6, 1, "float32"), (6, 2, "float32"), (4, 4, "float64")])
def test_which_sizes_have_kernels(D, m, dtype):
    """Others run as XLA has it, unless interpreted, which takes any size."""
    model, _ = check_model(random_params(0, D, m, dtype), 9, None, np.dtype(dtype))
    y = jax.ShapeDtypeStruct((1, 9, m), dtype)
    for how in (Launch(), INTERPRETED):
        plan = lgssm_inference._score_plan(Plan(8, 2, checked=True, launch=how), model, y)
        assert plan == Plan(8, 2, checked=True, launch=None if (D, m) == (6, 2) and not how.interpret else how)


def test_lowered():
    """Kernels by their names, and no loop outside of them but those that sweep again where chunks do not fit together."""
    text = lowered_gradient(3, 2)
    assert all(f'name = "{name}"' in text for name in KERNELS), KERNELS
    assert text.count("stablehlo.while") == 2
