"""Under vmap a batch becomes lanes; under shard_map it is divided among devices."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastscan
from fastscan.dispatch.choice import choose
from oracles.lgssm import random_params, simulate

N, T, K = 3, 9, 3
PARAMS = random_params(1, 2, 1)
YS = np.stack([simulate(PARAMS, T, seed) for seed in range(N)])
SCALES = np.array([1.0, 0.9, 0.8])


def models():
    """Stacked ones, which differ in their dynamics."""
    stacked = jax.tree.map(lambda x: np.stack([x] * N), PARAMS)
    weights = stacked.dynamics.weights * SCALES[:, None, None]
    return stacked._replace(dynamics=stacked.dynamics._replace(weights=weights))


def check(function, in_axes, *arguments):
    """Against calls one by one."""
    together = jax.jit(jax.vmap(function, in_axes))(*arguments)
    alone = jax.jit(function)
    each = [
        alone(*(a if axis is None else jax.tree.map(lambda x: x[i], a) for a, axis in zip(arguments, in_axes, strict=True)))  # noqa: B023
        for i in range(N)
    ]
    each = jax.tree.map(lambda *xs: np.stack(xs), *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), together, each)


SMOOTHERS = {name: functools.partial(fastscan.lgssm_smoother, implementation=name) for name in ("sequential", "chunked")}
"""Always the same objects, for which one by one `jax.jit` compiles once."""


@pytest.mark.parametrize("implementation", SMOOTHERS)
@pytest.mark.parametrize("in_axes", [(None, 0), (0, None), (0, 0)])
def test_smoother(implementation, in_axes):
    arguments = [batch if axis == 0 else one for axis, batch, one in zip(in_axes, (models(), YS), (PARAMS, YS[0]), strict=True)]
    if in_axes == (0, 0):  # one of them with a gap
        arguments[1] = np.where(np.arange(N * T).reshape(N, T, 1) == 4, np.nan, YS)
    check(SMOOTHERS[implementation], in_axes, *arguments)


def test_kernels():
    """A pallas_call has batches of its own; this is the same launch with more lanes."""
    check(lambda y: fastscan.lgssm_filter(PARAMS, y, implementation="pallas_interpret"), (0,), YS)


def test_gradients():
    def of_loglik(p, y):
        return jax.value_and_grad(fastscan.lgssm_marginal_loglik)(p, y)

    def of_mean(p, y):
        return jax.grad(lambda y: fastscan.lgssm_filter(p, y, missing=False).filtered_means[-1, 0])(y)

    check(of_loglik, (0, 0), models(), YS)
    check(of_mean, (None, 0), PARAMS, YS)


def test_a_gradient_of_a_batch():
    def total(p):
        return jax.vmap(lambda y: fastscan.lgssm_marginal_loglik(p, y))(YS).sum()

    given, native = (jax.jit(jax.grad(f))(PARAMS) for f in (total, lambda p: fastscan.lgssm_marginal_loglik(p, YS).sum()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), given, native)


def test_keys():
    keys = jax.random.split(jax.random.key(0), N)
    check(lambda key: fastscan.lgssm_posterior_sample(key, PARAMS, YS[0]), (0,), keys)
    check(lambda key: fastscan.lgssm_joint_sample(PARAMS, key, T), (0,), keys)
    check(lambda p: fastscan.lgssm_joint_sample(p, keys[0], T), (0,), models())
    check(lambda key: fastscan.hmm_posterior_sample(key, *hmm(None)), (0,), keys)


def hmm(*mapped):
    """Arguments; of the three, the named ones once for every lane."""
    r = np.random.default_rng(0)
    arrays = r.dirichlet(np.ones(K), size=N), r.dirichlet(np.ones(K), size=(N, K)), r.normal(size=(N, T, K))
    return [x if i in mapped else x[0] for i, x in enumerate(arrays)]


@pytest.mark.parametrize("mapped", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize(
    "function",
    [
        fastscan.hmm_smoother,
        fastscan.hmm_posterior_mode,
        lambda *model: fastscan.hmm_backward_filter(*model[1:]),
        lambda *model: fastscan.hmm_posterior_sample(jax.random.key(0), *model),
        lambda *model: jax.value_and_grad(fastscan.hmm_marginal_loglik, (0, 1, 2))(*model),
    ],
    ids=["smoother", "mode", "backward", "sample", "gradient"],
)
def test_hmm(function, mapped):
    check(function, tuple(0 if i in mapped else None for i in range(3)), *hmm(*mapped))


def test_twice():
    ys = np.stack([YS, 2 * YS])
    twice = jax.vmap(jax.vmap(lambda y: fastscan.lgssm_marginal_loglik(PARAMS, y)))(ys)
    native = fastscan.lgssm_marginal_loglik(PARAMS, ys.reshape(-1, T, 1)).reshape(2, N)
    np.testing.assert_allclose(twice, native, rtol=1e-12)


def test_the_batch_becomes_lanes():
    """The plan is the one for so many sequences, the loops run over its lanes, and the branch for gaps stays a branch."""
    N, T = 64, 1_000
    y = jnp.zeros((N, T, 1), jnp.float32)
    params = random_params(0, 2, 1, "float32")
    text = jax.jit(jax.vmap(lambda y: fastscan.lgssm_smoother(params, y))).lower(y).as_text()
    size = {"T": T, "D": 2, "m": 1, "dtype": np.float32}
    chunks, alone = (choose(None, B=B, **size).plan.chunks for B in (N, 1))
    assert chunks != alone
    assert f"tensor<2x1x{chunks}x{N}xf32>" in text
    assert "stablehlo.case" in text


def test_shard_map():
    """In a process of its own, whose CPU is eight devices."""
    code = """
