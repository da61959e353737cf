"""A recurrence's phases as GPU kernels: a lane, which is a thread, owns one chunk of one sequence.

The only file that knows Pallas. Here everything is held as series are, (B or 1, rows, n, p): summaries and states have one
row a chunk, parameters one row in all. The C summaries are scanned as what they are, a shorter series: lanes fold them in
groups into fewer and fewer, until one lane can go through the rest; then back down, every level's states from the one above.

A kernel is named after its recurrence and its phase, as in ``kalman_filter_sweep``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fastscan.kernels.algebra import Lanes, stable_carry
from fastscan.kernels.plan import Plan
from fastscan.kernels.recurrence import Hindsight, Recurrence, of_hindsight, of_summaries

Kind = Literal["once", "chunk", "step"]
"""Which rows of an array a lane reads or writes: the only one, its chunk's, or one for every step."""


def matrices(plan: Plan, tree: Any) -> Any:
    """Arrays (n, p, C or 1, B or 1) as (B or 1, C or 1, n, p)."""
    del plan
    return jax.tree.map(lambda x: x.transpose(3, 2, 0, 1), tree)


def arrays(plan: Plan, tree: Any) -> Any:
    """The inverse of `matrices`."""
    del plan
    return jax.tree.map(lambda x: x.transpose(2, 3, 1, 0), tree)


def split(plan: Plan, series: Any) -> Any:
    """The series itself: lanes find their rows."""
    del plan
    return series


def join(plan: Plan, rows: Any, last: Any = None) -> Any:
    """Rows (B, T, n, p) as they are. With ``last``, they were left ``room`` in, which it fills, in place."""
    del plan
    return rows if last is None else rows.at[:, -1:].set(last.transpose(3, 2, 0, 1))


@functools.partial(jax.jit, static_argnames=("plan", "recurrence", "reverse"))
def summarise(plan: Plan, recurrence: Recurrence, params: Any, state: Any, rows: Any, *, reverse: bool = False) -> Any:
    """Every chunk's summary, (B, C, n, p); arguments as `chunked.summarise` has them."""
    empty, append = _empty_summary(plan, recurrence, state), _traced_once(recurrence.append)

    def kernel(program: _Program) -> None:
        params = program.read(0)
        summary = program.loop(lambda s, x: (append(params, s, x), None), empty, 1, None, reverse)
        program.write(0, summary)

    form = jax.eval_shape(append, _forms(plan, params), empty, _forms(plan, rows))
    inputs = (("once", params), ("step", rows))
    return _launch(plan, f"{recurrence.name}_summarise", kernel, inputs, [("chunk", form, False)])[0]


def entries(plan: Plan, recurrence: Recurrence, state: Any, summaries: Any, *, reverse: bool = False) -> Any:
    """The state before every chunk, (B, C, n, p); with ``reverse``, after it."""
    ladder = _ladder(plan, recurrence, state, summaries, reverse)
    return _descend(ladder, of_summaries(recurrence), state, reverse)


def entries_and_futures(
    plan: Plan, recurrence: Recurrence, hindsight: Hindsight, state: Any, summaries: Any
) -> tuple[Any, Any]:
    """The state before every chunk, and what all that follows says of the state after it."""
    ladder = _ladder(plan, recurrence, state, summaries, False)
    back = of_hindsight(recurrence, hindsight)
    empty = hindsight.read(_empty_summary(plan, recurrence, state))
    nothing = jax.tree.map(lambda m: jnp.asarray(m.rows)[None, None], empty, is_leaf=_is_lanes)
    return _descend(ladder, of_summaries(recurrence), state, False), _descend(ladder, back, nothing, True)


