"""Kernels on a GPU: what a program of a kernel reads, loops over and writes, and where that lies. The only user of Pallas.

A lane owns chunk c of sequence b. Every array of matrices is (batch, rows, n, p) to those who launch; a lane's row is the
only one, its chunk's, or one of its chunk's rows for every step. Two lowerings, two layouts:

* Triton: arrays stay as they are, records of n p entries. Threads move a sector of memory at a time, 32 bytes,
  because every entry by itself would touch one.
* Mosaic has no such addresses: arrays are (rows, n p, lanes), which XLA transposes them to and from.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import Lanes, StagedLanes, stable_carry
from fastscan.kernels.gpu import lowerings
from fastscan.kernels.gpu.blocks import Traced
from fastscan.kernels.gpu.tiles import columns, indices, side_by_side, tiles
from fastscan.kernels.plan import Launch, Plan
from fastscan.kernels.tables import is_table, values_of

MOST_ROWS = 2**31 - 1
"""The most rows of an array, all sequences' together. Lanes and rows are numbered in 32 bits; entries in 64, where an array is
that large."""

Kind = Literal["once", "chunk", "step"]
"""Which rows of an array a lane reads or writes: the only one, its chunk's, or one for every step."""


class MatrixArray(NamedTuple):
    """An array of matrices, (batch, rows, n, p), as lanes see it."""

    kind: Kind
    batch: int
    rows: int
    n: int
    p: int
    dtype: Any

    @classmethod
    def of(cls, kind: Kind, x: Any) -> "MatrixArray":
        """Describes an array."""
        batch, rows, n, p = x.shape
        return cls(kind, batch, rows, n, p, x.dtype)

    @property
    def entries(self) -> int:
        """The number of a matrix's entries."""
        return self.n * self.p

    def matrix(self, how: Launch) -> Lanes:
        """Returns the form of a matrix that lanes read, without the numbers."""
        return matrix_kind(how)([[jax.ShapeDtypeStruct((how.lanes,), self.dtype)] * self.p] * self.n)


