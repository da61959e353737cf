"""Functions of time whose rows are computed where they are read, so that no array with a matrix a step is made of them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.arrays import tabulated, warn_out_of_bounds
from fastscan.given import FLOATS, seen
from fastscan.kernels.functions import Function, looked_up, traced
from fastscan.kernels.plan import Plan
from fastscan.kernels.tables import Computed, is_computed
from fastscan.types import Regimes

LARGE, SMALLER = 8, 4
"""Rows are computed of more states than that, and where the table would be so many times as large as what the function closes
over: otherwise a table is no loss, and its derivatives are less work."""


def evaluated(name: str, function: Callable[[Any], Any], steps: int, remedy: str) -> Any:
    """Returns a function's values at 0 to ``steps`` - 1: row by row where that pays, else a table."""
    computed = row_by_row(name, function, steps, remedy)
    return tabulated(name, function, steps, remedy) if computed is None else computed


def written_for(plan: Plan, arrays: Any) -> Any:
    """Writes functions of t out as arrays for kernels, which can't run them: fields of a NamedTuple."""
    if plan.launch is None:
        return arrays
    return arrays._replace(**{name: x.series() for name, x in arrays._asdict().items() if is_computed(x)})


def row_by_row(name: str, function: Callable[[Any], Any], steps: int, remedy: str) -> Computed | Regimes | None:
    """Returns a function's rows at 0 to ``steps`` - 1, which are computed where they are read, or looked up if that is all that
    the function does; None if it is to be tabulated.

    Warns as `fastscan.arrays.tabulated` does, of functions that leave a table, but looks at the last two rows alone.
    """
    index = jnp.arange(steps)
    found = traced(function, jax.ShapeDtypeStruct((), index.dtype)) if steps > 1 else None
    if found is None:
        return None
    rows, constants = found
    if len(rows.shape) != 2 or rows.shape[-1] <= LARGE or rows.dtype not in FLOATS:
        return None
    if not all(x.dtype in FLOATS or x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.integer) for x in constants):
        return None
    if SMALLER * sum(np.size(x) for x in constants) > steps * rows.shape[0] * rows.shape[1]:
        return None
    last = jax.vmap(function)(index[-2:])
    if seen(last) and bool((np.asarray(last[0]) == np.asarray(last[1])).all()):
        warn_out_of_bounds(name, function, index[-1:], steps, remedy)
    if lookup := looked_up(rows):
        k, number = lookup
        return Regimes(constants[k], _numbers(number, constants, index, len(constants[k])))
    constants = tuple(jnp.asarray(x)[None] for x in constants)
    return Computed(rows, constants, index.reshape(1, steps, 1, 1), rows.dtype)


@functools.partial(jax.jit, static_argnames=("number", "entries"))
def _numbers(number: Function, constants: tuple[Any, ...], index: jax.Array, entries: int) -> jax.Array:
    """Returns the numbers of the entries that are read at some steps."""
    return jnp.clip(jax.vmap(lambda t: number(constants, t))(index), 0, entries - 1)
