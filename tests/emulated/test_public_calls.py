"""Public calls on an emulated GPU: the instructions that one would execute, against the sequential code.

Every launch is looked through for accesses out of bounds, for what nobody wrote, and for races (see `emulator.memory`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emulator.launches import Emulator, emulate
from fastscan import (
    affine_scan,
    hmm_filter,
    hmm_posterior_mode,
    hmm_posterior_sample,
    hmm_smoother,
    lgssm_filter,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_sample,
    lgssm_smoother,
)
from fastscan.lds import lds_inference, lds_log_normalizer, lds_sample
from fastscan.mcmc import rw_metropolis
from fastscan.profiling.compiled.kernel_report import FAMILIES, program, step_bytes
from oracles.hmm import random_model
from oracles.lds import random_chain
from oracles.lgssm import random_params, simulate
from oracles.mcmc import correlated, mixture

pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")

KEY = jax.random.key(0)
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
"""Relative to the largest entry."""
PADDED = 294
"""Time steps: of 293 rows the last chunk is not full, and summaries are scanned in two levels."""


def of_dtype(tree, dtype):
    """Arrays of floating numbers in a dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, jax.tree.map(np.asarray, tree))


def check(call, *arguments, dtype="float32", emulator=None, same=False, differing=0.0, tolerance=None):
    """``call(*arguments, implementation)`` on an emulated GPU, against the sequential code in float64, or the ``same`` dtype.

    Of the last axis, the share ``differing`` may be something else: where a decision is close, rounding makes another one.

    Returns:
        The emulator, which knows what ran.
    """
    emulator = emulator or Emulator()
    given = emulate(functools.partial(call, implementation="pallas"), *of_dtype(arguments, dtype), emulator=emulator)
    wanted = jax.jit(functools.partial(call, implementation="sequential"))(*of_dtype(arguments, dtype if same else "float64"))
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == (dtype if jnp.issubdtype(a.dtype, jnp.floating) else b.dtype)
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        if a.size:
            wrong = np.abs(a - b) > (tolerance or TOLERANCE[dtype]) * np.abs(b).max()
            assert wrong.reshape(-1, wrong.shape[-1] if wrong.ndim else 1).any(0).mean() <= differing
    return emulator


