"""Missing observations, batches, and panels of different lengths."""

import jax
import numpy as np
import pytest
import statsmodels.api as sm

import fastscan
from fastscan import lgssm_marginal_loglik, lgssm_posterior_sample, lgssm_smoother, pad_sequences
from oracles.lgssm import assert_moments, close, random_params, simulate, textbook


def with_gaps(y, seed=0):
    """Whole rows (the first and the last among them), single entries, a long run."""
    r = np.random.default_rng(seed)
    y = y.copy()
    y[0], y[-1], y[3:6] = np.nan, np.nan, np.nan
    y[r.random(y.shape) < 0.2] = np.nan
    return y


@pytest.mark.parametrize(
    ("D", "m", "noise", "implementation"),
    [
        (1, 1, "full", "chunked"),
        (1, 1, "varying", "sequential"),
        (2, 3, "full", "sequential"),
        (2, 3, "full", "chunked"),
        (2, 3, "diagonal", "chunked"),
        (2, 3, "varying", "chunked"),
    ],
)
def test_missing_rows_and_entries(D, m, noise, implementation):
    T = 23
    params = random_params(7, D, m)
    R = params.emissions.cov
    R = {"full": R, "diagonal": np.diagonal(R), "varying": R * np.linspace(0.5, 2, T)[:, None, None]}[noise]
    params = params._replace(emissions=params.emissions._replace(cov=R))
    y = with_gaps(simulate(params, T, 1))
    posterior = lgssm_smoother(params, y, implementation=implementation)
    assert_moments(posterior, textbook(params, y), "float64")
    if noise == "full":
        close(lgssm_marginal_loglik(params, y, implementation=implementation), posterior.marginal_loglik, 1e-12)


def test_associative_with_missing_entries():
    params = random_params(7, 2, 2)
    y = simulate(params, 4, 1)
    y[2], y[3, 1] = np.nan, np.nan
    assert_moments(lgssm_smoother(params, y, implementation="associative"), textbook(params, y), "float64")


def test_against_statsmodels():
    params = random_params(8, 3, 2)
    y = with_gaps(simulate(params, 40, 2))
    model = sm.tsa.statespace.MLEModel(y, k_states=3, k_posdef=3)
    model["transition"], model["selection"], model["state_cov"] = params.dynamics.weights, np.eye(3), params.dynamics.cov
    model["design"], model["obs_cov"] = params.emissions.weights, params.emissions.cov
    model["state_intercept"], model["obs_intercept"] = params.dynamics.bias[:, None], params.emissions.bias[:, None]
    model.ssm.initialize_known(params.initial.mean, params.initial.cov)
    wanted = model.ssm.smooth()
    given = lgssm_smoother(params, y, per_step_loglik=True)
    close(given.marginal_loglik, wanted.llf_obs, 1e-9)
    close(given.filtered_means, wanted.filtered_state.T, 1e-9)
    close(given.smoothed_means, wanted.smoothed_state.T, 1e-9)
    close(given.smoothed_covariances, wanted.smoothed_state_cov.transpose(2, 0, 1), 1e-9)
    lagged = wanted.smoothed_state_autocov[:, :, :-1].transpose(2, 0, 1)  # Cov(z_{t+1}, z_t)
    means = np.asarray(given.smoothed_means)
    close(given.smoothed_cross_covariances, np.swapaxes(lagged, 1, 2) + np.einsum("ti,tj->tij", means[:-1], means[1:]), 1e-9)


@pytest.mark.parametrize("implementation", ["sequential", "chunked"])
def test_a_batch_is_its_sequences(implementation):
    params = random_params(9, 2, 2)
    full = np.stack([simulate(params, 17, s) for s in range(3)])
    for y in (full, np.stack([with_gaps(x, s) for s, x in enumerate(full)])):
        batch = jax.tree.map(np.asarray, lgssm_smoother(params, y, implementation=implementation))
        assert batch.smoothed_covariances.shape == (3, 17, 2, 2)
        for b in range(3):
            assert_moments(jax.tree.map(lambda x, b=b: x[b], batch), textbook(params, y[b]), "float64")
        close(lgssm_marginal_loglik(params, y), batch.marginal_loglik, 1e-12)


