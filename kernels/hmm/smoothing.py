"""Backward passes over a filtered hidden Markov model: smoothing, counting transitions, and maps to draw paths by.

Row t holds what the filter said at t and the transition to t+1.
"""

from typing import Any, NamedTuple

import numpy as np

from fastscan.kernels.algebra import eye, product, zeros
from fastscan.kernels.algebra.stages import hadamard
from fastscan.kernels.hmm import paths as maps
from fastscan.kernels.hmm import scaled
from fastscan.kernels.hmm.filtering import FORGETS, HMM_FILTER, HMMInputs, filter_append, likelihood_step, prepare, weights
from fastscan.kernels.hmm.probability import distribution, draw, product_distribution, ratio
from fastscan.kernels.hmm.scaled import Scaled
from fastscan.kernels.scan.recurrence import Recurrence


class BackwardInputs(NamedTuple):
    """One row of the smoother: what the filter said (K, 1), and the transition; A as in `HMMInputs`."""

    filtered: Any
    predicted: Any
    A: Any = None


def smoother_append(params: HMMInputs, summary, x: BackwardInputs):
    """Computes the distribution of the state at the beginning of a stretch given that at its end, one row earlier."""
    return product(ratio(hadamard(weights(params, x), x.filtered), x.predicted.T), summary)


def smoother_step(params: HMMInputs, state, x: BackwardInputs):
    """Takes Rauch, Tung & Striebel's step: smoothed probabilities, from those one step later."""
    state = _smoothed(params, x, ratio(state, x.predicted))
    return state, state


def counting_step(params: HMMInputs, state: tuple[Any, Any], x: BackwardInputs) -> tuple[tuple[Any, Any], Any]:
    """Does as `smoother_step`, and adds the transition's probabilities, divided by its weights, to those of later rows (K,
    K).
    """
    probs, counts = state
    change = ratio(probs, x.predicted)
    probs = _smoothed(params, x, change)
    return (probs, counts + x.filtered * change.T), probs


HMM_SMOOTHER = Recurrence(
    name="hmm_smoother",
    identity=lambda state: eye(state, state.shape[0]),
    append=smoother_append,
    combine=lambda left, right: product(right, left),
    enter=lambda state, summary: distribution(product(summary, state)),
    step=smoother_step,
    seam=FORGETS,
)
HMM_SMOOTHER_WITH_COUNTS = HMM_SMOOTHER._replace(
    name="hmm_smoother_with_counts",
    step=counting_step,
    sums=lambda _, probs: zeros(probs, probs.shape[0], probs.shape[0]),
)
"""For chunks whose entry states are known; it has no summaries of its own."""


def condition_on_future(state, future: Scaled):
    """Computes probabilities (K, 1) given also what follows."""
    prior = Scaled(state.T, state.constant(np.zeros((1, 1))))
    return distribution(scaled.times_diagonal(prior, future).values.T)


class UniformRow(NamedTuple):
    """One row of the filter, before or after `prepare`, and the uniform number (1, 1) that the sampler takes for it."""

    model: Any
    uniform: Any


def sampler_step(params: HMMInputs, state, x: UniformRow) -> tuple[Any, tuple[Any, Any]]:
    """Takes the filter's step, reporting the map from every state at t+1 to the state at t, and the log density."""
    states = draw(hadamard(weights(params, x.model), state), x.uniform)
    after, density = likelihood_step(params, state, x.model)
    return after, (maps.pack(states.T), density)


class DrawnRow(NamedTuple):
    """The inputs of a path's step from t+1 to t: a row's own A, filtered probabilities (K, 1), a uniform number (1, 1)."""

    A: Any
    filtered: Any
    uniform: Any


def _reporting_filtered(params: HMMInputs, state, x: UniformRow) -> tuple[Any, tuple[Any, Any]]:
    after, density = likelihood_step(params, state, x.model)
    return after, (state, density)


def _draw_previous(params: HMMInputs, state, x: DrawnRow) -> Any:
    """Draws the state at t from that at t+1 (1, 1)."""
    return draw(hadamard(weights(params, x).column(state), x.filtered), x.uniform)


HMM_SAMPLER = HMM_FILTER._replace(
    name="hmm_sampler",
    append=lambda params, summary, x: filter_append(params, summary, x.model),
    step=sampler_step,
    prepare=lambda x: x._replace(model=prepare(x.model)),
)
HMM_SAMPLER_PATH = maps.Choosing(
    HMM_SAMPLER,
    in_chunks=maps.composing(HMM_SAMPLER),
    ahead=HMM_SAMPLER._replace(name="hmm_sampler_filter", step=_reporting_filtered),
    back=maps.sequential_path("hmm_sampler_path", _draw_previous),
    rows=lambda rows, filtered: DrawnRow(rows.model.A, filtered, rows.uniform),
)


def _smoothed(params: HMMInputs, x: BackwardInputs, change) -> Any:
    return product_distribution(x.filtered, product(weights(params, x), change))
