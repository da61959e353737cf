"""EM as a program: what it compiles, allocates and returns; under `jit` and `vmap` as one loop; and when it stops."""

import functools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan.learn import (
    GAUSSIAN,
    HMM,
    LGSSM,
    POISSON,
    Fit,
    GaussianEmissions,
    ParamsHMM,
    PoissonEmissions,
    Verdict,
    em,
    fit_em,
)
from oracles.lgssm import cast, random_params, simulate

fit = functools.partial(fit_em, progress=False)
Y = np.stack([simulate(random_params(1, 2, 3), 20, seed) for seed in range(3)]).astype("float32")


def linear():
    """Another object every time, with a coefficient of another dtype."""
    params = cast(random_params(1, 2, 3), "float32")
    return LGSSM, params._replace(dynamics=params.dynamics._replace(bias=np.zeros(2)))


def hidden():
    emissions = GaussianEmissions(jnp.asarray(Y[0, :2]), jnp.tile(jnp.eye(3, dtype="float32"), (2, 1, 1)))
    return HMM(GAUSSIAN), ParamsHMM(jnp.full(2, 0.5, "float32"), jnp.full((2, 2), 0.5, "float32"), emissions)


both = pytest.mark.parametrize("make", [linear, hidden])


@both
def test_nothing_is_compiled_twice(make):
    """Not by another call, nor by its second iteration, nor for another number of iterations."""
    model, params = make()
    before = em._iterate._cache_size()
    for y, n in ((Y[0], 3), (Y[1], 2), (Y[2], 5)):
        model, params = make()
        found = fit(model, params, y, num_iters=n)
        assert all(x.dtype == np.float32 for x in jax.tree.leaves(found.params))
    assert em._iterate._cache_size() == before + 1


@both
@pytest.mark.parametrize("tol", [None, 1e-2])
def test_jit_and_vmap_are_one_loop(make, tol):
    """Sequences stop by themselves; what they have then does not change while others go on."""
    model, params = make()
    run = functools.partial(fit, model, params, num_iters=12, tol=tol)
    wanted = [run(y) for y in Y]
    together = jax.jit(jax.vmap(lambda y: run(y)))(jnp.asarray(Y))
    lengths = [len(x.log_likelihoods) for x in wanted]
    np.testing.assert_array_equal(together.verdict.iterations, lengths)
    assert (min(lengths) < 12) == (tol is not None)
    assert str(together.verdict) == " | ".join(f"[{i}] {x.verdict}" for i, x in enumerate(wanted))
    for i, x in enumerate(wanted):
        alone = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), alone.params, x.params)
        padded = np.pad(x.log_likelihoods, (0, 12 - lengths[i]), mode="edge")
        np.testing.assert_allclose(alone.log_likelihoods, padded, rtol=1e-4)


def test_one_fit_under_jit():
    model, params = hidden()
    found = jax.jit(lambda p, y: fit_em(model, p, y, num_iters=4))(params, Y[0])
    assert isinstance(found, Fit)
    np.testing.assert_allclose(found.log_likelihoods, fit(model, params, Y[0], num_iters=4).log_likelihoods, rtol=1e-5)
    programs = [jax.make_jaxpr(lambda y, n=n: fit(model, params, y, num_iters=n).log_likelihoods)(Y[0]) for n in (4, 40)]
    assert len({len(list(arrays(x.jaxpr))) for x in programs}) == 1


def test_a_tuple_of_two():
    model, params = hidden()
    found = fit(model, params, Y[0], num_iters=2)
    fitted, log_likelihoods = found
    assert len(found) == 2
    assert fitted is found.params
    assert log_likelihoods is found.log_likelihoods
    again = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, found)))
    assert isinstance(again, Fit)
    assert str(again.verdict) == str(found.verdict)
    assert "verdict=Verdict(" in repr(found)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(found)]
    assert ".verdict.converged" in names


def test_stopping():
    """By a gain a time step; the trace is as long as what was run."""
    model, params = hidden()
    whole = fit(model, params, Y, num_iters=40).log_likelihoods
    some = fit(model, params, Y, num_iters=40, tol=1e-3)
    n = int(some.verdict.iterations)
    assert 2 < n < 40
    np.testing.assert_array_equal(some.log_likelihoods, whole[:n])
    gains = np.abs(np.diff(whole)) / (Y.shape[0] * Y.shape[1])
    assert gains[n - 2] <= 1e-3 < gains[: n - 2].min()
    assert str(some.verdict) == f"converged after {n} iterations"
    assert str(fit(model, params, Y, num_iters=3).verdict) == "not converged yet after 3 iterations"
    assert not fit(model, params, Y, num_iters=1).verdict.converged
    with pytest.raises(ValueError, match=r"tol: -1 given, wanted a number from 0 on"):
        fit(model, params, Y, tol=-1)


