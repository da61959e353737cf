"""Arithmetic in blocks: instructions that follow one another are handed to Triton as one operation, not each by itself.

For every access to memory Triton's compiler collects all operations that have to do with it, and for each of these all others:
its time grows with the cube of a kernel's length. To Triton a block is one operation. To the assembler, which comes last, it is
the instructions that it is made of, to be ordered, merged and dropped as if they stood by themselves.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Assemble = Callable[[str, int, Sequence[jax.Array]], Sequence[jax.Array]]
"""``(text, results, operands) -> results``: runs PTX for every entry of some vectors of one type. In it $0, $1... are as many
results, then the operands."""

FEWEST, MOST_RESULTS = 32, 0.9
"""Instructions of a block, and its results for each of them. Shorter blocks, and those whose every result is used elsewhere, as
in products with maximum for addition, save no time, and cost registers or up to 8 % more instructions."""

_INSTRUCTIONS = {"add": "add.rn", "sub": "sub.rn", "mul": "mul.rn"}  # .rn: the assembler contracts no two of them to one
_TYPES = {np.dtype(np.float32): ("f32", "0f{:08X}", np.uint32), np.dtype(np.float64): ("f64", "0d{:016X}", np.uint64)}


class Traced:
    """A function ``(params, ...)`` of trees of vectors, traced once for arguments of one form.

    JAX traces anew within a kernel what it has traced outside of it, and in each of the ways that kernels are looked at.
    """

    def __init__(self, function: Callable):
        self._function, self._traces = jax.jit(function), {}

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function."""
        return self._function(*arguments)

    def form(self, *arguments: Any) -> Any:
        """Returns the form of the function's result, as `jax.eval_shape` does."""
        return self._trace(arguments)[1]

    def in_blocks(self, assemble: Assemble, *arguments: Any) -> Any:
        """Calls the function with its sums, products and inline assembly in blocks.

        Those that depend on nothing but the first argument have blocks of their own: in a loop, they can be computed before it.
        """
        program, form = self._trace(arguments)
        results = _Run(program, jax.tree.leaves(arguments)).results(assemble)
        return jax.tree.unflatten(jax.tree.structure(form), results)

    def _trace(self, arguments: tuple) -> "tuple[_Program, Any]":
        leaves, tree = jax.tree.flatten(arguments)
        forms = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in leaves]
        key = tree, *((x.shape, x.dtype) for x in forms)
        if key not in self._traces:
            closed, form = jax.make_jaxpr(self._function, return_shape=True)(*jax.tree.unflatten(tree, forms))
            self._traces[key] = _Program(closed, len(jax.tree.leaves(arguments[0]))), form
        return self._traces[key]


class _Constant(NamedTuple):
    number: Any  # a scalar of NumPy's
    shape: tuple[int, ...]


_Operand = int | _Constant
"""The number of a value, or a constant."""


class _Operation(NamedTuple):
    """An equation of a jaxpr.

    Attributes:
        equation: as it was.
        operands, results: of it.
        instruction: the PTX that it is for every entry of a vector, without its type; None if it is something else.
        varies: whether it depends on more than the parameters.
    """

    equation: Any
    operands: tuple[_Operand, ...]
    results: tuple[int, ...]
    instruction: str | None
    varies: bool

    @property
    def type(self) -> tuple[np.dtype, tuple[int, ...]]:
        """The type and shape of an instruction's result."""
        return self.equation.outvars[0].aval.dtype, self.equation.outvars[0].aval.shape


class _Program:
    """A jaxpr as blocks of operations, those of functions that it calls in their places, no instruction twice.

    Attributes:
        values: as far as they are known beforehand; arguments are the first.
        blocks: instructions of one type, and operations by themselves, in an order in which they can be executed.
        results: of the jaxpr.
        uses: of every value.
    """

    def __init__(self, closed: Any, params: int):
        self.values: list[Any] = []
        self._operations: list[_Operation] = []
        self._known: dict[tuple, int] = {}
        inputs = [self._new() for _ in closed.jaxpr.invars]
        self._varying: set[_Operand] = set(inputs[params:])
        self.results = self._list(closed, inputs)
        self.uses = Counter([*self.results, *(x for operation in self._operations for x in operation.operands)])
        self.blocks = list(_blocks(self._operations, self.uses))

    def _new(self, value: Any = None) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _list(self, closed: Any, inputs: Sequence[_Operand]) -> list[_Operand]:
        """Lists a jaxpr's equations; returns its results."""
        jaxpr = closed.jaxpr
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(self._new, closed.consts), *inputs], strict=True))

        def operand(x: Any) -> _Operand:
            return _Constant(np.asarray(x.val)[()], ()) if hasattr(x, "val") else known[x]

        for equation in jaxpr.eqns:
            results = self._results(equation, tuple(map(operand, equation.invars)))
            known |= zip(equation.outvars, results, strict=True)
        return list(map(operand, jaxpr.outvars))

    def _results(self, equation: Any, operands: tuple[_Operand, ...]) -> Sequence[_Operand]:
        name, params = equation.primitive.name, equation.params
        called = params.get("jaxpr" if name in ("jit", "pjit") else "call_jaxpr")
        if hasattr(called, "consts"):
            return self._list(called, operands)
        if name == "broadcast_in_dim" and isinstance(operands[0], _Constant):
            return [operands[0]._replace(shape=params["shape"])]
        instruction = _instruction(equation, operands)
        key = instruction, *(x if isinstance(x, int) else x.number.tobytes() for x in operands)
        if instruction is not None and key in self._known:
            return [self._known[key]]
        results = tuple(self._new() for _ in equation.outvars)
        self._known[key] = results[0]
        varies = not self._varying.isdisjoint(operands)
        self._varying.update(results if varies else ())
        self._operations.append(_Operation(equation, operands, results, instruction, varies))
        return results


