"""Filtering, smoothing, decoding and sampling of hidden Markov models: which recurrences run, and what one hands the next.

All arrays are as `driver.run` has them: series (B or 1, T, rows, columns), the rest (rows, columns, 1, B or 1). A series
of T observations has T - 1 rows, the transitions and what is observed after each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.kernels.arrays import as_lanes, as_rows, prepend
from fastscan.kernels.hmm import counts as transitions
from fastscan.kernels.hmm import paths as maps
from fastscan.kernels.hmm.filtering import (
    HMM_BACKWARD_FILTER,
    HMM_FILTER,
    HMM_HINDSIGHT,
    HMM_LIKELIHOOD,
    Backward,
    FilteredStates,
    HMMInputs,
    first_observation,
)
from fastscan.kernels.hmm.paths import Choosing
from fastscan.kernels.hmm.probability import draw, quotient, relative
from fastscan.kernels.hmm.smoothing import (
    HMM_SAMPLER_PATH,
    HMM_SMOOTHER,
    HMM_SMOOTHER_WITH_COUNTS,
    BackwardInputs,
    UniformRow,
    condition_on_future,
)
from fastscan.kernels.hmm.viterbi import VITERBI_PATH, ViterbiInputs, best
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import driver
from fastscan.kernels.tables import is_table


class HMMSeries(NamedTuple):
    """A model and its observations.

    Attributes:
        initial: weights of the first state, before its observation; a series of one row.
        A: transition weights (B or 1, T - 1 or 1, K, K), or a table of them.
        log_likelihood: of all observations (B, T, K, 1). Where there are only as many as rows, ``initial`` is what is known of
            the state before all of them, and counts as one of the states in results.
    """

    initial: jax.Array
    A: Any
    log_likelihood: jax.Array


def filter_states(plan: Plan, series: HMMSeries) -> FilteredStates:
    """Computes filtered and predicted probabilities (B, T, K, 1), and the log density of all observations (B,)."""
    join = driver.phases(plan).join
    state, density = _begin(plan, series)
    last, out = driver.run(plan, HMM_FILTER, *_inputs(plan, series, state), room=_FILTERED_ROOM)
    return _states(plan, series, density, out, join(out.filtered, last))


def filter_loglik(plan: Plan, series: HMMSeries) -> jax.Array:
    """Computes the log density of all observations (B,) alone."""
    state, density = _begin(plan, series)
    _, densities = driver.run(plan, HMM_LIKELIHOOD, *_inputs(plan, series, state))
    return _total(plan, density, densities)


def smooth_states(plan: Plan, series: HMMSeries, counting: bool) -> tuple[FilteredStates, jax.Array, jax.Array | None]:
    """Computes the results of `filter_states`, the smoothed probabilities (B, T, K, 1), and expected transitions.

    These are summed over the rows and divided by the weights (B, K, K), if they are asked for by ``counting``, which wants
    weights that do not vary.
    """
    by = driver.phases(plan)
    state, density = _begin(plan, series)
    inputs = _inputs(plan, series, state)
    params, rows, ends, out = driver.run_with_futures(plan, HMM_FILTER, HMM_HINDSIGHT, *inputs, room=_FILTERED_ROOM)
    backward = BackwardInputs(out.filtered, out.predicted, rows.A)
    begin, recurrence = condition_on_future if len(ends) > 1 else None, HMM_SMOOTHER_WITH_COUNTS if counting else HMM_SMOOTHER
    after, smoothed = by.sweep(recurrence, params, ends, backward, begin=begin, reverse=True, room=True, exits=counting)
    last = driver.last(plan, ends[0])
    filtered, smoothed = (by.join(x, last) for x in (out.filtered, smoothed))
    counts = by.arrays(after[1]).sum(-2).transpose(2, 0, 1) if counting else None
    return _states(plan, series, density, out, filtered), smoothed, counts


def score(plan: Plan, series: HMMSeries) -> tuple[jax.Array, HMMSeries]:
    """Computes the log density of all observations (B,), and every sequence's derivatives (B, ...), by Fisher's identity.

    They are the expected counts of a smoother, divided by the weights without dividing by those that are zero.
    """
    shared = _same(series.A)
    states, smoothed, counts = smooth_states(plan, series, counting=shared)
    density = states.log_density[:, None, None, None]
    change = quotient(smoothed, states.predicted)[:, 1:]  # by what the data change the predictions
    past = states.filtered[:, :-1]
    if counts is not None:
        of_A: Any = counts[:, None]
    else:
        of_A = transitions.changes(series.A, past, change) if is_table(series.A) else past * change.mT
    later = jnp.ones_like(smoothed[:, :1])
    if change.shape[1]:
        first = series.A.rows(slice(1)).series() if is_table(series.A) else series.A[:, :1]
        later = (first * change[:, :1].mT).sum(-1, keepdims=True)
    missing = jnp.isnan(series.log_likelihood)
    if _resumed(plan, series):
        return states.log_density, HMMSeries(later, of_A, jnp.where(missing, 0, smoothed[:, 1:]))
    _, density_of_first = _begin(plan, series)
    ll = jnp.where(missing, 0, series.log_likelihood)[:, :1]
    likelihood = jnp.exp(jnp.where(density == -jnp.inf, -jnp.inf, ll - density_of_first))
    return states.log_density, HMMSeries(likelihood * later, of_A, jnp.where(missing, 0, smoothed))


def filter_backward(plan: Plan, series: HMMSeries) -> Backward:
    """Computes messages p(y_{t+1..T} | z_t), up to factors (B, T, K, 1), and the sum of these factors' logarithms (B,)."""
    ones = jnp.ones_like(series.log_likelihood[:, -1:])
    state, density = _first(plan, ones, series.log_likelihood[:, -1:])
    same, varying = _divided(series.A)
    params, rows = HMMInputs(same), HMMInputs(varying, series.log_likelihood[:, :-1])
    room = Backward(predicted=True, log_density=False)
    _, out = driver.run(plan, HMM_BACKWARD_FILTER, params, state, rows, reverse=True, room=room)
    messages = driver.phases(plan).join(out.predicted, as_lanes(ones))
    return Backward(messages, _total(plan, density, out.log_density))


