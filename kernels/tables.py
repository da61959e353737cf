"""Matrices that rows take from a table: a series of few different ones, of which every row says the number of its own.

A `Table` may stand for an array wherever a series has one. It is looked up row by row, where a row is read, so that no array
with a matrix a row is made of it. In lanes its matrices are (R, rows, columns, 1, B or 1), its numbers (L, 1, 1, C, B or 1); of
a matrix alone (R, rows, columns) and (L, 1, 1). `Computed` is a table, too, of which a function makes the entries.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.arrays import as_lanes, blank, numbers, select, with_numbers
from fastscan.kernels.functions import Changed, Function

MOST_SELECTED = 4
"""The most matrices that lanes select from, as vectors do; of more, each lane looks up its own."""


class Table(NamedTuple):
    """A series whose row t is ``values[:, index[:, t]]``.

    Attributes:
        values: (B or 1, R, rows, columns).
        index: int32 (B or 1, T, 1, 1), from 0 to R - 1; None where another table's holds, or where only values matter.
    """

    values: Any
    index: Any = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the series that it stands for, (B or 1, T, rows, columns); without numbers that of the values."""
        B, rows, n, p = self.values.shape
        return (B, rows, n, p) if self.index is None else (max(B, len(self.index)), self.index.shape[1], n, p)

    @property
    def dtype(self) -> Any:
        """The type of the entries."""
        return self.values.dtype

    def rows(self, part: slice) -> "Table":
        """Returns some rows of the series."""
        return self._replace(index=self.index[:, part])

    def changed(self, change: Any) -> "Table":
        """Returns the table of what a function makes of the matrices."""
        return self._replace(values=change(self.values))

    def filled(self) -> "Table":
        """Returns the same table with one more matrix, of NaN, for numbers past its end."""
        nothing = jnp.full_like(self.values[:, :1], jnp.nan)
        return self._replace(values=jnp.concatenate([self.values, nothing], 1))

    def in_lanes(self, index: Any, alone: bool) -> "Table":
        """Returns the same with its index in lanes; of a matrix ``alone``, or with lane axes."""
        return Table(self.values[0] if alone else self.values.transpose(1, 2, 3, 0)[..., None, :], index)

    def row(self, index: jax.Array) -> jax.Array:
        """Looks one row up, in lanes (rows, columns, C, B), from its number."""
        return _entry(self.values, index)

    def series(self) -> jax.Array:
        """Looks all rows up at once: an array (B or 1, T, rows, columns), of NaN where a number is past the table's end."""

        def one(values: jax.Array, index: jax.Array) -> jax.Array:
            return values.at[index].get(mode="fill", fill_value=jnp.nan)

        values, index = self.values, self.index[..., 0, 0]
        if len(index) == 1:
            return jax.vmap(one, (0, None))(values, index[0])
        return jax.vmap(one, (None, 0))(values[0], index) if len(values) == 1 else jax.vmap(one)(values, index)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["constants", "index"], meta_fields=["function", "dtype"])
@dataclasses.dataclass(frozen=True)
class Computed:
    """A series whose row t is ``function(constants, index[:, t])``, or NaN where that number is below zero; in lanes, too.

    Attributes:
        function: of constants and a number.
        constants: arrays (B or 1, ...).
        index: integers (B or 1, T, 1, 1).
        dtype: the type of the entries.
    """

    function: Function | Changed
    constants: tuple[Any, ...]
    index: Any
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the series that it stands for, (B or 1, T, rows, columns)."""
        return max(map(len, (self.index, *self.constants))), self.index.shape[1], *self.function.shape

    @property
    def numbers(self) -> tuple[Any, ...]:
        """Those of the constants that have derivatives."""
        return tuple(numbers(self.constants))

    def replaced(self, **fields: Any) -> "Computed":
        """Returns the same with other fields."""
        return dataclasses.replace(self, **fields)

    def changed(self, change: Any) -> "Computed":
        """Returns the series of what a function makes of the matrices."""
        return self.replaced(function=Changed(self.function, change))

    def rows(self, part: slice) -> "Computed":
        """Returns some rows of the series."""
        return self.replaced(index=self.index[:, part])

    def filled(self) -> "Computed":
        """Returns itself, which has no end."""
        return self

    def in_lanes(self, index: Any, alone: bool) -> "Computed":
        """Does as `Table.in_lanes`; constants stay as they are."""
        del alone
        return self.replaced(index=index)

    def row(self, index: jax.Array) -> jax.Array:
        """Computes one row, as `Table.row` looks it up."""
        if index.ndim == 2:
            return self.replaced(index=index[None, None]).series()[0, 0]
        return as_lanes(self.replaced(index=index[0, 0].T[..., None, None]).series())

    def series(self) -> jax.Array:
        """Computes all rows at once, as `Table.series` looks them up."""

        def one(*given: Any) -> jax.Array:
            *constants, index = given
            value = self.function(tuple(constants), jnp.maximum(index, 0)).astype(self.dtype)
            return jnp.where(index < 0, jnp.nan, value)

        def of_sequence(*given: Any) -> jax.Array:
            *constants, index = given
            if len(index) == 1:  # by a slice, which a loop over rows in lanes would make a gather
                return one(*constants, index[0])[None]
            return jax.vmap(lambda t: one(*constants, t))(index)

        given = *self.constants, self.index[..., 0, 0]
        own = [len(x) > 1 for x in given]
        given = [x if several else x[0] for x, several in zip(given, own, strict=True)]
        return jax.vmap(of_sequence, [0 if o else None for o in own])(*given) if any(own) else of_sequence(*given)[None]

    def add_to(self, sums: tuple[jax.Array, ...], index: jax.Array, change: jax.Array) -> tuple[jax.Array, ...]:
        """Adds to derivatives with respect to every sequence's `numbers` (B, ...) what follows from those with respect to rows.

        Args:
            sums: of the numbers.
            index: of the rows in one chunk, as in lanes.
            change: derivatives with respect to the rows, (rows, n, p, 1, B).
        """
        of = self.replaced(index=index.reshape(len(index), -1).T[..., None, None])
        own = tuple(jnp.broadcast_to(x, (len(s), *x.shape[1:])) for s, x in zip(sums, self.numbers, strict=True))

        def series(own: tuple[jax.Array, ...]) -> jax.Array:
            rows = of.replaced(constants=with_numbers(of.constants, own)).series()
            return jnp.broadcast_to(rows, (change.shape[-1], *change.shape[:3]))

        (new,) = jax.vjp(series, own)[1](change[..., 0, :].transpose(3, 0, 1, 2))
        return tuple(map(jnp.add, sums, new))


def is_computed(x: Any) -> bool:
    """Tells a function of rows from a table and an array."""
    return isinstance(x, Computed)


def is_table(x: Any) -> bool:
    """Tells a table from an array."""
    return isinstance(x, Table | Computed)


def values_of(x: Any) -> Any:
    """Returns a table's values, or an array as it is."""
    return x.values if is_table(x) else x


