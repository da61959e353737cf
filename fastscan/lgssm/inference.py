"""The compiled part of linear-Gaussian inference: checked models in, moments, log-likelihoods and samples out.

Arrays have a batch axis: a `Model`, emissions (B, T, m), results (B, T, ...).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.arrays import deviation
from fastscan.dispatch import launches
from fastscan.dispatch.choice import How
from fastscan.functions import written_for
from fastscan.kernels.affine.maps import AffineMap
from fastscan.kernels.algebra import Stacked
from fastscan.kernels.arrays import matmul, numbers, with_numbers
from fastscan.kernels.converged import passes
from fastscan.kernels.lgssm import passes as passes_of_lgssm
from fastscan.kernels.lgssm.gaussian import Gaussian, square_root
from fastscan.kernels.lgssm.kalman import Filtered
from fastscan.kernels.lgssm.passes import Series, affine_states, color
from fastscan.kernels.lgssm.smoothing import BackwardKernel, Smoothed, SmootherSums
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.xla import OnXLA
from fastscan.kernels.tables import is_computed, is_table, values_alone
from fastscan.lgssm.check import Model
from fastscan.lgssm.layout import known_terms, noise_of, rows_of, series
from fastscan.lgssm.wide import narrowed, widened, widened_noise
from fastscan.regimes import as_series, over_blocks, products
from fastscan.transforms import any_missing, batch_size, for_all, in_turn, scored, transformable, under_xla


def _either(
    how: How, model: Model, emissions: jax.Array, run: Callable[..., Any], *noise: jax.Array, count: jax.Array | None = None
) -> Any:
    """Calls ``run(plan, series, *noise)``; with a count of rows, in a program for several lengths."""

    def infer(plan: Plan, model: Model, emissions: jax.Array, *noise: jax.Array) -> Any:
        B = batch_size((model, emissions, noise))

        def branch(missing: bool) -> Any:
            by = plan if missing else _plan_without_gaps(how, plan, model, B)

            def sequences(model: Model, emissions: jax.Array, *noise: jax.Array) -> Any:
                return run(by, series(by, model, emissions, missing), *noise)

            return for_all(by, sequences, model, emissions, *noise)

        return _with_gaps_or_without(how, plan, model, emissions, branch)

    out = transformable(how, infer, count)(widened(model, _states(how, model)), emissions, *noise)
    return narrowed(out, model.F.shape[-1])


def _states(how: How, model: Model) -> int:
    """Returns how many states a model is run with."""
    return model.F.shape[-1] if how.problem is None else how.problem.D


def _plan_without_gaps(how: How, plan: Plan, model: Model, B: int) -> Plan:
    """Returns the plan for a batch of which it was not known beforehand that nothing is missing: where its sequences have the
    same matrices, covariances of large models may settle.
    """
    matrices = model.initial_cov, model.F, model.Q, model.H, model.R
    if plan != how.plan or how.problem is None or how.missing is not None or any(x.shape[0] > 1 for x in matrices):
        return plan
    shared = how.problem._replace(shared=True).plan(B)
    return shared if shared.vectors else plan


def _with_gaps_or_without(how: How, plan: Plan, model: Model, emissions: jax.Array, branch: Callable[[bool], Any]) -> Any:
    """Calls ``branch`` with whether entries are missing. If nobody knows, the program for gaps does for both.

    But for a batch under XLA there are two: where nothing is missing, covariances are the same for all its sequences. And for
    large models with correlated noise, which with gaps would be decorrelated at every step: their covariances could not settle.
    """
    correlated = plan.vectors > 0 and model.R.shape[-1] > 1
    if how.missing is not None or plan.launch is not None or (len(emissions) == 1 and not correlated):
        return branch(how.missing is not False)
    observed = ~jnp.isnan(lax.stop_gradient(emissions))
    return lax.cond(any_missing(observed), lambda: branch(True), lambda: branch(False))


@functools.partial(jax.jit, static_argnames=("how", "per_step"))
def filter_states(
    model: Model, emissions: jax.Array, how: How, per_step: bool, count: jax.Array | None = None
) -> tuple[jax.Array, Filtered]:
    """Computes the log-likelihood (B,), or its steps (B, T), and filtered moments."""
    moments = _either(how, model, emissions, passes.filter_moments, count=count)
    return _reported(model, emissions, how, moments.log_density, per_step, count), moments


@functools.partial(jax.jit, static_argnames=("how", "per_step", "central"))
def smooth_states(
    model: Model, emissions: jax.Array, how: How, per_step: bool, central: bool = False, count: jax.Array | None = None
) -> tuple[jax.Array, Filtered, Smoothed]:
    """Computes the results of `filter_states`, and smoothed moments."""
    filtered, smoothed = _either(how, model, emissions, functools.partial(passes.smooth, central=central), count=count)
    return _reported(model, emissions, how, filtered.log_density, per_step, count), filtered, smoothed


def kernels_of(plan: Plan, model: Model, filtered: Gaussian) -> BackwardKernel:
    """Computes what the next state says of every state but the last, (B, rows - 1, ...), from filtered moments (B, rows,
    ...).
    """
    rows = plan.steps
    drift, _ = known_terms(model)

    def leaving(x: Any) -> jax.Array:
        x = as_series(x)
        return x if x.shape[1] == 1 else x[:, x.shape[1] - rows :]

    before = jax.tree.map(lambda x: x[:, :-1], filtered)
    F, Q = (leaving(written_for(plan, x)) for x in (model.F, model.Q))
    return passes_of_lgssm.backward_kernels(plan, before, F, leaving(drift), Q)


@functools.partial(jax.jit, static_argnames="how")
def smoothed_sums(model: Model, emissions: jax.Array, how: How) -> tuple[jax.Array, jax.Array, SmootherSums]:
    """Computes log densities (B, T, 1, 1), smoothed means (B, T, D, 1) and sums of smoothed covariances (B, D, D)."""
    return _either(how, model, emissions, passes.smooth_summed)


@functools.partial(jax.jit, static_argnames=("how", "per_step"))
def loglik(model: Model, emissions: jax.Array, how: How, per_step: bool, count: jax.Array | None = None) -> jax.Array:
    """Computes the log-likelihood (B,), or its steps (B, T), alone."""
    given = (model, emissions) if per_step else lax.stop_gradient((model, emissions))
    densities = _either(how, *given, passes.filter_log_densities, count=count)
    return _reported(model, emissions, how, densities, per_step, count)


def _reported(
    model: Model, emissions: jax.Array, how: How, densities: jax.Array, per_step: bool, count: jax.Array | None
) -> jax.Array:
    """Returns log densities (B, T), or their sum (B,), whose derivative is a pass of its own."""
    densities = densities[..., 0, 0]
    if count is not None:
        return densities if per_step else jnp.where(jnp.arange(densities.shape[-1]) <= count, densities, 0).sum(-1)
    if per_step:
        return densities

    def of_given(plan: Plan, given: tuple[Model, jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        score_plan = _score_plan(plan, *given)
        return _with_gaps_or_without(
            how, plan, *given, lambda missing: in_turn(plan, functools.partial(score, score_plan, missing), *given)
        )

    as_wide = how.of_states(model.F.shape[-1]).of_batch(len(densities))  # as the model is: wider matrices are no gain there
    return scored(transformable(as_wide, of_given), densities.sum(-1), (model, emissions))


def _score_plan(plan: Plan, model: Model, emissions: jax.Array) -> Plan:
    """Returns the plan with its kernels if a lane's registers can hold the sums of derivatives, else the plan for XLA; of
    tables that for XLA in one chunk, as every lane would have sums of all regimes.
    """
    if any(map(is_table, (model.F, model.Q, model.H))):
        return under_xla(plan)._replace(chunks=1, checked=False, one_function=False, vectors=0)
    fits = launches.in_threads("lgssm_score", model.F.shape[-1], model.R.shape[-2], str(emissions.dtype))
    return plan if plan.launch and (plan.launch.interpret or fits) else plan._replace(launch=None)


def score(plan: Plan, missing: bool, model: Model, emissions: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Computes every sequence's log-likelihood (B,), and its derivatives (B, ...) with respect to the numbers that it was given
    (see `kernels.arrays.numbers`).
    """
    B = batch_size((model, emissions))
    own = [jnp.broadcast_to(x, (B, *x.shape[1:])) for x in numbers((model, emissions))]
    # in lanes, a series has those rows alone that are read: derivatives are of as many
    forward = functools.partial(series, plan.in_lanes._replace(one_function=False), missing=missing)

    def of_numbers(own: list[jax.Array]) -> tuple[Series, Series]:
        out = forward(*with_numbers((model, emissions), own))
        return values_alone(out), out

    given, pull, out = jax.vjp(of_numbers, own, has_aux=True)
    shared = out if B == 1 else forward(model, emissions)
    loglik, change = passes.score(plan, shared)
    change = jax.tree.map(
        lambda c, x: jax.tree.map(jnp.zeros_like, x) if c is None else c, change, given, is_leaf=lambda x: x is None
    )
    return loglik, pull(change)[0]


