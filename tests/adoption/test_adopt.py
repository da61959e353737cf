"""dynamax's functions and models under `fastscan.adopt`: against themselves without."""

import importlib.metadata
import sys
import types

import dynamax.hidden_markov_model as dynamax_hmm
import dynamax.linear_gaussian_ssm as dynamax_lgssm
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dynamax.hidden_markov_model import inference as hmm
from dynamax.hidden_markov_model import parallel_inference as parallel_hmm
from dynamax.linear_gaussian_ssm import inference as lgssm
from dynamax.linear_gaussian_ssm import models as lgssm_models
from dynamax.linear_gaussian_ssm import parallel_inference as parallel_lgssm

from fastscan import adopt
from oracles.lgssm import random_params, simulate

KEY = jax.random.key(0)
T, D, M, K = 12, 3, 2, 4


@pytest.fixture
def adopted():
    with adopt() as adoption:
        yield adoption


def params(inputs=0):
    p = random_params(0, D, M)
    given = (p.initial.mean, p.initial.cov, p.dynamics.weights, p.dynamics.cov, p.emissions.weights, p.emissions.cov)
    weights = {f"{part}_input_weights": 0.1 * jnp.ones((n, inputs)) for part, n in (("dynamics", D), ("emissions", M))}
    return lgssm.make_lgssm_params(*map(jnp.asarray, given), **(weights if inputs else {}))


Y = jnp.asarray(simulate(random_params(0, D, M), T, 0))
LL = jnp.asarray(np.random.default_rng(1).normal(size=(T, K)))
A = jnp.asarray(np.random.default_rng(2).dirichlet(np.ones(K), K))
INITIAL = jnp.ones(K) / K


def same(found, wanted, tolerance=1e-7):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert type(found) is type(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, tolerance, tolerance)


def slow(*parameters):
    marked = (x if isinstance(x, tuple) else (x,) for x in parameters)
    return [pytest.param(*x, marks=pytest.mark.slow) for x in marked]


def under_adoption(call):
    with adopt():
        return call()


def test_references_are_replaced_and_put_back():
    before = lgssm.lgssm_smoother, lgssm_models.lgssm_smoother, dynamax_lgssm.parallel_lgssm_filter, hmm.hmm_filter
    with adopt() as adoption:
        assert lgssm_models.lgssm_smoother is lgssm.lgssm_smoother is not before[0]
        assert lgssm.lgssm_smoother.__doc__ == before[0].__doc__
        names = list(map(str, adoption.replaced))
        assert "dynamax.linear_gaussian_ssm.models.lgssm_smoother" in names
        assert "dynamax.ssm.SSM.fit_em" in names
        assert all(name in str(adoption) for name in names)
        assert "lgssm_info_filter: fastscan has none" in str(adoption)
    assert before == (
        lgssm.lgssm_smoother,
        lgssm_models.lgssm_smoother,
        dynamax_lgssm.parallel_lgssm_filter,
        hmm.hmm_filter,
    )
    assert adoption.replaced == []
    adoption.undo()


def test_one_adoption_within_another():
    original = lgssm.lgssm_filter
    with adopt():
        ours = lgssm.lgssm_filter
        with adopt() as second:
            assert lgssm.lgssm_filter is ours
            assert second.replaced == []
        assert lgssm.lgssm_filter is ours
    assert lgssm.lgssm_filter is original


def test_a_package_that_calls_dynamax(monkeypatch):
    """Imported before, it is adopted by its name; imported during an adoption, it is put back with it."""
    original = lgssm.lgssm_filter
    early = types.ModuleType("early_client")
    early.lgssm_filter = original
    monkeypatch.setitem(sys.modules, "early_client", early)
    with pytest.warns(UserWarning, match=r"early_client.lgssm_filter: dynamax's own"):
        adoption = adopt()
    assert early.lgssm_filter is original
    late = types.ModuleType("late_client")
    late.lgssm_filter = lgssm.lgssm_filter
    monkeypatch.setitem(sys.modules, "late_client", late)
    with adopt("early_client"):
        assert early.lgssm_filter is lgssm.lgssm_filter
    assert early.lgssm_filter is original
    adoption.undo()
    assert late.lgssm_filter is original


def test_what_is_not_known_is_refused(monkeypatch):
    with pytest.raises(ImportError):
        adopt("no_such_package")
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.0.0")
    with pytest.raises(ValueError, match=r"dynamax 2.0.0 given, wanted one of 1.0.0"):
        adopt()
    assert not hasattr(lgssm.lgssm_filter, "_fastscan_original")


def test_models_of_before_1_0_3(monkeypatch):
    """Whose entry t of dynamics is of the transition from t to t + 1."""
    F = jnp.stack([jnp.eye(D) * (0.5 + 0.04 * t) for t in range(T)])
    varying = params()._replace(dynamics=params().dynamics._replace(weights=F))
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.0.2")
    found = under_adoption(lambda: lgssm.lgssm_filter(varying, Y))
    monkeypatch.undo()
    later = varying._replace(dynamics=varying.dynamics._replace(weights=jnp.concatenate([F[:1], F[:-1]])))
    same(found, lgssm.lgssm_filter(later, Y))


