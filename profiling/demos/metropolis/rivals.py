"""The target of Rémi Louf's article "Massively parallel MCMC with JAX", and random-walk Metropolis in it as others write it.

The article's log density has a slip: it takes logarithms of densities from logarithms of weights, where a mixture adds them.
Here is the mixture that its numbers describe. Its JAX sampler draws proposals and decisions, in every step, with one and the
same key; here every draw has a key of its own. Nobody here keeps samples but TFP, whose sampler always does. NumPyro has no
random-walk Metropolis.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.profiling.measure.models import LOC, SCALE, WEIGHTS, mixture

STEP = 0.1
"""Standard deviation of proposals."""

Position = jax.Array
Rival = Callable[[int, int], Callable[[jax.Array], Any]]
"""A function of chains and samples, which returns a function of a key that draws them."""


def density(x: np.ndarray) -> np.ndarray:
    """Computes the density itself, of numbers (n,)."""
    z = (x - LOC) / SCALE
    return (WEIGHTS / SCALE * np.exp(-(z**2) / 2)).sum(0) / np.sqrt(2 * np.pi)


def by_numpy(chains: int, samples: int) -> Callable[[jax.Array], Any]:
    """Runs the article's generator, with SciPy's distributions."""
    from scipy.special import logsumexp as numpy_logsumexp
    from scipy.stats import norm

    law: Any = norm(LOC.astype(float), SCALE.astype(float))

    def logpdf(x: np.ndarray) -> Any:
        return numpy_logsumexp(np.log(WEIGHTS) + law.logpdf(x), axis=0)

    def run(key: jax.Array) -> np.ndarray:
        random = np.random.RandomState(int(jax.random.randint(key, (), 0, 2**31 - 1)))
        position = np.zeros((1, chains))
        log_prob = logpdf(position)
        for _ in range(samples):
            proposal = position + random.normal(0, STEP, size=position.shape)
            proposed = logpdf(proposal)
            accept = np.log(random.rand(*position.shape)) < proposed - log_prob
            position, log_prob = np.where(accept, proposal, position), np.where(accept, proposed, log_prob)
        return position

    return run


def _step(key: jax.Array, position: Position, log_prob: jax.Array) -> tuple[Position, jax.Array]:
    """Takes a step by the article's kernel in JAX."""
    moves, decisions = jax.random.split(key)
    proposal = position + STEP * jax.random.normal(moves, position.shape, position.dtype)
    proposed = mixture(proposal)
    accept = jnp.log(jax.random.uniform(decisions, log_prob.shape, log_prob.dtype)) < proposed - log_prob
    return jnp.where(accept, proposal, position), jnp.where(accept, proposed, log_prob)


def by_python(chains: int, samples: int) -> Callable[[jax.Array], Any]:
    """Runs the article's jitted step, called from a loop in Python."""
    step = jax.jit(_step)

    def run(key: jax.Array) -> Position:
        position = jnp.zeros((1, chains), "float32")
        log_prob = mixture(position)
        for step_key in jax.random.split(key, samples):
            position, log_prob = step(step_key, position, log_prob)
        return position

    return run


def by_scan(chains: int, samples: int) -> Callable[[jax.Array], Any]:
    """Runs the same step in `lax.scan`."""

    @jax.jit
    def run(key: jax.Array) -> Position:
        first = jnp.zeros((1, chains), "float32")
        walk = lax.scan(lambda state, key: (_step(key, *state), None), (first, mixture(first)), jax.random.split(key, samples))
        return walk[0][0]

    return run


def by_blackjax(chains: int, samples: int) -> Callable[[jax.Array], Any]:
    """Blackjax's random walk, mapped over chains."""
    import blackjax

    walk: Any = blackjax.additive_step_random_walk
    sampler = walk.normal_random_walk(lambda x: mixture(x[None, None])[0], STEP)

    @jax.jit
    def run(key: jax.Array) -> Any:
        def step(state: Any, key: jax.Array) -> tuple[Any, None]:
            return jax.vmap(sampler.step)(jax.random.split(key, chains), state)[0], None

        return lax.scan(step, jax.vmap(sampler.init)(jnp.zeros(chains, "float32")), jax.random.split(key, samples))[0]

    return run


def by_tfp(chains: int, samples: int) -> Callable[[jax.Array], Any]:
    """Runs TensorFlow Probability's on JAX, all samples kept."""
    from tensorflow_probability.substrates import jax as tfp

    kernel = tfp.mcmc.RandomWalkMetropolis(
        lambda x: mixture(x[None]), new_state_fn=tfp.mcmc.random_walk_normal_fn(scale=np.float32(STEP))
    )

    @jax.jit
    def run(key: jax.Array) -> Any:
        start = jnp.zeros(chains, "float32")
        return tfp.mcmc.sample_chain(samples, start, kernel=kernel, trace_fn=None, seed=key)

    return run


def rivals() -> dict[str, Rival]:
    """Lists those whose packages are installed, by what figures call them."""
    needed: dict[str, tuple[Rival, str]] = {
        "NumPy": (by_numpy, "scipy"),
        "JAX, step by step": (by_python, "jax"),
        "lax.scan": (by_scan, "jax"),
        "TFP on JAX": (by_tfp, "tensorflow_probability"),
        "blackjax": (by_blackjax, "blackjax"),
    }
    return {name: rival for name, (rival, package) in needed.items() if importlib.util.find_spec(package)}