@functools.partial(jax.jit, static_argnames=("plan", "recurrence", "begin", "reverse", "room"))
def sweep(
    plan: Plan,
    recurrence: Recurrence,
    params: Any,
    entries: tuple,
    rows: Any,
    *,
    begin: Callable | None = None,
    reverse: bool = False,
    room: Any = False,
) -> tuple[Any, Any]:
    """The sequential recursion within every chunk; arguments as `chunked.sweep` has them.

    Returns:
        The states after every chunk (B, C, n, p), and the outputs (B, T, n, p), or (B, T + 1, n, p) with ``room``.
    """
    # a kernel of its own: how long one takes to compile grows much faster than its text
    state = entries[0] if begin is None else each_row(plan, f"{recurrence.name}_begin", begin, entries)

    step = _traced_once(recurrence.step)

    def kernel(program: _Program) -> None:
        params = program.read(0)
        program.write(0, program.loop(lambda s, x: step(params, s, x), program.read(2), 1, 1, reverse))

    forms = jax.eval_shape(step, *_forms(plan, (params, state, rows)))
    inputs = (("once", params), ("step", rows), ("chunk", state))
    outputs = [("chunk", forms[0], False), ("step", forms[1], room)]
    exits, outs = _launch(plan, f"{recurrence.name}_sweep", kernel, inputs, outputs)
    return exits, outs


@functools.partial(jax.jit, static_argnames=("plan", "name", "function"))
def each_row(plan: Plan, name: str, function: Callable, series: Any) -> Any:
    """A function of matrices, of every row by itself: (B or 1, rows, n, p) in and out."""
    rows = max(x.shape[1] for x in jax.tree.leaves(series))
    plan = plan._replace(steps=rows, chunks=rows)
    series = jax.tree.map(lambda x: jnp.broadcast_to(x, (x.shape[0], rows, *x.shape[2:])), series)
    form = jax.eval_shape(function, *_forms(plan, series))

    def kernel(program: _Program) -> None:
        program.write(0, function(*program.read(0)))

    return _launch(plan, name, kernel, [("chunk", series)], [("chunk", form, False)])[0]


@functools.cache
def _traced_once(function: Callable) -> Callable:
    """The function, which kernels then share the trace of."""
    return jax.jit(function)


