"""The demonstration of switching systems at small sizes, and its gradients at the notebook's."""

import csv

import jax
import numpy as np
import pytest

from fastscan.profiling.demos.slds.costs import gradient_costs, notebook_problem, speeds
from fastscan.profiling.demos.slds.demo import load_economy, run_slds
from fastscan.slds import slds_inference


def test_the_problem_is_a_density():
    """Its prior has an integral of one: without potentials of the states, the bound is zero."""
    node, params, first = notebook_problem(6)
    nothing = jax.tree.map(np.zeros_like, node)
    same = [jax.tree.map(lambda x: np.repeat(x[:1], len(x), 0), part) for part in (params.pair, params.log_scale)]
    alike = params._replace(pair=same[0], log_scale=same[1])
    np.testing.assert_allclose(slds_inference(nothing, alike, initial_probs=first).objective, 0, atol=1e-10)


def test_the_economy_is_statsmodels():
    dates, y = load_economy()
    assert (dates[0], dates[-1], y.shape) == (1959.25, 2009.5, (202, 2))
    np.testing.assert_allclose(y[0], [400 * np.log(2778.801 / 2710.349), 2.34], rtol=1e-6)


@pytest.mark.slow
def test_gradients_of_the_notebook_problem():
    found = gradient_costs((10, 200))
    few, many = found.costs["implicit"]
    assert many.bytes < 1.1 * few.bytes
    assert found.apart[1] < 1e-5


@pytest.mark.slow
def test_a_long_series_by_two_ways():
    found = speeds(60, 200)
    assert found["inference"].apart < 1e-9
    assert found["loss and gradient"].apart < 1e-5


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    run_slds(tmp_path, turns=(2, 4), length=60, steps=3)
    text = capsys.readouterr().out
    assert "not converged after 4 turns" in text
    assert "unrolled" in text
    for name in ("slds_gradients.png", "slds_economy.png"):
        assert (tmp_path / name).stat().st_size > 20_000
    rows = list(csv.DictReader((tmp_path / "slds.csv").read_text().splitlines()))
    assert [row["what"] for row in rows[::2]] == ["implicit gradient", "unrolled gradient", "inference"]
    assert all(float(row["seconds"]) > 0 and row["commit"] and row["jax"] for row in rows)