@pytest.mark.parametrize("inputs, name", [(0, "lgssm_smoother"), *slow((2, "lgssm_smoother"), (0, "lgssm_filter"))])
def test_linear_gaussian_functions(name, inputs):
    u = jnp.asarray(np.random.default_rng(3).normal(size=(T, inputs)))
    for module in (lgssm, parallel_lgssm):
        wanted = getattr(module, name)(params(inputs), Y, u)
        found = under_adoption(lambda module=module: getattr(module, name)(params(inputs), Y, u))
        if module is parallel_lgssm:  # whose log-likelihood is dynamax's least accurate number
            found, wanted = (x._replace(marginal_loglik=jnp.zeros(())) for x in (found, wanted))
        same(found, wanted, 1e-6)


def test_of_emissions_with_few_entries_the_last_is_read_again():
    few = params()._replace(
        emissions=params().emissions._replace(
            weights=jnp.stack([params().emissions.weights * x for x in (1.0, 0.5, 2.0)]), bias=jnp.ones((2, M))
        )
    )
    same(under_adoption(lambda: lgssm.lgssm_smoother(few, Y)), lgssm.lgssm_smoother(few, Y))


def diagonal():
    return params()._replace(emissions=params().emissions._replace(cov=jnp.ones(M)))


SAMPLES = {
    "posterior": lambda T: lgssm.lgssm_posterior_sample(KEY, params(), Y[:T]),
    "by an old key": lambda T: lgssm.lgssm_posterior_sample(jax.random.PRNGKey(1), params(), Y[:T]),
    "parallel": lambda T: parallel_lgssm.lgssm_posterior_sample(KEY, params(), Y[:T]),
    "joint": lambda T: lgssm.lgssm_joint_sample(params(), KEY, T),
    "joint, diagonal": lambda T: lgssm.lgssm_joint_sample(diagonal(), KEY, T),
    "paths": lambda T: hmm.hmm_posterior_sample(KEY, INITIAL, A, LL[:T]),
}


@pytest.mark.parametrize("T", [pytest.param(2, marks=pytest.mark.slow), 12])
@pytest.mark.parametrize(
    "name", ["posterior", "joint", "paths", *slow("posterior by an old key", "parallel", "joint, diagonal")]
)
def test_samples_of_a_key_are_dynamax_s(name, T):
    same(under_adoption(lambda: SAMPLES[name](T)), SAMPLES[name](T), 1e-5)


@pytest.mark.slow
def test_many_samples():
    """Under vmap, of one model and many keys."""
    keys = jax.random.split(KEY, 50)

    def samples():
        return jax.vmap(lambda key: lgssm.lgssm_posterior_sample(key, params(), Y))(keys)

    same(under_adoption(samples), samples(), 1e-5)


def test_errors_are_those_that_users_of_dynamax_catch(adopted):
    short = params()._replace(dynamics=params().dynamics._replace(cov=jnp.tile(jnp.eye(D), (T - 1, 1, 1))))
    with pytest.raises(AssertionError, match=r"dynamics\.cov"):
        lgssm.lgssm_filter(short, Y)
    del adopted


HMM = {
    "filter": lambda: hmm.hmm_filter(INITIAL, A, LL),
    "filter of functions": lambda: hmm.hmm_filter(INITIAL, None, LL, lambda t: A ** (1.0 + 0.1 * t)),
    "backward": lambda: hmm.hmm_backward_filter(A, LL),
    "smoother": lambda: hmm.hmm_smoother(INITIAL, A, LL),
    "two filters": lambda: hmm.hmm_two_filter_smoother(INITIAL, A, LL),
    "mode": lambda: hmm.hmm_posterior_mode(INITIAL, A, LL),
    "windows": lambda: hmm.hmm_fixed_lag_smoother(INITIAL, A, LL, 3),
    "transitions": lambda: hmm.compute_transition_probs(A, hmm.hmm_smoother(INITIAL, A, LL)),
    "parallel filter": lambda: parallel_hmm.hmm_filter(initial_probs=INITIAL, transition_matrix=A, log_likelihoods=LL),
    "parallel smoother": lambda: parallel_hmm.hmm_smoother(INITIAL, A, LL),
    "single precision": lambda: hmm.hmm_filter(INITIAL, A, LL.astype("float32")).filtered_probs.astype("float32"),
    "integers": lambda: hmm.hmm_filter(INITIAL, A, LL.astype(int)),
}


FIRST = ["filter of functions", "smoother", "mode", "windows", "parallel filter"]


@pytest.mark.parametrize("name", [*FIRST, *slow(*(name for name in HMM if name not in FIRST))])
def test_hidden_markov_functions(name):
    same(under_adoption(HMM[name]), HMM[name](), 1e-6)


def test_states_are_integers_of_the_default_type(adopted):
    for module in (hmm, parallel_hmm):
        _, states = module.hmm_posterior_sample(KEY, INITIAL, A, LL)
        assert states.dtype == jnp.result_type(int)
    del adopted


