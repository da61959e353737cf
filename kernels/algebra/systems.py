"""Linear systems of `Stacked` matrices: elimination and substitution, row by row. `Lanes` have theirs unrolled."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra.stacked import UNROLLED_ROWS, UNROLLED_TERMS, Stacked, stable_carry, stage
from fastscan.kernels.arrays import diagonal, select

UNPIVOTED_ROWS = 4  # up to here a system is solved without looking for the best pivot
SUBSTITUTED_ROWS = 16  # up to here a triangular matrix is inverted by a library, which takes long for more
ROUGH = 1024  # roundings of a diagonal entry, of which less is left of a pivot that its row should not have been taken for


def eliminate(matrix: Stacked, right: Stacked, settle: Callable) -> tuple[Stacked, Stacked, Stacked]:
    """Eliminates symmetrically, without pivoting: see `fastscan.kernels.algebra.eliminate`."""
    n, diagonal = matrix.shape[0], matrix.diagonal()
    unit, below = np.eye(n), np.tril(np.ones((n, n)), -1)

    def step(carry, row):
        matrix, right = carry
        basis, below, diagonal = row
        pivot_row, right_row = basis @ matrix, basis @ right
        pivot, inverse = _each(settle, pivot_row @ basis.T, diagonal)
        factors = _multiply(pivot_row * below, inverse)
        carry = _eliminate(matrix, factors, pivot_row), _eliminate(right, factors, right_row)
        return carry, (factors + basis, pivot)

    rows = (matrix.constant(unit), matrix.constant(below.T), diagonal)
    (_, right), (columns, pivots) = type(matrix).over_rows(step, (matrix, right), rows, rolled=True)
    return columns.T, pivots, right


def pivots(matrix: Stacked, settle: Callable) -> Stacked:
    """Eliminates for the pivots alone: see `fastscan.kernels.algebra.pivots`."""
    kind, n, diagonal = type(matrix), matrix.shape[0], matrix.diagonal()

    def step(matrix, k):
        row = _row(matrix, k)
        pivot, inverse = _settled(settle)(_entry(row, k), _row(diagonal, k))
        return _without_pivot(matrix, row, inverse), pivot.array[0]

    order = jnp.arange(n)
    return kind(lax.scan(step, stable_carry(step, matrix, order[0]), order)[1])


def solve(matrix: Stacked, right: Stacked, settle: Callable) -> tuple[Stacked, Stacked, Stacked]:
    """Eliminates and substitutes: see `fastscan.kernels.algebra.solve`.

    In the order of the rows, which is quick; and again with the best pivot first where rounding left little of some pivot, as
    it may of more than `UNPIVOTED_ROWS` rows.
    """
    diagonal = matrix.diagonal()
    in_order = (_solve_unrolled if matrix.shape[0] <= UNROLLED_ROWS else _solve_rolled)(matrix, right, diagonal, settle)
    if matrix.shape[0] <= UNPIVOTED_ROWS:
        return in_order
    return lax.cond(_rough(in_order[1], diagonal).array.any(), lambda: solve_pivoted(matrix, right), lambda: in_order)


def blocked(matrix: Stacked, *others: Stacked) -> bool:
    """Tells whether a matrix is one for a library of linear algebra: large, alone, as others are that it goes with, and in no
    program to be differentiated.
    """
    large = isinstance(matrix, Stacked) and matrix.shape[0] > UNROLLED_TERMS and not matrix.unrolled
    return large and all(m.array[0, 0].size == 1 for m in (matrix, *others))


def factor(matrix: Stacked) -> tuple[Stacked, Stacked]:
    """Computes a lower triangular L with L L' = A, and L's diagonal (n, 1), NaN where A is not positive definite; of a
    `blocked` one, of which only the upper triangle is read: a library of Fortran's takes it for the lower one, in our order.

    One matrix a call. jaxlib 0.10.0 to 0.11.1 hands parts of a batch to its threads and waits for them, in one of these
    threads: as many such calls at once as there are threads wait forever (`ParallelBatchMap`, jaxlib/cpu/lapack_kernels.cc of
    jax-ml/jax, bfd9e1f to 8599924).
    """
    L = lax.linalg.cholesky(matrix.array.reshape(matrix.shape).T, symmetrize_input=False)
    lanes = (1,) * (matrix.array.ndim - 2)
    return type(matrix)(L.reshape(*L.shape, *lanes)), type(matrix)(diagonal(L).reshape(-1, 1, *lanes))


def definite(matrix: Stacked) -> jax.Array:
    """Tells whether a `blocked` matrix has Cholesky's factor."""
    return jnp.isfinite(factor(matrix)[1].array).all()


