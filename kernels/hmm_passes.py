"""Filtering, smoothing, decoding and sampling of hidden Markov models: which recurrences run, and what one hands the next.

All arrays are as `driver.run` has them: series (B or 1, T, rows, columns), the rest (rows, columns, 1, B or 1). A series
of T observations has T - 1 rows, the transitions and what is observed after each.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.kernels import chunked, driver, maps
from fastscan.kernels.axes import as_lanes, as_rows, prepend
from fastscan.kernels.hmm import (
    HMM_BACKWARD_FILTER,
    HMM_FILTER,
    HMM_HINDSIGHT,
    HMM_LIKELIHOOD,
    Backward,
    FilteredStates,
    HMMInputs,
    first_observation,
)
from fastscan.kernels.hmm_smoothing import (
    HMM_SAMPLER,
    HMM_SAMPLER_IN_CHUNKS,
    HMM_SAMPLER_PLAIN,
    HMM_SMOOTHER,
    HMM_SMOOTHER_WITH_COUNTS,
    BackwardInputs,
    SamplerRow,
    begin_counting,
    condition_on_future,
)
from fastscan.kernels.plan import Plan
from fastscan.kernels.probability import draw, quotient, relative
from fastscan.kernels.recurrence import InChunks, Recurrence
from fastscan.kernels.viterbi import VITERBI, VITERBI_IN_CHUNKS, VITERBI_PLAIN, ViterbiInputs, best


class HMMSeries(NamedTuple):
    """A model and its observations.

    Attributes:
        initial: weights of the first state, before its observation; a series of one row.
        A: transition weights (B or 1, T - 1 or 1, K, K).
        log_likelihood: of all observations (B, T, K, 1).
    """

    initial: jax.Array
    A: jax.Array
    log_likelihood: jax.Array


def filter_states(plan: Plan, series: HMMSeries) -> FilteredStates:
    """Filtered and predicted probabilities (B, T, K, 1), and the log density of all observations (B,)."""
    join = driver.phases(plan).join
    state, density = _first(plan, series.initial, series.log_likelihood[:, :1])
    last, out = driver.run(plan, HMM_FILTER, *_inputs(series, state), room=_FILTERED_ROOM)
    return _states(plan, series, density, out, join(plan, out.filtered, last))


def filter_loglik(plan: Plan, series: HMMSeries) -> jax.Array:
    """The log density of all observations (B,) alone."""
    state, density = _first(plan, series.initial, series.log_likelihood[:, :1])
    _, densities = driver.run(plan, HMM_LIKELIHOOD, *_inputs(series, state))
    return _total(plan, density, densities)


def smooth_states(plan: Plan, series: HMMSeries, counting: bool) -> tuple[FilteredStates, jax.Array, jax.Array | None]:
    """What `filter_states` returns, the smoothed probabilities (B, T, K, 1), and expected transitions.

    These are summed over the rows and divided by the weights (B, K, K), if they are asked for by ``counting``, which wants
    weights that do not vary.
    """
    by = driver.phases(plan)
    state, density = _first(plan, series.initial, series.log_likelihood[:, :1])
    inputs = _inputs(series, state)
    params, rows, ends, out = driver.run_with_futures(plan, HMM_FILTER, HMM_HINDSIGHT, *inputs, room=_FILTERED_ROOM)
    backward = BackwardInputs(out.filtered, out.predicted, rows.A)
    recurrence, begin = HMM_SMOOTHER, condition_on_future if len(ends) > 1 else None
    if counting:
        recurrence, begin = HMM_SMOOTHER_WITH_COUNTS, begin_counting
    after, smoothed = by.sweep(plan, recurrence, params, ends, backward, begin=begin, reverse=True, room=True, exits=counting)
    last = driver.last(plan, ends[0])
    filtered, smoothed = (by.join(plan, x, last) for x in (out.filtered, smoothed))
    counts = by.arrays(plan, after.counts).sum(-2).transpose(2, 0, 1) if counting else None
    return _states(plan, series, density, out, filtered), smoothed, counts


def score(plan: Plan, series: HMMSeries) -> tuple[jax.Array, HMMSeries]:
    """The log density of all observations (B,), and every sequence's derivatives (B, ...), by Fisher's identity.

    They are the expected counts of a smoother, divided by the weights without dividing by those that are zero.
    """
    shared = series.A.shape[1] == 1
    states, smoothed, counts = smooth_states(plan, series, counting=shared)
    density = states.log_density[:, None, None, None]
    change = quotient(smoothed, states.predicted)[:, 1:]  # by what the data change the predictions
    of_A = counts[:, None] if counts is not None else states.filtered[:, :-1] * change.mT
    later = jnp.ones_like(smoothed[:, :1])
    if change.shape[1]:
        later = (series.A[:, :1] * change[:, :1].mT).sum(-1, keepdims=True)
    _, first = _first(plan, series.initial, series.log_likelihood[:, :1])
    missing = jnp.isnan(series.log_likelihood)
    ll = jnp.where(missing, 0, series.log_likelihood)[:, :1]
    likelihood = jnp.exp(jnp.where(density == -jnp.inf, -jnp.inf, ll - first))
    return states.log_density, HMMSeries(likelihood * later, of_A, jnp.where(missing, 0, smoothed))


def filter_backward(plan: Plan, series: HMMSeries) -> Backward:
    """Messages p(y_{t+1..T} | z_t), up to factors (B, T, K, 1), and the sum of these factors' logarithms (B,)."""
    ones = jnp.ones_like(series.log_likelihood[:, -1:])
    state, density = _first(plan, ones, series.log_likelihood[:, -1:])
    same, varying = _divided(series.A)
    params, rows = HMMInputs(same), HMMInputs(varying, series.log_likelihood[:, :-1])
    room = Backward(predicted=True, log_density=False)
    _, out = driver.run(plan, HMM_BACKWARD_FILTER, params, state, rows, reverse=True, room=room)
    messages = driver.phases(plan).join(plan, out.predicted, as_lanes(ones))
    return Backward(messages, _total(plan, density, out.log_density))


