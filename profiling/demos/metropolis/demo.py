"""Rémi Louf's article on vectorised Markov chains as a benchmark: more and more samples, more and more chains."""

import csv
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.diagnostics import effective_sample_size, potential_scale_reduction
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fastscan.mcmc import MetropolisRun, rw_metropolis
from fastscan.profiling.demos.figures import BLUE, INK, VERMILION
from fastscan.profiling.demos.metropolis.rivals import STEP, Rival, density, mixture, rivals
from fastscan.profiling.measure.machine import stamp
from fastscan.profiling.measure.progress import counted
from fastscan.profiling.measure.timing import in_subprocess

OURS = "fastscan"
CHAINS, SAMPLES = 1_000, 1_000
"""The number that stays the same while the other grows."""
MORE_SAMPLES = (10, 100, 1_000, 10_000, 100_000)
MORE_CHAINS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
MANY_STEPS = 1_000_000
"""The steps of `CHAINS` chains: the article's headline is of a thousand million in all."""
MOST_SECONDS, MOST_KEPT = 30.0, 10**8
"""Nothing runs that would take longer, by what it took before; nor do those that keep them keep more samples."""
REPEATED_SECONDS = 2.0
_COLORS = {OURS: BLUE, "lax.scan": VERMILION, "NumPy": INK, "JAX, step by step": "#E69F00", "TFP on JAX": "#009E73",
           "blackjax": "#56B4E9"}  # fmt: skip


class SamplerTiming(NamedTuple):
    """Seconds of a first call, which compiles, and of a later one."""

    way: str
    chains: int
    samples: int
    first: float
    seconds: float


class Quality(NamedTuple):
    """The quality of all chains' samples: the largest ratio of scales, independent samples they are worth, and these a
    second.
    """

    step: float
    rhat: float
    effective: float
    effective_per_second: float


def ours(chains: int, samples: int) -> Callable[[jax.Array], Any]:
    """Runs ours, with running moments of every chain."""
    start = jnp.zeros((1, chains), "float32")
    return lambda key: rw_metropolis(key, mixture, start, samples, step_size=STEP, keep="moments")


def run_metropolis(
    out: Path,
    more_samples: tuple[int, ...] = MORE_SAMPLES,
    more_chains: tuple[int, ...] = MORE_CHAINS,
    many_steps: int = MANY_STEPS,
) -> None:
    """Prints and draws all: ``metropolis.png``, ``metropolis_density.png``, ``metropolis.csv`` in a folder, made if missing.

    What is cheap comes first: a histogram of samples and how good they are, then times of small runs and of larger ones.

    Args:
        out: the folder.
        more_samples: of `CHAINS` chains, growing.
        more_chains: with `SAMPLES` samples each, growing.
        many_steps: of `CHAINS` chains, ours alone.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    samples, qualities = _diagnose(console)
    draw_density(out / "metropolis_density.png", samples)
    console.print(f"figure: {out / 'metropolis_density.png'}")
    ways: dict[str, Rival] = {OURS: ours, **rivals()}
    grids = [(CHAINS, n) for n in more_samples], [(n, SAMPLES) for n in more_chains]
    with counted(console, len({*grids[0], *grids[1]}) * len(ways)) as begin:
        found = _compare(ways, grids, begin)
    console.print(_table(found, ways))
    draw_timings(out / "metropolis.png", found, more_samples, more_chains)
    console.print(f"figure: {out / 'metropolis.png'}")
    steps = CHAINS * many_steps
    with counted(console, 2) as begin:
        begin(f"{steps:,} steps")
        headline = _timed(OURS, ours, CHAINS, many_steps)
        begin(f"{steps:,} steps in a process of its own, for its memory")
        peak = _peak(many_steps)
    console.print(
        f"{steps:,} steps of {CHAINS:,} chains, with moments: {headline.seconds:.2f} s, "
        f"{steps / headline.seconds / 1e6:.0f} million a second; a process that does nothing else holds {peak:.2f} GB"
    )
    _write(out / "metropolis.csv", [*found, headline], qualities)
    console.print(f"rows: {out / 'metropolis.csv'}")


def _compare(
    ways: dict[str, Rival], grids: Sequence[list[tuple[int, int]]], begin: Callable[[str], None]
) -> list[SamplerTiming]:
    """Times all ways, small runs first, each way in each grid as far as it takes no longer than it may.

    Args:
        ways: by name.
        grids: chains and samples, growing; in the order of what is returned.
        begin: called with words as each of the ways, or its omission, begins at each of the sizes.
    """
    sizes = list(dict.fromkeys(size for grid in grids for size in grid))
    last: dict[tuple[str, int], SamplerTiming] = {}
    found = []
    for chains, samples in sorted(sizes, key=math.prod):
        mine = [number for number, grid in enumerate(grids) if (chains, samples) in grid]
        for name, way in ways.items():
            begin(f"{name}, {samples:,} samples of {chains:,} chains")
            if before := last.get((name, mine[0])):
                slow = chains * samples / (before.chains * before.samples) * before.seconds > MOST_SECONDS
                if slow or (name == "TFP on JAX" and chains * samples > MOST_KEPT):
                    continue
            found.append(_timed(name, way, chains, samples))
            last.update({(name, number): found[-1] for number in mine})
    return sorted(found, key=lambda timing: sizes.index((timing.chains, timing.samples)))


def _timed(name: str, way: Rival, chains: int, samples: int) -> SamplerTiming:
    run, times = way(chains, samples), []
    for number in range(10):
        start = time.perf_counter()
        jax.block_until_ready(run(jax.random.key(number)))
        times.append(time.perf_counter() - start)
        if number and sum(times[1:]) > REPEATED_SECONDS:
            break
    return SamplerTiming(name, chains, samples, times[0], statistics.median(times[1:]))


def _peak(samples: int) -> float:
    """Measures the GB of memory of a process that imports what it takes and runs `CHAINS` chains once; NaN but on Linux.

    From Linux's own account of the program: ``getrusage`` also counts what the process that started it held.
    """
    code = (
        "import jax\nfrom pathlib import Path\nfrom fastscan.profiling.demos.metropolis import demo as m\n"
        f"jax.block_until_ready(m.ours({CHAINS}, {samples})(jax.random.key(0)))\n"
        "status = Path('/proc/self/status')\n"
        "lines = status.read_text().splitlines() if status.exists() else []\n"
        "print(*(line.split()[1] for line in lines if line.startswith('VmHWM')), 'nan')"
    )
    kilobytes, *_ = in_subprocess(code, timeout=600) or [float("nan")]
    return kilobytes / 2**20


def _diagnose(console: Console) -> tuple[np.ndarray, list[Quality]]:
    """Judges the article's step and one that a warm-up finds; returns also the samples of the second (samples, chains)."""
    table = Table(
        "step", "acceptance", "R-hat", "effective samples", "of them a second", title=f"{CHAINS:,} chains of {SAMPLES:,}"
    )
    qualities = []
    for warmup in (0, SAMPLES):

        def run(key: int, warmup: int = warmup) -> MetropolisRun:
            start = jnp.zeros((1, CHAINS), "float32")
            return jax.block_until_ready(
                rw_metropolis(jax.random.key(key), mixture, start, SAMPLES, step_size=STEP, warmup=warmup)
            )

        run(0)
        start = time.perf_counter()
        found = run(1)
        seconds = time.perf_counter() - start
        by_chain = found.samples[:, 0].T
        effective = float(effective_sample_size(by_chain))
        quality = Quality(
            STEP * float(found.state.scale), float(potential_scale_reduction(by_chain)), effective, effective / seconds
        )
        rate = float(found.acceptance_rate.mean())
        row = (
            f"{quality.step:.2f}",
            f"{rate:.2f}",
            f"{quality.rhat:.3f}",
            f"{effective:,.0f}",
            f"{quality.effective_per_second:,.0f}",
        )
        table.add_row(*row)
        qualities.append(quality)
    console.print(table)
    return np.asarray(found.samples[:, 0]), qualities


