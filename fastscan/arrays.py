"""Functions of arrays that all families share: products, deviations, and functions of time as tables."""

import functools
import operator
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from fastscan.given import seen


def matmul_by_entries(A: jax.Array, B: jax.Array) -> jax.Array:
    """Multiplies many small matrices as `matmul` does, but entry by entry: (..., n, m) and (..., m, p), with m at least 1.

    On a GPU, XLA's own product of matrices so small takes much longer than reading and writing them once: 42 microseconds for a
    million vectors of two entries on an H200 (``gemm_fusion_dot`` in the record ``gpu-nvidia-h200-447c3bc-profile.csv``).
    """
    return functools.reduce(operator.add, (A[..., j : j + 1] * B[..., j : j + 1, :] for j in range(B.shape[-2])))


def deviation(variance: jax.Array) -> jax.Array:
    """Computes the standard deviation of a variance, with derivative 0 where it is 0; NaN below zero."""
    positive = variance > 0
    root = jnp.sqrt(jnp.where(positive, variance, 1))
    return jnp.where(positive, root, jnp.where(variance == 0, 0, jnp.nan).astype(variance.dtype))


def tabulated(name: str, function: Callable[[Any], Any], steps: int, remedy: str) -> Any:
    """Returns a function of time's values at 0 to ``steps`` - 1; warns, with a remedy, if it indexes a table out of bounds.

    JAX reads the last entry then, and the values end with two equal ones: only those functions are run with checks. Nothing is
    known of what is being traced.
    """
    table = jax.vmap(function)(jnp.arange(steps))
    if steps > 1 and seen(table) and _ends_twice(np.asarray(table)):
        warn_out_of_bounds(name, function, jnp.arange(steps), steps, remedy)
    return table


def warn_out_of_bounds(name: str, function: Callable[[Any], Any], times: jax.Array, steps: int, remedy: str) -> None:
    """Warns if a function of time, of ``steps`` steps, indexes a table out of bounds at one of some times."""
    error, _ = checkify.checkify(jax.vmap(function), errors=checkify.index_checks)(times)
    if error.get() is not None:
        warnings.warn(
            f"{name}: a function of t given that indexes a table out of bounds for some t in 0 to {steps - 1}, where JAX "
            f"reads the nearest entry. {remedy}",
            stacklevel=2,
        )


def _ends_twice(table: np.ndarray) -> bool:
    last = table[-1]
    return bool((last == table[-2]).all()) and not bool((last == table).all())
