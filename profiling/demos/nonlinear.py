"""Nonlinear state-space models: a turning target of which two sensors tell the bearing, and the rate of earthquakes.

The sensors stand where Yaghoobi, Corenflos, Hassan & Särkkä (2021, arXiv 2102.00514) have them, in the midst of the paths: the
nearer a target passes, the less is a bearing a linear function of its place. The earthquakes are those of
`fastscan.profiling.demos.earthquakes`, their rate's logarithm a process that returns to its mean.
"""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Ellipse
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from scipy.special import gammaln, logsumexp

from fastscan.nonlinear import (
    ParamsGGSSM,
    ParamsNLGSSM,
    PosteriorIterated,
    extended_kalman_smoother,
    iterated_extended_kalman_smoother,
    iterated_unscented_kalman_smoother,
    poisson_params,
    unscented_kalman_smoother,
)
from fastscan.profiling.demos.earthquakes import PUBLISHED_LOGLIKS, load_earthquakes
from fastscan.profiling.demos.figures import BLUE, INK, VERMILION
from fastscan.profiling.measure.models import BEARING_STD, DT, SENSORS, simulate_targets, turning_params
from fastscan.profiling.measure.progress import counted

ELLIPSE = -2 * math.log(0.05)
"""The square of a deviation in the plane, in standard deviations, that 95% stay below."""

ELLIPSES = 32
"""The number of ellipses in a figure."""

DISTANCE = 1.96
"""The standard deviations around a mean that hold 95%."""

EXTENDED, ITERATED = "extended", "iterated extended"
SMOOTHERS: dict[str, Callable[..., Any]] = {
    EXTENDED: extended_kalman_smoother,
    "unscented": unscented_kalman_smoother,
    ITERATED: iterated_extended_kalman_smoother,
    "iterated unscented": iterated_unscented_kalman_smoother,
}
"""The smoothers that are compared, by name."""

_TOLERANCES = {"ftol": 1e-12, "gtol": 1e-6}
"""Tolerances of L-BFGS: relative, of the log-likelihood, and of its gradient."""


class Track(NamedTuple):
    """Smoothed paths of targets, and how far they are from the true ones.

    Attributes:
        position: (B, T, 2), smoothed means.
        cov: (B, T, 2, 2), their covariances.
        errors: (B,), root mean square distances from the true positions.
        covered: (B,), parts of the true positions that lie within the ellipses that should hold 95%.
        logliks: (B,), the smoother's approximations.
        iterations, converged: (B,) each; None of smoothers that do not iterate.
    """

    position: np.ndarray
    cov: np.ndarray
    errors: np.ndarray
    covered: np.ndarray
    logliks: np.ndarray
    iterations: np.ndarray | None
    converged: np.ndarray | None


class LogRate(NamedTuple):
    """A process that returns to its mean: x_t = mean + persistence (x_{t-1} - mean) + w_t, w_t ~ N(0, variance)."""

    mean: Any
    persistence: Any
    variance: Any


class Sampled(NamedTuple):
    """A log-likelihood by importance sampling.

    Attributes:
        loglik: the estimate.
        error: its standard error.
        effective: how many equally weighted samples the samples are worth.
    """

    loglik: float
    error: float
    effective: float