def _table(found: list[SamplerTiming], ways: dict[str, Rival]) -> Table:
    """Makes a table of warm seconds of all, and how many times ours they are."""
    table = Table("chains", "samples", *ways, title="seconds of a compiled call, and over ours")
    cells = {(t.chains, t.samples, t.way): t.seconds for t in found}
    for chains, samples in dict.fromkeys((t.chains, t.samples) for t in found):
        mine = cells.get((chains, samples, OURS))
        times = [cells.get((chains, samples, way)) for way in ways]
        ratios = ["" if t is None or t == mine or mine is None else f" ({t / mine:.1f})" for t in times]
        texts = ["-" if t is None else f"{t:.3g}{ratio}" for t, ratio in zip(times, ratios, strict=True)]
        table.add_row(f"{chains:,}", f"{samples:,}", *texts)
    return table


def _write(path: Path, timings: list[SamplerTiming], qualities: list[Quality]) -> None:
    """Writes all figures, and what they were measured on."""
    about = stamp()
    rows = [row._asdict() | about for row in (*timings, *qualities)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*SamplerTiming._fields, *Quality._fields, *about])
        writer.writeheader()
        writer.writerows(rows)


def draw_timings(path: Path, found: list[SamplerTiming], more_samples: tuple[int, ...], more_chains: tuple[int, ...]) -> None:
    """Draws the article's two figures: seconds over samples and over chains, compiled and, dotted, with compiling."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, grid, title, label in (
        (panels[0], [(CHAINS, n) for n in more_samples], f"{CHAINS:,} chains", "samples of each"),
        (panels[1], [(n, SAMPLES) for n in more_chains], f"{SAMPLES:,} samples of each chain", "chains"),
    ):
        for way, color in _COLORS.items():
            by_size = {(t.chains, t.samples): t for t in found if t.way == way}
            points = [by_size[size] for size in grid if size in by_size]
            x = [t.samples if label != "chains" else t.chains for t in points]
            axes.loglog(x, [t.seconds for t in points], color=color, marker="o", markersize=4, label=way)
            axes.loglog(x, [t.first for t in points], color=color, linestyle=":", linewidth=1)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("seconds (dotted: first call, which compiles)")
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def draw_density(path: Path, samples: np.ndarray) -> None:
    """Draws a histogram of all samples over the true density."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    x = np.linspace(-14, 20, 500, dtype="float32")
    axes.hist(samples.ravel(), bins=200, range=(x[0], x[-1]), density=True, color=BLUE, alpha=0.4, label="samples")
    axes.plot(x, density(x), color=INK, label="density")
    axes.set_title("The article's mixture of four normal distributions", loc="left", fontsize=10)
    axes.set_xlabel("x")
    axes.set_ylabel("density")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_ylim(0)
    figure.savefig(path, dpi=120)
