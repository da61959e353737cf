"""Where the arrays of a kernel lie, and how its programs get at them: three layouts, for two lowerings.

* Triton: arrays stay as they are, records of n p entries. Threads move a sector of memory at a time, 32 bytes, because every
  entry by itself would touch one. Or a whole program moves a whole matrix.
* Mosaic has no such addresses: arrays are (rows, n p, lanes), which XLA transposes them to and from.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import Lanes, Tile
from fastscan.kernels.algebra.tile import sides
from fastscan.kernels.gpu import lowerings
from fastscan.kernels.gpu.arithmetic import matrix_kind
from fastscan.kernels.gpu.blocks import Traced
from fastscan.kernels.gpu.matrix_arrays import MatrixArray
from fastscan.kernels.gpu.sectors import columns, indices, side_by_side, tiles
from fastscan.kernels.plan import Plan


def layout(plan: Plan, B: int) -> "_Records | _Columns":
    """Chooses a plan's layout, for B sequences."""
    kind = _Whole if plan.kernels.whole else {"triton": _Records, "mosaic": _Columns}[plan.kernels.lowering]
    return kind(plan, B)


class _Layout:
    """Where arrays lie, and how programs get at them.

    Outside a kernel: ``shape`` of an array, ``pack`` and ``unpack`` to and from (batch, rows, n, p), ``inputs`` of the layout's
    own. Inside, after ``enter``: ``read`` and ``write`` a lane's matrix, or ``read`` another ``row``, whose ``number`` another
    array has; ``spread`` what is one number for all lanes, ``present`` where a padded chunk's row ``t`` exists, ``compute`` a
    function. Where no more matrices than ``resident`` are the same at every step, they are read once; more are read again where
    they are used, and take up no registers in between.
    """

    resident: float = math.inf

    def __init__(self, plan: Plan, B: int):
        self.plan, self.B = plan, B
        self.programs = -(-B * plan.chunks // plan.kernels.lanes)

    def run(self, name: str, program: Callable, operands: list[jax.Array], shapes: list[jax.ShapeDtypeStruct]) -> Any:
        """Runs the programs, and returns the arrays that they write."""
        pl, how = lowerings.pallas(), self.plan.kernels
        whole = pl.BlockSpec(memory_space=pl.ANY)
        return pl.pallas_call(
            program,
            name=name,
            grid=(self.programs,),
            in_specs=[whole] * len(operands),
            out_specs=[whole] * len(shapes),
            out_shape=shapes,
            interpret=how.interpret,
            compiler_params=None if how.interpret else lowerings.triton().CompilerParams(num_warps=how.warps, num_stages=1),
        )(*operands)

    def compute(self, function: Traced, *arguments: Any) -> Any:
        return function(*arguments)

    def spread(self, x: Any) -> Any:
        raise NotImplementedError

    def _read(self, array: MatrixArray, ref: Any, t: Any, row: Any = None) -> list[Any]:
        raise NotImplementedError

    def _write(self, array: MatrixArray, ref: Any, t: Any, values: list[jax.Array]) -> None:
        raise NotImplementedError

    def number(self, array: MatrixArray, ref: Any, t: Any) -> Any:
        return self._read(array, ref, t)[0]

    def read(self, array: MatrixArray, ref: Any, t: Any, row: Any = None) -> Lanes | Tile:
        values = [self.spread(x) for x in self._read(array, ref, t, row)]
        return matrix_kind(self.plan.kernels)([values[i * array.p : (i + 1) * array.p] for i in range(array.n)])

    def write(self, array: MatrixArray, ref: Any, t: Any, matrix: Any) -> None:
        self._write(array, ref, t, [self.spread(x) for row in matrix.rows for x in row])


class _Records(_Layout):
    """Arrays as (batch * rows, n p), for Triton."""

    def compute(self, function: Traced, *arguments: Any) -> Any:
        assemble = None if self.plan.kernels.interpret else lowerings.assembly()
        return function(*arguments) if assemble is None else function.in_blocks(assemble, *arguments)

    def inputs(self) -> list[jax.Array]:
        return []

    def shape(self, array: MatrixArray) -> tuple[int, ...]:
        return array.batch * array.rows, array.entries

    def pack(self, array: MatrixArray, x: jax.Array) -> jax.Array:
        return x.reshape(self.shape(array))

    def unpack(self, array: MatrixArray, x: jax.Array) -> jax.Array:
        return x.reshape(array.batch, array.rows, array.n, array.p)

    def enter(self, _: list[Any]) -> None:
        plan, lanes = self.plan, self.plan.kernels.lanes
        lane = lowerings.pallas().program_id(0) * np.int32(lanes) + lax.iota(jnp.int32, lanes)
        lane = lax.min(lane, jnp.full_like(lane, self.B * plan.chunks - 1))  # those past the last do what the last one does
        chunks = jnp.full_like(lane, plan.chunks)
        self.sequence = lane if plan.chunks == 1 else lax.div(lane, chunks) if self.B > 1 else np.int32(0)
        self.chunk = np.int32(0) if plan.chunks == 1 else lax.rem(lane, chunks) if self.B > 1 else lane

    def spread(self, x: Any) -> Any:
        return jnp.broadcast_to(x, (self.plan.kernels.lanes,))

    def present(self, t: Any) -> Any:
        return self._row(t) < self.plan.steps

    def _row(self, t: Any) -> Any:
        return self.chunk * np.int32(self.plan.length) + t

    def _index(self, array: MatrixArray, t: Any, row: Any = None) -> Any:
        if row is None:
            row = self._row(t) if array.kind == "step" else self.chunk if array.kind == "chunk" else np.int32(0)
        return row if array.batch == 1 else self.sequence * np.int32(array.rows) + row

    def _read(self, array: MatrixArray, ref: Any, t: Any, row: Any = None) -> list[Any]:
        index = self._index(array, t, row)
        if jnp.ndim(index) == 0:
            return [ref[index, k] for k in range(array.entries)]
        if array.kind == "step" and self.plan.padded:
            index = lax.min(index, jnp.full_like(index, array.batch * array.rows - 1))
        return [x for tile in tiles(array.entries, array.dtype) for x in columns(ref[indices(index, *tile)])]

    def _write(self, array: MatrixArray, ref: Any, t: Any, values: list[jax.Array]) -> None:
        lanes = values[0].shape
        index, present = jnp.broadcast_to(self._index(array, t), lanes), None
        if array.kind == "step" and self.plan.padded:
            present = jnp.broadcast_to(self.present(t), lanes)
        for start, width in tiles(array.entries, array.dtype, past_the_end=True):
            where = indices(index, start, width)
            mask = None if present is None else lax.broadcast_in_dim(present, (*lanes, width), (0,))
            if start + width > array.entries:
                within = where[1] < np.int32(array.entries)
                mask = within if mask is None else mask & within
            own = values[start : start + width]
            tile = side_by_side([*own, *own[-1:] * (width - len(own))])
            lowerings.triton().store(ref.at[where], tile, mask=mask)


class _Columns(_Layout):
    """Arrays as (steps of a chunk or 1, n p, lanes), for Mosaic; those with one row for all lanes as (1, n p, 1)."""

    def run(self, name: str, program: Callable, operands: list[jax.Array], shapes: list[jax.ShapeDtypeStruct]) -> Any:
        if self.plan.kernels.interpret:
            return super().run(name, program, operands, shapes)
        mosaic = lowerings.mosaic()
        return mosaic.kernel(
            program,
            out_type=shapes,
            grid=(self.programs,),
            grid_names=(_PROGRAM,),
            kernel_name=name,
            compiler_params=mosaic.CompilerParams(unsafe_no_auto_barriers=True),  # a lane reads nothing that others write
        )(*operands)

    def inputs(self) -> list[jax.Array]:
        """Returns how many rows every lane's chunk holds."""
        if not self.plan.padded:
            return []
        rows = jnp.clip(self.plan.steps - jnp.arange(self.plan.chunks) * self.plan.length, 0, self.plan.length)
        rows = jnp.broadcast_to(rows.astype(jnp.int32)[None, :, None, None], (self.B, self.plan.chunks, 1, 1))
        return [self.pack(MatrixArray.of("chunk", rows), rows)]

    def shape(self, array: MatrixArray) -> tuple[int, ...]:
        steps = self.plan.length if array.kind == "step" else 1
        return steps, array.entries, self.programs * self.plan.kernels.lanes

    def pack(self, array: MatrixArray, x: jax.Array) -> jax.Array:
        C, L, e = self.plan.chunks, self.plan.length, array.entries
        if array.kind == "once" and array.batch == 1:
            return x.reshape(1, e, 1)
        if array.kind == "step":
            x = x[:, : self.plan.steps]
            x = jnp.pad(x, ((0, 0), (0, C * L - self.plan.steps), (0, 0), (0, 0)))
        x = x.reshape(array.batch, -1, L if array.kind == "step" else 1, e).transpose(2, 3, 0, 1)
        x = jnp.broadcast_to(x, (*x.shape[:2], self.B, C)).reshape(*x.shape[:2], self.B * C)
        return jnp.pad(x, ((0, 0), (0, 0), (0, self.shape(array)[2] - self.B * C)))

    def unpack(self, array: MatrixArray, x: jax.Array) -> jax.Array:
        steps, e, _ = x.shape
        x = x[..., : self.B * self.plan.chunks].reshape(steps, e, self.B, self.plan.chunks).transpose(2, 3, 0, 1)
        x = x.reshape(self.B, -1, array.n, array.p)[:, : array.rows]
        return jnp.pad(x, ((0, 0), (0, array.rows - x.shape[1]), (0, 0), (0, 0)))

    def enter(self, refs: list[Any]) -> None:
        lanes = self.plan.kernels.lanes
        program = lowerings.pallas().program_id(0) if self.plan.kernels.interpret else lax.axis_index(_PROGRAM)
        self.lanes = lowerings.pallas().ds(program * np.int32(lanes), lanes)
        self.present_rows: Any = refs[0][0, 0, self.lanes] if refs else None

    def spread(self, x: Any) -> Any:
        """Makes a number one per lane: a loop can't carry what is a constant at first."""
        x = jnp.broadcast_to(x, (self.plan.kernels.lanes,))
        if self.plan.kernels.interpret:
            return x
        mosaic = lowerings.mosaic()
        return mosaic.layout_cast(x, mosaic.Layout.WG_STRIDED(x.shape, vec_size=1))

    def present(self, t: Any) -> Any:
        return jnp.full_like(self.present_rows, t) < self.present_rows

    def _read(self, array: MatrixArray, ref: Any, t: Any, row: Any = None) -> list[Any]:
        del row  # of no table: those are looked up before
        if array.kind == "once" and array.batch == 1:
            return [ref[0, k, 0] for k in range(array.entries)]
        return [ref[t if array.kind == "step" else 0, k, self.lanes] for k in range(array.entries)]

    def _write(self, array: MatrixArray, ref: Any, t: Any, values: list[jax.Array]) -> None:
        for k, x in enumerate(values):
            ref[t if array.kind == "step" else 0, k, self.lanes] = x


_PROGRAM = "program"


class _Whole(_Records):
    """Arrays as (batch * rows, n p), for Triton: a program works for one lane, whose matrices it holds together."""

    resident = 1

    def __init__(self, plan: Plan, B: int):
        super().__init__(plan._replace(launch=plan.kernels._replace(lanes=1)), B)
        self.kind = matrix_kind(plan.kernels)

    def compute(self, function: Traced, *arguments: Any) -> Any:
        return function(*arguments)

    def enter(self, _: list[Any]) -> None:
        lane, chunks = lowerings.pallas().program_id(0), np.int32(self.plan.chunks)
        self.sequence = lane if self.plan.chunks == 1 else lax.div(lane, chunks) if self.B > 1 else np.int32(0)
        self.chunk = np.int32(0) if self.plan.chunks == 1 else lax.rem(lane, chunks) if self.B > 1 else lane

    def spread(self, x: Any) -> Any:
        return x

    def number(self, array: MatrixArray, ref: Any, t: Any) -> Any:
        return self.read(array, ref, t).array

    def read(self, array: MatrixArray, ref: Any, t: Any, row: Any = None) -> Tile:
        index, (where, inside) = self._index(array, t, row), self._entries(array)
        if array.kind == "step" and self.plan.padded:
            index = lax.min(index, np.int32(array.batch * array.rows - 1))
        if array.kind == "once" and t is not None:  # addresses that were the same at every step would stay in registers
            index += self.kind.nothing(t)
        rows = jnp.broadcast_to(index, jnp.shape(where))
        loaded = lowerings.triton().load(ref.at[rows, where], mask=inside, other=None if inside is None else 0)
        return self.kind(loaded, (array.n, array.p))

    def write(self, array: MatrixArray, ref: Any, t: Any, matrix: Tile) -> None:
        where, inside = self._entries(array)
        if array.kind == "step" and self.plan.padded:
            present = jnp.broadcast_to(self.present(t), jnp.shape(where))
            inside = present if inside is None else present & inside
        rows = jnp.broadcast_to(self._index(array, t), jnp.shape(where))
        lowerings.triton().store(ref.at[rows, where], matrix.array, mask=inside)

    def _entries(self, array: MatrixArray) -> tuple[Any, jax.Array | None]:
        """Returns where a tile's entries lie in a record, and which of them are the matrix's; None if all are."""
        shape, lengths = sides(array.n, array.p), [n for n in (array.n, array.p) if n > 1]
        numbers = [lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(len(shape))]
        where = numbers[0] * np.int32(array.p) + numbers[1] if len(shape) == 2 else numbers[0] if shape else np.int32(0)
        inside = [number < n for number, n, side in zip(numbers, lengths, shape, strict=True) if n < side]
        if not inside:
            return where, None
        inside = inside[0] & inside[-1]
        if self.plan.kernels.interpret:  # which writes in vain where it is not to write
            where = jnp.where(inside, where, array.entries)
        return where, inside
