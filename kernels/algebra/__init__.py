"""Small dense linear algebra, a matrix per lane, in two representations with one set of operators.

A formula is written once, with ``@ + - * .T`` and the functions below, and runs on

* `Lanes`: a grid of lane vectors, unrolled. For Pallas kernels;
* `Stacked`: arrays of shape ``(rows, columns, *lanes)``. For any size; `Staged` is its form for XLA on a CPU.
"""

import functools
import math

import numpy as np

from fastscan.kernels.algebra.lanes import Lanes
from fastscan.kernels.algebra.stacked import Stacked, Staged, select, stable_carry, stage

Matrix = Lanes | Stacked

ALGEBRAS: dict[str, type] = {"lanes": Lanes, "stacked": Stacked, "staged": Staged}

__all__ = [
    "ALGEBRAS",
    "Lanes",
    "Matrix",
    "Stacked",
    "Staged",
    "eliminate",
    "eye",
    "select",
    "stable_carry",
    "stage",
    "symmetric",
    "zeros",
]


def eye(like, size: int):
    """The identity of a size, in the representation, dtype and lane rank of ``like``."""
    return like.constant(np.eye(size))


def zeros(like, rows: int, columns: int):
    """A matrix of zeros, in the representation, dtype and lane rank of ``like``."""
    return like.constant(np.zeros((rows, columns)))


def symmetric(matrix):
    """The matrix with rounding's antisymmetric part removed."""
    if isinstance(matrix, Lanes):
        rows = matrix.rows
        return Lanes([[rows[max(i, j)][min(i, j)] for j in range(len(rows))] for i in range(len(rows))])
    return (matrix + matrix.T) * 0.5


def eliminate(matrix, right, *, checked: bool = False):
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
    eps = float(np.finfo(matrix.dtype).eps)
    return matrix.eliminate(
        right, functools.partial(_settle, zero=eps * matrix.shape[0], indefinite=-math.sqrt(eps) if checked else None)
    )


def _settle(pivot, diagonal, *, zero: float, indefinite: float | None):
    """A pivot as it is to be used, and its inverse or 0; both elementwise."""
    nothing = pivot <= zero * diagonal
    settled = select(nothing, 0, pivot)
    if indefinite is not None:
        settled = select(pivot < indefinite * diagonal, np.nan, settled)
    return settled, select(nothing, settled, 1 / select(nothing, 1, pivot))