import jax, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
import fastscan
from oracles.lgssm import random_params
params = jax.tree.map(np.asarray, random_params(1, 2, 1))
y = np.random.default_rng(0).normal(size=(8, 9, 1))
ll = np.random.default_rng(1).normal(size=(8, 9_000, 3))
mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))

def shared(function):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch")))

def loglik(params, y):
    return fastscan.lgssm_marginal_loglik(params, y, implementation="chunked")

def mean(params, y):
    return fastscan.lgssm_smoother(params, y, missing=False).smoothed_means

def probs(A, ll):
    return fastscan.hmm_smoother(A[0], A, ll).smoothed_probs

A = np.full((3, 3), 1 / 3)
for function, arguments in ((mean, (params, y)), (probs, (A, ll))):
    given = shared(function)(*arguments)
    assert len(given.sharding.device_set) == 8
    np.testing.assert_allclose(given, function(*arguments), rtol=1e-9, atol=1e-12)

def total(function):
    def summed(params):
        logliks = function(params, y)
        return logliks.sum(), logliks
    return jax.jit(jax.grad(summed, has_aux=True))

given, wanted = total(shared(loglik))(params), total(loglik)(params)
assert len(given[1].sharding.device_set) == 8
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), given, wanted)
print("fine")
"""
    run_with_devices(code)


def test_shard_map_of_kernels():
    """What kernels return varies over the axes of what they are given; Pallas's interpreter can't say so."""
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
import fastscan
from fastscan.profiling.compiled.public_calls import pretending
from oracles.lgssm import random_params

mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
y = np.random.default_rng(0).normal(size=(8, 9, 1)).astype(np.float32)

def shared(implementation, check):
    def mean(params, y):
        return fastscan.lgssm_smoother(params, y, implementation=implementation).smoothed_means
    return jax.jit(jax.shard_map(mean, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch"), check_vma=check))

params = jax.tree.map(jnp.asarray, random_params(1, 7, 1, "float32"))
with pretending("NVIDIA H200"):
    assert "pallas_call" in str(shared("pallas", True).trace(params, y).jaxpr)
given, wanted = shared("pallas_interpret", False)(params, y), shared("sequential", True)(params, y)
np.testing.assert_allclose(given, wanted, atol=1e-5)
print("fine")
"""
    run_with_devices(code, JAX_ENABLE_X64="0")


def run_with_devices(code, **more):
    """In a process of its own, whose CPU is eight devices."""
    more = {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_ENABLE_X64": "1", **more}
    more["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, env=os.environ | more
    )
    assert done.stdout.strip() == "fine", done.stderr