def most_likely_states(plan: Plan, series: HMMSeries) -> tuple[jax.Array, jax.Array]:
    """Finds the most likely states (B, T, 1, 1), int32, and the score of the best (B, 1, 1, 1), which is -inf if nothing is
    possible.

    The series' weights are logarithms.
    """
    by = driver.phases(plan)
    same, varying = _divided(series.A)
    params, rows = ViterbiInputs(same), ViterbiInputs(varying, series.log_likelihood[:, 1:])
    end = as_lanes(jnp.zeros_like(series.log_likelihood[:, -1:]))
    scores, _, follow = _choose(plan, VITERBI_PATH, params, end, rows, reverse=True)
    args = (series.initial, series.log_likelihood[:, :1], as_rows(scores))
    score, first = by.each_row("first_state", _best_first_state, args)
    return prepend(first.astype(jnp.int32), by.join(follow(as_lanes(first)))), score


def sample_states(plan: Plan, series: HMMSeries, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws states from their posterior (B, T, 1, 1), int32, and computes the log density of all observations (B,).

    Args:
        plan: how.
        series: what.
        uniform: (B, T, 1, 1), in [0, 1).
    """
    by = driver.phases(plan)
    state, density = _begin(plan, series)
    params, state, inputs = _inputs(plan, series, state)
    rows = UniformRow(inputs, uniform[:, :-1])
    last, (densities,), follow = _choose(plan, HMM_SAMPLER_PATH, params, state, rows, reverse=False)
    end = as_lanes(by.each_row("last_state", draw, (as_rows(last), uniform[:, -1:])))
    return by.join(follow(end), end.astype(jnp.int32)), _total(plan, density, densities)


def _choose(
    plan: Plan, model: Choosing, params: Any, state: Any, series: Any, *, reverse: bool
) -> tuple[Any, list, Callable[[jax.Array], Any]]:
    """Runs a model that makes choices, as `driver.run` does.

    Args:
        plan: how.
        model: what.
        params: as `driver.run` has it.
        state: likewise.
        series: likewise.
        reverse: likewise.

    Returns:
        The last state, what is reported beside the choices, and a function that goes back by them: from the state it begins
        with (1, 1, 1, B) to those of all rows, for `join`.
    """
    by = driver.phases(plan)
    K = state.shape[0]
    back, back_params, composed = maps.paths(K), None, None
    params, entries, rows = by.matrices(params), by.matrices(state), by.split(series)
    recurrence, summarised, begin = model.recurrence, driver.summarised(plan, model.recurrence), None
    if by.addressable and not summarised and (plan.chunks == 1 or maps.Packing.of(K).words > 1):
        exits, (needed, *more) = by.sweep(model.ahead, params, (entries,), rows, reverse=reverse)
        back, back_params, choices = model.back, params, model.rows(rows, needed)
    else:
        if summarised:
            entries = driver.enter_chunks(plan, recurrence, params, entries, rows, reverse=reverse)
            recurrence, begin = model.in_chunks
        exits, (choices, *more) = by.sweep(recurrence, params, (entries,), rows, begin=begin, reverse=reverse)
        if begin is not None:
            exits, composed = exits

    def follow(state: jax.Array) -> Any:
        entries = by.matrices(state)
        if composed is not None:
            entries = by.entries(back, entries, composed, reverse=not reverse)
        return by.sweep(back, back_params, (entries,), choices, reverse=not reverse, room=not reverse, exits=False)[1]

    return driver.last(plan, exits, reverse=reverse), more, follow


_FILTERED_ROOM = FilteredStates(filtered=True, predicted=False, log_density=False)


def _resumed(plan: Plan, series: HMMSeries) -> bool:
    """Tells whether the initial state is one before the first observation."""
    return series.log_likelihood.shape[1] == plan.steps


def _begin(plan: Plan, series: HMMSeries) -> tuple[jax.Array, jax.Array]:
    """Computes the probabilities that the rows begin with (K, 1, 1, B), and the log density of what is seen before (B, 1, 1,
    1).
    """
    ll = series.log_likelihood
    if not _resumed(plan, series):
        return _first(plan, series.initial, ll[:, :1])
    return as_lanes(jnp.broadcast_to(series.initial, (len(ll), *series.initial.shape[1:]))), jnp.zeros_like(ll[:, :1, :1])


def _first(plan: Plan, predicted: jax.Array, log_likelihood: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the probabilities after one observation (K, 1, 1, B), and its log density (B, 1, 1, 1)."""
    B = log_likelihood.shape[0]
    predicted = jnp.broadcast_to(predicted, (B, *predicted.shape[1:]))
    state, density = driver.phases(plan).each_row("hmm_first_observation", first_observation, (predicted, log_likelihood))
    return as_lanes(state), density


def _inputs(plan: Plan, series: HMMSeries, state: jax.Array) -> tuple[HMMInputs, jax.Array, HMMInputs]:
    """Returns the inputs of a recurrence over rows t (transition to t + 1, observation there)."""
    same, varying = _divided(series.A)
    ll = series.log_likelihood
    return HMMInputs(same), state, HMMInputs(varying, ll if _resumed(plan, series) else ll[:, 1:])


def _same(A: Any) -> bool:
    """Tells whether weights are the same in every row."""
    return not is_table(A) and A.shape[1] == 1


def _divided(A: Any) -> tuple[Any, Any]:
    """Weights that are the same in every row, and those that are not: one of the two is None."""
    return (as_lanes(A), None) if _same(A) else (None, A.filled() if is_table(A) else A)


def _states(plan: Plan, series: HMMSeries, density: jax.Array, out: FilteredStates, filtered: jax.Array) -> FilteredStates:
    join = driver.phases(plan).join
    predicted = prepend(series.initial, join(out.predicted))
    return FilteredStates(filtered, predicted, _total(plan, density, out.log_density))


def _total(plan: Plan, first: jax.Array, densities: jax.Array) -> jax.Array:
    """Sums log densities (B,): that of the first observation (B, 1, 1, 1) and those of the rows."""
    return first[:, 0, 0, 0] + driver.phases(plan).total(densities)


def _best_first_state(log_initial: Any, log_likelihood: Any, scores: Any) -> tuple[Any, Any]:
    return best(log_initial, relative(log_likelihood) + scores)
