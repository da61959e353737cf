"""Structured mean field of switching systems: bounds and fixed points by enumeration, and gradients by three ways."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fastscan.lds import LDSStatistics, PairPotential
from fastscan.profiling.demos.slds import by_scan as textbook
from fastscan.slds import hmm_to_lds_mf, lds_to_hmm_mf, slds_inference, slds_kl, slds_sample
from oracles import lds as lds_oracle
from oracles.slds import bound, log_normalizer, path_probs, random_slds

T, D, K = 6, 2, 3


def close(got, wanted, rounding=1e-10):
    np.testing.assert_allclose(got, wanted, rtol=rounding, atol=rounding)


def first_probs(T=T, K=K, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(K), T - 1)


def test_each_side_averages_over_the_other():
    _, params = random_slds(0, T, D, K)
    probs = first_probs()
    pair = hmm_to_lds_mf(probs, params)
    for got, every in zip(pair, params.pair, strict=True):
        close(got[2], sum(probs[2, k] * every[k] for k in range(K)))
    chain = lds_oracle.random_chain(0, T, D)
    x, xx, xx_next, _ = lds_oracle.textbook(*chain)
    logs = lds_to_hmm_mf(LDSStatistics(x, xx, xx_next), params)
    for k in range(K):
        h1, J11, J12, J22, h2 = (block[k] for block in params.pair)
        for t in range(T - 1):
            wanted = -h1 @ x[t] - np.trace(J11 @ xx[t]) / 2 + (J12 * xx_next[t]).sum() - np.trace(J22 @ xx[t + 1]) / 2
            close(logs[t, k], wanted + h2 @ x[t + 1] + params.log_scale[k])


@pytest.mark.parametrize("implementation", ["sequential", "chunked:2", "associative"])
def test_the_objective_is_the_bound_that_it_says(implementation):
    node, params = random_slds(1, T, D, K)
    for max_iters in (1, 3, 50):
        settings = {"max_iters": max_iters, "tol": 0, "implementation": implementation}
        posterior = slds_inference(node, params, initial_probs=first_probs(), **settings)
        close(posterior.objective, bound(node, params, posterior.pair, posterior.log_likelihoods))
        assert posterior.objective < log_normalizer(node, params)
        every, q = path_probs(params, posterior.log_likelihoods)
        close(posterior.probs, np.stack([q @ (every == k) for k in range(K)], -1))
        *wanted, _ = lds_oracle.textbook(node, params.init, posterior.pair)
        jax.tree.map(close, tuple(posterior.statistics), tuple(wanted))
        close(slds_kl(node, posterior) + posterior.objective, (node.r * posterior.statistics.x).sum()
              - (node.R * posterior.statistics.xx).sum() / 2)  # fmt: skip


def test_one_state_is_exact():
    node, params = random_slds(2, 5, D, 1)
    posterior = slds_inference(node, params, key=jax.random.key(0), tol=1e-12)
    close(posterior.objective, log_normalizer(node, params))
    x, xx, xx_next, _ = lds_oracle.textbook(node, params.init, PairPotential(*(np.repeat(p, 4, 0) for p in params.pair)))
    for got, wanted in zip(posterior.statistics, (x, xx, xx_next), strict=True):
        close(got, wanted)
    assert posterior.converged
    assert posterior.iterations == 2


def test_the_kl_divergence_is_one():
    """Under conditional densities: p(x, k) is a distribution, of which q is no better an approximation than itself."""
    node, params = random_slds(3, T, D, K, spread=0.0)
    log_initial, log_transition = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in params[:2])
    params = params._replace(log_initial=log_initial, log_transition=log_transition)
    posterior = slds_inference(node, params, initial_probs=first_probs())
    assert slds_kl(node, posterior) > 0
    nothing = jax.tree.map(np.zeros_like, node)
    alike = params._replace(
        pair=jax.tree.map(lambda x: np.repeat(x[:1], K, 0), params.pair), log_scale=params.log_scale[[0] * K]
    )
    close(slds_kl(nothing, slds_inference(nothing, alike, initial_probs=first_probs())), 0)


def test_the_objective_never_falls():
    problems = [random_slds(seed, 12, D, K) for seed in range(100)]
    nodes, params = jax.tree.map(lambda *xs: np.stack(xs), *problems)
    probs = np.stack([first_probs(12, K, seed) for seed in range(100)])
    run = functools.partial(slds_inference, max_iters=40, tol=0)
    trace = jax.jit(jax.vmap(lambda node, params, probs: run(node, params, initial_probs=probs).trace))(nodes, params, probs)
    assert np.isfinite(trace).all()
    assert (np.diff(trace) >= -1e-11 * np.abs(trace[:, 1:])).all()
    assert np.median(trace[:, -1] - trace[:, 0]) > 0.1


def test_sequences_that_have_converged_stop():
    problems = [random_slds(seed, 10, D, K) for seed in range(4)]
    nodes, params = jax.tree.map(lambda *xs: np.stack(xs), *problems)
    run = functools.partial(slds_inference, initial_probs=first_probs(10), max_iters=200, tol=1e-6)
    together = jax.vmap(lambda node, params: run(node, params))(nodes, params)
    assert together.converged.all()
    assert len(set(together.iterations.tolist())) > 1
    for b, problem in enumerate(problems):
        alone = run(*problem)
        assert alone.iterations == together.iterations[b]
        jax.tree.map(lambda x, y: close(x[b], y, 1e-9), together, alone)  # noqa: B023
        assert np.all(alone.trace[alone.iterations :] == alone.trace[alone.iterations - 1])
        assert np.isfinite(alone.trace).all()


def test_too_few_turns_are_reported():
    posterior = slds_inference(*random_slds(1, 10, D, K), initial_probs=first_probs(10), max_iters=2, tol=1e-12)
    assert not posterior.converged
    assert posterior.iterations == 2


NODE, PARAMS = random_slds(4, 20, 3, K)
PROBS = first_probs(20)
R = np.random.default_rng(5)
WEIGHTS = R.standard_normal((20, 3)), R.standard_normal((19, K))


def loss(theta, gradient, max_iters=200, **settings):
    """Something that the objective's own derivative says nothing of."""
    posterior = slds_inference(*theta, initial_probs=PROBS, max_iters=max_iters, tol=0, gradient=gradient, **settings)
    x, xx, _ = posterior.statistics
    return (WEIGHTS[0] * jnp.tanh(x)).sum() + (WEIGHTS[1] * posterior.probs).sum() + slds_kl(theta[0], posterior) + xx[3].sum()


