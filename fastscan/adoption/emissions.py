"""Log-likelihoods of dynamax's Gaussian emissions: every state's covariance is factored once, not solved with at every step."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fastscan.kernels.arrays import matmul


def answer_logliks(models: Any, original: Callable) -> Callable:
    """Makes a method from dynamax's, which it calls for emissions that are not Gaussian with full covariances.

    Args:
        models: the package of dynamax's models.
        original: the method `HMMEmissions._compute_conditional_logliks`.
    """
    gaussian = models.gaussian_hmm.GaussianHMMEmissions.distribution
    regression = models.linreg_hmm.LinearRegressionHMMEmissions.distribution

    def compute_conditional_logliks(self: Any, params: Any, emissions: Any, inputs: Any = None) -> Any:
        distribution = type(self).distribution  # that of a user's own class is the user's
        if distribution is gaussian:
            return _logliks(emissions, params.means, params.covs)
        if distribution is regression and inputs is not None:
            return _logliks(emissions, params.biases, params.covs, params.weights, inputs)
        return original(self, params, emissions, inputs)

    return compute_conditional_logliks


@jax.jit
def _logliks(emissions: Any, means: Any, covs: Any, weights: Any = None, inputs: Any = None) -> jax.Array:
    """Computes the log densities (T, K) of emissions (T, m) under K Gaussians, whose means may move with inputs (T, p).

    Args:
        emissions: (T, m).
        means: (K, m), without inputs.
        covs: (K, m, m).
        weights: (K, m, p) of the inputs, or None.
        inputs: (T, p), or None.
    """
    root = jax.lax.linalg.cholesky(covs, symmetrize_input=False)
    apart = emissions.T - means[..., None]  # (K, m, T)
    if weights is not None:
        apart = apart - matmul(weights, inputs.T)
    squares = (jax.scipy.linalg.solve_triangular(root, apart, lower=True) ** 2).sum(1)
    log_scale = jnp.log(jnp.diagonal(root, axis1=1, axis2=2)).sum(1) + 0.5 * root.shape[-1] * math.log(2 * math.pi)
    return (-0.5 * squares - log_scale[:, None]).T
