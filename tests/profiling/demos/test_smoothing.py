"""The demo's model against statsmodels, and that the demo does its work at small sizes."""

import csv
import io
import sys

import jax
import numpy as np
import pytest
import statsmodels.api as sm
from rich.console import Console

from fastscan import lgssm_marginal_loglik, lgssm_smoother
from fastscan.profiling.demos import fit_co2 as fit
from fastscan.profiling.demos import models
from fastscan.profiling.demos import smoothing as demo
from fastscan.profiling.measure.timing import Clock
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


TIMINGS = [
    demo.Timing("fastscan chunked", 100, 1e-3, 0.9e-3, 1.2e-3),
    demo.Timing("fastscan associative", 100, None, None, None, "was not run"),
    demo.Timing("fastscan chunked", 100_000, 1.0, 0.9, 1.2, "chose sequential"),
    demo.Timing("dynamax lgssm_smoother", 100, 4e-3, 4e-3, 5e-3),
    demo.Timing("dynamax lgssm_smoother", 100_000, 2.5, 2, 3),
]


def printed(timings):
    file = io.StringIO()
    demo._print_timings(Console(file=file, width=80), timings)
    return file.getvalue()


def test_times_are_printed_with_their_spread_in_80_columns():
    text = printed(TIMINGS)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows[0] == ["100", "fastscan chunked", "1", "0.9 to 1.2", "4.00"]
    assert rows[1] == ["100,000", "fastscan chunked", "1e+03", "900 to 1.2e+03", "2.50"]
    assert len(rows) == 4
    assert "T = 100: fastscan associative was not run" in text
    assert "pip install" not in text


def test_without_dynamax_there_is_no_empty_column_but_how_to_fill_it(monkeypatch):
    text = printed(TIMINGS[:3])
    assert "speed-up ┃" in printed(TIMINGS)
    assert "speed-up ┃" not in text
    assert "pip install dynamax==1.0.3" in text
    monkeypatch.setitem(sys.modules, "dynamax", None)
    monkeypatch.delitem(sys.modules, "dynamax.linear_gaussian_ssm", raising=False)
    assert demo._smoothers()["dynamax lgssm_smoother"] == "was not run: dynamax is not installed"


def test_smoothers_are_timed_in_turns(monkeypatch):
    """One after another is compiled, each with words, and then all are on one clock."""
    ran, words = [], []

    def named(name):
        return lambda params, y: ran.append((name, y.shape)) or params

    monkeypatch.setattr(demo, "_smoothers", lambda: {"fastscan chunked": named("ours"), demo._DYNAMAX: "was not run"})
    monkeypatch.setattr(demo, "clock", lambda calls: {name: demo_clock(call) for name, call in calls.items()})

    def demo_clock(call):
        call()
        return Clock([1.0, 2.0, 3.0, 4.0, 5.0], [])

    ours, theirs = demo._time(models.tracking_params(), np.zeros((7, 2), "float32"), words.append)
    assert ran == [("ours", (7, 2))]  # traced once
    assert ours == demo.Timing("fastscan chunked", 7, 3.0, 1.8, 4.2)
    assert theirs == demo.Timing(demo._DYNAMAX, 7, None, None, None, "was not run")
    assert len(words) == len(demo._smoothers()) + 1
    assert "timing 1 smoothers in turns" in words[-1]


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
    assert all(0 < float(r["p20"]) <= float(r["seconds"]) <= float(r["p80"]) for r in measured)
    assert {r["implementation"] for r in measured if r["T"] == "1"} > {"fastscan associative", "fastscan chunked"}
