"""Inference in nonlinear state-space models, as dynamax 1.0.3 has it; and smoothers that iterate, in parallel over time.

Emissions are (T, m), or (B, T, m) for B sequences; NaN entries are missing. Covariances may vary in time, and may be singular.
Functions take a state (D,), and where inputs are given its input, too: ``u[t]`` acts on the transition into t and on the
emission at t. They may close over arrays. Arrays of different dtypes are promoted as JAX promotes them, to float32 or float64.
All functions can be transformed by `jit`, `vmap` and `grad`.

A filter linearises every step where the last one led, so it runs step by step: ``implementation`` may be None or "sequential".
The way back of a smoother or a sample is linear: None has the fastest implementation run it.
A model that is linear, of which the functions' Jacobians do not read the state, is run by `fastscan.lgssm_smoother` and its
kin, for which ``implementation`` may be any of theirs. So it may for smoothers that iterate.

A function that is NaN, or of which the Jacobian is, is an error outside of `jit`; within, results are NaN.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fastscan import draws
from fastscan.given import check_key, count, seen
from fastscan.kernels.ranges import ranged
from fastscan.lgssm import lgssm_filter, lgssm_posterior_sample, lgssm_smoother
from fastscan.nonlinear import inference
from fastscan.nonlinear.check import Checked, checked
from fastscan.nonlinear.faults import check_found
from fastscan.nonlinear.layout import is_linear, linear_params
from fastscan.nonlinear.models import ParamsGGSSM, ParamsNLGSSM, PosteriorIterated, UKFHyperParams
from fastscan.types import PosteriorGSSMFiltered, PosteriorGSSMSmoothed

MOMENTS = ("filtered_means", "filtered_covariances", "predicted_means", "predicted_covariances")
"""The fields that filters return where none are named."""

UNSCENTED = UKFHyperParams()
"""The sigma points that are taken where none are given, dynamax's."""


@ranged
def extended_kalman_filter(
    params: ParamsNLGSSM | ParamsGGSSM,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    num_iter: int = 1,
    output_fields: Sequence[str] | None = MOMENTS,
    *,
    implementation: str | None = None,
    missing: bool | None = None,
) -> PosteriorGSSMFiltered:
    """Computes means and covariances of the states given the data so far, by the extended Kalman filter.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, ...), or (B, T, U) of B sequences, or None.
        num_iter: how often every emission is linearised: around the prediction, then around what came of it. Every time it is
            the prediction that is conditioned, as Bell and Cathey (1993) have it. (dynamax conditions on the emission again.)
        output_fields: which moments to return, of `MOMENTS`; "marginal_loglik" among them has that after every step, (T,).
        implementation: from the module's docstring.
        missing: True or False if you know whether the data contain NaNs.

    Returns:
        The log-likelihood, and moments. Predicted entry t is of the state at t + 1. There are T of them if no inputs are given
        and the dynamics' covariance is static, otherwise T - 1.

    Raises:
        TypeError: parameters without a model's fields, arrays of anything but numbers, functions of other arguments.
        ValueError: shapes that do not fit together, covariances that are none, functions that are NaN, an unknown option.
    """
    given = checked(params, emissions, inputs, missing)
    return _filter("extended_kalman_filter", given, None, count("num_iter", num_iter), output_fields, implementation)


@ranged
def iterated_extended_kalman_filter(
    params: ParamsNLGSSM | ParamsGGSSM,
    emissions: jax.typing.ArrayLike,
    num_iter: int = 2,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    missing: bool | None = None,
) -> PosteriorGSSMFiltered:
    """Runs `extended_kalman_filter`, with ``num_iter`` linearisations of every emission.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        num_iter: how often every emission is linearised.
        inputs: (T, ...), or (B, T, U) of B sequences, or None.
        implementation: from the module's docstring.
        missing: True or False if you know whether the data contain NaNs.

    Returns:
        As `extended_kalman_filter`; errors are its, too.
    """
    given = checked(params, emissions, inputs, missing)
    return _filter("iterated_extended_kalman_filter", given, None, count("num_iter", num_iter), MOMENTS, implementation)


