"""Derivatives of log-likelihoods: the pass of their own against JAX's through the sequential recursion.

(`test_transforms` has central differences of the textbook, for the parameters that do not vary.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import lgssm_filter, lgssm_marginal_loglik
from oracles.lgssm import cast, close, random_params

T, D, M = 100, 2, 2
WEIGHTS = jnp.array([1.0, -2.0, 0.5])


@jax.jit
def reference(params, y, inputs=None):
    """Derivatives with respect to everything, by JAX, of one sequence's densities per step; tests share what it compiles."""

    def loglik(params, y, inputs):
        run = {"implementation": "sequential", "per_step_loglik": True, "missing": True}
        return lgssm_marginal_loglik(params, y, inputs, **run).sum()

    return jax.grad(loglik, everything(inputs))(params, y, inputs)


def gradient(params, y, inputs=None, implementation="chunked"):
    """The same by the pass of its own; of batches, of a weighted sum."""

    def loglik(params, y, inputs):
        total = lgssm_marginal_loglik(params, y, inputs, implementation=implementation, missing=missing)
        return (total * WEIGHTS).sum() if total.ndim else total

    missing = bool(np.isnan(y).any())
    return jax.jit(jax.grad(loglik, everything(inputs)))(params, y, inputs)


def everything(inputs):
    return (0, 1) if inputs is None else (0, 1, 2)


def compare(given, wanted):
    wanted = dict(jax.tree_util.tree_leaves_with_path(wanted))
    for path, g in jax.tree_util.tree_leaves_with_path(given):
        name, w = jax.tree_util.keystr(path), wanted[path]
        if name.endswith("cov") and w.shape[-1:] == w.shape[-2:-1]:  # JAX tells apart what a covariance has twice
            w = (w + w.mT) / 2
        close(g, w, 1e-10, name)


def check(*arguments, implementation="chunked"):
    arguments = jax.tree.map(jnp.asarray, arguments)
    compare(gradient(*arguments, implementation=implementation), reference(*arguments))


def emissions(*shape, missing=0.0):
    r = np.random.default_rng(0)
    y = r.normal(size=shape)
    y[r.random(shape) < missing] = np.nan
    return y


@pytest.mark.parametrize(("T", "D", "m"), [(1, 2, 1), (2, 1, 1), (19, 3, 2)])
def test_sizes(T, D, m):
    check(random_params(T, D, m), emissions(T, m), implementation="sequential" if T == 2 else "chunked")


@pytest.mark.parametrize("correlated", [True, False])
def test_missing_entries(correlated):
    params = random_params(1, D, M)
    if not correlated:
        params = params._replace(emissions=params.emissions._replace(cov=np.diag(params.emissions.cov)))
    check(params, emissions(T, M, missing=0.4))


def test_what_varies_and_inputs():
    """Everything that may vary does, and inputs act on states and emissions."""
    each = [random_params(t, D, M) for t in range(T)]
    varying = jax.tree.map(lambda *xs: np.stack(xs), *each)
    r = np.random.default_rng(1)
    params = varying._replace(
        initial=each[0].initial,
        dynamics=varying.dynamics._replace(input_weights=r.normal(size=(D, 3))),
        emissions=varying.emissions._replace(input_weights=r.normal(size=(T, M, 3))),
    )
    check(params, emissions(T, M), r.normal(size=(T, 3)))


def test_batches():
    """Sequences that share parameters, and sequences with their own."""

    def alone(each):
        gradients = jax.tree.map(lambda *gs: np.stack(gs), *(reference(params, x) for params, x in zip(each, y, strict=True)))
        return jax.tree.map(lambda g: np.einsum("b,b...->b...", WEIGHTS, g), gradients)

    def without_time(params):
        dynamics, observed = (jax.tree.map(lambda x: x[:, None], part) for part in (params.dynamics, params.emissions))
        return params._replace(dynamics=dynamics, emissions=observed)

    y = emissions(3, T, M)
    shared = random_params(2, D, M)
    of_params, of_y = alone([shared] * 3)
    compare(gradient(shared, y), (jax.tree.map(lambda g: g.sum(0), of_params), of_y))
    y[1, 3:5] = np.nan
    each = [random_params(b, D, M) for b in range(3)]
    of_params, of_y = alone(each)
    compare(gradient(without_time(jax.tree.map(lambda *xs: np.stack(xs), *each)), y), (without_time(of_params), of_y))


def test_singular_noise():
    """Fisher's identity divides by Q and R; this does not."""
    params = random_params(3, D, 1)
    params = params._replace(
        dynamics=params.dynamics._replace(cov=np.diag([0.5, 0.0])), emissions=params.emissions._replace(cov=np.zeros((1, 1)))
    )
    check(params, emissions(T, 1))


def test_kernels_have_them():
    check(random_params(4, D, 1), emissions(14, 1), implementation="pallas_interpret")


def test_filters_have_them():
    """Their log-likelihoods, beside their moments' own derivatives."""
    params, y = jax.tree.map(jnp.asarray, (random_params(5, D, 1), emissions(T, 1)))

    def mixed(per_step):
        def value(params):
            out = lgssm_filter(params, y, implementation="sequential", per_step_loglik=per_step)
            return out.marginal_loglik.sum() + out.filtered_means.sum()

        return jax.jit(jax.grad(value))(params).dynamics.weights

    close(mixed(False), mixed(True), 1e-10)


def test_forward_mode_and_second_derivatives():
    params, y = jax.tree.map(jnp.asarray, (random_params(6, 1, 1), emissions(5, 1)))

    def loglik(q, per_step):
        changed = params._replace(dynamics=params.dynamics._replace(cov=q))
        return lgssm_marginal_loglik(changed, y, implementation="sequential", per_step_loglik=per_step).sum()

    q = params.dynamics.cov
    for derivative in (jax.jacfwd, jax.hessian):
        close(
            jax.jit(derivative(loglik), static_argnums=1)(q, False),
            jax.jit(derivative(loglik), static_argnums=1)(q, True),
            1e-9,
        )


def test_single_precision():
    """Against float64."""
    params, y = random_params(7, D, M), emissions(T, M)
    wanted, _ = reference(params, y)
    given, _ = gradient(cast(params, "float32"), y.astype("float32"))
    close(given.dynamics.weights, wanted.dynamics.weights, 2e-5)
    close(given.dynamics.bias, wanted.dynamics.bias, 2e-5)
    close(given.emissions.weights, wanted.emissions.weights, 2e-5)
