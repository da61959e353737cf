"""Models that are measured and compiled: a linear-Gaussian one with full matrices, and the mixture that chains walk in."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats
from jax.scipy.special import logsumexp

from fastscan import ParamsLGSSM, make_lgssm_params

LOC = np.array([[-2, 0, 3.2, 2.5]], "float32").T
SCALE = np.array([[1.2, 1, 5, 2.8]], "float32").T
WEIGHTS = np.array([[0.2, 0.3, 0.1, 0.4]], "float32").T


def mixture(x: jax.Array) -> jax.Array:
    """Computes the log density of four normal distributions' mixture: (1, chains) to (chains,)."""
    return logsumexp(stats.norm.logpdf(x, LOC, SCALE) + np.log(WEIGHTS), axis=0)


def random_params(D: int, m: int, dtype: jax.typing.DTypeLike = "float32", seed: int = 0) -> ParamsLGSSM:
    """Makes a stable model with full matrices everywhere: a shrunken rotation, and well-conditioned covariances.

    Args:
        D: state dimensions.
        m: emission dimensions.
        dtype: float32, or float64 where JAX has it enabled.
        seed: of the matrices.
    """
    r = np.random.default_rng(seed)

    def covariance(n: int) -> np.ndarray:
        a = 0.4 * r.normal(size=(n, n))
        return a @ a.T + 0.3 * np.eye(n)

    rotation = np.linalg.qr(r.normal(size=(D, D)))[0]
    arrays = (np.zeros(D), covariance(D), 0.95 * rotation, covariance(D), r.normal(size=(m, D)), covariance(m))
    return make_lgssm_params(*(jnp.asarray(x, dtype) for x in arrays))
