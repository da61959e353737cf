"""Derivatives of a path that has been found, by the implicit function theorem: how it moves with what is given.

Of a mode, the slope of the objective stays zero, so the path moves by the inverse of the objective's Hessian, which is that of
a chain: every state meets its neighbours alone. Of a fixed point, its own move makes good what the change of the model brings.
Both solve linear systems, and functions here are linear in what is brought, so derivatives are forward and reverse.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from fastscan.lds import InitialPotential, NodePotential, PairPotential, lds_inference


def mode_change(slope: Callable[[jax.Array], jax.Array], path: jax.Array, brought: jax.Array) -> Any:
    """Computes the change of a path (T, D) where an objective is least, from the change (T, D) of the slope there.

    Args:
        slope: of the objective, a function of the path.
        path: where it is zero.
        brought: by what it changes if the path stays.
    """
    T, D = path.shape

    def curved(change: jax.Array) -> jax.Array:
        return jax.jvp(slope, (path,), (change,))[1]

    # a product tells every third state's columns of the Hessian, as these share no rows
    steps, rows = jnp.arange(T), jnp.arange(T + 1) % 3
    seeds = (steps % 3 == jnp.arange(3)[:, None])[:, None, :, None] * jnp.eye(D, dtype=path.dtype)[None, :, None]
    columns = jax.vmap(jax.vmap(curved))(seeds.astype(path.dtype))
    own, next_ = (columns[rows[k : T + k], :, steps].mT for k in (0, 1))

    def solve(_: Any, value: jax.Array) -> jax.Array:
        none, nothing = jnp.zeros((T, D, D), path.dtype), jnp.zeros((T, D), path.dtype)
        # one state more, which meets none of them, so that there is a pair
        last = NodePotential(nothing[:1], jnp.eye(D, dtype=path.dtype)[None])
        node = NodePotential(*map(jnp.concatenate, zip((value, own), last, strict=True)))
        apart = jnp.where(steps[:, None, None] < T - 1, -next_, 0)
        pair = PairPotential(nothing, none, apart, none, nothing)
        return lds_inference(node, InitialPotential(nothing[0], none[0]), pair).statistics[0][:T]

    return lax.custom_linear_solve(curved, -brought, solve, symmetric=True)


def fixed_point_change(move: Callable[[Any], Any], point: Any, brought: Any) -> Any:
    """Computes the change of a point that does not move, from what changes its move if the point stays; by GMRES.

    Args:
        move: of a point, a tree of arrays, likewise.
        point: where it is zero.
        brought: the change of the move.
    """
    start, tree_of = ravel_pytree(point)  # one vector: `custom_linear_solve` has no transpose where a leaf's change is constant
    value, _ = ravel_pytree(jax.tree.map(jnp.negative, brought))
    tol = float(jnp.finfo(start.dtype).eps) ** (2 / 3)
    _, own = jax.linearize(lambda x: ravel_pytree(move(tree_of(x)))[0], start)

    def by_gmres(function: Callable, value: Any) -> Any:
        gmres = jax.scipy.sparse.linalg.gmres
        return gmres(function, value, tol=tol, restart=20, maxiter=5, solve_method="incremental")[0]

    return tree_of(lax.custom_linear_solve(own, value, by_gmres, by_gmres))