def launch(
    plan: Plan,
    name: str,
    kernel: "Callable[[Program], None]",
    inputs: Sequence[tuple[Kind, Any]],
    outputs: Sequence[tuple[Kind, Any, Any]],
) -> list[Any]:
    """Runs a kernel over all lanes.

    Args:
        plan: how.
        name: of the kernel, in the compiled program.
        kernel: what a program does; it reads and writes the trees below by their numbers.
        inputs: which rows a lane reads, and a tree of arrays (batch, rows, n, p).
        outputs: which rows a lane writes, a tree of `Lanes`, and a tree of whether a row is left free at the end.

    Returns:
        Trees of arrays (B, rows, n, p). In interpret mode, what no lane wrote is NaN.
    """
    arrays = jax.tree.leaves([tree for _, tree in inputs])
    B = max((x.shape[0] for x in arrays), default=1)
    layout = _LAYOUTS[plan.kernels.lowering](plan, B)
    sources = [jax.tree.map(functools.partial(MatrixArray.of, kind), tree) for kind, tree in inputs]
    targets = [_tables(plan, B, *output) for output in outputs]
    own = layout.inputs()
    reads, writes = (jax.tree.leaves(trees, is_leaf=_is_table) for trees in (sources, targets))

    _check_rows(B, [*reads, *writes])

    def program(*refs: Any) -> None:
        remaining = iter(refs)
        layout.enter([next(remaining) for _ in own])
        pairs = [jax.tree.map(lambda t: (t, next(remaining)), trees, is_leaf=_is_table) for trees in (sources, targets)]
        kernel(Program(plan, layout, *pairs))

    operands = [*own, *(layout.pack(t, x) for t, x in zip(reads, arrays, strict=True))]
    shapes = [jax.ShapeDtypeStruct(layout.shape(t), t.dtype) for t in writes]
    results = layout.run(name, program, operands, shapes)
    results = [layout.unpack(t, x) for t, x in zip(writes, results, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(targets, is_leaf=_is_table), results)


def _check_rows(B: int, tables: Sequence[MatrixArray]) -> None:
    rows = max((table.rows for table in tables), default=0)
    if B * rows > MOST_ROWS:
        raise ValueError(
            f"{B:,} sequences of {rows:,} rows given, for a kernel, which numbers at most {MOST_ROWS:,} rows in all. "
            "Take fewer sequences at a time, or implementation='chunked'."
        )


def form(plan: Plan, tree: Any) -> Any:
    """Returns the form of what lanes read of a tree of arrays (batch, rows, n, p), without the numbers."""
    return jax.tree.map(lambda x: MatrixArray.of("once", values_of(x)).matrix(plan.kernels), tree, is_leaf=is_table)


def matrix_kind(how: Launch) -> type[Lanes]:
    """Returns the class of matrices inside kernels."""
    return StagedLanes if how.interpret else _FusedLanes if how.lowering == "triton" else Lanes


class Program:
    """One program of a kernel, which works for its lanes; they are vectors here."""

    def __init__(self, plan: Plan, layout: "_Records | _Columns", sources: Sequence[Any], targets: Sequence[Any]):
        self.plan, self.layout, self.sources, self.targets = plan, layout, sources, targets

    def loop(self, step: Callable, carry: Any, source: int, target: int | None, reverse: bool) -> Any:
        """Loops with ``step(carry, x) -> (carry, out)`` over a chunk's rows, which are read from one tree and written to
        another.
        """
        L = self.plan.length

        def spread(carry: Any) -> Any:
            return jax.tree.map(self.layout.spread, carry)

        def body(t: Any, carry: Any) -> Any:
            t = L - 1 - t if reverse else t
            after, out = step(carry, self.read(source, t))
            if target is not None:
                self.write(target, out, t)
            if self.plan.padded:
                present = self.layout.present(t)
                after = jax.tree.map(lambda a, c: jnp.where(present, a, c), after, carry)
            return spread(after)

        row = jax.tree.map(lambda x: values_of(x)[0].matrix(self.plan.kernels), self.sources[source], is_leaf=_is_source)
        carry = spread(stable_carry(step, spread(carry), row))
        return body(np.int32(0), carry) if L == 1 else lax.fori_loop(np.int32(0), np.int32(L), body, carry)

    def compute(self, function: Traced, *arguments: Any) -> Any:
        """Calls a function of trees of `Lanes`, in the form that takes least time to compile."""
        return self.layout.compute(function, *arguments)

    def read(self, number: int, t: Any = None) -> Any:
        """Reads a tree of `Lanes`; ``t`` is the step within the chunk."""

        def one(source: Any) -> Lanes:
            table, ref = values_of(source)
            number = self.layout.read(*source.index, t=t)[0] if is_table(source) else None
            values = [self.layout.spread(x) for x in self.layout.read(table, ref, t, number)]
            return matrix_kind(self.plan.kernels)([values[i * table.p : (i + 1) * table.p] for i in range(table.n)])

        return jax.tree.map(one, self.sources[number], is_leaf=_is_source)

    def write(self, number: int, tree: Any, t: Any = None) -> None:
        """Writes a tree of `Lanes`, as `read` reads it."""

        def one(matrix: Lanes, pair: tuple[MatrixArray, Any]) -> None:
            values = [self.layout.spread(x) for row in matrix.rows for x in row]
            self.layout.write(*pair, t, values)

        jax.tree.map(one, tree, self.targets[number], is_leaf=_is_lanes)


class _Layout:
    """Where arrays lie, and how programs get at them.

    Outside a kernel: ``shape`` of a table's array, ``pack`` and ``unpack`` to and from (batch, rows, n, p), ``inputs`` of the
    layout's own. Inside, after ``enter``: ``read`` and ``write`` a lane's matrix as a list of vectors, ``spread`` what is one
    number for all lanes, ``present`` where a padded chunk's row ``t`` exists, ``compute`` a function.
    """

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


class _Records(_Layout):
    """Arrays as (batch * rows, n p), for Triton."""

    def compute(self, function: Traced, *arguments: Any) -> Any:
        assemble = None if self.plan.kernels.interpret else lowerings.assembly()
        return function(*arguments) if assemble is None else function.in_blocks(assemble, *arguments)

    def inputs(self) -> list[jax.Array]:
        return []

    def shape(self, table: MatrixArray) -> tuple[int, ...]:
        return table.batch * table.rows, table.entries

    def pack(self, table: MatrixArray, x: jax.Array) -> jax.Array:
        return x.reshape(self.shape(table))

    def unpack(self, table: MatrixArray, x: jax.Array) -> jax.Array:
        return x.reshape(table.batch, table.rows, table.n, table.p)

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

    def _index(self, table: MatrixArray, t: Any, number: Any = None) -> Any:
        row = self._row(t) if table.kind == "step" else self.chunk if table.kind == "chunk" else np.int32(0)
        row = row if number is None else number
        return row if table.batch == 1 else self.sequence * np.int32(table.rows) + row

    def read(self, table: MatrixArray, ref: Any, t: Any, number: Any = None) -> list[Any]:
        index = self._index(table, t, number)
        if jnp.ndim(index) == 0:
            return [ref[index, k] for k in range(table.entries)]
        if table.kind == "step" and self.plan.padded:
            index = lax.min(index, jnp.full_like(index, table.batch * table.rows - 1))
        return [x for tile in tiles(table.entries, table.dtype) for x in columns(ref[indices(index, *tile)])]

    def write(self, table: MatrixArray, ref: Any, t: Any, values: list[jax.Array]) -> None:
        lanes = values[0].shape
        index, present = jnp.broadcast_to(self._index(table, t), lanes), None
        if table.kind == "step" and self.plan.padded:
            present = jnp.broadcast_to(self.present(t), lanes)
        for start, width in tiles(table.entries, table.dtype, past_the_end=True):
            where = indices(index, start, width)
            mask = None if present is None else lax.broadcast_in_dim(present, (*lanes, width), (0,))
            if start + width > table.entries:
                within = where[1] < np.int32(table.entries)
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

    def shape(self, table: MatrixArray) -> tuple[int, ...]:
        steps = self.plan.length if table.kind == "step" else 1
        return steps, table.entries, self.programs * self.plan.kernels.lanes

    def pack(self, table: MatrixArray, x: jax.Array) -> jax.Array:
        C, L, e = self.plan.chunks, self.plan.length, table.entries
        if table.kind == "once" and table.batch == 1:
            return x.reshape(1, e, 1)
        if table.kind == "step":
            x = x[:, : self.plan.steps]
            x = jnp.pad(x, ((0, 0), (0, C * L - self.plan.steps), (0, 0), (0, 0)))
        x = x.reshape(table.batch, -1, L if table.kind == "step" else 1, e).transpose(2, 3, 0, 1)
        x = jnp.broadcast_to(x, (*x.shape[:2], self.B, C)).reshape(*x.shape[:2], self.B * C)
        return jnp.pad(x, ((0, 0), (0, 0), (0, self.shape(table)[2] - self.B * C)))

    def unpack(self, table: MatrixArray, x: jax.Array) -> jax.Array:
        steps, e, _ = x.shape
        x = x[..., : self.B * self.plan.chunks].reshape(steps, e, self.B, self.plan.chunks).transpose(2, 3, 0, 1)
        x = x.reshape(self.B, -1, table.n, table.p)[:, : table.rows]
        return jnp.pad(x, ((0, 0), (0, table.rows - x.shape[1]), (0, 0), (0, 0)))

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

    def read(self, table: MatrixArray, ref: Any, t: Any, _: None = None) -> list[Any]:
        if table.kind == "once" and table.batch == 1:
            return [ref[0, k, 0] for k in range(table.entries)]
        return [ref[t if table.kind == "step" else 0, k, self.lanes] for k in range(table.entries)]

    def write(self, table: MatrixArray, ref: Any, t: Any, values: list[jax.Array]) -> None:
        for k, x in enumerate(values):
            ref[t if table.kind == "step" else 0, k, self.lanes] = x


_PROGRAM = "program"
_LAYOUTS = {"triton": _Records, "mosaic": _Columns}


@jax.tree_util.register_pytree_node_class
class _FusedLanes(Lanes):
    """Lanes for Triton, which XLA tells not to contract a product and a sum into one instruction: here they are one."""

    __slots__ = ()

    @staticmethod
    def fused(x: Any, y: Any, z: Any) -> Any:
        return _instruction("fma.rn", x, y, z)

    @staticmethod
    def negative(x: Any) -> Any:
        return _instruction("neg", x)


def _instruction(name: str, *operands: Any) -> Any:
    dtype, shape = operands[0].dtype, max(map(np.shape, operands))
    bits, register = (32, "f") if dtype == np.float32 else (64, "d")
    (out,) = lowerings.triton().elementwise_inline_asm(
        f"{name}.f{bits} {', '.join(f'${k}' for k in range(len(operands) + 1))};",
        args=[x if np.shape(x) == shape else jnp.broadcast_to(x, shape) for x in operands],
        constraints=",".join([f"={register}"] + [register] * len(operands)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, dtype)],
    )
    return out


def _tables(plan: Plan, B: int, kind: Kind, forms: Any, room: Any) -> Any:
    """Describes the arrays that the matrices of ``forms`` go to."""
    rows = plan.chunks if kind == "chunk" else plan.steps
    matrices, tree = jax.tree.flatten(forms, is_leaf=_is_lanes)
    rooms = jax.tree.leaves(jax.tree.broadcast(room, jax.tree.unflatten(tree, [0] * len(matrices))))
    tables = [
        MatrixArray(kind, B, rows + free, m.shape[0], m.shape[1], m.dtype) for m, free in zip(matrices, rooms, strict=True)
    ]
    return jax.tree.unflatten(tree, tables)


def _is_lanes(x: Any) -> bool:
    return isinstance(x, Lanes)


def _is_table(x: Any) -> bool:
    return isinstance(x, MatrixArray)


def _is_source(x: Any) -> bool:
    return is_table(x) or (isinstance(x, tuple) and len(x) == 2 and _is_table(x[0]))
