"""The demo's hidden Markov model against its book: Zucchini, MacDonald & Langrock (2016), chapters 3 and 4."""

import importlib.resources

import jax
import numpy as np
import pytest

from fastscan.profiling.demos import earthquakes

RATES = {2: (15.472, 26.125), 3: (13.146, 19.721, 29.714)}


def test_the_record_is_the_book_s():
    years, counts = earthquakes.load_earthquakes()
    np.testing.assert_array_equal(years, np.arange(1900, 2007))
    assert (len(counts), counts.sum(), counts.min(), counts.max()) == (107, 2072, 6, 41)
    text = importlib.resources.files("fastscan.profiling.demos").joinpath("data/earthquakes.csv").read_text()
    assert text.startswith("#")
    assert "Zucchini" in text.split("year,count")[0]


@pytest.mark.parametrize(("K", "published"), [(2, -341.879), (3, -328.527)])
def test_expectation_maximisation_climbs_to_the_published_model(K, published):
    _, counts = earthquakes.load_earthquakes()
    model = earthquakes.fit_poisson_hmm(counts, K)
    assert model.logliks.shape == (301,)
    assert np.diff(model.logliks).min() > -1e-10
    np.testing.assert_allclose(model.logliks[-1], published, rtol=0, atol=1e-3)
    np.testing.assert_allclose(model.initial, np.eye(K)[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.A.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("K", [2, 3])
def test_the_stationary_model_is_the_published_one(K):
    _, counts = earthquakes.load_earthquakes()
    with jax.enable_x64(False):
        model = earthquakes.fit_stationary_poisson_hmm(counts, K)
    np.testing.assert_allclose(model.logliks[-1], earthquakes.PUBLISHED_LOGLIKS[K], rtol=0, atol=5e-4)
    np.testing.assert_allclose(model.rates, RATES[K], rtol=0, atol=1e-3)
    np.testing.assert_allclose(model.initial @ model.A, model.initial, rtol=1e-12)
    assert np.diff(model.logliks).min() > -1e-10

    decoded = earthquakes.decode(model, counts)
    np.testing.assert_allclose(decoded.smoothed_probs.sum(1), 1, rtol=1e-12)
    assert (decoded.states == decoded.smoothed_probs.argmax(1)).mean() > 0.9
    with jax.enable_x64(False):
        single = earthquakes.decode(model, counts)
    np.testing.assert_array_equal(single.states, decoded.states)
    np.testing.assert_allclose(single.smoothed_probs, decoded.smoothed_probs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("counts", "K"), [([4, 4, 4], 2), ([0, 0, 3], 2), ([1, 2], 0)])
def test_counts_that_give_no_start_are_refused(counts, K):
    with pytest.raises(ValueError, match="wanted K different ones"):
        earthquakes.fit_poisson_hmm(np.array(counts), K)
