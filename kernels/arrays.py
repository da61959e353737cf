"""Arrays and how they lie: axes in two orders, types under `shard_map`, blank ones, and a choice of two.

Matrices lie in series, a row a matrix, and in lanes, whose axes are the last ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def varying(x: Any) -> frozenset:
    """The axes of `shard_map` along which an array may differ between devices."""
    kind = getattr(x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x), "manual_axis_type", None)
    return frozenset() if kind is None else kind.varying


def vary_over(axes: frozenset, x: jax.Array) -> jax.Array:
    """An array that may differ along these axes of `shard_map`, too."""
    more = axes - varying(x)
    return lax.pcast(x, tuple(sorted(more)), to="varying") if more else x


def blank(x: Any, shape: tuple[int, ...]) -> jax.Array:
    """Zeros of another shape, else of an array's type."""
    return vary_over(varying(x), jnp.zeros(shape, x.dtype))


def select(condition: jax.Array, chosen: jax.typing.ArrayLike, other: jax.typing.ArrayLike) -> jax.Array:
    """`jnp.where` without its jit, which inside a stage would be a stage of its own."""
    dtype = jnp.result_type(chosen, other)
    shape = jnp.broadcast_shapes(condition.shape, jnp.shape(chosen), jnp.shape(other))
    chosen, other = (jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x in (chosen, other))
    return lax.select(jnp.broadcast_to(condition, shape), chosen, other)


def as_rows(tree: Any) -> Any:
    """Arrays (n, p, C, B) as (B, C, n, p)."""
    return jax.tree.map(lambda x: x.transpose(3, 2, 0, 1), tree)


def as_lanes(tree: Any) -> Any:
    """Arrays (B, C, n, p) as (n, p, C, B)."""
    return jax.tree.map(lambda x: x.transpose(2, 3, 1, 0), tree)


def prepend(first: jax.Array, rows: jax.Array) -> jax.Array:
    """A series (B or 1, T, n, p) with rows (B or 1, 1, n, p) before it."""
    B = max(first.shape[0], rows.shape[0])
    return jnp.concatenate([jnp.broadcast_to(x, (B, *x.shape[1:])) for x in (first, rows)], 1)
