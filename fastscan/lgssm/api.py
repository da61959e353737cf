"""Inference in linear-Gaussian state-space models, as dynamax 1.0.3 has it.

Emissions are (T, m), or (B, T, m) for B sequences; NaN entries are missing. Parameters may be static, time-varying, and
with a batch axis also (B, T, ...) or (B, 1, ...) per sequence. Arrays of different dtypes are promoted as JAX promotes them, to
float32 or float64, integers to floats; so are results. All functions can be transformed by `jit`, `vmap` and `grad` and called
inside `lax.scan`.

Arrays may be JAX's or NumPy's, or what NumPy takes for one; masked entries of emissions are missing ones. Outside of `jit`,
a static matrix of up to 16 rows that is not a covariance is an error; where values can't be checked, it makes results NaN.

``timing`` says which transition entry t of time-varying dynamics (and of functions of t) belongs to: "arrival", that from t - 1
to t, or "departure", that from t to t + 1, as in dynamax before 1.0.3. Then inputs u_t act on that transition, too, and the
dynamics may have T - 1 entries.

Covariances may be singular. An emission without noise may repeat what is known already, up to rounding: then it adds nothing,
and the log-likelihood is that of the model without it, as in statsmodels and MARSS. If it contradicts what is known by more
than half of the digits, the data are impossible and the log-likelihood is -inf. A covariance of the dynamics may be below zero
by rounding, relative to its own size at any time or to that of the initial covariance moved on; one that is indefinite beyond
that makes all results NaN.

``implementation`` names how the recurrences run: "sequential", "associative" (one `lax.associative_scan` over time), "chunked"
(chunks of time side by side), "pallas" (the chunks as GPU kernels) or "pallas_interpret" (the same kernels, interpreted on any
device, for tests). The one you name runs, or the call raises an error. None takes the one that was measured to be fastest on
this device: see `fastscan.dispatch`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan import draws, lengths
from fastscan.dispatch.choice import How, Problem
from fastscan.given import (
    array,
    check_key,
    check_missing,
    count,
    emissions_array,
    missing_entries,
    seen,
)
from fastscan.kernels.ranges import ranged
from fastscan.kernels.tables import Computed
from fastscan.lgssm import inference as lgssm_inference
from fastscan.lgssm.check import Sizes, check_model
from fastscan.lgssm.covariances import check_covariances
from fastscan.lgssm.packed import checked_state
from fastscan.lgssm.problem import Given, prepare
from fastscan.lgssm.timing import plain_params
from fastscan.sequences.packing import checked_starts
from fastscan.types import GaussianState, ParamsLGSSM, PosteriorGSSMFiltered, PosteriorGSSMSmoothed, Regimes


@ranged
def lgssm_filter(
    params: ParamsLGSSM,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    per_step_loglik: bool = False,
    missing: bool | None = None,
    timing: str = "arrival",
    starts: jax.typing.ArrayLike | None = None,
    initial_state: GaussianState | None = None,
) -> PosteriorGSSMFiltered:
    """Computes means and covariances of the states given the data so far, by the Kalman filter.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, U), (B, T, U) or None.
        implementation: None, or a name from the module's docstring.
        per_step_loglik: return log p(y_t | y_1..t-1) for every step, in place of their sum.
        missing: True or False if you know whether the data contain NaNs. Under `jit` nobody else does: without word, steps are
            computed as if entries were missing, which takes longer where the emissions' noise is correlated, and a batch
            compiles two programs. A NaN entry in spite of False makes results NaN under `jit`, and is an error outside of it.
        timing: the convention of time-varying dynamics, from the module's docstring.
        starts: (T,), or in a batch (B, T), True where a new sequence begins, of many on one time axis, as `pack_sequences`
            has them: the state begins anew from the initial distribution. The log-likelihood is that of all of them.
        initial_state: of the step before the first, as another piece's ``final_state`` says; the model's own is not read then,
            but at ``starts``, and entry 0 of time-varying dynamics is.

    Returns:
        The log-likelihood and the filtered moments.

    Raises:
        TypeError: arrays of anything but numbers, a key that is not a random key, parameters without a model's fields.
        ValueError: shapes that do not fit together, matrices that are not covariances, an unknown name of an option.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    return _by_length(
        _filter,
        *given_arrays(params, emissions, inputs, missing, timing, starts, initial_state),
        implementation,
        per_step_loglik,
    )