def _ladder(plan: Plan, recurrence: Recurrence, state: Any, summaries: Any, reverse: bool) -> list[tuple[Plan, Any]]:
    """Summaries of chunks, of groups of chunks, of groups of groups..., each with the plan that goes through them."""
    group, steps, ladder = plan.launch.group, plan.chunks, []
    while steps > group:
        level = plan._replace(steps=steps, chunks=-(-steps // group))
        ladder.append((level, summaries))
        summaries = summarise(level, of_summaries(recurrence), (), state, summaries, reverse=reverse)
        steps = level.chunks
    return [*ladder, (plan._replace(steps=steps, chunks=1), summaries)]


def _descend(ladder: list, recurrence: Recurrence, state: Any, reverse: bool) -> Any:
    """The states before all the summaries of the first level, from the one before everything."""
    for level, summaries in reversed(ladder):
        _, state = sweep(level, recurrence, (), (state,), summaries, reverse=reverse)
    return state


def _empty_summary(plan: Plan, recurrence: Recurrence, state: Any) -> Any:
    kind = _kind(plan)
    return recurrence.identity(jax.tree.map(lambda x: kind([[x.dtype.type(0)] * x.shape[3]] * x.shape[2]), state))


def _forms(plan: Plan, tree: Any) -> Any:
    """What a lane reads of a tree of arrays, without the numbers."""
    return jax.tree.map(lambda x: _form(plan, _Table("once", *x.shape, x.dtype)), tree)


def _kind(plan: Plan) -> type[Lanes]:
    return Lanes if plan.launch.interpret else _FusedLanes


class _Table(NamedTuple):
    """An array of matrices as lanes see it: (batch, rows, n, p), held as (batch * rows, n * p)."""

    kind: Kind
    batch: int
    rows: int
    n: int
    p: int
    dtype: Any


def _launch(
    plan: Plan,
    name: str,
    kernel: "Callable[[_Program], None]",
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
        Trees of arrays (B, rows, n, p).
    """
    arrays = jax.tree.leaves([tree for _, tree in inputs])
    B = max((x.shape[0] for x in arrays), default=1)
    sources = [jax.tree.map(lambda x, kind=kind: _Table(kind, *x.shape, x.dtype), tree) for kind, tree in inputs]
    targets = [_tables(plan, B, *output) for output in outputs]
    tables = jax.tree.leaves(targets, is_leaf=_is_table)

    def program(*refs: Any) -> None:
        refs = iter(refs)
        pairs = [jax.tree.map(lambda t: (t, next(refs)), trees, is_leaf=_is_table) for trees in (sources, targets)]
        kernel(_Program(plan, B, *pairs))

    whole, launch = pl.BlockSpec(memory_space=pl.ANY), plan.launch
    results = pl.pallas_call(
        program,
        name=name,
        grid=(-(-B * plan.chunks // launch.lanes),),
        in_specs=[whole] * len(arrays),
        out_specs=[whole] * len(tables),
        out_shape=[jax.ShapeDtypeStruct((t.batch * t.rows, t.n * t.p), t.dtype) for t in tables],
        interpret=launch.interpret,
        compiler_params=None if launch.interpret else triton.CompilerParams(num_warps=launch.warps, num_stages=1),
    )(*(x.reshape(x.shape[0] * x.shape[1], -1) for x in arrays))
    results = [x.reshape(t.batch, t.rows, t.n, t.p) for x, t in zip(results, tables, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(targets, is_leaf=_is_table), results)


def _form(plan: Plan, table: "_Table") -> Lanes:
    return _kind(plan)([[jax.ShapeDtypeStruct((), table.dtype)] * table.p] * table.n)


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and _is_table(x[0])


def _tables(plan: Plan, B: int, kind: Kind, forms: Any, room: Any) -> Any:
    """Where the matrices of ``forms`` go."""
    rows = plan.chunks if kind == "chunk" else plan.steps
    matrices, tree = jax.tree.flatten(forms, is_leaf=_is_lanes)
    rooms = jax.tree.leaves(jax.tree.broadcast(room, jax.tree.unflatten(tree, [0] * len(matrices))))
    tables = [_Table(kind, B, rows + free, *m.shape, m.dtype) for m, free in zip(matrices, rooms, strict=True)]
    return jax.tree.unflatten(tree, tables)


def _is_lanes(x: Any) -> bool:
    return isinstance(x, Lanes)


def _is_table(x: Any) -> bool:
    return isinstance(x, _Table)


class _Program:
    """What one program of a kernel does for its lanes, which are vectors here."""

    def __init__(self, plan: Plan, B: int, sources: Sequence[Any], targets: Sequence[Any]):
        self.plan, self.sources, self.targets = plan, sources, targets
        lanes, last = plan.launch.lanes, B * plan.chunks - 1
        lane = pl.program_id(0) * np.int32(lanes) + lax.iota(jnp.int32, lanes)
        self.lane = lax.min(lane, jnp.full_like(lane, last))  # lanes past the last do what the last one does
        chunks = jnp.full_like(lane, plan.chunks)
        self.sequence = self.lane if plan.chunks == 1 else lax.div(self.lane, chunks) if B > 1 else np.int32(0)
        self.chunk = np.int32(0) if plan.chunks == 1 else lax.rem(self.lane, chunks) if B > 1 else self.lane

    def loop(self, step: Callable, carry: Any, source: int, target: int | None, reverse: bool) -> Any:
        """``step(carry, x) -> (carry, out)`` over a chunk's rows, which are read from one tree and written to another."""
        L, lanes = self.plan.length, (self.plan.launch.lanes,)

        def spread(carry: Any) -> Any:
            return jax.tree.map(lambda x: jnp.broadcast_to(x, lanes), carry)

        def body(t: jax.Array, carry: Any) -> Any:
            t = L - 1 - t if reverse else t
            after, out = step(carry, self.read(source, t))
            if target is not None:
                self.write(target, out, t)
            if self.plan.padded:
                present = self._row(t) < self.plan.steps
                after = jax.tree.map(lambda a, c: jnp.where(present, a, c), after, carry)
            return spread(after)

        row = jax.tree.map(lambda pair: _form(self.plan, pair[0]), self.sources[source], is_leaf=_is_pair)
        carry = spread(stable_carry(step, carry, row))
        return body(np.int32(0), carry) if L == 1 else lax.fori_loop(np.int32(0), np.int32(L), body, carry)

    def read(self, number: int, t: Any = None) -> Any:
        """A tree of `Lanes`."""
        return jax.tree.map(lambda pair: self._read(*pair, t), self.sources[number], is_leaf=_is_pair)

    def write(self, number: int, tree: Any, t: Any = None) -> None:
        """The inverse of `read`."""
        jax.tree.map(lambda m, pair: self._write(*pair, m, t), tree, self.targets[number], is_leaf=_is_lanes)

    def _row(self, t: Any) -> Any:
        return self.chunk * np.int32(self.plan.length) + t

    def _index(self, table: _Table, t: Any) -> Any:
        row = self._row(t) if table.kind == "step" else self.chunk if table.kind == "chunk" else np.int32(0)
        return row if table.batch == 1 else self.sequence * np.int32(table.rows) + row

    def _read(self, table: _Table, ref: Any, t: Any) -> Lanes:
        index, entries, lanes = self._index(table, t), table.n * table.p, (self.plan.launch.lanes,)
        if jnp.ndim(index) == 0:
            values = [jnp.broadcast_to(ref[index, k], lanes) for k in range(entries)]
        else:
            if table.kind == "step" and self.plan.padded:
                index = lax.min(index, jnp.full_like(index, table.batch * table.rows - 1))
            tiles = [_columns(ref[_tile(index, start, width)]) for start, width in _tiles(entries, table.dtype)]
            values = [column for tile in tiles for column in tile]
        return _kind(self.plan)([values[i * table.p : (i + 1) * table.p] for i in range(table.n)])

    def _write(self, table: _Table, ref: Any, matrix: Lanes, t: Any) -> None:
        lanes = (self.plan.launch.lanes,)
        index, present = jnp.broadcast_to(self._index(table, t), lanes), None
        if table.kind == "step" and self.plan.padded:
            present = jnp.broadcast_to(self._row(t) < self.plan.steps, lanes)
        values = [jnp.broadcast_to(jnp.asarray(x, table.dtype), lanes) for row in matrix.rows for x in row]
        for start, width in _tiles(len(values), table.dtype):
            mask = None if present is None else lax.broadcast_in_dim(present, (*lanes, width), (0,))
            triton.store(ref.at[_tile(index, start, width)], _side_by_side(values[start : start + width]), mask=mask)


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
    (out,) = triton.elementwise_inline_asm(
        f"{name}.f{bits} {', '.join(f'${k}' for k in range(len(operands) + 1))};",
        args=[x if np.shape(x) == shape else jnp.broadcast_to(x, shape) for x in operands],
        constraints=",".join([f"={register}"] + [register] * len(operands)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, dtype)],
    )
    return out


def _tiles(entries: int, dtype: Any) -> list[tuple[int, int]]:
    """A record of so many entries cut into (start, width) of what a thread moves at once: powers of two, 16 bytes at most."""
    cuts, start = [], 0
    while start < entries:
        width = min(1 << (entries - start).bit_length() - 1, 16 // np.dtype(dtype).itemsize)
        cuts.append((start, width))
        start += width
    return cuts


def _tile(index: jax.Array, start: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The entries ``start`` to ``start + width`` of every lane's record, as indices (lanes, width)."""
    shape = (index.shape[0], width)
    return lax.broadcast_in_dim(index, shape, (0,)), lax.broadcasted_iota(jnp.int32, shape, 1) + np.int32(start)


def _side_by_side(vectors: Sequence[jax.Array]) -> jax.Array:
    """Vectors (lanes,), a power of two of them, as the columns of (lanes, columns)."""
    if len(vectors) == 1:
        return vectors[0][:, None]
    return jnp.stack([_side_by_side(vectors[0::2]), _side_by_side(vectors[1::2])], -1).reshape(-1, len(vectors))


def _columns(tile: jax.Array) -> list[jax.Array]:
    """The inverse of `_side_by_side`."""
    lanes, width = tile.shape
    if width == 1:
        return [tile.reshape(lanes)]
    even, odd = (_columns(half) for half in jnp.unstack(tile.reshape(lanes, width // 2, 2), axis=-1))
    return [column for pair in zip(even, odd, strict=True) for column in pair]
