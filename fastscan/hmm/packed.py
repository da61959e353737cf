"""Many sequences on one time axis, and sequences in pieces: where one of many begins, every state goes to the first one's
distribution.
"""

from typing import Any

import jax.numpy as jnp

from fastscan.given import ShapeError
from fastscan.hmm.check import CheckedHMM
from fastscan.kernels.tables import is_table
from fastscan.sequences.packing import begun


def with_starts(model: CheckedHMM, starts: Any, *, resumed: bool) -> CheckedHMM:
    """Returns a model whose state begins anew at some steps: True in ``starts`` (T,) or (B, T), which is None for one
    sequence. One that is ``resumed`` has a transition to the first step, too.
    """
    T, K = model.log_likelihoods.shape[1:]
    transitions = slice(0 if resumed else 1, None)
    if starts is None or not len(range(T)[transitions]):
        return model
    first = jnp.broadcast_to(model.initial[:, None, None, :], (len(model.initial), 1, K, K))
    return model._replace(A=begun(model.A, first, starts.reshape(-1, T)[:, transitions]))


def going_on_from(state: Any, model: CheckedHMM, *, batched: bool) -> CheckedHMM:
    """Returns a model whose initial weights are probabilities of the state before the first step, (K,) or (B, K); None leaves
    it as it is.

    Raises:
        ValueError: another shape.
    """
    if state is None:
        return model
    B, _, K = model.log_likelihoods.shape
    allowed = [(K,), *([(B, K)] if batched else [])]
    if jnp.shape(state) not in allowed:
        raise ShapeError(f"initial_state: shape {jnp.shape(state)} given, wanted {' or '.join(map(str, allowed))}.")
    return model._replace(initial=jnp.asarray(state, model.log_likelihoods.dtype).reshape(-1, K))


def without_first(posterior: Any) -> Any:
    """Leaves the state before the first step away, of a posterior with a batch axis."""
    names = ("filtered_probs", "predicted_probs", "smoothed_probs")
    probs = {name: getattr(posterior, name)[:, 1:] for name in names if hasattr(posterior, name)}
    posterior = posterior._replace(**probs)
    return posterior._replace(initial_probs=posterior.smoothed_probs[:, 0]) if "smoothed_probs" in probs else posterior


def last_rows(A: Any, count: int) -> Any:
    """Returns so many of the last transitions' weights; those that do not vary, as they are."""
    if not is_table(A) and A.shape[1] == 1:
        return A
    part = slice(A.shape[1] - count, None)
    return A.rows(part) if is_table(A) else A[:, part]
