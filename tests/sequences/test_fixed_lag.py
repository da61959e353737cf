"""Fixed-lag smoothing: of every state, what a smoother of the data up to so many steps later says."""

import jax
import numpy as np
import pytest

import fastscan as fs
from oracles.lgssm import random_params, simulate

T, D = 12, 3


def case(gaps=True):
    params = random_params(0, D, 2)
    y = simulate(params, T, 0)
    if gaps:
        y[3:5] = y[7, 1] = np.nan
    return params, y


@pytest.mark.parametrize("lag", [0, 1, 2, 3, 6, 7, 11, 40])
def test_values(lag):
    params, y = case()
    found = fs.lgssm_fixed_lag_smoother(params, y, lag)
    whole = fs.lgssm_smoother(params, y)
    np.testing.assert_allclose(found.marginal_loglik, whole.marginal_loglik, rtol=1e-12)
    np.testing.assert_allclose(found.filtered_means, whole.filtered_means, rtol=1e-12)
    for t in range(T):
        seen = fs.lgssm_smoother(params, np.where(np.arange(T)[:, None] <= t + lag, y, np.nan))
        np.testing.assert_allclose(found.smoothed_means[t], seen.smoothed_means[t], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.smoothed_covariances[t], seen.smoothed_covariances[t], rtol=1e-8, atol=1e-10)


def test_what_varies_and_pieces():
    """Of a stream, the piece with the lag's steps at its end says of the states before them what all of it says."""
    r = np.random.default_rng(0)
    params, y = case()
    F = 0.5 * r.normal(size=(T, D, D))

    def model(part):
        return params._replace(dynamics=params.dynamics._replace(weights=F[part]))

    whole = fs.lgssm_fixed_lag_smoother(model(slice(None)), y, 2)
    state = fs.lgssm_filter(model(slice(4)), y[:4]).final_state
    piece = fs.lgssm_fixed_lag_smoother(model(slice(4, 10)), y[4:10], 2, initial_state=state)
    np.testing.assert_allclose(piece.smoothed_means[:4], whole.smoothed_means[4:8], rtol=1e-8)
    np.testing.assert_allclose(piece.smoothed_covariances[:4], whole.smoothed_covariances[4:8], rtol=1e-8)


def test_vmap_one_step_and_errors():
    params, y = case(gaps=False)
    both = np.stack([y, y[::-1]])
    found = jax.vmap(lambda y: fs.lgssm_fixed_lag_smoother(params, y, 3).smoothed_means)(both)
    np.testing.assert_allclose(found[1], fs.lgssm_fixed_lag_smoother(params, both[1], 3).smoothed_means, rtol=1e-9)
    assert fs.lgssm_fixed_lag_smoother(params, y[:1], 3).smoothed_means.shape == (1, D)
    with pytest.raises(ValueError, match=r"emissions: shape \(2, 12, 2\).*vmap"):
        fs.lgssm_fixed_lag_smoother(params, both, 3)
    with pytest.raises(ValueError, match="lag: -1"):
        fs.lgssm_fixed_lag_smoother(params, y, -1)
