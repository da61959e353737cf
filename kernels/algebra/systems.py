"""Linear systems of `Stacked` matrices: elimination and substitution, row by row. `Lanes` have theirs unrolled."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra.stacked import UNROLLED_ROWS, Stacked, select, stage

UNPIVOTED_ROWS = 4  # up to here a system is solved without looking for the best pivot


def eliminate(matrix: Stacked, right: Stacked, settle: Callable) -> tuple[Stacked, Stacked, Stacked]:
    """Eliminates symmetrically, without pivoting: see `fastscan.kernels.algebra.eliminate`."""
    n, diagonal = matrix.shape[0], matrix.diagonal()
    unit, below = np.eye(n), np.tril(np.ones((n, n)), -1)

    def step(carry, row):
        matrix, right = carry
        basis, below, diagonal = row
        pivot_row, right_row = basis @ matrix, basis @ right
        pivot = pivot_row @ basis.T
        pivot, inverse = _each(settle, pivot, diagonal)
        factors = _multiply(pivot_row * below, inverse)
        carry = _eliminate(matrix, factors, pivot_row), _eliminate(right, factors, right_row)
        return carry, (factors + basis, pivot)

    rows = (matrix.constant(unit), matrix.constant(below.T), diagonal)
    (_, right), (columns, pivots) = type(matrix).over_rows(step, (matrix, right), rows, rolled=True)
    return columns.T, pivots, right


def solve(matrix: Stacked, right: Stacked, settle: Callable) -> tuple[Stacked, Stacked, Stacked]:
    """Eliminates and substitutes: see `fastscan.kernels.algebra.solve`."""
    kind, n, diagonal = type(matrix), matrix.shape[0], matrix.diagonal()
    if n > UNPIVOTED_ROWS:
        return _solve_pivoted(matrix, right)
    rows, inverses, factors = [], [], []
    for k in range(n):  # what is left of the matrix has one row less every time
        inverses.append(_first_inverse(settle)(matrix, diagonal.block(k, k + 1)))
        rows.append(right.block(0, 1))
        if k < n - 1:
            factors.append(_first_factors(matrix, inverses[-1]))
            matrix, right = _rest_of_matrix(matrix, factors[-1]), _rest_of_right(right, factors[-1])
    x = _multiply(rows[-1], inverses[-1])
    for k in reversed(range(n - 1)):
        x = _substituted(rows[k], inverses[k], factors[k], x)
    return kind.vstack(rows), kind.vstack(inverses), x


def _solve_pivoted(matrix: Stacked, right: Stacked) -> tuple[Stacked, Stacked, Stacked]:
    """Solves in the order of what is left of the diagonal, relative to what it was: no units matter, and no numbering.

    A pivot below rounding is raised to it: of a matrix that is singular up to rounding, the last pivots are nothing else, and
    neither is what they divide.
    """
    kind, n, diagonal = type(matrix), matrix.shape[0], matrix.diagonal()

    def forward(carry, _):
        matrix, right, rest, left = carry
        basis = _largest(rest, diagonal, left)
        row, right_row = _picked(basis, matrix), _picked(basis, right)
        inverse = _floored_inverse(basis, rest, diagonal)
        left = _without(left, basis)
        factors = _factors(row, left, inverse)
        carry = _eliminate(matrix, factors, row), _eliminate(right, factors, right_row), _reduced(rest, factors, row), left
        return carry, (basis, factors, right_row, inverse)

    def backward(x, row):
        return _with_row(x, *row), ()

    start, rolled = (matrix, right, diagonal, matrix.constant(np.ones((n, 1)))), n > UNROLLED_ROWS
    _, found = kind.over_rows(forward, start, matrix.constant(np.zeros((n, 1))), rolled=rolled)
    reverse = jax.tree.map(lambda m: kind(m.array[::-1]), found, is_leaf=lambda m: isinstance(m, kind))
    x, _ = kind.over_rows(backward, right * 0.0, reverse, rolled=rolled)
    return found[2], found[3], x


def _each(function: Callable, *matrices: Stacked) -> tuple[Stacked, ...]:
    """`Stacked.elementwise` of a function of several results."""
    return tuple(map(type(matrices[0]), function(*(m.array for m in matrices))))


@stage
def _multiply(a, b):
    return a * b


@stage
def _eliminate(matrix, factors, row):
    return matrix - factors.T @ row


@functools.cache
def _first_inverse(settle: Callable) -> Callable:
    """The stage that inverts a matrix's first pivot."""
    return stage(lambda matrix, diagonal: _each(settle, matrix.block(0, 1).columns(0, 1), diagonal)[1])


@stage
def _first_factors(matrix, inverse):
    """By which the first row is taken from the others."""
    return matrix.block(0, 1).columns(1, matrix.shape[1]) * inverse


@stage
def _rest_of_matrix(matrix, factors):
    n = matrix.shape[0]
    rows = matrix.block(1, n).columns(1, n)
    return rows - factors.T @ matrix.block(0, 1).columns(1, n)


@stage
def _rest_of_right(right, factors):
    return right.block(1, right.shape[0]) - factors.T @ right.block(0, 1)


@stage
def _substituted(row, inverse, factors, below):
    """The rows of a solution from one on, from those below."""
    return type(row).vstack([row * inverse - factors @ below, below])


@stage
def _largest(rest, diagonal, left):
    """The row of the identity that has the largest rest, relative to the diagonal, among those that are left."""

    def one(rest, diagonal, left):
        some = diagonal > 0
        share = select(some, rest / select(some, diagonal, 1), 0)
        best = lax.argmax(select(left > 0, share, jnp.asarray(-jnp.inf, share.dtype)), 0, jnp.int32)[None]
        return (lax.broadcasted_iota(jnp.int32, share.shape, 0) == best).astype(rest.dtype)

    return type(rest).elementwise(one, rest, diagonal, left).T


@stage
def _picked(basis, matrix):
    return basis @ matrix


@stage
def _floored_inverse(basis, rest, diagonal):
    eps = 8 * float(np.finfo(rest.dtype).eps)

    def inverse(pivot, diagonal):
        some = diagonal > 0
        return select(some, 1 / jnp.maximum(select(some, pivot, 1), diagonal * eps), 0)

    return type(rest).elementwise(inverse, basis @ rest, basis @ diagonal)


@stage
def _without(left, basis):
    return left - basis.T


@stage
def _factors(row, left, inverse):
    return row * left.T * inverse


@stage
def _reduced(rest, factors, row):
    return rest - (factors * row).T


@stage
def _with_row(x, basis, factors, right_row, inverse):
    """A solution with the row that ``basis`` picks, from those that it has."""
    return x + basis.T @ (right_row * inverse - factors @ x)
