"""Matrices that a whole program of a GPU holds together, each as one array whose sides are powers of two.

For models whose matrices are too large for the registers of one thread. Rows and columns past the matrix are zeros. What
Triton has no word for is done by masks: a row is picked by a sum over all rows of which all others count as zero.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import elimination
from fastscan.kernels.algebra.elimination import picked
from fastscan.kernels.algebra.stacked import stable_carry

SIDE = 16
"""The shortest side of an array that matrix units multiply."""


def padded(n: int) -> int:
    """Returns the length of an array's side for so many rows: 1, or a power of two from `SIDE` on."""
    return 1 if n == 1 else max(1 << (n - 1).bit_length(), SIDE)


def sides(n: int, p: int) -> tuple[int, ...]:
    """Returns the shape of a matrix's array: a row or a column is a vector, a 1 x 1 matrix a number, so that to transpose them
    is to do nothing.
    """
    return tuple(padded(x) for x in (n, p) if x > 1)


@jax.tree_util.register_pytree_node_class
class Tile:
    """A matrix (n, p) in an array of `sides`."""

    __slots__ = ("array", "shape")
    in_blocks, whole = False, True

    def __init__(self, array: Any, shape: tuple[int, int]):
        self.array, self.shape = array, shape

    def tree_flatten(self):
        """JAX's view of the container: its array."""
        return (self.array,), self.shape

    @classmethod
    def tree_unflatten(cls, shape, children) -> Self:
        """Inverts `tree_flatten`."""
        (array,) = children
        return cls(array, shape)

    @classmethod
    def zeros(cls, n: int, p: int, dtype: Any) -> Self:
        """Returns a matrix of zeros."""
        return cls(jnp.zeros(sides(n, p), dtype), (n, p))

    @classmethod
    def from_array(cls, array: jax.Array) -> Self:
        """Makes a matrix of an array (rows, columns)."""
        n, p = array.shape
        return cls(jnp.pad(array, ((0, padded(n) - n), (0, padded(p) - p))).reshape(sides(n, p)), (n, p))

    def to_array(self) -> jax.Array:
        """Returns the array (rows, columns)."""
        n, p = self.shape
        return self.array.reshape(padded(n), padded(p))[:n, :p]

    @classmethod
    def form(cls, n: int, p: int, dtype: Any) -> Self:
        """Returns the form of a matrix, without the numbers."""
        return cls(jax.ShapeDtypeStruct(sides(n, p), dtype), (n, p))

    def in_form_of(self, _) -> Self:
        """Returns the matrix itself: arrays have one form."""
        return self

    @property
    def dtype(self):
        """The type of the entries."""
        return self.array.dtype

    @property
    def T(self) -> Self:
        """The transpose."""
        n, p = self.shape
        return type(self)(self.array.T if min(n, p) > 1 else self.array, (p, n))

    def __add__(self, other: Self) -> Self:
        return self._of_both(jnp.add, other)

    def __sub__(self, other: Self) -> Self:
        return self._of_both(jnp.subtract, other)

    def __mul__(self, other: "Self | float") -> Self:
        """Multiplies entry by entry; a row, a column or a 1 x 1 matrix is repeated."""
        if not isinstance(other, Tile):
            return type(self)(self.array * self.array.dtype.type(other), self.shape)
        shape = _broadcast(self, other)  # zeros past the matrix stay zeros
        return type(self)(_spread(self, shape) * _spread(other, shape), shape)

    def __matmul__(self, other: Self) -> Self:
        (n, terms), p = self.shape, other.shape[1]
        if terms == 1:
            return self * other
        if p == 1:
            return type(self)((self.array * other.array).sum(-1), (n, 1))
        if n == 1:
            return type(self)((self.array[:, None] * other.array).sum(0), (1, p))
        return type(self)(self.dot(self.array, other.array), (n, p))

    def multiply_add(self, other: Self, start: Self) -> Self:
        """Computes ``start + self @ other``."""
        shape = self.shape[0], other.shape[1]
        if self.shape[1] > 1 or start.shape != shape:
            return self @ other + start
        return type(self)(self.fused(_spread(self, shape), _spread(other, shape), start.array), shape)

    def scaled_add(self, scale: Self, start: Self) -> Self:
        """Computes ``start + scale self``, with a scale (1, 1)."""
        return type(self)(self.fused(self.array, scale.array, start.array), self.shape)

    def max_plus(self, other: Self) -> Self:
        """Computes the product with maximum for addition and addition for multiplication."""
        (n, terms), p = self.shape, other.shape[1]
        least = np.float64(-np.inf).astype(self.dtype)
        if terms == 1:
            return self + other
        if p == 1:
            best = _where_real(self.array + other.array, least, (n, terms)).max(-1)
            return self._of_entries(best, (n, 1))
        if n == 1:
            return other.T.max_plus(self.T).T
        columns = self.T.array

        def larger(k: Any, best: jax.Array) -> jax.Array:
            return jnp.maximum(best, picked(columns, k)[:, None] + picked(other.array, k)[None])

        best = lax.fori_loop(np.int32(0), self.times(terms), larger, jnp.full(sides(n, p), least))
        return self._of_entries(best, (n, p))

    def diagonal(self) -> Self:
        """Returns the diagonal as a column."""
        if self.shape == (1, 1):
            return self
        row, column = _numbers(self.array.shape)
        return type(self)(jnp.where(row == column, self.array, 0).sum(1), (self.shape[0], 1))

    def constant(self, values: np.ndarray) -> Self:
        """Returns a matrix of constants, which a kernel has no array for: one number, one on the diagonal or above it beside
        another, or, of a row or a column, an arithmetic sequence.
        """
        return self._of_entries(_constants(np.asarray(values, self.dtype)), values.shape)

    def block(self, start: int, stop: int) -> Self:
        """Returns the rows from ``start`` to ``stop``: all of them, or one."""
        n, p = self.shape
        if (start, stop) == (0, n):
            return self
        if stop != start + 1:
            raise NotImplementedError(f"Rows {start} to {stop} of {n} wanted; a tile has one, or all.")
        return type(self)(picked(self.array, np.int32(start)), (1, p))

    def columns(self, start: int, stop: int) -> Self:
        """Returns the columns from ``start`` to ``stop``: all of them, or one."""
        return self if (start, stop) == (0, self.shape[1]) else self.T.block(start, stop).T

    def column(self, number: Self) -> Self:
        """Returns the column of a number (1, 1), an integer."""
        n, p = self.shape
        if p == 1:
            return self
        k = number.array.astype(np.int32)
        if n == 1:
            return type(self)(picked(self.array, k), (1, 1))
        _, column = _numbers(self.array.shape)
        return type(self)(jnp.where(column == k, self.array, 0).sum(1, dtype=self.dtype), (n, 1))

    def maximum(self, other: Self) -> Self:
        """Takes the larger one, entry by entry."""
        return self._of_both(jnp.maximum, other)

    def reduce(self, function: jnp.ufunc) -> Self:
        """Folds addition, maximum or minimum over the entries of every row: a column."""
        n, p = self.shape
        if p == 1:
            return self
        name, nothing = _FOLDS[function]
        array = self.array if nothing == 0 else _where_real(self.array, np.float64(nothing).astype(self.dtype), self.shape)
        return self._of_entries(getattr(array, name)(-1), (n, 1))

    def accumulated(self) -> Self:
        """Adds up every column's entries from the first to each."""
        return self._of_entries(jnp.cumsum(self.array, 0), self.shape) if self.shape[0] > 1 else self

    @classmethod
    def elementwise(cls, function: Callable, *matrices: Self) -> Self:
        """Applies ``function`` entry by entry."""
        shape = _broadcast(*matrices)
        return cls._of_entries(function(*(_spread(m, shape) for m in matrices)), shape)

    @classmethod
    def vstack(cls, matrices: Sequence[Self]) -> Self:
        """Puts rows on top of one another."""
        if len(matrices) == 1:
            return matrices[0]
        out = cls.zeros(len(matrices), matrices[0].shape[1], matrices[0].dtype)
        for k, one in enumerate(matrices):
            out = out._with_row(one, k)
        return out

    @classmethod
    def over_rows(cls, body: Callable, carry: Any, rows: Any, *, rolled: bool = False) -> tuple[Any, Any]:
        """Loops over the rows of matrices: ``body(carry, row of each) -> (carry, new rows)``."""
        del rolled
        n = jax.tree.leaves(rows, is_leaf=_is_tile)[0].shape[0]
        if n == 1:
            return body(carry, rows)

        def row_of(k: Any) -> Any:
            return jax.tree.map(lambda m: cls(picked(m.array, k), (1, m.shape[1])), rows, is_leaf=_is_tile)

        carry = stable_carry(body, carry, row_of(np.int32(0)))
        _, forms = jax.eval_shape(lambda carry: body(carry, row_of(np.int32(0))), carry)
        blank = jax.tree.map(lambda m: cls.zeros(n, m.shape[1], m.dtype), forms, is_leaf=_is_tile)

        def step(k: Any, state: tuple) -> tuple:
            carry, outs = state
            carry, new = body(carry, row_of(k))
            return carry, jax.tree.map(lambda old, m: old._with_row(m, k), outs, new, is_leaf=_is_tile)

        return lax.fori_loop(np.int32(0), cls.times(n), step, (carry, blank))

    def eliminate(self, right: Self, settle: Callable) -> tuple[Self, Self, Self]:
        """Eliminates symmetrically, without pivoting: see `fastscan.kernels.algebra.eliminate`."""
        W, pivots, _, lower = self._eliminated(settle, factor=True)
        return lower, pivots, W @ right

    def pivots(self, settle: Callable) -> Self:
        """Eliminates for the pivots alone."""
        return self._eliminated(settle)[1]

    def solve(self, right: Self, settle: Callable) -> tuple[Self, Self, Self]:
        """Eliminates and substitutes: see `fastscan.kernels.algebra.solve`."""
        W, _, inverses, _ = self._eliminated(settle)
        reduced = W @ right
        return reduced, inverses, W.T @ (reduced * inverses)

    def _eliminated(self, settle: Callable, *, factor: bool = False) -> tuple[Self, Self, Self, Self]:
        """Returns W = L^-1, d, its inverses or 0, and L if it is asked for."""
        n, kind, shape = self.shape[0], type(self), self.shape
        if n == 1:
            one, (pivot, inverse) = self.constant(np.eye(1)), settle(self.array, self.array)
            return one, kind(pivot, shape), kind(inverse, shape), one
        W, pivots, inverses, L = elimination.factors(kind, self.array, self.diagonal().array, n, settle, lower=factor)
        return kind(W, shape), kind(pivots, (n, 1)), kind(inverses, (n, 1)), kind(L, shape)

    @staticmethod
    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        """Multiplies two arrays, as precisely as their dtype."""
        return jnp.matmul(a, b, precision="highest")

    @staticmethod
    def fused(x: Any, y: Any, z: Any) -> Any:
        """Computes ``x y + z``, with arrays repeated to the shape of z."""
        return x * y + z

    @staticmethod
    def times(n: int) -> Any:
        """Returns how often a loop over a matrix's rows is passed."""
        return np.int32(n)

    @classmethod
    def _of_entries(cls, array: jax.Array, shape: tuple[int, int]) -> Self:
        """Makes a matrix of an array whose entries past it may be anything."""
        return cls(_where_real(jnp.broadcast_to(array, sides(*shape)), 0, shape), shape)

    def _of_both(self, function: Callable, other: Self) -> Self:
        if self.shape == other.shape:
            return type(self)(function(self.array, other.array), self.shape)
        return self.elementwise(function, self, other)

    def _with_row(self, new: Self, k: Any) -> Self:
        row = lax.broadcasted_iota(jnp.int32, self.array.shape, 0)
        return type(self)(jnp.where(row == k, new.array, self.array), self.shape)


