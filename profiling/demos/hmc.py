"""HMC over a linear-Gaussian model's parameters, all of them and its covariances alone: dynamax's notebook on fastscan.

Model, prior and sizes are those of dynamax's "Bayesian parameter estimation for an LG-SSM using HMC"; chains are four, and warm
up longer.
"""

import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fastscan import (
    ParamsLGSSM,
    lgssm_forecast,
    lgssm_joint_sample,
    lgssm_marginal_loglik,
    lgssm_posterior_predictive,
    make_lgssm_params,
)
from fastscan.learn import LGSSM, Draws, convergence, fit_hmc, priors
from fastscan.profiling.demos.figures import BLUE, INK, VERMILION
from fastscan.profiling.measure.progress import counted

D, M, T = 2, 10, 100
FORECAST = 50
"""Time steps after the data."""
CHAINS, WARMUP, LEAPFROGS = 4, 500, 5
THIN = 20
"""The thinning of samples that are smoothed and forecast with: one of so many."""
APART = 4.0
"""Between the emissions' dimensions in a figure."""
COVARIANCES = "initial.cov", "dynamics.cov", "emissions.cov"


class Prediction(NamedTuple):
    """Means and standard deviations of emissions: smoothed (T, m), forecast (FORECAST, m)."""

    smoothed: jax.Array
    smoothed_std: jax.Array
    forecast: jax.Array
    forecast_std: jax.Array


def true_params(key: jax.Array) -> ParamsLGSSM:
    """Makes a slowly decaying rotation, seen through random weights, as the notebook has it."""
    angle = np.pi / 10
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    return _params(0.99 * rotation, 0.01 * np.eye(D, dtype=np.float32), jax.random.normal(key, (M, D)))


def start_params(key: jax.Array) -> ParamsLGSSM:
    """Makes the parameters that chains start from."""
    return _params(0.99 * np.eye(D, dtype=np.float32), 0.1 * np.eye(D, dtype=np.float32), jax.random.normal(key, (M, D)))


def log_prior(params: ParamsLGSSM) -> jax.Array:
    """Dynamax's conjugate prior, in its default."""
    initial: Any = params.initial
    parts: Any = (params.dynamics, D), (params.emissions, M)
    total = priors.normal_inverse_wishart(initial.mean, initial.cov, jnp.zeros(D), 1.0, D + 0.1, jnp.eye(D))
    for part, n in parts:
        weights = jnp.column_stack((part.weights, part.bias))
        loc, precision = jnp.zeros((n, D + 1)), jnp.eye(D + 1)
        total += priors.matrix_normal_inverse_wishart(weights, part.cov, loc, precision, n + 0.1, jnp.eye(n))
    return total


