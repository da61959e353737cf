"""Nonlinear recurrences x_t = f(x_{t-1}, u_t), solved for all t at once by Newton's method.

Linearised about a guess of all x, the recurrence is affine, and `affine_scan` solves it: that is one iteration. Whatever the
Jacobians are, x_t is right after t iterations, as x_0 is known. Where the recurrence forgets, few are enough (DEER: Lim et al.
2023, arXiv 2309.12252; diagonal Jacobians and damping: Gonzalez et al. 2024, arXiv 2407.19115).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from fastscan.given import ShapeError
from fastscan.kernels.algebra import stable_carry
from fastscan.kernels.ranges import ranged
from fastscan.scans.affine import affine_scan
from fastscan.scans.layout import number_array


class NewtonScan(NamedTuple):
    """The states of a nonlinear recurrence, and how they were found.

    Attributes:
        states: after every step, in the form of the state before the first, with a leading axis T.
        iterations: of Newton's method, in each of which f and its Jacobian were evaluated at all steps; int32.
        converged: whether ``residual`` is at most the tolerance.
        residual: the largest ``|x_t - f(x_{t-1}, u_t)|`` of the states that are returned, relative to ``max(1, |x_t|)``; NaN
            if one is.
    """

    states: Any
    iterations: jax.Array
    converged: jax.Array
    residual: jax.Array


JACOBIANS = ("full", "diagonal")


@ranged
def newton_scan(
    f: Callable[[Any, Any], Any],
    x0: Any,
    inputs: Any,
    guess: Any = None,
    *,
    jacobian: str | Callable[[Any, Any], jax.Array] = "full",
    damping: float = 0.0,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    implementation: str | None = None,
) -> NewtonScan:
    """Evaluates a nonlinear recurrence, equal to `jax.lax.scan` at convergence, in parallel over time.

    Derivatives of the states with respect to what f closes over, x0 and the inputs are those at the solution, by one more scan;
    they want f's own Jacobian, also where iterations take another.

    Args:
        f: from the state and one step's inputs to the next state. It may close over arrays.
        x0: the state before the first step, an array of floats or a pytree of such, D numbers in all.
        inputs: a pytree of arrays with leading axis T.
        guess: of the states, as `NewtonScan` has them; None for x0 at all steps.
        jacobian: "full", with D^2 numbers a step; "diagonal", of which only the diagonals are kept: cheaper scans, but more
            iterations; or a function of the state, raveled to (D,), and a step's inputs, that returns (D, D) or (D,), which
            saves D derivatives a step.
        damping: from 0 to 1, by how much Jacobians are made smaller. At 1, every iteration takes the recurrence one step on.
            A recurrence that grows for a while may overflow undamped.
        tolerance: of the residual; default 16 roundings of the states' dtype. The last iteration begins from states within it.
        max_iterations: default T + 1, which are always enough but for numbers that are not finite.
        implementation: of `affine_scan`.

    Returns:
        The states, and how they were found. Look at ``converged``.

    Raises:
        TypeError: no arrays of floats; a state that changes its form.
        ValueError: shapes; numbers out of range.
    """
    if jacobian not in JACOBIANS and not callable(jacobian):
        raise ValueError(f"jacobian: {jacobian!r} given, wanted a function or one of {', '.join(JACOBIANS)}.")
    if not 0 <= damping <= 1:
        raise ValueError(f"damping: {damping} given, wanted a number from 0 to 1.")
    x0 = jax.tree.map(functools.partial(number_array, "x0"), x0)
    for x in jax.tree.leaves(x0):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(f"x0: {jnp.result_type(x)} given, wanted floats.")
    start, unravel = ravel_pytree(x0)
    T = _length(inputs)
    first = _checked_guess(guess, x0, start, T)

    def flat(x: jax.Array, u: Any) -> jax.Array:
        out = f(unravel(x), u)
        if (form := jax.tree.map(jnp.shape, out)) != (wanted := jax.tree.map(jnp.shape, x0)):
            raise TypeError(f"f: a state of shapes {form} returned, wanted those of x0, {wanted}.")
        for y in jax.tree.leaves(out):
            if jnp.promote_types(jnp.result_type(y), start.dtype) != start.dtype:
                raise TypeError(f"f: {jnp.result_type(y)} returned, wanted {start.dtype}, that of x0.")
        return ravel_pytree(out)[0].astype(start.dtype)

    if T == 0:
        nothing = jnp.zeros((), start.dtype)
        return NewtonScan(jax.vmap(unravel)(first), jnp.int32(0), jnp.bool_(True), nothing)
    tolerance = 16 * float(jnp.finfo(start.dtype).eps) if tolerance is None else tolerance
    most = T + 1 if max_iterations is None else max_iterations
    jacobians = functools.partial(_jacobians, flat, jacobian)
    solve = functools.partial(_iterate, flat, jacobians, start, inputs, 1 - damping, tolerance, most, implementation)

    def equations(x: jax.Array) -> jax.Array:
        return x - jax.vmap(flat)(_before(x, start), inputs)

    def tangent_solve(change: Callable[[jax.Array], jax.Array], right: jax.Array) -> jax.Array:
        """Solves ``change(v) = right``, with ``change(v)_t = v_t - J_t v_{t-1}``: J's columns are what it makes of ones."""

        def moved(unit: jax.Array) -> jax.Array:
            v = jnp.broadcast_to(unit, right.shape)
            return v - change(v)

        columns = jax.vmap(moved)(jnp.eye(len(start), dtype=start.dtype))
        return affine_scan(jnp.moveaxis(columns, 0, -1), right, structure="dense", implementation=implementation)

    x, iterations = lax.custom_root(equations, first, solve, tangent_solve, has_aux=True)
    residual = _residual(lax.stop_gradient(x), lax.stop_gradient(equations(lax.stop_gradient(x))))
    return NewtonScan(jax.vmap(unravel)(x), iterations.astype(jnp.int32), residual <= tolerance, residual)


