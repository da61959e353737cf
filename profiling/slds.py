"""The seed's notebook on implicit gradients, on fastscan; and the American economy's regimes by the same functions.

The problem has the notebook's sizes, T = 100, D = 5, K = 4 and 20 emissions, and is simulated: rotations that take turns.
"""

import functools
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

from fastscan.lds import InitialPotential, NodePotential, PairPotential
from fastscan.profiling.figures import BLUE, INK, VERMILION
from fastscan.profiling.timing import clock
from fastscan.slds import SLDSParams, SLDSPosterior, slds_inference, slds_kl

T, D, K, N = 100, 5, 4, 20
TURNS = (10, 20, 50, 100, 200)
STEPS = 400


class Dynamics(NamedTuple):
    """Under every discrete state, x' = A x + b + w, w ~ N(0, diag(exp(log_q))): A (K, D, D), the others (K, D)."""

    A: Any
    b: Any
    log_q: Any


class Cost(NamedTuple):
    """Of a gradient: seconds, bytes that XLA allocates, and the relative norm of its difference from the other one."""

    seconds: float
    bytes: int
    error: float


class Regimes(NamedTuple):
    """Of a series: smoothed means and standard deviations (T, m), and probabilities of the regimes (T - 1, K)."""

    mean: np.ndarray
    deviation: np.ndarray
    probs: np.ndarray


def conditional(dynamics: Dynamics) -> tuple[PairPotential, jax.Array]:
    """Pair potentials of conditional densities, and the logarithms of their scales."""
    A, b, log_q = dynamics
    P = jnp.exp(-log_q)
    AP = A.mT * P[:, None, :]
    h1, h2 = (AP @ b[..., None])[..., 0], P * b
    J22 = P[..., None] * jnp.eye(P.shape[-1], dtype=P.dtype)
    scale = -0.5 * ((b * h2).sum(-1) + log_q.sum(-1) + P.shape[-1] * np.log(2 * np.pi))
    return PairPotential(h1, AP @ A, AP, J22, h2), scale


def notebook_problem(T: int = T, seed: int = 0) -> tuple[NodePotential, SLDSParams, jax.Array]:
    """What emissions of a simulated series say, the parameters, and first probabilities of the discrete states."""
    r = np.random.default_rng(seed)
    skew = r.standard_normal((K, D, D))
    A = (
        jax.vmap(jax.scipy.linalg.expm)(0.15 * jnp.arange(1, K + 1)[:, None, None] * (skew - skew.transpose(0, 2, 1)) / 2)
        * 0.98
    )
    b, log_q = 0.2 * r.standard_normal((K, D)), np.log(r.uniform(0.02, 0.1, (K, D)))
    pair, scale = conditional(Dynamics(A, jnp.asarray(b), jnp.asarray(log_q)))
    transition = 0.95 * np.eye(K) + 0.05 / K
    H, noise = r.standard_normal((N, D)), r.uniform(0.5, 2, N)
    x, k, said = r.standard_normal(D), 0, []
    for _ in range(T):
        said.append(H.T @ ((H @ x) / noise + r.standard_normal(N) / np.sqrt(noise)))
        k = r.choice(K, p=transition[k] / transition[k].sum())
        x = np.asarray(A[k]) @ x + b[k] + np.exp(log_q[k] / 2) * r.standard_normal(D)
    node = NodePotential(np.array(said), np.broadcast_to(H.T / noise @ H, (T, D, D)))
    init = InitialPotential(np.zeros(D), np.eye(D))
    params = SLDSParams(np.full(K, -np.log(K)), np.log(transition), init, pair, scale, -D / 2 * np.log(2 * np.pi))
    first = r.dirichlet(np.ones(K), T - 1)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), (node, params, first))


def loss(theta: tuple[NodePotential, SLDSParams], first: jax.Array, gradient: Any, turns: int) -> jax.Array:
    """The divergence from the prior and a function of the states, as a structured VAE's loss is."""
    posterior = slds_inference(*theta, initial_probs=first, max_iters=turns, tol=0, gradient=gradient)
    return slds_kl(theta[0], posterior) + jnp.tanh(posterior.statistics.x).sum()


def gradient_costs(turns: tuple[int, ...] = TURNS) -> dict[str, list[Cost]]:
    """Of implicit and unrolled gradients after so many turns; errors are the implicit one's, against the unrolled one."""
    node, params, first = notebook_problem()
    costs: dict[str, list[Cost]] = {"implicit": [], "unrolled": []}
    for n in turns:
        programs, found = {}, {}
        for name in costs:
            grad = jax.jit(jax.grad(functools.partial(loss, first=first, gradient=name, turns=n)))
            programs[name] = grad.lower((node, params)).compile()
            found[name] = jax.block_until_ready(programs[name]((node, params)))
        calls: dict[Any, Callable] = {name: functools.partial(p, (node, params)) for name, p in programs.items()}
        times = clock(calls, repeats=5)
        error = max(jax.tree.leaves(jax.tree.map(_apart, found["implicit"], found["unrolled"])))
        for name, program in programs.items():
            memory = program.memory_analysis().temp_size_in_bytes
            costs[name].append(Cost(float(np.median(times[name].waited)), memory, float(error) if name == "implicit" else 0.0))
    return costs


