"""Which transition entry t belongs to, and functions of t that leave their tables: against the textbook and shifted arrays."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import (
    hmm_filter,
    lgssm_filter,
    lgssm_forecast,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_predictive,
    lgssm_posterior_sample,
    lgssm_smoother,
)
from oracles.hmm import random_model
from oracles.lgssm import assert_moments, close, random_params, simulate, textbook

T, D, M, U = 6, 2, 1, 2
PARAMS = random_params(0, D, M)
Y = simulate(PARAMS, T, 0)
R = np.random.default_rng(0)
INPUTS = R.normal(size=(T, U))
SHRINKING = np.stack([PARAMS.dynamics.weights / (1 + t) for t in range(T)])
GROWING = np.stack([PARAMS.dynamics.cov * (1 + t) for t in range(T)])


def dynamics(**fields):
    return PARAMS._replace(dynamics=PARAMS.dynamics._replace(**fields))


def departing(length):
    """Of dynamics with entry t of the transition from t to t + 1, and the same by hand."""
    given = dynamics(
        weights=SHRINKING[:length], cov=GROWING[:length], bias=SHRINKING[:length, 0], input_weights=SHRINKING[:length, :, :U]
    )

    def moved(x):  # entry 0 is not read
        return np.concatenate([np.full_like(x[:1], 7.0), x[: T - 1]])

    F, b, B, Q = (moved(x) for x in (SHRINKING, SHRINKING[:, 0], SHRINKING[:, :, :U], GROWING))
    drift = np.einsum("tdu,tu->td", B[1:], INPUTS[:-1])
    b[1:] += drift
    return given, dynamics(weights=F, cov=Q, bias=b)


FUNCTIONS = [
    lambda p, y, u, **options: lgssm_filter(p, y, u, **options).filtered_means,
    lambda p, y, u, **options: lgssm_smoother(p, y, u, **options).smoothed_covariances,
    lgssm_marginal_loglik,
    lambda p, y, u, **options: lgssm_posterior_sample(jax.random.key(0), p, y, u, **options),
    lambda p, _, u, **options: lgssm_joint_sample(p, jax.random.key(0), T, u, **options)[0],
    lambda p, y, u, **options: lgssm_posterior_predictive(p, y, u, **options)[0],
    lambda p, y, u, **options: lgssm_forecast(
        p, y[:-2], 2, None if u is None else u[:-2], None if u is None else u[-2:], **options
    )[0],
]


@pytest.mark.parametrize("length", [T, T - 1])
def test_departure_is_arrival_one_step_later(length):
    given, by_hand = departing(length)
    assert_moments(lgssm_smoother(given, Y, INPUTS, timing="departure"), textbook(by_hand, Y), "float64")
    close(FUNCTIONS[0](given, Y, INPUTS, timing="departure"), FUNCTIONS[0](by_hand, Y, None), 1e-10)
    as_functions = dynamics(
        weights=lambda t: jnp.asarray(SHRINKING)[: T - 1][t],
        cov=lambda t: jnp.asarray(GROWING)[t],
        bias=lambda t: jnp.asarray(SHRINKING)[t, 0],
        input_weights=given.dynamics.input_weights,
    )
    close(FUNCTIONS[0](as_functions, Y, INPUTS, timing="departure"), FUNCTIONS[0](by_hand, Y, None), 1e-10)


@pytest.mark.slow
def test_departure_in_every_function():
    given, by_hand = departing(T)
    for function in FUNCTIONS:
        close(function(given, Y, INPUTS, timing="departure"), function(by_hand, Y, None), 1e-10)


def test_departure_of_batches_and_of_what_does_not_vary():
    given, by_hand = departing(T)
    batch = np.stack([Y, 2 * Y])
    own = given._replace(dynamics=given.dynamics._replace(weights=np.stack([SHRINKING] * 2), cov=GROWING[None].repeat(2, 0)))
    posterior = lgssm_filter(own, batch, np.stack([INPUTS] * 2), timing="departure")
    for b in range(2):
        close(posterior.filtered_means[b], textbook(by_hand, batch[b]).filtered_means, 1e-9)
    static = lgssm_filter(PARAMS, Y, timing="departure")
    jax.tree.map(lambda a, b: close(a, b, 0), static, lgssm_filter(PARAMS, Y))
    for length in (0, 1):
        alone = lgssm_filter(departing(length)[0], Y[:1], INPUTS[:1], timing="departure")
        close(alone.filtered_means, textbook(PARAMS, Y[:1]).filtered_means, 1e-9)
    traced = jax.jit(lambda x: lgssm_filter(own, x, np.stack([INPUTS] * 2), timing="departure").filtered_means)
    close(traced(batch), posterior.filtered_means, 1e-12)


def test_a_table_that_is_too_short_is_noticed():
    """Models for dynamax before 1.0.3 have T - 1 entries; a function of t may index with what has as many."""
    regimes, table = jnp.array([0, 1, 1, 0, 1]), jnp.asarray(SHRINKING)
    short, right = (lambda t: table[regimes[t]]), (lambda t: table[regimes[jnp.maximum(t - 1, 0)]])
    with pytest.warns(
        UserWarning, match=r"dynamics.weights: .* out of bounds for some t in 0 to 5.*timing=\"departure\""
    ) as seen:
        lgssm_filter(dynamics(weights=short), Y)
    assert len(seen) == 1
    given = lgssm_filter(dynamics(weights=short), Y, timing="departure")
    close(given.filtered_means, lgssm_filter(dynamics(weights=right), Y).filtered_means, 1e-12)
    with pytest.warns(UserWarning, match=r"emissions.bias: .* out of bounds .* Wanted values at all of these"):
        lgssm_filter(PARAMS._replace(emissions=PARAMS.emissions._replace(bias=lambda t: table[:4, 0, :1][t])), Y)
    initial, A, ll = random_model(0, T, 2, varying=True)
    with pytest.warns(UserWarning, match=r"transition_fn: .* out of bounds for some t in 0 to 4"):
        hmm_filter(initial, None, ll, lambda t: jnp.asarray(A[:3])[t])


def test_healthy_functions_of_time_are_taken_without_a_word():
    table = jnp.asarray(SHRINKING)
    regimes = jnp.array([0, 1, 0, 1, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for weights in (lambda t: table[t], lambda t: table[t - 1], lambda t: table[regimes[t]], lambda _: table[0]):
            lgssm_filter(dynamics(weights=weights), Y)


def test_errors():
    with pytest.raises(ValueError, match=r"timing: 'late' given, wanted 'arrival' .* or 'departure'"):
        lgssm_filter(PARAMS, Y, timing="late")
    with pytest.raises(AssertionError, match=r'dynamics.cov: shape \(5, 2, 2\) given.*timing="departure"'):
        lgssm_filter(dynamics(cov=GROWING[:-1]), Y)  # as dynamax has it
    with pytest.raises(ValueError, match=r"inputs: shape \(5, 2\) given, wanted \(6, 2\)"):
        lgssm_filter(departing(T)[0], Y, INPUTS[:-1], timing="departure")
