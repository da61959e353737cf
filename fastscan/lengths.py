"""Programs that series of several lengths share, for those who call with many: cross-validation, panels, growing data.

XLA's programs are for one length, and each takes seconds to compile. A shared program is for all lengths from one of sixteen an
octave to the next. Series are filled up by blank rows, which the program leaves out as it runs (`Plan.count`), and its results
are cut. Filling up and cutting are programs for one length, but small ones.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fastscan.dispatch.choice import device_kind
from fastscan.given import ShapeError, seen

_sharing = False


def use_shared_programs(on: bool) -> contextlib.AbstractContextManager[Any]:
    """Switches on, from now on or for a ``with`` block, that series of several lengths share compiled programs.

    That pays for who calls with many lengths: most of them start at once. Calls take up to a sixteenth more rows, and two more
    copies, of what goes in and what comes out: ``python -m fastscan.profiling lengths`` says how long. Results are the same up
    to rounding. Filters, smoothers, log-likelihoods and most likely states of models that do not vary in time share programs,
    called on a CPU outside of JAX's transformations. All else runs as ever. The switch is for the whole process, all threads
    included.

    Args:
        on: True or False.

    Returns:
        A context manager, at whose end what held before holds again. Without a ``with`` block it does nothing more.

    Raises:
        TypeError: ``on`` is not a bool.
    """
    if not isinstance(on, bool):
        raise TypeError(f"on: {on!r} given, wanted True or False.")
    until = contextlib.ExitStack()
    until.callback(_share, _sharing)
    _share(on)
    return until


def _share(on: bool) -> None:
    global _sharing
    _sharing = on


def most_rows(rows: int) -> int:
    """Returns the most rows of the program that a number of rows is run by."""
    step = _step(rows)
    return -(-rows // step) * step


def fewest_rows(most: int) -> int:
    """Returns the fewest rows that are run by a program for so many at most."""
    return max(most - _step(most) + 1, 0)


def shareable(implementation: str | None) -> bool:
    """Tells whether an implementation runs programs for several lengths."""
    return implementation is None or implementation.startswith(("sequential", "chunked"))


def by_length(function: Callable, model: Any, series: Any, *options: Any, shared: bool, whole: tuple[str, ...] = ()) -> Any:
    """Calls ``function(*model, *series, *options)``, or the program that lengths share with the ``count`` of its rows.

    Args:
        function: jitted; its results hold time in the first axis, or in the second, if the series have a batch axis.
        model: arrays, which do not vary in time if it is to be ``shared``.
        series: arrays (..., T, n) or None, of which the first one tells T.
        options: hashable.
        shared: whether there is such a program.
        whole: fields of the results that have no axis of time.
    """
    if not (_sharing and shared and device_kind() == "cpu" and _fit_together(model, series)):
        return function(*model, *series, *options)
    axis, rows = series[0].ndim - 2, series[0].shape[-2] - 1
    surplus = most_rows(rows) - rows
    padded, count = _padded(series, surplus)
    try:
        out = function(*model, *padded, *options, count)
    except ShapeError:  # which tells of the shapes that were given
        return function(*model, *series, *options)
    return _cut(out, surplus, axis, whole) if surplus and not (isinstance(out, jax.Array) and out.ndim == axis) else out


def _fit_together(model: Any, series: Any) -> bool:
    """Tells whether values are known, and time has more than one step, and the same number in all series."""
    arrays = [x for x in jax.tree.leaves((model, series)) if hasattr(x, "shape")]
    T = {x.shape[-2] if x.ndim in (2, 3) else 0 for x in series if x is not None}
    return all(map(seen, arrays)) and len(T) == 1 and min(T) > 1


def _step(rows: int) -> int:
    return 1 << max((rows - 1).bit_length() - 5, 0)


@functools.partial(jax.jit, static_argnames="surplus")
def _padded(series: Any, surplus: int) -> tuple[Any, jax.Array]:
    """Fills series up with blank rows, and counts the rows there are; by one program, as handing it a number takes longer."""
    padded = jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, surplus), (0, 0)]), series)
    return padded, jnp.int32(series[0].shape[-2] - 1)


@functools.partial(jax.jit, static_argnames=("surplus", "axis", "whole"))
def _cut(out: Any, surplus: int, axis: int, whole: tuple[str, ...]) -> Any:
    def cut(x: jax.Array) -> jax.Array:
        return jax.lax.slice_in_dim(x, 0, x.shape[axis] - surplus, axis=axis) if x.ndim > axis else x

    if not hasattr(out, "_fields"):
        return cut(out)
    return out._replace(**{name: jax.tree.map(cut, getattr(out, name)) for name in out._fields if name not in whole})
