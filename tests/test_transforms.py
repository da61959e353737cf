"""jit, vmap, grad, and calls inside lax.scan."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import lgssm_marginal_loglik, lgssm_posterior_sample, lgssm_smoother
from oracle import assert_moments, close, random_params, simulate, textbook

PARAMS = random_params(1, 2, 1)
Y = simulate(PARAMS, 6, 0)


@pytest.mark.parametrize("implementation", ["sequential", "chunked"])
def test_vmap_over_emissions_and_parameters(implementation):
    ys = np.stack([Y, Y[::-1], 2 * Y])

    def smooth(p, y):
        return lgssm_smoother(p, y, implementation=implementation)

    posterior = jax.tree.map(np.asarray, jax.jit(jax.vmap(smooth, (None, 0)))(PARAMS, ys))
    for b in range(3):
        assert_moments(jax.tree.map(lambda x, b=b: x[b], posterior), textbook(PARAMS, ys[b]), "float64")
    both = jax.tree.map(lambda *xs: np.stack(xs), PARAMS, random_params(2, 2, 1))
    posterior = jax.tree.map(np.asarray, jax.jit(jax.vmap(smooth, (0, None)))(both, Y))
    for b in range(2):
        assert_moments(
            jax.tree.map(lambda x, b=b: x[b], posterior), textbook(jax.tree.map(lambda x, b=b: x[b], both), Y), "float64"
        )


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


def test_gradient_of_moments_and_samples():
    @functools.partial(jax.jit, static_argnums=1)
    def moments(b, implementation):
        p = PARAMS._replace(dynamics=PARAMS.dynamics._replace(bias=b))
        posterior = lgssm_smoother(p, Y, implementation=implementation)
        sample = lgssm_posterior_sample(jax.random.key(0), p, Y, implementation=implementation)
        return jnp.sum(posterior.smoothed_means**2) + jnp.sum(posterior.smoothed_cross_covariances) + jnp.sum(jnp.sin(sample))

    b = PARAMS.dynamics.bias
    wanted = [(moments(b + h, "sequential") - moments(b - h, "sequential")) / 2e-6 for h in 1e-6 * np.eye(2)]
    for implementation in ("sequential", "chunked"):
        gradient = jax.jit(jax.grad(moments), static_argnums=1)(b, implementation)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5)


def test_inside_scan():
    def body(total, y):
        return total + lgssm_marginal_loglik(PARAMS, y, implementation="chunked"), None

    total, _ = jax.lax.scan(body, jnp.zeros(()), jnp.stack([Y, 2 * Y]))
    close(total, textbook(PARAMS, Y).loglik.sum() + textbook(PARAMS, 2 * Y).loglik.sum(), 1e-10)


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
from oracle import assert_moments, random_params, simulate, textbook
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
        env=os.environ | {"PYTHONPATH": os.path.dirname(__file__)},
    )
    assert done.stdout.strip() == "fine", done.stderr
