"""Recursions part of whose state settles, up to rounding: from then on that part is constant, and the rest is affine.

A time-invariant model's covariances are such a part. They are computed row by row until they have settled, and then no more.
What is left, the means, moves by one constant matrix: a chunk's summary is a vector, and chunks of time are the columns of real
products of matrices (XLA).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import stable_carry
from fastscan.kernels.arrays import alike, diagonal, matmul, put

BLOCK, MOST_ROUNDINGS = 16, 64
"""The fewest rows from one look at a covariance to the next; and the most roundings that two looks may differ by."""
FILL = 16
"""The rows of a buffer that are filled at once."""


def settled(before: jax.Array, after: jax.Array, rows: jax.Array) -> jax.Array:
    """Tells whether a covariance (D, D, ...) has settled, from what it was some rows before.

    It may have moved by half a rounding for each of these rows, relative to the standard deviations: which a recursion that
    rounds every step can't tell from no movement. Looks lie a third of the rows so far apart, or more. So what moves on
    geometrically, at whatever rate, is far closer to its limit than that.
    """
    sd = jnp.sqrt(jnp.maximum(diagonal(after), 0))
    roundings = jnp.minimum(rows / 2, MOST_ROUNDINGS).astype(after.dtype)
    return (jnp.abs(after - before) <= roundings * jnp.finfo(after.dtype).eps * sd * jnp.swapaxes(sd, 0, 1)).all()


class Settling(NamedTuple):
    """A recursion on its way: rows done, the state after them, outputs, and whether it has settled."""

    rows: Any
    state: Any
    outputs: Any
    over: Any


def until_settled(
    step: Callable, part: Callable, state: Any, outputs: Any, rows: Any, *, start: Any = 0, constant: Callable | None = None
) -> Settling:
    """Runs a recursion until a part of its state has settled, or to the end.

    Args:
        step: ``(state, outputs, t) -> (state, outputs)``.
        part: ``(state) -> covariance``, an array (D, D, ...).
        state: before row ``start``.
        outputs: buffers that steps write to.
        rows: where the rows end.
        start: where they begin.
        constant: ``(start, stop) -> bool``, whether nothing but means varies in these rows; in all, where it is not given.
    """

    def block(was: Settling) -> Settling:
        stop = jnp.minimum(was.rows + jnp.maximum(BLOCK, (was.rows - start) // 3), rows)
        state, outputs = lax.fori_loop(was.rows, stop, lambda t, c: step(*c, t), (was.state, was.outputs))
        length = stop - was.rows
        same = (length >= BLOCK) & settled(part(was.state), part(state), length)
        return Settling(stop, state, outputs, same if constant is None else same & constant(was.rows, stop))

    state = stable_carry(lambda s, t: step(s, outputs, t), state, jnp.int32(0))
    begun = Settling(*alike((jnp.asarray(start, jnp.int32), state, outputs, jnp.bool_(False)), rows))
    return lax.while_loop(lambda now: ~now.over & (now.rows < rows), block, begun)


def fill(buffer: jax.Array, value: jax.Array, start: Any, stop: Any) -> jax.Array:
    """Writes a value (...) into the rows from ``start`` to ``stop`` of a buffer (rows, ...): some at once, and the last of them
    twice, or one by one if they are few.
    """
    few = stop - start < FILL
    several = jnp.broadcast_to(value, (min(FILL, len(buffer)), *value.shape))

    def write(k: Any, x: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(x, several, jnp.minimum(start + k * FILL, stop - FILL), 0)

    buffer = lax.fori_loop(0, jnp.where(few, 0, (stop - start + FILL - 1) // FILL), write, buffer)
    return lax.fori_loop(start, jnp.where(few, stop, start), lambda t, x: put(x, value, t), buffer)


def sweep_vectors(step: Callable, matrix: jax.Array, state: jax.Array, rows: Any, there: Callable, *, reverse: bool) -> Any:
    """Runs a recursion of vectors that moves by one matrix, chunks of time side by side.

    Args:
        step: ``(state, row) -> (state, outputs)``, of states (D, lanes), affine in the state.
        matrix: what it multiplies states by (D, D).
        state: before the first row, (D, B).
        rows: arrays (L, n, C, B).
        there: from a row's number within its chunk, which chunks hold it, (C, 1); rows that do not lie at either end of time
            are all held.
        reverse: time runs from the last row to the first.

    Returns:
        The outputs, arrays (L, n, C, B); those of rows that are not there are meaningless.
    """
    L, _, C, B = jax.tree.leaves(rows)[0].shape
    order = jnp.arange(L)

    def flat(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(x.shape[0], C * B), tree)

    def one(state: jax.Array, row: Any) -> tuple[jax.Array, Any]:
        x, t = row
        after, out = step(state, flat(x))
        held = jnp.broadcast_to(there(t), (C, B)).reshape(C * B)
        return jnp.where(held, after, state), out

    # all chunks from zeros, but for those before anything has happened, which hand on the state there was
    held = jax.vmap(there)(order).any(0)[:, 0]
    first = (C - 1 - jnp.argmax(held[::-1])) if reverse else jnp.argmax(held)
    begun = jnp.where((jnp.arange(C) == first)[:, None], state[:, None], 0).reshape(-1, C * B)
    exits, _ = lax.scan(lambda s, row: (one(s, row)[0], None), begun, (rows, order), reverse=reverse)
    exits = jnp.moveaxis(exits.reshape(-1, C, B), 1, 0)

    def enter(entry: jax.Array, chunk: Any) -> tuple[jax.Array, jax.Array]:
        exit, c = chunk
        later = (c < first) if reverse else (c > first)
        after = exit + jnp.where(later, matmul(power, entry), 0)
        return jnp.where(later | (c == first), after, entry), entry

    power = _power(matrix, L)
    _, entries = lax.scan(enter, state, (exits, jnp.arange(C)), reverse=reverse)
    entries = jnp.moveaxis(entries, 0, 1).reshape(-1, C * B)
    _, out = lax.scan(one, entries, (rows, order), reverse=reverse)
    return jax.tree.map(lambda x: x.reshape(L, x.shape[1], C, B), out)


def _power(matrix: jax.Array, n: int) -> jax.Array:
    """Raises a matrix to a power, by squaring."""
    if n == 1:
        return matrix
    half = _power(matrix, n // 2)
    square = matmul(half, half)
    return matmul(square, matrix) if n % 2 else square
