"""Arrays of a kind: those that may differ between the devices of `shard_map`, blank ones, and a choice of two."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def varying(x: Any) -> frozenset:
    """Returns the axes of `shard_map` along which an array may differ between devices."""
    kind = getattr(x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x), "manual_axis_type", None)
    return frozenset() if kind is None else kind.varying


def vary_over(axes: frozenset, x: jax.Array) -> jax.Array:
    """Makes an array one that may differ along these axes of `shard_map`, too."""
    more = axes - varying(x)
    return lax.pcast(x, tuple(sorted(more)), to="varying") if more else x


def blank(x: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns zeros of another shape, else of an array's type."""
    return vary_over(varying(x), jnp.zeros(shape, x.dtype))


def select(condition: jax.Array, chosen: jax.typing.ArrayLike, other: jax.typing.ArrayLike) -> jax.Array:
    """Does as `jnp.where`, but without its jit, which inside a stage would be a stage of its own."""
    dtype = jnp.result_type(chosen, other)
    shape = jnp.broadcast_shapes(condition.shape, jnp.shape(chosen), jnp.shape(other))
    chosen, other = (jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x in (chosen, other))
    return lax.select(jnp.broadcast_to(condition, shape), chosen, other)
