"""A recurrence's phases as XLA programs: chunks of time are lanes of arrays.

One chunk is the sequential recursion, one row a chunk the textbook parallel form, and in between the work is L vectorised
steps over C lanes, twice.

In this module's own layout, a series' rows are (L, rows, columns, C, B or 1); states and summaries are matrices whose lanes
are (C or 1, B or 1). Lane axes broadcast: what does not differ between chunks or sequences is computed once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import ALGEBRAS, in_form_of, stable_carry
from fastscan.kernels.arrays import as_lanes, as_rows
from fastscan.kernels.plan import Plan
from fastscan.kernels.ranges import phase
from fastscan.kernels.scan import relay
from fastscan.kernels.scan.recurrence import Hindsight, Recurrence
from fastscan.kernels.scan.seams import CHUNK_AXIS
from fastscan.kernels.tables import form_of_row, is_table, look_up, put_back, row_of, scanned, set_aside
from fastscan.kernels.xla_hints import SUM_BLOCK, as_one_function, own_unit

Side = Literal["before", "after"]


@dataclasses.dataclass(frozen=True)
class OnXLA:
    """A plan as XLA carries it out: `Phases`, and what sweeping ahead takes beside them."""

    plan: Plan
    differentiable = True
    addressable = True

    @property
    def alone(self) -> bool:
        """Whether rows are matrices without lane axes."""
        return self.plan.chunks == 1 and self.plan.algebra in ("staged alone", "stacked alone")

    def matrices(self, tree: Any) -> Any:
        """Takes arrays (rows, columns, C or 1, B or 1) into matrices of the plan's algebra."""
        return jax.tree.map(ALGEBRAS[self.plan.algebra].from_array, tree)

    def arrays(self, tree: Any) -> Any:
        """Inverts `matrices`."""
        kind = ALGEBRAS[self.plan.algebra]
        return jax.tree.map(lambda m: m.to_array(), tree, is_leaf=lambda m: isinstance(m, kind))

    def split(self, series: Any) -> Any:
        """Takes arrays (B, T, n, p) into (L, n, p, C, B), or of a matrix alone (L, n, p). Rows past T are zero; one more row at
        the beginning is left out. Tables stay tables.
        """
        alone = self.alone  # for more axes XLA would copy

        def one(x: Any) -> Any:
            if is_table(x):
                return x.in_lanes(one(x.index), alone)
            x = x[:, x.shape[1] - self.plan.steps :]
            B, T, n, p = x.shape
            x = jnp.pad(x, ((0, 0), (0, self.plan.length * self.plan.chunks - T), (0, 0), (0, 0)))
            if alone:
                return x.reshape(T, n, p)
            return x.reshape(B, self.plan.chunks, self.plan.length, n, p).transpose(2, 3, 4, 1, 0)

        return jax.tree.map(one, series, is_leaf=is_table)

    def join(self, rows: Any, last: jax.Array | None = None) -> jax.Array:
        """Takes an array (L, n, p, C, B or 1) into (B or 1, T, n, p), and puts ``last`` (n, p, 1, B or 1) at its end."""
        plan, count = self.plan._replace(count=None), self.plan.count
        if plan.chunks * rows.shape[-1] == 1 and last is None and count is None:
            return rows.reshape(1, *rows.shape[:3])[:, : plan.steps]
        if "staged" not in self.plan.algebra:
            return _joined(plan, rows, last, count)
        with own_unit():  # or XLA:CPU puts them together anew for all that is made of them
            return jax.jit(_joined, static_argnums=0)(plan, rows, last, count)

    def total(self, rows: jax.Array) -> jax.Array:
        """Sums numbers (L, 1, 1, C, B or 1) over time to (B or 1,), without putting them into the order of time."""
        L, _, _, _, B = rows.shape
        if self.plan.chunks * B == 1:
            rows = rows.reshape(L)
            return _sum_in_blocks(rows if self.plan.count is None else jnp.where(jnp.arange(L) < self.plan.count, rows, 0))[
                None
            ]
        rows = jnp.broadcast_to(rows, (L, 1, 1, self.plan.chunks, B))[:, 0, 0]
        return where(self.present(jnp.arange(L)[:, None, None]), rows, jnp.zeros_like(rows)).sum(0).sum(0)

    @phase("summarise")
    def summarise(self, recurrence: Recurrence, params: Any, state: Any, rows: Any, *, reverse: bool = False) -> Any:
        """Folds every chunk's rows into its summary (see `Phases`)."""

        def fold(summary, row):
            x, present = row
            return where(present, recurrence.append(params, summary, self.matrices(x)), summary), None

        return self.scan_rows(fold, recurrence.identity(state), self.prepared(recurrence, rows), reverse)[0]

    def entries(self, recurrence: Recurrence, state: Any, summaries: Any, *, reverse: bool = False) -> Any:
        """Finds the state before every chunk; with ``reverse``, after it."""
        in_series_order = recurrence
        if reverse:
            in_series_order = recurrence._replace(combine=lambda left, right: recurrence.combine(right, left))
        (met,) = self.scan_summaries(in_series_order, state, summaries, "after" if reverse else "before")
        return recurrence.enter(state, met)

    def entries_and_futures(self, recurrence: Recurrence, hindsight: Hindsight, state: Any, summaries: Any) -> tuple[Any, Any]:
        """Finds the state before every chunk, and what all that follows says of the state after it."""
        past, future = self.scan_summaries(recurrence, state, summaries, "before", "after")
        return recurrence.enter(state, past), hindsight.read(future)

    @phase("scan_summaries")
    def scan_summaries(self, recurrence: Recurrence, state: Any, summaries: Any, *sides: Side) -> tuple[Any, ...]:
        """Finds, for each side asked for, every chunk's summary of all the chunks on that side of it.

        The recurrence's own time must run with the series'. One whose time runs backward has its chunks met in the other
        order: pass it with `combine`'s arguments exchanged.
        """
        C = self.plan.chunks
        summaries = jax.tree.map(lambda s: jnp.broadcast_to(s, (*s.shape[:-2], C, s.shape[-1])), summaries)

        def exclusive(side: Side, empty: jax.Array, covered: jax.Array) -> jax.Array:
            empty = jnp.broadcast_to(empty, (*covered.shape[:-2], 1, covered.shape[-1]))
            parts = (empty, covered[..., :-1, :]) if side == "before" else (covered[..., 1:, :], empty)
            return jnp.concatenate(parts, CHUNK_AXIS)

        scan = self._doubling if self.plan.scan == "doubling" else _associative
        inclusive = scan(recurrence.combine, summaries, sides)
        return tuple(
            jax.tree.map(functools.partial(exclusive, side), recurrence.identity(state), covered)
            for side, covered in zip(sides, inclusive, strict=True)
        )

    @phase("sweep", directed=True)
    def sweep(
        self,
        recurrence: Recurrence,
        params: Any,
        entries: tuple,
        rows: Any,
        *,
        begin: Callable | None = None,
        reverse: bool = False,
        room: Any = False,
        exits: bool = True,
    ) -> tuple[Any, Any]:
        """Runs the sequential recursion within every chunk (see `Phases`).

        Rows of one lane, or of a loop that is one function, are prepared as they come. A program whose work lies all in loops
        is run at once by XLA on a CPU, which counts a loop's work once; others are handed to a thread, for longer than a short
        series takes.
        """
        del room, exits
        prepare = None
        if self.plan.one_function or (self.plan.chunks == 1 and all(x.shape[-1] == 1 for x in jax.tree.leaves(rows))):
            prepare = recurrence.prepare
        else:
            rows = self.prepared(recurrence, rows)

        def step(state, row):
            x, present = row
            x = self.matrices(x)
            after, out = recurrence.step(params, state, prepare(x) if prepare else x)
            return where(present, after, state), self.arrays(out)

        state, seam, sums = begin(*entries) if begin else entries[0], recurrence.seam, recurrence.sums
        if not (self.plan.checked and self.plan.chunks > 1 and seam):
            return self.scan_rows(step, (state, sums(params, state)) if sums else state, rows, reverse)

        def with_sums(state, row):
            after, out = step(state if sums else state[0], row)
            return after if sums else (after, ()), out

        def start(state):
            if seam.guess and all(x.shape[-2] == 1 for x in jax.tree.leaves(state)):
                first = jnp.arange(self.plan.chunks)[:, None] == (self.plan.chunks - 1 if reverse else 0)
                state = where(first, state, seam.guess(state))
            return state, sums(params, state) if sums else ()

        after, outputs = relay.sweep(self, seam, with_sums, start, state, rows, reverse=reverse)
        return after if sums else after[0], outputs

    def row(self, rows: Any, t: Any) -> tuple[Any, jax.Array | None]:
        """Returns one row of every chunk, and where it is one."""
        return row_of(rows, t), self.present(t)

    def each_row(self, name: str, function: Callable, series: tuple) -> Any:
        """Applies a function of matrices to every row by itself; ``name`` is for kernels."""
        del name
        one_row = all(x.shape[1] == 1 for x in jax.tree.leaves(series))
        by = self if one_row else OnXLA(self.plan.in_lanes)

        def rows(series: tuple) -> Any:
            return as_rows(by.arrays(function(*by.matrices(as_lanes(series)))))

        return (self.compiled(rows) if one_row else rows)(series)

    def prepared(self, recurrence: Recurrence, rows: Any) -> Any:
        """Prepares rows for the recurrence's `append`, and its `step`."""
        prepare = recurrence.prepare
        if prepare is None:
            return rows
        tables, rows = set_aside(rows)
        return put_back(tables, jax.vmap(lambda x: self.arrays(prepare(self.matrices(x))))(rows))

    def scan_rows(self, body: Callable, carry: Any, rows: Any, reverse: bool) -> tuple[Any, Any]:
        """Scans the chunks' rows by ``body(carry, (row, present)) -> (carry, outputs)``; as `split` has rows.

        Reverse mode keeps the carries, looks up anew what rows take from tables, and computes the rest of a step anew.
        """
        rows = rows, self.present(jnp.arange(self.plan.length)[:, None, None])
        carry = stable_carry(body, carry, form_of_row(rows))
        if self.plan.length == 1:
            carry, outs = body(carry, row_of(rows, 0))
            return carry, jax.tree.map(lambda x: x[None], outs)

        def scan(carry: Any, rows: Any) -> tuple[Any, Any]:
            arrays = scanned(rows)
            shapes = [x.shape[1:] for x in jax.tree.leaves(arrays)]

            def one(carry: Any, row: Any) -> tuple[Any, Any]:
                leaves, tree = jax.tree.flatten(row)
                row = tree.unflatten(x.reshape(shape) for x, shape in zip(leaves, shapes, strict=True))
                return body(carry, look_up(rows, row))

            if self.alone:
                arrays = jax.tree.map(_without_ones, arrays)
            return lax.scan(jax.checkpoint(one, prevent_cse=False), carry, arrays, self.plan.length, reverse)

        return self.compiled(scan)(carry, rows)

    def compiled(self, scan: Callable) -> Callable:
        """Returns a loop, a function of its state and more arrays, compiled as the plan says: to one function, or not."""
        return as_one_function(scan) if self.plan.one_function else scan

    def present(self, row: Any) -> jax.Array | None:
        """Tells in which chunks a row is not padding (..., C, 1), for a number or (..., 1, 1) of them; None if none ever is."""
        steps = self.plan.steps if self.plan.count is None else self.plan.count
        return jnp.arange(self.plan.chunks)[:, None] * self.plan.length + row < steps if self.plan.padded else None

    def _doubling(self, combine: Callable, summaries: Any, sides: tuple[Side, ...]) -> list[Any]:
        """Scans as Hillis & Steele do, all sides in one `combine`: after round k, an element covers the 2^k nearest chunks."""
        chunks = self.plan.chunks
        index = jnp.arange(chunks)[:, None]

        def concatenate(trees: list[Any]) -> Any:
            return jax.tree.map(lambda *xs: jnp.concatenate(xs, CHUNK_AXIS), *trees)

        def round_(k, covered: list[Any]) -> list[Any]:
            distance = jnp.left_shift(1, k)
            lefts, rights, reaches = [], [], []
            for side, nearer in zip(sides, covered, strict=True):
                before = side == "before"
                shift = distance if before else -distance
                further = jax.tree.map(lambda s, shift=shift: jnp.roll(s, shift, CHUNK_AXIS), nearer)
                lefts.append(further if before else nearer)
                rights.append(nearer if before else further)
                reaches.append(index >= distance if before else index < chunks - distance)
            combined = combine(concatenate(lefts), concatenate(rights))
            parts = [jax.tree.map(lambda x, n=n: x[..., n * chunks : (n + 1) * chunks, :], combined) for n in range(len(sides))]
            return [where(*args) for args in zip(reaches, parts, covered, strict=True)]

        start = stable_carry(lambda c, k: (round_(k, c), None), [summaries] * len(sides), jnp.int32(0))
        rounds = (chunks - 1).bit_length()
        return self.compiled(lambda start: lax.fori_loop(0, rounds, round_, start))(start)


