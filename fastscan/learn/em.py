"""Expectation maximisation."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from rich.progress import track

from fastscan.given import seen
from fastscan.learn.learnable import Learnable, Target, check_priors, prepare
from fastscan.learn.verdict import Fit, Verdict
from fastscan.sequences.packing import checked_starts

SETTLED = 1e-5
"""The gain of an iteration per time step, in nats, up to which a fit is called converged, unless ``tol`` says it."""


def fit_em(
    model: Learnable,
    params: Any,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    frozen: Iterable[str] = (),
    priors: Mapping[str, Any] | None = None,
    num_iters: int = 50,
    tol: float | None = None,
    progress: bool = True,
    starts: jax.typing.ArrayLike | None = None,
) -> Fit:
    """Find the most likely parameters, by expectation maximisation: no step makes the data less likely.

    Regressors of linear-Gaussian models may be redundant; then coefficients change as little as they can. Covariances of
    Gaussian noise stay above `fastscan.learn.floors.FLOOR` of the data's variance, or above where they start, if that is less:
    so constant channels, exact data and states with one emission have a most likely fit, too. The verdict names them.

    It compiles once for data and parameters of one shape. Under `jit` and `vmap` all iterations are one loop.

    Args:
        model: the family, such as `LGSSM` or ``HMM(GAUSSIAN)``.
        params: where to start.
        emissions: one sequence (T, ...) or a batch (B, T, ...); missing ones as the family has them.
        inputs: (T, U), (B, T, U) or None.
        frozen: parameters that keep their values, as "initial" or "dynamics.cov".
        priors: conjugate ones of `fastscan.learn.priors`, by the names of what they are about, as
            ``{"dynamics": MatrixNormalInverseWishart(...)}``, or "initial", "emissions"; of hidden Markov models
            "initial_distribution", "transition_matrix", "emissions". Parameters are the most probable ones then, as dynamax's.
        num_iters: iterations, at most.
        tol: stop where an iteration gains no more than this, in nats a time step (B T of them). None goes on.
        progress: show a bar, but under `jit`.
        starts: (T,) or (B, T), True where one of many sequences on one time axis begins, as `fastscan.pack_sequences` has them.

    Returns:
        A tuple of parameters, and the log-likelihood of all data before every iteration (num_iters,), to which priors add
        their log densities; with ``tol``, of the iterations that were run, or under `jit` with the last one repeated. Its
        attribute ``verdict`` is a `Verdict`.

    Raises:
        TypeError: parameters or data that are not arrays of numbers; a prior of another kind than its part.
        ValueError: shapes that do not fit together, unknown names in ``frozen``, a setting out of range.
    """
    if num_iters < 1:
        raise ValueError(f"num_iters: {num_iters} given, wanted at least 1.")
    if tol is not None and not tol >= 0:
        raise ValueError(f"tol: {tol} given, wanted a number from 0 on, or None to go on to num_iters.")
    target, params, emissions, inputs = prepare(model, params, emissions, inputs, frozen)
    params = _of_one_dtype(params)
    given = check_priors(model, params, priors)
    steps = emissions.shape[0] * emissions.shape[1]
    data = emissions, inputs, given, _floors(model, params, emissions), _marks(starts, *emissions.shape[:2])
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, data))):
        return _loop(target, params, data, num_iters, tol, steps)
    trace, notes = [], {}
    for _ in track(range(num_iters), "EM", disable=not progress):
        params, value, notes = _iterate(target, params, *data)
        trace.append(value)
        if tol is not None and len(trace) > 1 and abs(trace[-1] - trace[-2]) <= tol * steps:
            break
    values = jnp.stack(trace)
    return Fit(params, values, _verdict(values, len(trace), notes, tol, steps))


def _loop(target: Target, params: Any, data: Any, num_iters: int, tol: float | None, steps: int) -> Fit:
    """Run all iterations in one loop, of a length that values decide about only if there is a tolerance."""
    params, values, notes = params, *jax.eval_shape(functools.partial(_iterate, target), params, *data)[1:]
    values = jnp.full(num_iters, jnp.nan, values.dtype)
    notes = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), notes)

    def go_on(state: Any) -> jax.Array:
        i, _, values, _ = state
        if tol is None:
            return i < num_iters
        gain = jnp.abs(values[i - 1] - values[i - 2])
        return (i < num_iters) & ((i < 2) | ~(gain <= tol * steps))

    def step(state: Any) -> Any:
        i, params, values, _ = state
        params, value, notes = _iterate(target, params, *data)
        return i + 1, params, values.at[i].set(value), notes

    n, params, values, notes = lax.while_loop(go_on, step, (jnp.int32(0), params, values, notes))
    verdict = _verdict(values, n, notes, tol, steps)
    return Fit(params, jnp.where(jnp.arange(num_iters) < n, values, values[n - 1]), verdict)


@functools.partial(jax.jit, static_argnames=("tol", "steps"))
def _verdict(values: jax.Array, n: Any, notes: Any, tol: float | None, steps: int) -> Verdict:
    """Judge the first n values."""
    ran = jnp.arange(len(values)) < n
    gains = jnp.where(ran[1:], jnp.diff(values), jnp.nan)
    last = jnp.abs(gains[n - 2]) if len(values) > 1 else jnp.nan
    converged = (last <= (SETTLED if tol is None else tol) * steps) & (n > 1)
    worst = jnp.nanmax(-gains, initial=0.0)
    return Verdict(jnp.asarray(n, jnp.int32), converged, jnp.where(ran, jnp.isfinite(values), True).all(), worst, notes)


@functools.partial(jax.jit, static_argnames="target")
def _iterate(
    target: Target, params: Any, emissions: jax.Array, inputs: jax.Array | None, priors: Any, floors: Any, starts: Any
) -> tuple[Any, jax.Array, Any]:
    """Take one step of EM: parameters, the objective before it, and what the step noticed."""
    model = target.model
    statistics, log_likelihoods = model.expect(params, emissions, inputs, target.missing, starts)
    found, notes = model.maximise(params, statistics, target.constraints, priors, floors)
    value = log_likelihoods.sum()
    if priors:
        value += model.log_prior(params, priors)
    return jax.tree.map(lambda x, old: x.astype(old.dtype), found, params), value, notes


def _marks(starts: Any, B: int, T: int) -> jax.Array | None:
    """Return where sequences begin (B, T), or None.

    Raises:
        ValueError: shapes; sequences without any transition.
    """
    if starts is None:
        return None
    starts = jnp.broadcast_to(jnp.asarray(checked_starts(starts, T, (B,))), (B, T)).at[:, 0].set(True)
    if seen(starts) and T > 1 and bool(starts.all()):
        raise ValueError("starts: True at all steps given, wanted at least one sequence of two steps, to learn dynamics from.")
    return starts


@functools.partial(jax.jit, static_argnames="model")
def _floors(model: Learnable, params: Any, emissions: jax.Array) -> Any:
    return model.floors(params, emissions)


def _of_one_dtype(params: Any) -> Any:
    """Make floating parameters what the first of them is: an iteration then returns what the next one was compiled for."""
    floating = [x.dtype for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jax.tree.map(lambda x: lax.convert_element_type(x, floating[0]) if x.dtype in floating else x, params)
