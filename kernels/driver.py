"""Ways to run a recurrence. They know it by its five functions only.

All of them cut time into C chunks of L rows, one lane each, and differ in C: one chunk is the sequential recursion, one
row a chunk the textbook parallel form, and in between the work is L vectorised steps over C lanes, twice.

1. *summarise*: fold `append` over every chunk's rows;
2. *scan* the C summaries and `enter` each chunk: its entry state;
3. *sweep*: run `step` over every chunk's rows, from its entry state.

Series are pytrees of arrays of shape ``(B or 1, T, rows, columns)``; states and summaries are pytrees of matrices whose
lanes are (C or 1, B or 1). Lane axes broadcast: what does not differ between chunks or sequences is computed once.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import ALGEBRAS, stable_carry
from fastscan.kernels.recurrence import Recurrence

CHUNK_AXIS = -2
Side = Literal["before", "after"]


class Plan(NamedTuple):
    """How to run a recurrence over a series.

    Attributes:
        steps: T, rows of the series.
        chunks: C; chunk c holds rows c L to (c + 1) L - 1 with L = ceil(T / C).
        scan: of the summaries: "associative" is `lax.associative_scan`; "doubling" does log2 C rounds of a loop of
            constant shape, compiled once.
        algebra: a key of `algebra.ALGEBRAS`.
    """

    steps: int
    chunks: int
    scan: Literal["associative", "doubling"] = "doubling"
    algebra: str = "stacked"

    @property
    def length(self) -> int:
        """L, the rows of a chunk."""
        return -(-self.steps // self.chunks)

    @property
    def padded(self) -> bool:
        """Whether the last chunks hold rows past T."""
        return self.length * self.chunks > self.steps


def matrices(plan: Plan, arrays: Any) -> Any:
    """Arrays of shape (rows, columns, chunk lanes, sequence lanes) as matrices of the plan's algebra."""
    return jax.tree.map(ALGEBRAS[plan.algebra].from_array, arrays)


def arrays(plan: Plan, tree: Any) -> Any:
    """The inverse of `matrices`."""
    kind = ALGEBRAS[plan.algebra]
    return jax.tree.map(lambda m: m.to_array(), tree, is_leaf=lambda m: isinstance(m, kind))


def split(plan: Plan, series: Any) -> Any:
    """(B, T, n, p) to (L, n, p, C, B). Rows past T are zero."""

    def one(x: jax.Array) -> jax.Array:
        B, T, n, p = x.shape
        x = jnp.pad(x, ((0, 0), (0, plan.length * plan.chunks - T), (0, 0), (0, 0)))
        return x.reshape(B, plan.chunks, plan.length, n, p).transpose(2, 3, 4, 1, 0)

    return jax.tree.map(one, series)


def join(plan: Plan, rows: Any) -> Any:
    """(L, n, p, C, B) to (B, T, n, p), as `split` had it."""

    def one(x: jax.Array) -> jax.Array:
        L, n, p, _, B = x.shape
        x = jnp.broadcast_to(x, (L, n, p, plan.chunks, B))
        return x.transpose(4, 3, 0, 1, 2).reshape(B, L * plan.chunks, n, p)[:, : plan.steps]

    return jax.tree.map(one, rows)


def summarise(plan: Plan, recurrence: Recurrence, params: Any, state: Any, rows: Any, *, reverse: bool = False) -> Any:
    """Every chunk's summary.

    Args:
        plan: as everywhere.
        recurrence: whose `append` is folded.
        params: matrices.
        state: any state, for its sizes and dtype.
        rows: as `split` returns them.
        reverse: fold from a chunk's last row to its first.
    """

    def fold(summary, row):
        x, present = row
        return _where(present, recurrence.append(params, summary, matrices(plan, x)), summary), None

    return _loop(plan, fold, recurrence.identity(state), rows, reverse)[0]


def scan_summaries(plan: Plan, recurrence: Recurrence, state: Any, summaries: Any, *sides: Side) -> tuple[Any, ...]:
    """For each side asked for: every chunk's summary of all the chunks on that side of it.

    The recurrence's own time must run with the series'. One whose time runs backward has its chunks met in the other
    order: pass it with `combine`'s arguments exchanged, as `run` does.
    """
    C = plan.chunks
    summaries = jax.tree.map(lambda s: jnp.broadcast_to(s, (*s.shape[:-2], C, s.shape[-1])), summaries)

    def exclusive(side: Side, empty: jax.Array, covered: jax.Array) -> jax.Array:
        empty = jnp.broadcast_to(empty, (*covered.shape[:-2], 1, covered.shape[-1]))
        parts = (empty, covered[..., :-1, :]) if side == "before" else (covered[..., 1:, :], empty)
        return jnp.concatenate(parts, CHUNK_AXIS)

    inclusive = _SCANS[plan.scan](recurrence.combine, summaries, C, sides)
    return tuple(
        jax.tree.map(functools.partial(exclusive, side), recurrence.identity(state), covered)
        for side, covered in zip(sides, inclusive, strict=True)
    )


