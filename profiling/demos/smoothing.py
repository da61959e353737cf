"""The demonstration: half a lifetime of CO2, a century of earthquakes, and a target at growing lengths, beside dynamax."""

import csv
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from fastscan import ParamsLGSSM, lgssm_smoother
from fastscan.dispatch import choice as dispatch
from fastscan.profiling.demos.earthquakes import PUBLISHED_LOGLIKS, decode, fit_stationary_poisson_hmm, load_earthquakes
from fastscan.profiling.demos.figures import draw_co2, draw_earthquakes, draw_speedup, missing_runs
from fastscan.profiling.demos.models import co2_params, load_co2, simulate, tracking_params
from fastscan.profiling.measure.timing import median_seconds

LONGEST_ASSOCIATIVE = 100
"""Time steps; past these the associative implementation compiles for longer than a demonstration should take."""

_DYNAMAX = "dynamax lgssm_smoother"


class Timing(NamedTuple):
    """One implementation's time at one length; ``seconds`` is None where it was not measured, and ``note`` says why."""

    implementation: str
    T: int
    seconds: float | None
    note: str = ""


def run_demo(out: pathlib.Path, lengths: Sequence[int] = (100, 1000, 10_000, 100_000)) -> None:
    """Smooths the CO2 record, fits and decodes earthquakes, smooths simulated targets, and draws all three.

    Prints what ran and how long it took: all times are medians of compiled, warm calls in float32. The earthquakes are fitted
    in float64, and beside the log-likelihoods stand those of the book that the models are from.

    Args:
        out: a folder for ``co2.png``, ``earthquakes.png``, ``tracking.png`` and ``tracking.csv``; made if it is not there.
        lengths: time steps of the simulated series.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    _demonstrate_co2(out, console)
    _demonstrate_earthquakes(out, console)
    _demonstrate_tracking(out, lengths, console)


def _demonstrate_co2(out: pathlib.Path, console: Console) -> None:
    params = co2_params()
    dates, emissions = load_co2()
    y = emissions.astype("float32")
    T, D = len(y), params.initial.mean.shape[0]
    posterior = lgssm_smoother(params, y)
    draw_co2(out / "co2.png", dates, emissions, posterior)

    choice = dispatch.choose(None, T=T, B=1, D=D, m=y.shape[-1], dtype=y.dtype)
    gaps = missing_runs(np.isnan(y[:, 0]))
    console.rule("CO2 at Mauna Loa")
    console.print(
        f"{T:,} weeks from {dates[0]} to {dates[-1]}, {np.isnan(y).sum()} of them missing in {len(gaps)} gaps; D = {D}"
    )
    console.print(f"log-likelihood: {posterior.marginal_loglik:.2f}")
    console.print(f"implementation: {choice.implementation} ({choice.reason})")

    with console.status("timing"):
        timings = [_time_fastscan(name, params, y) for name in (*dispatch.compiled_implementations(), None)]
        gapless = _interpolate(emissions).astype("float32")
        timings.append(_time_dynamax(params, gapless, "given the gaps interpolated: it takes no NaN"))
    _print_timings(console, timings)
    console.print(f"figure: {out / 'co2.png'}\n")


def _demonstrate_earthquakes(out: pathlib.Path, console: Console) -> None:
    years, counts = load_earthquakes()
    console.rule("Major earthquakes, by a hidden Markov model")
    console.print(f"{counts.sum():,} of magnitude 7 or greater in the world, {years[0]} to {years[-1]}")
    table = Table(caption="stationary models; published: Zucchini et al. (2016), chapter 3")
    table.add_column("states", justify="right")
    table.add_column("log-likelihood", justify="right")
    table.add_column("published", justify="right")
    table.add_column("earthquakes a year, by state")
    with console.status("fitting"):
        models = {K: fit_stationary_poisson_hmm(counts, K) for K in PUBLISHED_LOGLIKS}
    for K, model in models.items():
        rates = ", ".join(f"{rate:.3f}" for rate in model.rates)
        table.add_row(str(K), f"{model.logliks[-1]:.3f}", f"{PUBLISHED_LOGLIKS[K]:.3f}", rates)
    console.print(table)

    model = models[max(models)]
    draw_earthquakes(out / "earthquakes.png", years, counts, model.rates, *decode(model, counts))
    console.print(f"figure: {out / 'earthquakes.png'}\n")


def _demonstrate_tracking(out: pathlib.Path, lengths: Sequence[int], console: Console) -> None:
    params = tracking_params()
    console.rule("A moving target, simulated")
    timings = []
    for T in lengths:
        with console.status(f"timing T = {T:,}"):
            y = simulate(params, T, seed=0)
            timings += [_time_fastscan(name, params, y) for name in (*dispatch.compiled_implementations(), None)]
            timings.append(_time_dynamax(params, y))
    _print_timings(console, timings)

    rows = [timing._asdict() for timing in timings]
    draw_speedup(out / "tracking.png", rows)
    with (out / "tracking.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, Timing._fields)
        writer.writeheader()
        writer.writerows(rows)
    console.print(f"figure: {out / 'tracking.png'}\nrows: {out / 'tracking.csv'}")


def _time_fastscan(name: str | None, params: ParamsLGSSM, emissions: np.ndarray) -> Timing:
    T, D = len(emissions), params.initial.mean.shape[0]
    if name == "associative" and T > LONGEST_ASSOCIATIVE:
        return Timing("fastscan associative", T, None, f"not run past T = {LONGEST_ASSOCIATIVE:,}: slow to compile")
    seconds = _median(functools.partial(lgssm_smoother, implementation=name), params, emissions)
    if name is None:
        chosen = dispatch.choose(None, T=T, B=1, D=D, m=emissions.shape[-1], dtype=emissions.dtype).implementation
        return Timing("fastscan (default)", T, seconds, f"chose {chosen}")
    return Timing(f"fastscan {name}", T, seconds)


def _time_dynamax(params: ParamsLGSSM, emissions: np.ndarray, note: str = "") -> Timing:
    if importlib.util.find_spec("dynamax") is None:
        return Timing(_DYNAMAX, len(emissions), None, "not installed")
    from dynamax.linear_gaussian_ssm import lgssm_smoother as dynamax_smoother

    return Timing(_DYNAMAX, len(emissions), _median(dynamax_smoother, params, emissions), note)


def _median(smoother: Callable, params: ParamsLGSSM, emissions: np.ndarray) -> float:
    """Seconds of a compiled call whose arguments are on the device already."""
    return median_seconds(jax.jit(smoother), *jax.device_put((params, emissions)))


def _print_timings(console: Console, timings: Sequence[Timing]) -> None:
    """A table of the times, and of the speed-up over dynamax's sequential smoother at the same length."""
    yardstick = {timing.T: timing.seconds for timing in timings if timing.implementation == _DYNAMAX}
    table = Table(caption=f"medians of compiled calls; speed-up over {_DYNAMAX}")
    table.add_column("T", justify="right", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    table.add_column("ms", justify="right")
    table.add_column("speed-up", justify="right")
    table.add_column("note")
    for before, timing in zip([None, *timings], timings, strict=False):
        if before is not None and before.T != timing.T:
            table.add_section()
        table.add_row(f"{timing.T:,}", timing.implementation, *_cells(timing, yardstick[timing.T]), timing.note)
    console.print(table)


def _cells(timing: Timing, yardstick: float | None) -> tuple[str, str]:
    if timing.seconds is None:
        return "-", "-"
    return f"{1e3 * timing.seconds:.3g}", "-" if yardstick is None else f"{yardstick / timing.seconds:.2f}"


def _interpolate(emissions: np.ndarray) -> np.ndarray:
    """(T, 1) without gaps: straight lines across them."""
    weeks, missing = np.arange(len(emissions)), np.isnan(emissions[:, 0])
    return np.interp(weeks, weeks[~missing], emissions[~missing, 0])[:, None]