def run_nonlinear(out: Path, steps: int = 4096, targets: int = 8, draws: int = 20_000) -> None:
    """Tracks simulated targets by four smoothers, fits the rate of earthquakes, prints how these fared, and draws both.

    All of it is in float64, with fixed keys.

    Args:
        out: a folder for ``bearings.png`` and ``earthquake_rate.png``; made if it is not there.
        steps: of every target.
        targets: how many are tracked; one is drawn: of the extended smoother's errors it has the upper median.
        draws: paths of importance sampling.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    with jax.enable_x64(True):
        _demonstrate_bearings(out / "bearings.png", steps, targets, console)
        _demonstrate_rate(out / "earthquake_rate.png", draws, console)


def track(smoother: Callable[..., Any], params: ParamsNLGSSM, states: jax.Array, emissions: jax.Array) -> Track:
    """Smooths bearings (B, T, 2) and compares with the states (B, T, 5) that they are from."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not converged", UserWarning)  # which the table says
        posterior = smoother(params, emissions, inputs=emissions)
    position, cov = np.asarray(posterior.smoothed_means)[..., :2], np.asarray(posterior.smoothed_covariances)[..., :2, :2]
    away = np.asarray(states)[..., :2] - position
    squares = (away * np.linalg.solve(cov, away[..., None])[..., 0]).sum(-1)
    found = None, None
    if isinstance(posterior, PosteriorIterated):
        found = np.asarray(posterior.iterations), np.asarray(posterior.converged)
    errors, covered = np.sqrt((away**2).sum(-1).mean(1)), (squares < ELLIPSE).mean(1)
    return Track(position, cov, errors, covered, np.asarray(posterior.marginal_loglik), *found)


def rate_params(rate: LogRate) -> ParamsGGSSM:
    """Makes the model of counts whose log rate is such a process, in its stationary distribution at first, D = m = 1."""
    mean, persistence, variance = map(jnp.asarray, rate)

    def back(x: jax.Array) -> jax.Array:
        return mean + persistence * (x - mean)

    first = variance / (1 - persistence**2)
    return poisson_params(mean[None], first[None, None], back, variance[None, None], lambda x: x)


def fit_rate(counts: np.ndarray, begin: Callable[[str], None] = lambda _: None) -> tuple[LogRate, PosteriorIterated]:
    """Maximises Laplace's approximation of the log-likelihood of counts (T,), by its implicit gradient and L-BFGS, in float64.

    Args:
        counts: integers from 0.
        begin: called with words as each evaluation of the log-likelihood and its gradient begins.

    Returns:
        The most likely process, and the posterior of its path.

    Raises:
        RuntimeError: the optimiser did not converge, or the smoother did not at what it found.
    """
    y = np.asarray(counts, float)[:, None]

    def unpack(x: jax.Array) -> LogRate:
        return LogRate(x[0], jnp.tanh(x[1]), jnp.exp(x[2]))

    @jax.jit
    @jax.value_and_grad
    def loss(x: jax.Array) -> jax.Array:
        return -iterated_extended_kalman_smoother(rate_params(unpack(x)), y).marginal_loglik

    def evaluate(x: np.ndarray) -> tuple[np.ndarray, ...]:
        begin("log-likelihood and gradient")
        value, gradient = map(np.asarray, loss(x))
        return value, gradient

    with jax.enable_x64(True):
        start = np.array([math.log(y.mean()), math.atanh(0.5), math.log(0.1)])
        found = minimize(evaluate, start, jac=True, method="L-BFGS-B", options=_TOLERANCES)
        if not found.success:
            raise RuntimeError(f"No most likely rate found: {found.message}")
        rate = LogRate(*map(float, unpack(jnp.asarray(found.x))))
        posterior = iterated_extended_kalman_smoother(rate_params(rate), y)
    if not posterior.converged:
        raise RuntimeError("No most likely path of the rate found.")
    return rate, posterior


def sample_loglik(rate: LogRate, counts: np.ndarray, mode: np.ndarray, draws: int, seed: int = 0) -> Sampled:
    """Estimates the log-likelihood of counts (T,) by importance sampling, in NumPy, with dense matrices.

    Paths are drawn from the Gaussian around a mode of the path whose precision is that of the process and of the counts there.

    Args:
        rate: the process.
        counts: integers from 0.
        mode: the most likely path (T,).
        draws: how many paths.
        seed: of NumPy's random numbers.
    """
    T = len(counts)
    steps = np.arange(T)
    first = rate.variance / (1 - rate.persistence**2)
    prior = np.linalg.inv(first * rate.persistence ** np.abs(steps[:, None] - steps))
    root = np.linalg.cholesky(prior + np.diag(np.exp(mode)))
    noise = np.random.default_rng(seed).standard_normal((T, draws))
    paths = mode[:, None] + np.linalg.solve(root.T, noise)
    away = paths - rate.mean
    of_path = np.linalg.slogdet(prior)[1] / 2 - (away * (prior @ away)).sum(0) / 2
    of_counts = (counts[:, None] * paths - np.exp(paths) - gammaln(counts + 1)[:, None]).sum(0)
    of_draw = np.log(np.diagonal(root)).sum() - (noise**2).sum(0) / 2
    logs = of_path + of_counts - of_draw
    loglik = logsumexp(logs) - math.log(draws)
    weights = np.exp(logs - loglik)
    return Sampled(float(loglik), float(weights.std() / math.sqrt(draws)), float(draws / (weights**2).mean()))


