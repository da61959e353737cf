"""The demonstration: half a lifetime of CO2, a century of earthquakes, and a target at growing lengths, beside dynamax."""

import csv
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from fastscan import ParamsLGSSM, lgssm_smoother
from fastscan.dispatch import choice as dispatch
from fastscan.profiling.demos.earthquakes import PUBLISHED_LOGLIKS, decode, fit_stationary_poisson_hmm, load_earthquakes
from fastscan.profiling.demos.figures import draw_co2, draw_earthquakes, draw_speedup, missing_runs
from fastscan.profiling.demos.models import co2_params, load_co2, simulate, tracking_params
from fastscan.profiling.measure.progress import counted
from fastscan.profiling.measure.timing import clock

LONGEST_ASSOCIATIVE = 100
"""Time steps; past these the associative implementation compiles for longer than a demonstration should take."""

_DYNAMAX = "dynamax lgssm_smoother"
_HOW_TO_COMPARE = "speed-ups over dynamax: pip install dynamax==1.0.3, and run this again"


class Timing(NamedTuple):
    """One implementation's time at one length.

    Attributes:
        implementation: a name.
        T: time steps.
        seconds: of a call, the median; None where it was not measured, as ``p20`` and ``p80``, its percentiles.
        note: why it was not measured, or what was chosen.
    """

    implementation: str
    T: int
    seconds: float | None
    p20: float | None
    p80: float | None
    note: str = ""


def run_demo(out: pathlib.Path, lengths: Sequence[int] = (100, 1000, 10_000, 100_000)) -> None:
    """Smooths the CO2 record, fits and decodes earthquakes, smooths simulated targets, and draws all three.

    Results and figures come first, times after them, of short series first. Times are of compiled, warm calls in float32, taken
    in turns. The earthquakes are fitted in float64, and beside the log-likelihoods stand those of the book that the models are
    from.

    Args:
        out: a folder for ``co2.png``, ``earthquakes.png``, ``tracking.png`` and ``tracking.csv``; made if it is not there.
        lengths: time steps of the simulated series.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    _demonstrate_co2(out, console)
    _demonstrate_earthquakes(out, console)
    _time_co2(console)
    _demonstrate_tracking(out, lengths, console)


def _demonstrate_co2(out: pathlib.Path, console: Console) -> None:
    params = co2_params()
    dates, emissions = load_co2()
    y = emissions.astype("float32")
    T, D = len(y), params.initial.mean.shape[0]
    console.rule("CO2 at Mauna Loa")
    with counted(console, 1) as begin:
        begin("smoothing")
        posterior = lgssm_smoother(params, y)
        draw_co2(out / "co2.png", dates, emissions, posterior)

    choice = dispatch.choose(None, T=T, B=1, D=D, m=y.shape[-1], dtype=y.dtype)
    gaps = missing_runs(np.isnan(y[:, 0]))
    console.print(
        f"{T:,} weeks from {dates[0]} to {dates[-1]}, {np.isnan(y).sum()} of them missing in {len(gaps)} gaps; D = {D}"
    )
    console.print(f"log-likelihood: {posterior.marginal_loglik:.2f}")
    console.print(f"implementation: {choice.implementation} ({choice.reason})")
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
    models = {}
    with counted(console, len(PUBLISHED_LOGLIKS)) as begin:
        for K in PUBLISHED_LOGLIKS:
            begin(f"fitting {K} states")
            models[K] = fit_stationary_poisson_hmm(counts, K)
    for K, model in models.items():
        rates = ", ".join(f"{rate:.3f}" for rate in model.rates)
        table.add_row(str(K), f"{model.logliks[-1]:.3f}", f"{PUBLISHED_LOGLIKS[K]:.3f}", rates)
    console.print(table)

    model = models[max(models)]
    draw_earthquakes(out / "earthquakes.png", years, counts, model.rates, *decode(model, counts))
    console.print(f"figure: {out / 'earthquakes.png'}\n")


def _time_co2(console: Console) -> None:
    """Times the smoothers of the CO2 record: ours with its gaps, dynamax's without."""
    params, y = co2_params(), load_co2()[1].astype("float32")
    console.rule("CO2 at Mauna Loa: how long it takes")
    with counted(console, len(_smoothers()) + 1) as begin:
        timings = _time(params, y, begin, _interpolate(y), "was given the gaps interpolated: it takes no NaN")
    _print_timings(console, timings)


