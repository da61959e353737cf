"""Seams: where chunks meet, the state that one is entered with must be the one that its neighbour is left with.

Entry states come from a scan of summaries, and a summary can hold less than the recursion itself. What a stretch of time says
of its beginning is an information matrix, which grows without bound along directions that no noise enters: beside it, float32
loses what is known of the others. So a sweep is checked as the program runs: where a chunk's entry state differs from its
neighbour's exit state by more than half of the digits, chunks are swept again, from the states that their neighbours were left
with. Every round makes at least one more chunk what the sequential recursion would make it; most models need none.

States are arrays (rows, columns, C, B or 1) here.
"""

from typing import Any

import jax
import jax.numpy as jnp

CHUNK_AXIS = -2


def tolerance(dtype: Any) -> float:
    """Returns by how many standard deviations states may differ and still count as the same: about half of the digits."""
    return float(jnp.finfo(dtype).eps) ** 0.5 / 4


def gaussians_agree(entered: Any, left: Any) -> jax.Array:
    """Tells whether states are the same, each a mean and a covariance, or information in these forms.

    What is less than rounding of a mean, or of the largest one that any chunk is entered with, is no difference.
    """
    (mean, cov), (other_mean, other_cov) = entered, left
    eps = float(jnp.finfo(mean.dtype).eps)
    sd = jnp.sqrt(jnp.maximum(jnp.stack([other_cov[i, i] for i in range(len(cov))]), 0))[:, None]
    rounding = 8 * eps * _largest(other_mean)
    means = _close(mean, other_mean, tolerance(mean.dtype) * sd + 32 * eps * jnp.abs(other_mean) + rounding)
    covs = _close(cov, other_cov, tolerance(cov.dtype) * _outer(sd) + _outer(rounding))
    return (means.all((0, 1)) & covs.all((0, 1))).all()


def vectors_agree(entered: jax.Array, left: jax.Array) -> jax.Array:
    """Tells whether vectors are the same. Nothing says how large a difference matters but the largest entry of any chunk."""
    return _close(entered, left, tolerance(left.dtype) * _largest(left)).all()


def neighbours(first: Any, exits: Any, *, reverse: bool) -> Any:
    """Returns the state that every chunk should be entered with: its neighbour's exit, or where there is none, that of
    ``first``.
    """

    def one(first: jax.Array, exits: jax.Array) -> jax.Array:
        C = exits.shape[CHUNK_AXIS]
        others = exits[..., 1:, :] if reverse else exits[..., : C - 1, :]
        first = jnp.broadcast_to(first, jnp.broadcast_shapes(first.shape, exits.shape))
        end = first[..., C - 1 :, :] if reverse else first[..., :1, :]
        others = jnp.broadcast_to(others, (*others.shape[:-1], end.shape[-1]))
        return jnp.concatenate((others, end) if reverse else (end, others), CHUNK_AXIS)

    return jax.tree.map(one, first, exits)


def facing(entered: Any, left: Any, *, reverse: bool) -> tuple[Any, Any]:
    """Returns both sides of every seam: the states that chunks are entered with, and those that their neighbours are left
    with.
    """
    later, earlier = (
        jax.tree.map(lambda x, part=part: x[..., part, :], (entered, left)) for part in (slice(1, None), slice(-1))
    )
    return (earlier[0], later[1]) if reverse else (later[0], earlier[1])


def _largest(x: jax.Array) -> jax.Array:
    size = jnp.abs(x)
    return jnp.where(jnp.isfinite(size), size, 0).max(CHUNK_AXIS, keepdims=True)


def _outer(sd: jax.Array) -> jax.Array:
    return sd * jnp.swapaxes(sd, 0, 1)


def _close(x: jax.Array, y: jax.Array, allowed: jax.Array) -> jax.Array:
    return (jnp.abs(x - y) <= allowed) | ((x != x) & (y != y))
