"""Any recurrence over a series, in parallel over time: the drivers' protocol as a function that `vmap` and `grad` know."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fastscan.dispatch.choice import How, Problem
from fastscan.given import ShapeError
from fastscan.kernels.plan import Plan
from fastscan.kernels.ranges import ranged
from fastscan.kernels.scan import driver
from fastscan.kernels.scan.recurrence import Recurrence
from fastscan.scans.layout import number_array
from fastscan.transforms import for_all, transformable


@ranged
def scan(
    recurrence: Recurrence,
    params: Any,
    state: Any,
    series: Any,
    *,
    reverse: bool = False,
    implementation: str | None = None,
) -> tuple[Any, Any]:
    """Runs a recurrence over a series, as `jax.lax.scan` would run its ``step``, in parallel over time.

    Its functions are given matrices of `fastscan.kernels.algebra`: they take ``+ - * @ .T``, ``maximum`` and the functions of
    that module, and not those of `jax.numpy`. So the same text runs through XLA and as GPU kernels. "Add a model in forty
    lines" in kernels/README.md shows one. `vmap` makes a batch; derivatives are those of the loops that XLA runs. What is
    mapped or differentiated goes into ``params``: the functions may not close over it.

    Args:
        recurrence: the model, as five functions.
        params: what is the same at every step, a pytree of arrays (rows, columns), or None.
        state: before the first row, or with ``reverse`` after the last: a pytree of arrays (rows, columns).
        series: a pytree of arrays (T, rows, columns), all with the same T.
        reverse: run from the series' end to its beginning.
        implementation: None, or a name from the docstring of `fastscan.lgssm`.

    Returns:
        The state after all rows, in its own shapes, and the outputs of every row, (T, rows, columns). Arrays may be given
        without their axes of one: (rows,) is a column, and a number (1, 1). Floats of several dtypes, and numbers of Python,
        are promoted as JAX promotes them; arrays of integers stay what they are. Outputs always have all axes.

    Raises:
        TypeError: no `Recurrence`; arrays of anything but numbers.
        ValueError: shapes; an unknown implementation; kernels that can't hold such matrices.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    if not isinstance(recurrence, Recurrence):
        raise TypeError(f"recurrence: {type(recurrence).__name__} given, wanted a fastscan.Recurrence.")
    if recurrence.sums is not None:
        raise ValueError("recurrence: sums given, which only kernels of fastscan's own passes have. Put them into the state.")
    params, state, series = (
        jax.tree.map(functools.partial(number_array, name), tree)
        for name, tree in (("params", params), ("state", state), ("series", series))
    )
    if not jax.tree.leaves(state) or not jax.tree.leaves(series):
        raise ShapeError("state and series: no arrays given in one of them, wanted at least one in each.")
    return _scan(recurrence, params, state, series, bool(reverse), implementation)


@functools.partial(jax.jit, static_argnames=("recurrence", "reverse", "implementation"))
def _scan(recurrence: Recurrence, params: Any, state: Any, series: Any, reverse: bool, implementation: str | None) -> Any:
    dtype = _dtype((params, state, series))
    given = [
        jax.tree.map(functools.partial(_matrix, dtype, *a), t) for a, t in zip(_KINDS, (params, state, series), strict=True)
    ]
    lengths = sorted({x.shape[1] for x in jax.tree.leaves(given[2])})
    if len(lengths) > 1:
        raise ShapeError(f"series: arrays with {' and '.join(map(str, lengths))} rows given, wanted one number of rows.")
    (T,) = lengths
    size = max(n for x in jax.tree.leaves(given) for n in x.shape[-2:])
    problem = Problem(implementation, T + 1, size, 0, str(dtype), "recurrence", unmarked=True)
    how = How(problem.plan(1), problem)
    last, outs = transformable(how, functools.partial(_run, recurrence, reverse))(*given)
    before, after = (jax.tree.map(lambda x: x.shape[1:], tree) for tree in (given[1], last))
    if before != after:
        raise ShapeError(f"recurrence: a step from a state of shapes {before} to one of {after} given, wanted the same.")
    last = jax.tree.map(lambda x, given: x[0].reshape(jnp.shape(given)), last, state)
    return last, jax.tree.map(lambda x: x[0], outs)


_KINDS = (("params", 0), ("state", 0), ("series", 1))
"""The arguments of a scan by their names, and their axes of time."""


def _matrix(dtype: Any, name: str, more: int, x: Any) -> jax.Array:
    """Returns an array with all of its axes, and one for a batch at its beginning. Numbers of Python become floats."""
    x = jnp.asarray(x)
    weak = x.weak_type and x.dtype != bool
    if not more <= x.ndim <= more + 2:
        wanted = "(T, rows, columns)" if more else "(rows, columns)"
        raise ShapeError(f"{name}: shape {x.shape} given, wanted {wanted}, or without axes of one at the end.")
    x = x.reshape(1, *x.shape, *[1] * (more + 2 - x.ndim))
    return x.astype(dtype) if weak or jnp.issubdtype(x.dtype, jnp.inexact) else x


def _dtype(tree: Any) -> Any:
    """Returns the dtype that all floats are promoted to."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.result_type(*floats) if floats else jnp.dtype("float32")


def _run(recurrence: Recurrence, reverse: bool, plan: Plan, params: Any, state: Any, series: Any) -> tuple[Any, Any]:
    """Runs a recurrence over arrays (B or 1, rows, columns) and (B or 1, T, rows, columns)."""

    def one(params: Any, state: Any, series: Any) -> tuple[Any, Any]:
        params, state = jax.tree.map(lambda x: x.transpose(1, 2, 0)[:, :, None], (params, state))
        last, rows = driver.run(plan, recurrence, params, state, series, reverse=reverse)
        outs = jax.tree.map(driver.phases(plan).join, rows)
        return jax.tree.map(lambda x: x[:, :, 0].transpose(2, 0, 1), last), outs

    return for_all(plan, one, params, state, series)
