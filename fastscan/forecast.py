"""What a linear-Gaussian model says of emissions: of those observed, smoothed; and of those to come."""

from typing import Any

import jax
import jax.numpy as jnp

from fastscan.kernels.ranges import ranged
from fastscan.lgssm import lgssm_filter, lgssm_smoother
from fastscan.model import check_emissions, check_model, known_terms, product


@ranged
def lgssm_posterior_predictive(
    params: Any,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What the data say of other emissions at the same times: dynamax's ``posterior_predictive``.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, U), (B, T, U) or None.
        implementation: None, or a name as in `fastscan.lgssm`.

    Returns:
        Means and standard deviations, both as the emissions.

    Raises:
        TypeError, ValueError: what was given, what was wanted.
    """
    emissions = check_emissions(emissions)
    posterior = lgssm_smoother(params, emissions, inputs, implementation=implementation)
    mean, cov = _emitted(params, emissions, inputs, posterior.smoothed_means, posterior.smoothed_covariances)
    return mean, jnp.sqrt(jnp.diagonal(cov, axis1=-2, axis2=-1))


@ranged
def lgssm_forecast(
    params: Any,
    emissions: jax.typing.ArrayLike,
    num_forecast_timesteps: int,
    inputs: jax.typing.ArrayLike | None = None,
    forecast_inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """States and emissions after the data, given the data: dynamax's ``forecast``, inputs' effect on emissions included.

    Args:
        params: the model; what varies in time must do so for T + ``num_forecast_timesteps`` steps.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        num_forecast_timesteps: N, at least 1.
        inputs: (T, U), (B, T, U) or None.
        forecast_inputs: (N, U), (B, N, U) or None, as the inputs.
        implementation: None, or a name as in `fastscan.lgssm`.

    Returns:
        Means (N, D) and covariances (N, D, D) of the states, means (N, m) and covariances (N, m, m) of the emissions; for a
        batch with a leading axis.

    Raises:
        TypeError, ValueError: what was given, what was wanted.
    """
    emissions, N = check_emissions(emissions), num_forecast_timesteps
    T = emissions.shape[-2]
    if N < 1:
        raise ValueError(f"num_forecast_timesteps: {N} given, wanted at least 1.")
    if (inputs is None) != (forecast_inputs is None):
        raise ValueError("inputs, forecast_inputs: one of them given, wanted both or none.")
    if inputs is not None and forecast_inputs is not None:
        before, after = jnp.shape(inputs), jnp.shape(forecast_inputs)
        if (before[-2:-1], after[-2:-1]) != ((T,), (N,)):
            wanted = f"wanted (..., {T}, U) and (..., {N}, U)"
            raise ValueError(f"inputs, forecast_inputs: shapes {before} and {after} given, {wanted}.")
    unknown = jnp.full((*emissions.shape[:-2], N, emissions.shape[-1]), jnp.nan, emissions.dtype)
    emissions = jnp.concatenate([emissions, unknown], -2)
    if inputs is not None:
        inputs = jnp.concatenate([jnp.asarray(inputs), jnp.asarray(forecast_inputs)], -2)
    _, means, covs, *_ = lgssm_filter(params, emissions, inputs, implementation=implementation, missing=True)
    moments: Any = (means, covs, *_emitted(params, emissions, inputs, means, covs))
    return moments[0][..., -N:, :], moments[1][..., -N:, :, :], moments[2][..., -N:, :], moments[3][..., -N:, :, :]


def _emitted(params: Any, emissions: jax.Array, inputs: Any, mean: Any, cov: Any) -> tuple[jax.Array, jax.Array]:
    """Moments of emissions, from the states'."""
    batch = emissions.shape[0] if emissions.ndim == 3 else None
    model, sizes = check_model(params, emissions.shape[-2], batch, emissions.dtype, inputs)
    _, offset = known_terms(model)
    H, R = model.H, model.R
    R = R * jnp.eye(sizes.m, dtype=R.dtype) if R.shape[-1] == 1 else R
    emitted = product(H, mean[..., None]) + offset
    spread = product(product(H, cov), H.mT) + R
    return emitted.reshape(emissions.shape), spread.reshape(*emissions.shape, sizes.m)