@ranged
def unscented_kalman_filter(
    params: ParamsNLGSSM | ParamsGGSSM,
    emissions: jax.typing.ArrayLike,
    hyperparams: UKFHyperParams = UNSCENTED,
    inputs: jax.typing.ArrayLike | None = None,
    output_fields: Sequence[str] | None = MOMENTS,
    *,
    num_iter: int = 1,
    implementation: str | None = None,
    missing: bool | None = None,
) -> PosteriorGSSMFiltered:
    """Computes means and covariances of the states given the data so far, by the unscented Kalman filter.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        hyperparams: where sigma points lie.
        inputs: (T, ...), or (B, T, U) of B sequences, or None.
        output_fields: which moments to return, as `extended_kalman_filter`.
        num_iter: how often every emission is linearised: by sigma points of the prediction, then of what came of it.
        implementation: from the module's docstring.
        missing: True or False if you know whether the data contain NaNs.

    Returns:
        As `extended_kalman_filter`; errors are its, too.
    """
    given = checked(params, emissions, inputs, missing)
    return _filter("unscented_kalman_filter", given, hyperparams, count("num_iter", num_iter), output_fields, implementation)


@ranged
def extended_kalman_smoother(
    params: ParamsNLGSSM | ParamsGGSSM,
    emissions: jax.typing.ArrayLike,
    filtered_posterior: PosteriorGSSMFiltered | None = None,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    missing: bool | None = None,
) -> PosteriorGSSMSmoothed:
    """Computes means and covariances of the states given all data, by the extended Kalman filter and Rauch, Tung & Striebel's
    pass back through its linearisations.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        filtered_posterior: what a filter returned for these, or None.
        inputs: (T, ...), or (B, T, U) of B sequences, or None.
        implementation: from the module's docstring.
        missing: True or False if you know whether the data contain NaNs.

    Returns:
        The log-likelihood, filtered and smoothed moments, and E[z_t z_{t+1}']. Errors are those of `extended_kalman_filter`.
    """
    given = checked(params, emissions, inputs, missing)
    return _smooth("extended_kalman_smoother", given, None, filtered_posterior, implementation)


@ranged
def unscented_kalman_smoother(
    params: ParamsNLGSSM | ParamsGGSSM,
    emissions: jax.typing.ArrayLike,
    hyperparams: UKFHyperParams = UNSCENTED,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    missing: bool | None = None,
) -> PosteriorGSSMSmoothed:
    """Computes means and covariances of the states given all data, by the unscented Kalman filter and its pass back.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        hyperparams: where sigma points lie.
        inputs: (T, ...), or (B, T, U) of B sequences, or None.
        implementation: from the module's docstring.
        missing: True or False if you know whether the data contain NaNs.

    Returns:
        As `extended_kalman_smoother`.
    """
    given = checked(params, emissions, inputs, missing)
    return _smooth("unscented_kalman_smoother", given, hyperparams, None, implementation)


@ranged
def extended_kalman_posterior_sample(
    key: jax.Array,
    params: ParamsNLGSSM | ParamsGGSSM,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    missing: bool | None = None,
) -> jax.Array:
    """Draws states given the emissions, by the extended Kalman filter and sampling backward through its linearisations.

    Args:
        key: a JAX random key. For a linear model the sample is that of `fastscan.lgssm_posterior_sample`.
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, ...), or (B, T, U) of B sequences, or None.
        implementation: from the module's docstring.
        missing: True or False if you know whether the data contain NaNs.

    Returns:
        States (T, D) or (B, T, D). Errors are those of `extended_kalman_filter`.
    """
    check_key(key, " The order is (key, params, emissions).")
    given = checked(params, emissions, inputs, missing)
    how: dict[str, Any] = {"implementation": implementation, "missing": given.missing}
    if is_linear(given.functions):
        return lgssm_posterior_sample(key, linear_params(given), given.data.y, **how)
    _check_sequential("extended_kalman_posterior_sample", implementation)
    noise = draws.normal(key, (given.B or 1, given.T, given.D), given.data.y.dtype)
    states = inference.sample_states(given.functions, given.model, given.data, given.missing, noise, implementation)
    check_found("extended_kalman_posterior_sample", given, states[:, -1, 0], None)
    return states if given.B else states[0]


