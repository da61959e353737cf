"""Kernels whose programs hold a large model together, on an emulated GPU: shared memory, matrix units and all.

What Triton makes of matrices of more than 32 rows for an H100 are instructions of warpgroups, which the emulator does not know;
so these are compiled for an A100.
"""

import numpy as np
import pytest
from emulated.test_public_calls import check, model, path_sample, posterior_sample

from emulator.launches import Emulator
from fastscan import Regimes, hmm_filter, hmm_posterior_mode, hmm_smoother, lgssm_filter, lgssm_smoother
from oracles.hmm import random_model
from oracles.lgssm import SMOOTHER_KERNELS

pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")

CHUNKED = 67
"""Time steps: of 66 rows, in four chunks, the last chunk is not full."""


def on(rows):
    """An emulated GPU that has all instructions for matrices of so many rows."""
    return Emulator(90 if rows <= 32 else 80)


def test_a_smoother_in_chunks():
    ran = check(lgssm_smoother, *model(7, 3, CHUNKED))
    assert ran.kernels == SMOOTHER_KERNELS


def test_a_batch_on_an_older_architecture():
    """Of programs of two warps each, which wait for one another."""
    ran = check(lgssm_filter, *model(17, 2, 4, 2), emulator=Emulator(80))
    sweep = next(launch for launch in ran.launched if launch.kernel == "kalman_filter_sweep")
    assert (sweep.programs, sweep.threads) == (2, 128)


def test_states_in_chunks():
    check(hmm_smoother, *random_model(1, CHUNKED, 9))


@pytest.mark.parametrize("call", [hmm_posterior_mode, path_sample])
def test_paths(call):
    check(call, *random_model(2, 9, 33), same=True, emulator=on(33))


def switching(F, Q, index, noise, params, y, implementation):
    """Posterior samples of a model whose dynamics follow a discrete state, with a diagonal noise that varies in time."""
    dynamics = params.dynamics._replace(weights=Regimes(F, index), cov=Regimes(Q, index))
    params = params._replace(dynamics=dynamics, emissions=params.emissions._replace(cov=noise))
    return posterior_sample(params, y, implementation)


@pytest.mark.parametrize(("D", "m", "T"), [(7, 3, 9), pytest.param(30, 4, CHUNKED, marks=pytest.mark.slow)])
def test_regimes(D, m, T):
    params, y = model(D, m, T, 2, gaps=False)
    r = np.random.default_rng(0)
    F, Q = (x * r.uniform(0.5, 1, (3, 1, 1)) for x in (params.dynamics.weights, params.dynamics.cov))
    index, noise = r.integers(0, 3, (2, T)), r.uniform(0.5, 1, (T, m))
    check(switching, F, Q, index, noise, params, y, same=True, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("D", "m", "T"), [(8, 1, CHUNKED), (12, 6, 130), (16, 16, CHUNKED), (20, 4, CHUNKED), (30, 16, CHUNKED), (33, 5, 20)]
)
def test_sizes(D, m, T):
    given = model(D, m, T)
    check(lgssm_smoother, *given, emulator=on(max(D, m)))
    check(posterior_sample, *given, emulator=on(max(D, m)), same=True, tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("K", "T"), [(9, 1), (16, 2), (31, 130), (64, CHUNKED), (100, 12), (128, 5)])
def test_states(K, T):
    hmm = random_model(K, T, K)
    for call in (hmm_filter, hmm_smoother):
        check(call, *hmm, emulator=on(K))
    for call in (hmm_posterior_mode, path_sample):
        check(call, *hmm, emulator=on(K), same=True)


@pytest.mark.slow
@pytest.mark.parametrize("B", [1, 3])
def test_several_levels_of_summaries(B):
    """300 rows: 18 chunks, in groups."""
    ran = check(lgssm_smoother, *model(7, 2, 301, B), emulator=on(7))
    assert ran.kernels == SMOOTHER_KERNELS
