"""Matrices as grids of lane vectors, every formula unrolled into elementwise arithmetic on them.

Structure of arrays: entry (i, j) is one vector with a number per lane, so the same text runs under XLA and inside a
Pallas kernel, where a lane is a thread. What is never read is never computed: one triangle of a symmetric matrix is
enough.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_pytree_node_class
class Lanes:
    """A matrix per lane: ``rows[i][j]`` holds entry (i, j) of all lanes."""

    __slots__ = ("rows",)

    def __init__(self, rows: Sequence[Sequence[Any]]):
        self.rows = tuple(tuple(row) for row in rows)

    def tree_flatten(self):
        """JAX's view of the container: its arrays."""
        return [x for row in self.rows for x in row], self.shape

    @classmethod
    def tree_unflatten(cls, shape, entries) -> "Lanes":
        """The inverse of `tree_flatten`."""
        n, p = shape
        entries = list(entries)
        return cls([entries[i * p : (i + 1) * p] for i in range(n)])

    @classmethod
    def from_array(cls, array: jax.Array) -> "Lanes":
        """The matrices in an array of shape ``(rows, columns, *lanes)``."""
        n, p = array.shape[:2]
        return cls([[array[i, j] for j in range(p)] for i in range(n)])

    def to_array(self) -> jax.Array:
        """The array of shape ``(rows, columns, *lanes)``."""
        lanes = jnp.broadcast_shapes(*(jnp.shape(x) for row in self.rows for x in row))
        return jnp.stack([jnp.stack([jnp.broadcast_to(x, lanes) for x in row]) for row in self.rows])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), len(self.rows[0])

    @property
    def dtype(self):
        """Of the entries."""
        return self.rows[0][0].dtype

    @property
    def T(self) -> "Lanes":
        """The transpose."""
        return Lanes(list(zip(*self.rows, strict=True)))

    def __add__(self, other: "Lanes") -> "Lanes":
        return _broadcast(operator.add, self, other)

    def __sub__(self, other: "Lanes") -> "Lanes":
        return _broadcast(operator.sub, self, other)

    def __mul__(self, other: "Lanes | float") -> "Lanes":
        """Entry by entry; a row, a column or a 1 x 1 matrix is repeated."""
        return _broadcast(operator.mul, self, other if isinstance(other, Lanes) else Lanes([[other]]))

    def __matmul__(self, other: "Lanes") -> "Lanes":
        columns = other.T.rows
        return Lanes([[functools.reduce(operator.add, map(operator.mul, row, c)) for c in columns] for row in self.rows])

    def diagonal(self) -> "Lanes":
        """The diagonal as a column."""
        return Lanes([[self.rows[i][i]] for i in range(self.shape[0])])

    def constant(self, values: np.ndarray) -> "Lanes":
        """The same matrix of constants in every lane."""
        one = jnp.ones_like(self.rows[0][0])
        return Lanes([[one * float(v) for v in row] for row in values])

    @classmethod
    def elementwise(cls, function: Callable, *matrices: "Lanes") -> "Lanes":
        """``function`` applied entry by entry."""
        return _broadcast(function, *matrices)

    @classmethod
    def vstack(cls, matrices: "Sequence[Lanes]") -> "Lanes":
        """Matrices on top of one another."""
        return cls([row for m in matrices for row in m.rows])

    @classmethod
    def over_rows(cls, body: Callable, carry: Any, rows: Any, *, rolled: bool = False) -> tuple[Any, Any]:
        """A loop over the rows of matrices, always unrolled: ``body(carry, row of each) -> (carry, new rows)``."""
        del rolled

        def leaf(m):
            return isinstance(m, cls)

        outs = []
        for k in range(jax.tree.leaves(rows, is_leaf=leaf)[0].shape[0]):
            carry, out = body(carry, jax.tree.map(lambda m, k=k: cls([m.rows[k]]), rows, is_leaf=leaf))
            outs.append(out)
        return carry, jax.tree.map(lambda *ms: cls.vstack(ms), *outs, is_leaf=leaf)

    def eliminate(self, right: "Lanes", settle: Callable) -> "tuple[Lanes, Lanes, Lanes]":
        """Symmetric elimination without pivoting: see `fastscan.kernels.algebra.eliminate`."""
        n = self.shape[0]
        matrix, right_rows = [list(row) for row in self.rows], [list(row) for row in right.rows]
        zero, one = jnp.zeros_like(matrix[0][0]), jnp.ones_like(matrix[0][0])
        lower = [[one if i == j else zero for j in range(n)] for i in range(n)]
        pivots = []
        for k in range(n):
            pivot, inverse = settle(matrix[k][k], self.rows[k][k])
            pivots.append([pivot])
            for i in range(k + 1, n):
                factor = lower[i][k] = matrix[i][k] * inverse
                for j in range(k + 1, i + 1):
                    matrix[i][j] = matrix[i][j] - factor * matrix[j][k]
                right_rows[i] = [x - factor * y for x, y in zip(right_rows[i], right_rows[k], strict=True)]
        return Lanes(lower), Lanes(pivots), Lanes(right_rows)


def _broadcast(function: Callable, *matrices: Lanes) -> Lanes:
    n, p = (max(sizes) for sizes in zip(*(m.shape for m in matrices), strict=True))

    def entry(m: Lanes, i: int, j: int):
        return m.rows[i if m.shape[0] > 1 else 0][j if m.shape[1] > 1 else 0]

    return Lanes([[function(*(entry(m, i, j) for m in matrices)) for j in range(p)] for i in range(n)])
