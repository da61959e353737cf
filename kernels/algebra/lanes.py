"""Matrices as grids of lane vectors, every formula unrolled into elementwise arithmetic on them.

Structure of arrays: entry (i, j) is one vector with a number per lane, so the same text runs under XLA and inside a
Pallas kernel, where a lane is a thread. Nothing is computed that is known beforehand: a symmetric matrix
(`algebra.mirrored`) holds one triangle, and constants are numbers, with which sums and products fold as they are traced.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_pytree_node_class
class Lanes:
    """A matrix per lane: ``rows[i][j]`` holds entry (i, j) of all lanes.

    With ``symmetric``, the entries above the diagonal are those below it, whatever ``rows`` says of them.
    """

    __slots__ = ("rows", "symmetric")
    in_blocks, whole = False, False

    def __init__(self, rows: Sequence[Sequence[Any]], symmetric: bool = False):
        if symmetric:
            rows = [[rows[max(i, j)][min(i, j)] for j in range(len(rows))] for i in range(len(rows))]
        self.rows = tuple(tuple(row) for row in rows)
        self.symmetric = symmetric

    def tree_flatten(self):
        """JAX's view of the container: its arrays, each of them once."""
        return [x for i, row in enumerate(self.rows) for x in row[: self._stored(i)]], (*self.shape, self.symmetric)

    @classmethod
    def tree_unflatten(cls, form, entries) -> Self:
        """Inverts `tree_flatten`."""
        n, p, symmetric = form
        entries = iter(entries)
        return cls([[next(entries) for _ in range(i + 1 if symmetric else p)] for i in range(n)], symmetric)

    @classmethod
    def zeros(cls, n: int, p: int, dtype: Any) -> Self:
        """Returns a matrix of zeros, which are numbers."""
        return cls([[np.dtype(dtype).type(0)] * p] * n)

    def _stored(self, row: int) -> int:
        return row + 1 if self.symmetric else self.shape[1]

    @classmethod
    def from_array(cls, array: jax.Array) -> Self:
        """Makes matrices of an array of shape ``(rows, columns, *lanes)``."""
        n, p = array.shape[:2]
        return cls([[array[i, j] for j in range(p)] for i in range(n)])

    def to_array(self) -> jax.Array:
        """Returns the array of shape ``(rows, columns, *lanes)``."""
        lanes = jnp.broadcast_shapes(*(jnp.shape(x) for row in self.rows for x in row))
        return jnp.stack([jnp.stack([jnp.broadcast_to(x, lanes) for x in row]) for row in self.rows])

    def in_form_of(self, other: "Lanes") -> "Lanes":
        """Returns the matrix, marked as symmetric if ``other`` is."""
        return type(self)(self.rows, symmetric=True) if other.symmetric else self

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return len(self.rows), len(self.rows[0])

    @property
    def dtype(self) -> np.dtype:
        """The type of the entries."""
        return np.dtype(self.rows[0][0].dtype)

    @property
    def T(self) -> "Lanes":
        """The transpose."""
        return self if self.symmetric else type(self)(list(zip(*self.rows, strict=True)))

    def __add__(self, other: "Lanes") -> "Lanes":
        return _broadcast(_add, self, other)

    def __sub__(self, other: "Lanes") -> "Lanes":
        return _broadcast(self._subtract, self, other)

    def __mul__(self, other: "Lanes | float") -> "Lanes":
        """Multiplies entry by entry; a row, a column or a 1 x 1 matrix is repeated."""
        return _broadcast(self._multiply, self, other if isinstance(other, Lanes) else type(self)([[self.dtype.type(other)]]))

    def __matmul__(self, other: "Lanes") -> "Lanes":
        return self.multiply_add(other, self.constant(np.zeros((1, 1))))

    def multiply_add(self, other: "Lanes", start: "Lanes") -> "Lanes":
        """Computes ``start + self @ other``, every entry a chain of `fused` multiply-adds."""
        columns = other.T.rows

        def entry(x, row, column):
            return functools.reduce(lambda x, factors: self._multiply_add(*factors, x), zip(row, column, strict=True), x)

        n, p = self.shape[0], other.shape[1]
        return type(self)([[entry(start.at(i, j), self.rows[i], columns[j]) for j in range(p)] for i in range(n)])

    def max_plus(self, other: "Lanes") -> "Lanes":
        """Computes the product with maximum for addition and addition for multiplication."""
        columns = other.T.rows

        def entry(row, column):
            return functools.reduce(jnp.maximum, (x + y for x, y in zip(row, column, strict=True)))

        return type(self)([[entry(row, column) for column in columns] for row in self.rows])

    @staticmethod
    def fused(x: Any, y: Any, z: Any) -> Any:
        """Computes ``x y + z``; XLA may contract it to one instruction, or not."""
        return x * y + z

    @staticmethod
    def negative(x: Any) -> Any:
        """Computes ``-x``."""
        return -x

    @classmethod
    def _subtract(cls, x: Any, y: Any) -> Any:
        return x if _is(y, 0) else cls.negative(y) if _is(x, 0) else x - y

    @classmethod
    def _multiply(cls, x: Any, y: Any) -> Any:
        for known, other in ((x, y), (y, x)):
            if _is(known, 0):
                return known
            if _is(known, 1) or _is(known, -1):
                return other if known == 1 else cls.negative(other)
        return x * y

    @classmethod
    def _multiply_add(cls, x: Any, y: Any, z: Any) -> Any:
        known = any(_is(f, number) for f in (x, y) for number in (0, 1, -1)) or _is(z, 0)
        return _add(cls._multiply(x, y), z) if known else cls.fused(x, y, z)

    def at(self, i: int, j: int) -> Any:
        """Returns entry (i, j); a row, a column or a 1 x 1 matrix is repeated."""
        return self.rows[i if self.shape[0] > 1 else 0][j if self.shape[1] > 1 else 0]

    def diagonal(self) -> "Lanes":
        """Returns the diagonal as a column."""
        return type(self)([[self.rows[i][i]] for i in range(self.shape[0])])

    def constant(self, values: np.ndarray) -> "Lanes":
        """Returns the same matrix of constants in every lane."""
        return type(self)([[self.dtype.type(v) for v in row] for row in values])

    def block(self, start: int, stop: int) -> "Lanes":
        """Returns the rows from ``start`` to ``stop``."""
        return type(self)(self.rows[start:stop])

    def columns(self, start: int, stop: int) -> "Lanes":
        """Returns the columns from ``start`` to ``stop``."""
        return type(self)([row[start:stop] for row in self.rows])

    def maximum(self, other: "Lanes") -> "Lanes":
        """Takes the larger one, entry by entry."""
        return _broadcast(jnp.maximum, self, other)

    def reduce(self, function: Callable) -> "Lanes":
        """Folds a ``function`` of two numbers over the entries of every row: a column."""
        return type(self)([[functools.reduce(function, row)] for row in self.rows])

    @classmethod
    def elementwise(cls, function: Callable, *matrices: "Lanes") -> "Lanes":
        """Applies ``function`` entry by entry."""
        return _broadcast(function, *matrices)

    @classmethod
    def vstack(cls, matrices: "Sequence[Lanes]") -> "Lanes":
        """Puts matrices on top of one another."""
        return cls([row for m in matrices for row in m.rows])

    @classmethod
    def over_rows(cls, body: Callable, carry: Any, rows: Any, *, rolled: bool = False) -> tuple[Any, Any]:
        """Loops over the rows of matrices, always unrolled: ``body(carry, row of each) -> (carry, new rows)``."""
        del rolled

        def leaf(m):
            return isinstance(m, cls)

        outs = []
        for k in range(jax.tree.leaves(rows, is_leaf=leaf)[0].shape[0]):
            carry, out = body(carry, jax.tree.map(lambda m, k=k: cls([m.rows[k]]), rows, is_leaf=leaf))
            outs.append(out)
        return carry, jax.tree.map(lambda *ms: cls.vstack(ms), *outs, is_leaf=leaf)

    def eliminate(self, right: "Lanes", settle: Callable) -> "tuple[Lanes, Lanes, Lanes]":
        """Eliminates symmetrically without pivoting: see `fastscan.kernels.algebra.eliminate`."""
        lower, pivots, _, reduced = self._eliminated(right, settle)
        return lower, pivots, reduced

    def pivots(self, settle: Callable) -> "Lanes":
        """Eliminates for the pivots alone."""
        return self._eliminated(self.constant(np.zeros((self.shape[0], 1))), settle)[1]

    def solve(self, right: "Lanes", settle: Callable) -> "tuple[Lanes, Lanes, Lanes]":
        """Eliminates and substitutes: see `fastscan.kernels.algebra.solve`."""
        lower, _, inverses, reduced = self._eliminated(right, settle)
        rows = [list(row) for row in (reduced * inverses).rows]
        for k in reversed(range(self.shape[0])):
            for i in range(k):
                minus = self._multiply(lower.rows[k][i], self.dtype.type(-1))
                rows[i] = [self._multiply_add(minus, y, x) for x, y in zip(rows[i], rows[k], strict=True)]
        return reduced, inverses, type(self)(rows)

    def _eliminated(self, right: "Lanes", settle: Callable) -> "tuple[Lanes, Lanes, Lanes, Lanes]":
        """Returns L, d, its inverses or 0, and L^-1 B."""
        n = self.shape[0]
        matrix, right_rows = [list(row) for row in self.rows], [list(row) for row in right.rows]
        zero, one = self.dtype.type(0), self.dtype.type(1)
        lower = [[one if i == j else zero for j in range(n)] for i in range(n)]
        settled = []
        for k in range(n):
            settled.append(settle(matrix[k][k], self.rows[k][k]))
            for i in range(k + 1, n):
                factor = lower[i][k] = self._multiply(matrix[i][k], settled[k][1])
                minus = self._multiply(factor, self.dtype.type(-1))
                for j in range(k + 1, i + 1):
                    matrix[i][j] = self._multiply_add(minus, matrix[j][k], matrix[i][j])
                pairs = zip(right_rows[i], right_rows[k], strict=True)
                right_rows[i] = [self._multiply_add(minus, y, x) for x, y in pairs]
        kind = type(self)
        pivots, inverses = (kind([[x] for x in column]) for column in zip(*settled, strict=True))
        return kind(lower), pivots, inverses, kind(right_rows)


@jax.tree_util.register_pytree_node_class
class StagedLanes(Lanes):
    """Lanes for XLA on a CPU, in stages: in one piece a program takes minutes to compile, and its loops spill registers."""

    __slots__ = ()
    staged = True


def _broadcast(function: Callable, *matrices: Lanes) -> Lanes:
    n, p = (max(sizes) for sizes in zip(*(m.shape for m in matrices), strict=True))
    symmetric = n > 1 and all(m.symmetric or m.shape == (1, 1) for m in matrices)

    rows = [[function(*(m.at(i, j) for m in matrices)) for j in range(i + 1 if symmetric else p)] for i in range(n)]
    return type(matrices[0])(rows, symmetric)


def _is(x: Any, number: float) -> bool:
    return isinstance(x, np.generic) and bool(x == number)


def _add(x: Any, y: Any) -> Any:
    return y if _is(x, 0) else x if _is(y, 0) else x + y
