"""Matrices as ordinary arrays: entry (i, j) of every lane lies in ``array[i, j]``.

One array operation works on a whole matrix, so a program over large matrices stays small. `Staged` is the same algebra
for XLA on a CPU, where the functions marked `stage` are compiled as units of their own: XLA:CPU otherwise fuses a
producer into each of its consumers and computes it again for every entry it feeds.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels import xla_hints
from fastscan.kernels.arrays import broadcasting, diagonal, vary_over, varying

UNROLLED_ROWS = 8  # up to here a loop over a matrix's rows is unrolled
UNROLLED_TERMS = 16  # up to here a product is a sum of outer products, which XLA fuses; beyond, a dot


@jax.tree_util.register_pytree_node_class
class Stacked:
    """A matrix per lane, held as one array of shape ``(rows, columns, *lanes)``; lane axes broadcast."""

    __slots__ = ("array",)
    __array_priority__ = 100
    unrolled, in_blocks, whole = False, False, False

    def __init__(self, array: Any):
        self.array = array

    def tree_flatten(self):
        """JAX's view of the container: its arrays."""
        return (self.array,), None

    @classmethod
    def tree_unflatten(cls, _, children) -> Self:
        """Inverts `tree_flatten`."""
        return cls(*children)

    @classmethod
    def from_array(cls, array: jax.Array) -> Self:
        """Makes matrices of an array of shape ``(rows, columns, *lanes)``."""
        return cls(array)

    def to_array(self) -> jax.Array:
        """Returns the array of shape ``(rows, columns, *lanes)``."""
        return self.array

    def in_form_of(self, _) -> Self:
        """Returns the matrix itself: arrays have one form."""
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return self.array.shape[:2]

    @property
    def dtype(self):
        """The type of the entries."""
        return self.array.dtype

    @property
    def T(self) -> Self:
        """The transpose."""
        n, p = self.shape
        if 1 in (n, p):  # XLA copies where axes are exchanged, even axes of one entry
            return type(self)(self.array.reshape(p, n, *self.array.shape[2:]))
        return type(self)(jnp.swapaxes(self.array, 0, 1))

    def __add__(self, other: Self) -> Self:
        return type(self)(broadcasting(lax.add, self.array, other.array))

    def __sub__(self, other: Self) -> Self:
        return type(self)(broadcasting(lax.sub, self.array, other.array))

    def __mul__(self, other: "Self | float") -> Self:
        """Multiplies entry by entry; a row, a column or a 1 x 1 matrix is repeated."""
        if not isinstance(other, Stacked):
            return type(self)(lax.mul(self.array, lax.full_like(self.array, other)))
        return type(self)(broadcasting(lax.mul, self.array, other.array))

    def __matmul__(self, other: Self) -> Self:
        return type(self)(_product(self.array, other.array))

    def max_plus(self, other: Self) -> Self:
        """Computes the product with maximum for addition and addition for multiplication."""
        a, b = self.array, other.array
        terms = a.shape[1]
        if terms <= UNROLLED_TERMS:
            return type(self)(functools.reduce(jnp.maximum, (a[:, k, None] + b[None, k] for k in range(terms))))

        def larger(k, best):
            column, row = (lax.dynamic_index_in_dim(x, k, axis, False) for x, axis in ((a, 1), (b, 0)))
            return jnp.maximum(best, column[:, None] + row[None])

        return type(self)(lax.fori_loop(1, terms, larger, a[:, 0, None] + b[None, 0]))

    def diagonal(self) -> Self:
        """Returns the diagonal as a column."""
        return type(self)(diagonal(self.array))

    def constant(self, values: np.ndarray) -> Self:
        """Returns the same matrix of constants in every lane."""
        lanes = (1,) * (self.array.ndim - 2)
        return type(self)(jnp.asarray(values, self.dtype).reshape(values.shape + lanes))

    def block(self, start: int, stop: int) -> Self:
        """Returns the rows from ``start`` to ``stop``."""
        return type(self)(lax.slice_in_dim(self.array, start, stop, axis=0))

    def columns(self, start: int, stop: int) -> Self:
        """Returns the columns from ``start`` to ``stop``."""
        return type(self)(lax.slice_in_dim(self.array, start, stop, axis=1))

    def column(self, number: Self) -> Self:
        """Returns, in every lane, the column of a number (1, 1), an integer. (`Lanes`, whose entries have no addresses, have no
        such function.)
        """
        a, numbers = self.array, number.array
        if all(n == 1 for n in a.shape[2:]):
            return type(self)(a.reshape(a.shape[:2]).at[:, numbers[0, 0]].get(mode="promise_in_bounds")[:, None])
        return type(self)(jnp.take_along_axis(a, numbers, axis=1, mode="promise_in_bounds"))

    def maximum(self, other: Self) -> Self:
        """Takes the larger one, entry by entry."""
        return type(self)(jnp.maximum(self.array, other.array))

    def reduce(self, function: jnp.ufunc) -> Self:
        """Folds a ufunc of two numbers over the entries of every row: a column."""
        n, x = self.shape[1], self.array
        if n > UNROLLED_ROWS:
            if self.in_blocks and n >= 2 * xla_hints.VECTOR:  # several sums at once, as one waits for every addition
                whole = n - n % xla_hints.VECTOR
                parts = (x[:, j : j + xla_hints.VECTOR] for j in range(0, whole, xla_hints.VECTOR))
                x = jnp.concatenate([functools.reduce(function, parts), x[:, whole:]], 1)
            return type(self)(function.reduce(x, axis=1, keepdims=True))
        columns = (x[:, j : j + 1] for j in range(n))
        return type(self)(functools.reduce(function, columns))

    @classmethod
    def elementwise(cls, function: Callable, *matrices: Self) -> Self:
        """Applies ``function`` entry by entry."""
        return cls(function(*(m.array for m in matrices)))

    @classmethod
    def vstack(cls, matrices: Sequence[Self]) -> Self:
        """Puts matrices on top of one another."""
        lanes = jnp.broadcast_shapes(*(m.array.shape[2:] for m in matrices))
        return cls(jnp.concatenate([jnp.broadcast_to(m.array, m.array.shape[:2] + lanes) for m in matrices]))

    @classmethod
    def over_rows(cls, body: Callable, carry: Any, rows: Any, *, rolled: bool = False) -> tuple[Any, Any]:
        """Scans the rows of matrices by `lax.scan`, which compiles ``body(carry, row of each) -> (carry, new rows)`` once.

        Where a kind is ``unrolled``, few rows are not scanned, unless they are ``rolled``: the derivative of a scan within a
        scan is slow.
        """
        arrays = jax.tree.map(lambda m: m.array, rows, is_leaf=lambda m: isinstance(m, cls))
        length = jax.tree.leaves(arrays)[0].shape[0]

        def step(carry, arrays):
            carry, out = body(carry, jax.tree.map(lambda a: cls(a[None]), arrays))
            return carry, jax.tree.map(lambda m: m.array[0], out, is_leaf=lambda m: isinstance(m, cls))

        if length == 1:
            return body(carry, rows)
        if cls.unrolled and not rolled and length <= UNROLLED_ROWS:
            outs = []
            for k in range(length):
                carry, out = body(carry, jax.tree.map(lambda a, k=k: cls(a[k : k + 1]), arrays))
                outs.append(out)
            return carry, jax.tree.map(lambda *ms: cls.vstack(ms), *outs, is_leaf=lambda m: isinstance(m, cls))
        carry = stable_carry(step, carry, jax.tree.map(lambda a: a[0], arrays))
        carry, out = lax.scan(step, carry, arrays)
        return carry, jax.tree.map(cls, out)


