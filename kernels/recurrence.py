"""The protocol every model here is written in: a recurrence over time as five small functions."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Recurrence(NamedTuple):
    """What the numbers of one lane do as time passes; the drivers know a model by nothing else.

    Every function takes and returns pytrees of `algebra.Matrix`. ``x`` holds one step's inputs, ``params`` what is the
    same at every step. A *summary* stands for a stretch of time whose state before it is not known yet.

    Attributes:
        identity: ``(state) -> summary`` of an empty stretch, for states like this one.
        append: ``(params, summary, x) -> summary`` with one more step.
        combine: ``(left, right) -> summary`` of one stretch and the next; associative.
        enter: ``(state, summary) -> state`` after a stretch, from the state before it.
        step: ``(params, state, x) -> (state, output)``, the sequential recursion.
    """

    identity: Callable[[Any], Any]
    append: Callable[[Any, Any, Any], Any]
    combine: Callable[[Any, Any], Any]
    enter: Callable[[Any, Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any]]


def merge(params: Any, x: Any) -> Any:
    """One step's inputs, from a container with those that are the same at every step and one with the step's own.

    Both are the same NamedTuple; a field is None in the one that does not hold it.
    """
    return type(params)(*(p if v is None else v for p, v in zip(params, x, strict=True)))
