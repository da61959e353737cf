"""A recurrence's phases as GPU kernels: a lane, a thread or for large models a whole program, owns a chunk of a sequence.

Here everything is held as series are, (B or 1, rows, n, p): summaries and states have one row a chunk, parameters one row
in all. The C summaries are scanned as what they are, a shorter series: lanes fold them in groups into fewer and fewer, until
one lane can go through the rest; then back down, every level's states from the one above.

A kernel is named after its recurrence and its phase, as in ``kalman_filter_sweep``.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import Stacked
from fastscan.kernels.arrays import as_lanes, as_rows
from fastscan.kernels.gpu.arithmetic import matrix_kind
from fastscan.kernels.gpu.blocks import Traced
from fastscan.kernels.gpu.launch import Program, form, launch, spread
from fastscan.kernels.gpu.matrix_arrays import Kind
from fastscan.kernels.plan import Plan
from fastscan.kernels.ranges import phase
from fastscan.kernels.scan.recurrence import Hindsight, Recurrence, Seam, of_hindsight, of_summaries
from fastscan.kernels.scan.seams import facing, neighbours, tolerance
from fastscan.kernels.tables import is_table


@dataclasses.dataclass(frozen=True)
class OnGPU:
    """A plan as GPU kernels carry it out: `Phases`."""

    plan: Plan
    differentiable = False

    @property
    def addressable(self) -> bool:
        """Whether columns are told by a computed number: of matrices that whole programs hold."""
        return self.plan.kernels.whole

    def matrices(self, tree: Any) -> Any:
        """Takes arrays (n, p, C or 1, B or 1) into (B or 1, C or 1, n, p)."""
        return as_rows(tree)

    def arrays(self, tree: Any) -> Any:
        """Inverts `matrices`."""
        return as_lanes(tree)

    def split(self, series: Any) -> Any:
        """Returns the series itself: lanes find their rows, and what these take from tables. With Mosaic a lane can't: tables
        are looked up before.
        """
        if self.plan.kernels.lowering == "triton":
            return series
        return jax.tree.map(lambda x: x.series() if is_table(x) else x, series, is_leaf=is_table)

    def join(self, rows: Any, last: Any = None) -> Any:
        """Returns rows (B, T, n, p) as they are. With ``last``, they were left ``room`` in, which it fills, in place."""
        return rows if last is None else rows.at[:, -1:].set(as_rows(last))

    def total(self, rows: jax.Array) -> jax.Array:
        """Sums numbers (B, T, 1, 1) over time to (B,)."""
        return rows[:, :, 0, 0].sum(1)

    @phase("summarise")
    @functools.partial(jax.jit, static_argnames=("self", "recurrence", "reverse"))
    def summarise(self, recurrence: Recurrence, params: Any, state: Any, rows: Any, *, reverse: bool = False) -> Any:
        """Folds every chunk's rows into its summary, (B, C, n, p) (see `Phases`)."""
        empty = functools.partial(_empty_summary, matrix_kind(self.plan.kernels), recurrence, state)
        append = _of_row(recurrence, "append")

        def kernel(program: Program) -> None:
            params = program.once(0)
            program.write(
                0, program.loop(lambda s, x: (program.compute(append, params(), s, x), None), empty(), 1, None, reverse)
            )

        after = append.form(form(self.plan, params), spread(self.plan, jax.eval_shape(empty)), form(self.plan, rows))
        inputs: list[tuple[Kind, Any]] = [("once", params), ("step", rows)]
        return launch(self.plan, f"{recurrence.name}_summarise", kernel, inputs, [("chunk", after, False)])[0]

    @phase("scan_summaries")
    def entries(self, recurrence: Recurrence, state: Any, summaries: Any, *, reverse: bool = False) -> Any:
        """Finds the state before every chunk, (B, C, n, p); with ``reverse``, after it."""
        ladder = _ladder(self.plan, recurrence, state, summaries, reverse)
        return _descend(ladder, of_summaries(recurrence), state, reverse)

    @phase("scan_summaries")
    def entries_and_futures(self, recurrence: Recurrence, hindsight: Hindsight, state: Any, summaries: Any) -> tuple[Any, Any]:
        """Finds the state before every chunk, and what all that follows says of the state after it."""
        ladder = _ladder(self.plan, recurrence, state, summaries, False)
        back = of_hindsight(recurrence, hindsight)
        empty = recurrence.identity(jax.tree.map(lambda x: Stacked(jnp.zeros((*x.shape[2:], 1, 1), x.dtype)), state))
        nothing = as_rows(jax.tree.map(lambda m: m.array, hindsight.read(empty), is_leaf=lambda m: isinstance(m, Stacked)))
        return _descend(ladder, of_summaries(recurrence), state, False), _descend(ladder, back, nothing, True)

    @phase("sweep", directed=True)
    @functools.partial(jax.jit, static_argnames=("self", "recurrence", "begin", "reverse", "room", "exits"))
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

        Returns:
            The states after every chunk (B, C, n, p), with its sums if there are any, or None without ``exits``; and the
            outputs (B, T, n, p), or (B, T + 1, n, p) with ``room``.
        """
        # a kernel of its own: how long one takes to compile grows much faster than its text
        state = entries[0] if begin is None else self.each_row(f"{recurrence.name}_begin", begin, entries)
        step, sums = _of_row(recurrence, "step"), recurrence.sums
        seam = recurrence.seam if self.plan.checked and self.plan.chunks > 1 else None
        exits = exits or seam is not None

        def with_sums(params: Any, state: Any) -> Any:
            return (state, sums(params, state)) if sums else state

        def kernel(program: Program) -> None:
            params, state = program.once(0, anew=True), program.read(2)
            after = program.loop(lambda s, x: program.compute(step, params(), s, x), with_sums(params(), state), 1, 0, reverse)
            if exits:
                program.write(1, after)

        of_params, of_state, of_rows = form(self.plan, (params, state, rows))
        forms = step.form(of_params, jax.eval_shape(with_sums, of_params, of_state), of_rows)
        outputs: list[tuple[Kind, Any, Any]] = [("step", forms[1], room)]
        if exits:
            outputs.append(("chunk", forms[0], False))

        @jax.jit  # is traced and lowered once, though called twice
        def sweep_from(state: Any) -> Any:
            inputs: list[tuple[Kind, Any]] = [("once", params), ("step", rows), ("chunk", state)]
            return launch(self.plan, f"{recurrence.name}_sweep", kernel, inputs, outputs)

        if seam is None:
            outs, *after = sweep_from(state)
            return (after[0] if exits else None), outs
        # the first time outside of the loop, which then needs no arrays to begin with: they would be written in vain
        return _until_seams_hold(recurrence, seam, sweep_from, state, reverse)

    @functools.partial(jax.jit, static_argnames=("self", "name", "function"))
    def each_row(self, name: str, function: Callable, series: Any) -> Any:
        """Applies a function of matrices to every row by itself: (B or 1, rows, n, p) in and out."""
        rows = max(x.shape[1] for x in jax.tree.leaves(series))
        plan = self.plan._replace(steps=rows, chunks=rows)
        series = jax.tree.map(lambda x: jnp.broadcast_to(x, (x.shape[0], rows, *x.shape[2:])), series)
        traced = _traced(function)
        out = traced.form(*form(plan, series))

        def kernel(program: Program) -> None:
            program.write(0, program.compute(traced, *program.read(0)))

        return launch(plan, name, kernel, [("chunk", series)], [("chunk", out, False)])[0]


_traced = functools.cache(Traced)


@functools.cache
def _of_row(recurrence: Recurrence, name: str) -> Traced:
    """Returns one of the functions of a row as it is read."""
    function, prepare = getattr(recurrence, name), recurrence.prepare
    return Traced(function if prepare is None else lambda params, state, x: function(params, state, prepare(x)))


def _ladder(plan: Plan, recurrence: Recurrence, state: Any, summaries: Any, reverse: bool) -> list[tuple[Plan, Any]]:
    """Summarises chunks, groups of chunks, groups of groups..., each with the plan that goes through them."""
    how = plan.kernels
    plan = plan._replace(launch=how._replace(warps=how.warps_of_summaries or how.warps))
    group, steps, ladder = how.group, plan.chunks, []
    while steps > group:
        level = plan._replace(steps=steps, chunks=-(-steps // group))
        ladder.append((level, summaries))
        summaries = _fold(level, of_summaries(recurrence), state, summaries, reverse=reverse)
        steps = level.chunks
    return [*ladder, (plan._replace(steps=steps, chunks=1), summaries)]


def _descend(ladder: list, recurrence: Recurrence, state: Any, reverse: bool) -> Any:
    """Computes the states before all the summaries of the first level, from the one before everything."""
    for level, summaries in reversed(ladder):
        state = _states_before(level, recurrence, state, summaries, reverse=reverse)
    return state


@phase("summarise")
@functools.partial(jax.jit, static_argnames=("plan", "recurrence", "reverse"))
def _fold(plan: Plan, recurrence: Recurrence, state: Any, summaries: Any, *, reverse: bool) -> Any:
    """Folds every chunk of summaries into one. The first is what they begin with; the last may lie past the series' end."""
    append = _of_row(recurrence, "append")

    def kernel(program: Program) -> None:
        first = _empty_summary(matrix_kind(plan.kernels), recurrence, state) if reverse else program.read(0, np.int32(0))

        def step(summary: Any, x: Any) -> tuple[Any, None]:
            return program.compute(append, (), summary, x), None

        program.write(0, program.loop(step, first, 0, None, reverse, begun=int(not reverse)))

    row = form(plan, summaries)
    folded: tuple[Kind, Any, Any] = "chunk", append.form((), row, row), False
    return launch(plan, f"{recurrence.name}_summarise", kernel, [("step", summaries)], [folded])[0]


