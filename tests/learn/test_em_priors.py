"""EM under conjugate priors: dynamax's own steps, and numerical maximisation where dynamax has none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dynamax.hidden_markov_model import CategoricalHMM, GaussianHMM, PoissonHMM
from dynamax.linear_gaussian_ssm import LinearGaussianConjugateSSM
from dynamax.utils.distributions import MatrixNormalInverseWishart, NormalInverseWishart
from scipy import optimize, stats

from fastscan.learn import (
    CATEGORICAL,
    GAUSSIAN,
    HMM,
    LGSSM,
    POISSON,
    CategoricalEmissions,
    GaussianEmissions,
    ParamsHMM,
    PoissonEmissions,
    fit_em,
    priors,
)
from fastscan.learn.floors import Floor
from oracles.lgssm import cast, random_params, simulate

T, D, M = 12, 2, 3
R = np.random.default_rng(0)
em = functools.partial(fit_em, progress=False)


def wishart(n, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 2 * n))
    return {"df": n + 1.5, "scale": x @ x.T / 10}


def regression(n, p, seed=0):
    r = np.random.default_rng(seed)
    return priors.MatrixNormalInverseWishart(r.normal(size=(n, p)) / 2, np.diag(r.uniform(0.5, 2, p)), **wishart(n, seed))


def test_linear_gaussian_steps_are_those_of_dynamax():
    """The trace has the log prior, as dynamax's has."""
    y = simulate(random_params(1, D, M), T, 0)
    given = {"dynamics": regression(D, D + 1), "emissions": regression(M, D + 1, 1)}
    given["initial"] = priors.NormalInverseWishart(np.ones(D), 0.7, **wishart(D, 2))
    kinds = {"dynamics": MatrixNormalInverseWishart, "emissions": MatrixNormalInverseWishart, "initial": NormalInverseWishart}
    theirs = {f"{name.removesuffix('s')}_prior": kind(*map(jnp.asarray, given[name])) for name, kind in kinds.items()}
    theirs["dynamics_prior"] = theirs.pop("dynamic_prior")
    model = LinearGaussianConjugateSSM(D, M, **theirs)
    params, props = model.initialize(jax.random.key(0))
    wanted, objective = model.fit_em(params, props, jnp.asarray(y), num_iters=3, verbose=False)
    fit = em(LGSSM, params, y, priors=given, num_iters=3)
    np.testing.assert_allclose(fit.log_likelihoods, objective, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), fit.params, wanted)


TRANSITIONS = {"initial_distribution": priors.Dirichlet(), "transition_matrix": priors.Dirichlet(1.7)}


def hidden(kind):
    """dynamax's model, ours, parameters from theirs, and data."""
    if kind == "gaussian":
        y = R.normal(size=(2, 30, 2))
        model = GaussianHMM(3, 2, transition_matrix_concentration=1.7, emission_prior_concentration=0.3)
        prior = priors.NormalInverseWishart(np.zeros(2), 0.3, 2.1, 1e-4 * np.eye(2))
        return model, HMM(GAUSSIAN), lambda p: GaussianEmissions(p.means, p.covs), y, prior
    if kind == "poisson":
        y = R.poisson(3.0, size=(2, 30, 2)).astype(float)
        model = PoissonHMM(3, 2, transition_matrix_concentration=1.7)
        return model, HMM(POISSON), lambda p: PoissonEmissions(p.rates), y, priors.Gamma()
    y = R.integers(0, 4, size=(2, 30))
    model = CategoricalHMM(3, 1, 4, transition_matrix_concentration=1.7)
    return model, HMM(CATEGORICAL), lambda p: CategoricalEmissions(p.probs[:, 0]), y, priors.Dirichlet()


@pytest.mark.parametrize("kind", ["gaussian", "poisson", "categorical"])
def test_steps_of_hidden_states_are_those_of_dynamax(kind):
    """Their default priors, but for two numbers."""
    theirs, ours, emissions, y, prior = hidden(kind)
    params, props = theirs.initialize(jax.random.key(1))

    def plain(p):
        return ParamsHMM(p.initial.probs, p.transitions.transition_matrix, emissions(p.emissions))

    data = jnp.asarray(y)[..., None] if kind == "categorical" else jnp.asarray(y)
    wanted, objective = theirs.fit_em(params, props, data, num_iters=3, verbose=False)
    fit = em(ours, plain(params), y, priors=TRANSITIONS | {"emissions": prior}, num_iters=3)
    np.testing.assert_allclose(fit.log_likelihoods, objective, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), fit.params, plain(wanted))


