"""Seams: where chunks meet, the state that one is entered with must be the one that its neighbour is left with.

Entry states come from a scan of summaries, and a summary can hold less than the recursion itself. What a stretch of time says
of its beginning is an information matrix, which grows without bound along directions that no noise enters: beside it, float32
loses what is known of the others. So a sweep is checked as the program runs: where a chunk's entry state differs from its
neighbour's exit state by more than half of the digits, chunks are swept again, from the states that their neighbours were left
with. Every round makes at least one more chunk what the sequential recursion would make it; most models need none. In the
module `relay`, where a round may take few steps, states are brought together further than that, up to rounding.

States are arrays (rows, columns, C, B or 1) here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.arrays import diagonal

CHUNK_AXIS = -2


def tolerance(dtype: Any) -> float:
    """Returns by how many standard deviations states may differ and still count as the same: about half of the digits."""
    return float(jnp.finfo(dtype).eps) ** 0.5 / 4


def rounding(dtype: Any) -> float:
    """Returns by how many standard deviations states may differ from rounding alone."""
    return 16 * float(jnp.finfo(dtype).eps)


def gaussians_apart(entered: Any, left: Any) -> jax.Array:
    """Measures how far states are apart, in standard deviations: means and covariances, or information in these forms.

    What is less than rounding of a mean, or of the largest one that any chunk is entered with, is no difference.
    """
    (mean, cov), (other_mean, other_cov) = entered, left
    eps = float(jnp.finfo(mean.dtype).eps)
    sd = jnp.sqrt(jnp.maximum(diagonal(other_cov), 0))
    rounding = 8 * eps * _largest(other_mean)
    means = _apart(mean, other_mean, 32 * eps * jnp.abs(other_mean) + rounding, sd)
    covs = _apart(cov, other_cov, _outer(rounding), _outer(sd))
    return jnp.maximum(means.max(), covs.max())


def vectors_apart(entered: jax.Array, left: jax.Array) -> jax.Array:
    """Measures how far vectors are apart. Nothing says how large a difference matters but the largest entry of any chunk."""
    largest = _largest(left)
    return _apart(entered, left, jnp.zeros_like(largest), largest).max()


def weights_apart(entered: jax.Array, left: jax.Array) -> jax.Array:
    """Measures how far non-negative numbers are apart, relative to each."""
    return _apart(entered, left, jnp.zeros_like(left), left).max()


def scores_apart(entered: jax.Array, left: jax.Array) -> jax.Array:
    """Measures how far scores are apart, logarithms relative to the largest, beside what they are rounded from."""
    return _apart(entered, left, jnp.zeros_like(left), jnp.maximum(jnp.abs(left), 1)).max()


def numbers_apart(entered: jax.Array, left: jax.Array) -> jax.Array:
    """Tells whether numbers differ: infinitely, or not at all."""
    return jnp.where(entered == left, 0, jnp.inf).max()


def neighbours(first: Any, exits: Any, *, reverse: bool) -> Any:
    """Returns the state that every chunk should be entered with: its neighbour's exit, or where there is none, that of
    ``first``.
    """

    def one(first: jax.Array, exits: jax.Array) -> jax.Array:
        C = exits.shape[CHUNK_AXIS]
        shift = (-1, 1, 0) if reverse else (1, -1, 0)
        padding = [shift if axis == exits.ndim + CHUNK_AXIS else (0, 0, 0) for axis in range(exits.ndim)]
        others = lax.pad(exits, jnp.zeros((), exits.dtype), padding)
        return jnp.where(jnp.arange(C)[:, None] == (C - 1 if reverse else 0), first, others)

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


def _apart(x: jax.Array, y: jax.Array, allowed: jax.Array, scale: jax.Array) -> jax.Array:
    """Measures differences beyond what is allowed, in units of a scale."""
    far = jnp.abs(x - y) - allowed
    return jnp.where((x != x) ^ (y != y), jnp.inf, jnp.where(far > 0, far / scale, 0))
