"""Sticky hidden Markov models, which leave a state once in a million steps unless the data say so: how far float32 is off.

Transitions are drawn as jax-moseq has them by default, kappa = 1e6, with 100 states. dynamax's filter raises every small
probability to 1e-15, and its smoother divides by predictions that are rounded to zero.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.special import logsumexp

from fastscan import hmm_posterior_sample, hmm_smoother
from fastscan.profiling.demos.figures import BLUE, INK, VERMILION

KAPPA, ALPHA = 1e6, 5.7
"""How much a state holds, and what all transitions out of it weigh beside that, in a Dirichlet distribution."""

DWELL, SPREAD = 25, 6.0
"""Steps for which a state lasts in the data, on average, and how far apart the states' means are, in standard deviations."""

OURS, THEIRS, EXACT = "fastscan", "dynamax", "exact draws"


class Model(NamedTuple):
    """Initial probabilities (K,), transitions (K, K), and log-likelihoods (T, K), in float64 of what float32 can say."""

    initial: np.ndarray
    A: np.ndarray
    log_likelihoods: np.ndarray


class Exact(NamedTuple):
    """Filtered and smoothed probabilities (T, K), and logarithms of the filtered weights (T, K)."""

    filtered: np.ndarray
    smoothed: np.ndarray
    forward: np.ndarray


def sticky_model(K: int, T: int, seed: int = 0) -> Model:
    """Draws transitions, and data that change the state more often than these say."""
    r = np.random.default_rng(seed)
    A = np.stack([r.dirichlet(np.full(K, ALPHA / K) + KAPPA * (np.arange(K) == k)) for k in range(K)])
    A = np.maximum(A, np.finfo(np.float32).tiny)
    means = SPREAD * r.normal(size=(K, 4))
    states = np.repeat(r.integers(0, K, T // DWELL + 1), DWELL)[:T]
    y = means[states] + r.normal(size=(T, 4))
    log_likelihoods = -((y[:, None] - means) ** 2).sum(-1) / 2
    return Model(*(x.astype(np.float32).astype(np.float64) for x in (np.full(K, 1 / K), A, log_likelihoods)))


def exact(model: Model) -> Exact:
    """Filters and smooths in float64, by logarithms: nothing is lost to small probabilities."""
    logs, ll = np.log(model.A), model.log_likelihoods
    forward, backward = [np.log(model.initial) + ll[0]], [np.zeros(len(logs))]
    for t in range(1, len(ll)):
        forward.append(logsumexp(forward[-1][:, None] + logs, axis=0) + ll[t])
        backward.append(logsumexp(logs + ll[-t] + backward[-1], axis=1))
    both = np.array(forward) + np.array(backward[::-1])
    filtered, smoothed = (np.exp(x - logsumexp(x, axis=1, keepdims=True)) for x in (np.array(forward), both))
    return Exact(filtered, smoothed, np.array(forward))


def exact_draws(model: Model, known: Exact, draws: int, seed: int = 1) -> np.ndarray:
    """Draws states (draws, T) backwards, in float64."""
    r, logs = np.random.default_rng(seed), np.log(model.A)
    states = [_chosen(r, np.broadcast_to(known.forward[-1], (draws, len(logs))))]
    for row in known.forward[-2::-1]:
        states.append(_chosen(r, row + logs[:, states[-1]].T))
    return np.stack(states[::-1], 1)


def total_variation(found: Any, wanted: np.ndarray) -> np.ndarray:
    """Computes half of the sum of the differences between probabilities (T, K): (T,)."""
    return np.abs(np.asarray(found, np.float64) - wanted).sum(-1) / 2


def run_sticky(out: Path, K: int = 100, T: int = 500, draws: int = 500) -> dict[str, dict[str, np.ndarray]]:
    """Compares float32 results of ours and of dynamax's sequential code with exact ones, and draws the figure.

    Args:
        out: folder for ``sticky.png``.
        K: states.
        T: steps.
        draws: samples of all states.

    Returns:
        Total variations (T,), by what was computed, and by whom.
    """
    from dynamax.hidden_markov_model import inference

    model = sticky_model(K, T)
    known = exact(model)
    initial, A, ll = (jnp.asarray(x, jnp.float32) for x in model)
    keys = jax.random.split(jax.random.PRNGKey(0), draws)
    found: dict[str, dict[str, np.ndarray]] = {"filter": {}, "smoother": {}, "samples": {}}
    ways: dict[str, tuple[Callable, Callable]] = {
        OURS: (hmm_smoother, hmm_posterior_sample),
        THEIRS: (inference.hmm_smoother, inference.hmm_posterior_sample),
    }
    for name, (smooth, sample) in ways.items():
        posterior = jax.jit(smooth)(initial, A, ll)
        found["filter"][name] = total_variation(posterior.filtered_probs, known.filtered)
        found["smoother"][name] = total_variation(posterior.smoothed_probs, known.smoothed)
        states = jax.jit(jax.vmap(lambda key, sample=sample: sample(key, initial, A, ll)[1]))(keys)
        found["samples"][name] = total_variation(_frequencies(np.asarray(states), K), known.smoothed)
    found["samples"][EXACT] = total_variation(_frequencies(exact_draws(model, known, draws), K), known.smoothed)
    table = Table("largest, and mean, total variation from exact", *ways, EXACT, title=f"Sticky transitions, K={K}, float32")
    for what, by in found.items():
        table.add_row(
            what, *(f"{x.max():.2g}, {x.mean():.2g}" if (x := by.get(name)) is not None else "" for name in (*ways, EXACT))
        )
    Console(width=110).print(table)
    out.mkdir(parents=True, exist_ok=True)
    _draw(out / "sticky.png", found)
    return found


def _chosen(r: np.random.Generator, logs: np.ndarray) -> np.ndarray:
    """Draws a state of every row's logarithms of weights (draws, K)."""
    return (logs + r.gumbel(size=logs.shape)).argmax(1)


def _frequencies(states: np.ndarray, K: int) -> np.ndarray:
    return np.stack([np.bincount(row, minlength=K) / len(row) for row in states.T])


def _draw(path: Path, found: dict[str, dict[str, np.ndarray]]) -> None:
    figure = Figure(figsize=(12, 4), layout="constrained")
    colors = {OURS: BLUE, THEIRS: VERMILION, EXACT: INK}
    for axis, (what, by) in zip(figure.subplots(1, 3, sharey=True), found.items(), strict=True):
        for name in (THEIRS, EXACT, OURS):
            if name in by:
                lost = np.isnan(by[name]).sum()
                label = f"{name}, NaN in {lost} steps" if lost else name
                axis.semilogy(np.maximum(by[name], 1e-9), color=colors[name], linewidth=1.2, label=label, alpha=0.8)
        axis.set_title(what, loc="left", fontsize=11, fontweight="bold", color=INK)
        axis.set(xlabel="step", ylim=(5e-10, 100))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper left", ncols=3, frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("total variation from exact probabilities")
    figure.savefig(path, dpi=150)
