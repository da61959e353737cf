"""Affine recurrences x_t = A_t x_{t-1} + b_t.

All x together solve a linear system whose matrix is block bidiagonal. So a derivative is a recurrence of the same kind, forward
in time or back, and nothing is kept for it but A and x.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.dispatch.choice import How, Problem
from fastscan.kernels.affine.maps import AffineMap, adjoint_maps, affine_maps
from fastscan.kernels.affine.structures import Structure
from fastscan.kernels.arrays import alike, as_lanes, as_rows
from fastscan.kernels.plan import Plan
from fastscan.kernels.ranges import ranged
from fastscan.kernels.scan import driver
from fastscan.scans.layout import System, number_array, read
from fastscan.sequences.packing import checked_starts
from fastscan.transforms import for_all, in_lanes


@ranged
def affine_scan(
    A: jax.typing.ArrayLike,
    b: jax.typing.ArrayLike,
    x0: jax.typing.ArrayLike | None = None,
    *,
    reverse: bool = False,
    starts: jax.typing.ArrayLike | None = None,
    structure: str | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Computes x_t = A_t x_{t-1} + b_t for all t, in parallel over time where that pays.

    Derivatives of any order, forward and back, are recurrences of the same kind: a gradient costs one more scan, in reverse,
    and keeps nothing but A and x.

    Args:
        A: matrices, dense (T, D, D), their diagonals (T, D), or two by two blocks that are diagonal (T, 2, 2, D / 2); or one
            for all steps, without T. With leading batch axes, those of b, it has an axis of time, which may be 1.
        b: (T, D), or with leading batch axes (..., T, D). Its dtype and A's are promoted: float32, float64, or complex, which
            XLA runs.
        x0: the state before the first step, (D,) or (..., D); None for zeros.
        reverse: compute x_t = A_t x_{t+1} + b_t instead, where ``x0`` comes after the last step.
        starts: (T,) or (..., T), True where a new sequence begins: there ``x0`` is the state before the step. With ``reverse``
            it comes after the last step of every sequence.
        structure: "dense", "diagonal" or "blocks", where shapes do not tell, such as A (8, 8) with b (8, 8).
        implementation: None, or a name from the docstring of `fastscan.lgssm`.

    Returns:
        x, (..., T, D).

    Raises:
        TypeError: no arrays of numbers; ``starts`` that are neither True nor False.
        ValueError: shapes that do not fit together, or that may be read in two ways; an unknown name; kernels that can't hold
            such matrices.
        RuntimeError: ``implementation="pallas"`` where kernels can't run.
    """
    A, b = number_array("A", A), number_array("b", b)
    before = None if x0 is None else number_array("x0", x0)
    if starts is not None and jnp.ndim(b) > 1:
        starts = checked_starts(starts, jnp.shape(b)[-2], jnp.shape(b)[:-2])
    return _affine_scan(A, b, before, starts, bool(reverse), structure, implementation)


@functools.partial(jax.jit, static_argnames=("reverse", "structure", "implementation"))
def _affine_scan(A, b, x0, starts, reverse, structure, implementation) -> jax.Array:
    system = read(A, b, x0, starts, structure, reverse=reverse)
    B, T, *_ = system.b.shape
    problem = Problem(implementation, T + 1, np.shape(b)[-1], 0, str(system.b.dtype), f"affine_{system.name}", unmarked=True)
    how = How(problem.plan(B), problem)
    if T == 0:
        return jnp.zeros(jnp.shape(b), system.b.dtype)
    return _solve(how, system, reverse).reshape(jnp.shape(b))