def _demonstrate_bearings(path: Path, steps: int, targets: int, console: Console) -> None:
    console.rule("Turning targets, by their bearings")
    console.print(
        f"{targets} simulated, D = 5, T = {steps:,}; steps of {DT} s; noise of {BEARING_STD} rad in every bearing",
        highlight=False,
    )
    params = turning_params()
    states, emissions = simulate_targets(params, steps, targets, jax.random.key(0))
    tracks = {}
    with counted(console, len(SMOOTHERS)) as begin:
        for name, smoother in SMOOTHERS.items():
            begin(f"{name} smoother")
            tracks[name] = track(smoother, params, states, emissions)
    table = Table(
        caption="errors: root mean squares of the position's; covered: the part of positions within ellipses of 95%; "
        "log-likelihoods: every smoother's approximation"
    )
    table.add_column("smoother", no_wrap=True)
    headings = "error", "covered", "log-likelihood", "iterations", "converged", "median error", "covered", "converged"
    for place, heading in enumerate(headings):
        table.add_column(f"{'drawn' if place < 5 else 'all'}:\n{heading}", justify="right", no_wrap=True)
    drawn = int(np.argsort(tracks[EXTENDED].errors)[targets // 2])
    for name, found in tracks.items():
        table.add_row(name, *_cells(found, drawn))
    console.print(table)
    _draw_bearings(path, np.asarray(states[drawn]), tracks, drawn)
    console.print(f"figure: {path}\n")


def _cells(found: Track, drawn: int) -> list[str]:
    one = [f"{found.errors[drawn]:.3f}", f"{found.covered[drawn]:.2f}", f"{found.logliks[drawn]:,.1f}"]
    every = [f"{np.median(found.errors):.3f}", f"{found.covered.mean():.2f}"]
    if found.iterations is None or found.converged is None:
        return [*one, "-", "-", *every, "-"]
    how = [str(found.iterations[drawn]), "yes" if found.converged[drawn] else "no"]
    return [*one, *how, *every, f"{found.converged.sum()} of {len(found.converged)}"]


def _demonstrate_rate(path: Path, draws: int, console: Console) -> None:
    console.rule("Major earthquakes, by a rate that returns to its mean")
    years, counts = load_earthquakes()
    with counted(console) as begin:
        rate, posterior = fit_rate(counts, begin)
        begin(f"importance sampling, {draws:,} paths")
        sampled = sample_loglik(rate, counts, np.asarray(posterior.smoothed_means)[:, 0], draws)
    console.print(
        f"log rate: mean {rate.mean:.4f} ({math.exp(rate.mean):.2f} a year), persistence {rate.persistence:.4f}, "
        f"variance of innovations {rate.variance:.5f}\n"
        f"path found in {posterior.iterations} iterations\n"
        f"log-likelihood: {posterior.marginal_loglik:.4f} by Laplace's approximation\n"
        f"                {sampled.loglik:.4f} by importance sampling, standard error {sampled.error:.4f}; {draws:,} paths are "
        f"worth {sampled.effective:,.0f}",
        highlight=False,
    )
    for K, loglik in PUBLISHED_LOGLIKS.items():
        told = f"of the published hidden Markov model with {K} states, which has {K**2} parameters and not {len(rate)}"
        console.print(f"                {loglik:.3f} {told}", highlight=False)
    _draw_rate(path, years, counts, posterior)
    console.print(f"figure: {path}")


def _draw_bearings(path: Path, states: np.ndarray, tracks: dict[str, Track], drawn: int) -> None:
    """Draws a target (T, 5), and what the extended and the iterated extended smoother make of it."""
    figure = Figure(figsize=(12, 6.5), layout=ConstrainedLayoutEngine(wspace=0.05))
    plane, error = figure.subplots(1, 2, width_ratios=[1.25, 1])
    plane.plot(*states[:, :2].T, color=INK, linewidth=1.2, label="true path", zorder=5)
    plane.plot(*states[0, :2], "o", color=INK, markersize=5, label="its start", zorder=5)
    plane.plot(*SENSORS.T, "^", color=INK, markerfacecolor="white", markersize=9, linestyle="none", label="sensors", zorder=6)
    time = DT * np.arange(len(states))
    for name, color in ((EXTENDED, VERMILION), (ITERATED, BLUE)):
        position = tracks[name].position[drawn]
        plane.plot(*position.T, color=color, linewidth=1.6, label=f"{name} smoother")
        away = np.linalg.norm(position - states[:, :2], axis=-1)
        error.plot(time, away, color=color, linewidth=1.4, label=f"{name} smoother")
    position, cov = tracks[ITERATED].position[drawn], tracks[ITERATED].cov[drawn]
    for t in range(0, len(states), max(len(states) // ELLIPSES, 1)):
        label = None if t else "its ellipses of 95%"
        plane.add_patch(_ellipse(position[t], cov[t], facecolor=BLUE, alpha=0.15, linewidth=0, label=label))
    largest = np.sqrt(ELLIPSE * np.linalg.eigvalsh(cov)[:, -1])
    error.fill_between(time, 0, largest, color=BLUE, alpha=0.15, linewidth=0, label="longer half axis of its ellipse of 95%")
    plane.set(xlabel="x", ylabel="y", aspect="equal", adjustable="datalim")
    error.set(xlabel="time (s)", ylabel="distance from the true position", xlim=(0, max(time[-1], DT)))
    error.set_ylim(0, 1.25 * error.dataLim.y1)  # with room for the legend
    for axis, title in (
        (plane, "A turning target, by its bearings from two sensors"),
        (error, "How far off the smoothers are"),
    ):
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _ellipse(mean: np.ndarray, cov: np.ndarray, **look: Any) -> Ellipse:
    """Makes the ellipse that holds 95% of a Gaussian in the plane."""
    values, vectors = np.linalg.eigh(cov)
    width, height = 2 * np.sqrt(ELLIPSE * values)
    return Ellipse(
        (float(mean[0]), float(mean[1])), width, height, angle=math.degrees(math.atan2(vectors[1, 0], vectors[0, 0])), **look
    )


def _draw_rate(path: Path, years: np.ndarray, counts: np.ndarray, posterior: PosteriorIterated) -> None:
    mean, cov = np.asarray(posterior.smoothed_means)[:, 0], np.asarray(posterior.smoothed_covariances)[:, 0, 0]
    away = DISTANCE * np.sqrt(cov)
    figure = Figure(figsize=(10, 5), layout="constrained")
    axis = figure.subplots()
    axis.bar(years, counts, width=0.8, color="#7A7A7A", alpha=0.45, label="counted")
    axis.fill_between(
        years, np.exp(mean - away), np.exp(mean + away), color=BLUE, alpha=0.25, linewidth=0, label="95% of the rate"
    )
    axis.plot(years, np.exp(mean), color=BLUE, linewidth=1.8, label="smoothed rate")
    axis.set_title(
        "Major earthquakes in the world, magnitude 7 or greater", loc="left", fontsize=11, fontweight="bold", color=INK
    )
    axis.set(xlabel="year", ylabel="earthquakes a year", xlim=(years[0] - 0.5, years[-1] + 0.5), ylim=(0, 1.18 * counts.max()))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper right", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
