"""Functions of arrays, such as a step's number, as equations: what they close over are arrays, and equal equations are equal
functions.

So a function that is written anew at every call, as a lambda is, compiles nothing anew.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import numpy as np


class Function:
    """A function of arrays, some of which are constants. Others that have the same equations are equal to it.

    Attributes:
        shape: of what it returns, one array.
        dtype: likewise.
        arguments: shapes and dtypes of its constants, and of what it is given besides.
        plain: whether it is made of indexing and of arithmetic, with nothing larger than what it returns.
    """

    def __init__(self, jaxpr: Any):
        (out,) = jaxpr.outvars
        self.shape, self.dtype = out.aval.shape, out.aval.dtype
        self.arguments = tuple(
            tuple(jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in part) for part in (jaxpr.constvars, jaxpr.invars)
        )
        self.plain = _plain(jaxpr, out.aval.size)
        self._jaxpr, self._equations = jaxpr, _equations(jaxpr)
        self._hash = hash(self._equations)

    def __call__(self, constants: tuple[Any, ...], *given: Any) -> jax.Array:
        """Computes the value at a step's number t, or at the arrays that are given."""
        (out,) = _evaluated(self._jaxpr, constants, *given)
        return out

    def __eq__(self, other: object) -> bool:
        """Compares equations."""
        return self is other or (isinstance(other, Function) and self._equations == other._equations)

    def __hash__(self) -> int:
        """Returns a number that is the same for equal functions."""
        return self._hash


@dataclasses.dataclass(frozen=True)
class Changed:
    """A function of whose values another function of arrays makes its own."""

    function: "Function | Changed"
    change: Callable[[Any], Any]
    plain = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what it returns."""
        return self._form.shape

    @property
    def dtype(self) -> Any:
        """The type of its entries."""
        return self._form.dtype

    @property
    def _form(self) -> Any:
        return jax.eval_shape(self.change, jax.ShapeDtypeStruct(self.function.shape, self.function.dtype))

    def __call__(self, constants: tuple[Any, ...], t: Any) -> jax.Array:
        """Computes the value at t."""
        return self.change(self.function(constants, t))


def traced(function: Callable[..., Any], *given: Any) -> tuple[Function, tuple[Any, ...]] | None:
    """Returns a function of arrays like those given, and the arrays that it closes over; None of a function with effects, or
    that does not return one array.
    """
    closed, form = jax.make_jaxpr(function, return_shape=True)(*given)
    jaxpr: Any = closed.jaxpr
    if jaxpr.effects or jax.tree.structure(form) != jax.tree.structure(0):
        return None
    return Function(jaxpr), tuple(closed.consts)


def looked_up(function: Function) -> tuple[int, Function] | None:
    """Returns which constant a function reads one entry of, on the first axis, and the function of that entry's number, which
    `lax.dynamic_slice` clamps; None of a function that does anything else.
    """
    jaxpr = function._jaxpr
    made = {x: e for e in jaxpr.eqns for x in e.outvars}
    (out,) = jaxpr.outvars
    while (e := _maker(made, out)) and e.primitive.name in ("squeeze", "reshape"):
        out = e.invars[0]
    if e is None or e.primitive.name != "dynamic_slice":
        return None
    table, number, *_ = e.invars
    shape = table.aval.shape[1:]
    whole = e.params["slice_sizes"] == (1, *shape) and shape == function.shape
    if not whole or hasattr(number, "val") or table not in jaxpr.constvars:
        return None
    before = jaxpr.eqns[: jaxpr.eqns.index(e)]
    return jaxpr.constvars.index(table), Function(jaxpr.replace(eqns=before, outvars=[number]))


def _maker(made: dict[Any, Any], x: Any) -> Any:
    """Returns the equation that makes a variable; None of what is given."""
    return None if hasattr(x, "val") else made.get(x)


SMALL, FEW = 1_024, 64
"""The most entries of an array in a small function, and the most products that a small product of matrices adds up. Of more,
XLA:CPU's sums within one function take longer than a library's product without."""


def read_by_jacobian(function: Function) -> tuple[bool, ...]:
    """Tells of every argument but the constants whether the Jacobian with respect to the first of them reads it.

    That is so where an equation does. A function whose Jacobian does not read its argument is affine in it.
    """
    (found,) = _read_by(_jacobian(function))
    constants, given = map(len, function.arguments)
    return tuple(k in found for k in (0, *range(1 + constants, constants + given)))


def is_small(function: Function) -> bool:
    """Tells whether a function's Jacobian is made of indexing and arithmetic, with nothing of more than `SMALL` entries."""
    return _plain(_jacobian(function), SMALL)