@jax.tree_util.register_pytree_node_class
class StackedAlone(Stacked):
    """`Stacked`, for one lane, without lane axes: with them XLA:CPU copies rows, and what a library returns, though nothing
    moves.
    """

    __slots__ = ()

    @classmethod
    def from_array(cls, array: jax.Array) -> Self:
        """Makes a matrix of an array of shape ``(rows, columns, 1, 1)``."""
        return cls(array.reshape(array.shape[:2]))

    def to_array(self) -> jax.Array:
        """Returns the array of shape ``(rows, columns, 1, 1)``."""
        return self.array.reshape(*self.array.shape, 1, 1)


@jax.tree_util.register_pytree_node_class
class Staged(Stacked):
    """`Stacked`, with every `stage` compiled as a unit of its own (XLA on a CPU)."""

    __slots__ = ()
    staged = True


@jax.tree_util.register_pytree_node_class
class StagedAlone(Staged, StackedAlone):
    """`Staged`, for one lane, without lane axes."""

    __slots__ = ()


@jax.tree_util.register_pytree_node_class
class StagedVectors(Staged):
    """`Staged`, for loops over large vectors that are one native function, which holds no library's product of a matrix and a
    vector: that is a sum of vectors, a few at a time. They lie along the rows of the matrix, or of its transpose: what is made
    of an array keeps both.
    """

    __slots__ = ("transpose",)
    in_blocks = True

    def __init__(self, array: Any, transpose: Any = None):
        super().__init__(array)
        self.transpose = transpose

    def tree_flatten(self):
        """JAX's view of the container: its arrays."""
        return (self.array, self.transpose), None

    @classmethod
    def from_array(cls, array: jax.Array) -> Self:
        """Makes matrices of an array of shape ``(rows, columns, *lanes)``."""
        return cls(array, jnp.swapaxes(array, 0, 1) if min(array.shape[:2]) > UNROLLED_TERMS else None)

    @property
    def T(self) -> Self:
        """The transpose."""
        return super().T if self.transpose is None else type(self)(self.transpose, self.array)

    def column(self, number: Self) -> Self:
        """Does as `Stacked.column`."""
        if self.transpose is None or number.array.size > 1:
            return super().column(number)
        return type(self)(lax.dynamic_slice_in_dim(self.transpose, number.array[0, 0].reshape(()), 1, 0)).T