def test_batched_parameters_and_inputs():
    B, T = 3, 7
    each = [random_params(20 + b, 2, 2) for b in range(B)]
    u = np.random.default_rng(0).normal(size=(B, T, 1))
    weights = np.array([[0.5], [-1.0]])
    each = [
        p._replace(dynamics=p.dynamics._replace(input_weights=weights), emissions=p.emissions._replace(input_weights=weights))
        for p in each
    ]
    y = np.stack([simulate(p, T, b, u[b]) for b, p in enumerate(each)])

    def stacked(part, name, leading):
        x = np.stack([getattr(getattr(p, part), name) for p in each])
        return x.reshape(B, *leading, *x.shape[1:])

    params = each[0]._replace(
        initial=each[0].initial._replace(mean=stacked("initial", "mean", ()), cov=stacked("initial", "cov", ())),
        dynamics=each[0].dynamics._replace(weights=stacked("dynamics", "weights", (1,))),
    )
    params = params._replace(dynamics=params.dynamics._replace(cov=np.repeat(stacked("dynamics", "cov", (1,)), T, 1)))
    params = params._replace(
        dynamics=params.dynamics._replace(bias=each[0].dynamics.bias),
        emissions=each[0].emissions._replace(cov=stacked("emissions", "cov", (1,))),
    )
    posterior = jax.tree.map(np.asarray, lgssm_smoother(params, y, u, implementation="chunked"))
    for b, p in enumerate(each):
        alone = p._replace(
            dynamics=p.dynamics._replace(bias=each[0].dynamics.bias),
            emissions=each[0].emissions._replace(cov=p.emissions.cov),
        )
        assert_moments(jax.tree.map(lambda x, b=b: x[b], posterior), textbook(alone, y[b], u[b]), "float64")


def test_the_covariance_recursion_runs_once_for_a_batch():
    """With nothing missing, a covariance inside the compiled loop has one sequence lane, not B."""
    params = random_params(9, 3, 2, "float32")
    B = 37
    text = (
        jax.jit(lambda y: lgssm_smoother(params, y, implementation="sequential"))
        .lower(np.zeros((B, 50, 2), np.float32))
        .as_text()
    )
    plain, gaps = (text.count(f"@_downdate{k}") for k in ("", "_"))
    assert plain + gaps > 0
    shapes = {line.split("tensor<")[1].split(">")[0] for line in text.splitlines() if "func.func private @_downdate" in line}
    assert any(s.startswith("3x3x1x1x") for s in shapes), shapes  # the branch with nothing missing
    assert any(s.startswith(f"3x3x1x{B}x") for s in shapes), shapes  # the branch with gaps


def test_pad_sequences():
    params = random_params(10, 2, 2)
    ys = [simulate(params, T, T) for T in (5, 9, 1)]
    padded, lengths = pad_sequences(ys)
    assert padded.shape == (3, 9, 2)
    assert list(lengths) == [5, 9, 1]
    posterior = jax.tree.map(np.asarray, lgssm_smoother(params, padded, implementation="chunked"))
    for b, y in enumerate(ys):
        n = len(y)
        cut = jax.tree.map(
            lambda x, b=b, n=n: x[b, : n - 1] if x[b].shape[0] == 8 else x[b, :n],
            posterior._replace(marginal_loglik=np.zeros((3, 9))),
        )
        reference = textbook(params, y)
        assert_moments(cut._replace(marginal_loglik=posterior.marginal_loglik[b]), reference, "float64")
    assert pad_sequences(ys, 12)[0].shape == (3, 12, 2)
    for wrong, message in (
        ([], "sequences"),
        ([ys[0], ys[1][:, :1]], "sequences"),
        ([ys[0], ys[1].astype("float16")], "sequences: float16 given"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            pad_sequences(wrong)
    with pytest.raises(ValueError, match="length: 3 given, wanted at least the longest"):
        pad_sequences(ys, 3)


def test_samples_condition_on_what_is_there():
    """With every observation missing, posterior samples are prior ones: their moments are the forecast's."""
    params = random_params(11, 2, 1)
    y = np.full((3, 1), np.nan)
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.vmap(lambda k: lgssm_posterior_sample(k, params, y, implementation="sequential"))(keys)
    reference = textbook(params, y)
    np.testing.assert_allclose(draws.mean(0), reference.smoothed_means, atol=0.05)
    assert fastscan.lgssm_marginal_loglik(params, y) == 0