def _iterate(
    f: Callable,
    jacobians: Callable,
    x0: Any,
    inputs: Any,
    scale: float,
    tolerance: float,
    most: int,
    implementation: str | None,
    _: Callable,
    guess: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Iterates from a guess until an iteration began from states within the tolerance."""

    def iterate(carry: Any) -> Any:
        x, k, _ = carry
        before = _before(x, x0)
        value, J = jax.vmap(f)(before, inputs), jacobians(before, inputs)
        J = jnp.where(jnp.isfinite(J), J, 0) * scale  # any matrices will do, but for how many iterations it takes
        structure = "dense" if J.ndim == 3 else "diagonal"
        change = affine_scan(J, value - x, structure=structure, implementation=implementation)
        earlier = _before(change, jnp.zeros_like(x0))  # exactly zero where x is right, so that it stays so to the bit
        new = value + ((J * earlier[:, None, :]).sum(-1) if J.ndim == 3 else J * earlier)
        return jnp.where(jnp.isfinite(new), new, x), k + 1, _residual(x, x - value)

    def goes_on(carry: Any) -> jax.Array:
        _, k, residual = carry
        return (k < most) & ~(residual <= tolerance)

    begun = guess, jnp.int32(0), jnp.asarray(jnp.inf, x0.dtype)
    x, k, _ = lax.while_loop(goes_on, iterate, stable_carry(lambda carry, _: (iterate(carry), None), begun, None))
    return x, k.astype(x.dtype)  # as integers have no derivatives that a rule could return


def _jacobians(f: Callable, jacobian: str | Callable, x: jax.Array, inputs: Any) -> jax.Array:
    """Computes Jacobians (T, D, D), or diagonals (T, D)."""
    if callable(jacobian):
        J = jax.vmap(jacobian)(x, inputs)
        if jnp.shape(J) not in ((*x.shape, x.shape[-1]), x.shape):
            raise ShapeError(f"jacobian: shape {J.shape[1:]} returned, wanted {x.shape[1:] * 2} or {x.shape[1:]}.")
        return J.astype(x.dtype)
    J = jax.vmap(jax.jacfwd(f))(x, inputs)
    return J if jacobian == "full" else jnp.diagonal(J, axis1=-2, axis2=-1)


def _before(x: jax.Array, x0: jax.Array) -> jax.Array:
    return jnp.concatenate([x0[None], x[:-1]])


def _residual(x: jax.Array, apart: jax.Array) -> jax.Array:
    return (jnp.abs(apart) / jnp.maximum(1, jnp.abs(x))).max()


def _length(inputs: Any) -> int:
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or lengths == {()}:
        raise ShapeError(f"inputs: leading axes {sorted(lengths)} given, wanted at least one array, and one length T of all.")
    return lengths.pop()[0]


def _checked_guess(guess: Any, x0: Any, start: jax.Array, T: int) -> jax.Array:
    """Returns a guess as (T, D)."""
    if guess is None:
        return jnp.broadcast_to(start, (T, len(start)))
    wanted = jax.tree.map(lambda x: (T, *jnp.shape(x)), x0)
    if (given := jax.tree.map(jnp.shape, guess)) != wanted:
        raise ShapeError(f"guess: shapes {given} given, wanted {wanted}.")
    return jax.vmap(lambda x: ravel_pytree(x)[0])(guess).astype(start.dtype)
