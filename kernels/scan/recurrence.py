"""The protocol every model here is written in: a recurrence over time as five small functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple


class Recurrence(NamedTuple):
    """A model as the drivers know it: functions of the numbers of one lane as time passes.

    Every function takes and returns pytrees of `algebra.Matrix`. ``x`` holds one step's inputs, ``params`` what is the
    same at every step. A *summary* stands for a stretch of time whose state before it is not known yet.

    Attributes:
        name: for kernels and errors.
        identity: ``(state) -> summary`` of an empty stretch, for states like this one.
        append: ``(params, summary, x) -> summary`` with one more step.
        combine: ``(left, right) -> summary`` of one stretch and the next; associative.
        enter: ``(state, summary) -> state`` after a stretch, from the state before it.
        step: ``(params, state, x) -> (state, output)``, the sequential recursion.
        prepare: ``(x) -> x``, what can be known of one step's inputs by themselves; `append` and `step` get its result.
            XLA runs it for all steps at once, before its loops, a kernel where it reads them. What rows take from tables, it
            passes on as it is.
        seam: how to tell that chunks fit together, for models whose summaries may hold less than their states.
        sums: ``(params, state) -> sums``, zeros, of what a sweep adds up over a chunk's rows beside its state: `step` then
            takes and returns ``(state, sums)``. A kernel has them in no memory before the chunk's end.
    """

    name: str
    identity: Callable[[Any], Any]
    append: Callable[[Any, Any, Any], Any]
    combine: Callable[[Any, Any], Any]
    enter: Callable[[Any, Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    prepare: Callable[[Any], Any] | None = None
    seam: "Seam | None" = None
    sums: Callable[[Any, Any], Any] | None = None


class Seam(NamedTuple):
    """Where two chunks meet (see the modules `seams` and `relay`).

    Attributes:
        apart: ``(entered, left) -> number``, how far the states that chunks are entered with are from those that their
            neighbours are left with, at most; of arrays (rows, columns, C, B or 1).
        guess: ``(state) -> state`` that a chunk may be entered with as long as nothing is known, from the one where time
            begins, for models that forget; None for others, whose entry states come from summaries.
    """

    apart: Callable[[Any, Any], Any]
    guess: Callable[[Any], Any] | None = None


class InChunks(NamedTuple):
    """A recurrence over chunks whose entry states are known.

    Attributes:
        recurrence: what to run; the first field of its state is that of the recurrence that is summarised, if it has more.
        begin: ``(state) -> state`` at a chunk's beginning.
    """

    recurrence: Recurrence
    begin: Callable[[Any], Any]


class Hindsight(NamedTuple):
    """The two functions of summaries for passes that come back through a series: what a stretch of time says of the state
    before it.

    Attributes:
        read: ``(summary) -> message``, what the stretch itself says of the state before it.
        retreat: ``(message, summary) -> message`` of the stretch and all that follows, from what follows it.
    """

    read: Callable[[Any], Any]
    retreat: Callable[[Any, Any], Any]


@functools.cache
def of_summaries(recurrence: Recurrence) -> Recurrence:
    """Makes the recurrence whose rows are summaries of another, in that one's order, and whose outputs are the states before
    them.
    """
    return recurrence._replace(
        name=f"{recurrence.name}_summaries",
        append=lambda _, summary, x: recurrence.combine(summary, x),
        step=lambda _, state, x: (recurrence.enter(state, x), state),
        prepare=None,
        seam=None,
        sums=None,
    )


@functools.cache
def of_hindsight(recurrence: Recurrence, hindsight: Hindsight) -> Recurrence:
    """Makes the sequential recursion back through summaries, whose outputs are the messages from all that follows them."""
    step = functools.partial(_retreat, hindsight)
    return of_summaries(recurrence)._replace(name=f"{recurrence.name}_hindsight", step=step)


def _retreat(hindsight: Hindsight, _: Any, message: Any, x: Any) -> tuple[Any, Any]:
    return hindsight.retreat(message, x), message


def merge(params: Any, x: Any) -> Any:
    """Merges one step's inputs, from a container with those that are the same at every step and one with the step's own.

    Both are the same NamedTuple; a field is None in the one that does not hold it.
    """
    return type(params)(*(p if v is None else v for p, v in zip(params, x, strict=True)))
