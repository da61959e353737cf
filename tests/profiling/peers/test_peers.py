"""What others make of the same work: their results are ours, or the comparison means nothing."""

import functools

import jax
import numpy as np
import pytest

from fastscan import affine_scan, hmm_posterior_mode, hmm_smoother, lgssm_smoother
from fastscan.profiling.measure.machine import describe
from fastscan.profiling.measure.rows import write_record
from fastscan.profiling.peers import adopted, large, loops, moseq, nonlinear, packages, scans
from fastscan.profiling.report.peer_tables import (
    adopted_first,
    adopted_table,
    large_table,
    moseq_table,
    nonlinear_table,
    scans_table,
)
from oracles.lgssm import assert_moments, close, textbook


@pytest.fixture(autouse=True)
def in_float32():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("varying", [False, True])
def test_smoothers(varying):
    params, y = large.model(3, 2, 30, varying=varying)
    wanted, ours = textbook(params, y), lgssm_smoother(params, y)
    assert_moments(ours, wanted, "float32")
    calls = packages.smoothers(params, y)
    found = calls["statsmodels"]()
    close(found.smoothed_state.T, wanted.smoothed_means, 1e-5)
    close(found.smoothed_state_cov.transpose(2, 0, 1), wanted.smoothed_covariances, 1e-5)
    close(calls["dynamax"]().smoothed_means, wanted.smoothed_means, 1e-4)


@pytest.mark.parametrize("varying", [False, True])
def test_the_loop(varying):
    """Without Numba, which need not be installed: as it stands."""
    params, y = large.model(3, 2, 30, varying=varying)
    wanted = textbook(params, y)
    F, Q = (x if varying else x[None] for x in params.dynamics[::3])
    H, R = params.emissions[::3]
    loglik, *moments = loops._smooth(F, Q, H, R, *params.initial, y)
    close(loglik - 0.5 * y.size * np.log(2 * np.pi), wanted.loglik.sum(), 1e-5)
    for given, one in zip(moments, wanted[1:], strict=True):
        close(given, one, 1e-4)


def test_states():
    model = large.states(3, 40)
    calls = packages.hidden_markov("posterior_mode", *model)
    np.testing.assert_array_equal(calls["hmmlearn"]()[1], hmm_posterior_mode(*model))
    np.testing.assert_array_equal(calls["dynamax"](), hmm_posterior_mode(*model))
    probs = packages.hidden_markov("smoother", *model)["hmmlearn"]()
    close(probs / probs.sum(1, keepdims=True), hmm_smoother(*model).smoothed_probs, 1e-5)
    assert packages.hidden_markov("posterior_sample", *model)["hmmlearn"] is None


def test_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(large, "memory", lambda: {"a function": 1_234_567})
    works = (
        functools.partial(large.smoothing, 9, 2, 80),
        functools.partial(large.smoothing, 2, 1, 20, varying=True),
        functools.partial(large.learning, 2, 1, 20),
        functools.partial(large.decoding, "posterior_sample", 3, 20),
    )
    assert large_table(tmp_path) == "Not measured yet."
    rows = large.run_large(tmp_path, works=works)
    names = [work for work, who, _ in rows if who == large.OURS]
    others = [{who for work, who, _ in rows if work == name} - {"Numba", large.OURS} for name in names]
    assert others == [{"statsmodels", "dynamax", large.PLAIN}, {"statsmodels", "dynamax"}, {"dynamax"}, {"dynamax"}]
    assert all(seconds > 0 for *_, seconds in rows)
    lines = large_table(tmp_path).splitlines()
    ours, best = (float(lines[6].split("|")[column]) for column in (2, 4))
    theirs = 1e3 * next(seconds for work, who, seconds in rows if (work, who) == (names[2], "dynamax"))
    assert abs(best - theirs / ours) < 0.06 + 0.02 * best  # both are rounded
    assert lines[-1].endswith("1.2 MB.")
    assert {work for work, *_ in large.run_large(tmp_path / "some", "gradient", works)} == {names[2]}
    assert "dynamax" in capsys.readouterr().out


def test_memory():
    """No function keeps a covariance for every step."""
    D, T = 20, 5_000
    assert all(size < T * D * D * 4 for size in large.memory(D, T).values())


def test_a_record_of_adoption(tmp_path):
    assert adopted_table(tmp_path) == "Not measured yet."
    (one,) = adopted.run_adopted(tmp_path, "hmm_filter, K=5, T=100")
    assert min(one[1:]) > 0
    assert f"| {one.name} | " in adopted_table(tmp_path)


def test_a_record_of_jax_moseq_s_steps(tmp_path, monkeypatch):
    """By a function in the place of jax-moseq's, which is not installed."""
    assert moseq_table(tmp_path) == "Not measured yet."
    own, shared = moseq.recordings(3, 2, 4, 2, 6)
    assert all(len(x) == 2 for x in own.values())
    assert own["zs"].shape == (2, 5)
    assert shared["A"].shape == (4, 3, 3)
    A, log_likelihoods, mask = moseq.states_of(4, 2, 6)
    np.testing.assert_allclose(A.sum(1), 1, rtol=1e-6)
    call = "some work", moseq.SERIAL, lambda: (lambda A, ll: ll @ A, (A, log_likelihoods * mask[..., None]))
    monkeypatch.setattr(moseq, "calls", lambda: [call, ("other work", moseq.SERIAL, None)])
    (one,) = moseq.run_moseq(tmp_path, "some")
    assert min(one.compiled, one.seconds) > 0
    assert f"| some work | {moseq.SERIAL} | " in moseq_table(tmp_path)


def test_calls_that_a_newcomer_sees_first(tmp_path):
    assert adopted_first(tmp_path) == []
    row = adopted.Timed("GaussianHMM.fit_em, K=5", 3.0, 2.0, 1.0, 0.25)
    write_record(tmp_path / "2001-adopted.csv", describe("some command"), adopted.Timed._fields, [row])
    (line,) = adopted_first(tmp_path)
    assert line.endswith(" | 250 ms | 1 s | 4 |")


def test_a_record_of_scans(tmp_path, monkeypatch):
    assert scans_table(tmp_path) == "Not measured yet."
    monkeypatch.setattr(scans, "AFFINE", (("dense", 40, 2), ("diagonal", 40, 3)))
    monkeypatch.setattr(scans, "NETWORK_STEPS", 40)
    monkeypatch.setattr(scans, "SEQUENCES", 3)
    monkeypatch.setattr(scans, "PIECES", 4)
    monkeypatch.setattr(scans, "PIECE_STEPS", 40)
    found = scans.run_scans(tmp_path)
    assert [x.iterations > 1 for x in found] == [False] * 28 + [True, False]
    assert all(f"| {x.work} | {x.who} | " in scans_table(tmp_path) for x in found)
    A, b = np.random.default_rng(0).normal(size=(2, 9, 3)).astype("float32")
    for function in scans.WHO.values():
        np.testing.assert_allclose(function(A, b), affine_scan(A, b), rtol=1e-5)


def test_a_record_of_nonlinear_models(tmp_path):
    assert nonlinear_table(tmp_path) == "Not measured yet."
    found = nonlinear.run_nonlinear_peers(tmp_path, "outside of jax.jit")
    assert [x.who for x in found] == ["extended_kalman_smoother", "lgssm_smoother"]
    assert all(f"| {x.work} | {x.who} | " in nonlinear_table(tmp_path) for x in found)
