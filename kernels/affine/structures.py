"""Structures of matrices, by what an affine recurrence needs of them: to be applied, composed and transposed.

Vectors are matrices, too: a column (D, 1) where a matrix is dense or diagonal; for two by two blocks, each of them diagonal,
the two halves as rows (2, D / 2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastscan.kernels.algebra import eye, stage
from fastscan.kernels.algebra.stages import matmul, matmul_add


class Structure(NamedTuple):
    """A structure of matrices.

    Attributes:
        name: for kernels and errors.
        identity: ``(vector) -> matrix`` that leaves vectors like this one as they are.
        apply: ``(A, x, b) -> A x + b``.
        compose: ``(A, B) -> A B``.
        transpose: ``(A) -> A'``.
    """

    name: str
    identity: Callable[[Any], Any]
    apply: Callable[[Any, Any, Any], Any]
    compose: Callable[[Any, Any], Any]
    transpose: Callable[[Any], Any]


@stage
def _scale(A, x, b):
    return A * x + b


@stage
def _scaled(A, B):
    return A * B


def _rows(x):
    return [x.block(i, i + 1) for i in range(x.shape[0])]


@stage
def _apply_blocks(A, x, b):
    (a, c, d, e), (q, p) = _rows(A), _rows(x)
    return type(x).vstack([a * q + c * p, d * q + e * p]) + b


@stage
def _compose_blocks(A, B):
    (a, c, d, e), (f, g, h, k) = _rows(A), _rows(B)
    return type(A).vstack([a * f + c * h, a * g + c * k, d * f + e * h, d * g + e * k])


def _identity_blocks(x):
    return x.constant(np.array([1.0, 0.0, 0.0, 1.0])[:, None] * np.ones((1, x.shape[1])))


def _transpose_blocks(A):
    a, b, c, d = _rows(A)
    return type(A).vstack([a, c, b, d])


DENSE = Structure("affine", lambda x: eye(x, x.shape[0]), matmul_add, matmul, lambda A: A.T)
"""A is (D, D)."""

DIAGONAL = Structure("diagonal_affine", lambda x: x.constant(np.ones(x.shape)), _scale, _scaled, lambda A: A)
"""A is its diagonal (D, 1)."""

BLOCKS = Structure("blocks_affine", _identity_blocks, _apply_blocks, _compose_blocks, _transpose_blocks)
"""A is the diagonals of its four blocks, row by row (4, D / 2)."""