def models():
    r = np.random.default_rng(0)
    normal, counts = jnp.asarray(r.normal(size=(2, 30, 2)).cumsum(1)), jnp.asarray(r.poisson(3.0, size=(2, 30, 2)))
    categories = jnp.asarray(r.integers(0, 3, size=(2, 30, 1)))
    return {
        "GaussianHMM": (dynamax_hmm.GaussianHMM(3, 2), normal),
        "PoissonHMM": (dynamax_hmm.PoissonHMM(3, 2), counts.astype(float)),
        "CategoricalHMM": (dynamax_hmm.CategoricalHMM(3, 1, 3), categories),
        "LinearAutoregressiveHMM": (dynamax_hmm.LinearAutoregressiveHMM(3, 2), normal),
        "LinearGaussianSSM": (dynamax_lgssm.LinearGaussianSSM(2, 2), normal[:1]),
    }


@pytest.mark.parametrize("name", ["GaussianHMM", *slow(*list(models())[1:])])
def test_models(name):
    model, emissions = models()[name]
    given, props = model.initialize(KEY)

    def of_model():
        inputs = {}
        if name == "LinearAutoregressiveHMM":
            inputs = {"inputs": jax.vmap(model.compute_inputs)(emissions)}
        one = {k: x[0] for k, x in inputs.items()}
        fitted, log_probs = model.fit_em(given, props, emissions, num_iters=3, verbose=False, **inputs)
        out = [fitted, log_probs, model.filter(given, emissions[0], **one), model.smoother(given, emissions[0], **one)]
        if name == "LinearGaussianSSM":
            return [*out, model.forecast(given, emissions[0], 3), model.posterior_predictive(given, emissions[0])]
        return [*out, model.most_likely_states(given, emissions[0], **one)]

    same(under_adoption(of_model), of_model(), 1e-5)


def test_fit_em_compiles_once():
    """Until what a model computes is another."""
    emissions = models()["GaussianHMM"][1]
    traced = []

    class Traced(dynamax_hmm.GaussianHMM):
        def e_step(self, *args):
            traced.append(self)
            return super().e_step(*args)

    def fit(model):
        given, props = model.initialize(KEY)
        before = len(traced)
        return model.fit_em(given, props, emissions, num_iters=2, verbose=False)[1], len(traced) > before

    with adopt():
        first, compiled = fit(Traced(3, 2))
        assert compiled
        other = Traced(3, 2)
        again, compiled = fit(other)
        np.testing.assert_array_equal(again, first)
        assert not compiled
        other.transition_component.concentration = 3.0 * jnp.ones((3, 3))
        changed, compiled = fit(other)
        assert compiled
        assert not np.array_equal(changed, first)


def test_progress_is_shown_as_before(adopted, capsys):
    model, emissions = models()["GaussianHMM"]
    given, props = model.initialize(KEY)
    shown = model.fit_em(given, props, emissions, num_iters=3, print_every=2)[1]
    np.testing.assert_allclose(shown, model.fit_em(given, props, emissions, num_iters=3, verbose=False)[1], rtol=1e-12)
    assert model.fit_em(given, props, emissions, num_iters=0)[1].shape == (0,)
    with pytest.raises(ValueError, match="print_every must be a positive integer"):
        model.fit_em(given, props, emissions, print_every=0)
    del adopted, capsys


@pytest.mark.parametrize(
    ("states", "varying", "jitted"), [(17, True, True), (17, True, False), (17, False, True), (16, True, True)]
)
def test_dynamax_samples_where_it_is_faster(states, varying, jitted):
    """The same states of a key, whoever draws them; by a function of ours in the text it is told who did."""
    p = random_params(0, states, 1)
    F = jnp.asarray(p.dynamics.weights)
    given = p.initial.mean, p.initial.cov, F, p.dynamics.cov, p.emissions.weights, p.emissions.cov
    model = lgssm.make_lgssm_params(*map(jnp.asarray, given))
    if varying:
        model = model._replace(dynamics=model.dynamics._replace(weights=lambda t: F * (1 - 0.01 * t)))
    y = jnp.asarray(simulate(p, 6, 0))

    def sample(y):
        return lgssm.lgssm_posterior_sample(KEY, model, y)

    with adopt() as adoption:
        assert "lgssm_posterior_sample: within jax.jit on a CPU, of more than 16" in str(adoption)
        text = str(jax.make_jaxpr(lambda y: sample(y))(y))
        found = jax.jit(lambda y: sample(y))(y) if jitted else sample(y)
    assert ("name=_sample" in text) != (varying and states == 17)
    same(found, sample(y), 1e-6)


def test_gaps_within_jit_are_those_of_dynamax():
    """Outside of it entries are missing; within, they make NaN, as without adoption."""
    y = Y.at[3].set(jnp.nan)
    with adopt():
        assert jnp.isfinite(lgssm.lgssm_smoother(params(), y).smoothed_means).all()
        assert jnp.isnan(jax.jit(lambda y: lgssm.lgssm_smoother(params(), y).smoothed_means)(y)).any()
    assert jnp.isnan(lgssm.lgssm_smoother(params(), y).smoothed_means).any()
