"""Functions of a step's number, as equations: what they close over are arrays, and equal equations are equal functions.

So a function that is written anew at every call, as a lambda is, compiles nothing anew.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import numpy as np


class Function:
    """A function of arrays and a number. Others that have the same equations are equal to it.

    Attributes:
        shape: of what it returns, one array.
        dtype: likewise.
        plain: whether it is made of indexing and of arithmetic, with nothing larger than what it returns.
    """

    def __init__(self, jaxpr: Any):
        (out,) = jaxpr.outvars
        self.shape, self.dtype = out.aval.shape, out.aval.dtype
        self.plain = _plain(jaxpr, out.aval.size)
        self._jaxpr, self._equations = jaxpr, _equations(jaxpr)
        self._hash = hash(self._equations)

    def __call__(self, constants: tuple[Any, ...], t: Any) -> jax.Array:
        """Computes the value at t."""
        (out,) = jax.core.eval_jaxpr(self._jaxpr, constants, t)
        return out

    def __eq__(self, other: object) -> bool:
        """Compares equations."""
        return self is other or (isinstance(other, Function) and self._equations == other._equations)

    def __hash__(self) -> int:
        """Returns a number that is the same for equal functions."""
        return self._hash


@dataclasses.dataclass(frozen=True)
class Changed:
    """A function of whose values another function of arrays, which keeps their shape, makes its own."""

    function: "Function | Changed"
    change: Callable[[Any], Any]
    plain = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what it returns."""
        return self.function.shape

    def __call__(self, constants: tuple[Any, ...], t: Any) -> jax.Array:
        """Computes the value at t."""
        return self.change(self.function(constants, t))


def traced(function: Callable[[Any], Any], t: Any) -> tuple[Function, tuple[Any, ...]] | None:
    """Returns a function of a number like t, and the arrays that it closes over; None of a function with effects, or that does
    not return one array.
    """
    closed, form = jax.make_jaxpr(function, return_shape=True)(t)
    jaxpr: Any = closed.jaxpr
    if jaxpr.effects or jax.tree.structure(form) != jax.tree.structure(0):
        return None
    return Function(jaxpr), tuple(closed.consts)


_INDEXING = {"dynamic_slice", "gather", "slice", "squeeze", "reshape", "broadcast_in_dim", "transpose"}
_ARITHMETIC = {"add", "sub", "mul", "div", "neg", "abs", "max", "min", "sin", "cos", "convert_element_type"}
_LOGIC = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "select_n", "clamp"}
_PLAIN = _INDEXING | _ARITHMETIC | _LOGIC


def _plain(jaxpr: Any, most: int) -> bool:
    """Tells whether equations are of plain operations, whose results have so many entries at most."""
    for e in jaxpr.eqns:
        if e.primitive.name in ("jit", "pjit"):
            if not _plain(e.params["jaxpr"].jaxpr, most):
                return False
        elif e.primitive.name not in _PLAIN or any(x.aval.size > most for x in e.outvars):
            return False
    return True


class _Itself:
    """An object that equals itself alone."""

    def __init__(self, x: Any):
        self._x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self._x is other._x

    def __hash__(self) -> int:
        return id(self._x)


def _equations(jaxpr: Any) -> tuple:
    """Returns equations as nested tuples, in which variables are numbers."""
    numbers: dict[Any, int] = {}

    def read(x: Any) -> Any:
        if hasattr(x, "val"):  # a literal
            return x.aval, np.asarray(x.val).tobytes()
        return numbers[x]

    def bound(variables: Any) -> tuple:
        for x in variables:
            numbers[x] = len(numbers)
        return tuple(x.aval for x in variables)

    given = bound((*jaxpr.constvars, *jaxpr.invars))
    steps = []
    for e in jaxpr.eqns:
        steps.append((e.primitive, tuple(map(read, e.invars)), bound(e.outvars), _comparable(e.params)))
    return given, tuple(steps), tuple(map(read, jaxpr.outvars))


def _comparable(x: Any) -> Any:
    """Returns what is equal for equal parameters of equations, and alone for others."""
    if isinstance(x, dict):
        return tuple((name, _comparable(x[name])) for name in sorted(x))
    if type(x) in (tuple, list):
        return tuple(map(_comparable, x))
    if hasattr(x, "jaxpr") and hasattr(x, "consts"):
        return _equations(x.jaxpr), tuple(map(_Itself, x.consts))
    if hasattr(x, "eqns"):
        return _equations(x)
    try:
        hash(x)
    except TypeError:
        return _Itself(x)
    return type(x), x
