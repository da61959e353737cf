"""The E-step of a linear-Gaussian model: sums over time, so that no covariance is kept for every step."""

from typing import Any

import jax

from fastscan.kernels.lgssm.smoothing import SmootherSums
from fastscan.lgssm import inference
from fastscan.lgssm.problem import Given, prepare
from fastscan.lgssm.timing import plain_params


def smoothed_sums(params: Any, emissions: jax.Array, inputs: jax.Array | None) -> tuple[jax.Array, jax.Array, SmootherSums]:
    """Computes log-likelihoods (B,), smoothed means (B, T, D), and sums of every sequence's smoothed covariances (B, D, D).

    Args:
        params: the model.
        emissions: (B, T, m), none of which is missing.
        inputs: (T, U), (B, T, U) or None.
    """
    params = plain_params(params, emissions.shape[1], inputs, "arrival")
    model, emissions, _, how = prepare(Given(params), emissions, inputs, False, None)
    densities, means, sums = inference.smoothed_sums(model, emissions, how)
    return densities[..., 0, 0].sum(1), means[..., 0], sums