def test_a_verdict_in_one_line():
    notes = {
        "floored": {"emissions.cov": np.array([False, True]), "emissions.covs": np.array([True])},
        "redundant": {"emissions.bias": np.array(True), "dynamics.weights": np.array([True, False])},
        "unvisited": {"states": np.array([False])},
    }
    verdict = Verdict(np.int32(7), np.array(True), np.array(True), np.array(0.0), notes)
    assert str(verdict) == (
        "converged after 7 iterations; noise at its floor: emissions.cov[1], emissions.covs[0]; "
        "redundant regressors: emissions.bias, dynamics.weights[:, 0]"
    )
    assert "no finite number" in str(verdict._replace(finite=np.array(False)))
    jax.jit(lambda v: str(v) and v.converged)(verdict)


def test_impossible_data_are_no_finite_number():
    params = ParamsHMM(jnp.ones(1), jnp.ones((1, 1)), PoissonEmissions(jnp.zeros((1, 1))))
    found = fit(HMM(POISSON), params, np.ones((4, 1)), num_iters=2)
    assert not found.verdict.finite
    assert str(found.verdict).startswith("a log-likelihood that is no finite number")


def arrays(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from arrays(inner)


@pytest.mark.parametrize("family", [GAUSSIAN, POISSON], ids=["gaussian", "poisson"])
def test_no_array_has_every_channel_of_every_state_at_every_step(family):
    T, K, m = 30_000, 7, 6
    params = {
        GAUSSIAN: GaussianEmissions(jnp.zeros((K, m)), jnp.tile(jnp.eye(m), (K, 1, 1))),
        POISSON: PoissonEmissions(jnp.ones((K, m))),
    }[family]
    y, weights = jnp.zeros((1, T, m)), jnp.full((1, T, K), 1 / K)
    given = type(params)(*family.constraints), None, family.floor and family.floor(params, y)

    def both_steps(params, y):
        return family.log_likelihoods(params, y), family.maximise(params, weights, y, *given)

    sizes = [math.prod(x.shape) for x in arrays(jax.make_jaxpr(both_steps)(params, y).jaxpr)]
    assert T * K <= max(sizes) < T * K * m / 2
    memory = jax.jit(both_steps).lower(params, y).compile().memory_analysis()
    assert memory.temp_size_in_bytes < T * K * m * 8


def test_blocks_of_time_are_their_sum():
    """Log-likelihoods and both steps, of more rows than a block has, against NumPy."""
    T, K, m = 20_001, 3, 4
    r = np.random.default_rng(0)
    params = GaussianEmissions(jnp.asarray(r.normal(size=(K, m))), jnp.asarray(np.tile(np.eye(m) * 2, (K, 1, 1))))
    y, w = r.normal(size=(1, T, m)), r.dirichlet(np.ones(K), size=(1, T))
    low = GAUSSIAN.floor(params, jnp.asarray(y))
    found, _ = GAUSSIAN.maximise(params, jnp.asarray(w), jnp.asarray(y), GaussianEmissions(None, None), None, low)
    means = np.einsum("tk,ti->ki", w[0], y[0]) / w[0].sum(0)[:, None]
    np.testing.assert_allclose(found.means, means, rtol=1e-10, atol=1e-12)
    for k in range(K):
        np.testing.assert_allclose(found.covs[k], np.cov(y[0].T, aweights=w[0, :, k], ddof=0), atol=1e-12)
    given = GAUSSIAN.log_likelihoods(params, jnp.asarray(y))
    apart = ((y[0][:, None] - np.asarray(params.means)) ** 2).sum(-1)
    np.testing.assert_allclose(given[0], -apart / 4 - m / 2 * np.log(4 * np.pi), rtol=1e-10)
    slope = jax.grad(lambda p: GAUSSIAN.log_likelihoods(p, jnp.asarray(y)).sum())(params)
    np.testing.assert_allclose(slope.means, (y[0][:, None] - np.asarray(params.means)).sum(0) / 2, rtol=1e-9)
