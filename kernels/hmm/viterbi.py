"""Viterbi's algorithm: scores in max-plus algebra from the end of a series to its beginning, and the choices they imply.

Row t is the transition from t to t+1 and the observation at t+1. Scores are kept relative to the best one, so that they
are as exact at the beginning of a long series as at its end. Of equal scores the first state's wins.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fastscan.kernels.algebra import max_plus, select, stage
from fastscan.kernels.algebra.stages import add, subtract
from fastscan.kernels.hmm import paths as maps
from fastscan.kernels.hmm.probability import relative
from fastscan.kernels.scan.recurrence import Recurrence, Seam
from fastscan.kernels.scan.seams import scores_apart


class ViterbiInputs(NamedTuple):
    """The inputs of one row; the same container holds weights that are the same in every row.

    Attributes:
        log_a: logarithms of transition weights A, (K, K), from state i to j.
        log_likelihood: of the observation (K, 1).
    """

    log_a: Any = None
    log_likelihood: Any = None


def _log_weights(params: ViterbiInputs, x: Any) -> Any:
    return params.log_a if x.log_a is None else x.log_a


def _identity(state):
    K = state.shape[0]
    return state.constant(np.where(np.eye(K) > 0, 0.0, -np.inf))


def _append(params: ViterbiInputs, summary, x: ViterbiInputs):
    return max_plus(add(_log_weights(params, x), subtract(x.log_likelihood, _largest(summary)).T), summary)


def _combine(left, right):
    return max_plus(right, _relative(left))


def _enter(state, summary):
    return _relative(max_plus(summary, state))


def _step(params: ViterbiInputs, state, x: ViterbiInputs) -> tuple[Any, tuple[Any]]:
    """Computes the score of the best continuation from every state (K, 1), and the map of the states that these go to next."""
    scores, choices = best(_log_weights(params, x).T, add(x.log_likelihood, state))
    return _relative(scores.T), (maps.pack(choices.T),)


class Continuation(NamedTuple):
    """Logarithms of a row's own transition weights, if it has some, and what the states it leads to score (K, 1)."""

    log_a: Any
    scores: Any


def _scores_step(params: ViterbiInputs, state, x: ViterbiInputs) -> tuple[Any, tuple[Any]]:
    """Computes the same scores, and the scores with their observations (K, 1) of the states that are gone to."""
    scores = add(x.log_likelihood, state)
    return _relative(max_plus(_log_weights(params, x), scores)), (scores,)


def _choose(params: ViterbiInputs, state, x: Continuation) -> Any:
    """Returns the state that a path at a state (1, 1) goes to next."""
    _, choice = best(_log_weights(params, x).T.column(state), x.scores)
    return choice


def _prepare(x: ViterbiInputs) -> ViterbiInputs:
    return x._replace(log_likelihood=relative(x.log_likelihood))


VITERBI = Recurrence("viterbi", _identity, _append, _combine, _enter, _step, _prepare, Seam(scores_apart, lambda state: state))
VITERBI_PATH = maps.Choosing(
    VITERBI,
    in_chunks=maps.composing(VITERBI),
    ahead=VITERBI._replace(name="viterbi_scores", step=_scores_step),
    back=maps.sequential_path("viterbi_path", _choose),
    rows=lambda rows, scores: Continuation(rows.log_a, scores),
)


@stage
def best(scores, offset):
    """Finds, for every column of scores (K, n) plus ``offset`` (K, 1), the largest (1, n), and the first row that has it (1,
    n).
    """
    kind = type(scores)
    if kind.whole or (kind.in_blocks and scores.shape[1] == 1):
        column = (scores + offset).T
        largest = column.reduce(jnp.maximum)
        states = column.constant(np.arange(column.shape[1])[None])
        first = kind.elementwise(lambda x, y, k: select(x == y, k, np.inf), column, largest, states).reduce(jnp.minimum)
        return largest, kind.elementwise(lambda k: select(k == np.inf, 0, k).astype(np.uint32), first)
    rows = [scores.block(k, k + 1) + offset.block(k, k + 1) for k in range(scores.shape[0])]
    largest = rows[0]
    choice = kind.elementwise(lambda x: jnp.zeros(jnp.shape(x), np.uint32), largest)
    for k, row in enumerate(rows[1:], 1):
        choice = kind.elementwise(lambda x, y, choice, k=k: select(y > x, np.uint32(k), choice), largest, row, choice)
        largest = kind.elementwise(jnp.maximum, largest, row)
    return largest, choice


def _relative(scores):
    """Subtracts the largest score."""
    return subtract(scores, _largest(scores))


@stage
def _largest(scores):
    """Returns the largest score (1, 1); zero if nothing is possible."""
    largest = scores.reduce(jnp.maximum).T.reduce(jnp.maximum)
    return type(scores).elementwise(lambda c: select(c == -jnp.inf, 0, c), largest)
