"""Derivatives of HMM log-likelihoods: expected counts, against JAX's derivative of the textbook recursion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import hmm_filter, hmm_marginal_loglik, hmm_smoother
from oracles.hmm import random_model
from oracles.lgssm import close

ARGUMENTS = (0, 1, 2)


def textbook(initial, A, ll):
    """In linear scale: for short series of ordinary numbers."""
    A = jnp.broadcast_to(A, (len(ll) - 1, *A.shape[-2:]))
    likelihoods = jnp.exp(jnp.where(jnp.isnan(ll), 0, ll))
    probs = initial * likelihoods[0]
    for t in range(len(ll) - 1):
        probs = (probs @ A[t]) * likelihoods[t + 1]
    return jnp.log(probs.sum())


@pytest.mark.parametrize("implementation", ["sequential", "chunked", "pallas_interpret"])
@pytest.mark.parametrize(("T", "varying"), [(1, False), (2, True), (12, False), (12, True)])
def test_derivatives(T, varying, implementation):
    """With respect to everything, of weights that are zero, too."""
    model = random_model(T, T, 3, varying=varying, zeros=0.3)
    initial = np.where(np.arange(3) == 1, 0, model[0])
    ll = model[2].copy()
    ll[T // 2] = np.nan
    ours = functools.partial(hmm_marginal_loglik, implementation=implementation)
    given, wanted = (jax.jit(jax.grad(function, ARGUMENTS))(initial, model[1], ll) for function in (ours, textbook))
    for g, w in zip(given, wanted, strict=True):
        close(g, w, 1e-11)


def test_logarithms_batches_and_other_functions():
    initial, A, _ = random_model(0, 2, 3)
    ll = np.stack([random_model(s, 12, 3)[2] for s in range(2)])
    weights = jnp.array([1.0, -2.0])

    def ours(log_initial, log_a, ll):
        return hmm_marginal_loglik(log_initial, log_a, ll, log_weights=True) @ weights

    def wanted(log_initial, log_a, ll):
        return jax.vmap(textbook, (None, None, 0))(jnp.exp(log_initial), jnp.exp(log_a), ll) @ weights

    arguments = jnp.log(initial), jnp.log(A), jnp.asarray(ll)
    given, reference = (jax.jit(jax.grad(function, ARGUMENTS))(*arguments) for function in (ours, wanted))
    for g, w in zip(given, reference, strict=True):
        close(g, w, 1e-11)
    for function in (hmm_filter, hmm_smoother):
        of_data = jax.jit(jax.grad(lambda ll, function=function: function(initial, A, ll).marginal_loglik @ weights))
        close(of_data(arguments[2]), reference[2], 1e-11)


def test_forward_mode_and_second_derivatives():
    initial, A, ll = random_model(1, 5, 2)
    for derivative in (jax.jacfwd, jax.hessian):
        given, wanted = (jax.jit(derivative(function, 1))(initial, A, ll) for function in (hmm_marginal_loglik, textbook))
        close(given, wanted, 1e-10)


def test_impossible_states_and_huge_log_likelihoods():
    """The derivative with respect to log-likelihoods is the smoother's answer, whatever their size."""
    initial, A, ll = random_model(2, 70, 3)
    ll[5, 1], ll[9], ll[30, 0] = -np.inf, ll[9] + 1e6, -1e30
    given = jax.grad(hmm_marginal_loglik, 2)(initial, A, ll)
    close(given, hmm_smoother(initial, A, ll).smoothed_probs, 1e-12)
