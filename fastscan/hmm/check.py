"""From what a user of the HMM functions passes to checked arrays: shapes, dtypes, and weights that are none."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.arrays import tabulated
from fastscan.given import ShapeError, array, check_dtypes, known, promoted
from fastscan.types import Regimes
from fastscan.values import smallest


class CheckedHMM(NamedTuple):
    """Checked arrays: initial (B or 1, K), A (B or 1, T - 1 or 1, K, K), log_likelihoods (B, T, K)."""

    initial: jax.Array
    A: jax.Array
    log_likelihoods: jax.Array


def transition_weights(matrix: Any, function: Callable | None, series: Any) -> tuple[Any, bool]:
    """Returns transition weights as an array or None, and whether a function gave them, for a series (..., T, K)."""
    if function is not None:
        steps = jnp.shape(series)[-2] - 1 if jnp.ndim(series) > 1 else 0
        return tabulated("transition_fn", function, steps, "Entry t is of the transition from t to t + 1."), True
    if isinstance(matrix, Regimes):
        raise TypeError(
            "transition_matrix: fastscan.Regimes given, wanted an array, e.g. values[index]. Only linear-Gaussian "
            "models have regimes."
        )
    return None if matrix is None else array("transition_matrix", matrix), False


def check_hmm(initial: Any, transition_matrix: Any, log_likelihoods: Any, called: bool = False) -> tuple[CheckedHMM, bool]:
    """Checks the arguments, and returns them in one layout and one dtype, and whether the log-likelihoods had a batch axis.

    Args:
        initial: (K,), (B, K), or None for functions that have no use for it.
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), or None.
        log_likelihoods: (T, K) or (B, T, K).
        called: the transition matrix is what a ``transition_fn`` returned, (T - 1, K, K).

    All are promoted to one dtype as JAX promotes, float32 or float64.

    Raises:
        TypeError: dtypes that are neither these nor integers.
        ValueError: shapes; neither a matrix nor a function.
    """
    ll = jnp.asarray(log_likelihoods)
    given = {"log_likelihoods": ll.dtype}
    for name, x in (("initial_distribution", initial), ("transition_fn" if called else "transition_matrix", transition_matrix)):
        given |= {} if x is None else {name: jnp.asarray(x).dtype}
    check_dtypes(given)
    if ll.ndim not in (2, 3) or 0 in ll.shape:
        raise ShapeError(
            f"log_likelihoods: shape {ll.shape} given, wanted (T, K) or (B, T, K) with T, K and B at least 1: one number "
            "for every step and state."
        )
    batched, (T, K) = ll.ndim == 3, ll.shape[-2:]
    B, dtype = ll.shape[0] if batched else None, promoted(given.values())
    if initial is not None and transition_matrix is not None and jnp.ndim(initial) > 1 == jnp.ndim(transition_matrix):
        raise ShapeError(
            f"initial_distribution, transition_matrix: shapes {jnp.shape(initial)} and {jnp.shape(transition_matrix)} given, "
            f"wanted {(K,)} and {(K, K)}. Are the two exchanged?"
        )
    initial = jnp.ones(K, dtype) if initial is None else initial
    initial = _checked("initial_distribution", initial, dtype, [(K,), *([(B, K)] if batched else [])])
    A = check_transitions(transition_matrix, called, B, T, K, dtype)
    return CheckedHMM(initial.reshape(-1, K), A, ll.astype(dtype).reshape(-1, T, K)), batched


def check_transitions(matrix: Any, called: bool, B: int | None, T: int, K: int, dtype: Any) -> jax.Array:
    """Checks transition weights, and returns them as (B or 1, T - 1 or 1, K, K); arguments and errors are those of `check_hmm`,
    with B None without a batch axis.
    """
    if called:
        return _checked("transition_fn", matrix, dtype, [(T - 1, K, K)])[None]
    if matrix is None:
        raise ValueError("transition_matrix: None given and no transition_fn; wanted one of the two.")
    batch = [] if B is None else [(B, T - 1, K, K), (B, 1, K, K)]
    matrix = _checked("transition_matrix", matrix, dtype, [(K, K), (T - 1, K, K), *batch])
    return matrix.reshape((1,) * (4 - matrix.ndim) + matrix.shape)


def check_weights(initial: Any, matrix: Any, log_weights: bool) -> None:
    """Refuses weights of paths that are negative or NaN, as far as their values are known.

    Raises:
        ValueError: such weights.
    """
    for name, x in (("initial_distribution", initial), ("transition_matrix", matrix)):
        if known(type(x)) and not (least := smallest(np.asarray(x))) >= 0 and (not log_weights or math.isnan(least)):
            given = "NaN" if math.isnan(least) else f"{least:.3g}"
            raise ValueError(
                f"{name}: {given} given, wanted weights that are not negative, for results would be NaN. Logarithms want "
                "log_weights=True."
            )


def _checked(name: str, x: Any, dtype: Any, allowed: list[tuple]) -> jax.Array:
    x = jnp.asarray(x)
    if x.shape not in allowed:
        wanted = " or ".join(map(str, dict.fromkeys(allowed)))
        raise ShapeError(f"{name}: shape {x.shape} given, wanted {wanted}.")
    return x.astype(dtype)