def sweep(
    plan: Plan, recurrence: Recurrence, params: Any, entries: Any, rows: Any, *, reverse: bool = False
) -> tuple[Any, Any]:
    """The sequential recursion within every chunk.

    Args:
        plan: as everywhere.
        recurrence: whose `step` is run.
        params: matrices.
        entries: every chunk's entry state.
        rows: as `split` returns them.
        reverse: go from a chunk's last row to its first.

    Returns:
        The states after every chunk, and the outputs of all rows as arrays of shape (L, n, p, C or 1, B or 1).
    """

    def step(state, row):
        x, present = row
        after, out = recurrence.step(params, state, matrices(plan, x))
        return _where(present, after, state), arrays(plan, out)

    return _loop(plan, step, entries, rows, reverse)


def run(plan: Plan, recurrence: Recurrence, params: Any, state: Any, series: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """A recurrence over a series.

    Args:
        plan: C and how to scan.
        recurrence: what to run.
        params: arrays (rows, columns, 1, B or 1).
        state: the state before the first row (with ``reverse``, after the last): arrays (rows, columns, 1, B or 1).
        series: arrays (B or 1, T, rows, columns).
        reverse: time runs from the series' end to its beginning.

    Returns:
        The last state, arrays (rows, columns, 1, B or 1), and the outputs (B or 1, T, rows, columns).
    """
    params, state, rows = matrices(plan, params), matrices(plan, state), split(plan, series)
    entries = state
    if plan.chunks > 1:
        summaries = summarise(plan, recurrence, params, state, rows, reverse=reverse)
        in_series_order = recurrence
        if reverse:
            in_series_order = recurrence._replace(combine=lambda left, right: recurrence.combine(right, left))
        (met,) = scan_summaries(plan, in_series_order, state, summaries, "after" if reverse else "before")
        entries = recurrence.enter(state, met)
    exits, outs = sweep(plan, recurrence, params, entries, rows, reverse=reverse)
    last = slice(None, 1) if reverse else slice(-1, None)
    return jax.tree.map(lambda x: x[..., last, :], arrays(plan, exits)), join(plan, outs)


def _loop(plan: Plan, body: Callable, carry: Any, rows: Any, reverse: bool) -> tuple[Any, Any]:
    present = None
    if plan.padded:
        index = jnp.arange(plan.chunks) * plan.length + jnp.arange(plan.length)[:, None]
        present = (index < plan.steps)[:, :, None]
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (rows, present))
    carry = stable_carry(body, carry, first)
    if plan.length == 1:
        carry, outs = body(carry, jax.tree.map(lambda x: x[0], (rows, present)))
        return carry, jax.tree.map(lambda x: x[None], outs)
    return lax.scan(body, carry, (rows, present), plan.length, reverse)


def _where(present: jax.Array | None, new: Any, old: Any) -> Any:
    if present is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(present, n, o), new, old)


def _associative(combine: Callable, summaries: Any, chunks: int, sides: tuple[Side, ...]) -> list[Any]:
    del chunks
    axis = jax.tree.leaves(summaries)[0].ndim + CHUNK_AXIS

    def after(further, nearer):
        return combine(nearer, further)

    return [
        lax.associative_scan(combine if side == "before" else after, summaries, reverse=side == "after", axis=axis)
        for side in sides
    ]


def _doubling(combine: Callable, summaries: Any, chunks: int, sides: tuple[Side, ...]) -> list[Any]:
    """Hillis & Steele's scan, all sides in one `combine`: after round k, an element covers the 2^k nearest chunks."""
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
        return [_where(*args) for args in zip(reaches, parts, covered, strict=True)]

    start = stable_carry(lambda c, k: (round_(k, c), None), [summaries] * len(sides), jnp.int32(0))
    return lax.fori_loop(0, (chunks - 1).bit_length(), round_, start)


_SCANS = {"associative": _associative, "doubling": _doubling}