def model(D, m, T, B=None, *, gaps=True, seed=0):
    """Parameters and emissions, some of them missing."""
    params = random_params(seed, D, m)
    y = np.stack([simulate(params, T, b) for b in range(B or 1)])
    if gaps and T > 10:
        y[:, 5:8], y[:, T // 2, 0] = np.nan, np.nan
    return params, y if B else y[0]


def value_and_gradient(params, y, implementation):
    return jax.value_and_grad(lambda p: lgssm_marginal_loglik(p, y, implementation=implementation))(params)


def posterior_sample(params, y, implementation):
    return lgssm_posterior_sample(KEY, params, y, implementation=implementation)


def joint_sample(params, implementation):
    return lgssm_joint_sample(params, KEY, PADDED, implementation=implementation)


def chain_sample(*chain, implementation):
    return lds_sample(KEY, *chain, implementation=implementation)


def path_sample(*hmm, implementation):
    return hmm_posterior_sample(KEY, *hmm, implementation=implementation)


def metropolis(log_density, start, keep="samples", implementation="pallas"):
    how = "xla" if implementation == "sequential" else implementation
    out = rw_metropolis(KEY, log_density, start, 40, thin=2, warmup=10, keep=keep, implementation=how)
    return out.samples if keep == "samples" else (out.moments, out.acceptance_rate)


FAST = {
    "smoother": (lgssm_smoother, *model(2, 2, PADDED)),
    "likelihood": (lgssm_marginal_loglik, *model(2, 2, PADDED)),
    "score": (value_and_gradient, *model(2, 2, PADDED)),
    "sampler": (posterior_sample, *model(2, 2, PADDED)),
    "lds": (lds_inference, *random_chain(2, PADDED, 2)),
    "hmm_smoother": (hmm_smoother, *random_model(3, PADDED, 3)),
    "hmm_mode": (hmm_posterior_mode, *random_model(4, PADDED, 3)),
    "hmm_sampler": (path_sample, *random_model(5, PADDED, 2)),
    "metropolis": (functools.partial(metropolis, mixture), np.zeros((1, 33))),
}
"""A call of every family of the kernel report; chains of potentials of more chunks than one once had no lowering for a GPU."""
DRAWN = "sampler", "hmm_sampler", "metropolis"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_of_a_family(family):
    call, *arguments = FAST[family]
    ran = check(call, *arguments, same=family in DRAWN)
    D, m = (arguments[0].shape[0], 0) if family.startswith(("hmm", "metropolis")) else (2, 0 if family == "lds" else 2)
    assert ran.kernels >= step_bytes(*tuple_of(program(family, D, m))).keys()


def tuple_of(given):
    function, arguments = given
    return function, *arguments


def test_a_filter_alone():
    ran = check(lgssm_filter, *model(1, 2, PADDED))
    assert {launch.room for launch in ran.launched if launch.kernel == "kalman_filter_sweep"} == {(1, 1, 0, 0, 0)}


def test_float64():
    check(lgssm_smoother, *model(2, 1, PADDED), dtype="float64")


def test_batches_of_short_series():
    """33 sequences: a program whose lanes are all taken, and one that has a single one."""
    ran = check(lgssm_smoother, *model(1, 1, 13, 33))
    assert {launch.programs for launch in ran.launched} >= {2}
    assert {launch.room for launch in ran.launched if launch.kernel == "kalman_filter_sweep"} == {(33, 33, 0, 0, 0)}


def test_an_older_architecture():
    """Which has no `stmatrix`, so that the layout of what threads move is another."""
    params, y = model(2, 2, PADDED)
    check(lgssm_smoother, params, y, emulator=Emulator(80))


def affine(A, b, structure, implementation):
    """Values, and derivatives."""

    def total(A, b):
        x = affine_scan(A, b, structure=structure, implementation=implementation)
        return (x**2).sum(), x

    return jax.value_and_grad(total, (0, 1), has_aux=True)(A, b)


@pytest.mark.parametrize(
    ("structure", "shape", "D"),
    [("dense", (3, 3), 3), ("dense", (9, 9), 9), ("diagonal", (5,), 5), ("diagonal", (40,), 40), ("blocks", (2, 2, 2), 4)],
)
def test_affine_recurrences(structure, shape, D):
    r = np.random.default_rng(D)
    A, b = r.normal(size=(PADDED, *shape)) / 2 / np.sqrt(shape[-1]), r.normal(size=(PADDED, D))
    ran = check(functools.partial(affine, structure=structure), A, b, tolerance=1e-4 if D > 8 else None)
    assert {name.split("_maps")[0].split("_adjoints")[0] for name in ran.kernels} == {
        {"dense": "affine", "diagonal": "diagonal_affine", "blocks": "blocks_affine"}[structure]
    }


# --- what takes longer: every family, at more sizes

LENGTHS = [1, 2, 15, 63, 64, 65, 66, 129, 257, 1_009]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("T", LENGTHS)
def test_lengths(T, dtype):
    params, y = model(2, 2, T)
    check(lgssm_smoother, params, y, dtype=dtype)
    check(posterior_sample, params, y, dtype=dtype, same=True)
    hmm = random_model(T, T, 3)
    check(hmm_smoother, *hmm, dtype=dtype)
    check(hmm_posterior_mode, *hmm, dtype=dtype)
    check(path_sample, *hmm, dtype=dtype, same=True)
    check(lds_inference, *random_chain(T, T, 2), dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("D", "m"), [(1, 1), (1, 9), (2, 5), (3, 3), (4, 2), (4, 4), (5, 1), (6, 1)])
def test_sizes(D, m):
    params, y = model(D, m, PADDED)
    check(lgssm_smoother, params, y)
    check(lgssm_filter, params, y)
    check(lgssm_marginal_loglik, params, y)
    if D < 5:
        check(posterior_sample, params, y, same=True)


@pytest.mark.slow
@pytest.mark.parametrize("K", range(1, 9))
def test_states(K):
    hmm = random_model(K, PADDED, K)
    for call in (hmm_filter, hmm_smoother, hmm_posterior_mode):
        check(call, *hmm)
    check(path_sample, *hmm, same=True)


@pytest.mark.slow
@pytest.mark.parametrize("D", [1, 2, 3, 4])
@pytest.mark.parametrize("static", [True, False])
def test_chains(D, static):
    chain = random_chain(D, PADDED, D, static=static)
    check(lds_inference, *chain)
    check(lds_log_normalizer, *chain)
    check(chain_sample, *chain, same=True)


@pytest.mark.slow
@pytest.mark.parametrize("B", [1, 3, 33])
@pytest.mark.parametrize("T", [20, 130])
def test_batches(B, T):
    check(lgssm_smoother, *model(2, 1, T, B))
    check(posterior_sample, *model(2, 1, T, B), same=True)
    initial, A, ll = random_model(1, T, 3)
    lls = np.stack([np.roll(ll, b, 0) for b in range(B)])
    check(hmm_smoother, initial, A, lls)


@pytest.mark.slow
def test_several_levels_of_summaries():
    """12,000 steps: 750 chunks, in groups of groups of groups."""
    ran = check(lgssm_smoother, *model(2, 1, 12_000))
    assert sum(launch.kernel == "kalman_filter_summaries_summarise" for launch in ran.launched) == 3
    check(hmm_smoother, *random_model(1, 12_000, 3))


@pytest.mark.slow
def test_parameters_that_vary():
    params, y = model(2, 1, PADDED)
    scale = np.linspace(0.5, 2, PADDED)[:, None, None]
    dynamics = params.dynamics._replace(weights=params.dynamics.weights * np.ones_like(scale), cov=params.dynamics.cov * scale)
    emissions = params.emissions._replace(weights=params.emissions.weights * scale)
    check(lgssm_smoother, params._replace(dynamics=dynamics, emissions=emissions), y)
    check(hmm_smoother, *random_model(1, PADDED, 3, varying=True))
    check(hmm_posterior_mode, *random_model(1, PADDED, 3, varying=True))


@pytest.mark.slow
def test_vmap():
    params, y = model(2, 1, 130, 3)

    def mapped(params, y, implementation):
        return jax.vmap(lambda y: lgssm_smoother(params, y, implementation=implementation))(y)

    check(mapped, params, y)


@pytest.mark.slow
@pytest.mark.parametrize(("D", "m"), [(1, 1), (2, 3), (3, 3), (4, 2), (5, 1)])
@pytest.mark.parametrize("T", [1, 2, 65, PADDED])
def test_values_and_gradients(D, m, T):
    params, y = model(D, m, T)
    check(value_and_gradient, params, y, tolerance=1e-4)  # derivatives are sums over time, of both signs
    if D < 3:
        check(value_and_gradient, params, y, dtype="float64")


@pytest.mark.slow
@pytest.mark.parametrize("T", [1, 2, 65, PADDED])
def test_values_and_gradients_of_states(T):
    def call(initial, A, ll, implementation):
        return jax.value_and_grad(lambda *hmm: hmm_filter(*hmm, implementation=implementation).marginal_loglik, (0, 1, 2))(
            initial, A, ll
        )

    check(call, *random_model(1, T, 3))


@pytest.mark.slow
@pytest.mark.parametrize("chains", [1, 33, 1_000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chains_of_metropolis(chains, dtype):
    for D, log_density in ((1, mixture), (3, correlated(3)[0])):
        for keep in ("samples", "moments"):
            call = functools.partial(metropolis, log_density, keep=keep)
            check(call, np.zeros((D, chains)), dtype=dtype, same=True, differing=0.005)


@pytest.mark.slow
def test_families_on_an_older_architecture():
    check(hmm_smoother, *random_model(3, PADDED, 5), emulator=Emulator(80))
    check(hmm_posterior_mode, *random_model(3, PADDED, 5), emulator=Emulator(80))
    check(posterior_sample, *model(3, 2, PADDED), emulator=Emulator(80), same=True)
    check(lds_inference, *random_chain(3, PADDED, 3), emulator=Emulator(80))
    check(functools.partial(metropolis, mixture), np.zeros((1, 33)), emulator=Emulator(80), same=True)
