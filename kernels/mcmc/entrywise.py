"""A function of arrays as arithmetic on their entries, each of them a vector with a number per lane.

What a function computes for one lane, it computes for all: it is traced for one, and its trace is evaluated with every entry of
every array a vector of its own (structure of arrays). Sums and products over axes become chains of additions, and what only
moves numbers about costs nothing. So a user's function runs in a kernel's registers, and in XLA's fused loops.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.arrays import vary_over, varying
from fastscan.kernels.xla_hints import MOST_OPERATIONS, MOST_PRODUCTS

_ARITHMETIC = """
abs acos acosh add and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp convert_element_type copy cos cosh
digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max min mul
ne neg nextafter not or pow reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical
sign sin sinh sqrt square stop_gradient sub tan tanh xor
"""
_MOVES = "broadcast_in_dim concatenate dynamic_slice expand_dims gather reshape rev slice split squeeze stack transpose unstack"
_ELEMENTWISE, _MOVING = frozenset(_ARITHMETIC.split()), frozenset(_MOVES.split())

_IN_OTHER_WORDS: dict[str, Callable] = {
    "is_finite": lambda x: lax.eq(lax.sub(x, x), lax.full_like(x, 0)),
    "square": lambda x: lax.mul(x, x),
    "copy": lambda x: x,
    "stop_gradient": lambda x: x,
}
"""Primitives that not every lowering of Pallas knows, in terms of others."""
_REDUCTIONS = {"reduce_sum": lax.add, "reduce_prod": lax.mul, "reduce_max": lax.max, "reduce_min": lax.min,
               "reduce_and": lax.bitwise_and, "reduce_or": lax.bitwise_or}  # fmt: skip
_CUMULATIVE = {"cumsum": lax.add, "cumprod": lax.mul, "cummax": lax.max, "cummin": lax.min}
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
          "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr"}  # fmt: skip


class NotEntrywiseError(NotImplementedError):
    """A function that can't be evaluated so, and why.

    Attributes:
        source: JAX's description of where in the caller's code that comes from, or None; see `place`.
    """

    source: Any = None


def place(source: Any) -> str:
    """Says where a `NotEntrywiseError`'s ``source`` is: "file:line:column (function)", "" for None."""
    if source is None:
        return ""
    from jax.extend import source_info_util  # which imports Pallas

    return source_info_util.summarize(source)


class Traced(NamedTuple):
    """A function as it was traced for one lane.

    Attributes:
        jaxpr: what it computes.
        constants: arrays that it closes over. Those that are traced themselves (`unknown`) are given when it is called.
    """

    jaxpr: Any
    constants: tuple[Any, ...]

    @property
    def unknown(self) -> list[jax.Array]:
        """The constants whose numbers aren't known yet."""
        return [c for c in self.constants if _is_unknown(c)]

    def __call__(self, unknown: Sequence[np.ndarray], *arguments: np.ndarray) -> list[np.ndarray]:
        """Computes the results' entries from those of the unknown constants and of the arguments.

        Args:
            unknown: arrays of entries, as `arguments`.
            *arguments: arrays of Python objects, in the shapes that the function was traced for; their entries are vectors of
                a number per lane.

        Raises:
            NotEntrywiseError: it can't be evaluated so.
        """
        later = iter(unknown)
        constants = [next(later) if _is_unknown(c) else _numbers(c) for c in self.constants]
        return _Evaluation().run(self.jaxpr, constants, arguments)


def trace(function: Callable, *arguments: Any) -> Traced:
    """Traces a function of pytrees of arrays or `jax.ShapeDtypeStruct`s, for one lane."""
    closed = jax.make_jaxpr(function)(*arguments)
    return Traced(closed.jaxpr, tuple(closed.consts))