_FOLDS = {jnp.add: ("sum", 0), jnp.maximum: ("max", -np.inf), jnp.minimum: ("min", np.inf)}


def _numbers(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns the numbers of rows and of columns of a matrix's array."""
    return lax.broadcasted_iota(jnp.int32, shape, 0), lax.broadcasted_iota(jnp.int32, shape, 1)


def _spread(matrix: Tile, shape: tuple[int, int]) -> jax.Array:
    """Returns an array that is repeated to that of a shape."""
    if min(shape) == 1 or matrix.shape == (1, 1) or min(matrix.shape) > 1:
        return matrix.array
    return matrix.array[:, None] if matrix.shape[1] == 1 else matrix.array[None]


def _where_real(array: jax.Array, other: Any, shape: tuple[int, int]) -> jax.Array:
    """Returns an array with another number in the entries past a matrix."""
    lengths = [n for n in shape if n > 1]
    axes = [axis for axis, n in enumerate(lengths) if n < array.shape[axis]]
    inside = [lax.broadcasted_iota(jnp.int32, array.shape, axis) < lengths[axis] for axis in axes]
    return jnp.where(functools.reduce(jnp.logical_and, inside), array, other) if inside else array


def _constants(values: np.ndarray) -> Any:
    first, last = values.flat[0], values.flat[-1]
    shape = sides(*values.shape)
    if (values == first).all():
        return jnp.full(shape, first)
    if 1 in values.shape:
        step = values.reshape(-1)[1] - first
        numbers = lax.iota(jnp.int32, math.prod(shape)).astype(values.dtype)
        if np.array_equal(values.reshape(-1), first + step * np.arange(values.size, dtype=values.dtype)):
            return numbers * step + first
    else:
        row, column = _numbers(shape)
        other = values[-1, 0]
        for found, mask in ((row == column, np.eye(*values.shape)), (row <= column, np.triu(np.ones(values.shape)))):
            if np.array_equal(values, np.where(mask > 0, first, other)):
                return jnp.where(found, first, other)
    raise NotImplementedError(f"A tile of constants wanted that are no sequence, from {first} to {last}.")


def _broadcast(*matrices: Tile) -> tuple[int, int]:
    n, p = (max(sizes) for sizes in zip(*(m.shape for m in matrices), strict=True))
    return n, p


def _is_tile(x: Any) -> bool:
    return isinstance(x, Tile)
