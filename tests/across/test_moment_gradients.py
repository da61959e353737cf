"""Derivatives of moments, probabilities and samples in every implementation, against central differences of the textbook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import hmm_filter, hmm_smoother, lgssm_posterior_sample, lgssm_smoother
from fastscan.dispatch.choice import IMPLEMENTATIONS
from oracles import hmm as hmm_oracle
from oracles.lgssm import random_params, simulate, textbook

T, D, M = 6, 2, 1
STEP = 1e-5
RUN_HERE = [name for name in IMPLEMENTATIONS if name != "pallas"]
R = np.random.default_rng(0)
PARAMS = random_params(1, D, M)
Y = simulate(PARAMS, T, 0)


def direction(path, x):
    """To move along; a covariance stays symmetric."""
    v = R.normal(size=x.shape)
    return v + v.T if jax.tree_util.keystr(path).endswith(".cov") else v


ALONG = jax.tree_util.tree_map_with_path(direction, (PARAMS, Y))
SHAPES = (T, D), (T, D, D), (T, D), (T, D, D), (T - 1, D, D)
WEIGHTS = [R.normal(size=shape) for shape in SHAPES]


def moved(distance, steps=T):
    params, y = jax.tree.map(lambda x, v: x + distance * v, (PARAMS, Y), ALONG)
    return params, y[:steps]


def central_difference(function):
    return (function(STEP) - function(-STEP)) / (2 * STEP)


def of_moments(posterior):
    """A number that all of them make."""
    return sum((w[: len(x)] * x).sum() for w, x in zip(WEIGHTS, posterior[1:], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", RUN_HERE)
def test_moments(implementation):
    """Filtered, smoothed and cross moments at once, with respect to all parameters and the data, by reverse mode."""
    steps = 3 if implementation == "associative" else T  # which compiles for long

    @jax.jit
    @jax.grad
    def gradient(at):
        return of_moments(lgssm_smoother(*at, implementation=implementation, missing=False))

    given = gradient((PARAMS, Y[:steps]))
    along = sum((g * v[: len(g)]).sum() for g, v in zip(jax.tree.leaves(given), jax.tree.leaves(ALONG), strict=True))
    wanted = central_difference(lambda distance: of_moments(textbook(*moved(distance, steps))))
    np.testing.assert_allclose(along, wanted, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["sequential", "chunked"])
def test_samples_by_their_noise(implementation):
    @jax.jit
    def drawn(distance):
        states = lgssm_posterior_sample(jax.random.key(0), *moved(distance), implementation=implementation, missing=False)
        return jnp.sin(states).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(drawn))(0.0), central_difference(drawn), rtol=1e-6)


@pytest.mark.parametrize("implementation", RUN_HERE)
def test_probabilities_of_hidden_states(implementation):
    K, length = 3, 9
    model = hmm_oracle.random_model(0, length, K)
    along = tuple(R.normal(size=x.shape) * np.where(np.isfinite(x), 0.01, 0) for x in model)
    weights = [R.normal(size=(length, K)), R.normal(size=(length, K)), R.normal(size=(K, K))]

    def there(distance):
        return tuple(x + distance * v for x, v in zip(model, along, strict=True))

    def number(*numbers):
        return sum((w * x).sum() for w, x in zip(weights, numbers, strict=True))

    def ours(distance):
        filtered = hmm_filter(*there(distance), implementation=implementation)
        posterior = hmm_smoother(*there(distance), implementation=implementation)
        return number(filtered.filtered_probs, posterior.smoothed_probs, posterior.trans_probs)

    def wanted(distance):
        states = hmm_oracle.textbook(*there(distance))
        return number(states.filtered, states.smoothed, states.pairs.sum(0))

    np.testing.assert_allclose(jax.jit(jax.grad(ours))(0.0), central_difference(wanted), rtol=1e-6)