@ranged
def lgssm_smoother(
    params: ParamsLGSSM,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    per_step_loglik: bool = False,
    missing: bool | None = None,
    central: bool = False,
    timing: str = "arrival",
    starts: jax.typing.ArrayLike | None = None,
    initial_state: GaussianState | None = None,
) -> PosteriorGSSMSmoothed:
    """Computes means and covariances of the states given all data, by the Kalman filter and the Rauch-Tung-Striebel smoother.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, U), (B, T, U) or None.
        implementation: None, or a name from the module's docstring.
        per_step_loglik: return log p(y_t | y_1..t-1) for every step, in place of their sum.
        missing: True or False if you know whether the data contain NaNs. Under `jit` nobody else does: without word, steps are
            computed as if entries were missing, which takes longer where the emissions' noise is correlated, and a batch
            compiles two programs. A NaN entry in spite of False makes results NaN under `jit`, and is an error outside of it.
        central: return the covariances of z_t and z_{t+1}, which lose nothing to large means, in place of their second moments.
        timing: as `lgssm_filter`.
        starts: as `lgssm_filter`. States of two sequences are independent.
        initial_state: as `lgssm_filter`.

    Returns:
        The log-likelihood, filtered and smoothed moments, and E[z_t z_{t+1}'], always.

    Raises:
        TypeError: arrays of anything but numbers, a key that is not a random key, parameters without a model's fields.
        ValueError: shapes that do not fit together, matrices that are not covariances, an unknown name of an option.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    return _by_length(
        _smooth,
        *given_arrays(params, emissions, inputs, missing, timing, starts, initial_state),
        implementation,
        per_step_loglik,
        central,
    )


@ranged
def lgssm_marginal_loglik(
    params: ParamsLGSSM,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    per_step_loglik: bool = False,
    missing: bool | None = None,
    timing: str = "arrival",
    starts: jax.typing.ArrayLike | None = None,
    initial_state: GaussianState | None = None,
) -> jax.Array:
    """Computes log p(y_1..T) without keeping any moments. Arguments and errors are those of `lgssm_filter`.

    Returns:
        A scalar or (B,); with ``per_step_loglik``, log p(y_t | y_1..t-1) as (T,) or (B, T).
    """
    return _by_length(
        _loglik,
        *given_arrays(params, emissions, inputs, missing, timing, starts, initial_state),
        implementation,
        per_step_loglik,
    )


@ranged
def lgssm_posterior_sample(
    key: jax.Array,
    params: ParamsLGSSM,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    jitter: jax.typing.ArrayLike = 0.0,
    *,
    implementation: str | None = None,
    missing: bool | None = None,
    timing: str = "arrival",
    starts: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Draws states given the emissions, by filtering forward and sampling backward.

    The noise is drawn before the recurrences run, so every implementation returns the same sample for a key, up to
    rounding. (Not dynamax's sample for it, which draws in another order.)

    Args:
        key: a JAX random key.
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, U), (B, T, U) or None.
        jitter: added to the conditional variances; never needed for singular ones.
        implementation: None, or a name from the module's docstring.
        missing: as `lgssm_filter`.
        timing: as `lgssm_filter`.
        starts: as `lgssm_filter`.

    Returns:
        States (T, D) or (B, T, D).

    Raises:
        TypeError: arrays of anything but numbers, a key that is not a random key, parameters without a model's fields.
        ValueError: shapes that do not fit together, matrices that are not covariances, an unknown name of an option.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    check_key(key, " The order is (key, params, emissions).")
    return _sample(*given_arrays(params, emissions, inputs, missing, timing, starts), implementation, key, jitter)


@ranged
def lgssm_joint_sample(
    params: ParamsLGSSM,
    key: jax.Array,
    num_timesteps: int,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    timing: str = "arrival",
) -> tuple[jax.Array, jax.Array]:
    """Draws states and emissions from the model.

    Args:
        params: the model; dynamax's own objects work too.
        key: a JAX random key.
        num_timesteps: T, at least 1.
        inputs: (T, U) or None.
        implementation: None, or a name from the module's docstring; all return the same sample, up to rounding.
        timing: as `lgssm_filter`.

    Returns:
        States (T, D) and emissions (T, m).

    Raises:
        TypeError: arrays of anything but numbers, a key that is not a random key, parameters without a model's fields.
        ValueError: shapes that do not fit together, matrices that are not covariances, an unknown name of an option.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    check_key(key, " The order is (params, key, num_timesteps).")
    T = count("num_timesteps", num_timesteps)
    inputs = None if inputs is None else array("inputs", inputs)
    params = plain_params(params, T, inputs, timing)
    if seen(params.initial.mean):
        check_covariances(params, T)
    return _joint_sample(params, key, T, inputs, implementation)


parallel_lgssm_filter = lgssm_filter
parallel_lgssm_smoother = lgssm_smoother
parallel_lgssm_posterior_sample = lgssm_posterior_sample


def given_arrays(
    params: Any, emissions: Any, inputs: Any, missing: bool | None, timing: str, starts: Any, state: Any = None
) -> tuple[Given, Any, Any, bool | None]:
    """Returns the arguments of the compiled functions: the model, where sequences begin and from what state, arrays, and
    whether entries are missing, as far as that is known.
    """
    emissions = emissions_array(emissions)
    T = emissions.shape[-2] if emissions.ndim > 1 else 0
    inputs = None if inputs is None else array("inputs", inputs)
    params = plain_params(params, T, inputs, timing)
    if state is not None:
        if timing == "departure":
            raise ValueError(
                'initial_state: given with timing="departure"; wanted "arrival", with the transition into the first step.'
            )
        state = checked_state(state)
    if starts is not None and emissions.ndim in (2, 3):
        starts = checked_starts(starts, T, emissions.shape[:-2])
    model = Given(params, starts, state)
    missing = check_missing(missing)
    if not seen(emissions):
        return model, emissions, inputs, missing
    check_covariances(params, T)
    return model, emissions, inputs, missing_entries(np.asarray(emissions), missing)


