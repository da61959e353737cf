"""Switching linear dynamical systems at work: implicit gradients at the sizes of a notebook, and the American economy's
regimes.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fastscan.lds import InitialPotential, NodePotential
from fastscan.profiling.demos.figures import BLUE, INK, VERMILION
from fastscan.profiling.demos.slds.costs import (
    GRADIENTS,
    LONG,
    LONG_TURNS,
    TURNS,
    D,
    Dynamics,
    GradientCosts,
    K,
    N,
    Speed,
    T,
    conditional,
    gradient_costs,
    notebook_problem,
    speeds,
)
from fastscan.profiling.measure.machine import stamp
from fastscan.profiling.measure.progress import counted
from fastscan.slds import SLDSParams, SLDSPosterior, slds_inference

TOLERANCE = 1e-10
"""The relative change of the objective that ends the turns."""
REGIMES = 2
"""Calm and volatile: what a fit begins with has as many."""
STEPS, SETTLING = 400, 200
"""The steps of gradient ascent; turns at most after it."""


class Regimes(NamedTuple):
    """The regimes of a series: smoothed means and standard deviations (T, m), probabilities of the regimes (T - 1, `REGIMES`).

    And whether the turns that found them had converged.
    """

    mean: np.ndarray
    deviation: np.ndarray
    probs: np.ndarray
    converged: bool


def run_slds(out: Path, turns: tuple[int, ...] = TURNS, length: int = LONG, steps: int = STEPS) -> None:
    """Prints and draws both: ``slds_gradients.png``, ``slds_economy.png`` and ``slds.csv`` in a folder, made if it is missing.

    What is cheap comes first: the notebook's problem, the economy's regimes, and then what gradients and a long series cost.

    Args:
        out: the folder.
        turns: after which gradients are compared.
        length: time steps of the long series.
        steps: steps of the fit to the economy.

    Raises:
        ImportError: statsmodels, which ships the economy's data, is not installed.
    """
    dates, y = load_economy()  # first, so that what is missing is said before minutes have passed
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=110)
    with jax.enable_x64(True):
        with counted(console, 1) as begin:
            begin("mean field of the notebook's problem")
            node, params, first = notebook_problem()
            posterior = slds_inference(node, params, initial_probs=first, max_iters=max(turns), tol=TOLERANCE)
            state = f"{'converged' if posterior.converged else 'not converged'} after {posterior.iterations} turns"
        sizes = f"T = {T}, D = {D}, K = {K}, {N} emissions"
        console.print(f"{sizes}: {state}, to a relative change of {TOLERANCE:g}")
        with counted(console, steps) as begin:
            fitted = fit_economy(y, steps, begin)
        draw_economy(out / "slds_economy.png", dates, y, fitted)
        console.print(f"the economy's regimes: {'converged' if fitted.converged else 'not converged'}")
        console.print(f"figure: {out / 'slds_economy.png'}")
        with counted(console, len(turns)) as begin:
            found = gradient_costs(turns, begin=begin)
        console.print(_table_of_gradients(turns, found))
        trace = slds_inference(node, params, initial_probs=first, max_iters=max(turns), tol=0).trace
        draw_gradients(out / "slds_gradients.png", np.asarray(trace), turns, found)
        console.print(f"figure: {out / 'slds_gradients.png'}")
        with counted(console, 2) as begin:
            both = speeds(length, begin=begin)
        console.print(_table_of_speeds(length, both))
        _write(out / "slds.csv", turns, found, length, both)
    console.print(f"rows: {out / 'slds.csv'}")


def _table_of_gradients(turns: tuple[int, ...], found: GradientCosts) -> Table:
    table = Table("turns", "implicit", "unrolled", "memory, implicit", "memory, unrolled", "relative difference")
    for n, mine, other, apart in zip(turns, *(found.costs[name] for name in GRADIENTS), found.apart, strict=True):
        times = (f"{1e3 * c.seconds:.3g} ms" for c in (mine, other))
        table.add_row(str(n), *times, *(f"{c.bytes / 1e6:.2f} MB" for c in (mine, other)), f"{apart:.1e}")
    return table


def _table_of_speeds(length: int, both: dict[str, Speed]) -> Table:
    table = Table(f"T = {length:,}, {LONG_TURNS} turns", "ours", "the other way", "times faster", "relative difference")
    others = {"inference": "lax.scan over time", "loss and gradient": "unrolled"}
    for what, x in both.items():
        ways = f"{1e3 * x.ours:.3g} ms", f"{1e3 * x.other:.3g} ms ({others[what]})"
        table.add_row(what, *ways, f"{x.other / x.ours:.1f}", f"{x.apart:.1e}")
    return table


def _write(path: Path, turns: tuple[int, ...], found: GradientCosts, length: int, both: dict[str, Speed]) -> None:
    """Writes all figures, and what they were measured on."""
    rows: list[dict[str, Any]] = []
    for name in GRADIENTS:
        for n, cost, apart in zip(turns, found.costs[name], found.apart, strict=True):
            rows.append({"what": f"{name} gradient", "T": T, "turns": n, **cost._asdict(), "apart": apart})
    for what, x in both.items():
        rows.append({"what": what, "T": length, "turns": LONG_TURNS, "seconds": x.ours, "other": x.other, "apart": x.apart})
    about = stamp()
    fields = dict.fromkeys(field for row in rows for field in row) | about
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(row | about for row in rows)


def load_economy() -> tuple[np.ndarray, np.ndarray]:
    """Quarters, and growth of the American gross domestic product and inflation in per cent a year (T, 2), 1959 to 2009.

    Raises:
        ImportError: statsmodels, which ships the data, is not installed.
    """
    try:
        from statsmodels.datasets import macrodata
    except ImportError as error:
        raise ImportError('The series is statsmodels\' "macrodata": pip install statsmodels.') from error
    data: Any = macrodata.load_pandas().data
    growth = 400 * np.diff(np.log(data["realgdp"]))
    dates = data["year"].to_numpy()[1:] + (data["quarter"].to_numpy()[1:] - 1) / 4
    return dates, np.column_stack([growth, data["infl"].to_numpy()[1:]])


def fit_economy(y: np.ndarray, steps: int = STEPS, begin: Callable[[str], None] = lambda _: None) -> Regimes:
    """Finds two regimes of a series (T, m), a calm and a volatile one to begin with.

    All parameters by gradient ascent of the bound, which needs no gradient of q.

    Args:
        y: the series.
        steps: steps of the gradient ascent.
        begin: called with words as each of these begins.
    """
    scale = y.std(0)
    z, n = (y - y.mean(0)) / scale, y.shape[1]

    def parts(free: tuple[Dynamics, jax.Array, jax.Array]) -> tuple[NodePotential, SLDSParams, jax.Array]:
        dynamics, stay, log_noise = free
        pair, log_scale = conditional(dynamics)
        p = jax.nn.sigmoid(stay)
        transition = jnp.log(jnp.array([[p[0], 1 - p[0]], [1 - p[1], p[1]]]))
        precision = jnp.exp(-log_noise)
        node = NodePotential(z * precision, jnp.broadcast_to(jnp.diag(precision), (len(z), n, n)))
        constant = -0.5 * ((z**2 * precision).sum() + len(z) * (log_noise.sum() + n * jnp.log(2 * jnp.pi)))
        init = InitialPotential(jnp.zeros(n), jnp.eye(n))
        first = jnp.full(REGIMES, -np.log(REGIMES))
        return node, SLDSParams(first, transition, init, pair, log_scale, -n / 2 * np.log(2 * np.pi)), constant

    def infer(free: Any, first: jax.Array, turns: int = 20) -> tuple[jax.Array, SLDSPosterior]:
        node, params, constant = parts(free)
        posterior = slds_inference(node, params, initial_probs=first, max_iters=turns, tol=1e-6, gradient="none")
        return posterior.objective + constant, posterior

    volatile = np.abs(np.diff(z, axis=0)).sum(1) > np.median(np.abs(np.diff(z, axis=0)).sum(1))
    probs = jnp.asarray(np.where(volatile[:, None], [0.2, 0.8], [0.8, 0.2]))
    dynamics = Dynamics(
        0.5 * jnp.stack([jnp.eye(n)] * REGIMES), jnp.zeros((REGIMES, n)), jnp.log(jnp.array([[0.1] * n, [0.8] * n]))
    )
    free = dynamics, jnp.full(REGIMES, 3.0), jnp.log(jnp.full(n, 0.1))
    optimizer = optax.adam(0.02)

    @jax.jit
    def step(free: Any, state: Any, probs: jax.Array) -> tuple[Any, Any, jax.Array, jax.Array]:
        (bound, posterior), gradient = jax.value_and_grad(infer, has_aux=True)(free, probs)
        updates, state = optimizer.update(jax.tree.map(jnp.negative, gradient), state)
        return optax.apply_updates(free, updates), state, posterior.probs, bound

    state, said = optimizer.init(free), ""
    # Without JAX's weak types, with which the step would be compiled more than once.
    free, state, probs = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), (free, state, probs))
    for _ in range(steps):
        begin(f"the economy's regimes, gradient ascent{said}")
        free, state, probs, bound = step(free, state, probs)
        said = f": bound {bound:.2f}"
    found = infer(free, probs, SETTLING)[1]
    x, xx, _ = found.statistics
    deviation = jnp.sqrt(jax.vmap(jnp.diag)(xx) - x**2)
    return Regimes(
        np.asarray(x * scale + y.mean(0)), np.asarray(deviation * scale), np.asarray(found.probs), bool(found.converged)
    )


def draw_gradients(path: Path, trace: np.ndarray, turns: tuple[int, ...], found: GradientCosts) -> None:
    """Draws how the objective rises, and what gradients cost over the number of turns."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    rise, seconds, memory = figure.subplots(1, 3)
    rise.semilogy(np.arange(1, len(trace)), np.maximum(trace[-1] - trace[:-1], 1e-12), color=INK)
    _label(rise, "Objective, below its last value", "turns", "nats")
    for name, color, marker in (("implicit", BLUE, "o"), ("unrolled", VERMILION, "s")):
        costs = found.costs[name]
        seconds.plot(turns, [1e3 * c.seconds for c in costs], color=color, marker=marker, label=name)
        memory.plot(turns, [c.bytes / 1e6 for c in costs], color=color, marker=marker, label=name)
    for axes, title, unit in ((seconds, "Inference and gradient", "ms"), (memory, "Memory", "MB")):
        axes.set_ylim(0)
        _label(axes, title, "turns", unit)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def draw_economy(path: Path, dates: np.ndarray, y: np.ndarray, found: Regimes) -> None:
    """Draws both series, smoothed with two standard deviations, and the probability of the volatile regime under them."""
    changes = np.abs(np.diff(y[:, 0]))
    volatile = int(np.argmax(changes @ found.probs / found.probs.sum(0)))
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
    for i, title in enumerate(("Growth of real GDP (% a year)", "Inflation (% a year)")):
        mean, twice = found.mean[:, i], 2 * found.deviation[:, i]
        panels[i].plot(dates, y[:, i], ".", color=INK, markersize=3)
        panels[i].plot(dates, mean, color=BLUE)
        panels[i].fill_between(dates, mean - twice, mean + twice, color=BLUE, alpha=0.2, linewidth=0)
        panels[i].set_title(title, loc="left", fontsize=10)
    panels[2].fill_between(dates[1:], found.probs[:, volatile], color=VERMILION, step="pre", linewidth=0)
    panels[2].set_ylim(0, 1)
    panels[2].set_title("Probability of the volatile regime", loc="left", fontsize=10)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    panels[2].set_xlim(dates[0], dates[-1])
    panels[2].set_xlabel("year")
    figure.savefig(path, dpi=120)


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