def inverse_of_transpose(L: Stacked) -> Stacked:
    """Computes L'^-1, with L lower triangular as `factor` returns it; of a large one by its halves.

    The bounds of the errors of what is multiplied by it are those of substitution, which takes longer (Higham 2002, Accuracy
    and Stability of Numerical Algorithms, section 14.2).
    """
    n = L.shape[0]
    if n <= SUBSTITUTED_ROWS:
        # a library of Fortran's has the transpose in an order that is ours
        inverse = lax.linalg.triangular_solve(L.array.reshape(n, n), jnp.eye(n, dtype=L.dtype), left_side=False, lower=True)
        return type(L)(inverse.T.reshape(L.array.shape))
    half = n // 2
    first, last = (inverse_of_transpose(_square(L, *rows)) for rows in ((0, half), (half, n)))
    return _halves(first, _across(first, L.block(half, n).columns(0, half), last), last)


def sound(root: Stacked, matrix: Stacked) -> jax.Array:
    """Tells whether more than rounding is left of every pivot, of a matrix whose factor has this diagonal."""
    inverses = _reciprocal_square(root)
    return _finite(inverses) & ~_rough(inverses, matrix.diagonal()).array.any()


def _solve_unrolled(matrix: Stacked, right: Stacked, diagonal: Stacked, settle: Callable) -> tuple[Stacked, Stacked, Stacked]:
    kind, n = type(matrix), matrix.shape[0]
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


def _solve_rolled(matrix: Stacked, right: Stacked, diagonal: Stacked, settle: Callable) -> tuple[Stacked, Stacked, Stacked]:
    kind, n = type(matrix), matrix.shape[0]
    later = matrix.constant(np.triu(np.ones((n, n)), 1))

    def forward(carry, k):
        matrix, right = carry
        row, right_row = _row(matrix, k), _row(right, k)
        inverse = _inverse(settle)(_entry(row, k), _row(diagonal, k))
        factors = _factors(row, _row(later, k), inverse)
        return (_eliminate(matrix, factors, row), _eliminate(right, factors, right_row)), (factors, right_row, inverse)

    def backward(x, row):
        k, factors, right_row, inverse = row
        found = _solved_row(x, factors, right_row, inverse)
        return kind(lax.dynamic_update_slice_in_dim(x.array, found.array, k, 0)), ()

    order = jnp.arange(n)
    start = stable_carry(forward, (matrix, right), order[0])
    _, (factors, rows, inverses) = lax.scan(forward, start, order)
    x, _ = lax.scan(backward, start[1] * 0.0, (order, factors, rows, inverses), reverse=True)
    return kind(rows.array[:, 0]), kind(inverses.array[:, 0]), x


def solve_pivoted(matrix: Stacked, right: Stacked) -> tuple[Stacked, Stacked, Stacked]:
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
        factors = _factors(row, left.T, inverse)
        carry = _eliminate(matrix, factors, row), _eliminate(right, factors, right_row), _reduced(rest, factors, row), left
        return carry, (basis, factors, right_row, inverse)

    def backward(x, row):
        return _with_row(x, *row), ()

    start = matrix, right, diagonal, matrix.constant(np.ones((n, 1)))
    _, found = kind.over_rows(forward, start, matrix.constant(np.zeros((n, 1))))
    reverse = jax.tree.map(lambda m: kind(m.array[::-1]), found, is_leaf=lambda m: isinstance(m, kind))
    x, _ = kind.over_rows(backward, right * 0.0, reverse)
    return found[2], found[3], x


