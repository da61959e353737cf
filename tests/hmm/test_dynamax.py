"""dynamax's functions with one import changed: its conventions, and its faults, which are not ours."""

import functools

import dynamax.hidden_markov_model as dynamax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastscan
from oracles.hmm import random_model, textbook
from oracles.lgssm import close

T, K = 50, 3


def transition_fn(t):
    return jnp.array(random_model(1, 2, K)[1]) ** (1 + t / T)  # weights that are not normalised, and vary


TRANSITIONS = {
    "static": (jnp.asarray(random_model(0, T, K)[1]), None),
    "varying": (jnp.asarray(random_model(0, T, K, varying=True)[1]), None),
    "function": (None, transition_fn),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_every_function(name):
    """Values and shapes of every field; of the sampler its log-likelihood."""
    A, function = TRANSITIONS[name]
    initial, _, ll = random_model(0, T, K)
    arguments = {"initial_distribution": initial, "transition_matrix": A, "log_likelihoods": ll, "transition_fn": function}
    for function_name in ("hmm_filter", "hmm_smoother", "hmm_two_filter_smoother", "hmm_posterior_mode"):
        ours, theirs = (getattr(module, function_name)(**arguments) for module in (fastscan, dynamax))
        compare(ours, theirs)
    compare(
        fastscan.hmm_fixed_lag_smoother(**arguments, window_size=4), dynamax.hmm_fixed_lag_smoother(**arguments, window_size=4)
    )
    sample = fastscan.hmm_posterior_sample(jax.random.key(0), **arguments)
    close(sample[0], dynamax.hmm_filter(**arguments).marginal_loglik, 1e-12)
    assert sample[1].shape == (T,)
    posterior = dynamax.hmm_smoother(**arguments)
    compare(fastscan.compute_transition_probs(A, posterior, function), dynamax.compute_transition_probs(A, posterior, function))
    del arguments["initial_distribution"]
    compare(fastscan.hmm_backward_filter(**arguments), dynamax.hmm_backward_filter(**arguments))


def compare(ours, theirs):
    if isinstance(theirs, tuple) and hasattr(theirs, "_fields"):
        assert ours._fields == theirs._fields
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        close(a, b, 1e-10)


def test_parallel_names():
    model = random_model(2, 9, K)
    key = jax.random.key(0)
    theirs = (  # in one program: by themselves they compile every operation
        dynamax.parallel_hmm_filter,
        dynamax.parallel_hmm_smoother,
        functools.partial(dynamax.parallel_hmm_posterior_sample, key),
    )
    filtered, posterior, (wanted, _) = jax.jit(lambda *model: [function(*model) for function in theirs])(*model)
    compare(fastscan.parallel_hmm_filter(*model), filtered)
    compare(fastscan.parallel_hmm_smoother(*model), posterior)
    loglik, states = fastscan.parallel_hmm_posterior_sample(key, *model)
    close(loglik, wanted, 1e-12)
    assert states.shape == (9,)


def test_fault_parallel_forms_take_weights_that_vary():
    model = random_model(3, T, K, varying=True)
    close(fastscan.parallel_hmm_smoother(*model).smoothed_probs, textbook(*model).smoothed, 1e-11)


def test_fault_rare_states_are_not_clamped():
    """dynamax raises probabilities to 1e-15: a state that only an unlikely observation leads to is then wrong."""
    A = np.array([[1 - 1e-18, 1e-18], [0, 1]])
    initial, ll = np.array([1.0, 0]), np.zeros((3, 2))
    ll[2, 0] = -45
    wanted = textbook(initial, A, ll).smoothed
    close(fastscan.hmm_smoother(initial, A, ll).smoothed_probs, wanted, 1e-12)
    assert np.abs(dynamax.hmm_smoother(initial, A, ll).smoothed_probs - wanted).max() > 1e-3


def test_fault_a_large_likelihood_of_an_impossible_state():
    """dynamax scales by the largest likelihood of all states; ours by that of those that are possible."""
    initial, A, ll = np.array([1.0, 0]), np.eye(2), np.array([[-1e30, 0], [0.0, 0]])
    assert np.isnan(dynamax.hmm_smoother(initial, A, ll).smoothed_probs).any()
    close(fastscan.hmm_smoother(initial, A, ll).smoothed_probs, [[1, 0], [1, 0]], 1e-12)