@ranged
def iterated_extended_kalman_smoother(
    params: ParamsNLGSSM | ParamsGGSSM,
    emissions: jax.typing.ArrayLike,
    num_iter: int = 50,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    start: jax.typing.ArrayLike | None = None,
    tol: float | None = None,
    damped: bool = True,
    implementation: str | None = None,
    missing: bool | None = None,
) -> PosteriorIterated:
    """Finds the most likely path, and a Gaussian around it, by Gauss and Newton's method: the model is linearised around a
    path, and smoothed in parallel over time, until the path moves no more.

    Emissions of an exponential family make it Newton's method, and the log-likelihood Laplace's approximation. Derivatives of
    all results but ``objective`` are those at the path that has been found, by the implicit function theorem: they take memory
    for one iteration, and are right if it has converged.

    Args:
        params: the model; dynamax's own objects work too, its ``ParamsGGSSM`` among them.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        num_iter: how often the model is linearised and smoothed, at most.
        inputs: (T, ...), or (B, T, U) of B sequences, or None.
        start: the first path, (T, D) or (B, T, D); default the extended Kalman filter's means. Of several modes the one near
            it is found: where the filter fares badly, the unscented smoother's means may lead to a better one.
        tol: the change of the path that counts as none, in posterior standard deviations, as a root mean square over all
            states; default the root of the dtype's epsilon. 0 takes all iterations.
        damped: halve steps until the objective falls as derivatives promise, by Armijo's rule. Without, they are taken whole.
        implementation: of the linear smoother, as in `fastscan.lgssm_smoother`.
        missing: True or False if you know whether the data contain NaNs.

    Returns:
        `PosteriorIterated`. Outside of `jit` there is a warning where it has not converged.

    Raises:
        TypeError, ValueError: as `extended_kalman_filter`.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    given = checked(params, emissions, inputs, missing)
    return _iterate("iterated_extended_kalman_smoother", given, None, start, num_iter, tol, damped, implementation)


@ranged
def iterated_unscented_kalman_smoother(
    params: ParamsNLGSSM | ParamsGGSSM,
    emissions: jax.typing.ArrayLike,
    hyperparams: UKFHyperParams = UNSCENTED,
    num_iter: int = 50,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    start: jax.typing.ArrayLike | None = None,
    tol: float | None = None,
    damped: bool = True,
    implementation: str | None = None,
    missing: bool | None = None,
) -> PosteriorIterated:
    """Finds the Gaussian that a model has which is linearised by sigma points of that Gaussian: posterior linearisation.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        hyperparams: where sigma points lie.
        num_iter: how often the model is linearised and smoothed, at most.
        inputs: (T, ...), or (B, T, U) of B sequences, or None.
        start: the first path, (T, D) or (B, T, D); default the unscented Kalman filter's means.
        tol: as `iterated_extended_kalman_smoother`; covariances, too, may change by no more than that.
        damped: halve steps that make the objective rise by more than a tenth for every standard deviation that a state moves,
            and those after a step that is hardly shorter than the one before.
        implementation: of the linear smoother, as in `fastscan.lgssm_smoother`.
        missing: True or False if you know whether the data contain NaNs.

    Returns:
        As `iterated_extended_kalman_smoother`.
    """
    given = checked(params, emissions, inputs, missing)
    return _iterate("iterated_unscented_kalman_smoother", given, hyperparams, start, num_iter, tol, damped, implementation)


def _filter(
    name: str, given: Checked, hyperparams: Any, num_iter: int, output_fields: Sequence[str] | None, implementation: str | None
) -> PosteriorGSSMFiltered:
    wanted = tuple(output_fields or ())
    unknown = [field for field in wanted if field not in (*MOMENTS, "marginal_loglik")]
    if unknown:
        raise ValueError(f"output_fields: {', '.join(unknown)} given, wanted some of {', '.join(MOMENTS)}, marginal_loglik.")
    if is_linear(given.functions):
        linear = linear_params(given)
        found = lgssm_filter(
            linear,
            given.data.y,
            implementation=implementation,
            missing=given.missing,
            per_step_loglik="marginal_loglik" in wanted,
        )
        out = found.marginal_loglik, found.filtered_means, found.filtered_covariances
        out = *out, *inference.linear_predictions(linear, *out[1:])
    else:
        _check_sequential(name, implementation)
        out = inference.filter_states(
            given.functions,
            given.model,
            given.data,
            given.missing,
            _of(hyperparams, given),
            num_iter,
            "marginal_loglik" in wanted,
        )
        out = out if given.B else tuple(x[0] for x in out)
    moments: list[Any]
    loglik, *moments = out
    check_found(name, given, loglik, moments[0])
    if given.data.u is not None or given.model.Q.ndim == 3:
        moments[2:] = [x[..., :-1, :] if k == 0 else x[..., :-1, :, :] for k, x in enumerate(moments[2:])]
    kept = {field: x for field, x in zip(MOMENTS, moments, strict=True) if field in wanted}
    loglik = jnp.cumsum(loglik, -1) if "marginal_loglik" in wanted else loglik
    return PosteriorGSSMFiltered(loglik, **kept)


def _smooth(name: str, given: Checked, hyperparams: Any, filtered: Any, implementation: str | None) -> PosteriorGSSMSmoothed:
    if is_linear(given.functions):
        return lgssm_smoother(linear_params(given), given.data.y, implementation=implementation, missing=given.missing)
    _check_sequential(name, implementation)
    filtered = None if filtered is None else inference.filtered_again(given, filtered)
    model = given.functions, given.model, given.data, given.missing
    out = inference.smooth_states(*model, _of(hyperparams, given), filtered, implementation)
    posterior = PosteriorGSSMSmoothed(*(out if given.B else (x[0] for x in out)))
    check_found(name, given, posterior.marginal_loglik, posterior.filtered_means)
    return posterior


def _iterate(
    name: str,
    given: Checked,
    hyperparams: Any,
    start: Any,
    num_iter: int,
    tol: float | None,
    damped: bool,
    implementation: str | None,
) -> PosteriorIterated:
    dtype = given.data.y.dtype
    tol = float(float(jnp.finfo(dtype).eps) ** 0.5 if tol is None else tol)
    if not tol >= 0:
        raise ValueError(f"tol: {tol} given, wanted a number that is not negative.")
    settings = inference.Settings(count("num_iter", num_iter), tol, bool(damped), given.missing, implementation)
    start = inference.checked_start(given, start)
    out = inference.iterate(
        given.functions, given.model, given.data, _of(hyperparams, given), start, settings, given.batched[1]
    )
    posterior = PosteriorIterated(*(out if given.B else (x[0] for x in out)))
    check_found(name, given, posterior.marginal_loglik, posterior.smoothed_means)
    if tol > 0 and seen(posterior.converged) and not bool(posterior.converged.all()):
        taken = int(posterior.iterations.max())
        told = "more iterations, another start, or a larger tol"
        if taken < num_iter:
            told = f"a larger tol, or float64: no part of the last step lowered the objective, which {dtype} may not resolve"
        warnings.warn(
            f"{name}: not converged after {taken} iterations; ``objective`` has how far it came. Take {told}.",
            stacklevel=4,
        )
    return posterior


def _of(hyperparams: Any, given: Checked) -> tuple[jax.Array, ...] | None:
    """Returns the parameters of sigma points as arrays, or None for derivatives."""
    return None if hyperparams is None else tuple(jnp.asarray(x, given.data.y.dtype) for x in hyperparams)


def _check_sequential(name: str, implementation: str | None) -> None:
    if implementation not in (None, "sequential"):
        raise ValueError(
            f"implementation: {implementation!r} given, wanted None or 'sequential': of a model that is not linear, {name} "
            "runs step by step. iterated_extended_kalman_smoother and iterated_unscented_kalman_smoother run in parallel over "
            "time."
        )
