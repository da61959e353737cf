"""The two models that the demonstration runs, and their data: Mauna Loa's CO2, and a moving target."""

import csv
import importlib.resources
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan import ParamsLGSSM, lgssm_joint_sample, make_lgssm_params

LEVEL = np.array([1.0, 0, 0, 0, 0, 0])
"""(6,): the level of CO2 in ppm is ``LEVEL @ state``."""

SEASONAL = np.array([0.0, 0, 1, 0, 1, 0])
"""(6,): the yearly cycle in ppm is ``SEASONAL @ state``."""

WEEKS_PER_YEAR = 365.25 / 7


class CO2Variances(NamedTuple):
    """The variances that the CO2 model leaves open, all per week.

    Attributes:
        observation: of one week's average around the signal, ppm^2.
        level: of the level's own steps, ppm^2.
        slope: of the steps of the level's slope, (ppm / week)^2.
        seasonal: of the steps of every coordinate of both harmonics, ppm^2.
    """

    observation: jax.typing.ArrayLike
    level: jax.typing.ArrayLike
    slope: jax.typing.ArrayLike
    seasonal: jax.typing.ArrayLike


CO2_VARIANCES = CO2Variances(observation=0.08544, level=0.01963, slope=3.528e-8, seasonal=1.386e-5)
"""The most likely variances given the record of `load_co2`, rounded to four digits.

Fitted once by L-BFGS on their logarithms, in float64, from the initial state's distribution that `co2_params` has:
``python -m fastscan.profiling fit-co2`` fits them again, with `fastscan.profiling.demos.fit_co2.fit_co2_variances`.
"""


def co2_params(dtype: jax.typing.DTypeLike = "float32", variances: CO2Variances = CO2_VARIANCES) -> ParamsLGSSM:
    """Makes a local linear trend and a yearly cycle of two harmonics: a basic structural model of weekly CO2, D = 6, m = 1.

    The state is the level (ppm), its slope (ppm / week), and two coordinates (ppm) for each harmonic j = 1, 2, which
    turn by 2 pi j / `WEEKS_PER_YEAR` a week. The form is that of Durbin & Koopman (2012), Time Series Analysis by State
    Space Methods, section 3.2.

    Args:
        dtype: float32, or float64 where JAX has it enabled.
        variances: of the noises; may be traced.
    """
    F = np.zeros((6, 6))
    F[:2, :2] = [[1, 1], [0, 1]]
    for j in (1, 2):
        angle = 2 * math.pi * j / WEEKS_PER_YEAR
        F[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = [
            [math.cos(angle), math.sin(angle)],
            [-math.sin(angle), math.cos(angle)],
        ]
    observation, level, slope, seasonal = (jnp.asarray(v, dtype) for v in variances)
    return make_lgssm_params(
        initial_mean=jnp.array([316.0, 0, 0, 0, 0, 0], dtype),
        initial_cov=jnp.diag(jnp.array([1e2, 1.0, 10, 10, 10, 10], dtype)),
        dynamics_weights=jnp.array(F, dtype),
        dynamics_cov=jnp.diag(jnp.stack([level, slope, *4 * [seasonal]])),
        emissions_weights=jnp.array(LEVEL + SEASONAL, dtype)[None],
        emissions_cov=observation.reshape(1, 1),
    )


def load_co2() -> tuple[np.ndarray, np.ndarray]:
    """Reads the weekly record of CO2 at Mauna Loa, 1958 to 2001; ``data/co2.csv`` names its source.

    Returns:
        Dates (T,) as datetime64[D], and emissions (T, 1) in ppm, float64, NaN where a week is missing.
    """
    text = importlib.resources.files("fastscan.profiling.demos").joinpath("data/co2.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    dates = np.array([row["date"] for row in rows], dtype="datetime64[D]")
    return dates, np.array([[float(row["co2"] or "nan")] for row in rows])


def tracking_params(dtype: jax.typing.DTypeLike = "float32") -> ParamsLGSSM:
    """Makes a target in the plane whose velocity wanders, seen in position: D = 4, m = 2, a step of 0.1.

    Example 3.6 of Särkkä (2013), Bayesian Filtering and Smoothing. The state is two positions, then two velocities.

    Args:
        dtype: float32, or float64 where JAX has it enabled.
    """
    dt = 0.1
    return make_lgssm_params(
        initial_mean=jnp.array([0, 0, 1, -1], dtype),
        initial_cov=jnp.eye(4, dtype=dtype),
        dynamics_weights=jnp.array(np.eye(4) + dt * np.eye(4, k=2), dtype),
        dynamics_cov=jnp.array(np.kron([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]], np.eye(2)), dtype),
        emissions_weights=jnp.eye(2, 4, dtype=dtype),
        emissions_cov=0.25 * jnp.eye(2, dtype=dtype),
    )


def simulate(params: ParamsLGSSM, T: int, seed: int) -> np.ndarray:
    """Draws emissions (T, m) from a model, in its dtype."""
    _, emissions = lgssm_joint_sample(params, jax.random.key(seed), T)
    return np.asarray(emissions)
