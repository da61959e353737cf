"""The article as a benchmark, at small sizes: every way walks in the same density, and what is written is there."""

import csv

import jax
import numpy as np
import pytest

from fastscan.profiling.demos.metropolis import demo as metropolis
from fastscan.profiling.demos.metropolis.demo import CHAINS, run_metropolis
from fastscan.profiling.demos.metropolis.rivals import density, mixture, rivals
from oracles.mcmc import mixture_cdf


def test_the_density_is_the_mixture():
    x = np.linspace(-15, 20, 4_001, dtype="float32")
    np.testing.assert_allclose(np.exp(mixture(x[None])), density(x), rtol=1e-4)
    np.testing.assert_allclose(np.cumsum(density(x)) * (x[1] - x[0]) + mixture_cdf(x[0]), mixture_cdf(x), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", rivals())
def test_rivals_walk_in_it(name):
    """From 0 on, as far as 200 steps of 0.1 take them: by the same law, so by the same spread."""
    with jax.enable_x64(False):
        last = rivals()[name](2_000, 200)(jax.random.key(0))
    if name == "TFP on JAX":
        assert last.shape == (200, 2_000)
        last = last[-1]
    x = np.ravel(jax.tree.leaves(last)[0])
    assert x.shape == (2_000,)
    assert abs(x.mean()) < 0.15
    assert 0.9 < x.std() < 1.3


def test_small_runs_come_first_and_none_that_would_take_too_long(monkeypatch):
    """Each way ends in each grid by what it took there; what is in both runs once."""
    words, steps = [], {}
    monkeypatch.setattr(metropolis, "MOST_SECONDS", 50)

    def timed(name, way, chains, samples):
        steps.setdefault(name, []).append(chains * samples)
        return metropolis.SamplerTiming(name, chains, samples, 1.0, way * chains * samples)

    monkeypatch.setattr(metropolis, "_timed", timed)
    grids = [(10, 1), (10, 10), (10, 100)], [(1, 10), (10, 10), (1_000, 10)]
    found = metropolis._compare({"fast": 1e-3, "slow": 1.0}, grids, words.append)
    assert steps == {"fast": [10, 10, 100, 1_000, 10_000], "slow": [10, 10]}
    assert len(words) == 2 * 5
    assert words[0] == "fast, 1 samples of 10 chains"
    in_order = [(t.chains, t.samples) for t in found if t.way == "fast"]
    assert in_order == [(10, 1), (10, 10), (10, 100), (1, 10), (1_000, 10)]


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    with jax.enable_x64(False):
        run_metropolis(tmp_path, more_samples=(10, 20), more_chains=(10, 20), many_steps=50)
    text = capsys.readouterr().out
    assert f"{50 * CHAINS:,} steps of {CHAINS:,} chains" in text
    for name in ("metropolis.png", "metropolis_density.png"):
        assert (tmp_path / name).stat().st_size > 15_000
    rows = list(csv.DictReader((tmp_path / "metropolis.csv").read_text().splitlines()))
    timings = [row for row in rows if row["way"]]
    assert {row["way"] for row in timings} == {"fastscan", *rivals()}
    assert all(float(row["seconds"]) > 0 and row["commit"] for row in timings)
    article, adapted = (row for row in rows if not row["way"])
    assert float(adapted["rhat"]) < 1.02 < float(article["rhat"])
