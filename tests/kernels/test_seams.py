"""Chunks are checked where they meet: an entry state that a neighbour does not confirm is replaced by the neighbour's exit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastscan import lds, lgssm_filter, lgssm_marginal_loglik
from fastscan.dispatch import choice as dispatch
from fastscan.kernels.arrays import as_lanes
from fastscan.kernels.lgssm import passes
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.kernels.lgssm.kalman import KALMAN_FILTER, observe
from fastscan.kernels.plan import Launch, Plan
from fastscan.kernels.scan import driver, seams
from fastscan.kernels.scan.recurrence import Seam
from fastscan.lgssm.check import check_model
from fastscan.lgssm.layout import series
from oracles.lgssm import TOLERANCE, cast, close, random_params, simulate, textbook

T = 14
PLANS = [
    Plan(T - 1, 4, algebra="staged", checked=True),
    Plan(T - 1, 3, algebra="staged", checked=True, one_function=True),
    Plan(T - 1, T - 1, "associative", checked=True),
    Plan(T - 1, 4, checked=True, launch=Launch(interpret=True)),
]


def gaussians_agree(x, y):
    return seams.gaussians_apart(x, y) <= seams.tolerance(x.mean.dtype)


def vectors_agree(x, y):
    return seams.vectors_apart(x, y) <= seams.tolerance(x.dtype)


def states(seed=0, D=3, C=4, B=2):
    r = np.random.default_rng(seed)
    a = r.normal(size=(D, D, C, B))
    return Gaussian(jnp.asarray(r.normal(size=(D, 1, C, B))), jnp.asarray(np.einsum("ikcb,jkcb->ijcb", a, a)))


def test_the_same_states_agree_in_any_units_and_order():
    given = states()
    units = 10.0 ** np.arange(-3, 6, 3)[:, None, None, None]
    order = [2, 0, 1]
    for D in (1.0, units):
        scaled = Gaussian(given.mean * D, given.cov * D * np.swapaxes(D * np.ones((3, 1, 1, 1)), 0, 1))
        moved = Gaussian(scaled.mean[jnp.array(order)], scaled.cov[jnp.array(order)][:, jnp.array(order)])
        for x in (scaled, moved):
            sd = np.sqrt(np.maximum(np.stack([x.cov[i, i] for i in range(3)]), 0))[:, None]
            assert gaussians_agree(x, x)
            assert not gaussians_agree(x, x._replace(mean=x.mean + 1e-6 * sd))
            assert not gaussians_agree(x, x._replace(cov=x.cov * (1 + 1e-6)))
            assert gaussians_agree(x, x._replace(mean=x.mean + 1e-12 * sd, cov=x.cov * (1 + 1e-12)))


def test_numbers_that_are_none_agree_with_one_another_only():
    given, none = states(), jax.tree.map(lambda x: x * np.nan, states())
    assert gaussians_agree(none, none)
    assert not gaussians_agree(given, none)
    assert not gaussians_agree(none, given)
    assert vectors_agree(none.mean, none.mean)
    assert not vectors_agree(none.mean, given.mean)
    assert vectors_agree(given.mean, given.mean * (1 + 1e-12))
    assert not vectors_agree(given.mean, given.mean * (1 + 1e-6))


def test_what_is_known_exactly_agrees_up_to_rounding_of_it():
    given = states()
    known = given._replace(cov=given.cov * 0)
    assert gaussians_agree(known, known._replace(mean=known.mean * (1 + 1e-15), cov=given.cov * 1e-32))
    assert not gaussians_agree(known, known._replace(mean=known.mean * (1 + 1e-9)))


def spoiled(recurrence, by):
    """A recurrence that enters chunks, but for the first, with another state than it should."""

    def enter(state, summary):
        after, seen = recurrence.enter(state, summary), summary.J.block(0, 1).columns(0, 1)
        return Gaussian(*(type(m).elementwise(lambda x, j: jnp.where(j > 0, by(x), x), m, seen) for m in after))

    return recurrence._replace(enter=enter)


def doubled(x):
    return x * 2.0


def lost(x):
    return x * np.nan


@pytest.mark.parametrize("by", [doubled, lost])
@pytest.mark.parametrize("plan", PLANS, ids=["chunked", "one function", "associative", "kernels"])
def test_entry_states_that_are_wrong_are_found(plan, by, monkeypatch):
    """Also those of the way back, which depend on them."""
    monkeypatch.setattr(passes, "KALMAN_FILTER", spoiled(KALMAN_FILTER, by))
    params, y = random_params(3, 1, 1), simulate(random_params(3, 1, 1), T, 0)
    model, _ = check_model(jax.tree.map(jnp.asarray, params), T, None, y.dtype)
    filtered, smoothed = jax.jit(lambda y: passes.smooth(plan, series(plan, model, y, False), True))(jnp.asarray(y)[None])
    wanted = textbook(params, y)
    close(filtered.log_density[0, :, 0, 0], wanted.loglik, 1e-9)
    close(filtered.mean[0, ..., 0], wanted.filtered_means, 1e-9)
    close(smoothed.mean[0, ..., 0], wanted.smoothed_means, 1e-9)
    close(smoothed.cov[0], wanted.smoothed_covariances, 1e-9)


@pytest.mark.parametrize(("by", "most"), [(None, 2), (lost, 5)])
def test_rounds_end_when_all_chunks_are_right(by, most):
    """One where all entry states are right, as many as chunks where none is; and a look that finds nothing changed."""
    plan, rounds = PLANS[0], []
    params, y = random_params(3, 1, 1), simulate(random_params(3, 1, 1), T, 0)

    def apart(entered, left):
        far = seams.gaussians_apart(entered, left)
        jax.debug.callback(lambda _: rounds.append(1), far)
        return far

    recurrence = spoiled(KALMAN_FILTER, by) if by else KALMAN_FILTER
    recurrence = recurrence._replace(seam=Seam(apart))
    model, _ = check_model(jax.tree.map(jnp.asarray, params), T, None, y.dtype)

    @jax.jit
    def filtered(y):
        given = series(plan, model, y, False)
        state, _ = driver.phases(plan).each_row("first_observation", observe, (given.prior, given.first))
        _, out = driver.run(plan, recurrence, given.params, as_lanes(state), given.rows)
        return driver.phases(plan).join(out.mean)

    means = filtered(jnp.asarray(y)[None])
    jax.effects_barrier()
    assert len(rounds) == most
    close(means[0, ..., 0], textbook(params, y).filtered_means[:-1], 1e-9)


def rank_one(T, dtype):
    """Constant velocity in the plane, noise in one direction of all four: no noise ever enters three of the others."""
    params = random_params(0, 4, 2)._replace(
        dynamics=random_params(0, 4, 2).dynamics._replace(
            weights=np.eye(4) + np.eye(4, k=2), bias=None, cov=np.full((4, 4), 0.1)
        ),
        emissions=random_params(0, 4, 2).emissions._replace(weights=np.eye(2, 4), bias=None, cov=7 * np.eye(2)),
    )
    params = params._replace(initial=params.initial._replace(mean=np.zeros(4), cov=np.diag([500, 500, 0.1, 0.1])))
    return cast(params, dtype), simulate(params, T, 1).astype(dtype)


def test_long_stretches_whose_information_grows_without_bound():
    """In float32 an information matrix of thousands of steps holds nothing of what is weak beside what is strong."""
    params, y = rank_one(3000, "float32")
    wanted = lgssm_filter(params, y, implementation="sequential")
    assert np.isfinite(wanted.marginal_loglik)
    for implementation in ("chunked:4", None):
        given = lgssm_filter(params, y, implementation=implementation)
        close(given.marginal_loglik, wanted.marginal_loglik, 1e-5)
        close(given.filtered_means, wanted.filtered_means, 1e-5)
        assert np.min(np.diagonal(given.filtered_covariances, axis1=1, axis2=2)) > 0


def test_gradients_of_long_stretches():
    params, y = rank_one(1500, "float32")

    def gradient(name):
        loglik = functools.partial(lgssm_marginal_loglik, emissions=y, implementation=name, missing=False)
        return jax.tree.leaves(jax.jit(jax.grad(loglik))(params))

    for given, wanted in zip(gradient("chunked:8"), gradient("sequential"), strict=True):
        close(given, wanted, 100 * TOLERANCE["float32"]["moments"])


def test_chains_of_potentials_are_checked_too():
    problem = dispatch.choose("chunked:4", T=50, B=1, D=2, dtype="float32", family="lds")
    assert problem.plan.checked
    assert lds.passes.PAIR_FILTER.seam is not None


def test_one_chunk_and_kernels_of_hidden_markov_models_have_no_seams_to_check():
    assert not dispatch.choose("sequential", T=50, B=1, D=2, m=1, dtype="float32").plan.checked
    assert not dispatch.choose("pallas_interpret", T=5000, B=1, D=2, dtype="float32", family="hmm").plan.checked
