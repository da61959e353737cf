"""Random-walk Metropolis in NumPy, step by step in float64, with the random numbers that a run draws; and targets."""

import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jax.scipy import stats as jax_stats
from jax.scipy.special import logsumexp
from scipy import special, stats

LOC, SCALE, WEIGHTS = np.array([-2, 0, 3.2, 2.5]), np.array([1.2, 1, 5, 2.8]), np.array([0.2, 0.3, 0.1, 0.4])
"""The article's mixture of four normal distributions."""


def mixture(x):
    """(1, chains) -> (chains,)"""
    logs = jax_stats.norm.logpdf(x, LOC[:, None].astype(x.dtype), SCALE[:, None].astype(x.dtype))
    return logsumexp(logs + np.log(WEIGHTS)[:, None].astype(x.dtype), axis=0)


def mixture_cdf(x):
    return stats.norm.cdf(np.asarray(x)[..., None], LOC, SCALE) @ WEIGHTS


def correlated(D):
    """A Gaussian in D dimensions: its log density, and its covariance."""
    A = np.random.default_rng(D).normal(size=(D, D)) / np.sqrt(D)
    cov = A @ A.T + 0.5 * np.eye(D)
    precision = np.linalg.inv(cov)
    return lambda x: -0.5 * (x * (precision.astype(x.dtype) @ x)).sum(0), cov


def word(key, counter):
    return np.asarray(threefry_2x32(jnp.asarray(key, jnp.uint32), jnp.asarray(counter, jnp.uint32))).astype(object)


def step_numbers(key, chain, step, D):
    """Normal numbers and the logarithm of a uniform one in float64: two words for each, of the chain's own key."""
    own = word(key, [chain, 0])
    words = np.concatenate([word(own, [step, block]) for block in range(D + 1)])
    pairs = words.reshape(D + 1, 2)
    z = [
        (1 if a >> 31 else -1) * special.ndtri(float((int(a) & 0x7FFFFFFF) * 2**21 + (int(b) >> 11) + 0.5) / 2**53)
        for a, b in pairs[:D]
    ]
    a, b = map(int, pairs[D])
    return np.array(z), np.log(((a >> 1) * 2**21 + (b >> 11) + 0.5) / 2**52)


def textbook(key, log_density, start, steps, factor, first=0, scale=1.0):
    """Positions (steps, D, chains), and which steps were accepted, (steps, chains)."""
    D, chains = start.shape
    factor = np.diag(np.broadcast_to(factor, D)) if np.ndim(factor) < 2 else factor
    positions, accepted = np.zeros((steps, D, chains)), np.zeros((steps, chains), bool)
    for c in range(chains):
        x = start[:, c]
        for n in range(steps):
            z, log_uniform = step_numbers(key, c, first + n, D)
            proposal = x + scale * factor @ z
            accepted[n, c] = log_uniform < log_density(proposal[:, None])[0] - log_density(x[:, None])[0]
            x = positions[n, :, c] = proposal if accepted[n, c] else x
    return positions, accepted
