"""The two orders of axes that matrices come in: of series, a row a matrix, and of lanes, whose axes are the last ones."""

from typing import Any

import jax
import jax.numpy as jnp


def as_rows(tree: Any) -> Any:
    """Transposes arrays (n, p, C, B) to (B, C, n, p)."""
    return jax.tree.map(lambda x: x.transpose(3, 2, 0, 1), tree)


def as_lanes(tree: Any) -> Any:
    """Transposes arrays (B, C, n, p) to (n, p, C, B)."""
    return jax.tree.map(lambda x: x.transpose(2, 3, 1, 0), tree)


def prepend(first: jax.Array, rows: jax.Array) -> jax.Array:
    """Puts rows (B or 1, 1, n, p) before a series (B or 1, T, n, p)."""
    B = max(first.shape[0], rows.shape[0])
    return jnp.concatenate([jnp.broadcast_to(x, (B, *x.shape[1:])) for x in (first, rows)], 1)
