"""Log-likelihoods of dynamax's Gaussian emissions, beside its own and SciPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dynamax.hidden_markov_model import GaussianHMM, LinearAutoregressiveHMM, LinearRegressionHMM, PoissonHMM
from dynamax.hidden_markov_model.models.gaussian_hmm import GaussianHMMEmissions
from scipy import stats

from fastscan import adopt
from oracles.lgssm import close

T, P = 7, 3


def model(kind, K, m):
    if kind is LinearRegressionHMM:
        return kind(K, P, m)
    return kind(K, m)


def problem(kind, K, m, dtype="float64"):
    """Emissions, parameters with covariances of very different sizes, emissions and inputs."""
    r, hmm = np.random.default_rng(K + m), model(kind, K, m)
    params = hmm.initialize(jax.random.key(0), method="prior")[0].emissions
    root = r.normal(size=(K, m, m)) * 10.0 ** r.integers(-3, 3, K)[:, None, None]
    params = params._replace(covs=root @ root.mT + 1e-3 * np.eye(m))
    given = r.normal(size=(T, m)), None
    if kind is not GaussianHMM:
        given = given[0], r.normal(size=(T, params.weights.shape[-1]))
    params, given = jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, given))
    return hmm.emission_component, params, *given


@pytest.mark.parametrize(("K", "m"), [(1, 1), (3, 2), (2, 5)])
@pytest.mark.parametrize("kind", [GaussianHMM, LinearRegressionHMM, LinearAutoregressiveHMM])
def test_values(kind, K, m):
    emissions, params, y, u = problem(kind, K, m)
    theirs = emissions._compute_conditional_logliks(params, y, u)
    with adopt():
        ours = emissions._compute_conditional_logliks(params, y, u)
    close(ours, theirs, 1e-12)
    for k in range(K):
        mean = params.means[k] if kind is GaussianHMM else np.asarray(u @ params.weights[k].T + params.biases[k])
        wanted = [stats.multivariate_normal(np.zeros(m), params.covs[k]).logpdf(x) for x in np.asarray(y - mean)]
        close(ours[:, k], wanted, 1e-9)


@pytest.mark.parametrize("kind", [GaussianHMM, LinearAutoregressiveHMM])
def test_derivatives_and_dtypes(kind):
    """By `vmap` over sequences; float32 stays."""
    emissions, params, y, u = problem(kind, 3, 2)
    ys = jnp.stack([y, y + 1])

    def slope(params):
        def total(params):
            each = jax.vmap(lambda y: emissions._compute_conditional_logliks(params, y, u))(ys)
            return (each * jnp.arange(3)).sum()

        return jax.grad(total)(params)

    theirs = slope(params)
    with adopt():
        ours = slope(params)
        assert emissions._compute_conditional_logliks(*problem(kind, 3, 2, "float32")[1:]).dtype == jnp.float32
    for x, wanted in zip(ours, theirs, strict=True):
        symmetric = [(v + v.mT) / 2 if v.ndim == 3 and v.shape[-1] == v.shape[-2] else v for v in (x, wanted)]
        close(*symmetric, 1e-9)


def test_what_is_no_covariance_is_nan_and_gaps_are_as_before():
    emissions, params, y, _ = problem(GaussianHMM, 2, 2)
    params = params._replace(covs=params.covs.at[0].set(-jnp.eye(2)))
    y = y.at[3].set(jnp.nan)
    theirs = emissions._compute_conditional_logliks(params, y)
    with adopt():
        ours = emissions._compute_conditional_logliks(params, y)
    np.testing.assert_array_equal(jnp.isnan(ours), jnp.isnan(theirs))
    assert jnp.isnan(ours[:, 0]).all()


def test_other_emissions_are_dynamax_s():
    class Shifted(GaussianHMMEmissions):
        def distribution(self, params, state, inputs=None):  # noqa: ARG002
            return super().distribution(params._replace(means=params.means + 1), state)

    _, params, y, _ = problem(GaussianHMM, 2, 2)
    shifted, poisson = Shifted(2, 2), PoissonHMM(2, 1)
    rates = poisson.initialize(jax.random.key(0))[0].emissions
    given = [(shifted, params, y), (poisson.emission_component, rates, jnp.arange(4.0)[:, None])]
    theirs = [x._compute_conditional_logliks(*more) for x, *more in given]
    with adopt() as adoption:
        assert "HMMEmissions._compute_conditional_logliks" in str(adoption)
        for (x, *more), wanted in zip(given, theirs, strict=True):
            close(x._compute_conditional_logliks(*more), wanted, 1e-12)