def has_tables(tree: Any) -> bool:
    """Tells whether there are tables among arrays."""
    return any(map(is_table, jax.tree.leaves(tree, is_leaf=is_table)))


def values_alone(tree: Any) -> Any:
    """Returns tables without their numbers, and of functions what has derivatives, as derivatives have them."""

    def one(x: Any) -> Any:
        return x.numbers if is_computed(x) else Table(x.values) if is_table(x) else x

    return jax.tree.map(one, tree, is_leaf=is_table)


def scanned(rows: Any) -> Any:
    """Returns rows as loops go over them: of a table, its numbers."""
    return jax.tree.map(lambda x: x.index if is_table(x) else x, rows, is_leaf=is_table)


def look_up(rows: Any, row: Any) -> Any:
    """Returns one row, of rows with tables, from what a loop has of it: see `scanned`."""
    return jax.tree.map(lambda x, one: x.row(one) if is_table(x) else one, rows, row, is_leaf=is_table)


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["number"])
@dataclasses.dataclass(frozen=True)
class _SetAside:
    number: int


def set_aside(rows: Any) -> tuple[list[Any], Any]:
    """Takes tables out of rows: the tables, and rows that functions of all other arrays may be mapped over."""
    leaves, tree = jax.tree.flatten(rows, is_leaf=is_table)
    tables = [x for x in leaves if is_table(x)]
    numbers = iter(range(len(tables)))
    return tables, jax.tree.unflatten(tree, [_SetAside(next(numbers)) if is_table(x) else x for x in leaves])


def put_back(tables: list[Any], rows: Any) -> Any:
    """Puts tables back that were `set_aside`."""

    def aside(x: Any) -> bool:
        return isinstance(x, _SetAside)

    return jax.tree.map(lambda x: tables[x.number] if aside(x) else x, rows, is_leaf=aside)


def row_of(rows: Any, t: Any) -> Any:
    """Reads one row, of a number that may be known only as the program runs."""
    return look_up(rows, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, t, keepdims=False), scanned(rows)))


def form_of_row(rows: Any) -> Any:
    """Returns the form of one row, without the numbers."""
    return jax.eval_shape(lambda: look_up(rows, jax.tree.map(lambda x: blank(x, x.shape[1:]), scanned(rows))))


def add_to(table: jax.Array, index: jax.Array, change: jax.Array) -> jax.Array:
    """Adds matrices (rows, columns, 1, B) to those of a table in lanes (R, rows, columns, 1, B), or alone, by their numbers."""
    if index.size == 1:
        k = index.reshape(())
        before = lax.dynamic_index_in_dim(table, k, keepdims=False)
        return lax.dynamic_update_index_in_dim(table, before + change, k, 0)
    sequences = jnp.arange(index.shape[-1])
    return table.at[index[0, 0, 0], :, :, 0, sequences].add(jnp.moveaxis(change[:, :, 0], -1, 0), mode="promise_in_bounds")


def _entry(values: jax.Array, index: jax.Array) -> jax.Array:
    """Looks up a matrix by its number: (rows, columns), or in every lane (rows, columns, C, B)."""
    if index.size == 1:
        return lax.dynamic_index_in_dim(values, index.reshape(()), keepdims=False)
    if len(values) <= MOST_SELECTED:
        return functools.reduce(lambda entry, k: select(index == k, values[k], entry), range(1, len(values)), values[0])
    of_sequence = jax.vmap(lambda x, k: lax.dynamic_index_in_dim(x, k, keepdims=False), (None, 0), -1)
    values, numbers = values[..., 0, :], index[0, 0]
    if values.shape[-1] == 1:
        return jax.vmap(of_sequence, (None, 1), -1)(values[..., 0], numbers)
    numbers = jnp.broadcast_to(numbers, (numbers.shape[0], values.shape[-1]))
    return jax.vmap(of_sequence, (-1, 1), -1)(values, numbers)
