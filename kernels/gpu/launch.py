"""Kernels on a GPU: what a program of a kernel reads, loops over and writes.

A lane owns chunk c of sequence b. Every array of matrices is (batch, rows, n, p) to those who launch; a lane's row is the
only one, its chunk's, or one of its chunk's rows for every step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import stable_carry, varying
from fastscan.kernels.arrays import form_varying
from fastscan.kernels.gpu.blocks import Traced
from fastscan.kernels.gpu.layouts import layout
from fastscan.kernels.gpu.matrix_arrays import MOST_ROWS, Kind, MatrixArray, is_matrix, is_matrix_array
from fastscan.kernels.plan import Plan
from fastscan.kernels.tables import is_table, values_of


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
        outputs: which rows a lane writes, a tree of matrices, and a tree of whether a row is left free at the end.

    Returns:
        Trees of arrays (B, rows, n, p). In interpret mode, what no lane wrote is NaN.
    """
    arrays = jax.tree.leaves([tree for _, tree in inputs])
    B = max((x.shape[0] for x in arrays), default=1)
    lying = layout(plan, B)
    sources = [jax.tree.map(functools.partial(MatrixArray.of, kind), tree) for kind, tree in inputs]
    targets = [_arrays(plan, B, *output) for output in outputs]
    own = lying.inputs()
    reads, writes = (jax.tree.leaves(trees, is_leaf=is_matrix_array) for trees in (sources, targets))

    _check_rows(B, [*reads, *writes])

    def program(*refs: Any) -> None:
        remaining = iter(refs)
        lying.enter([next(remaining) for _ in own])
        pairs = [jax.tree.map(lambda t: (t, next(remaining)), trees, is_leaf=is_matrix_array) for trees in (sources, targets)]
        kernel(Program(plan, lying, *pairs))

    operands = [*own, *(lying.pack(t, x) for t, x in zip(reads, arrays, strict=True))]
    axes = frozenset().union(*map(varying, operands))
    shapes = [form_varying(axes, lying.shape(t), t.dtype) for t in writes]
    results = lying.run(name, program, operands, shapes)
    results = [lying.unpack(t, x) for t, x in zip(writes, results, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(targets, is_leaf=is_matrix_array), results)


def _check_rows(B: int, arrays: Sequence[MatrixArray]) -> None:
    rows = max((array.rows for array in arrays), default=0)
    if B * rows > MOST_ROWS:
        raise ValueError(
            f"{B:,} sequences of {rows:,} rows given, for a kernel, which numbers at most {MOST_ROWS:,} rows in all. "
            "Take fewer sequences at a time, or implementation='chunked'."
        )


def form(plan: Plan, tree: Any) -> Any:
    """Returns the form of what lanes read of a tree of arrays (batch, rows, n, p), without the numbers."""
    return jax.tree.map(lambda x: MatrixArray.of("once", values_of(x)).matrix(plan.kernels), tree, is_leaf=is_table)


def spread(plan: Plan, tree: Any) -> Any:
    """Returns the form of matrices as loops carry them: what is one number for all lanes is a number for each."""
    lanes = plan.kernels.lanes
    return jax.tree.map(lambda x: x if plan.kernels.whole else jax.ShapeDtypeStruct((lanes,), x.dtype), tree)


class Program:
    """One program of a kernel, which works for its lanes; they are vectors here."""

    def __init__(self, plan: Plan, layout: Any, sources: Sequence[Any], targets: Sequence[Any]):
        self.plan, self.layout, self.sources, self.targets = plan, layout, sources, targets
        self.now: Any = None  # the row that a loop is at

    def loop(self, step: Callable, carry: Any, source: int, target: int | None, reverse: bool, begun: int = 0) -> Any:
        """Loops with ``step(carry, x) -> (carry, out)`` over a chunk's rows, which are read from one tree and written to
        another; over those after the first ``begun``.
        """

        def write(t: Any, out: Any, after: Any) -> None:
            del after
            if target is not None:
                self.write(target, out, t)

        return self._through(step, carry, source, reverse, self.plan.length - begun, begun, write)

    def entries(self, enter: Callable, state: Any, source: int, target: int, reverse: bool) -> None:
        """Writes the states before all of a chunk's rows, with ``enter(state, x) -> state`` after one."""
        L, ahead = self.plan.length, np.int32(-1 if reverse else 1)
        self.write(target, state, np.int32(L - 1 if reverse else 0))

        def write(t: Any, out: Any, after: Any) -> None:
            del out
            self.write(target, after, t + ahead)

        self._through(lambda state, x: (enter(state, x), None), state, source, reverse, L - 1, 0, write)

    def _through(self, step: Callable, carry: Any, source: int, reverse: bool, rows: int, begun: int, write: Callable) -> Any:
        """Loops over so many of a chunk's rows, after the first ``begun``; ``write(t, out, carry)`` at each."""

        def each(carry: Any) -> Any:
            return jax.tree.map(self.layout.spread, carry)

        def at(k: Any, carry: Any) -> Any:
            t = np.int32(self.plan.length - 1 - begun) - k if reverse else k + np.int32(begun)
            self.now = t
            after, out = step(carry, self.read(source, t))
            self.now = None
            if self.plan.padded:
                present = self.layout.present(t)
                after = jax.tree.map(lambda a, c: jnp.where(present, a, c), after, carry)
            write(t, out, after)
            return each(after)

        if rows == 0:
            return carry
        row = jax.tree.map(lambda x: values_of(x)[0].matrix(self.plan.kernels), self.sources[source], is_leaf=_is_source)
        carry = each(stable_carry(step, each(carry), row))
        return at(np.int32(0), carry) if rows == 1 else lax.fori_loop(np.int32(0), np.int32(rows), at, carry)

    def compute(self, function: Traced, *arguments: Any) -> Any:
        """Calls a function of trees of matrices, in the form that takes least time to compile."""
        return self.layout.compute(function, *arguments)

    def read(self, number: int, t: Any = None) -> Any:
        """Reads a tree of matrices; ``t`` is the step within the chunk."""

        def one(source: Any) -> Any:
            row = self.layout.number(*source.index, t) if is_table(source) else None
            return self.layout.read(*values_of(source), t, row)

        return jax.tree.map(one, self.sources[number], is_leaf=_is_source)

    def once(self, number: int, *, anew: bool = False) -> Callable[[], Any]:
        """Returns what reads a tree that is the same at every step: now, or wherever it is used. If ``anew``, addresses are
        computed there, too, and not held in registers.
        """
        if len(jax.tree.leaves(self.sources[number], is_leaf=_is_source)) > self.layout.resident:
            return lambda: self.read(number, self.now if anew else None)
        tree = self.read(number)
        return lambda: tree

    def write(self, number: int, tree: Any, t: Any = None) -> None:
        """Writes a tree of matrices, as `read` reads it."""
        jax.tree.map(lambda matrix, pair: self.layout.write(*pair, t, matrix), tree, self.targets[number], is_leaf=is_matrix)


def _arrays(plan: Plan, B: int, kind: Kind, forms: Any, room: Any) -> Any:
    """Describes the arrays that the matrices of ``forms`` go to."""
    rows = plan.chunks if kind == "chunk" else plan.steps
    matrices, tree = jax.tree.flatten(forms, is_leaf=is_matrix)
    rooms = jax.tree.leaves(jax.tree.broadcast(room, jax.tree.unflatten(tree, [0] * len(matrices))))
    arrays = [
        MatrixArray(kind, B, rows + free, m.shape[0], m.shape[1], m.dtype) for m, free in zip(matrices, rooms, strict=True)
    ]
    return jax.tree.unflatten(tree, arrays)


def _is_source(x: Any) -> bool:
    return is_table(x) or (isinstance(x, tuple) and len(x) == 2 and is_matrix_array(x[0]))