def run_hmc(out: Path, num_samples: int = 1000) -> dict[str, Draws]:
    """Samples twice, prints how the chains fared, and draws the notebook's three figures.

    Args:
        out: a folder for ``hmc_data.png``, ``hmc_log_probability.png`` and ``hmc_emissions.png``; made if it is not there.
        num_samples: of every chain.

    Returns:
        The samples, by what was sampled.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(width=120)
    true_key, data_key, start_key, key = jax.random.split(jax.random.key(0), 4)
    true = true_params(true_key)
    _, y = lgssm_joint_sample(true, data_key, T)
    start = start_params(start_key)
    known = start._replace(dynamics=true.dynamics._replace(cov=start.dynamics.cov))
    known = known._replace(
        initial=known.initial._replace(mean=true.initial.mean),
        emissions=true.emissions._replace(cov=start.emissions.cov),
    )
    every = {f"{part}.{field}" for part in true._fields for field in getattr(true, part)._fields}
    runs = {"all parameters": (start, ()), "covariances": (known, tuple(sorted(every - set(COVARIANCES))))}
    truth = float(lgssm_marginal_loglik(true, y) + log_prior(true))
    console.print(f"D = {D}, m = {M}, T = {T}; log probability of the true parameters: {truth:.1f}")
    draws, predictions = {}, {"true parameters": _predict(true, y)}
    _draw_data(out / "hmc_data.png", y, predictions["true parameters"])
    console.print(f"figure: {out / 'hmc_data.png'}")
    table = Table("sampled", "seconds", "samples / s", "acceptance", "divergent", "log probability", "R-hat", "ESS", "coverage")
    for number, (name, (params, frozen)) in enumerate(runs.items(), 1):
        console.print(f"{number}/{len(runs)} {name}, {CHAINS} chains: {WARMUP:,} steps of warm-up, {num_samples:,} samples")
        began = time.perf_counter()
        draws[name] = fit_hmc(
            LGSSM,
            params,
            y,
            key=key,
            frozen=frozen,
            log_prior=log_prior,
            num_samples=num_samples,
            num_chains=CHAINS,
            warmup_steps=WARMUP,
            num_integration_steps=LEAPFROGS,
        )
        seconds = time.perf_counter() - began
        with counted(console, 1) as begin:
            begin(f"smoothing and forecasting with every {THIN}th of the samples")
            predictions[name] = _average(draws[name].params, y)
            table.add_row(*_summary(name, seconds, draws[name], predictions[name], y))
    console.print(table)
    console.print(
        "R-hat and ESS of the log probability; coverage of the data by two standard deviations. Seconds hold compiling."
    )
    _draw_log_probability(out / "hmc_log_probability.png", draws, truth)
    _draw_emissions(out / "hmc_emissions.png", y, {name: predictions[name] for name in runs})
    console.print(f"figures: {out / 'hmc_log_probability.png'}, {out / 'hmc_emissions.png'}")
    return draws


def _params(F: Any, Q: Any, H: Any) -> ParamsLGSSM:
    eye = np.eye(D, dtype=np.float32)
    return jax.tree.map(
        jnp.asarray, make_lgssm_params(np.zeros(D, np.float32), eye, F, Q, H, 0.1 * np.eye(M, dtype=np.float32))
    )


@jax.jit
def _predict(params: ParamsLGSSM, y: jax.Array) -> Prediction:
    _, _, forecast, cov = lgssm_forecast(params, y, FORECAST)
    return Prediction(*lgssm_posterior_predictive(params, y), forecast, jnp.sqrt(jnp.diagonal(cov, axis1=-2, axis2=-1)))


@jax.jit
def _average(params: ParamsLGSSM, y: jax.Array) -> Prediction:
    """Averages over the posterior (C, S, ...), by the law of total variance."""
    some = jax.tree.map(lambda x: x[:, ::THIN], params)
    each = jax.vmap(jax.vmap(functools.partial(_predict, y=y)))(some)

    def total(mean: jax.Array, std: jax.Array) -> tuple[jax.Array, jax.Array]:
        return mean.mean((0, 1)), jnp.sqrt((std**2).mean((0, 1)) + mean.var((0, 1)))

    return Prediction(*total(*each[:2]), *total(*each[2:]))


def _summary(name: str, seconds: float, draws: Draws, prediction: Prediction, y: jax.Array) -> list[str]:
    rhat, ess = convergence(draws.log_probs)
    covered = (jnp.abs(y - prediction.smoothed) < 2 * prediction.smoothed_std).mean()
    numbers = f"{seconds:.1f}", f"{draws.log_probs.size / seconds:,.0f}", f"{draws.acceptance_rates.mean():.2f}"
    fared = (
        f"{draws.divergences.sum()}",
        f"{draws.log_probs.mean():.1f} ± {draws.log_probs.std():.1f}",
        f"{rhat:.3f}",
        f"{ess:.0f}",
    )
    return [name, *numbers, *fared, f"{covered:.3f}"]


def _draw_data(path: Path, y: jax.Array, prediction: Prediction) -> None:
    figure = Figure(figsize=(9, 6), layout="constrained")
    _plot(figure.subplots(), y, prediction, "Observed emissions; smoothed and forecast with the true parameters")
    figure.savefig(path, dpi=120)


def _draw_emissions(path: Path, y: jax.Array, predictions: dict[str, Prediction]) -> None:
    figure = Figure(figsize=(9, 11), layout="constrained")
    for axes, (name, prediction) in zip(figure.subplots(len(predictions), 1), predictions.items(), strict=True):
        _plot(axes, y, prediction, f"Smoothed and forecast under the posterior of {name}, two standard deviations")
    figure.savefig(path, dpi=120)


def _plot(axes: Any, y: jax.Array, prediction: Prediction, title: str) -> None:
    observed, coming = np.arange(T), np.arange(T, T + FORECAST)
    parts = (
        (observed, prediction.smoothed, prediction.smoothed_std, BLUE, "smoothed"),
        (coming, prediction.forecast, prediction.forecast_std, VERMILION, "forecast"),
    )
    for i in range(M):
        for t, mean, std, color, label in parts:
            at = APART * i + mean[:, i]
            axes.plot(t, at, color=color, linewidth=1, label=label if i == 0 else None)
            axes.fill_between(t, at - 2 * std[:, i], at + 2 * std[:, i], color=color, alpha=0.2, linewidth=0)
        axes.plot(observed, APART * i + y[:, i], ".", color=INK, markersize=2.5, label="observed" if i == 0 else None)
    axes.axvline(T - 0.5, color=INK, linewidth=1)
    axes.set(xlabel="time", xlim=(0, T + FORECAST - 1), ylim=(-APART, APART * (M + 0.8)), title=title)
    axes.set_yticks(APART * np.arange(M), [f"dim. {i}" for i in range(M)])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", ncols=3, frameon=False, fontsize=9)


def _draw_log_probability(path: Path, draws: dict[str, Draws], truth: float) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (name, drawn) in zip(figure.subplots(1, len(draws)), draws.items(), strict=True):
        for chain in drawn.log_probs:
            axes.plot(chain, linewidth=0.6, alpha=0.8)
        axes.axhline(truth, color=INK, linestyle="--", label="true parameters")
        axes.set(xlabel="sample", ylabel="log probability", title=f"{name}, {len(drawn.log_probs)} chains")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
