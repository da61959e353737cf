"""The random numbers that dynamax draws from a key, in its order: with these, samples are dynamax's, up to rounding.

dynamax draws a state from a normal distribution as its mean and Cholesky's factor times such numbers, and a discrete state by
inverting its cumulative distribution. So do we. All functions return a `Drawn`, which our samplers take in the place of a key.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fastscan.draws import Drawn


def of_posterior_sample(key: Any, T: int, D: int, dtype: Any) -> Any:
    """Returns those of `lgssm_posterior_sample`, (T, D): a key for the last state, and one for each other."""
    key, last = jax.random.split(key)
    keys = jax.random.split(key, T - 1)
    others = jax.vmap(lambda key: _normal(key, (D,), dtype))(keys) if T > 1 else jnp.zeros((0, D), dtype)
    return Drawn((jnp.concatenate([others, _normal(last, (D,), dtype)[None]]),))


def of_parallel_posterior_sample(key: Any, T: int, D: int, dtype: Any) -> Any:
    """Returns those of the parallel one, (T, D): all of one key."""
    return Drawn((_normal(key, (T, D), dtype),))


def of_joint_sample(key: Any, T: int, D: int, m: int, dtype: Any) -> Any:
    """Returns those of `lgssm_joint_sample`, of states (T, D) and of emissions (T, m)."""
    first, rest = jax.random.split(key)
    keys = jnp.concatenate([first[None], jax.random.split(rest, T - 1)])
    pairs = jax.vmap(jax.random.split)(keys)
    drawn = (jax.vmap(lambda key, n=n: _normal(key, (n,), dtype)) for n in (D, m))
    return Drawn(tuple(draw(pairs[:, k]) for k, draw in enumerate(drawn)))


def of_paths(key: Any, T: int, dtype: Any) -> Any:
    """Returns those of `hmm_posterior_sample`, (T,): `jax.random.choice` inverts at one less a uniform number."""
    return Drawn((1 - jax.vmap(lambda key: jax.random.uniform(key, (), dtype))(jax.random.split(key, T)),))


def _normal(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draws standard normal numbers as the distributions do that dynamax takes."""
    from tensorflow_probability.substrates.jax.distributions import MultivariateNormalFullCovariance

    n = shape[-1]
    drawn: Any = MultivariateNormalFullCovariance(jnp.zeros(shape, dtype), jnp.eye(n, dtype=dtype)).sample(seed=key)
    return drawn
