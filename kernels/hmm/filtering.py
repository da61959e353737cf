"""Hidden Markov models as recurrences: filtering, forward and backward.

Row t is the transition from t to t+1 and the observation at t+1, as for the Kalman filter; probabilities are columns (K, 1)
in linear scale. A stretch of time is a K x K matrix of `Scaled` rows.

Weights need not be normalised: a transition matrix may be any non-negative one. Where the data are impossible, probabilities
are all zero and log densities are -inf.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fastscan.kernels.algebra import product
from fastscan.kernels.algebra.stages import hadamard
from fastscan.kernels.hmm import scaled
from fastscan.kernels.hmm.probability import distribution, known, likelihoods, observe
from fastscan.kernels.hmm.scaled import Scaled
from fastscan.kernels.scan.recurrence import Hindsight, Recurrence, Seam
from fastscan.kernels.scan.seams import weights_apart


class HMMInputs(NamedTuple):
    """The inputs of one row; the same container holds weights that are the same in every row.

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
    """Computes what a row says by itself."""
    log_likelihood = known(x.log_likelihood)
    return Prepared(x.A, log_likelihood, likelihoods(log_likelihood))


def first_observation(predicted, log_likelihood) -> tuple[Any, Any]:
    """Does as `observe`, with log-likelihoods as the user has them."""
    return observe(predicted, known(log_likelihood))


def weights(params: HMMInputs, x: Any) -> Any:
    """Returns a row's transition weights, its own or those of every row."""
    return params.A if x.A is None else x.A


def filter_append(params: HMMInputs, summary: Scaled, x: Prepared) -> Scaled:
    """Adds one transition and observation at the stretch's end."""
    moved = Scaled(product(summary.values, weights(params, x)), summary.scale)
    return scaled.times_diagonal(moved, x.likelihood)


def filter_enter(state, summary: Scaled):
    """Computes the probabilities after a stretch from those before it."""
    row = Scaled(state.T, state.constant(np.zeros((1, 1))))
    return distribution(scaled.multiply(row, summary).values.T)


def filter_step(params: HMMInputs, state, x: Prepared) -> tuple[Any, FilteredStates]:
    """Predicts and updates."""
    predicted = product(state.T, weights(params, x)).T
    after, density = observe(predicted, x.log_likelihood)
    return after, FilteredStates(state, predicted, density)


def likelihood_step(params: HMMInputs, state, x: Prepared) -> tuple[Any, Any]:
    """Does as `filter_step`, but reports the log density alone."""
    after, out = filter_step(params, state, x)
    return after, out.log_density


def _filter_identity(state) -> Scaled:
    return scaled.identity(state, state.shape[0])


def _uniform(state):
    return type(state).elementwise(lambda p: jnp.full_like(p, 1 / state.shape[0]), state)


FORGETS = Seam(weights_apart, guess=_uniform)
"""Between distributions of states: all of them may be the right one."""

HMM_FILTER = Recurrence(
    "hmm_filter",
    _filter_identity,
    filter_append,
    scaled.multiply,
    filter_enter,
    filter_step,
    prepare,
    FORGETS,
)
HMM_LIKELIHOOD = HMM_FILTER._replace(name="hmm_likelihood", step=likelihood_step)


def read(summary: Scaled) -> Scaled:
    """Returns the likelihood of a stretch's observations given the state before it, a column."""
    values = summary.values.reduce(jnp.add)
    return scaled.normalized(Scaled(values, summary.scale))


def retreat(future: Scaled, summary: Scaled) -> Scaled:
    """Computes the likelihood of all observations from a stretch on, from that of those after it."""
    return scaled.multiply(summary, future)


HMM_HINDSIGHT = Hindsight(read, retreat)


class Backward(NamedTuple):
    """p(y_{t+1..T} | z_t) as far as the state at t+1 sums to one (K, 1), and the logarithm of what that takes away."""

    predicted: Any
    log_density: Any


def backward_append(params: HMMInputs, summary: Scaled, x: Prepared) -> Scaled:
    """Adds one observation and transition at the stretch's beginning."""
    return scaled.multiply(Scaled(hadamard(weights(params, x), x.likelihood.values), x.likelihood.scale), summary)


def backward_enter(state, summary: Scaled):
    """Computes the state before a stretch from that after it."""
    message = scaled.multiply(summary, Scaled(state, state.constant(np.zeros((state.shape[0], 1)))))
    return distribution(scaled.unscaled(*message))


def backward_step(params: HMMInputs, state, x: Prepared) -> tuple[Any, Backward]:
    """Predicts backward and updates."""
    predicted = product(weights(params, x), state)
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
    seam=FORGETS,
)
"""Row t is here the observation at t and the transition from t to t+1; its state, p(y_{t+1..T} | z_{t+1}), sums to one."""
