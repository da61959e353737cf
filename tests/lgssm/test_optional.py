"""Every optional argument, left out, given and of no columns, under every transformation: against the textbook's recursions."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    lgssm_filter,
    lgssm_forecast,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_predictive,
    lgssm_posterior_sample,
    lgssm_smoother,
)
from fastscan.learn import LGSSM, fit_em, fit_sgd
from oracles.lgssm import assert_moments, close, random_params, textbook

B, T, D, M, U = 3, 4, 2, 1, 2
R = np.random.default_rng(0)
Y = R.normal(size=(B, T, M))
DRIVES = {  # of the dynamics' bias and input weights, the emissions' bias and input weights, and inputs
    "none": (None, None, None, None, None),
    "zero columns": (None, np.zeros((D, 0)), None, np.zeros((M, 0)), np.zeros((T, 0))),
    "zero columns of a batch": (R.normal(size=D), None, None, np.zeros((M, 0)), np.zeros((B, T, 0))),
    "biases": (R.normal(size=D), None, R.normal(size=M), None, None),
    "biases that vary": (R.normal(size=(T, D)), None, R.normal(size=(T, M)), None, None),
    "a bias of the emissions alone": (None, None, R.normal(size=M), None, None),
    "inputs to states alone": (None, R.normal(size=(D, U)), None, None, R.normal(size=(T, U))),
    "inputs to emissions alone": (None, None, None, R.normal(size=(T, M, U)), R.normal(size=(B, T, U))),
    "everything": (
        R.normal(size=D),
        R.normal(size=(T, D, U)),
        R.normal(size=M),
        R.normal(size=(M, U)),
        R.normal(size=(B, T, U)),
    ),
}


def model(drive, sequences=False):
    params = random_params(0, D, M)
    b, weights, d, of_emissions, inputs = drive
    params = params._replace(
        dynamics=params.dynamics._replace(bias=b, input_weights=weights),
        emissions=params.emissions._replace(bias=d, input_weights=of_emissions),
    )
    if sequences:  # of their own
        own = np.stack([params.dynamics.weights * (1 - 0.1 * i) for i in range(B)])
        params = params._replace(dynamics=params.dynamics._replace(weights=own[:, None]))
    return jax.tree.map(jnp.asarray, params), inputs


def alone(params, inputs, b):
    """What one sequence of the batch has."""
    F = params.dynamics.weights
    if F.ndim == 4:
        params = params._replace(dynamics=params.dynamics._replace(weights=F[b, 0]))
    return params, inputs if inputs is None or inputs.ndim == 2 else inputs[b]


def loglik(mean, params, y, inputs):
    params = params._replace(initial=params.initial._replace(mean=mean))
    return lgssm_marginal_loglik(params, y, inputs).sum()


derivative = jax.jit(jax.value_and_grad(loglik))


@jax.jit
def mapped(mean, params, y, inputs):
    """Values and gradients, of sequences by themselves."""
    axes = jax.tree.map(lambda _: None, params)
    if params.dynamics.weights.ndim == 4:
        axes = axes._replace(dynamics=axes.dynamics._replace(weights=0))
        params = params._replace(dynamics=params.dynamics._replace(weights=params.dynamics.weights[:, 0]))
    of_inputs = 0 if inputs is not None and inputs.ndim == 3 else None
    return jax.vmap(jax.value_and_grad(loglik), (None, axes, 0, of_inputs))(mean, params, y, inputs)


def central_difference(mean, params, y, inputs, step=1e-5):
    def value(mean):
        return textbook(params._replace(initial=params.initial._replace(mean=mean)), y, inputs).loglik.sum()

    mean = np.asarray(mean)
    return [(value(mean + step * e) - value(mean - step * e)) / (2 * step) for e in np.eye(D)]


FAST = [("none", False), ("none", True), ("zero columns", False), ("everything", False)]
CASES = [
    pytest.param(drive, sequences, marks=[] if (drive, sequences) in FAST else pytest.mark.slow)
    for drive in DRIVES
    for sequences in (False, True)
]


@pytest.mark.parametrize(("drive", "sequences"), CASES)
def test_batches_and_their_gradients(drive, sequences):
    params, inputs = model(DRIVES[drive], sequences)
    each = [(*alone(params, inputs, b), Y[b]) for b in range(B)]
    wanted = [textbook(p, y, u) for p, u, y in each]
    gradients = [central_difference(params.initial.mean, p, y, u) for p, u, y in each]
    value, gradient = derivative(params.initial.mean, params, Y, inputs)
    close(value, sum(w.loglik.sum() for w in wanted), 1e-9)
    close(gradient, np.sum(gradients, 0), 1e-6)
    values, own = mapped(params.initial.mean, params, Y, inputs)
    close(values, [w.loglik.sum() for w in wanted], 1e-9)
    close(own, gradients, 1e-6)
    posterior = lgssm_smoother(params, Y, inputs)
    for b in range(B):
        assert_moments(jax.tree.map(lambda x, b=b: x[b], posterior), wanted[b], "float64")


FUNCTIONS = {
    "filter": lgssm_filter,
    "predictive": lgssm_posterior_predictive,
    "sample": functools.partial(lgssm_posterior_sample, jax.random.key(0)),
    "em": functools.partial(fit_em, LGSSM, num_iters=2, progress=False),
    "sgd": functools.partial(fit_sgd, LGSSM, num_epochs=2, progress=False),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("filter", "em") else pytest.mark.slow) for name in FUNCTIONS]
)
def test_inputs_without_columns_are_none(name):
    params, _ = model(DRIVES["biases"])
    wanted = FUNCTIONS[name](params, Y)
    dynamics, emissions = params.dynamics, params.emissions
    without = params._replace(
        dynamics=dynamics._replace(input_weights=np.zeros((D, 0))), emissions=emissions._replace(input_weights=np.zeros((M, 0)))
    )
    for p, inputs in itertools.product((params, without), (None, np.zeros((T, 0)), jnp.zeros((B, T, 0), "float32"))):
        given = FUNCTIONS[name](p, Y, inputs)
        for a, b in zip(*([x for x in jax.tree.leaves(tree) if np.size(x)] for tree in (given, wanted)), strict=True):
            close(a, b, 1e-12)


def test_forecasts_and_draws_of_inputs_without_columns():
    params, _ = model(DRIVES["biases"])
    wanted = lgssm_forecast(params, Y, 2)
    for before, after in itertools.product((None, np.zeros((T, 0)), np.zeros((B, T, 0))), (None, np.zeros((2, 0)))):
        jax.tree.map(lambda a, b: close(a, b, 1e-12), lgssm_forecast(params, Y, 2, before, after), wanted)
    wanted = lgssm_joint_sample(params, jax.random.key(0), T)
    jax.tree.map(lambda a, b: close(a, b, 1e-12), lgssm_joint_sample(params, jax.random.key(0), T, np.zeros((T, 0))), wanted)


def test_inputs_of_a_batch_and_forecast_inputs_of_all():
    params, inputs = model(DRIVES["inputs to states alone"])
    each = np.broadcast_to(inputs, (B, T, U))
    after = np.ones((2, U))
    given = lgssm_forecast(params, Y, 2, each, after)
    jax.tree.map(lambda a, b: close(a, b, 1e-12), given, lgssm_forecast(params, Y, 2, inputs, after))