def run_slds(out: Path) -> None:
    """Prints and draws both: ``slds_gradients.png`` and ``slds_economy.png``, in a folder that is made if it is missing."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=110)
    with jax.enable_x64(True):
        node, params, first = notebook_problem()
        posterior = slds_inference(node, params, initial_probs=first, max_iters=200, tol=1e-5)
        console.print(f"T = {T}, D = {D}, K = {K}, {N} emissions: converged after {int(posterior.iterations)} turns")
        costs = gradient_costs()
        table = Table("turns", "implicit", "unrolled", "memory, implicit", "memory, unrolled", "relative difference")
        for n, mine, other in zip(TURNS, costs["implicit"], costs["unrolled"], strict=True):
            times = (f"{1e3 * c.seconds:.0f} ms" for c in (mine, other))
            table.add_row(str(n), *times, *(f"{c.bytes / 1e6:.2f} MB" for c in (mine, other)), f"{mine.error:.1e}")
        console.print(table)
        trace = slds_inference(node, params, initial_probs=first, max_iters=max(TURNS), tol=0).trace
        draw_gradients(out / "slds_gradients.png", np.asarray(trace), costs)
        dates, y = load_economy()
        fitted = fit_economy(y)
        draw_economy(out / "slds_economy.png", dates, y, fitted)
    console.print(f"figures: {out / 'slds_gradients.png'}, {out / 'slds_economy.png'}")


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


def fit_economy(y: np.ndarray, steps: int = STEPS) -> Regimes:
    """Regimes of a series (T, 2): all parameters by gradient ascent of the bound, which needs no gradient of q."""
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
        return (
            node,
            SLDSParams(jnp.log(jnp.full(2, 0.5)), transition, init, pair, log_scale, -n / 2 * np.log(2 * np.pi)),
            constant,
        )

    def infer(free: Any, first: jax.Array) -> tuple[jax.Array, SLDSPosterior]:
        node, params, constant = parts(free)
        posterior = slds_inference(node, params, initial_probs=first, max_iters=20, tol=1e-6, gradient="none")
        return posterior.objective + constant, posterior

    volatile = np.abs(np.diff(z, axis=0)).sum(1) > np.median(np.abs(np.diff(z, axis=0)).sum(1))
    probs = jnp.asarray(np.where(volatile[:, None], [0.2, 0.8], [0.8, 0.2]))
    dynamics = Dynamics(0.5 * jnp.stack([jnp.eye(n)] * 2), jnp.zeros((2, n)), jnp.log(jnp.array([[0.1] * n, [0.8] * n])))
    free = dynamics, jnp.full(2, 3.0), jnp.log(jnp.full(n, 0.1))
    optimizer = optax.adam(0.02)

    @jax.jit
    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        free, state, probs = carry
        (bound, posterior), gradient = jax.value_and_grad(infer, has_aux=True)(free, probs)
        updates, state = optimizer.update(jax.tree.map(jnp.negative, gradient), state)
        return (optax.apply_updates(free, updates), state, posterior.probs), bound

    (free, _, probs), _ = jax.lax.scan(step, (free, optimizer.init(free), probs), None, steps)
    found = infer(free, probs)[1]
    x, xx, _ = found.statistics
    deviation = jnp.sqrt(jax.vmap(jnp.diag)(xx) - x**2)
    return Regimes(np.asarray(x * scale + y.mean(0)), np.asarray(deviation * scale), np.asarray(found.probs))


def draw_gradients(path: Path, trace: np.ndarray, costs: dict[str, list[Cost]]) -> None:
    """How the objective rises, and what gradients cost over the number of turns."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    rise, seconds, memory = figure.subplots(1, 3)
    rise.semilogy(np.arange(1, len(trace)), np.maximum(trace[-1] - trace[:-1], 1e-12), color=INK)
    _label(rise, "Objective, below its last value", "turns", "nats")
    for name, color, marker in (("implicit", BLUE, "o"), ("unrolled", VERMILION, "s")):
        seconds.plot(TURNS, [1e3 * c.seconds for c in costs[name]], color=color, marker=marker, label=name)
        memory.plot(TURNS, [c.bytes / 1e6 for c in costs[name]], color=color, marker=marker, label=name)
    for axes, title, unit in ((seconds, "Inference and gradient", "ms"), (memory, "Memory", "MB")):
        axes.set_ylim(0)
        _label(axes, title, "turns", unit)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def draw_economy(path: Path, dates: np.ndarray, y: np.ndarray, found: Regimes) -> None:
    """Both series, smoothed with two standard deviations, and the probability of the volatile regime under them."""
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
    figure.savefig(path, dpi=120)


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(got: jax.Array, wanted: jax.Array) -> float:
    return float(jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted))
