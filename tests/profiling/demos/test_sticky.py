"""Sticky hidden Markov models: the exact reference beside the textbook, and float32 beside it."""

import numpy as np
import pytest

from fastscan.profiling.demos import sticky
from oracles.hmm import textbook
from oracles.lgssm import close


def test_the_reference_is_the_textbook_s():
    model = sticky.sticky_model(4, 60)
    known, wanted = sticky.exact(model), textbook(*model)
    close(known.filtered, wanted.filtered, 1e-12)
    close(known.smoothed, wanted.smoothed, 1e-12)
    assert np.all(np.diag(model.A) > 1 - 1e-4)


def test_exact_draws_have_the_posterior_s_frequencies():
    model = sticky.sticky_model(3, 30)._replace(A=np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]]))
    model = model._replace(log_likelihoods=model.log_likelihoods / 20)
    known, draws = sticky.exact(model), 4_000
    states = sticky.exact_draws(model, known, draws)
    assert states.shape == (draws, 30)
    pairs = np.mean((states[:, :-1, None] == np.arange(3))[..., None] & (states[:, 1:, None] == np.arange(3))[..., None, :], 0)
    np.testing.assert_allclose(pairs, textbook(*model).pairs, atol=5 * np.sqrt(0.25 / draws))


def test_float32_is_right_where_states_hardly_ever_change(tmp_path, capsys):
    pytest.importorskip("dynamax")
    found = sticky.run_sticky(tmp_path, K=20, T=80, draws=100)
    assert max(found[what][sticky.OURS].max() for what in ("filter", "smoother")) < 1e-5
    assert found["samples"][sticky.OURS].mean() < 3 * found["samples"][sticky.EXACT].mean() + 1e-3
    assert (tmp_path / "sticky.png").stat().st_size > 10_000
    assert "float32" in capsys.readouterr().out
