"""Derivatives of log-likelihoods: the pass of their own against JAX's through the sequential recursion.

(`test_transforms` has central differences of the textbook, for the parameters that do not vary.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import lgssm_filter, lgssm_marginal_loglik
from oracle import cast, close, random_params

T, D, M = 14, 2, 2
WEIGHTS = jnp.array([1.0, -2.0, 0.5])


def gradient(params, y, inputs=None, *, implementation, per_step=False, of_data=False):
    """With respect to parameters, or the data, too; densities ``per_step`` are differentiated by JAX."""

    def loglik(params, y, inputs):
        out = lgssm_marginal_loglik(params, y, inputs, implementation=implementation, per_step_loglik=per_step)
        totals = out.sum(-1) if per_step else out
        return (totals * WEIGHTS[: len(totals)]).sum() if totals.ndim else totals

    if of_data:
        return jax.jit(jax.grad(loglik, (0, 1) if inputs is None else (0, 1, 2)))(params, y, inputs)
    return jax.jit(jax.grad(lambda params: loglik(params, y, inputs)))(params)


def check(params, y, inputs=None, implementations=("chunked",), of_data=False):
    params, y = jax.tree.map(jnp.asarray, (params, y))
    wanted = gradient(params, y, inputs, implementation="sequential", per_step=True, of_data=of_data)
    wanted = dict(jax.tree_util.tree_leaves_with_path(wanted))
    for implementation in implementations:
        given = gradient(params, y, inputs, implementation=implementation, of_data=of_data)
        for path, g in jax.tree_util.tree_leaves_with_path(given):
            name, w = jax.tree_util.keystr(path), wanted[path]
            if name.endswith("cov") and w.shape[-1:] == w.shape[-2:-1]:  # JAX tells apart what a covariance has twice
                w = (w + w.mT) / 2
            close(g, w, 1e-10, implementation + name)


def emissions(*shape, missing=0.0):
    r = np.random.default_rng(0)
    y = r.normal(size=shape)
    y[r.random(shape) < missing] = np.nan
    return y


@pytest.mark.parametrize(("T", "D", "m"), [(1, 2, 1), (2, 1, 1), (19, 3, 2)])
def test_sizes(T, D, m):
    check(random_params(T, D, m), emissions(T, m), implementations=("sequential",) if T == 2 else ("chunked",))


@pytest.mark.parametrize("correlated", [True, False])
def test_missing_entries(correlated):
    params = random_params(1, D, M)
    if not correlated:
        params = params._replace(emissions=params.emissions._replace(cov=np.diag(params.emissions.cov)))
    check(params, emissions(T, M, missing=0.4), of_data=correlated)


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
    check(params, emissions(T, M), r.normal(size=(T, 3)), of_data=True)


def test_batches():
    """Sequences that share parameters, and sequences with their own."""
    y = emissions(3, T, M)
    check(random_params(2, D, M), y)
    own = jax.tree.map(lambda *xs: np.stack(xs), *(random_params(b, D, M) for b in range(3)))
    dynamics, observed = own.dynamics, own.emissions
    own = own._replace(
        dynamics=dynamics._replace(weights=dynamics.weights[:, None], bias=dynamics.bias[:, None], cov=dynamics.cov[:, None]),
        emissions=observed._replace(weights=observed.weights[:, None], bias=observed.bias[:, None], cov=observed.cov[:, None]),
    )
    y[1, 3:5] = np.nan
    check(own, y)


def test_singular_noise():
    """Fisher's identity divides by Q and R; this does not."""
    params = random_params(3, D, 1)
    params = params._replace(
        dynamics=params.dynamics._replace(cov=np.diag([0.5, 0.0])), emissions=params.emissions._replace(cov=np.zeros((1, 1)))
    )
    check(params, emissions(T, 1))


def test_kernels_have_them():
    check(random_params(4, D, 1), emissions(T, 1), implementations=("pallas_interpret",))


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
    params, y = random_params(7, D, M), emissions(300, M)
    wanted = gradient(jax.tree.map(jnp.asarray, params), jnp.asarray(y), implementation="sequential", per_step=True)
    given = gradient(cast(params, "float32"), y.astype("float32"), implementation="chunked")
    close(given.dynamics.weights, wanted.dynamics.weights, 2e-5)
    close(given.dynamics.bias, wanted.dynamics.bias, 2e-5)
    close(given.emissions.weights, wanted.emissions.weights, 2e-5)