def _row(matrix: Stacked, k: Any) -> Stacked:
    return type(matrix)(lax.dynamic_slice_in_dim(matrix.array, k, 1, 0))


def _entry(row: Stacked, k: Any) -> Stacked:
    return type(row)(lax.dynamic_slice_in_dim(row.array, k, 1, 1))


def _each(function: Callable, *matrices: Stacked) -> tuple[Stacked, ...]:
    """Applies a function of several results entry by entry."""
    return tuple(map(type(matrices[0]), function(*(m.array for m in matrices))))


def _finite(x: Stacked) -> jax.Array:
    return jnp.isfinite(x.array).all()


@stage
def _reciprocal_square(x):
    return type(x).elementwise(lambda x: 1 / (x * x), x)


@stage
def _multiply(a, b):
    return a * b


def _across(first, below, last):
    """Computes what stands beside the inverses of a transposed factor's halves. In one stage XLA would compute the inner
    product anew for every term of the outer one.
    """
    return _negated_product(first, transposed_times(below, last))


@stage
def transposed_times(a, b):
    """Computes ``a' b``."""
    return a.T @ b


@stage
def _negated_product(a, b):
    return (a @ b) * -1.0


@stage
def _halves(first, across, last):
    none = last.constant(np.zeros((last.shape[0], first.shape[1])))
    return type(first).vstack([_beside(first, across), _beside(none, last)])


def _beside(a: Stacked, b: Stacked) -> Stacked:
    return type(a)(jnp.concatenate([a.array, b.array], 1))


def _square(matrix: Stacked, start: int, stop: int) -> Stacked:
    return matrix.block(start, stop).columns(start, stop)


@stage
def _eliminate(matrix, factors, row):
    return matrix - factors.T @ row


@functools.cache
def _first_inverse(settle: Callable) -> Callable:
    """Makes the stage that inverts a matrix's first pivot."""
    return stage(lambda matrix, diagonal: _each(settle, matrix.block(0, 1).columns(0, 1), diagonal)[1])


@functools.cache
def _inverse(settle: Callable) -> Callable:
    """Makes the stage that inverts a pivot."""
    return stage(lambda pivot, diagonal: _each(settle, pivot, diagonal)[1])


@functools.cache
def _settled(settle: Callable) -> Callable:
    """Makes the stage that settles a pivot, and inverts it."""
    return stage(functools.partial(_each, settle))


@stage
def _without_pivot(matrix, row, inverse):
    return matrix - (row.T @ row) * inverse


@stage
def _rough(inverses, diagonal):
    """Tells whether little more than rounding is left of a pivot."""
    least = ROUGH * float(np.finfo(diagonal.dtype).eps)
    return type(diagonal).elementwise(lambda i, d: (d > 0) & ((i == 0) | (i * d * least > 1)), inverses, diagonal)


@stage
def _first_factors(matrix, inverse):
    """Returns the factors by which the first row is taken from the others."""
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
    """Adds a row to a solution, before those below."""
    return type(row).vstack([row * inverse - factors @ below, below])


@stage
def _largest(rest, diagonal, left):
    """Returns the row of the identity that has the largest rest, relative to the diagonal, among those that are left."""

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
    return row * left * inverse


@stage
def _solved_row(x, factors, right_row, inverse):
    return right_row * inverse - factors @ x


@stage
def _reduced(rest, factors, row):
    return rest - (factors * row).T


@stage
def _with_row(x, basis, factors, right_row, inverse):
    """Adds the row that ``basis`` picks to a solution, from those that it has."""
    return x + basis.T @ (right_row * inverse - factors @ x)