def most_likely_states(plan: Plan, series: HMMSeries) -> tuple[jax.Array, jax.Array]:
    """The most likely states (B, T, 1, 1), int32, and the score of the best (B, 1, 1, 1), which is -inf if nothing is possible.

    The series' weights are logarithms.
    """
    by = driver.phases(plan)
    same, varying = _divided(series.A)
    params, rows = ViterbiInputs(same), ViterbiInputs(varying, series.log_likelihood[:, 1:])
    end = as_lanes(jnp.zeros_like(series.log_likelihood[:, -1:]))
    recurrences = VITERBI, VITERBI_IN_CHUNKS, VITERBI_PLAIN
    scores, choices, composed = _choose(plan, *recurrences, params, end, rows, reverse=True)
    args = (series.initial, series.log_likelihood[:, :1], as_rows(scores))
    score, first = by.each_row(plan, "first_state", _best_first_state, args)
    _, states = _follow(plan, scores.shape[0], as_lanes(first), choices, composed, reverse=False)
    return prepend(first.astype(jnp.int32), by.join(plan, states)), score


def sample_states(plan: Plan, series: HMMSeries, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """States drawn from their posterior (B, T, 1, 1), int32, and the log density of all observations (B,).

    Args:
        plan: how.
        series: what.
        uniform: (B, T, 1, 1), in [0, 1).
    """
    by = driver.phases(plan)
    state, density = _first(plan, series.initial, series.log_likelihood[:, :1])
    params, state, inputs = _inputs(series, state)
    rows = SamplerRow(inputs, uniform[:, :-1])
    recurrences = HMM_SAMPLER, HMM_SAMPLER_IN_CHUNKS, HMM_SAMPLER_PLAIN
    last, (choices, densities), composed = _choose(plan, *recurrences, params, state, rows, reverse=False)
    end = as_lanes(by.each_row(plan, "last_state", draw, (as_rows(last), uniform[:, -1:])))
    _, states = _follow(plan, last.shape[0], end, choices, composed, reverse=True)
    return by.join(plan, states, end.astype(jnp.int32)), _total(plan, density, densities)


def _choose(
    plan: Plan,
    recurrence: Recurrence,
    in_chunks: InChunks,
    plain: Recurrence,
    params: Any,
    state: Any,
    series: Any,
    *,
    reverse: bool,
) -> tuple[Any, Any, Any]:
    """`driver.run` of a recurrence that reports choices, and what a whole chunk's come to: maps that `_follow` takes.

    Args:
        plan: how.
        recurrence: for a whole series.
        in_chunks: for chunks whose entry states are known; its state is one and what a chunk's choices come to.
        plain: for one chunk under XLA, whose choices are not packed.
        params: as `driver.run` has it.
        state: likewise.
        series: likewise.
        reverse: likewise.
    """
    by = driver.phases(plan)
    params, state, rows = by.matrices(plan, params), by.matrices(plan, state), by.split(plan, series)
    if plan.chunks == 1:
        exits, out = by.sweep(plan, plain if by is chunked else recurrence, params, (state,), rows, reverse=reverse)
        return driver.last(plan, exits, reverse=reverse), out, None
    summaries, ahead = driver.summarise(plan, recurrence, in_chunks, params, state, rows, reverse=reverse)
    entries = by.entries(plan, recurrence, state, summaries, reverse=reverse)
    (exits, composed), out = driver.sweep(plan, in_chunks, params, entries, rows, ahead, reverse=reverse)
    return driver.last(plan, exits, reverse=reverse), out, composed


def _follow(plan: Plan, K: int, state: jax.Array, choices: Any, composed: Any, *, reverse: bool) -> tuple[Any, Any]:
    """States under choices, the other way through time, from the first or last one (1, 1, 1, B)."""
    by = driver.phases(plan)
    entries = by.matrices(plan, state)
    paths = maps.plain_paths(K) if composed is None and by is chunked else maps.paths(K)
    if composed is not None:
        entries = by.entries(plan, paths, entries, composed, reverse=reverse)
    return by.sweep(plan, paths, None, (entries,), choices, reverse=reverse, room=reverse, exits=False)


_FILTERED_ROOM = FilteredStates(filtered=True, predicted=False, log_density=False)


def _first(plan: Plan, predicted: jax.Array, log_likelihood: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The probabilities after one observation (K, 1, 1, B), and its log density (B, 1, 1, 1)."""
    B = log_likelihood.shape[0]
    predicted = jnp.broadcast_to(predicted, (B, *predicted.shape[1:]))
    state, density = driver.phases(plan).each_row(plan, "hmm_first_observation", first_observation, (predicted, log_likelihood))
    return as_lanes(state), density


def _inputs(series: HMMSeries, state: jax.Array) -> tuple[HMMInputs, jax.Array, HMMInputs]:
    """What a recurrence over rows t (transition to t + 1, observation there) takes."""
    same, varying = _divided(series.A)
    return HMMInputs(same), state, HMMInputs(varying, series.log_likelihood[:, 1:])


def _divided(A: jax.Array) -> tuple[Any, Any]:
    """Weights that are the same in every row, and those that are not: one of the two is None."""
    return (as_lanes(A), None) if A.shape[1] == 1 else (None, A)


def _states(plan: Plan, series: HMMSeries, density: jax.Array, out: FilteredStates, filtered: jax.Array) -> FilteredStates:
    join = driver.phases(plan).join
    predicted = prepend(series.initial, join(plan, out.predicted))
    return FilteredStates(filtered, predicted, _total(plan, density, out.log_density))


def _total(plan: Plan, first: jax.Array, densities: jax.Array) -> jax.Array:
    """The sum (B,) of log densities, that of the first observation (B, 1, 1, 1) and those of the rows."""
    return first[:, 0, 0, 0] + driver.phases(plan).total(plan, densities)


def _best_first_state(log_initial: Any, log_likelihood: Any, scores: Any) -> tuple[Any, Any]:
    return best(log_initial, relative(log_likelihood) + scores)
