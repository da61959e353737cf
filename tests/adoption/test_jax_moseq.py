"""jax-moseq's steps of Gibbs sampling under adoption: for a key, they draw what they draw without.

It asks for dynamax before 1.0.3, and for packages that nothing else here needs, so it is not among what the tests install:
``pip install --no-deps jax-moseq "dynamax<1.0.3" && pip install optree numba``.
"""

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
