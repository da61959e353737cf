"""Sequences one after the other on one time axis, with a mark where each begins: a panel without padding."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.given import ShapeError, array, emissions_array, seen
from fastscan.kernels.tables import Table, is_computed, is_table
from fastscan.regimes import as_series


def pack_sequences(sequences: Sequence[jax.typing.ArrayLike]) -> tuple[jax.Array, jax.Array]:
    """Puts sequences of different lengths one after the other on one time axis.

    Functions that take ``starts`` do with the result what they would do with every sequence by itself.

    Args:
        sequences: arrays (T_i, ...) with T_i at least 1; masked entries become NaN, and dtypes are promoted as JAX promotes
            them.

    Returns:
        All steps (T, ...), with T the sum of all T_i, and ``starts`` (T,), True where a sequence begins.

    Raises:
        TypeError: what is no array of numbers.
        ValueError: no sequences, shapes that do not go together, a sequence without steps.
    """
    if isinstance(sequences, jax.Array | np.ndarray):
        raise ShapeError(f"sequences: one array of shape {sequences.shape} given, wanted a list of arrays.")
    arrays = [emissions_array(s) for s in sequences]
    shapes = [np.shape(s) for s in arrays]
    if not shapes or any(not s or s[1:] != shapes[0][1:] or not s[0] for s in shapes):
        raise ShapeError(
            f"sequences: shapes {shapes} given, wanted at least one, all (T_i, ...) alike but for T_i of 1 or more."
        )
    starts = np.zeros(sum(s[0] for s in shapes), bool)
    starts[np.cumsum([0, *(s[0] for s in shapes[:-1])])] = True
    if all(map(seen, arrays)):  # by NumPy, which makes no program for every list of lengths
        dtype = jnp.result_type(*arrays)
        return jax.device_put(np.concatenate(arrays).astype(dtype)), jax.device_put(starts)
    return jnp.concatenate(arrays), jax.device_put(starts)


def unpack_sequences(packed: Any, starts: jax.typing.ArrayLike) -> list[Any]:
    """Cuts what has one time axis for many sequences into these: the inverse of `pack_sequences`.

    Args:
        packed: an array (T, ...), or a pytree of such.
        starts: (T,), of known values.

    Returns:
        For every sequence the same pytree of its own steps (T_i, ...).

    Raises:
        TypeError: ``starts`` that are neither True nor False.
        ValueError: shapes.
    """
    marks = np.asarray(checked_starts(starts, len(np.shape(starts)) and np.shape(starts)[0]))
    lengths = {np.shape(x)[:1] for x in jax.tree.leaves(packed)}
    if lengths != {marks.shape}:
        raise ShapeError(f"packed: leading axes {sorted(lengths)} given for starts {marks.shape}; wanted all alike.")
    borders = [0, *(np.flatnonzero(marks[1:]) + 1), len(marks)]
    return [jax.tree.map(lambda x, a=a, b=b: x[a:b], packed) for a, b in itertools.pairwise(borders)]


def checked_starts(starts: Any, T: int, batch: tuple[int, ...] = ()) -> Any:
    """Checks the marks of sequences, and returns them as an array.

    Raises:
        TypeError: ``starts`` that are neither True nor False.
        ValueError: a shape other than (T,), or in a batch (*batch, T).
    """
    starts = array("starts", starts)
    if starts.dtype != bool:
        raise TypeError(f"starts: {starts.dtype} given, wanted True where a sequence begins, else False.")
    allowed = dict.fromkeys([(T,), (*batch, T)])
    if starts.shape not in allowed:
        raise ShapeError(f"starts: shape {starts.shape} given, wanted {' or '.join(map(str, allowed))}.")
    return starts


def begun(x: Any, at_start: jax.Array, starts: jax.Array) -> Any:
    """Returns a series with other rows where sequences begin.

    Args:
        x: (B or 1, T or 1, n, p), or a table; where all rows are the same, the result is a table, too.
        at_start: those rows (B or 1, 1, n, p).
        starts: bool (B or 1, T).
    """
    here = starts[..., None, None]
    if is_table(x) and not is_computed(x):
        R, (values, new) = x.values.shape[1], _alike(x.values, at_start)
        index = jnp.where(x.index >= R, x.index + 1, x.index)  # numbers of no matrix stay such
        return Table(jnp.concatenate([values, new], 1), jnp.where(here, R, index))
    if not is_table(x) and x.shape[1] == 1 < starts.shape[-1]:
        return Table(jnp.concatenate(_alike(x, at_start), 1), here.astype(jnp.int32))
    return jnp.where(here, at_start, as_series(x))


def _alike(*arrays: jax.Array) -> list[jax.Array]:
    """Gives arrays one batch axis."""
    B = max(map(len, arrays))
    return [jnp.broadcast_to(x, (B, *x.shape[1:])) for x in arrays]
