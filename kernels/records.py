"""Records, which lie entry beside entry in memory, to and from vectors with an entry per lane, which kernels compute with.

In Triton's terms only: two arrays are stacked, one is unstacked into two, and shapes are powers of two.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def tiles(entries: int, dtype: Any) -> list[tuple[int, int]]:
    """Cuts a record into (start, width) of what a thread moves at once: powers of two, 16 bytes at most."""
    cuts, start = [], 0
    while start < entries:
        width = min(1 << (entries - start).bit_length() - 1, 16 // np.dtype(dtype).itemsize)
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
