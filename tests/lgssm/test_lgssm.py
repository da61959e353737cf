"""Filter, smoother and log-likelihood against the textbook, in every implementation."""

import functools

import jax
import numpy as np
import pytest

import fastscan
from fastscan import lgssm_filter, lgssm_marginal_loglik, lgssm_smoother
from fastscan.kernels.lgssm import passes
from fastscan.kernels.plan import Plan
from fastscan.lgssm.check import check_model
from fastscan.lgssm.layout import series
from oracles.lgssm import assert_moments, close, dense, one_axis, random_params, simulate, textbook, tracking_params

SIZES = [(1, 1), (1, 4), (2, 1), (3, 3), (4, 2), (8, 11), (16, 1)]


@functools.cache
def case(D: int, m: int, T: int):
    params = random_params(D * 31 + m, D, m)
    y = simulate(params, T, D + m)
    return params, y, textbook(params, y)


@pytest.mark.parametrize(
    ("D", "m", "implementation"),
    [(D, m, "chunked") for D, m in SIZES]
    + [(D, m, "sequential") for D, m in [(1, 1), (3, 3)]]
    + [(D, m, "associative") for D, m in [(1, 1), (4, 5)]],
)
def test_smoother_at_every_size(D, m, implementation):
    params, y, reference = case(D, m, 4 if implementation == "associative" else 13)
    assert_moments(lgssm_smoother(params, y, implementation=implementation), reference, "float64")


BOTH = ("float64", "float32")
LENGTHS = [
    (1, "chunked", BOTH),
    (2, "chunked", BOTH),
    (3, "chunked", ("float64",)),
    (17, "chunked", BOTH),
    (17, "sequential", BOTH),
    (61, "chunked", ("float64",)),
    (1, "associative", ("float64",)),
    (2, "associative", ("float32",)),
    (4, "associative", BOTH),
]
FILTERED = {(1, "chunked"), (3, "chunked"), (17, "chunked"), (17, "sequential"), (4, "associative")}


@pytest.mark.parametrize(("T", "implementation", "dtypes"), LENGTHS)
def test_every_length_in_both_precisions(T, implementation, dtypes):
    for dtype in dtypes:
        params, y = random_params(5, 2, 1, dtype), simulate(random_params(5, 2, 1), T, 1).astype(dtype)
        posterior = lgssm_smoother(params, y, implementation=implementation)
        assert {x.dtype for x in posterior} == {np.dtype(dtype)}
        assert_moments(posterior, textbook(params, y), dtype)
    if (T, implementation) in FILTERED:
        filtered = lgssm_filter(params, y, implementation=implementation)
        assert_moments(filtered, textbook(params, y), dtype)
        close(filtered.filtered_means, posterior.filtered_means, 1e-6)


CUTS = [
    (1, "doubling", "staged", False),
    (2, "doubling", "staged", True),
    (3, "doubling", "staged", False),
    (5, "doubling", "staged", True),
    (10, "doubling", "staged", False),
    (21, "doubling", "staged", True),
    (22, "doubling", "staged", False),
    (3, "associative", "staged", True),
    (5, "doubling", "stacked", False),
    (2, "doubling", "lanes", True),
    (3, "doubling", "lanes", False),
    (3, "associative", "lanes", True),
]


@pytest.mark.parametrize(("chunks", "scan", "algebra", "missing"), CUTS)
def test_every_way_of_cutting_time(chunks, scan, algebra, missing):
    """22 rows: exact chunks, chunks with a padded end, one row a chunk; with and without the handling of missing entries."""
    params, y, reference = case(2, 1, 23)
    model, _ = check_model(params, 23, None, np.dtype("float64"))
    plan = Plan(22, chunks, scan, algebra)
    filtered, smoothed = jax.jit(lambda: passes.smooth(plan, series(plan, model, y[None], missing)))()
    close(filtered.log_density.sum(), reference.loglik.sum(), 1e-11)
    close(smoothed.mean[0, ..., 0], reference.smoothed_means, 1e-11)
    close(smoothed.cov[0], reference.smoothed_covariances, 1e-11)
    close(smoothed.cross[0], reference.cross, 1e-11)


@pytest.mark.parametrize(
    ("T", "implementation"),
    [(1, "sequential"), (2, "associative"), (4, "associative"), (8, "sequential"), (8, "chunked")],
)
def test_against_the_dense_joint_gaussian(T, implementation):
    params = random_params(3, 2, 2)
    y = simulate(params, T, 4)
    y[T // 2, 0] = np.nan
    loglik, mean, cov = dense(params, y)
    posterior = lgssm_smoother(params, y, implementation=implementation)
    close(posterior.marginal_loglik, loglik, 1e-11)
    close(posterior.smoothed_means, mean, 1e-10)
    close(posterior.smoothed_covariances, cov[np.arange(T), :, np.arange(T)], 1e-10)
    pairs = cov[np.arange(T - 1), :, np.arange(1, T)] + np.einsum("ti,tj->tij", mean[:-1], mean[1:])
    close(posterior.smoothed_cross_covariances, pairs, 1e-10)


def test_log_likelihood_per_step_and_in_all():
    params, y, reference = case(2, 1, 13)
    for function in (lgssm_filter, lgssm_smoother):
        close(function(params, y, per_step_loglik=True).marginal_loglik, reference.loglik, 1e-10)
    close(lgssm_marginal_loglik(params, y, per_step_loglik=True), reference.loglik, 1e-10)
    close(lgssm_marginal_loglik(params, y), reference.loglik.sum(), 1e-10)


def test_marginal_loglik_keeps_no_moments():
    """Its compiled program needs far less memory than the filter's."""
    params, T = tracking_params("float32"), 20_000
    params = params._replace(emissions=params.emissions._replace(cov=np.full(2, 0.25, np.float32)))
    y = np.zeros((T, 2), np.float32)

    def memory(function):
        usage = jax.jit(functools.partial(function, params, missing=False)).lower(y).compile().memory_analysis()
        return usage.temp_size_in_bytes + usage.output_size_in_bytes

    assert memory(lgssm_marginal_loglik) < 0.4 * memory(lgssm_filter)


@pytest.mark.slow
def test_a_long_series():
    params = tracking_params()
    y = simulate(params, 20_000, 0)
    wanted = textbook(params, y)
    for implementation in ("sequential", "chunked"):
        assert_moments(lgssm_smoother(params, y, implementation=implementation), wanted, "float64", scale=10)


@pytest.mark.slow
def test_a_long_series_associative():
    params = one_axis(tracking_params())
    y = simulate(params, 251, 0)
    assert_moments(lgssm_smoother(params, y, implementation="associative"), textbook(params, y), "float64", scale=10)


def test_aliases():
    assert fastscan.parallel_lgssm_smoother is lgssm_smoother
    assert fastscan.parallel_lgssm_filter is lgssm_filter
    assert fastscan.parallel_lgssm_posterior_sample is fastscan.lgssm_posterior_sample
