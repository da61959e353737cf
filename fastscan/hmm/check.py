"""From what a user of the HMM functions passes to checked arrays: shapes, dtypes, and weights that are none."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.functions import evaluated
from fastscan.given import ShapeError, array, check_dtypes, known, promoted
from fastscan.kernels.tables import Computed, is_computed
from fastscan.regimes import as_series, as_table, check_index, check_numbers, over_blocks, regimes_of_arrays
from fastscan.types import Regimes
from fastscan.values import smallest

ArrayLike = jax.typing.ArrayLike
TransitionFn = Callable[[Any], Any] | None


class CheckedHMM(NamedTuple):
    """Checked arrays: initial (B or 1, K), A (B or 1, T - 1 or 1, K, K) or a table, log_likelihoods (B, T, K)."""

    initial: jax.Array
    A: Any
    log_likelihoods: jax.Array


def transition_weights(matrix: Any, function: Callable | None, series: Any, more: int = 0) -> tuple[Any, bool]:
    """Returns transition weights as an array, `Regimes` of arrays, a `Computed` or None, and whether a function gave them, for
    a series (..., T, K), and so many steps before it.
    """
    if function is not None:
        steps = jnp.shape(series)[-2] - 1 + more if jnp.ndim(series) > 1 else 0
        return evaluated("transition_fn", function, steps, "Entry t is of the transition from t to t + 1."), True
    if isinstance(matrix, Regimes):
        regimes = regimes_of_arrays("transition_matrix", matrix)
        check_numbers("transition_matrix", regimes, 0)
        return regimes, False
    return None if matrix is None else array("transition_matrix", matrix), False


def check_hmm(
    initial: Any, transition_matrix: Any, log_likelihoods: Any, called: bool = False, more: int = 0
) -> tuple[CheckedHMM, bool]:
    """Checks the arguments, and returns them in one layout and one dtype, and whether the log-likelihoods had a batch axis.

    Args:
        initial: (K,), (B, K), or None for functions that have no use for it.
        transition_matrix: (K, K), (T - 1, K, K), (B, T - 1, K, K), (B, 1, K, K), `Regimes` of (R, K, K) with an index (T - 1,)
            or (B, T - 1), or None.
        log_likelihoods: (T, K) or (B, T, K).
        called: the transition matrix is what a ``transition_fn`` returned, (T - 1, K, K), or a `Computed`.
        more: steps before the first, 0 or 1: of so many transitions more.

    All are promoted to one dtype as JAX promotes, float32 or float64.

    Raises:
        TypeError: dtypes that are neither these nor integers.
        ValueError: shapes; neither a matrix nor a function.
    """
    ll = jnp.asarray(log_likelihoods)
    given = {"log_likelihoods": ll.dtype}
    for name, x in (("initial_distribution", initial), ("transition_fn" if called else "transition_matrix", transition_matrix)):
        given |= {} if x is None else {name: weights_dtype(x)}
    check_dtypes(given)
    if ll.ndim not in (2, 3) or 0 in ll.shape:
        raise ShapeError(
            f"log_likelihoods: shape {ll.shape} given, wanted (T, K) or (B, T, K) with T, K and B at least 1: one number "
            "for every step and state."
        )
    batched, (T, K) = ll.ndim == 3, ll.shape[-2:]
    B, dtype = ll.shape[0] if batched else None, promoted(given.values())
    matrix: Any = None if isinstance(transition_matrix, Regimes) or is_computed(transition_matrix) else transition_matrix
    if initial is not None and matrix is not None and jnp.ndim(initial) > 1 == jnp.ndim(matrix):
        raise ShapeError(
            f"initial_distribution, transition_matrix: shapes {jnp.shape(initial)} and {jnp.shape(matrix)} given, "
            f"wanted {(K,)} and {(K, K)}. Are the two exchanged?"
        )
    initial = jnp.ones(K, dtype) if initial is None else initial
    initial = _checked("initial_distribution", initial, dtype, [(K,), *([(B, K)] if batched else [])])
    A = check_transitions(transition_matrix, called, B, T + more, K, dtype)
    return CheckedHMM(initial.reshape(-1, K), A, ll.astype(dtype).reshape(-1, T, K)), batched


def weights_dtype(x: Any) -> Any:
    """Returns the dtype of weights as they were given."""
    return jnp.asarray(x.values).dtype if isinstance(x, Regimes) else x.dtype if is_computed(x) else jnp.asarray(x).dtype


def calls_functions(model: CheckedHMM) -> bool:
    """Tells whether a user's function is called in loops, of which nobody knows whether it fits into one function."""
    return isinstance(model.A, Computed) and not model.A.function.plain