def _without_ones(rows: jax.Array) -> jax.Array:
    """Returns rows without axes of one, for which XLA:CPU gives rows another layout outside of a loop, and copies them into
    it.
    """
    return rows.reshape(len(rows), *(n for n in rows.shape[1:] if n > 1))


def where(present: jax.Array | None, new: Any, old: Any) -> Any:
    """Takes the new state or summary in the lanes (C, 1) that are present, the old one in others."""
    if present is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(present, n, o), new, in_form_of(old, new))


def _joined(plan: Plan, rows: jax.Array, last: jax.Array | None, count: jax.Array | None) -> jax.Array:
    L, n, p, _, B = rows.shape
    x = jnp.broadcast_to(rows, (L, n, p, plan.chunks, B))
    x = x.transpose(4, 3, 0, 1, 2).reshape(B, L * plan.chunks, n, p)[:, : plan.steps]
    if last is None:
        return x
    B = max(B, last.shape[-1])
    x, last = (jnp.broadcast_to(x, (B, *x.shape[1:])) for x in (x, as_rows(last)))
    x = jnp.concatenate([x, last], 1)
    return x if count is None else lax.dynamic_update_slice_in_dim(x, last, count, 1)


def _sum_in_blocks(numbers: jax.Array, block: int = SUM_BLOCK) -> jax.Array:
    """Sums numbers by work that lies within a loop: see `OnXLA.sweep`."""
    whole = len(numbers) // block * block
    if not whole:
        return numbers.sum()  # as `jax.disable_jit` knows no loop of no steps
    blocks = numbers[:whole].reshape(-1, block)
    return lax.scan(lambda total, x: (total + x.sum(), None), numbers[whole:].sum(), blocks)[0]


def _associative(combine: Callable, summaries: Any, sides: tuple[Side, ...]) -> list[Any]:
    axis = jax.tree.leaves(summaries)[0].ndim + CHUNK_AXIS

    def after(further, nearer):
        return combine(nearer, further)

    return [
        lax.associative_scan(combine if side == "before" else after, summaries, reverse=side == "after", axis=axis)
        for side in sides
    ]