@functools.lru_cache(maxsize=512)
def _jacobian(function: Function) -> Any:
    """Returns the equations of the Jacobian with respect to a function's first argument: of that, the constants, the rest."""
    constants, given = function.arguments
    by_first = jax.jacfwd(lambda x, constants, rest: function(constants, x, *rest))
    return jax.make_jaxpr(by_first)(given[0], constants, given[1:]).jaxpr


def _read_by(jaxpr: Any) -> list[frozenset[int]]:
    """Returns the numbers of the arguments that every result of some equations reads."""
    read = {x: frozenset([k]) for k, x in enumerate(jaxpr.invars)}

    def of(x: Any) -> frozenset[int]:
        return frozenset() if hasattr(x, "val") else read.get(x, frozenset())

    for e in jaxpr.eqns:
        given = [of(x) for x in e.invars]
        if e.primitive.name in ("jit", "pjit"):
            results = [frozenset().union(*(given[k] for k in inner)) for inner in _read_by(e.params["jaxpr"].jaxpr)]
        else:
            results = [frozenset().union(*given)] * len(e.outvars)
        read |= dict(zip(e.outvars, results, strict=True))
    return [of(x) for x in jaxpr.outvars]


_INDEXING = {"dynamic_slice", "gather", "slice", "squeeze", "reshape", "broadcast_in_dim", "transpose"}
_JOINING = {"concatenate", "stack", "unstack", "split", "pad", "rev", "iota"}
_ARITHMETIC = {
    "add",
    "add_any",
    "sub",
    "mul",
    "div",
    "neg",
    "abs",
    "max",
    "min",
    "square",
    "integer_pow",
    "sign",
    "convert_element_type",
}
_ELEMENTARY = {
    "sin",
    "cos",
    "exp",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "logistic",
    "sqrt",
    "rsqrt",
    "atan2",
    "pow",
    "rem",
    "floor",
    "ceil",
    "round",
}
_SUMS = {"reduce_sum", "reduce_max", "reduce_min"}
_LOGIC = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "select_n", "clamp"}
_PLAIN = _INDEXING | _JOINING | _ARITHMETIC | _ELEMENTARY | _SUMS | _LOGIC


def _plain(jaxpr: Any, most: int) -> bool:
    """Tells whether equations are of plain operations, whose results have so many entries at most."""
    for e in jaxpr.eqns:
        if e.primitive.name in ("jit", "pjit", "custom_jvp_call"):
            inner = e.params["call_jaxpr" if e.primitive.name == "custom_jvp_call" else "jaxpr"]
            if not _plain(inner.jaxpr, most):
                return False
        elif not (e.primitive.name in _PLAIN or _is_small_product(e)) or any(x.aval.size > most for x in e.outvars):
            return False
    return True


def _is_small_product(e: Any) -> bool:
    if e.primitive.name != "dot_general":
        return False
    (contracted, _), _ = e.params["dimension_numbers"]
    return math.prod((e.outvars[0].aval.size, *(e.invars[0].aval.shape[k] for k in contracted))) <= FEW


def _evaluated(jaxpr: Any, constants: Any, *given: Any) -> list[Any]:
    """Evaluates equations. Small products are sums of products, entry by entry, which fit into a loop that is one function."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *given), strict=True))

    def read(x: Any) -> Any:
        return x.val if hasattr(x, "val") else values[x]

    for e in jaxpr.eqns:
        arguments = [read(x) for x in e.invars]
        if e.primitive.name in ("jit", "pjit"):
            inner = e.params["jaxpr"]
            results = _evaluated(inner.jaxpr, inner.consts, *arguments)
        elif _is_small_product(e):
            results = [_product(*arguments, *e.params["dimension_numbers"]).astype(e.outvars[0].aval.dtype)]
        else:
            read_by_it = list(dict.fromkeys(x for x in e.invars if not hasattr(x, "val")))
            alone = jaxpr.replace(constvars=[], invars=read_by_it, outvars=e.outvars, eqns=[e])
            results = jax.core.eval_jaxpr(alone, (), *map(read, read_by_it))
        values |= dict(zip(e.outvars, results, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _product(a: Any, b: Any, contracted: tuple, batch: tuple) -> jax.Array:
    """Computes what `lax.dot_general` does."""
    free = [[k for k in range(x.ndim) if k not in (*c, *d)] for x, c, d in zip((a, b), contracted, batch, strict=True)]
    shapes = [[x.shape[k] for k in f] for x, f in zip((a, b), free, strict=True)]
    lead = [a.shape[k] for k in batch[0]]
    terms = math.prod(a.shape[k] for k in contracted[0])
    a, b = (x.transpose(*d, *f, *c) for x, c, d, f in zip((a, b), contracted, batch, free, strict=True))
    a = a.reshape(*lead, math.prod(shapes[0]), 1, terms)
    b = b.reshape(*lead, 1, math.prod(shapes[1]), terms)
    return (a * b).sum(-1).reshape(*lead, *shapes[0], *shapes[1])


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
