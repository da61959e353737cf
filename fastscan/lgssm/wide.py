"""Models in matrices that fill a CPU's vectors: states are added that stand apart from all others, and taken away again.

XLA's loops over rows of 9 to 15 numbers have a rest, which they compute one by one. An added state is white noise that is never
observed, so it changes nothing of the others, nor of the log-likelihood.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.kernels.tables import is_table
from fastscan.lgssm.check import Model


@dataclasses.dataclass(frozen=True)
class _Widen:
    """Adds rows and columns of zeros to matrices (..., n, p), and to covariances variances of 1."""

    rows: int = 0
    columns: int = 0
    covariance: bool = False

    def __call__(self, x: jax.Array) -> jax.Array:
        n = x.shape[-1]
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, self.rows), (0, self.columns)])
        return x + jnp.asarray(np.diag(np.arange(n + self.columns) >= n), x.dtype) if self.covariance else x


def widened(model: Model, D: int) -> Model:
    """Returns the model with so many states, in all."""
    more = D - model.F.shape[-1]
    if not more:
        return model
    vector, covariance = _Widen(more), _Widen(more, more, covariance=True)
    changes = {
        "initial_mean": vector,
        "initial_cov": covariance,
        "F": _Widen(more, more),
        "b": vector,
        "B": vector,
        "Q": covariance,
        "H": _Widen(columns=more),
    }
    return model._replace(**{name: _changed(getattr(model, name), change) for name, change in changes.items()})


def widened_noise(noise: jax.Array, D: int) -> jax.Array:
    """Returns noise (B, T, D, 1) of a model's states, for those of a wider one."""
    return _Widen(D - noise.shape[-2])(noise)


def narrowed(tree: Any, D: int) -> Any:
    """Takes the added states out of results (..., D, D), (..., D, 1) and (..., 1, 1)."""
    return jax.tree.map(lambda x: x if max(x.shape[-2:]) <= D else x[..., :D, :D], tree)


def _changed(x: Any, change: _Widen) -> Any:
    return x if x is None else x.changed(change) if is_table(x) else change(x)
