"""The demo's model against statsmodels, and that every command does its work at small sizes."""

import csv
import json

import jax
import numpy as np
import pytest
import statsmodels.api as sm

from fastscan import dispatch, lgssm_marginal_loglik, lgssm_smoother
from fastscan.profiling import bench, crossover, demo, fit, models
from fastscan.profiling.timing import in_subprocess, medians
from oracle import close


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
    monkeypatch.setattr(demo, "dynamax_parallel_seconds", lambda *_: None)  # as when it hangs, which it may
    monkeypatch.setattr(demo, "load_co2", lambda: tuple(x[:104] for x in models.load_co2()))
    monkeypatch.setattr(demo, "LONGEST_ASSOCIATIVE", 2)
    with jax.enable_x64(False):
        demo.run_demo(tmp_path, (2, 9))
    text = capsys.readouterr().out
    assert "log-likelihood" in text
    assert "implementation:" in text
    for name in ("co2.png", "earthquakes.png", "tracking.png"):
        assert (tmp_path / name).stat().st_size > 20_000
    rows = list(csv.DictReader((tmp_path / "tracking.csv").read_text().splitlines()))
    assert {int(r["T"]) for r in rows} == {2, 9}
    assert [r["T"] for r in rows if "not run past T = 2" in r["note"]] == ["9"]
    measured = [r for r in rows if "parallel" not in r["implementation"] and "not run" not in r["note"]]
    assert all(float(r["seconds"]) > 0 for r in measured)
    assert {r["implementation"] for r in measured if r["T"] == "2"} > {"fastscan associative", "fastscan chunked"}


def test_crossover_measures_and_writes(tmp_path, monkeypatch):
    def one_case(family):
        yield crossover.Case(family, 1, 1 if family == "lgssm" else 0, 12, 2, (3,))

    monkeypatch.setattr(crossover, "cases", one_case)
    path = tmp_path / "table.json"
    with jax.enable_x64(False):
        table = crossover.write(path, ["lgssm", "hmm_sample"])
    assert json.loads(path.read_text()) == table
    families = table["devices"]["cpu"]["families"]
    assert families.keys() == {"lgssm", "hmm_sample"}
    for record in families.values():
        (case,) = record["cases"]
        assert case["chunks"] in (1, 3)
        assert case["gain"] >= 1
    path.write_text(json.dumps({"devices": {"abacus": table["devices"]["cpu"]}}))
    monkeypatch.setattr(crossover, "measure", lambda _: case)
    assert crossover.write(path, ["hmm"])["devices"].keys() == {"abacus", "cpu"}


def test_the_grids_are_small_enough():
    for family in dispatch.FAMILIES:
        cases = list(crossover.cases(family))
        assert {case.family for case in cases} == {family}
        assert len(cases) <= 60
        if family != "lgssm":
            assert all(case.D**2 * case.T * case.B <= crossover.HMM_WORK for case in cases)


def test_bench_writes_what_it_measures(tmp_path, monkeypatch, capsys):
    rows = [
        bench.Row("work", "yardstick", 0.5, 1.0, 2.0, "1x", "3x"),
        bench.Row("memory", "bytes", None, None, None, "4x", "2x"),
    ]
    monkeypatch.setattr(bench, "GROUPS", {"lgssm": (lambda: iter(rows),)})
    assert bench.run_bench(tmp_path, ["lgssm"]) == rows
    written = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    assert written[0]["value"] == "2"
    assert json.loads((tmp_path / "bench.json").read_text()).keys() >= {"machine", "versions", "commit", "date", "command"}
    assert "2.00x" in capsys.readouterr().out


def test_clocks():
    fast, slow = medians([jax.jit(lambda x: x), jax.jit(lambda x: jax.numpy.linalg.inv(x))], np.eye(300), repeats=5)
    assert 0 < fast < slow
    assert in_subprocess("print('first'); print(1.5, 2)", 60) == [1.5, 2.0]
    assert in_subprocess("import time; time.sleep(60)", 0.5) is None
    with pytest.raises(RuntimeError, match="NameError"):
        in_subprocess("nonsense", 60)
