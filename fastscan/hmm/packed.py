"""Many sequences on one time axis: where one begins, every state goes to the first one's distribution."""

from typing import Any

import jax.numpy as jnp

from fastscan.hmm.check import CheckedHMM
from fastscan.sequences.packing import begun


def with_starts(model: CheckedHMM, starts: Any) -> CheckedHMM:
    """Returns a model whose state begins anew at some steps: True in ``starts`` (T,) or (B, T), which is None for one
    sequence.
    """
    T, K = model.log_likelihoods.shape[1:]
    if starts is None or T == 1:
        return model
    first = jnp.broadcast_to(model.initial[:, None, None, :], (len(model.initial), 1, K, K))
    return model._replace(A=begun(model.A, first, starts.reshape(-1, T)[:, 1:]))
