"""How small a fitted covariance may become: a fraction of what the data vary by.

Without a floor a likelihood has no maximum where data are constant, or a state has one emission: a variance goes to zero and
takes the log-likelihood to infinity. Of all covariances with eigenvalues of at least a floor, a sum of Gaussian log densities
is greatest at the sample covariance with its eigenvalues raised to that floor; so EM never falls for it, if it starts above
(Ingrassia & Rocci, 2007, Computational Statistics & Data Analysis 51).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.kernels.arrays import matmul

FLOOR = {jnp.dtype("float32"): 1e-6, jnp.dtype("float64"): 1e-12}
"""The least variance of noise, over the data's own: in every direction, with every channel measured in its standard deviation.

It lies about as far above rounding as squares of the data can be told apart from it. Where their mean is so large that they
themselves are rounded to more, to ``4 eps`` of it, that is the least standard deviation.
"""


class Floor(NamedTuple):
    """The least covariance, ``fraction * diag(scale**2)``.

    Attributes:
        scale: of every channel (m,).
        fraction: `FLOOR`, or less where EM starts below half of that; a fit that goes on at its floor starts there, but for
            rounding.
    """

    scale: jax.Array
    fraction: jax.Array


def floor(emissions: jax.Array, covs: jax.Array) -> Floor:
    """Find the floor of covariances that data are to be fitted with.

    Args:
        emissions: (B, T, m); NaN entries are missing.
        covs: where EM starts, (..., m, m), or variances (m,). They measure the channels whose data are constant. A floor above
            them would make the likelihood fall, so they bound it, too.
    """
    dtype = covs.dtype
    matrices = jnp.diag(covs) if covs.ndim == 1 else covs
    seen = ~jnp.isnan(emissions)
    count = jnp.maximum(seen.sum((0, 1)), 1)
    mean = jnp.where(seen, emissions, 0).sum((0, 1)) / count
    variance = jnp.where(seen, (emissions - mean) ** 2, 0).sum((0, 1)) / count
    rounding = (4 * jnp.finfo(dtype).eps * mean) ** 2  # of emissions, and of what is predicted of them
    start = jnp.diagonal(matrices, axis1=-2, axis2=-1).reshape(-1, len(mean)).mean(0)
    scale = jnp.where(variance > rounding, variance, start)
    scale = jnp.sqrt(jnp.maximum(scale, rounding / FLOOR[dtype])).astype(dtype)
    least = jnp.linalg.eigvalsh(_in_units(matrices, scale)).min()
    return Floor(scale, jnp.where(least < FLOOR[dtype] / 2, jnp.maximum(least, 0), FLOOR[dtype]).astype(dtype))


def raised(cov: jax.Array, floor: Floor) -> tuple[jax.Array, jax.Array]:
    """Raise a covariance (m, m), or variances (m,), to the floor; say which channels that concerns (m,).

    A covariance much larger than the data's, after a poor start, is also raised to what its own rounding leaves definite.
    """
    if cov.ndim == 1:
        least = floor.fraction * floor.scale**2
        return jnp.maximum(cov, least), cov < least
    cov, low = _lifted(cov, floor.scale, floor.fraction)
    rounding = 4 * len(cov) * jnp.finfo(cov.dtype).eps
    cov, _ = _lifted(cov, jnp.sqrt(jnp.maximum(jnp.diagonal(cov), 0)), jnp.where(floor.fraction > 0, rounding, 0))
    return cov, low


def _lifted(cov: jax.Array, scale: jax.Array, least: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Raise eigenvalues in units of the scale, by an addition: what lies above keeps its bits."""
    values, vectors = jnp.linalg.eigh(_in_units(cov, scale))
    lift = jnp.maximum(least - values, 0)
    scaled = scale[:, None] * vectors
    return cov + matmul(scaled * lift, scaled.T), leaning(vectors, lift > 0)


def leaning(vectors: jax.Array, chosen: jax.Array) -> jax.Array:
    """Say which coordinates (n,) some of the unit vectors, columns (n, n), lean on: with a tenth of the most, or more."""
    share = vectors**2
    return ((share >= 0.1 * share.max(0)) & chosen).any(1)


def factor(S: jax.Array) -> jax.Array:
    """Take a square root L of a positive semi-definite matrix, S = L L', whatever rounding made of its zero eigenvalues."""
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(S), 0))
    values, vectors = jnp.linalg.eigh(_in_units(S, scale))
    return scale[:, None] * vectors * jnp.sqrt(jnp.maximum(values, 0))


def _in_units(S: jax.Array, scale: jax.Array) -> jax.Array:
    inverse: Any = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    return S * inverse[:, None] * inverse
