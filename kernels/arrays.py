"""Arrays and how they lie: axes in two orders, rows, types under `shard_map`, blank ones, a choice of two, and products.

Matrices lie in series, a row a matrix, and in lanes, whose axes are the last ones.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

matmul = functools.partial(jnp.matmul, precision="highest")
"""The product of matrices, as precise as their dtype."""


def varying(x: Any) -> frozenset:
    """Returns the axes of `shard_map` along which an array may differ between devices."""
    kind = getattr(x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x), "manual_axis_type", None)
    return frozenset() if kind is None else kind.varying


def form_varying(axes: frozenset, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Returns the form of an array that may differ along these axes of `shard_map`."""
    kind = jax.sharding.ManualAxisType(varying=axes) if axes else None
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)


def vary_over(axes: frozenset, x: jax.Array) -> jax.Array:
    """Makes an array one that may differ along these axes of `shard_map`, too."""
    more = axes - varying(x)
    return lax.pcast(x, tuple(sorted(more)), to="varying") if more else x


def alike(tree: Any, *others: Any) -> Any:
    """Makes arrays differ along the same axes of `shard_map`: all those that one of them, or of others, may differ along."""
    axes = frozenset().union(*map(varying, jax.tree.leaves((tree, others))))
    return jax.tree.map(functools.partial(vary_over, axes), tree)


def blank(x: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns zeros of another shape, else of an array's type."""
    return vary_over(varying(x), jnp.zeros(shape, x.dtype))


def select(condition: jax.Array, chosen: jax.typing.ArrayLike, other: jax.typing.ArrayLike) -> jax.Array:
    """Does as `jnp.where`, but without its jit, which inside a stage would be a stage of its own."""
    dtype = jnp.result_type(chosen, other)
    shape = jnp.broadcast_shapes(condition.shape, jnp.shape(chosen), jnp.shape(other))
    chosen, other = (jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x in (chosen, other))
    return lax.select(jnp.broadcast_to(condition, shape), chosen, other)


def broadcasting(operation: Callable, x: jax.Array, y: jax.Array) -> jax.Array:
    """Applies an operation of `lax` to arrays of one dtype and rank, as `jnp` would, which takes longer to trace."""
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    return operation(*(a if a.shape == shape else lax.broadcast_in_dim(a, shape, range(a.ndim)) for a in (x, y)))


def numbers(tree: Any) -> list[jax.Array]:
    """Lists the leaves of a tree that have derivatives; of their derivatives, likewise: an index has none."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def with_numbers(tree: Any, new: Iterable[jax.Array]) -> Any:
    """Returns the same tree with other `numbers`."""
    others = iter(new)
    return jax.tree.map(lambda x: next(others) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def diagonal(x: jax.Array) -> jax.Array:
    """Returns the diagonals of matrices (n, n, ...) as columns (n, 1, ...), by one slice."""
    n = len(x)
    return lax.slice_in_dim(x.reshape(n * n, 1, *x.shape[2:]), 0, n * n, n + 1)


def at(tree: Any, k: Any) -> Any:
    """Reads one row of arrays, of a number that may be known only as the program runs."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, k, keepdims=False), tree)


def put(tree: Any, new: Any, k: Any) -> Any:
    """Writes one row of arrays likewise."""
    return jax.tree.map(lambda x, one: lax.dynamic_update_index_in_dim(x, one, k, 0), tree, new)


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
