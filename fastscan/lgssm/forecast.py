"""Emissions that a linear-Gaussian model expects: smoothed at the times of the data, and forecast after them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fastscan.arrays import deviation
from fastscan.given import ShapeError, array, count, emissions_array, promoted, seen
from fastscan.kernels.algebra import Stacked
from fastscan.kernels.arrays import matmul
from fastscan.kernels.ranges import ranged
from fastscan.kernels.tables import is_table
from fastscan.lgssm import lgssm_filter, lgssm_smoother
from fastscan.lgssm.check import check_emissions, check_model
from fastscan.lgssm.covariances import check_covariances
from fastscan.lgssm.layout import known_terms, noise_of
from fastscan.lgssm.timing import plain_params
from fastscan.regimes import as_series, over_rows, products


@ranged
def lgssm_posterior_predictive(
    params: Any,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    timing: str = "arrival",
) -> tuple[jax.Array, jax.Array]:
    """Computes means and standard deviations of emissions at the times of the data, given the data: dynamax's
    ``posterior_predictive``.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, U), (B, T, U) or None.
        implementation: None, or a name as in `fastscan.lgssm`.
        timing: the convention of time-varying dynamics, as in `fastscan.lgssm`.

    Returns:
        Means and standard deviations, both as the emissions.

    Raises:
        TypeError: arrays of anything but numbers, a key that is not a random key, parameters without a model's fields.
        ValueError: shapes that do not fit together, matrices that are not covariances, an unknown name of an option.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    inputs = None if inputs is None else array("inputs", inputs)
    y, params = _given(params, emissions, 0, inputs, timing)
    return _predictive(params, y, inputs, implementation)


def _given(params: Any, emissions: Any, more: int, inputs: Any, timing: str) -> tuple[Any, Any]:
    """Returns the emissions, and parameters of as many steps and more, checked as far as their values are known."""
    emissions = emissions_array(emissions)
    T = (emissions.shape[-2] if emissions.ndim > 1 else 0) + more
    params = plain_params(params, T, inputs, timing)
    if seen(emissions):
        check_covariances(params, T)
    return emissions, params


@functools.partial(jax.jit, static_argnames="implementation")
def _predictive(params: Any, emissions: Any, inputs: Any, implementation: str | None) -> tuple[jax.Array, jax.Array]:
    emissions = check_emissions(emissions)
    posterior = lgssm_smoother(params, emissions, inputs, implementation=implementation)
    means, covs = posterior.smoothed_means, posterior.smoothed_covariances
    mean, signal, noise = _emitted(params, emissions, inputs, means, covs)
    signal, noise = (jnp.diagonal(x, axis1=-2, axis2=-1) for x in (signal, noise))
    return mean, deviation(jnp.where(signal < 0, 0, signal) + noise).reshape(mean.shape)  # below zero by rounding


@ranged
def lgssm_forecast(
    params: Any,
    emissions: jax.typing.ArrayLike,
    num_forecast_timesteps: int,
    inputs: jax.typing.ArrayLike | None = None,
    forecast_inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    timing: str = "arrival",
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Forecasts states and emissions after the data: dynamax's ``forecast``, including the inputs' effect on emissions.

    Args:
        params: the model; what varies in time must do so for T + ``num_forecast_timesteps`` steps.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        num_forecast_timesteps: N, at least 1.
        inputs: (T, U), (B, T, U) or None.
        forecast_inputs: (N, U), (B, N, U) or None, as the inputs.
        implementation: None, or a name as in `fastscan.lgssm`.
        timing: the convention of time-varying dynamics, as in `fastscan.lgssm`.

    Returns:
        Means (N, D) and covariances (N, D, D) of the states, means (N, m) and covariances (N, m, m) of the emissions; for a
        batch with a leading axis.

    Raises:
        TypeError: arrays of anything but numbers, a key that is not a random key, parameters without a model's fields.
        ValueError: shapes that do not fit together, matrices that are not covariances, an unknown name of an option.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    y: Any = emissions_array(emissions)
    N, T = count("num_forecast_timesteps", num_forecast_timesteps), y.shape[-2] if y.ndim > 1 else 0
    before, after = _columns("inputs", inputs), _columns("forecast_inputs", forecast_inputs)
    if (before is None) != (after is None):
        raise ValueError("inputs, forecast_inputs: one of them given, wanted both or none.")
    inputs = None
    if before is not None and after is not None:
        if (before.shape[-2:-1], after.shape[-2:-1]) != ((T,), (N,)) or before.shape[-1] != after.shape[-1]:
            wanted = f"wanted (..., {T}, U) and (..., {N}, U)"
            raise ShapeError(f"inputs, forecast_inputs: shapes {before.shape} and {after.shape} given, {wanted}.")
        inputs = _joined(before, after)
    y, params = _given(params, y, N, inputs, timing)
    return _forecast(params, y, inputs, N, implementation)


@functools.partial(jax.jit, static_argnames=("N", "implementation"))
def _forecast(params: Any, emissions: Any, inputs: Any, N: int, implementation: str | None) -> tuple[jax.Array, ...]:
    emissions = check_emissions(emissions)
    emissions = emissions.astype(promoted([emissions.dtype]))
    unknown = jnp.full((*emissions.shape[:-2], N, emissions.shape[-1]), jnp.nan, emissions.dtype)
    emissions = jnp.concatenate([emissions, unknown], -2)
    filtered: Any = lgssm_filter(params, emissions, inputs, implementation=implementation, missing=True)
    means, covs = filtered.filtered_means, filtered.filtered_covariances
    mean, signal, noise = _emitted(params, emissions, inputs, means, covs)
    cov = (signal + noise).reshape(*mean.shape, mean.shape[-1])
    return means[..., -N:, :], covs[..., -N:, :, :], mean[..., -N:, :], cov[..., -N:, :, :]


def _columns(name: str, x: Any) -> Any:
    """Inputs as an array, or None if there are none, or none of them has a column."""
    x = None if x is None else array(name, x)
    return None if x is None or x.shape[-1:] == (0,) else x


@jax.jit
def _joined(before: Any, after: Any) -> jax.Array:
    """Inputs one after the other, of which one may have a batch axis."""
    lead = jnp.broadcast_shapes(before.shape[:-2], after.shape[:-2])
    return jnp.concatenate([jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (before, after)], -2)


def _emitted(params: Any, emissions: jax.Array, inputs: Any, mean: Any, cov: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means of emissions, from the states'; and their covariances, of what the states make of them and of noise."""
    batch = emissions.shape[0] if emissions.ndim == 3 else None
    model, sizes = check_model(params, emissions.shape[-2], batch, emissions.dtype, inputs)
    _, offset = known_terms(model)
    H, R = model.H, as_series(noise_of(model))
    R = R * jnp.eye(sizes.m, dtype=R.dtype) if R.shape[-1] == 1 else R
    mean, cov = mean.reshape(-1, sizes.T, sizes.D, 1), cov.reshape(-1, sizes.T, sizes.D, sizes.D)
    emitted = products(H, mean) + offset
    signal = over_rows(_signal, H.filled(), cov) if is_table(H) else matmul(matmul(H, cov), H.mT)
    return emitted.reshape(emissions.shape), signal, jnp.broadcast_to(R, signal.shape)


def _signal(H: jax.Array, cov: jax.Array) -> jax.Array:
    weights = Stacked(H)
    return (weights @ Stacked(cov) @ weights.T).array