@jax.tree_util.register_pytree_node_class
class UnrolledStacked(Stacked):
    """`Stacked`, for programs that are to be differentiated."""

    __slots__ = ()
    unrolled = True


@jax.tree_util.register_pytree_node_class
class UnrolledStaged(Staged):
    """`Staged`, for programs that are to be differentiated."""

    __slots__ = ()
    unrolled = True


def stage(function: Callable) -> Callable:
    """Marks a function of matrices whose results are worth keeping rather than computing again.

    With matrices that are ``staged`` the call reaches XLA as a call that must not be inlined; with others it is only a call.
    """
    unit = jax.jit(function)

    @functools.wraps(function)
    def call(*matrices):
        if any(getattr(m, "staged", False) for m in matrices):
            with xla_hints.own_unit():
                return unit(*matrices)
        return function(*matrices)

    return call


def stable_carry(step: Callable, carry: Any, x: Any) -> Any:
    """Returns ``carry`` in the form and of the types that it has after steps, so that a loop can carry it."""

    def grow(c, after):
        return vary_over(varying(after), jnp.broadcast_to(c, jnp.broadcast_shapes(jnp.shape(c), after.shape)))

    while True:
        after = jax.eval_shape(lambda c, x: step(c, x)[0], carry, x)
        grown = jax.tree.map(grow, in_form_of(carry, after), after)
        before, now = (list(map(jax.typeof, jax.tree.leaves(tree))) for tree in (carry, grown))
        if before == now:
            return grown
        carry = grown


def in_form_of(tree: Any, other: Any) -> Any:
    """Returns a tree of matrices, each in the form that its counterpart has (see `algebra.mirrored`)."""
    return jax.tree.map(lambda m, o: m.in_form_of(o) if _is_matrix(m) else m, tree, other, is_leaf=_is_matrix)


def _is_matrix(x: Any) -> bool:
    return hasattr(x, "in_form_of")


def product(a, b):
    """Computes ``a @ b``, staged.

    A sum of more than `xla_hints.STAGED_TERMS` products is several stages.
    """
    return _in_stages("__matmul__", "__add__", a, b)


def max_plus(a, b):
    """Computes the product with maximum for addition and addition for multiplication, staged as `product` is."""
    return _in_stages("max_plus", "maximum", a, b)


def _in_stages(multiply: str, add: str, a, b):
    terms, at_once = a.shape[1], xla_hints.STAGED_TERMS
    if getattr(a, "in_blocks", False) and terms > UNROLLED_TERMS:
        if b.shape[1] == 1 < a.shape[0]:  # vectors lie along rows
            return _in_stages(multiply, add, b.T, a.T).T
        at_once = xla_hints.vectors_at_once(b.shape[1] * b.dtype.itemsize)
    elif not getattr(a, "staged", False) or not at_once < terms <= UNROLLED_TERMS:
        return _terms(multiply, add, 0, terms)(a, b)
    total: tuple = ()
    for start in range(0, terms, at_once):
        total = (_terms(multiply, add, start, min(start + at_once, terms))(a, b, *total),)
    return total[0]


@functools.cache
def _terms(multiply: str, add: str, start: int, stop: int) -> Callable:
    """Makes the stage that adds some of the terms to those before them."""

    def terms(a, b, *total):
        part = getattr(a.columns(start, stop), multiply)(b.block(start, stop))
        return getattr(total[0], add)(part) if total else part

    return stage(terms)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    terms, lanes = a.shape[1], jnp.broadcast_shapes(a.shape[2:], b.shape[2:])
    sizes = a.shape[0], terms, b.shape[1]
    large = np.prod(lanes) == 1 and min(sizes) > 1 and max(sizes) > UNROLLED_TERMS
    if terms <= UNROLLED_TERMS and not large:
        return functools.reduce(jnp.add, (a[:, k, None] * b[None, k] for k in range(terms)))  # slices have slow derivatives
    if np.prod(lanes) == 1:  # a library's product, with its result where it is wanted
        return jnp.matmul(a.reshape(a.shape[:2]), b.reshape(b.shape[:2]), precision="highest").reshape(
            a.shape[0], b.shape[1], *lanes
        )
    if np.prod(a.shape[2:]) == 1:
        return _tensordot(a.reshape(a.shape[:2]), b, 1)
    if np.prod(b.shape[2:]) == 1:
        return jnp.moveaxis(_tensordot(b.reshape(b.shape[:2]), a, ((0,), (1,))), 1, 0)
    a, b = (jnp.broadcast_to(x, x.shape[:2] + lanes) for x in (a, b))
    return jnp.einsum("ik...,kj...->ij...", a, b, precision="highest")


_tensordot = functools.partial(jnp.tensordot, precision="highest")
