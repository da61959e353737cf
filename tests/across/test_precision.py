"""Products of matrices are as precise as their dtype: by default a GPU rounds the factors of float32 ones to 11 bits.

Traces tell, so nothing is compiled. A user's own functions, and blackjax's kinetic energy, multiply as they say.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fastscan as fs
from fastscan import lds, nonlinear
from fastscan.mcmc import rw_metropolis
from oracles.hmm import random_model
from oracles.lds import random_chain
from oracles.lgssm import random_params, simulate
from oracles.nonlinear_model import problem
from programs.arrays_made import equations
from programs.public_functions import FUNCTIONS, density, slds_posterior

IMPLEMENTATIONS = ("sequential", "chunked", "associative")
HIGHEST = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


def products(function, *args):
    return [e for e in equations(jax.make_jaxpr(function)(*args).jaxpr) if e.primitive.name == "dot_general"]


def assert_precise(function, *args):
    for product in products(function, *args):
        assert product.params["precision"] == HIGHEST, product


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"fit_hmc"}))
def test_public_functions(name):
    slds_posterior()  # before any trace: it is kept
    assert_precise(FUNCTIONS[name], jax.random.key(0))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("D", "m"), [(12, 6), (20, 20)])
def test_large_linear_models(D, m, implementation):
    params = random_params(0, D, m)
    ys = np.stack([simulate(params, 4, seed) for seed in (0, 1)])
    ys[0, 1, 0] = np.nan

    def program(key, params):
        drawn = fs.lgssm_posterior_sample(key, params, ys, implementation=implementation)
        return fs.lgssm_smoother(params, ys, implementation=implementation), drawn

    def slope(params):
        return jax.grad(lambda p: fs.lgssm_marginal_loglik(p, ys, implementation=implementation).sum())(params)

    assert products(slope, params)
    assert_precise(program, jax.random.key(0), params)
    assert_precise(slope, params)
    assert_precise(lambda chain: lds.lds_inference(*chain, implementation=implementation), random_chain(0, 4, D))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("K", [20, 40])
def test_many_states(K, varying, implementation):
    initial, A, ll = random_model(K, 5, K)
    A = np.stack([A] * 4) if varying else A

    def program(key, initial, A, ll):
        posterior = fs.hmm_smoother(initial, A, ll, implementation=implementation)
        logs = fs.hmm_smoother(jnp.log(initial), jnp.log(A), ll, log_weights=True, implementation=implementation)
        drawn = fs.hmm_posterior_sample(key, initial, A, ll, implementation=implementation)
        return posterior, logs, drawn, fs.compute_transition_probs(A, posterior, summed=not varying)

    def slope(ll):
        return jax.grad(lambda ll: fs.hmm_marginal_loglik(initial, A, ll, implementation=implementation))(ll)

    assert_precise(program, jax.random.key(0), initial, A, ll)
    assert_precise(slope, ll)


@pytest.mark.parametrize("name", [name for name in nonlinear.__all__ if "kalman" in name])
def test_nonlinear_models(name):
    """Moments, and their derivatives with respect to the emissions alone."""
    params, ys, us, _ = problem(7, inputs=True)
    key = (jax.random.key(0),) if "sample" in name else ()

    def total(ys):
        out = getattr(nonlinear, name)(*key, params, ys, inputs=us)
        return sum(x.sum() for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating))

    assert_precise(jax.value_and_grad(total), jnp.asarray(ys))


def test_steps_of_metropolis():
    factor = np.linalg.cholesky(np.eye(2) + 0.5)
    assert_precise(lambda key: rw_metropolis(key, density, jnp.zeros((2, 8)), 3, step_size=factor), jax.random.key(0))
