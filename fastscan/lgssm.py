"""Inference in linear-Gaussian state-space models, as dynamax 1.0.3 has it.

Emissions are (T, m), or (B, T, m) for B sequences; NaN entries are missing. Parameters may be static, time-varying, and
with a batch axis also (B, T, ...) or (B, 1, ...) per sequence. Everything is float32 or float64 throughout, as the
emissions are. All functions can be transformed by `jit`, `vmap` and `grad` and called inside `lax.scan`.

``implementation`` names how the recurrences run and is taken at its word: "sequential", "associative" (one
`lax.associative_scan` over time), "chunked" (chunks of time side by side), "pallas" (the chunks as GPU kernels) or
"pallas_interpret" (the same kernels, interpreted on any device, for tests). None takes the one that was measured to be
fastest on this device: see `fastscan.dispatch`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.dispatch import How, Problem
from fastscan.kernels import passes
from fastscan.kernels.algebra import Stacked
from fastscan.kernels.gaussian import square_root
from fastscan.kernels.plan import Plan
from fastscan.kernels.ranges import ranged
from fastscan.kernels.smoothing import AffineMap
from fastscan.model import Model, Sizes, check_emission_dim, check_emissions, check_model, known_terms, series
from fastscan.transforms import any_nan, batch_size, scored, transformable, under_xla
from fastscan.types import ParamsLGSSM, PosteriorGSSMFiltered, PosteriorGSSMSmoothed


@ranged
def lgssm_filter(
    params: ParamsLGSSM,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    per_step_loglik: bool = False,
    missing: bool | None = None,
) -> PosteriorGSSMFiltered:
    """Kalman filter.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, U), (B, T, U) or None.
        implementation: None, or a name as above.
        per_step_loglik: return log p(y_t | y_1..t-1) for every step, in place of their sum.
        missing: whether entries are missing, if it is known, which halves what `jit` compiles; then a NaN entry in spite of
            False makes results NaN.

    Returns:
        The log-likelihood and the filtered moments.

    Raises:
        TypeError, ValueError: what was given, what was wanted.
    """
    model, emissions, sizes, how = _prepare(params, emissions, inputs, implementation, missing)
    loglik, moments = _filter(model, emissions, how, per_step_loglik)
    return PosteriorGSSMFiltered(*_unbatch(sizes, (loglik, moments.mean[..., 0], moments.cov)))


@ranged
def lgssm_smoother(
    params: ParamsLGSSM,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    per_step_loglik: bool = False,
    missing: bool | None = None,
) -> PosteriorGSSMSmoothed:
    """Kalman filter and Rauch-Tung-Striebel smoother.

    Args:
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, U), (B, T, U) or None.
        implementation: None, or a name as above.
        per_step_loglik: return log p(y_t | y_1..t-1) for every step, in place of their sum.
        missing: whether entries are missing, if it is known, which halves what `jit` compiles; then a NaN entry in spite of
            False makes results NaN.

    Returns:
        The log-likelihood, filtered and smoothed moments, and E[z_t z_{t+1}'], always.

    Raises:
        TypeError, ValueError: what was given, what was wanted.
    """
    model, emissions, sizes, how = _prepare(params, emissions, inputs, implementation, missing)
    loglik, filtered, smoothed = _smooth(model, emissions, how, per_step_loglik)
    moments = filtered.mean[..., 0], filtered.cov, smoothed.mean[..., 0], smoothed.cov, smoothed.cross
    return PosteriorGSSMSmoothed(*_unbatch(sizes, (loglik, *moments)))


@ranged
def lgssm_marginal_loglik(
    params: ParamsLGSSM,
    emissions: jax.typing.ArrayLike,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
    per_step_loglik: bool = False,
    missing: bool | None = None,
) -> jax.Array:
    """Log p(y_1..T), without keeping any moments. Arguments and errors as `lgssm_filter`.

    Returns:
        A scalar or (B,); with ``per_step_loglik``, log p(y_t | y_1..t-1) as (T,) or (B, T).
    """
    model, emissions, sizes, how = _prepare(params, emissions, inputs, implementation, missing)
    (loglik,) = _unbatch(sizes, (_loglik(model, emissions, how, per_step_loglik),))
    return loglik


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
) -> jax.Array:
    """One draw of the states given the emissions, by filtering forward and sampling backward.

    The noise is drawn before the recurrences run, so every implementation returns the same sample for a key, up to
    rounding. (Not dynamax's sample for it, which draws in another order.)

    Args:
        key: a JAX random key.
        params: the model; dynamax's own objects work too.
        emissions: (T, m) or (B, T, m); NaN entries are missing.
        inputs: (T, U), (B, T, U) or None.
        jitter: added to the conditional variances; never needed for singular ones.
        implementation: None, or a name as above.
        missing: as `lgssm_filter`.

    Returns:
        States (T, D) or (B, T, D).

    Raises:
        TypeError, ValueError: what was given, what was wanted.
    """
    model, emissions, sizes, how = _prepare(params, emissions, inputs, implementation, missing)
    noise = jax.random.normal(key, (emissions.shape[0], sizes.T, sizes.D), emissions.dtype)
    jitter = jnp.asarray(jitter, emissions.dtype)
    (states,) = _unbatch(sizes, (_sample(model, emissions, noise, jitter, how)[..., 0],))
    return states


@ranged
def lgssm_joint_sample(
    params: ParamsLGSSM,
    key: jax.Array,
    num_timesteps: int,
    inputs: jax.typing.ArrayLike | None = None,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One draw of states and emissions from the model.

    Args:
        params: the model; dynamax's own objects work too.
        key: a JAX random key.
        num_timesteps: T, at least 1.
        inputs: (T, U) or None.
        implementation: None, or a name as above; all return the same sample, up to rounding.

    Returns:
        States (T, D) and emissions (T, m).

    Raises:
        TypeError, ValueError: what was given, what was wanted.
    """
    if num_timesteps < 1:
        raise ValueError(f"num_timesteps: {num_timesteps} given, wanted at least 1.")
    dtype = jnp.asarray(params.initial.mean).dtype
    model, sizes = check_model(params, num_timesteps, None, dtype, inputs)
    problem = Problem(implementation, sizes.T, sizes.D, sizes.m, str(dtype))
    how = How(problem.plan(1), problem)
    state_key, emission_key = jax.random.split(key)
    states, emissions = _joint_sample(
        model,
        jax.random.normal(state_key, (1, sizes.T, sizes.D, 1), dtype),
        jax.random.normal(emission_key, (1, sizes.T, sizes.m, 1), dtype),
        how,
    )
    return states[0], emissions[0]


def pad_sequences(sequences: Sequence[jax.typing.ArrayLike], length: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Sequences of different lengths as one batch, filled up with missing steps.

    Everything the smoother says of the steps before a sequence's own end is what it says of the sequence alone; what it
    says after the end is a forecast.

    Args:
        sequences: arrays (T_i, m) of one floating dtype.
        length: T; default the longest sequence's.

    Returns:
        Emissions (B, T, m), and the lengths (B,).

    Raises:
        ValueError: no sequences, shapes that do not go together, a length below a sequence's.
    """
    sequences = [check_emissions(s) for s in sequences]
    shapes = [s.shape for s in sequences]
    if not sequences or any(len(s) != 2 or s[1] != shapes[0][1] for s in shapes):
        raise ValueError(f"sequences: shapes {shapes} given, wanted at least one, all (T_i, m) with one m.")
    if len({s.dtype for s in sequences}) > 1:
        raise TypeError(f"sequences: dtypes {sorted({str(s.dtype) for s in sequences})} given, wanted one.")
    longest = max(s[0] for s in shapes)
    length = longest if length is None else length
    if length < longest:
        raise ValueError(f"length: {length} given, wanted at least the longest sequence's, {longest}.")
    padded = [jnp.pad(s, ((0, length - len(s)), (0, 0)), constant_values=jnp.nan) for s in sequences]
    return jnp.stack(padded), jnp.array([s[0] for s in shapes])


parallel_lgssm_filter = lgssm_filter
parallel_lgssm_smoother = lgssm_smoother
parallel_lgssm_posterior_sample = lgssm_posterior_sample


def _prepare(
    params: Any, emissions: Any, inputs: Any, implementation: str | None, missing: bool | None
) -> tuple[Model, jax.Array, Sizes, How]:
    """The checked model, the emissions as (B, T, m), the sizes, and how to run them."""
    emissions = check_emissions(emissions)
    batch = emissions.shape[0] if emissions.ndim == 3 else None
    model, sizes = check_model(params, emissions.shape[-2], batch, emissions.dtype, inputs)
    check_emission_dim(emissions, sizes.m)
    problem = Problem(implementation, sizes.T, sizes.D, sizes.m, str(emissions.dtype))
    plan = problem.plan(batch or 1)
    how = How(plan, problem, _missing(emissions, plan, model, missing))
    return model, emissions.reshape(-1, sizes.T, sizes.m), sizes, how


def _missing(emissions: jax.Array, plan: Plan, model: Model, said: bool | None) -> bool | None:
    """Whether entries are missing, if it was said, or where looking costs little; that halves what is compiled."""
    hidden = isinstance(emissions, jax.core.Tracer) or any(device.platform != "cpu" for device in emissions.devices())
    found = None if hidden else bool(np.isnan(np.asarray(emissions)).any())
    if found and said is False:
        raise ValueError("missing: False given, but emissions have NaN entries. Take None, or True.")
    if plan.launch is not None and model.R.shape[-1] == 1:
        return True
    return found if said is None else said


def _either(how: How, model: Model, emissions: jax.Array, run: Callable[..., Any], *noise: jax.Array) -> Any:
    """``run(plan, series, *noise)``, the cheaper way where nothing is missing.

    Under XLA, covariances then are the same for all sequences of a batch. In kernels only correlated noise costs more where
    entries are missing, because then every step has to be decorrelated by itself.
    """

    def infer(plan: Plan, model: Model, emissions: jax.Array, *noise: jax.Array) -> Any:
        B = batch_size((model, emissions, noise))

        def branch(missing: bool) -> Any:
            out = run(plan, series(plan, model, emissions, missing), *noise)
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), out)

        return _with_gaps_or_without(how, emissions, branch)

    return transformable(how, infer)(model, emissions, *noise)


def _with_gaps_or_without(how: How, emissions: jax.Array, branch: Callable[[bool], Any]) -> Any:
    """``branch`` of whether entries are missing."""
    if how.missing is not None:
        return branch(how.missing)
    return lax.cond(any_nan(lax.stop_gradient(emissions)), lambda: branch(True), lambda: branch(False))


@functools.partial(jax.jit, static_argnames=("how", "per_step"))
def _filter(model: Model, emissions: jax.Array, how: How, per_step: bool):
    moments = _either(how, model, emissions, passes.filter_moments)
    return _reported(model, emissions, how, moments.log_density, per_step), moments


@functools.partial(jax.jit, static_argnames=("how", "per_step"))
def _smooth(model: Model, emissions: jax.Array, how: How, per_step: bool):
    filtered, smoothed = _either(how, model, emissions, passes.smooth)
    return _reported(model, emissions, how, filtered.log_density, per_step), filtered, smoothed


@functools.partial(jax.jit, static_argnames=("how", "per_step"))
def _loglik(model: Model, emissions: jax.Array, how: How, per_step: bool):
    given = (model, emissions) if per_step else lax.stop_gradient((model, emissions))
    densities = _either(how, *given, passes.filter_log_densities)
    return _reported(model, emissions, how, densities, per_step)


def _reported(model: Model, emissions: jax.Array, how: How, densities: jax.Array, per_step: bool) -> jax.Array:
    """Log densities (B, T), or their sum (B,), whose derivative is a pass of its own."""
    densities = densities[..., 0, 0]
    if per_step:
        return densities

    def score(plan: Plan, given: tuple[Model, jax.Array]) -> tuple[jax.Array, tuple[Model, jax.Array]]:
        return _with_gaps_or_without(how, given[1], lambda missing: _score(under_xla(plan), missing, *given))

    return scored(transformable(how, score), densities.sum(-1), (model, emissions))


def _score(plan: Plan, missing: bool, model: Model, emissions: jax.Array) -> tuple[jax.Array, tuple[Model, jax.Array]]:
    """Every sequence's log-likelihood (B,), and its derivatives (B, ...) with respect to what it was given."""
    B = batch_size((model, emissions))
    own, of_own = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), (model, emissions))
    forward = functools.partial(series, plan, missing=missing, forward_only=True)
    given, pull = jax.vjp(forward, own, of_own)
    shared = given if B == 1 else forward(model, emissions)
    loglik, change = passes.score(plan, shared)
    change = jax.tree.map(
        lambda c, x: jax.tree.map(jnp.zeros_like, x) if c is None else c, change, given, is_leaf=lambda x: x is None
    )
    return loglik, pull(change)


@functools.partial(jax.jit, static_argnames="how")
def _sample(model: Model, emissions: jax.Array, noise: jax.Array, jitter: jax.Array, how: How):
    return _either(how, model, emissions, passes.sample, noise[..., None], jitter.reshape(1, 1, 1, 1))


@functools.partial(jax.jit, static_argnames="how")
def _joint_sample(model: Model, state_noise: jax.Array, emission_noise: jax.Array, how: How):
    return transformable(how, _sample_prior)(model, state_noise, emission_noise)


def _sample_prior(plan: Plan, model: Model, state_noise: jax.Array, emission_noise: jax.Array):
    drift, offset = known_terms(model)
    initial = model.initial_mean + _root(model.initial_cov) @ state_noise[:, :1]
    maps = AffineMap(model.F, drift + _root(model.Q) @ state_noise)
    static = AffineMap(model.F.transpose(2, 3, 1, 0)) if model.F.shape[1] == 1 else AffineMap()
    rows = AffineMap(None if static.E is not None else maps.E[:, 1:], maps.e[:, 1:])
    states = passes.affine_states(plan, initial.transpose(2, 3, 1, 0), static, rows)
    root = jnp.sqrt(model.R) if model.R.shape[-1] == 1 else _root(model.R)
    noise = root * emission_noise if model.R.shape[-1] == 1 else root @ emission_noise
    emissions = model.H @ states + offset + noise
    return jnp.broadcast_to(states, (len(emissions), *states.shape[1:]))[..., 0], emissions[..., 0]


def _root(cov: jax.Array) -> jax.Array:
    """Lower triangular square roots of (..., n, n) matrices, singular ones among them."""
    return jnp.moveaxis(square_root(Stacked(jnp.moveaxis(cov, (-2, -1), (0, 1)))).array, (0, 1), (-2, -1))


def _unbatch(sizes: Sizes, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return arrays if sizes.B is not None else tuple(x[0] for x in arrays)
