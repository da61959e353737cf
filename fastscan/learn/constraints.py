"""Between parameters and the unconstrained numbers that samplers and optimisers move.

A tree of constraints has its parameters' form, which is made of NamedTuples. Frozen parameters have no unconstrained numbers:
nothing can move them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fastscan.kernels.arrays import matmul


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A differentiable, invertible map from real numbers to where a parameter lies.

    Attributes:
        name: for errors.
        constrain: from real numbers to the parameter.
        unconstrain: its inverse.
        log_det_jacobian: of ``constrain``, the logarithm of its Jacobian's determinant, summed over leading axes.
    """

    name: str
    constrain: Callable[[jax.Array], jax.Array]
    unconstrain: Callable[[jax.Array], jax.Array]
    log_det_jacobian: Callable[[jax.Array], jax.Array]


def _frozen(_: Any) -> Any:
    return None


FROZEN = Constraint("frozen", _frozen, _frozen, _frozen)
"""The constraint of a parameter that keeps its value."""

REAL = Constraint("real", lambda y: y, lambda x: x, lambda y: jnp.zeros((), y.dtype))

POSITIVE = Constraint("positive", jnp.exp, jnp.log, jnp.sum)


def _from_log_cholesky(y: jax.Array) -> jax.Array:
    n = _rows(y.shape[-1])
    L = jnp.zeros((*y.shape[:-1], n, n), y.dtype).at[..., *jnp.tril_indices(n)].set(y)
    diagonal = jnp.arange(n)
    L = L.at[..., diagonal, diagonal].set(jnp.exp(L[..., diagonal, diagonal]))
    return matmul(L, L.mT)


def _to_log_cholesky(S: jax.Array) -> jax.Array:
    L = jnp.linalg.cholesky((S + S.mT) / 2)
    diagonal = jnp.arange(L.shape[-1])
    L = L.at[..., diagonal, diagonal].set(jnp.log(L[..., diagonal, diagonal]))
    return L[..., *jnp.tril_indices(L.shape[-1])]


def _log_det_of_log_cholesky(y: jax.Array) -> jax.Array:
    """Computes the log determinant of the map to L L': that of L to L L' is 2^n prod L_ii^(n - i + 1), i from 1; the logarithms
    on L's diagonal add another prod L_ii.
    """
    n = _rows(y.shape[-1])
    i = jnp.arange(n)
    log_diagonal = y[..., i * (i + 3) // 2]
    return ((n + 1 - i).astype(y.dtype) * log_diagonal).sum() + math.prod(y.shape[:-1]) * n * math.log(2)


def _rows(entries: int) -> int:
    """Returns n, the rows of a triangle of n (n + 1) / 2 entries."""
    return (math.isqrt(8 * entries + 1) - 1) // 2


POSITIVE_DEFINITE = Constraint("positive definite", _from_log_cholesky, _to_log_cholesky, _log_det_of_log_cholesky)
"""Matrices (..., N, N), by their Cholesky factors L with logarithms on the diagonal, row by row (..., N (N + 1) / 2)."""


def _from_log_ratios(y: jax.Array) -> jax.Array:
    return jax.nn.softmax(jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, 1)]))


def _to_log_ratios(x: jax.Array) -> jax.Array:
    return jnp.log(x[..., :-1]) - jnp.log(x[..., -1:])


def _log_det_of_log_ratios(y: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, 1)])).sum()


SIMPLEX = Constraint("probabilities, none of them zero", _from_log_ratios, _to_log_ratios, _log_det_of_log_ratios)
"""Probabilities (..., K), by their logarithms less the last one's (..., K - 1)."""


def to_unconstrained(params: Any, constraints: Any) -> Any:
    """Maps parameters to real numbers, with None for the frozen ones.

    Args:
        params: a tree of arrays.
        constraints: a tree of the same form, of `Constraint`s.

    Raises:
        ValueError: a parameter that lies where its constraint cannot reach, if its value is known.
    """
    position = _unconstrain(params, constraints)

    def check(path: Any, constraint: Constraint, x: Any, y: Any) -> None:
        if constraint is not FROZEN and not isinstance(y, jax.core.Tracer) and not np.isfinite(np.asarray(y)).all():
            raise ValueError(f"{dotted(path)}: {x} given, wanted {constraint.name}. Freeze it, or start elsewhere.")

    jax.tree_util.tree_map_with_path(check, constraints, params, position)
    return position


@functools.partial(jax.jit, static_argnames="constraints")
def _unconstrain(params: Any, constraints: Any) -> Any:
    return jax.tree.map(lambda c, x: c.unconstrain(x), constraints, params)


def from_unconstrained(position: Any, constraints: Any, params: Any) -> Any:
    """Maps a position back to parameters, in the dtypes of ``params``, from which the frozen ones are taken."""

    def leaf(constraint: Constraint, y: Any, x: Any) -> Any:
        return x if constraint is FROZEN else constraint.constrain(y).astype(jnp.result_type(x))

    return jax.tree.map(leaf, constraints, position, params)


def log_det_jac_constrain(position: Any, constraints: Any) -> jax.Array | float:
    """Computes the logarithm of the determinant of the Jacobian of `from_unconstrained`: densities of positions have it
    added.
    """
    dets = jax.tree.map(lambda c, y: None if c is FROZEN else c.log_det_jacobian(y), constraints, position)
    return sum(jax.tree.leaves(dets), 0.0)


def freeze(constraints: Any, names: Iterable[str]) -> Any:
    """Returns the constraints with some parameters frozen.

    Args:
        constraints: a tree of `Constraint`s.
        names: of fields, as "dynamics.cov", or of all below one, as "dynamics".

    Raises:
        ValueError: a name of nothing, and what there is.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    known = [dotted(path) for path, _ in jax.tree_util.tree_leaves_with_path(constraints)]
    for name in names:
        if not any(_within(field, name) for field in known):
            raise ValueError(f"frozen: {name!r} given, wanted some of {', '.join(known)}, or a group of them.")

    def leaf(path: Any, constraint: Constraint) -> Constraint:
        return FROZEN if any(_within(dotted(path), name) for name in names) else constraint

    return jax.tree_util.tree_map_with_path(leaf, constraints)


def dotted(path: Any) -> str:
    """Writes a leaf's name, as "dynamics.cov"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _within(field: str, name: str) -> bool:
    return field == name or field.startswith(name + ".")
