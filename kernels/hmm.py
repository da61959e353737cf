"""Hidden Markov models as recurrences: filtering, smoothing, the backward filter, and what the sampler draws from.

Row t is the transition from t to t+1 and the observation at t+1, as for the Kalman filter; probabilities are columns (K, 1)
in linear scale, where K multiplications and one logarithm make a step. A stretch of time is a K x K matrix of `Scaled` rows.

Weights need not be normalised: a transition matrix may be any non-negative one. Where the data are impossible, probabilities
are all zero and log densities are -inf.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fastscan.kernels import maps, scaled
from fastscan.kernels.algebra import eye, product, select, stage, zeros
from fastscan.kernels.recurrence import Hindsight, Recurrence
from fastscan.kernels.scaled import LOWEST, Scaled


LOG2E = 1.4426950408889634


class HMMInputs(NamedTuple):
    """What one row needs; the same container holds what is the same in every row (see `recurrence.merge`).

    Attributes:
        A: transition weights (K, K), from state i to j.
        log_likelihood: of the observation (K, 1), of any magnitude; all NaN if it is missing.
    """

    A: Any = None
    log_likelihood: Any = None


class Prepared(NamedTuple):
    """`HMMInputs` with the log-likelihoods as they are taken, and their exponentials relative to the largest."""

    A: Any
    log_likelihood: Any
    likelihood: Scaled


class FilteredStates(NamedTuple):
    """The probabilities before a row, those of the next state given the same data, and the row's log density given them."""

    filtered: Any
    predicted: Any
    log_density: Any


def prepare(x: HMMInputs) -> Prepared:
    """What a row says by itself."""
    given = _given(x.log_likelihood)
    return Prepared(x.A, given, Scaled(_likelihood_values(given), _likelihood_scale(given)))


def first_observation(predicted, log_likelihood) -> tuple[Any, Any]:
    """`observe`, of log-likelihoods as the user has them."""
    return observe(predicted, _given(log_likelihood))


def observe(predicted, log_likelihood) -> tuple[Any, Any]:
    """The filtered probabilities (K, 1), and the log density of the observation (1, 1).

    Likelihoods are taken relative to the largest one of a state that is possible.
    """
    largest = _largest_possible(predicted, log_likelihood)
    weights = _weigh(predicted, log_likelihood, largest)
    return _distribution(weights), _log_density(weights, largest)


def filter_append(params: HMMInputs, summary: Scaled, x: Prepared) -> Scaled:
    """One more transition and observation at the stretch's end."""
    moved = Scaled(product(summary.values, _weights(params, x)), summary.scale)
    return scaled.times_diagonal(moved, x.likelihood)


def filter_enter(state, summary: Scaled):
    """Probabilities after a stretch, from those before it."""
    row = Scaled(state.T, state.constant(np.zeros((1, 1))))
    return _distribution(scaled.multiply(row, summary).values.T)


def filter_step(params: HMMInputs, state, x: Prepared) -> tuple[Any, FilteredStates]:
    """Predict and update."""
    predicted = product(state.T, _weights(params, x)).T
    after, density = observe(predicted, x.log_likelihood)
    return after, FilteredStates(state, predicted, density)


def likelihood_step(params: HMMInputs, state, x: Prepared) -> tuple[Any, Any]:
    """`filter_step`, reporting the log density alone."""
    after, out = filter_step(params, state, x)
    return after, out.log_density


def _filter_identity(state) -> Scaled:
    return scaled.identity(state, state.shape[0])


HMM_FILTER = Recurrence("hmm_filter", _filter_identity, filter_append, scaled.multiply, filter_enter, filter_step, prepare)
HMM_LIKELIHOOD = HMM_FILTER._replace(name="hmm_likelihood", step=likelihood_step)


def read(summary: Scaled) -> Scaled:
    """The likelihood of a stretch's observations given the state before it, a column."""
    values = summary.values.reduce(jnp.add)
    return scaled.normalized(Scaled(values, summary.scale))


def retreat(future: Scaled, summary: Scaled) -> Scaled:
    """The likelihood of all observations from a stretch on, from that of those after it."""
    return scaled.multiply(summary, future)


HMM_HINDSIGHT = Hindsight(read, retreat)