def _demonstrate_tracking(out: pathlib.Path, lengths: Sequence[int], console: Console) -> None:
    params = tracking_params()
    console.rule("A moving target, simulated")
    timings = []
    with counted(console, len(lengths) * (len(_smoothers()) + 1)) as begin:
        for T in sorted(lengths):
            timings += _time(params, simulate(params, T, seed=0), begin)
    _print_timings(console, timings)

    rows = [timing._asdict() for timing in timings]
    draw_speedup(out / "tracking.png", rows)
    with (out / "tracking.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, Timing._fields)
        writer.writeheader()
        writer.writerows(rows)
    console.print(f"figure: {out / 'tracking.png'}\nrows: {out / 'tracking.csv'}")


def _smoothers() -> dict[str, Callable | str]:
    """Lists the smoothers that are compared by name: functions, or in words why there is none."""
    ours: dict[str, Callable | str] = {
        f"fastscan {name or '(default)'}": functools.partial(lgssm_smoother, implementation=name)
        for name in (*dispatch.compiled_implementations(), None)
    }
    theirs: Callable | str
    try:
        from dynamax.linear_gaussian_ssm import lgssm_smoother as theirs
    except ModuleNotFoundError as error:
        theirs = f"was not run: {str(error.name).split('.')[0]} is not installed"
    except Exception as error:  # a package that it needs is too new for it: the demonstration goes on without
        theirs = f"does not work here ({type(error).__name__})"
    return ours | {_DYNAMAX: theirs}


def _time(
    params: ParamsLGSSM, y: np.ndarray, begin: Callable[[str], None], gapless: np.ndarray | None = None, note: str = ""
) -> list[Timing]:
    """Compiles all smoothers, and times them in turns, their arguments on the device.

    Args:
        params: the model.
        y: emissions (T, m).
        begin: called as one of ``len(_smoothers()) + 1`` steps begins.
        gapless: what dynamax is given in place of ``y``, with a note.
        note: that note.
    """
    T, D = len(y), params.initial.mean.shape[0]
    chosen = dispatch.choose(None, T=T, B=1, D=D, m=y.shape[-1], dtype=y.dtype).implementation
    notes = {"fastscan (default)": f"chose {chosen}", _DYNAMAX: note}
    calls: dict[Any, Callable[[], Any]] = {}
    for name, smoother in _smoothers().items():
        begin(f"T = {T:,}, compiling {name}")
        if isinstance(smoother, str):
            notes[name] = smoother
        elif name == "fastscan associative" and T > LONGEST_ASSOCIATIVE:
            notes[name] = f"was not run past T = {LONGEST_ASSOCIATIVE:,}: slow to compile"
        else:
            given = gapless if name == _DYNAMAX and gapless is not None else y
            calls[name] = functools.partial(jax.jit(smoother), *jax.device_put((params, given)))
            jax.block_until_ready(calls[name]())
    begin(f"T = {T:,}, timing {len(calls)} smoothers in turns")
    clocks = clock(calls)
    timings = []
    for name in _smoothers():
        median, p20, p80 = np.percentile(clocks[name].waited, [50, 20, 80]).tolist() if name in calls else (None,) * 3
        timings.append(Timing(name, T, median, p20, p80, notes.get(name, "")))
    return timings


def _print_timings(console: Console, timings: Sequence[Timing]) -> None:
    """Prints a table of the times, and of the speed-up over dynamax's sequential smoother of the same length, if it ran."""
    yardstick = {timing.T: timing.seconds for timing in timings if timing.implementation == _DYNAMAX and timing.seconds}
    over = f", speed-up over {_DYNAMAX}" if yardstick else ""
    table = Table(caption=f"compiled calls in turns: medians, 20th to 80th percentile{over}")
    table.add_column("T", justify="right", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("p20 to p80", justify="right", no_wrap=True)
    if yardstick:
        table.add_column("speed-up", justify="right")
    timed = [timing for timing in timings if timing.seconds is not None]
    for before, timing in zip([None, *timed], timed, strict=False):
        if before is not None and before.T != timing.T:
            table.add_section()
        table.add_row(f"{timing.T:,}", timing.implementation, *_cells(timing, yardstick))
    console.print(table)
    notes: dict[tuple[str, str], list[str]] = {}
    for timing in timings:
        if timing.note:
            notes.setdefault((timing.implementation, timing.note), []).append(f"{timing.T:,}")
    for (implementation, note), lengths in notes.items():
        console.print(f"T = {'; '.join(lengths)}: {implementation} {note}", highlight=False)
    if not yardstick:
        console.print(_HOW_TO_COMPARE)
    console.print()


def _cells(timing: Timing, yardstick: dict[int, float]) -> list[str]:
    median, low, high = (x or 0.0 for x in timing[2:5])
    cells = [f"{1e3 * median:.3g}", f"{1e3 * low:.3g} to {1e3 * high:.3g}"]
    return [*cells, f"{yardstick[timing.T] / median:.2f}"] if yardstick else cells


def _interpolate(emissions: np.ndarray) -> np.ndarray:
    """Fills the gaps of a series (T, 1) by straight lines across them."""
    weeks, missing = np.arange(len(emissions)), np.isnan(emissions[:, 0])
    return np.interp(weeks, weeks[~missing], emissions[~missing, 0])[:, None]