def _by_length(
    function: Callable,
    given: Given,
    emissions: Any,
    inputs: Any,
    missing: bool | None,
    implementation: str | None,
    *options: Any,
) -> Any:
    """Calls a compiled function, or the program that lengths share."""
    alone = given.starts is None and given.state is None
    shared = lengths.shareable(implementation) and alone and _constant(given.params)
    return lengths.by_length(function, (given,), (emissions, inputs), missing, implementation, *options, shared=shared)


def _constant(params: ParamsLGSSM) -> bool:
    """Tells whether a model's shapes are those of one that does not vary in time, nor between sequences."""
    axes = {"weights": 2, "cov": 2, "bias": 1, "input_weights": 2}
    parts = (params.dynamics, params.emissions)
    fields = [(n, x) for part in parts for n, x in part._asdict().items() if x is not None]
    if any(isinstance(x, Regimes | Computed) for _, x in fields):
        return False
    m = params.emissions.weights.shape[:1]
    return all(jnp.ndim(x) == axes[n] or (n == "cov" and jnp.shape(x) == m) for n, x in fields)


@functools.partial(jax.jit, static_argnames=("missing", "implementation", "per_step"))
def _filter(given, emissions, inputs, missing, implementation, per_step, count=None) -> PosteriorGSSMFiltered:
    model, emissions, sizes, how = prepare(given, emissions, inputs, missing, implementation, count)
    loglik, moments = lgssm_inference.filter_states(model, emissions, how, per_step, count)
    rows = _after_state(given, per_step, loglik, moments.mean[..., 0], moments.cov)
    return PosteriorGSSMFiltered(*_unbatch(sizes, rows))


@functools.partial(jax.jit, static_argnames=("missing", "implementation", "per_step", "central"))
def _smooth(given, emissions, inputs, missing, implementation, per_step, central, count=None) -> PosteriorGSSMSmoothed:
    model, emissions, sizes, how = prepare(given, emissions, inputs, missing, implementation, count)
    loglik, filtered, smoothed = lgssm_inference.smooth_states(model, emissions, how, per_step, central, count)
    moments = filtered.mean[..., 0], filtered.cov, smoothed.mean[..., 0], smoothed.cov, smoothed.cross
    return PosteriorGSSMSmoothed(*_unbatch(sizes, _after_state(given, per_step, loglik, *moments)))


@functools.partial(jax.jit, static_argnames=("missing", "implementation", "per_step"))
def _loglik(given, emissions, inputs, missing, implementation, per_step, count=None) -> jax.Array:
    model, emissions, sizes, how = prepare(given, emissions, inputs, missing, implementation, count)
    densities = lgssm_inference.loglik(model, emissions, how, per_step, count)
    (loglik,) = _unbatch(sizes, _after_state(given, per_step, densities))
    return loglik


@functools.partial(jax.jit, static_argnames=("missing", "implementation"))
def _sample(given, emissions, inputs, missing, implementation, key, jitter) -> jax.Array:
    model, emissions, sizes, how = prepare(given, emissions, inputs, missing, implementation)
    noise = draws.normal(key, (emissions.shape[0], sizes.T, sizes.D), emissions.dtype)
    jitter = jnp.asarray(jitter, emissions.dtype)
    (states,) = _unbatch(sizes, (lgssm_inference.sample_states(model, emissions, noise, jitter, how)[..., 0],))
    return states


@functools.partial(jax.jit, static_argnames=("T", "implementation"))
def _joint_sample(params, key, T, inputs, implementation) -> tuple[jax.Array, jax.Array]:
    model, sizes = check_model(params, T, None, params.initial.mean.dtype, inputs)
    dtype = model.F.dtype
    problem = Problem(implementation, sizes.T, sizes.D, sizes.m, str(dtype))
    state_key, emission_key = draws.two(key)
    noises = (draws.normal(k, (1, T, n, 1), dtype) for k, n in ((state_key, sizes.D), (emission_key, sizes.m)))
    states, emissions = lgssm_inference.joint_sample(model, *noises, How(problem.plan(1), problem))
    return states[0], emissions[0]


def _unbatch(sizes: Sizes, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return arrays if sizes.B is not None else tuple(x[0] for x in arrays)


def _after_state(given: Given, per_step: bool, loglik: jax.Array, *moments: jax.Array) -> tuple[jax.Array, ...]:
    """Leaves the row of a state before the first emission away, of arrays with a batch axis, where one was given."""
    if given.state is None:
        return loglik, *moments
    return loglik[:, 1:] if per_step else loglik, *(x[:, 1:] for x in moments)