@phase("sweep", directed=True)
@functools.partial(jax.jit, static_argnames=("plan", "recurrence", "reverse"))
def _states_before(plan: Plan, recurrence: Recurrence, state: Any, summaries: Any, *, reverse: bool) -> Any:
    """Computes the states before all summaries of every chunk, from the one before it; in reverse, those after them."""
    step = _of_row(recurrence, "step")

    def kernel(program: Program) -> None:
        program.entries(lambda s, x: program.compute(step, (), s, x)[0], program.read(1), 0, 0, reverse)

    before = step.form((), *form(plan, (state, summaries)))[1]
    inputs: list[tuple[Kind, Any]] = [("step", summaries), ("chunk", state)]
    return launch(plan, f"{recurrence.name}_sweep", kernel, inputs, [("step", before, False)])[0]


def _empty_summary(kind: Any, recurrence: Recurrence, state: Any) -> Any:
    """Makes the summary of an empty stretch, of matrices of a kind."""
    return recurrence.identity(jax.tree.map(lambda x: kind.zeros(*x.shape[2:], x.dtype), state))


def _until_seams_hold(recurrence: Recurrence, seam: Seam, sweep: Callable, state: Any, reverse: bool) -> tuple[Any, Any]:
    """Sweeps as often as it takes until chunks fit together."""

    def left(after: Any) -> Any:
        return as_lanes(after[0] if recurrence.sums else after)

    def fit(entered: Any, left: Any) -> jax.Array:
        apart = seam.apart(entered, left)
        return apart <= tolerance(apart.dtype)

    def looked_at(state: Any) -> tuple[Any, Any, jax.Array]:
        outs, after = sweep(state)
        return state, (outs, after), ~fit(*facing(as_lanes(state), left(after), reverse=reverse))

    def again(carry: tuple[Any, Any, jax.Array]) -> tuple[Any, Any, jax.Array]:
        state, (_, after), _ = carry
        return looked_at(as_rows(neighbours(as_lanes(state), left(after), reverse=reverse)))

    _, (outs, after), _ = lax.while_loop(lambda carry: carry[2], again, looked_at(state))
    return after, outs
