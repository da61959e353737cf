"""Records, which lie entry beside entry in memory, to and from vectors with an entry per lane, which kernels compute with.

In Triton's terms only: two arrays are stacked, one is unstacked into two, and shapes are powers of two.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SECTOR = 32
"""Bytes that a GPU's memory moves at once. Lanes' records lie apart, so every store of fewer bytes is a request of its own to
the L2 cache. On an H200 their number, and not the bytes, bounds the sweeps of long series: see `profiling/README.md`, "GPU
kernels"."""


def tiles(entries: int, dtype: Any, *, past_the_end: bool = False) -> list[tuple[int, int]]:
    """Cuts a record into (start, width) of what is moved at once: powers of two, a sector's bytes at most.

    Args:
        entries: of the record.
        dtype: theirs.
        past_the_end: let the last tile reach past the record, rather than cut what is left into several.
    """
    most = SECTOR // np.dtype(dtype).itemsize
    cuts, start = [], 0
    while start < entries:
        left = entries - start
        width = min(1 << (left - 1).bit_length() if past_the_end else 1 << left.bit_length() - 1, most)
        cuts.append((start, width))
        start += width
    return cuts


def indices(index: jax.Array, start: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns the entries ``start`` to ``start + width`` of every lane's record, as indices (lanes, width)."""
    shape = (index.shape[0], width)
    return lax.broadcast_in_dim(index, shape, (0,)), lax.broadcasted_iota(jnp.int32, shape, 1) + np.int32(start)


def side_by_side(vectors: Sequence[jax.Array]) -> jax.Array:
    """Puts vectors (lanes,), a power of two of them, side by side as the columns of (lanes, columns)."""
    if len(vectors) == 1:
        return vectors[0][:, None]
    halves = [half[0] if len(half) == 1 else side_by_side(half) for half in (vectors[0::2], vectors[1::2])]
    return jnp.stack(halves, -1).reshape(-1, len(vectors))


def columns(tile: jax.Array) -> list[jax.Array]:
    """Inverts `side_by_side`."""
    lanes, width = tile.shape
    if width == 1:
        return [tile.reshape(lanes)]
    if width == 2:
        return list(jnp.unstack(tile, axis=-1))
    even, odd = (columns(half) for half in jnp.unstack(tile.reshape(lanes, width // 2, 2), axis=-1))
    return [column for pair in zip(even, odd, strict=True) for column in pair]