def apart(got, wanted):
    """The largest relative norm of the differences, over blocks of parameters."""
    errors = jax.tree.map(lambda g, w: np.linalg.norm(g - w) / np.linalg.norm(w), got, wanted)
    return max(jax.tree.leaves(errors))


@functools.cache
def unrolled():
    return jax.jit(jax.value_and_grad(functools.partial(loss, gradient="unrolled")))((NODE, PARAMS))


@functools.cache
def implicit(solver, implementation=None):
    function = functools.partial(loss, gradient="implicit", solver=solver, solver_iters=200, implementation=implementation)
    return jax.jit(jax.value_and_grad(function))((NODE, PARAMS))


@pytest.mark.parametrize(("solver", "implementation", "most"), [("krylov", None, 1e-5), ("fixed_point", None, 1e-4),
                                                                ("krylov", "chunked:4", 1e-5)])  # fmt: skip
def test_implicit_gradients_are_unrolled_ones(solver, implementation, most):
    value, gradient = implicit(solver, implementation)
    close(value, unrolled()[0], 1e-8)
    assert apart(gradient, unrolled()[1]) < most


def test_gradients_against_central_differences():
    """Of every block of parameters, in a direction that changes it alone."""
    flat, unravel = ravel_pytree((NODE, PARAMS))
    value = jax.jit(lambda x: loss(unravel(x), "none"))
    r, step = np.random.default_rng(6), 1e-5
    blocks, tree = jax.tree.flatten((NODE, PARAMS))
    gradients = [jax.tree.leaves(gradient) for _, gradient in (unrolled(), implicit("krylov"), implicit("fixed_point"))]
    for i, block in enumerate(blocks):
        direction = r.standard_normal(np.shape(block)) / np.sqrt(np.size(block))
        parts = [direction if i == j else np.zeros(np.shape(b)) for j, b in enumerate(blocks)]
        along, _ = ravel_pytree(jax.tree.unflatten(tree, parts))
        difference = (value(flat + step * along) - value(flat - step * along)) / (2 * step)
        for gradient in gradients:
            assert np.abs((gradient[i] * direction).sum() - difference) < 1e-5 * np.linalg.norm(gradient[i])


def test_what_no_gradient_means():
    """The objective's derivative is right; others are not."""

    def objective(theta, gradient):
        return slds_inference(*theta, initial_probs=PROBS, max_iters=200, tol=0, gradient=gradient).objective

    gradients = [
        jax.jit(jax.grad(functools.partial(objective, gradient=name)))((NODE, PARAMS)) for name in ("none", "implicit")
    ]
    assert apart(*gradients) < 1e-6
    wrong = jax.jit(jax.grad(functools.partial(loss, gradient="none")))((NODE, PARAMS))
    assert apart(wrong, unrolled()[1]) > 0.01


def test_memory_of_implicit_gradients_does_not_grow():
    def temporary(max_iters, **settings):
        function = functools.partial(loss, max_iters=max_iters, **settings)
        return jax.jit(jax.grad(function)).lower((NODE, PARAMS)).compile().memory_analysis().temp_size_in_bytes

    for solver in ("krylov", "fixed_point"):
        assert temporary(200, gradient="implicit", solver=solver) < 1.1 * temporary(10, gradient="implicit", solver=solver)
    assert temporary(200, gradient="unrolled") > 5 * temporary(10, gradient="unrolled")


