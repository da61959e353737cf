"""The demo's figures: legends lie on nothing that is drawn, and what is drawn says what it is. No model is fitted here."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from fastscan import PosteriorGSSMSmoothed
from fastscan.profiling.demos import figures, models


@pytest.fixture(scope="module")
def co2(tmp_path_factory):
    """The record with a posterior that is made up: a straight level and a cycle, and more doubt where weeks are missing."""
    dates, y = models.load_co2()
    t = np.arange(len(y))
    means = np.outer(np.linspace(315, 371, len(y)), models.LEVEL) + np.outer(3 * np.sin(2 * np.pi * t / 52.18), np.eye(6)[2])
    covariances = np.eye(6) * (0.01 + 0.05 * np.isnan(y))[:, :, None]
    nothing = (np.zeros(0),) * 3
    posterior = PosteriorGSSMSmoothed(*nothing, means, covariances)
    return figures.draw_co2(tmp_path_factory.mktemp("figures") / "co2.png", dates, y, posterior)


def legends(figure):
    return [legend for axes in figure.axes if (legend := axes.get_legend()) is not None] + figure.legends


def test_no_legend_of_the_co2_record_lies_on_what_it_explains(co2):
    spans = [span.get_window_extent() for axes in co2.axes for span in axes.patches]
    dots = [(axes, dots) for axes in co2.axes for dots in axes.collections if isinstance(dots, PathCollection)]
    points = np.concatenate([axes.transData.transform(d.get_offsets().compressed().reshape(-1, 2)) for axes, d in dots])
    assert len(spans) > 2 * 22
    assert len(points) > 2_000
    assert len(legends(co2)) == 3
    for legend in legends(co2):
        box = legend.get_window_extent()
        assert not [span for span in spans if box.overlaps(span)]
        assert not ((box.min < points) & (points < box.max)).all(1).any()


def test_every_axis_says_what_it_is_and_every_band_whose_it_is(co2):
    assert all(axes.get_ylabel() and axes.get_title(loc="left") for axes in co2.axes)
    bands = [text.get_text() for legend in legends(co2) for text in legend.get_texts() if "σ" in text.get_text()]
    assert bands == ["± 2σ of the yearly cycle", "± 2σ of the signal"]


def test_doubt_about_the_signal_is_seen(co2):
    """On an axis of its own, where it takes more than a tenth of the height, and is larger where weeks are missing."""
    doubt = next(axes for axes in co2.axes if "2σ" in axes.get_ylabel())
    sigma = doubt.lines[0].get_ydata()
    missing = np.isnan(models.load_co2()[1][:, 0])
    assert sigma[missing].min() > sigma[~missing].max()
    assert sigma.min() > 0.1 * doubt.get_ylim()[1]


def test_earthquakes_have_years_below_them(tmp_path):
    years, counts = np.arange(1900, 1910), np.arange(10, 20)
    probs = np.full((10, 2), 0.5)
    figure = figures.draw_earthquakes(tmp_path / "e.png", years, counts, np.array([12.0, 17.0]), np.arange(10) // 5, probs)
    last = figure.axes[-1]
    assert last.get_xlabel() == "year"
    (below,) = figure.legends
    assert [text.get_text() for text in below.get_texts()] == ["12.0 a year", "17.0 a year"]
    assert not below.get_window_extent().overlaps(last.xaxis.get_label().get_window_extent())


def test_times_have_their_spread(tmp_path):
    rows = [
        {"implementation": "fastscan chunked", "T": T, "seconds": 1e-6 * T, "p20": 0.5e-6 * T, "p80": 4e-6 * T}
        for T in (10, 100)
    ]
    rows.append({"implementation": "fastscan associative", "T": 100, "seconds": None, "p20": None, "p80": None})
    (axis,) = figures.draw_speedup(tmp_path / "t.png", rows).axes
    (bars,) = axis.collections
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], [[0.005, 0.04], [0.05, 0.4]])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["fastscan chunked"]