def check_transitions(matrix: Any, called: bool, B: int | None, T: int, K: int, dtype: Any) -> Any:
    """Checks transition weights, and returns them as (B or 1, T - 1 or 1, K, K) or a table; arguments and errors are those of
    `check_hmm`, with B None without a batch axis.
    """
    if is_computed(matrix):
        if matrix.function.shape != (K, K):
            raise ShapeError(f"transition_fn: shape {matrix.function.shape} returned, wanted {(K, K)}.")
        return matrix.replaced(dtype=dtype)
    if called and isinstance(matrix, Regimes) and matrix.values.shape[1:] != (K, K):
        raise ShapeError(f"transition_fn: shape {matrix.values.shape[1:]} returned, wanted {(K, K)}.")
    if called and not isinstance(matrix, Regimes):
        return _checked("transition_fn", matrix, dtype, [(T - 1, K, K)])[None]
    if matrix is None:
        raise ValueError("transition_matrix: None given and no transition_fn; wanted one of the two.")
    if isinstance(matrix, Regimes):
        return _checked_regimes(matrix, B, T, K, dtype)
    batch = [] if B is None else [(B, T - 1, K, K), (B, 1, K, K)]
    matrix = _checked("transition_matrix", matrix, dtype, [(K, K), (T - 1, K, K), *batch])
    return matrix.reshape((1,) * (4 - matrix.ndim) + matrix.shape)


def _checked_regimes(regimes: Regimes, B: int | None, T: int, K: int, dtype: Any) -> Any:
    if jnp.shape(regimes.values)[1:] != (K, K):
        raise ShapeError(f"transition_matrix.values: shape {jnp.shape(regimes.values)} given, wanted (R, {K}, {K}).")
    check_index("transition_matrix", regimes, T - 1, B)
    if T == 1:
        return jnp.zeros((1, 0, K, K), dtype)
    table = as_table(regimes._replace(values=jnp.asarray(regimes.values, dtype)), (K, K))
    return as_series(table) if K == 1 else table


def check_weights(initial: Any, matrix: Any, log_weights: bool, name_of_initial: str = "initial_distribution") -> None:
    """Refuses weights of paths that are negative or NaN, as far as their values are known.

    Raises:
        ValueError: such weights.
    """
    A = matrix.values if isinstance(matrix, Regimes) else _smallest_computed(matrix) if is_computed(matrix) else matrix
    for name, x in ((name_of_initial, initial), ("transition_matrix", A)):
        if known(type(x)) and not (least := smallest(np.asarray(x))) >= 0 and (not log_weights or math.isnan(least)):
            given = "NaN" if math.isnan(least) else f"{least:.3g}"
            raise ValueError(
                f"{name}: {given} given, wanted weights that are not negative, for results would be NaN. Logarithms want "
                "log_weights=True."
            )


@jax.jit
def _smallest_computed(A: Computed) -> jax.Array:
    """Finds the smallest entry of all matrices, NaN if one is."""
    return over_blocks(lambda M: M.min((0, 1), keepdims=True), A).min(keepdims=True)


def _checked(name: str, x: Any, dtype: Any, allowed: list[tuple]) -> jax.Array:
    x = jnp.asarray(x)
    if x.shape not in allowed:
        wanted = " or ".join(map(str, dict.fromkeys(allowed)))
        raise ShapeError(f"{name}: shape {x.shape} given, wanted {wanted}.")
    return x.astype(dtype)


def summed_by_default(matrix: Any, called: bool) -> bool:
    """Tells whether dynamax would sum the probabilities of transitions over time."""
    return not called and not isinstance(matrix, Regimes) and jnp.ndim(matrix) == 2