def test_implicit_gradients_under_vmap():
    thetas = [random_slds(seed, 20, 3, K) for seed in (4, 7)]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *thetas)
    gradient = jax.grad(functools.partial(loss, gradient="implicit", max_iters=50))
    together = jax.jit(jax.vmap(gradient))(stacked)
    for b, theta in enumerate(thetas):
        assert apart(jax.tree.map(lambda x: x[b], together), gradient(theta)) < 1e-6  # noqa: B023


def test_what_has_no_integral_ends_the_turns():
    node = NODE._replace(R=NODE.R - 1000 * np.eye(3))
    posterior = slds_inference(node, PARAMS, initial_probs=PROBS)
    assert posterior.iterations == 1
    assert not posterior.converged
    assert np.isnan(posterior.objective)
    assert np.isnan(posterior.probs).all()


@pytest.mark.parametrize("implementation", ["sequential", "chunked:4", "pallas_interpret"])
def test_against_lax_scan(implementation):
    """The yardstick of the demonstration, in every implementation."""
    settings = {"max_iters": 5, "tol": 0, "implementation": implementation}
    posterior = slds_inference(NODE, PARAMS, initial_probs=PROBS, **settings)
    statistics, probs, objective = textbook.slds(NODE, PARAMS, jnp.asarray(PROBS), 5)
    close(posterior.probs, probs)
    close(posterior.objective, objective)
    jax.tree.map(close, posterior.statistics, statistics)


def test_samples():
    posterior = slds_inference(NODE, PARAMS, initial_probs=PROBS)
    keys = jax.random.split(jax.random.key(1), 4_000)
    x, k = jax.vmap(lambda key: slds_sample(key, NODE, PARAMS, posterior))(keys)
    sd = np.sqrt(np.array([np.diag(s) for s in posterior.statistics.xx]) - posterior.statistics.x**2)
    assert np.abs((np.asarray(x).mean(0) - posterior.statistics.x) / sd).max() < 5 / np.sqrt(len(keys))
    shares = np.stack([(np.asarray(k) == i).mean(0) for i in range(K)], -1)
    assert np.abs(shares - posterior.probs).max() < 5 * 0.5 / np.sqrt(len(keys))


@pytest.mark.parametrize("implementation", ["sequential", "chunked:4"])
def test_float32(implementation):
    """Of one turn, relative to the largest number; more of them may lead elsewhere, or take longer."""
    theta = jax.tree.map(lambda x: np.asarray(x, "float32"), (NODE, PARAMS))
    settings = {"max_iters": 1, "tol": 0, "implementation": implementation}
    posterior = slds_inference(*theta, initial_probs=np.asarray(PROBS, "float32"), **settings)
    exact = jax.tree.map(lambda x: x.astype("float64"), theta)
    wanted = slds_inference(*exact, initial_probs=np.asarray(PROBS, "float32").astype("float64"), **settings)
    for given, right in ((posterior.statistics, wanted.statistics), (posterior.objective, wanted.objective)):
        for x, y in zip(jax.tree.leaves(given), jax.tree.leaves(right), strict=True):
            assert x.dtype == np.float32
            assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()


def test_gradients_in_float32():
    probs = np.asarray(PROBS, "float32")

    def loss(theta):
        posterior = slds_inference(*theta, initial_probs=probs.astype(theta[0].r.dtype), max_iters=100, tol=0)
        return slds_kl(theta[0], posterior) + jnp.tanh(posterior.statistics.x).sum()

    wanted = jax.grad(loss)((NODE, PARAMS))
    got = jax.grad(loss)(jax.tree.map(lambda x: np.asarray(x, "float32"), (NODE, PARAMS)))
    assert apart(got, wanted) < 1e-3


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"gradient": "magic"}, ValueError, "gradient: 'magic' given, wanted one of implicit, unrolled, none"),
        ({"solver": "lu"}, ValueError, "solver: 'lu' given, wanted one of krylov, fixed_point"),
        ({"max_iters": 0}, ValueError, "max_iters: 0 given"),
        ({"solver_iters": 0}, ValueError, "solver_iters: 0 given"),
        ({"tol": -1.0}, ValueError, "tol: -1.0 given, wanted a number that is not negative"),
        ({"initial_probs": PROBS.astype("float32")}, TypeError, "initial_probs: float32 given, wanted float64"),
        ({"key": jax.random.key(0)}, ValueError, "key, initial_probs: wanted one of the two"),
        ({"initial_probs": PROBS[1:]}, ValueError, r"initial_probs: shape \(18, 3\) given, wanted \(19, 3\), as T = 20"),
        ({"params": PARAMS._replace(log_scale=np.zeros(2))}, ValueError, r"log_scale: shape \(2,\) given, wanted \(3,\), as K"),
        ({"params": PARAMS._replace(log_scale=np.zeros(3, "float32"))}, TypeError, "log_scale: float32 given, wanted float64"),
        ({"recog_potentials": jax.tree.map(lambda x: x[:1], NODE)}, ValueError, r"recog_potentials: .* with T at least 2"),
    ],
)
def test_errors(given, error, words):
    with pytest.raises(error, match=words):
        slds_inference(**{"recog_potentials": NODE, "params": PARAMS, "initial_probs": PROBS} | given)