@functools.partial(jax.jit, static_argnames="how")
def sample_states(model: Model, emissions: jax.Array, noise: jax.Array, jitter: jax.Array, how: How) -> jax.Array:
    """Draws states (B, T, D, 1) given the emissions, from standard normal noise (B, T, D)."""
    noise = widened_noise(noise[..., None], _states(how, model))
    return _either(how, model, emissions, passes.sample, noise, jitter.reshape(1, 1, 1, 1))


@functools.partial(jax.jit, static_argnames="how")
def joint_sample(model: Model, state_noise: jax.Array, emission_noise: jax.Array, how: How) -> tuple[jax.Array, jax.Array]:
    """Draws states (B, T, D) and emissions (B, T, m), from standard normal noise (B, T, D, 1) and (B, T, m, 1)."""
    return transformable(how, lambda plan, *args: in_turn(plan, functools.partial(_sample_prior, plan), *args))(
        model, state_noise, emission_noise
    )


def _sample_prior(plan: Plan, model: Model, state_noise: jax.Array, emission_noise: jax.Array):
    model = written_for(plan, model)
    drift, offset = known_terms(model)
    initial = model.initial_mean + matmul(_root(model.initial_cov), state_noise[:, :1])
    shifts = drift + _colored(plan, model.Q, state_noise)
    F = model.F.filled() if is_table(model.F) else model.F
    static = AffineMap(F.transpose(2, 3, 1, 0)) if F.shape[1] == 1 else AffineMap()
    rows = AffineMap(None if static.E is not None else rows_of(F, slice(1, None)), shifts[:, 1:])
    states = affine_states(plan, initial.transpose(2, 3, 1, 0), static, rows)
    R = noise_of(model)
    noise = deviation(R) * emission_noise if R.shape[-1] == 1 else _colored(plan, R, emission_noise)
    emissions = products(model.H, states) + offset + noise
    return jnp.broadcast_to(states, (len(emissions), *states.shape[1:]))[..., 0], emissions[..., 0]


def _colored(plan: Plan, cov: Any, noise: jax.Array) -> jax.Array:
    """Gives standard normal noise (B, T, n, 1) covariances."""
    if is_computed(cov):
        by = OnXLA(plan.in_lanes)
        return over_blocks(lambda *given: by.arrays(color(*by.matrices(given))), cov, noise)
    return products(_root(cov), noise)


def _root(cov: Any) -> Any:
    """Computes lower triangular square roots of (..., n, n) matrices, or a table's, which may be singular."""
    if is_table(cov):
        return cov._replace(values=_root(cov.values))
    return jnp.moveaxis(square_root(Stacked(jnp.moveaxis(cov, (-2, -1), (0, 1)))).array, (0, 1), (-2, -1))
