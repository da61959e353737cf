"""Models that are measured: a linear-Gaussian one with full matrices, the mixture that chains walk in, and a turning target.

The sensors stand where Yaghoobi, Corenflos, Hassan & Särkkä (2021, arXiv 2102.00514) have them, and a step is as long.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats
from jax.scipy.special import logsumexp

from fastscan import ParamsLGSSM, make_lgssm_params
from fastscan.nonlinear import ParamsNLGSSM

LOC = np.array([[-2, 0, 3.2, 2.5]], "float32").T
SCALE = np.array([[1.2, 1, 5, 2.8]], "float32").T
WEIGHTS = np.array([[0.2, 0.3, 0.1, 0.4]], "float32").T

SENSORS = np.array([[-1.5, 0.5], [1.0, 1.0]])
"""Places of the sensors (2, 2)."""

DT, BEARING_STD = 0.01, 0.2
"""Seconds of a step, and the standard deviation of a bearing in radians."""

ACCELERATION, TURNING = 0.01, 0.1
"""Spectral densities of the noise that moves velocities, and the turn rate."""

START, START_VARIANCE = np.array([0.0, 0.0, 1.0, 0.0, 0.0]), 0.1
"""The first state: its mean (5,), and the variance of every coordinate."""


def mixture(x: jax.Array) -> jax.Array:
    """Computes the log density of four normal distributions' mixture: (1, chains) to (chains,)."""
    return logsumexp(stats.norm.logpdf(x, LOC, SCALE) + np.log(WEIGHTS), axis=0)


def random_params(D: int, m: int, dtype: jax.typing.DTypeLike = "float32", seed: int = 0) -> ParamsLGSSM:
    """Makes a stable model with full matrices everywhere: a shrunken rotation, and well-conditioned covariances.

    Args:
        D: state dimensions.
        m: emission dimensions.
        dtype: float32, or float64 where JAX has it enabled.
        seed: of the matrices.
    """
    r = np.random.default_rng(seed)

    def covariance(n: int) -> np.ndarray:
        a = 0.4 * r.normal(size=(n, n))
        return a @ a.T + 0.3 * np.eye(n)

    rotation = np.linalg.qr(r.normal(size=(D, D)))[0]
    arrays = (np.zeros(D), covariance(D), 0.95 * rotation, covariance(D), r.normal(size=(m, D)), covariance(m))
    return make_lgssm_params(*(jnp.asarray(x, dtype) for x in arrays))


def turn(state: jax.Array, _: jax.Array) -> jax.Array:
    """Moves a target (x, y, its velocities, turn rate) along an arc for `DT`; the second argument, an input, is not read."""
    x, y, right, up, rate = state
    angle = rate * DT
    sine, cosine = DT * jnp.sinc(angle / jnp.pi), DT * jnp.sin(angle / 2) * jnp.sinc(angle / (2 * jnp.pi))
    ahead = x + sine * right - cosine * up, y + cosine * right + sine * up
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([*ahead, c * right - s * up, s * right + c * up, rate])


def bearings(state: jax.Array, near: jax.Array) -> jax.Array:
    """Computes the angles at which the sensors see a target, each by the turn that is nearest to ``near``, all (2,)."""
    away = state[:2] - SENSORS
    angles = jnp.arctan2(away[:, 1], away[:, 0])
    return near + jnp.mod(angles - near + jnp.pi, 2 * jnp.pi) - jnp.pi


def turning_params() -> ParamsNLGSSM:
    """Makes the model of a turning target, D = 5, m = 2; its inputs are the emissions themselves, see `bearings`."""
    Q = np.zeros((5, 5))
    Q[:4, :4] = ACCELERATION * np.kron([[DT**3 / 3, DT**2 / 2], [DT**2 / 2, DT]], np.eye(2))
    Q[4, 4] = TURNING * DT
    return ParamsNLGSSM(START, START_VARIANCE * np.eye(5), turn, Q, bearings, BEARING_STD**2 * np.eye(2))


def simulate_targets(params: ParamsNLGSSM, steps: int, targets: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws states (B, T, 5) and bearings (B, T, 2)."""
    keys, none = jax.random.split(key, 3), jnp.zeros(2)
    covariances = params.initial_covariance, params.dynamics_covariance, params.emission_covariance
    shapes = (targets, 5), (steps - 1, targets, 5), (targets, steps, 2)
    first, moves, noise = (
        jax.random.normal(k, shape) @ np.linalg.cholesky(cov).T for k, shape, cov in zip(keys, shapes, covariances, strict=True)
    )

    def move(state: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        after = jax.vmap(params.dynamics_function, (0, None))(state, none) + noise
        return after, after

    first = params.initial_mean + first
    _, later = jax.lax.scan(move, first, moves)
    states = jnp.concatenate([first[None], later]).swapaxes(0, 1)
    seen = jax.vmap(jax.vmap(params.emission_function, (0, None)), (0, None))(states, none)
    return states, seen + noise
