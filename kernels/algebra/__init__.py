"""Small dense linear algebra, a matrix per lane, in three representations with one set of operators.

A formula is written once, with ``@ + - * .T`` and the functions below, and runs on

* `Lanes`: a grid of lane vectors, unrolled. For Pallas kernels;
* `Tile`: one array, whose lane is a whole program. For Pallas kernels of large models;
* `Stacked`: arrays of shape ``(rows, columns, *lanes)``. For any size; `Staged` is its form for XLA on a CPU.
"""

import functools
import math
from typing import Any

import numpy as np

from fastscan.kernels.algebra import systems
from fastscan.kernels.algebra.lanes import Lanes, StagedLanes
from fastscan.kernels.algebra.stacked import (
    UNROLLED_TERMS,
    Stacked,
    StackedAlone,
    Staged,
    StagedAlone,
    StagedVectors,
    UnrolledStacked,
    UnrolledStaged,
    in_form_of,
    max_plus,
    product,
    stable_carry,
    stage,
)
from fastscan.kernels.algebra.tile import Tile
from fastscan.kernels.arrays import blank, select, vary_over, varying

Matrix = Lanes | Stacked | Tile

ALGEBRAS: dict[str, type] = {
    "lanes": Lanes,
    "stacked": Stacked,
    "stacked alone": StackedAlone,
    "staged": Staged,
    "staged alone": StagedAlone,
    "staged vectors": StagedVectors,
    "unrolled stacked": UnrolledStacked,
    "unrolled staged": UnrolledStaged,
    "unrolled stacked alone": UnrolledStacked,
    "unrolled staged alone": UnrolledStaged,
    "unrolled staged vectors": UnrolledStacked,
}

__all__ = [
    "ALGEBRAS",
    "UNROLLED_TERMS",
    "Lanes",
    "Matrix",
    "Stacked",
    "StackedAlone",
    "Staged",
    "StagedAlone",
    "StagedLanes",
    "StagedVectors",
    "Tile",
    "blank",
    "downdate",
    "eliminate",
    "eye",
    "in_form_of",
    "max_plus",
    "mirrored",
    "multiply_add",
    "pivots",
    "product",
    "select",
    "solve",
    "stable_carry",
    "stage",
    "symmetric",
    "vary_over",
    "varying",
    "zeros",
]


def eye(like, size: int):
    """Returns the identity of a size, in the representation, dtype and lane rank of ``like``."""
    return like.constant(np.eye(size))


def zeros(like, rows: int, columns: int):
    """Returns a matrix of zeros, in the representation, dtype and lane rank of ``like``."""
    return like.constant(np.zeros((rows, columns)))


def symmetric(matrix):
    """Removes the antisymmetric part that rounding left in a matrix."""
    return mirrored(matrix) if isinstance(matrix, Lanes) else (matrix + matrix.T) * 0.5


def mirrored(matrix):
    """Returns the same matrix, symmetric up to rounding: `Lanes` keep one triangle of it; arrays stay as they are."""
    return type(matrix)(matrix.rows, symmetric=True) if isinstance(matrix, Lanes) else matrix


def multiply_add(a, b, c):
    """Computes ``a @ b + c``; in kernels, an entry is one chain of multiply-adds that starts from c."""
    return a @ b + c if isinstance(a, Stacked) else a.multiply_add(b, c)


def downdate(matrix, column, scale):
    """Computes ``matrix - scale column column'``, with a change that is symmetric to the last bit; scale is (1, 1)."""
    if isinstance(matrix, Lanes):
        return mirrored((column * scale * -1.0).multiply_add(column.T, matrix))
    if isinstance(matrix, Tile):
        return (column * column.T).scaled_add(scale * -1.0, matrix)
    return matrix - (column @ column.T) * scale


def eliminate(matrix: Any, right: Any, *, checked: bool = False) -> tuple[Any, Any, Any]:
    """Factorises a positive semi-definite matrix and applies the factor's inverse: ``A = L diag(d) L'``, ``L^-1 B``.

    A pivot of at most ``n eps`` times the diagonal entry it started from is taken as the zero it stands for, and its
    column of L as that of the identity; so singular matrices factorise, with L d L' the matrix up to rounding.

    Args:
        matrix: A, (n, n), positive semi-definite.
        right: B, (n, p).
        checked: a pivot more negative than rounding can explain says that the matrix is indefinite, and becomes NaN. Not
            for matrices that may hold nothing but rounding.

    Returns:
        L (n, n) unit lower triangular, d (n, 1) non-negative, and L^-1 B (n, p).
    """
    settle = _settling(np.dtype(matrix.dtype), matrix.shape[0], checked)
    return systems.eliminate(matrix, right, settle) if isinstance(matrix, Stacked) else matrix.eliminate(right, settle)


def pivots(matrix: Any, *, checked: bool = False) -> Any:
    """Computes the pivots alone, d of `eliminate` (n, 1)."""
    settle = _settling(np.dtype(matrix.dtype), matrix.shape[0], checked)
    return systems.pivots(matrix, settle) if isinstance(matrix, Stacked) else matrix.pivots(settle)


def solve(matrix: Any, right: Any, *, pivoted: bool = False) -> tuple[Any, Any, Any]:
    """Solves ``A x = B`` for a positive semi-definite A = L diag(d) L', as `eliminate` factorises it.

    Args:
        matrix: A, (n, n), positive semi-definite.
        right: B, (n, p).
        pivoted: whether to take the best pivot first without trying the order of the rows; of arrays.

    Returns:
        L^-1 B (n, p), the inverses of d, or 0 for a pivot of zero (n, 1), and x (n, p), in which such a row's part is zero.
    """
    settle = _settling(np.dtype(matrix.dtype), matrix.shape[0], False)
    if not isinstance(matrix, Stacked):
        return matrix.solve(right, settle)
    return systems.solve_pivoted(matrix, right) if pivoted else systems.solve(matrix, right, settle)


@functools.cache
def _settling(dtype: np.dtype, n: int, checked: bool):
    """Returns the function that settles the pivots of a matrix (n, n)."""
    eps = float(np.finfo(dtype).eps)
    return functools.partial(_settle, zero=eps * n, indefinite=-math.sqrt(eps) if checked else None)


def _settle(pivot, diagonal, *, zero: float, indefinite: float | None):
    """Settles a pivot: returns it as it is to be used, and its inverse or 0; both elementwise."""
    nothing = pivot <= zero * diagonal
    settled = select(nothing, 0, pivot)
    if indefinite is not None:
        settled = select(pivot < indefinite * diagonal, np.nan, settled)
    return settled, select(nothing, settled, 1 / select(nothing, 1, pivot))