def test_diagonal_noise_frozen_coefficients_and_gaps():
    """No step falls, which holds for the maximum of the expected objective alone; and it is one, by its gradient."""
    params = jax.tree.map(jnp.asarray, cast(random_params(1, D, M), "float64"))
    params = params._replace(emissions=params.emissions._replace(cov=jnp.diag(params.emissions.cov)))
    y = np.stack([simulate(random_params(1, D, M), T, seed) for seed in range(2)])
    y[R.random(y.shape) < 0.2] = np.nan
    given = {"emissions": regression(M, D + 1, 1), "dynamics": regression(D, D + 1)}
    fit = em(LGSSM, params, y, frozen=["emissions.bias", "dynamics.cov", "initial"], priors=given, num_iters=3000)
    assert fit.verdict.worst_fall < 1e-9
    np.testing.assert_array_equal(fit.params.dynamics.cov, params.dynamics.cov)

    def objective(p):
        return LGSSM.log_likelihoods(p, jnp.asarray(y), None).sum() + LGSSM.log_prior(p, jax.tree.map(jnp.asarray, given))

    slope = jax.jit(jax.grad(objective))(fit.params)
    free = slope.emissions.weights, slope.emissions.cov, slope.dynamics.weights, slope.dynamics.bias
    assert max(np.abs(x).max() for x in free) < 1e-9
    assert np.abs(slope.emissions.bias).max() > 0.01


def test_inverse_wishart_of_hidden_states():
    """By numerical maximisation of weighted log densities and the prior's, in one dimension."""
    y, weights = R.normal(size=(40, 1)), R.dirichlet(np.ones(2), size=40)
    params = GaussianEmissions(jnp.zeros((2, 1)), jnp.ones((2, 1, 1)))
    prior, none = priors.InverseWishart(3.0, np.array([[0.7]])), Floor(jnp.ones(1), jnp.zeros(()))
    free = GaussianEmissions(None, None)
    found, _ = GAUSSIAN.maximise(params, jnp.asarray(weights), jnp.asarray(y), free, prior, none)
    for k in range(2):

        def loss(x, k=k):
            cov = np.exp(x[1])
            return -weights[:, k] @ stats.norm.logpdf(y[:, 0], x[0], cov**0.5) - stats.invwishart.logpdf(cov, 3.0, 0.7)

        best = optimize.minimize(loss, [0.0, 0.0], tol=1e-10).x
        np.testing.assert_allclose([found.means[k, 0], np.log(found.covs[k, 0, 0])], best, atol=1e-5)


def test_a_state_without_data_goes_to_the_mode_of_its_prior():
    params = ParamsHMM(jnp.array([1.0, 0]), jnp.eye(2), PoissonEmissions(jnp.array([[1.0], [9]])))
    fit = em(HMM(POISSON), params, np.ones((9, 1)), priors={"emissions": priors.Gamma(3.0, 2.0)}, num_iters=5)
    assert fit.params.emissions.rates[1, 0] == 1
    assert str(fit.verdict) == "converged after 5 iterations; without data: states[1]"


def test_densities():
    rates = R.uniform(0.5, 2, (3, 2))
    np.testing.assert_allclose(priors.Gamma(1.5, 0.3).log_density(rates), stats.gamma.logpdf(rates, 1.5, scale=1 / 0.3).sum())
    probs, c = R.dirichlet(np.ones(3), size=2), np.array([1.2, 1.0, 3.0])
    wanted = sum(stats.dirichlet.logpdf(p, c) for p in probs)
    np.testing.assert_allclose(priors.Dirichlet(c).log_density(jnp.asarray(probs)), wanted)


def test_bad_input():
    params, y = random_params(1, D, M), simulate(random_params(1, D, M), T, 0)
    with pytest.raises(ValueError, match="priors: 'dynamic' given, wanted some of initial, dynamics, emissions"):
        em(LGSSM, params, y, priors={"dynamic": priors.Dirichlet()})
    with pytest.raises(TypeError, match=r"priors: Dirichlet given for 'dynamics', wanted priors.MatrixNormalInverseWishart"):
        em(LGSSM, params, y, priors={"dynamics": priors.Dirichlet()})
    with pytest.raises(ValueError, match=r"loc: shape \(2, 2\) given, wanted \(2, 3\)"):
        em(LGSSM, params, y, priors={"dynamics": regression(2, 2)})
    hmm = ParamsHMM(jnp.ones(2) / 2, jnp.ones((2, 2)) / 2, PoissonEmissions(jnp.ones((2, 1))))
    with pytest.raises(ValueError, match=r"concentration: shape \(5,\) given, wanted a number, \(2,\) or \(2, 2\)"):
        em(HMM(POISSON), hmm, np.ones((5, 1)), priors={"transition_matrix": priors.Dirichlet(np.full(5, 1.1))})
    with pytest.raises(ValueError, match=r"concentration 0.9 given for 'transition_matrix', wanted at least 1"):
        em(HMM(POISSON), hmm, np.ones((5, 1)), priors={"transition_matrix": priors.Dirichlet(np.array([0.9, 1.1]))})