class _Run:
    """An execution of a program."""

    def __init__(self, program: _Program, arguments: Sequence[Any]):
        self._program, self._values = program, [*arguments, *program.values[len(arguments) :]]

    def results(self, assemble: Assemble) -> list[Any]:
        """Executes the program."""
        for block in self._program.blocks:
            if len(block) == 1:
                self._alone(block[0])
            else:
                self._assembled(assemble, block)
        return list(map(self._value, self._program.results))

    def _value(self, x: _Operand) -> Any:
        if isinstance(x, int):
            return self._values[x]
        return jnp.broadcast_to(x.number, x.shape) if x.shape else x.number

    def _define(self, numbers: Sequence[int], values: Sequence[Any]) -> None:
        for x, value in zip(numbers, values, strict=True):
            self._values[x] = value

    def _alone(self, operation: _Operation) -> None:
        primitive = operation.equation.primitive
        out = primitive.bind(*map(self._value, operation.operands), **operation.equation.params)
        self._define(operation.results, out if primitive.multiple_results else [out])

    def _assembled(self, assemble: Assemble, block: Sequence[_Operation]) -> None:
        """Computes those results of a block's instructions that are used elsewhere."""
        wanted = _wanted(block, self._program.uses)
        own = dict.fromkeys(operation.results[0] for operation in block)
        operands = dict.fromkeys(x for operation in block for x in operation.operands if isinstance(x, int))
        given = [x for x in operands if x not in own]
        suffix, constant, bits = _TYPES[block[0].type[0]]
        names = {x: f"r{k}" for k, x in enumerate(own)} | {x: f"${k}" for k, x in enumerate([*wanted, *given])}

        def written(x: _Operand) -> str:
            return names[x] if isinstance(x, int) else constant.format(x.number.view(bits))

        lines = [f".reg .{suffix} r<{len(own)}>;"]
        for operation, result in zip(block, own, strict=True):
            lines.append(f"{operation.instruction}.{suffix} {names[result]}, {', '.join(map(written, operation.operands))};")
        self._define(wanted, assemble("\n".join(["{", *lines, "}"]), len(wanted), [self._values[x] for x in given]))


def _blocks(operations: Sequence[_Operation], uses: Counter) -> Iterator[list[_Operation]]:
    """Cuts operations into blocks, and those that are in none, each by itself.

    Instructions wait until something needs them that is none. What varies comes last.
    """
    block: list[_Operation] = []
    computed: set[_Operand] = set()
    for operation in sorted(operations, key=lambda operation: operation.varies):
        alone = operation.instruction is None
        differs = bool(block) and not alone and (operation.varies, operation.type) != (block[0].varies, block[0].type)
        if differs or (alone and not computed.isdisjoint(operation.operands)):
            yield from _if_worth_it(block, uses)
            block, computed = [], set()
        if alone:
            yield [operation]
        else:
            block.append(operation)
            computed.update(operation.results)
    yield from _if_worth_it(block, uses)


def _if_worth_it(block: list[_Operation], uses: Counter) -> list[list[_Operation]]:
    worth_it = len(block) >= FEWEST and len(_wanted(block, uses)) <= MOST_RESULTS * len(block)
    return [block] if worth_it else [[operation] for operation in block]


def _wanted(block: Sequence[_Operation], uses: Counter) -> list[int]:
    """Lists those results of a block's instructions that are used elsewhere."""
    here = Counter(x for operation in block for x in operation.operands)
    return [operation.results[0] for operation in block if uses[operation.results[0]] > here[operation.results[0]]]


def _instruction(equation: Any, operands: Sequence[_Operand]) -> str | None:
    """Returns the PTX that an equation is for every entry of a vector, without its type, if it is nothing more."""
    shapes = {x.aval.shape for x, value in zip(equation.invars, operands, strict=True) if isinstance(value, int)}
    out = equation.outvars[0].aval
    if len(equation.outvars) != 1 or shapes != {out.shape} or out.shape == () or out.dtype not in _TYPES:
        return None
    if (text := equation.params.get("asm")) is not None:
        return text.split(".f")[0]
    return _INSTRUCTIONS.get(equation.primitive.name)