def _solve(how: How, system: System, reverse: bool) -> jax.Array:
    """Solves for x (B, T, n, p). The state before the first row is an unknown, too, that an equation of its own tells."""
    structure = system.structure
    A, b, x0, starts = alike((system.A, system.b, system.x0, system.starts))
    forward = in_lanes(how, functools.partial(_forward, structure, reverse))
    back = in_lanes(how, functools.partial(_back, structure, reverse))

    def residual(unknown: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, fresh = unknown
        return _with_one_tangent(x - _products(structure, A, _before(x, fresh, starts, reverse)), fresh)

    def solve(_: Any, right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        b, x0 = right
        return forward(A, b, x0, starts), x0

    def solve_back(_: Any, right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        of_x, of_fresh = right
        of_b, of_first = back(A, of_x, starts)
        if starts is not None:
            others = jnp.where(starts[..., None, None], of_b, 0)
            of_first += _products(structure, _transposed(structure, A), others).sum(1, keepdims=True)
        return of_b, of_fresh + of_first

    return lax.custom_linear_solve(residual, _with_one_tangent(b, x0), solve, solve_back)[0]


def _with_one_tangent(b: jax.Array, x0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both as they are, but each with a derivative where the other has one: JAX can't transpose a linear solve of which
    a part is constant.
    """
    never = jnp.zeros((), bool)  # which XLA sees, and JAX does not
    return jnp.where(never, x0, b), jnp.where(never, b[:, :1], x0)


def _forward(
    structure: Structure, reverse: bool, plan: Plan, A: jax.Array, b: jax.Array, x0: jax.Array, starts: Any
) -> jax.Array:
    """Runs the recurrence: (B, T, n, p)."""

    def one(A: jax.Array, b: jax.Array, x0: jax.Array, starts: Any) -> jax.Array:
        params, rows = _divided(A, b, starts, x0)
        _, out = driver.run(plan, affine_maps(structure), params, as_lanes(x0), rows, reverse=reverse)
        return driver.phases(plan).join(out)

    return for_all(plan, one, A, b, x0, starts)


def _back(structure: Structure, reverse: bool, plan: Plan, A: jax.Array, change: jax.Array, starts: Any) -> Any:
    """Runs the recurrence of derivatives back: from those with respect to x to those with respect to b (B, T, n, p), and to the
    state before the first row (B, 1, n, p).
    """

    def one(A: jax.Array, change: jax.Array, starts: Any) -> Any:
        params, rows = _divided(A, change, starts)
        nothing = jnp.zeros_like(change[:, :1])
        last, out = driver.run(plan, adjoint_maps(structure), params, as_lanes(nothing), rows, reverse=not reverse)
        return driver.phases(plan).join(out), as_rows(last)

    return for_all(plan, one, A, change, starts)


def _divided(A: jax.Array, e: jax.Array, starts: Any, fresh: Any = None) -> tuple[AffineMap, AffineMap]:
    """Divides a series into what is the same in every row and what is not."""
    begin = None if starts is None else starts[..., None, None].astype(jnp.int32)
    fresh = None if starts is None or fresh is None else as_lanes(fresh)
    same = A.shape[1] == 1
    return AffineMap(as_lanes(A) if same else None, None, None, fresh), AffineMap(None if same else A, e, begin, None)


def _before(x: jax.Array, fresh: jax.Array, starts: Any, reverse: bool) -> jax.Array:
    """Returns the state before every row (B, T, n, p)."""
    fresh = jnp.broadcast_to(fresh, (len(x), 1, *x.shape[2:]))
    shifted = jnp.concatenate([x[:, 1:], fresh] if reverse else [fresh, x[:, :-1]], 1)
    return shifted if starts is None else jnp.where(starts[..., None, None], fresh, shifted)


def _products(structure: Structure, A: jax.Array, x: jax.Array) -> jax.Array:
    """Multiplies every row's vector by its matrix, entry by entry: XLA makes no dot of it."""
    if structure.name == "affine":
        return (A * jnp.swapaxes(x, -1, -2)).sum(-1, keepdims=True)
    if structure.name == "diagonal_affine":
        return A * x
    blocks = A.reshape(*A.shape[:2], 2, 2, A.shape[-1])
    return (blocks * x[:, :, None]).sum(-2)


def _transposed(structure: Structure, A: jax.Array) -> jax.Array:
    """Transposes matrices (B, T, rows, columns)."""
    if structure.name == "affine":
        return jnp.swapaxes(A, -1, -2)
    return A if structure.name == "diagonal_affine" else A[:, :, jnp.array([0, 2, 1, 3])]
