"""The Kalman filter as a recurrence, with the log-likelihood of every step.

Row t of the recurrence is the transition from t to t+1 and the observation at t+1; its state is the filtered one. So
time-invariant and time-varying parameters, and the first and every other chunk, are treated alike, and the state before
a step, which is what the filter has to report, is also what the backward pass needs.
"""

from typing import Any, NamedTuple

import numpy as np

from fastscan.kernels.algebra import eye, mirrored, multiply_add, stage, zeros
from fastscan.kernels.algebra.stages import add, hadamard
from fastscan.kernels.lgssm import at_once
from fastscan.kernels.lgssm.gaussian import Gaussian, Transition, condition, inform, log_density, push
from fastscan.kernels.scan.recurrence import Hindsight, Recurrence, Seam, merge
from fastscan.kernels.scan.seams import gaussians_apart


class FilterInputs(NamedTuple):
    """The inputs of one row. The same container holds what is the same in every row (see `recurrence.merge`).

    Attributes:
        F, c, Q: the transition's (D, D), (D, 1), (D, D).
        H, noise: the observation's (m, D), (m, 1), decorrelated.
        y: (m, 1), less its known offset; zero where missing.
        weight: (m, 1), 1 where observed and 0 where missing; None if nothing is missing.
    """

    F: Any = None
    c: Any = None
    Q: Any = None
    H: Any = None
    noise: Any = None
    y: Any = None
    weight: Any = None


class FilterSummary(NamedTuple):
    """A stretch of time, from the (unknown) state z before it (Särkkä & García-Fernández 2021, arXiv 1905.13002).

    Given z and the stretch's observations, the state after it is N(A z + b, C); the observations' density as a function
    of z is proportional to exp(eta' z - z' J z / 2).
    """

    A: Any
    b: Any
    C: Any
    eta: Any
    J: Any


class Message(NamedTuple):
    """Knowledge of a state z in information form, exp(eta' z - z' J z / 2)."""

    eta: Any
    J: Any


class Filtered(NamedTuple):
    """The state before a row, and the log density of the row's observation given the past."""

    mean: Any
    cov: Any
    log_density: Any


def identity(state: Gaussian) -> FilterSummary:
    """Returns the summary of no rows: nothing moved, nothing seen."""
    D = state.cov.shape[0]
    nothing, none = mirrored(zeros(state.cov, D, D)), zeros(state.mean, D, 1)
    return FilterSummary(eye(state.cov, D), none, nothing, none, nothing)


def append(params: FilterInputs, summary: FilterSummary, x: FilterInputs) -> FilterSummary:
    """Takes the filter's own step on the stretch's end, from a state before it that is known; what it sees tells of that
    state.
    """
    F, c, Q, H, noise, y, weight = complete(merge(params, x))
    means, C = push(Transition(F, c, Q), (summary.A, summary.b), summary.C)
    C, means, innovations = condition(C, means, (None, y), H, weight, noise)
    return _learn(summary, C, means, innovations, weight)


def combine(left: FilterSummary, right: FilterSummary) -> FilterSummary:
    """Joins two stretches: what the right one saw conditions the end of the left one, which then moves through the right
    one.
    """
    between = _learn(left, *inform(left.C, (left.A, left.b), right.eta, right.J))
    (A, b), C = push(Transition(right.A, right.b, right.C), (between.A, between.b), between.C)
    return between._replace(A=A, b=b, C=C)


def enter(state: Gaussian, summary: FilterSummary) -> Gaussian:
    """Moves the state before a stretch through it, conditioned on what the stretch saw."""
    before = condition_on_future(state, summary)
    (mean,), cov = push(Transition(summary.A, summary.b, summary.C), (before.mean,), before.cov)
    return Gaussian(mean, cov)


def step(params: FilterInputs, state: Gaussian, x: FilterInputs) -> tuple[Gaussian, Filtered]:
    """Predicts and updates."""
    x = merge(params, x)
    (mean,), cov = push(Transition(x.F, x.c, x.Q), (state.mean,), state.cov)
    after, density = observe(Gaussian(mean, cov), x)
    return after, Filtered(state.mean, state.cov, density)


def likelihood_step(params: FilterInputs, state: Gaussian, x: FilterInputs) -> tuple[Gaussian, Any]:
    """Does as `step`, but reports the log density alone."""
    after, out = step(params, state, x)
    return after, out.log_density


def retreat(future: Message, summary: FilterSummary) -> Message:
    """Computes what a stretch and all after it say of the state before it, from what they say of the state after it."""
    return read(_learn(summary, *inform(summary.C, (summary.A, summary.b), future.eta, future.J)))


def read(summary: FilterSummary) -> Message:
    """Reads what a stretch says of the state before it."""
    return Message(summary.eta, summary.J)


KALMAN_FILTER = Recurrence(
    "kalman_filter", identity, append, combine, enter, step, seam=Seam(gaussians_apart, guess=lambda state: state)
)
KALMAN_HINDSIGHT = Hindsight(read, retreat)
KALMAN_LIKELIHOOD = KALMAN_FILTER._replace(name="kalman_likelihood", step=likelihood_step)


def observe(predicted: Gaussian, x: FilterInputs) -> tuple[Gaussian, Any]:
    """Computes the filtered state, and the log density of the observation (1, 1).

    The mean is corrected once, by the sum of the scalar observations' corrections: it is rounded once.

    Args:
        predicted: the state before its observation.
        x: the observation; its transition is not read.
    """
    *_, H, noise, y, weight = complete(x)

    innovation = _innovation(y, H, predicted.mean, weight)

    def by_rows() -> tuple[Any, Any, Any]:
        start = zeros(predicted.mean, *predicted.mean.shape)
        given = predicted.cov, (start,), (innovation,), H, weight, noise
        cov, (correction,), innovations = condition(*given, learning=False, by_rows=True)
        size = size_of_observation(y, H, predicted.mean)
        return add(predicted.mean, correction), cov, log_density(innovations, weight, size)

    if at_once.conditions(predicted.cov, H, weight, noise):
        mean, cov, density = at_once.observe(*predicted, innovation, H, weight, noise, otherwise=by_rows)
    else:
        mean, cov, density = by_rows()
    return Gaussian(mean, cov), density


def condition_on_future(state: Gaussian, future: Message | FilterSummary) -> Gaussian:
    """Conditions the state before a stretch of time also on the stretch's observations."""
    cov, (mean,), *_ = inform(state.cov, (state.mean,), future.eta, future.J)
    return Gaussian(mean, cov)


def complete(x: FilterInputs) -> FilterInputs:
    """Returns inputs with weights of 1 where there are none."""
    return x if x.weight is not None else x._replace(weight=x.H.constant(np.ones((x.H.shape[0], 1))))


def _learn(summary: FilterSummary, C, means, innovations, weight) -> FilterSummary:
    """Updates a summary whose end was conditioned: what was seen there also tells about its beginning."""
    rows, values, seen = innovations.rows[0], innovations.values[1], innovations.inverse
    A, b = means
    eta = _add_information(summary.eta, rows, values, seen)
    J = mirrored(_add_information(summary.J, rows, rows, hadamard(weight, seen)))
    return FilterSummary(A, b, C, eta, J)


@stage
def _innovation(y, H, mean, weight):
    return multiply_add(H * (weight * -1.0), mean, y)


@stage
def size_of_observation(y, H, mean):
    """Adds the squares of what an innovation is made of."""
    return multiply_add(H * H, mean * mean, y * y)


@stage
def _add_information(total, rows, values, precision):
    return multiply_add(rows.T, values * precision, total)
