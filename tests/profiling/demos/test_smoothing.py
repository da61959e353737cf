"""The demo's model against statsmodels, and that the demo does its work at small sizes."""

import csv

import jax
import numpy as np
import pytest
import statsmodels.api as sm

from fastscan import lgssm_marginal_loglik, lgssm_smoother
from fastscan.profiling.demos import fit_co2 as fit
from fastscan.profiling.demos import models
from fastscan.profiling.demos import smoothing as demo
from oracles.lgssm import close


def test_the_co2_record_is_statsmodels():
    dates, y = models.load_co2()
    wanted = sm.datasets.co2.load_pandas().data
    np.testing.assert_array_equal(y[:, 0], wanted["co2"].to_numpy())
    np.testing.assert_array_equal(dates, wanted.index.to_numpy().astype("datetime64[D]"))
    assert (len(y), np.isnan(y).sum()) == (2284, 59)


def test_the_co2_model_against_statsmodels():
    """Log-likelihood and smoothed states of the weekly record with its gaps, D = 6."""
    params = models.co2_params("float64")
    _, y = models.load_co2()
    model = sm.tsa.statespace.MLEModel(y, k_states=6, k_posdef=6)
    model["transition"], model["selection"] = np.asarray(params.dynamics.weights), np.eye(6)
    model["state_cov"], model["obs_cov"] = np.asarray(params.dynamics.cov), np.asarray(params.emissions.cov)
    model["design"] = np.asarray(params.emissions.weights)
    model.ssm.initialize_known(np.asarray(params.initial.mean), np.asarray(params.initial.cov))
    wanted = model.ssm.smooth()
    posterior = lgssm_smoother(params, y, per_step_loglik=True)
    close(posterior.marginal_loglik, wanted.llf_obs, 1e-9)
    close(posterior.smoothed_means, wanted.smoothed_state.T, 1e-9)
    close(posterior.smoothed_covariances, wanted.smoothed_state_cov.transpose(2, 0, 1), 1e-8)
    single = lgssm_smoother(models.co2_params("float32"), y.astype("float32"))
    close(single.smoothed_means, wanted.smoothed_state.T, 1e-5)
    close(single.marginal_loglik, wanted.llf, 1e-4)


@pytest.mark.slow
def test_the_committed_variances_are_the_fit():
    variances, loglik = fit.fit_co2_variances()
    np.testing.assert_allclose(variances, models.CO2_VARIANCES, rtol=2e-3)
    params, y = models.co2_params("float64"), models.load_co2()[1]
    close(lgssm_marginal_loglik(params, y, implementation="sequential"), loglik, 1e-6)


@pytest.mark.slow
def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "load_co2", lambda: tuple(x[:104] for x in models.load_co2()))
    monkeypatch.setattr(demo, "LONGEST_ASSOCIATIVE", 1)
    with jax.enable_x64(False):
        demo.run_demo(tmp_path, (1, 9))
    text = capsys.readouterr().out
    assert "log-likelihood" in text
    assert "implementation:" in text
    for name in ("co2.png", "earthquakes.png", "tracking.png"):
        assert (tmp_path / name).stat().st_size > 20_000
    rows = list(csv.DictReader((tmp_path / "tracking.csv").read_text().splitlines()))
    assert {int(r["T"]) for r in rows} == {1, 9}
    assert [r["T"] for r in rows if "not run past T = 1" in r["note"]] == ["9"]
    measured = [r for r in rows if "not run" not in r["note"]]
    assert all(float(r["seconds"]) > 0 for r in measured)
    assert {r["implementation"] for r in measured if r["T"] == "1"} > {"fastscan associative", "fastscan chunked"}