def entries(values: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """Makes an array of a shape from its entries in order."""
    out = np.empty(len(values), object)
    for k, value in enumerate(values):
        out[k] = value
    return out.reshape(shape)


class _Evaluation:
    """An evaluation of a function's equations in turn: arrays of numbers are known in all lanes, arrays of objects hold
    vectors.
    """

    def __init__(self):
        self.operations = 0

    def run(self, jaxpr: Any, constants: Sequence[np.ndarray], arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

        def value(v: Any) -> np.ndarray:
            if hasattr(v, "val"):
                return np.asarray(v.val, v.aval.dtype)
            x = known[v]
            return x if x.size else np.zeros(x.shape, v.aval.dtype)  # of which nothing depends on anything

        for equation in jaxpr.eqns:
            try:
                outs = self.equation(equation, [value(v) for v in equation.invars])
            except NotEntrywiseError as error:
                error.source = (
                    equation.source_info
                )  # of the outermost: what a `jit` inside holds may have been traced elsewhere
                raise
            known.update(zip(equation.outvars, outs, strict=True))
        return [value(v) for v in jaxpr.outvars]

    def equation(self, equation: Any, operands: list[np.ndarray]) -> list[np.ndarray]:
        primitive, params = equation.primitive, equation.params
        name = primitive.name
        if name in _CALLS:
            inner = params[_CALLS[name]]
            return self.run(getattr(inner, "jaxpr", inner), [_numbers(c) for c in getattr(inner, "consts", ())], operands)
        if not any(map(_varies, operands)):
            return _known(equation, operands)
        if name == "div" and _has_inverse(operands[1]):  # as XLA would have it
            return [self.each(lax.mul, operands[0], 1 / operands[1])]
        if name in _ELEMENTWISE:
            function = _IN_OTHER_WORDS[name] if name in _IN_OTHER_WORDS else functools.partial(primitive.bind, **params)
            return [self.each(function, *operands)]
        if name in _MOVING:
            return _moved(equation, operands)
        if name in _REDUCTIONS:
            return [self.fold(_REDUCTIONS[name], operands[0], params["axes"])]
        if name in _CUMULATIVE:
            return [self.accumulate(_CUMULATIVE[name], operands[0], params["axis"], params["reverse"])]
        if name == "dot_general":
            dtype = equation.outvars[0].aval.dtype
            x, y = (self.converted(x, dtype) for x in operands)
            return [self.product(x, y, params["dimension_numbers"])]
        raise NotEntrywiseError(f"{name}, which is no arithmetic on entries by themselves")

    def each(self, function: Callable, *operands: np.ndarray) -> np.ndarray:
        """Applies a function of numbers entry by entry."""
        operands = np.broadcast_arrays(*operands)
        rows = zip(*(x.reshape(-1) for x in operands), strict=True)
        return entries([self.call(function, *row) for row in rows], operands[0].shape)

    def call(self, function: Callable, *numbers: Any) -> Any:
        """Calls a function of numbers, each a vector or the same in all lanes, and then known or not."""
        if all(isinstance(x, np.generic) for x in numbers):
            with jax.ensure_compile_time_eval():
                return np.asarray(function(*numbers))[()]
        lanes = max((jnp.shape(x) for x in numbers), key=len)
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise NotEntrywiseError(f"more than {MOST_OPERATIONS:,} operations on entries")
        axes = frozenset().union(*map(varying, numbers))
        return function(*(vary_over(axes, jnp.broadcast_to(x, lanes)) for x in numbers))

    def converted(self, x: np.ndarray, dtype: Any) -> np.ndarray:
        """Converts numbers to a type."""
        return self.each(lambda entry: lax.convert_element_type(entry, dtype), x) if _varies(x) else x.astype(dtype)

    def fold(self, function: Callable, x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """Reduces entries, from the first one to the last."""
        kept = [i for i in range(x.ndim) if i not in axes]
        shape = [x.shape[i] for i in kept]
        rows = x.transpose(*kept, *axes).reshape(math.prod(shape), -1)
        return entries([functools.reduce(functools.partial(self.call, function), row) for row in rows], shape)

    def accumulate(self, function: Callable, x: np.ndarray, axis: int, reverse: bool) -> np.ndarray:
        """Computes all of a reduction's partial results."""
        rows = np.flip(x, axis) if reverse else x
        rows = np.moveaxis(rows, axis, -1)
        partial = [
            y
            for row in rows.reshape(-1, x.shape[axis])
            for y in itertools.accumulate(row, functools.partial(self.call, function))
        ]
        out = np.moveaxis(entries(partial, rows.shape), -1, axis)
        return np.flip(out, axis) if reverse else out

    def product(self, x: np.ndarray, y: np.ndarray, dimension_numbers: Any) -> np.ndarray:
        """Multiplies arrays over some of their axes; what is zero in all lanes takes no part."""
        (x_summed, y_summed), (x_shared, y_shared) = dimension_numbers
        x, x_free = _arranged(x, x_shared, x_summed)
        y, y_free = _arranged(y, y_shared, y_summed)
        shared = x.shape[: len(x_shared)]
        products = math.prod([*x.shape, *y_free])
        if products > MOST_PRODUCTS:
            raise NotEntrywiseError(f"a product of matrices of {products:,} products, more than {MOST_PRODUCTS}")
        x, y = (a.reshape(math.prod(shared), -1, a.shape[-1]) for a in (x, y))
        sums = [self.sum_of_products(row, column) for a, b in zip(x, y, strict=True) for row in a for column in b]
        return entries(sums, (*shared, *x_free, *y_free))

    def sum_of_products(self, row: np.ndarray, column: np.ndarray) -> Any:
        pairs = [pair for pair in zip(row, column, strict=True) if not any(_is(0, x) for x in pair)]
        terms = [y if _is(1, x) else x if _is(1, y) else self.call(lax.mul, x, y) for x, y in pairs]
        zero = next((x for x in (row[0], column[0]) if _is(0, x)), None)
        return functools.reduce(functools.partial(self.call, lax.add), terms) if terms else zero


def _known(equation: Any, operands: list[np.ndarray]) -> list[np.ndarray]:
    """Computes an equation whose operands do not differ between lanes, as the function is traced."""
    with jax.ensure_compile_time_eval():
        outs = equation.primitive.bind(*operands, **equation.params)
    return [_numbers(x) for x in (outs if equation.primitive.multiple_results else [outs])]


def _numbers(x: Any) -> np.ndarray:
    if _is_unknown(x) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        raise NotEntrywiseError(f"{x.dtype}, which is no type of numbers that are known")
    return np.asarray(x)


def _moved(equation: Any, operands: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the entries where a primitive that only moves numbers takes them."""
    data = operands if equation.primitive.name in ("concatenate", "stack") else operands[:1]
    others = operands[len(data) :]
    if any(map(_varies, others)):
        raise NotEntrywiseError(f"{equation.primitive.name} at places that are computed")
    ends = np.cumsum([x.size for x in data])
    places = [np.arange(end - x.size, end, dtype=np.int32).reshape(x.shape) for x, end in zip(data, ends, strict=True)]
    beyond = {"fill_value": -1} if "fill_value" in equation.params else {}
    with jax.ensure_compile_time_eval():
        taken = equation.primitive.bind(*places, *others, **{**equation.params, **beyond})
    taken = [np.asarray(x) for x in (taken if equation.primitive.multiple_results else [taken])]
    if any((x < 0).any() for x in taken):
        raise NotEntrywiseError(f"{equation.primitive.name} beyond an array's end")
    flat = [x for operand in data for x in operand.reshape(-1)]
    return [entries([flat[k] for k in x.reshape(-1)], x.shape) for x in taken]


def _arranged(x: np.ndarray, shared: Sequence[int], summed: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Transposes to axes (shared..., free..., all that are summed over), and returns the free ones' sizes."""
    free = [i for i in range(x.ndim) if i not in (*shared, *summed)]
    sizes = [x.shape[i] for i in (*shared, *free)]
    return x.transpose(*shared, *free, *summed).reshape(*sizes, -1), [x.shape[i] for i in free]


def _varies(x: np.ndarray) -> bool:
    return x.dtype == object


def _has_inverse(x: np.ndarray) -> bool:
    """Tells whether an array is known, and holds floating numbers whose inverses are ordinary ones, which nothing takes for
    zero.
    """
    if _varies(x) or not np.issubdtype(x.dtype, np.floating):
        return False
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.abs(1 / x)
    return bool((np.isfinite(inverse) & (inverse >= np.finfo(x.dtype).tiny)).all())


def _is(number: float, x: Any) -> bool:
    return isinstance(x, np.generic) and bool(x == number)


def _is_unknown(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)
