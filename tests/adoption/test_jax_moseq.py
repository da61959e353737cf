"""jax-moseq's steps of Gibbs sampling under adoption: for a key, they draw what they draw without.

It asks for dynamax before 1.0.3, and for packages that nothing else here needs, so it is not among what the tests install:
``pip install --no-deps jax-moseq "dynamax<1.0.3" && pip install optree numba``.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import adopt

pytest.importorskip("jax_moseq", reason="pip install jax-moseq, see above")

T, D, M, K = 40, 4, 3, 5
KEY = jax.random.PRNGKey(0)


def given():
    r = np.random.default_rng(0)
    A, B, C = 0.3 * r.normal(size=(K, D, D)), 0.1 * r.normal(size=(K, D)), r.normal(size=(M, D))
    arrays = {
        "ys": r.normal(size=(T, M)),
        "mask": r.random(T) > 0.1,
        "zs": r.integers(0, K, T - 1),
        "m0": np.zeros(D),
        "S0": np.eye(D),
        "A": A,
        "B": B,
        "Q": np.stack([(0.1 + 0.1 * k) * np.eye(D) for k in range(K)]),
        "C": C,
        "D": r.normal(size=M),
        "Rs": np.full((T, M), 0.3),
        "masked_dynamics_params": {"weights": np.eye(D), "bias": np.zeros(D), "cov": 0.1 * np.eye(D)},
        "masked_obs_noise": np.full(M, 10.0),
    }
    return jax.tree.map(jnp.asarray, arrays)


@pytest.mark.parametrize("parallel", [False, True])
def test_continuous_states(parallel):
    from jax_moseq.utils import kalman

    def sample():
        keys = jax.random.split(KEY, 3)
        return jax.vmap(lambda key: kalman.kalman_sample(key, **given(), parallel=parallel))(keys)

    wanted = sample()
    with adopt("jax_moseq") as adoption:
        assert "jax_moseq.utils.kalman.serial_lgssm_sample" in map(str, adoption.replaced)
        found = sample()
    np.testing.assert_allclose(found, wanted, 1e-6, 1e-6)


def test_discrete_states():
    from jax_moseq.utils import distributions

    r = np.random.default_rng(1)
    A, ll = jnp.asarray(r.dirichlet(np.ones(K), K)), jnp.asarray(r.normal(size=(T, K)))
    wanted = distributions.sample_hmm_stateseq(KEY, A, ll, jnp.ones(T))
    with adopt("jax_moseq"):
        found = distributions.sample_hmm_stateseq(KEY, A, ll, jnp.ones(T))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-9)
    np.testing.assert_array_equal(found[1], wanted[1])


def test_gibbs_sampling_has_the_exact_posterior():
    """Of a switching system so short that all sequences of discrete states can be summed over; parameters are known."""
    from jax_moseq.utils import distributions, kalman

    steps, r = 6, np.random.default_rng(3)
    a, b, q, noise = np.array([0.9, -0.5]), np.array([0.3, -0.4]), np.array([0.2, 0.5]), 0.4
    A, y = np.array([[0.8, 0.2], [0.3, 0.7]]), r.normal(size=steps)
    wanted_states, wanted_means = _exact_posterior(y, a, b, q, noise, A)
    given = {
        "ys": y[:, None],
        "mask": np.ones(steps, bool),
        "m0": np.zeros(1),
        "S0": np.eye(1),
        "A": a[:, None, None],
        "B": b[:, None],
        "Q": q[:, None, None],
        "C": np.eye(1),
        "D": np.zeros(1),
        "Rs": np.full((steps, 1), noise),
        "masked_dynamics_params": {"weights": np.eye(1), "bias": np.zeros(1), "cov": np.eye(1)},
        "masked_obs_noise": np.ones(1),
    }
    given = jax.tree.map(jnp.asarray, given)

    def sweep(z, key):
        of_x, of_z = jax.random.split(key)
        x = kalman.kalman_sample(of_x, zs=z, **given, parallel=False)[:, 0]
        errors = x[1:, None] - a * x[:-1, None] - b
        _, z = distributions.sample_hmm_stateseq(
            of_z, jnp.asarray(A), -(errors**2) / (2 * q) - np.log(q) / 2, jnp.ones(steps - 1)
        )
        return z, (z, x)

    def chain(key):
        _, found = jax.lax.scan(sweep, jnp.zeros(steps - 1, int), jax.random.split(key, 1_000))
        return jax.tree.map(lambda x: x[100:].mean(0), found)

    chains = 64
    with adopt("jax_moseq"):
        found = jax.jit(jax.vmap(chain))(jax.random.split(KEY, chains))
    for means, wanted in zip(found, (wanted_states, wanted_means), strict=True):
        error = np.std(means, 0) / np.sqrt(chains)
        assert np.all(np.abs(np.mean(means, 0) - wanted) < 5 * error)
        assert error.max() < 0.01


def _exact_posterior(y, a, b, q, noise, A):
    """The probability of state 1 at every transition, and the means of x, from all sequences of states."""
    steps, weights, ones, means = len(y), [], [], []
    for z in itertools.product(range(2), repeat=steps - 1):
        into, shift = np.eye(steps), np.zeros(steps)
        for t, k in enumerate(z):
            into[t + 1, t], shift[t + 1] = -a[k], b[k]
        push = np.linalg.inv(into)
        mean, cov = push @ shift, push @ np.diag([1.0, *q[list(z)]]) @ push.T
        seen, gap = cov + noise * np.eye(steps), y - mean
        _, log_det = np.linalg.slogdet(seen)
        prior = np.prod([0.5, *(A[i, j] for i, j in itertools.pairwise(z))])
        weights.append(prior * np.exp(-(log_det + gap @ np.linalg.solve(seen, gap)) / 2))
        ones.append(z)
        means.append(mean + cov @ np.linalg.solve(seen, gap))
    weights = np.array(weights) / np.sum(weights)
    return weights @ np.array(ones), weights @ np.array(means)
