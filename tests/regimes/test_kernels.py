"""Kernels that look matrices up: the instructions that a GPU would execute, against the sequential code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emulator.launches import emulate
from fastscan import Regimes, lgssm_posterior_sample, lgssm_smoother
from oracles.lgssm import random_params, simulate

pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")

T, D, M, R = 294, 2, 2, 3
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, "float32"), random_params(0, D, M))
Y = jnp.asarray(np.stack([simulate(PARAMS, T, b) for b in range(2)]), "float32")


SAMPLE = functools.partial(lgssm_posterior_sample, jax.random.key(0))
SLOW = [pytest.param(f, own, marks=pytest.mark.slow) for f, own in ((lgssm_smoother, False), (SAMPLE, False), (SAMPLE, True))]


@pytest.mark.parametrize("function, own", [(lgssm_smoother, True), *SLOW])
def test_lanes_look_matrices_up(function, own):
    index = np.random.default_rng(0).integers(0, R, (2, T) if own else T).astype(np.int32)

    def call(F, index, y, implementation):
        return function(
            PARAMS._replace(dynamics=PARAMS.dynamics._replace(weights=Regimes(F, index))), y, implementation=implementation
        )

    F = jnp.stack([PARAMS.dynamics.weights * scale for scale in (1.0, 0.5, -0.8)])
    given = emulate(functools.partial(call, implementation="pallas"), F, index, Y)
    wanted = jax.jit(functools.partial(call, implementation="sequential"))(F, index, Y)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))
