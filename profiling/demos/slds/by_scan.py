"""The same mean field written with `lax.scan` over time and `jnp.linalg`, as most write it: the yardstick of `slds`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import logsumexp

from fastscan.lds import InitialPotential, LDSStatistics, NodePotential, PairPotential
from fastscan.slds import SLDSParams, hmm_to_lds_mf, lds_to_hmm_mf


def lds(node: NodePotential, init: InitialPotential, pair: PairPotential) -> tuple[LDSStatistics, jax.Array]:
    """Computes the results of `fastscan.lds.lds_inference`."""
    T, D = node.r.shape

    def form(h: jax.Array, J: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        root = jnp.linalg.cholesky(J)
        mean = jax.scipy.linalg.cho_solve((root, True), h)
        return root, mean, 0.5 * h @ mean - jnp.log(jnp.diag(root)).sum()

    def forward(state: tuple, row: tuple) -> tuple[tuple, tuple]:
        (h, J), (h1, J11, J12, J22, h2, r, R) = state, row
        root, mean, log_normalizer = form(h - h1, J + J11)
        gain = jax.scipy.linalg.cho_solve((root, True), J12)
        after = h2 + J12.T @ mean + r, J22 - J12.T @ gain + R
        return after, (gain, mean, jax.scipy.linalg.cho_solve((root, True), jnp.eye(D, dtype=h.dtype)), log_normalizer)

    def backward(state: tuple, row: tuple) -> tuple[tuple, tuple]:
        (m, C), (gain, mean, cov, _) = state, row
        before = mean + gain @ m, gain @ C @ gain.T + cov
        return before, (*before, gain @ C + jnp.outer(before[0], m))

    last, rows = lax.scan(forward, (init.h + node.r[0], init.J + node.R[0]), (*pair, node.r[1:], node.R[1:]))
    root, mean, log_normalizer = form(*last)
    end = mean, jax.scipy.linalg.cho_solve((root, True), jnp.eye(D, dtype=mean.dtype))
    _, (means, covs, cross) = lax.scan(backward, end, rows, reverse=True)
    x, cov = (jnp.concatenate([some, one[None]]) for some, one in zip((means, covs), end, strict=True))
    total = log_normalizer + rows[-1].sum() + T * D / 2 * np.log(2 * np.pi)
    return LDSStatistics(x, cov + x[:, :, None] * x[:, None], cross), total


def hmm(log_initial: jax.Array, log_transition: jax.Array, log_likelihoods: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes probabilities (T, K) of the states, and the log normaliser."""

    def forward(alpha: jax.Array, ll: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha = logsumexp(alpha[:, None] + log_transition, 0) + ll
        return alpha, alpha

    def backward(beta: jax.Array, ll: jax.Array) -> tuple[jax.Array, jax.Array]:
        beta = logsumexp(log_transition + ll + beta, 1)
        return beta, beta

    first = log_initial + log_likelihoods[0]
    last, alphas = lax.scan(forward, first, log_likelihoods[1:])
    zeros = jnp.zeros_like(first)
    _, betas = lax.scan(backward, zeros, log_likelihoods[1:], reverse=True)
    logs = jnp.concatenate([first[None], alphas]) + jnp.concatenate([betas, zeros[None]])
    return jax.nn.softmax(logs), logsumexp(last)


def slds(node: NodePotential, params: SLDSParams, probs: jax.Array, turns: int) -> tuple[Any, jax.Array, jax.Array]:
    """Computes statistics, probabilities and objective after so many turns and one more, as `fastscan.slds.slds_inference` has
    them.
    """

    def turn(probs: jax.Array) -> tuple[jax.Array, LDSStatistics, jax.Array]:
        statistics, log_normalizer = lds(node, params.init, hmm_to_lds_mf(probs, params))
        log_likelihoods = lds_to_hmm_mf(statistics, params)
        after, of_paths = hmm(params.log_initial, params.log_transition, log_likelihoods)
        objective = of_paths + log_normalizer - (probs * (log_likelihoods - params.log_scale)).sum() + params.init_log_scale
        return after, statistics, objective

    probs = lax.fori_loop(0, turns, lambda _, probs: turn(probs)[0], probs)
    probs, statistics, objective = turn(probs)
    return statistics, probs, objective