def condition_on_future(state, future: Scaled):
    """Probabilities (K, 1), given also what follows."""
    prior = Scaled(state.T, state.constant(np.zeros((1, 1))))
    return _distribution(scaled.times_diagonal(prior, future).values.T)


class BackwardInputs(NamedTuple):
    """One row of the smoother: what the filter said (K, 1), and the transition; A as in `HMMInputs`."""

    filtered: Any
    predicted: Any
    A: Any = None


class Counted(NamedTuple):
    """Smoothed probabilities (K, 1), and a sum over the transitions of a chunk (K, K)."""

    probs: Any
    counts: Any


class Counted(NamedTuple):
    """Smoothed probabilities (K, 1), and a sum over later transitions (K, K)."""

    probs: Any
    counts: Any


def smoother_append(params: HMMInputs, summary, x: BackwardInputs):
    """The distribution of the state at the beginning of a stretch given that at its end, one row earlier."""
    return product(_reversed(_weights(params, x), x.filtered, x.predicted), summary)


def smoother_step(params: HMMInputs, state, x: BackwardInputs):
    """Rauch, Tung & Striebel's step: smoothed probabilities, from those one step later."""
    state = _smoothed(params, x, _ratio(state, x.predicted))
    return state, state


def counting_step(params: HMMInputs, state: Counted, x: BackwardInputs) -> tuple[Counted, Any]:
    """`smoother_step`, and the transition's probabilities divided by its weights, added to those of later rows."""
    ratio = _ratio(state.probs, x.predicted)
    probs = _smoothed(params, x, ratio)
    return Counted(probs, _add_outer(state.counts, x.filtered, ratio)), probs


HMM_SMOOTHER = Recurrence(
    name="hmm_smoother",
    identity=lambda state: eye(state, state.shape[0]),
    append=smoother_append,
    combine=lambda left, right: product(right, left),
    enter=lambda state, summary: _distribution(product(summary, state)),
    step=smoother_step,
)


HMM_SMOOTHER_WITH_COUNTS = HMM_SMOOTHER._replace(name="hmm_smoother_with_counts", step=counting_step)
"""For chunks whose entry states are known; it has no summaries of its own."""


def begin_counting(state, future: Scaled | None = None) -> Counted:
    """The smoothed probabilities after a chunk, and no transitions."""
    probs = state if future is None else condition_on_future(state, future)
    return Counted(probs, zeros(probs, probs.shape[0], probs.shape[0]))


class Backward(NamedTuple):
    """p(y_{t+1..T} | z_t) as far as the state at t+1 sums to one (K, 1), and the logarithm of what that takes away."""

    predicted: Any
    log_density: Any


def backward_append(params: HMMInputs, summary: Scaled, x: Prepared) -> Scaled:
    """One more observation and transition at the stretch's beginning."""
    return scaled.multiply(Scaled(_times(_weights(params, x), x.likelihood.values), x.likelihood.scale), summary)


def backward_enter(state, summary: Scaled):
    """The state before a stretch, from that after it."""
    message = scaled.multiply(summary, Scaled(state, state.constant(np.zeros((state.shape[0], 1)))))
    return _distribution(scaled.unscaled(*message))


def backward_step(params: HMMInputs, state, x: Prepared) -> tuple[Any, Backward]:
    """Predict backward and update."""
    predicted = product(_weights(params, x), state)
    after, density = observe(predicted, x.log_likelihood)
    return after, Backward(predicted, density)


HMM_BACKWARD_FILTER = Recurrence(
    name="hmm_backward_filter",
    identity=_filter_identity,
    append=backward_append,
    combine=lambda left, right: scaled.multiply(right, left),
    enter=backward_enter,
    step=backward_step,
    prepare=prepare,
)
"""Row t is here the observation at t and the transition from t to t+1; its state, p(y_{t+1..T} | z_{t+1}), sums to one."""


class SamplerRow(NamedTuple):
    """One row of the filter, before or after `prepare`, and the uniform number (1, 1) that the sampler takes for it."""

    model: Any
    uniform: Any


