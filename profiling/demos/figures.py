"""Figures of the demonstration: the CO2 record smoothed, earthquakes decoded, and times per call."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fastscan import PosteriorGSSMSmoothed
from fastscan.profiling.demos.models import LEVEL, SEASONAL

# Okabe & Ito's colours, which the colour-blind tell apart.
BLUE, _ORANGE, _GREEN, VERMILION, _SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
INK, _DOT, _GAP = "#333333", "#7A7A7A", "#E0E0E0"
_STYLES: dict[str, dict[str, Any]] = {
    "fastscan (default)": {"color": INK, "marker": "o", "linewidth": 5, "markersize": 9, "alpha": 0.25},
    "fastscan sequential": {"color": BLUE, "marker": "s"},
    "fastscan chunked": {"color": _GREEN, "marker": "o"},
    "fastscan associative": {"color": _SKY, "marker": "D"},
    "dynamax lgssm_smoother": {"color": VERMILION, "marker": "^", "linestyle": "--"},
}
_STATES = (_SKY, _ORANGE, VERMILION, _GREEN, BLUE)
_YEAR = np.timedelta64(365, "D")


def draw_co2(path: pathlib.Path, dates: np.ndarray, emissions: np.ndarray, posterior: PosteriorGSSMSmoothed) -> Figure:
    """Draws the CO2 record with its smoothed level, its yearly cycle, and what the smoother says where weeks are missing.

    The level's deviation is invisible at the record's scale, so the signal's has an axis of its own.

    Args:
        path: a PNG to write.
        dates: (T,) datetime64[D].
        emissions: (T, 1) in ppm; NaN is missing.
        posterior: of `fastscan.profiling.demos.models.co2_params`, given the emissions.

    Returns:
        The figure that was written.
    """
    gaps = missing_runs(np.isnan(emissions[:, 0]))
    figure = Figure(figsize=(10, 9), layout=ConstrainedLayoutEngine(hspace=0.06, wspace=0.04))
    axes = figure.subplot_mosaic([["record", "record"], ["doubt", "doubt"], ["cycle", "gap"]], height_ratios=[1.25, 0.3, 1])

    record, doubt = axes["record"], axes["doubt"]
    _shade(record, dates, gaps)
    record.plot(dates, _smoothed(posterior, LEVEL)[0], color=BLUE, linewidth=1.6, label="smoothed level", zorder=4)
    _draw_data(record, dates, emissions, 4)
    _title(record, "Weekly CO\N{SUBSCRIPT TWO} at Mauna Loa and its smoothed level", "CO\N{SUBSCRIPT TWO} (ppm)")
    record.legend(loc="lower right", frameon=False, fontsize=9, markerscale=2)

    _shade(doubt, dates, gaps)
    doubt.plot(dates, 2 * _smoothed(posterior, LEVEL + SEASONAL)[1], color=VERMILION, linewidth=1.2)
    _title(doubt, "Two standard deviations of the smoothed signal, level and cycle: more where weeks are missing", "2σ (ppm)")
    doubt.set_ylim(0)
    for axis in (record, doubt):
        axis.set_xlim(dates[0] - _YEAR // 2, dates[-1] + _YEAR // 2)

    cycle, shown = axes["cycle"], dates >= dates[-1] - 4 * _YEAR
    _draw_band(cycle, dates, posterior, SEASONAL, _GREEN, "yearly cycle", shown)
    cycle.axhline(0, color=INK, linewidth=0.6, zorder=0)
    _title(cycle, "The yearly cycle, last four years", "deviation from the level (ppm)")

    gap = axes["gap"]
    start, stop = max(gaps, key=lambda run: run[1] - run[0], default=(0, 0))
    shown = np.zeros(len(dates), bool)
    shown[max(start - 26, 0) : stop + 26] = True
    _shade(gap, dates, [run for run in gaps if shown[run[0]]])
    _draw_band(gap, dates, posterior, LEVEL + SEASONAL, VERMILION, "signal", shown)
    _draw_data(gap, dates[shown], emissions[shown], 12)
    _title(gap, f"Across the longest gap, {stop - start} weeks", "CO\N{SUBSCRIPT TWO} (ppm)")

    for axis in (cycle, gap):
        axis.margins(x=0.02)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, frameon=False, fontsize=9)
    for axis in axes.values():
        locator = AutoDateLocator(minticks=4, maxticks=10)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    figure.savefig(path, dpi=150)
    return figure


def draw_earthquakes(
    path: pathlib.Path,
    years: np.ndarray,
    counts: np.ndarray,
    rates: np.ndarray,
    states: np.ndarray,
    smoothed_probs: np.ndarray,
) -> Figure:
    """Draws counts a year, the most likely path of states with their rates, and every state's probability given all counts.

    Args:
        path: a PNG to write.
        years: (T,), one after another.
        counts: (T,), a year.
        rates: (K,), expected counts a year, K at most 5.
        states: (T,), integers from 0 to K - 1.
        smoothed_probs: (T, K).

    Returns:
        The figure that was written.
    """
    colors = np.array(_STATES[: len(rates)])
    edges = np.append(years, years[-1] + 1) - 0.5
    figure = Figure(figsize=(10, 7), layout=ConstrainedLayoutEngine(hspace=0.06))
    data, strip, probabilities = figure.subplots(3, sharex=True, height_ratios=[10, 0.6, 5])

    bars = data.bar(years, counts, width=0.8, color=_DOT, alpha=0.45)
    line = data.stairs(rates[states], edges, baseline=None, color=INK, linewidth=1.8)
    data.set_ylim(0, 1.18 * counts.max())
    _title(data, "Major earthquakes in the world, magnitude 7 or greater", "earthquakes a year")
    labels = ["counted", "rate of the most likely state"]
    data.legend([bars, line], labels, loc="upper right", ncols=2, frameon=False, fontsize=9)

    strip.bar(years, 1, width=1, color=colors[states])
    strip.set(ylim=(0, 1), yticks=[])
    strip.set_ylabel("most likely\nstate", rotation=0, ha="right", va="center", fontsize=9)
    strip.tick_params(bottom=False)
    strip.spines[:].set_visible(False)

    below = np.zeros(len(years))
    for rate, color, probs in zip(rates, colors, np.asarray(smoothed_probs, float).T, strict=True):
        probabilities.stairs(below + probs, edges, baseline=below, fill=True, color=color, label=f"{rate:.1f} a year")
        below = below + probs
    probabilities.set(ylim=(0, 1), xlim=(edges[0], edges[-1]), xlabel="year")
    _title(probabilities, "Probability of every state, given all counts", "probability")
    figure.legend(*probabilities.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.align_ylabels([data, probabilities])
    figure.savefig(path, dpi=150)
    return figure


def draw_speedup(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> Figure:
    """Draws the time per call of the tracking model's smoothers against the length of the series.

    Args:
        path: a PNG to write.
        rows: dicts with ``implementation``, a name of the legend, ``T``, steps, and ``seconds``, ``p20`` and ``p80``, None
            where unknown.

    Returns:
        The figure that was written.
    """
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axis = figure.subplots()
    for name, style in _STYLES.items():
        mine = sorted((r["T"], r["seconds"], r["p20"], r["p80"]) for r in rows if r["implementation"] == name and r["seconds"])
        if mine:
            T, *times = zip(*mine, strict=True)
            median, low, high = 1e3 * np.array(times)
            axis.plot(T, median, label=name, **{"linewidth": 1.8, "markersize": 6} | style)
            if name != "fastscan (default)":  # which is one of the others
                axis.vlines(T, low, high, color=style["color"], linewidth=3, alpha=0.4)
    axis.set(xscale="log", yscale="log", xlabel="length of the series, T (time steps)")
    _title(axis, "Smoothing a tracked target (D = 4, m = 2, float32)", "compiled call (ms): median, bars from p20 to p80")
    axis.grid(which="major", color="#E5E5E5", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.legend(loc="best", frameon=False)
    figure.savefig(path, dpi=150)
    return figure


def missing_runs(missing: np.ndarray) -> list[tuple[int, int]]:
    """Finds the half-open ranges [start, stop) where ``missing`` (T,) is true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], missing.astype(int), [0]))))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _draw_band(
    axis: Axes,
    dates: np.ndarray,
    posterior: PosteriorGSSMSmoothed,
    direction: np.ndarray,
    color: str,
    label: str,
    shown: np.ndarray | slice = slice(None),
) -> None:
    """Draws the smoothed ``direction @ state`` with two of its own standard deviations, which hold no measurement's noise."""
    mean, sigma = (x[shown] for x in _smoothed(posterior, direction))
    label_of_band = f"± 2σ of the {label}"
    axis.fill_between(
        dates[shown], mean - 2 * sigma, mean + 2 * sigma, color=color, alpha=0.25, linewidth=0, label=label_of_band
    )
    axis.plot(dates[shown], mean, color=color, linewidth=1.6, label=f"smoothed {label}", zorder=4)


def _smoothed(posterior: PosteriorGSSMSmoothed, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean and the standard deviation of the smoothed ``direction @ state``, (T,) each."""
    mean = np.asarray(posterior.smoothed_means, float) @ direction
    return mean, np.sqrt(np.asarray(posterior.smoothed_covariances, float) @ direction @ direction)


def _draw_data(axis: Axes, dates: np.ndarray, emissions: np.ndarray, size: float) -> None:
    axis.scatter(dates, emissions[:, 0], s=size, color=_DOT, linewidths=0, label="weekly average", zorder=3)


def _shade(axis: Axes, dates: np.ndarray, runs: Sequence[tuple[int, int]]) -> None:
    """Gaps, each from half a week before its first missing week to half a week after its last."""
    half = np.timedelta64(84, "h")
    for number, (start, stop) in enumerate(runs):
        label = "missing" if number == 0 else None
        axis.axvspan(dates[start] - half, dates[stop - 1] + half, color=_GAP, linewidth=0.6, zorder=0, label=label)


def _title(axis: Axes, title: str, unit: str) -> None:
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axis.set_ylabel(unit)
    axis.spines[["top", "right"]].set_visible(False)
