"""jit, grad, and calls inside loops and branches."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import lgssm_marginal_loglik, lgssm_smoother
from oracles.lgssm import close, random_params, simulate, textbook

PARAMS = random_params(1, 2, 1)
Y = simulate(PARAMS, 6, 0)


@pytest.mark.parametrize("implementation", ["sequential", "chunked"])
def test_gradient_of_the_log_likelihood(implementation):
    """Against central differences of the textbook, for every parameter and the emissions, of which one may be missing."""
    gradient = jax.jit(jax.grad(lambda p, y: lgssm_marginal_loglik(p, y, implementation=implementation), (0, 1)))
    gap = Y.copy()
    gap[2] = np.nan
    for y in (Y, gap):
        check_gradient(jax.tree.map(np.asarray, gradient(PARAMS, y)), y)


def check_gradient(given, y):
    leaves, tree = jax.tree.flatten((PARAMS, y))
    for k, (leaf, gradient) in enumerate(zip(leaves, jax.tree.leaves(given), strict=True)):
        for index in np.ndindex(leaf.shape):
            if np.isnan(leaf[index]):
                assert gradient[index] == 0
                continue
            sides = []
            for h in (1e-6, -1e-6):
                moved = leaf.copy()
                moved[index] += h
                sides.append(textbook(*tree.unflatten([*leaves[:k], moved, *leaves[k + 1 :]])).loglik.sum())
            difference = (sides[0] - sides[1]) / 2e-6
            if leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1] and index[0] != index[1] and k != 2:
                continue  # off the symmetric matrices, forms may differ: their symmetric part is compared elsewhere
            np.testing.assert_allclose(gradient[index], difference, rtol=2e-6, atol=2e-7)


def test_inside_control_flow():
    """All of JAX's loops and branches in one program."""

    def loglik(y):
        return lgssm_marginal_loglik(PARAMS, y, implementation="chunked")

    @jax.jit
    def program(ys):
        scanned, _ = jax.lax.scan(lambda total, y: (total + loglik(y), None), jnp.zeros(()), ys)
        _, looped = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + loglik(ys[0])), (0, jnp.zeros(())))
        branched = jax.lax.cond(ys[0, 0, 0] > 0, lambda: loglik(ys[0]), lambda: -loglik(ys[0]))
        return scanned, looped, jnp.abs(branched)

    logliks = [textbook(PARAMS, y).loglik.sum() for y in (Y, 2 * Y)]
    for given, wanted in zip(program(jnp.stack([Y, 2 * Y])), (sum(logliks), 3 * logliks[0], abs(logliks[0])), strict=True):
        close(given, wanted, 1e-10)


def test_checkpointed():
    def loglik(p):
        return lgssm_marginal_loglik(p, Y, implementation="chunked")

    plain, checkpointed = jax.grad(loglik)(PARAMS), jax.jit(jax.grad(jax.checkpoint(loglik)))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), plain, checkpointed)


def test_nothing_recompiles_for_new_values():
    count = []

    @jax.jit
    def smooth(p, y):
        count.append(1)
        return lgssm_smoother(p, y)

    gaps = Y.copy()
    gaps[1] = np.nan
    smooth(PARAMS, Y), smooth(PARAMS, gaps), smooth(jax.tree.map(lambda x: 2 * x, PARAMS), Y)
    assert len(count) == 1


def test_without_x64():
    """JAX's default configuration, in a process of its own."""
    code = """
import numpy as np
from oracles.lgssm import assert_moments, random_params, simulate, textbook
from fastscan import lgssm_smoother
params, y = random_params(1, 2, 1), simulate(random_params(1, 2, 1), 9, 0)
for implementation in ("sequential", "chunked"):
    posterior = lgssm_smoother(params, y, implementation=implementation)
    assert posterior.smoothed_means.dtype == np.float32
    assert_moments(posterior, textbook(params, y), "float32")
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.stdout.strip() == "fine", done.stderr