def sampler_step(params: HMMInputs, state, x: SamplerRow) -> tuple[Any, tuple[Any, Any]]:
    """The filter, reporting the state at t that follows from every state at t+1, as a map, and the log density."""
    states = draw(_times(_weights(params, x.model), state), x.uniform)
    after, density = likelihood_step(params, state, x.model)
    return after, (maps.pack(states.T), density)


HMM_FILTER_FOR_SAMPLING = HMM_FILTER._replace(
    name="hmm_filter_for_sampling",
    append=lambda params, summary, x: filter_append(params, summary, x.model),
    step=sampler_step,
    prepare=lambda x: x._replace(model=prepare(x.model)),
)


@stage
def draw(weights, uniform):
    """For every column of weights (K, n) the state that inverts its cumulative distribution at ``uniform`` (1, 1): (1, n).

    A state of weight zero is never drawn, whatever rounding does to the sums.
    """
    kind, K = type(weights), weights.shape[0]
    rows = [weights.block(i, i + 1) for i in range(K)]
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    threshold = total * uniform
    state = kind.elementwise(lambda x: jnp.zeros(jnp.shape(x), np.uint32), total)
    below = rows[0]
    for i, row in enumerate(rows[1:], 1):
        state = kind.elementwise(
            lambda state, x, b, t, i=i: select((x > 0) & (b <= t), np.uint32(i), state), state, row, below, threshold
        )
        below = below + row
    return state


def _weights(params: HMMInputs, x: Any) -> Any:
    """A row's transition weights, its own or those of every row."""
    return params.A if x.A is None else x.A


@stage
def relative(log_likelihood):
    """Log-likelihoods less the largest one; zeros if they are missing."""
    return _relative(_known(log_likelihood))


@stage
def _given(log_likelihood):
    return _known(log_likelihood)


@stage
def _likelihood_values(given):
    return scaled.exponential(_relative(given)).values


@stage
def _likelihood_scale(given):
    return scaled.exponential(_relative(given)).scale


def _known(log_likelihood):
    """The log-likelihoods, or zeros if all of them are NaN."""
    kind = type(log_likelihood)
    numbers = kind.elementwise(lambda x: (x == x).astype(x.dtype), log_likelihood).T.reduce(jnp.maximum)
    return kind.elementwise(lambda x, some: select(some == 0, 0, x), log_likelihood, numbers)


def _relative(given):
    largest = given.T.reduce(jnp.maximum)
    return type(given).elementwise(lambda x, c: x - select(jnp.abs(c) == jnp.inf, 0, c), given, largest)


@stage
def _largest_possible(predicted, log_likelihood):
    """The largest log-likelihood of a state that is possible (1, 1)."""
    kind = type(predicted)
    possible = kind.elementwise(lambda p, x: select(p != 0, x, LOWEST), predicted, log_likelihood)
    return kind.elementwise(lambda x: jnp.maximum(x, LOWEST), possible.T.reduce(jnp.maximum))


@stage
def _weigh(predicted, log_likelihood, largest):
    return type(predicted).elementwise(
        lambda p, x, c: p * jnp.exp2(jnp.minimum(x - c, 0) * LOG2E), predicted, log_likelihood, largest
    )


@stage
def _distribution(weights):
    """Weights (K, 1) that sum to one, unless all are zero."""
    return type(weights).elementwise(_quotient, weights, weights.T.reduce(jnp.add))


@stage
def _product_distribution(a, b):
    weights = a * b
    return type(weights).elementwise(_quotient, weights, weights.T.reduce(jnp.add))


@stage
def _log_density(weights, largest):
    return type(weights).elementwise(lambda s, c: jnp.log(s) + c, weights.T.reduce(jnp.add), largest)


def _smoothed(params: HMMInputs, x: BackwardInputs, ratio) -> Any:
    return _product_distribution(x.filtered, product(_weights(params, x), ratio))


@stage
def _add_outer(total, a, b):
    return total + a * b.T


@stage
def _ratio(probabilities, predicted):
    return type(predicted).elementwise(_quotient, probabilities, predicted)


@stage
def _reversed(A, filtered, predicted):
    return type(A).elementwise(_quotient, A * filtered, predicted.T)


@stage
def _times(a, b):
    return a * b


def _quotient(x, y):
    """``x / y``, and 0 / 0 = 0."""
    nothing = y == 0
    return select(nothing, x, x / select(nothing, 1, y))
