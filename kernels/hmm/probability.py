"""Probabilities of K states as columns (K, 1), in linear scale, and log-likelihoods of any magnitude beside them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import select, stage
from fastscan.kernels.hmm import scaled
from fastscan.kernels.hmm.scaled import LOWEST

LOG2E = 1.4426950408889634


def observe(predicted, log_likelihood) -> tuple[Any, Any]:
    """Computes the filtered probabilities (K, 1), and the log density of the observation (1, 1).

    Likelihoods are taken relative to the largest one of a state that is possible. Where none is, probabilities are zero
    and the log density is -inf.
    """
    largest = _largest_possible(predicted, log_likelihood)
    weights = _weigh(predicted, log_likelihood, largest)
    return distribution(weights), _log_density(weights, largest)


@stage
def known(log_likelihood):
    """Returns the log-likelihoods, or zeros if all of them are NaN, which says that the observation is missing."""
    return _known(log_likelihood)


@stage
def relative(log_likelihood):
    """Subtracts the largest log-likelihood; zeros if they are missing."""
    return _relative(_known(log_likelihood))


def likelihoods(log_likelihood) -> scaled.Scaled:
    """Exponentials of known log-likelihoods, relative to the largest one."""
    return scaled.Scaled(_likelihood_values(log_likelihood), _likelihood_scale(log_likelihood))


@stage
def distribution(weights):
    """Weights (K, 1) that sum to one, unless all are zero."""
    return _normalized(weights)


@stage
def product_distribution(a, b):
    """Normalises the weights ``a b``."""
    return _normalized(a * b)


@stage
def ratio(a, b):
    """Divides ``a / b``, with 0 / 0 = 0."""
    return type(a).elementwise(quotient, a, b)


@stage
def draw(weights, uniform):
    """Inverts, for every column of weights (K, n), its cumulative distribution at ``uniform`` (1, 1): states (1, n).

    A state of weight zero is never drawn, whatever rounding does to the sums.
    """
    kind, K = type(weights), weights.shape[0]
    if kind.in_blocks and weights.shape[1] == 1:
        return kind(_drawn(weights.array[:, 0], uniform.array[0, 0])[None, None])
    if kind.whole:
        total = weights.T.reduce(jnp.add).T
        below, numbers = weights.accumulated() - weights, uniform.constant(np.arange(K)[:, None])
        last = kind.elementwise(lambda x, b, t, k: select((x > 0) & (b <= t), k, 0), weights, below, total * uniform, numbers)
        return kind.elementwise(lambda k: k.astype(np.uint32), last.T.reduce(jnp.maximum).T)
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


def _drawn(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Does as `draw` with one column of many weights (K, ...), in a loop."""
    K = len(weights)

    def add(i: Any, total: jax.Array) -> jax.Array:
        return total + lax.dynamic_index_in_dim(weights, i, keepdims=False)

    threshold = lax.fori_loop(1, K, add, weights[0]) * uniform

    def pass_by(i: Any, carry: tuple) -> tuple:
        state, below = carry
        weight = lax.dynamic_index_in_dim(weights, i, keepdims=False)
        return select((weight > 0) & (below <= threshold), i.astype(np.uint32), state), below + weight

    begun = jnp.zeros(threshold.shape, np.uint32), jnp.broadcast_to(weights[0], threshold.shape)
    return lax.fori_loop(1, K, pass_by, begun)[0]


@stage
def _likelihood_values(log_likelihood):
    return scaled.exponential(_relative(log_likelihood)).values


@stage
def _likelihood_scale(log_likelihood):
    return scaled.exponential(_relative(log_likelihood)).scale


def _known(log_likelihood):
    kind = type(log_likelihood)
    numbers = kind.elementwise(lambda x: (x == x).astype(x.dtype), log_likelihood).T.reduce(jnp.maximum)
    return kind.elementwise(lambda x, some: select(some == 0, 0, x), log_likelihood, numbers)


def _relative(log_likelihood):
    largest = log_likelihood.T.reduce(jnp.maximum)
    return type(largest).elementwise(lambda x, c: x - select(jnp.abs(c) == jnp.inf, 0, c), log_likelihood, largest)


@stage
def _largest_possible(predicted, log_likelihood):
    """Returns the largest log-likelihood of a state that is possible (1, 1)."""
    kind = type(predicted)
    possible = kind.elementwise(lambda p, x: select(p != 0, x, LOWEST), predicted, log_likelihood)
    return kind.elementwise(lambda x: jnp.maximum(x, LOWEST), possible.T.reduce(jnp.maximum))


@stage
def _weigh(predicted, log_likelihood, largest):
    return type(predicted).elementwise(
        lambda p, x, c: p * jnp.exp2(jnp.minimum(x - c, 0) * LOG2E), predicted, log_likelihood, largest
    )


@stage
def _log_density(weights, largest):
    return type(weights).elementwise(lambda s, c: jnp.log(s) + c, weights.T.reduce(jnp.add), largest)


def _normalized(weights):
    return type(weights).elementwise(quotient, weights, weights.T.reduce(jnp.add))


def quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """Divides arrays ``x / y``, with 0 / 0 = 0."""
    nothing = y == 0
    return select(nothing, x, x / select(nothing, 1, y))
