"""Smoothers that iterate: a path is linearised around, the linear model smoothed, in parallel over time, and the path moved.

With derivatives that is Gauss and Newton's method for the posterior mode (Bell 1994), with sigma points posterior linearisation
(García-Fernández, Svensson & Särkkä 2017); with a smoother that is parallel over time Yaghoobi, Corenflos, Hassan & Särkkä
(2021, arXiv 2102.00514; 2022, arXiv 2207.00426). Steps are damped by a line search, as Särkkä & Svensson (2020) and
Lindqvist & al. (2021) have it. The linear model is one of deviations from the path, so its smoothed means are the step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.nonlinear.deviations import Deviations, Path, Weights

HALVINGS = 20
"""How often a step is halved before none is taken."""

DECREASE = 1e-4
"""The part of the decrease that derivatives promise which a step must bring (Armijo's rule)."""

ROUNDINGS = 16
"""The roundings of the objective within which it is its slope that tells whether a step is too long (Hager & Zhang 2005)."""

INCREASE = 0.1
"""The rise of the objective, for every state and standard deviation of a step, that steps by sigma points may bring: these lead
to no minimum of it, but near to one."""

SLOW, SMALLEST = 0.9, 1 / 16
"""Steps by sigma points that shrink to no less than this part of the last one are halved, but for such a part."""


class Settings(NamedTuple):
    """The static settings of a call."""

    num_iter: int
    tol: float
    damped: bool
    missing: bool | None
    implementation: str | None


class Iteration(NamedTuple):
    """The state of the iterations.

    Attributes:
        path: around which the model was linearised last.
        smoothed: means of deviations from it, and covariances.
        decrement: square of the step to come, in posterior standard deviations, summed over all directions.
        part: the part of it that is tried first.
        count: how often the model was linearised.
        objectives: at all paths (num_iter,).
        settled: whether the step to come is within the tolerance.
        stuck: whether no part of a step was found that is worth taking.
    """

    path: Path
    smoothed: Path
    decrement: jax.Array
    part: jax.Array
    count: jax.Array
    objectives: jax.Array
    settled: jax.Array
    stuck: jax.Array


def iterate(model: Deviations, start: Path, settings: Settings) -> Iteration:
    """Linearises, smooths and moves a path until it converges."""
    n, dtype = settings.num_iter, start.mean.dtype
    nothing = jax.tree.map(jnp.zeros_like, start)
    no = jnp.bool_(False)
    first = Iteration(start, nothing, jnp.zeros((), dtype), jnp.ones((), dtype), jnp.int32(0), jnp.zeros(n, dtype), no, no)
    fixed = model.weights(model.linearised(start)) if model.rules.exact else None

    def goes_on(state: Iteration) -> jax.Array:
        return (state.count < n) & ~state.settled & ~state.stuck

    return lax.while_loop(goes_on, lambda state: _advance(model, settings, fixed, state), first)


def step(model: Deviations, path: Path) -> Path:
    """Computes by what a path moves, and covariances around it."""
    mean, cov = model.smoothed_path(model.linearised(path))
    return Path(mean, None if cov is None else cov - path.cov)


def _advance(model: Deviations, settings: Settings, fixed: Weights | None, state: Iteration) -> Iteration:
    """Takes the step that the last smoother says, and linearises and smooths where it leads."""
    path, objective, stuck = _moved(model, settings, fixed, state)
    linear = model.linearised(path)
    smoothed = model.smoothed_path(linear)
    decrement = model.decrement(linear, model.weights(linear) if fixed is None else fixed, smoothed.mean)
    settled = decrement <= settings.tol**2 * model.T * model.D
    if path.cov is not None:
        settled &= _change(path.cov, smoothed.cov) <= settings.tol**2 * path.cov.size
    objectives = jnp.where(jnp.arange(settings.num_iter) >= state.count, objective, state.objectives)
    part = state.part
    if settings.damped and fixed is None:
        slow = (state.count > 0) & (decrement > SLOW**2 * state.decrement)
        part = jnp.where(slow, jnp.maximum(part / 2, SMALLEST), jnp.minimum(part * 5 / 4, 1))
    return Iteration(path, smoothed, decrement, part, state.count + 1, objectives, settled & (settings.tol > 0), stuck)


def _moved(model: Deviations, settings: Settings, fixed: Weights | None, state: Iteration) -> tuple[Path, jax.Array, jax.Array]:
    """Returns the path after a step, what the objective is there, and whether none was found. The first step is none."""
    path, decrement, whole = state.path, state.decrement, state.smoothed.mean
    weights = model.weights(model.linearised(path)) if fixed is None else fixed

    def along(part: jax.Array) -> jax.Array:
        return model.objective(path._replace(mean=path.mean + part * whole), weights)

    if fixed is None:
        before = along(jnp.zeros_like(decrement))
    else:
        before = jnp.where(state.count > 0, state.objectives[state.count - 1], jnp.inf)
    rounding = float(jnp.finfo(before.dtype).eps) * ROUNDINGS * jnp.abs(before)
    rise = INCREASE * jnp.sqrt(decrement * model.T * model.D)

    def fine(part: jax.Array, objective: jax.Array) -> jax.Array:
        if fixed is None:
            return objective <= before + part * rise + rounding
        falls = objective <= before - DECREASE * part * decrement

        def nearly() -> jax.Array:
            _, slope = jax.jvp(along, (part,), (jnp.ones_like(part),))
            return slope <= (1 - 2 * DECREASE) * decrement

        return falls | lax.cond(~falls & (objective <= before + rounding), nearly, lambda: jnp.bool_(False))

    def too_long(found: tuple) -> jax.Array:
        part, objective, tries = found
        return (tries < HALVINGS) & ~fine(part, objective)

    def halve(found: tuple) -> tuple:
        part, _, tries = found
        return part / 2, along(part / 2), tries + 1

    found = state.part, along(state.part), jnp.int32(0)
    part, objective, tries = lax.while_loop(too_long, halve, found) if settings.damped else found
    stuck = (tries >= HALVINGS) | ~(jnp.abs(objective) < jnp.inf)
    part = jnp.where(stuck | (state.count == 0), 0, part)
    cov = path.cov
    if cov is not None:
        cov += part * (state.smoothed.cov - cov)
    return Path(path.mean + part * whole, cov), jnp.where(stuck & (state.count > 0), before, objective), stuck


def _change(before: jax.Array, after: jax.Array) -> jax.Array:
    """Adds up the squares of what covariances (T, D, D) changed by, every entry beside its variances."""
    sizes = jnp.sqrt(jnp.maximum(jnp.diagonal(after, axis1=-2, axis2=-1), jnp.finfo(after.dtype).tiny))
    return (((after - before) / (sizes[:, :, None] * sizes[:, None, :])) ** 2).sum()
