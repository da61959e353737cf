"""Private hints to XLA on a CPU: marks that it reads, and the numbers by which it decides. No other file knows either.

Two attributes of a call are set here with `set_xla_metadata`, for which neither JAX nor XLA promises anything.

* ``inlineable="false"``: the call stays a call (`own_unit`). XLA:CPU otherwise fuses an operation into each of those that use
  its result, and computes it again for each; unless it counts as expensive, which sums, products and selections do not
  (`CpuInstructionFusion`, xla/service/cpu/cpu_instruction_fusion.cc of openxla/xla, 0725a3a). JAX tests the mark on a CPU
  (tests/xla_metadata_test.py of jax-ml/jax, "inlineable").
* ``xla_cpu_small_call="true"``: the call becomes one native function, with every loop in it (`as_one_function`), and not a list
  of operations that a runtime starts one by one (`ThunkEmitter::EmitCallThunk`, xla/service/cpu/thunk_emitter.cc of
  openxla/xla).
  XLA's own pass sets it where it finds a small loop without custom calls, scatters, sorts, Fourier transforms and collectives
  (xla/service/cpu/small_while_loop_hoisting_pass.cc). We set it before, and so must keep to that ourselves.

So a new XLA may ignore a mark, which makes programs slow, or take it for something else, which may end the process. There is a
pass for CPUs, of 2026, that makes a call with the first mark a custom call of another module, which a function by the second
mark can't hold (xla/service/cpu/cpu_hlo_module_splitter_test.cc of openxla/xla, 72cdca9); no jaxlib that we tested runs it. So
marks are only set with a jaxlib of `TESTED`, or where a user asks for them (`use_xla_hints`). A function is marked while it is
traced.

Every number says with which jaxlib it was seen, and, where we have read it there, where it stands in XLA.
"""

import contextlib
import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jaxlib
from jax import lax

from fastscan.kernels.arrays import blank, varying

TESTED = ("0.10.2", "0.11.2", "0.12.0")
"""The jaxlibs that were seen to do as the marks say: major, minor and patch. A patch may bring an XLA of its own, and the
price of a wrong guess is a user's process, so each is tested by itself; a fourth number is the same release, built again,
and counts as tested. To add one: write it here and into fastscan/README.md, and run all tests with it,
tests/kernels/test_xla_hints.py first."""

ONE_FUNCTION_BYTES = 4096
"""The most bytes of a matrix in all lanes, where a loop is compiled to one function; of a vector, if the matrices of which
products are made are the same in all lanes. Outside of one function, XLA:CPU gives parts of an operation to its threads where
the operation computes more than it moves and moves some five times as much as this, or where it moves half a megabyte; and it
multiplies larger matrices by a library's dot. Within one function it can do neither. Threads:
xla/service/cpu/parallel_task_assignment.cc, two tasks or more of 100,000, an operation being 1 and a byte 10, or of 256 KiB
(openxla/xla, 1656956). Seen with jaxlib 0.10.2."""

TASK_COST = 150_000
"""The most that an operation in one function may cost, by the count of the same file, which gives parts of 200,000 to threads.
Seen with 0.10.2."""
BYTE_COST = 10
"""The cost of a byte that is moved, by the same count."""

STAGED_TERMS = 3
"""The most terms of a product in one unit. XLA:CPU hands a loop with more operations than bytes to its thread pool, which for
the few thousand numbers of a step takes longer than to compute them. The test is that of the same file. Seen with 0.10.2."""

VECTORS_AT_ONCE = 8
"""The most vectors that one operation in one function adds up: twice as many took longer. Seen with 0.10.2."""

STAGED_LANES = 32
"""The number of sequences from which on it pays to stage an HMM's vectors in one chunk, where they are no one function. Seen
with 0.10.2."""

VECTOR = 16
"""The numbers in a CPU's widest vector: XLA's loops over a multiple of them have no rest. Seen with 0.10.2."""

MOST_OPERATIONS, MOST_PRODUCTS = 1_000, 256
"""The most operations on vectors in one function, and in one product of matrices: XLA takes minutes, and all memory, for some
of 600 products. Seen with 0.10.2."""

SUM_BLOCK = 32
"""The terms of a sum that are added within a step of a loop. XLA:CPU runs a program at once if it believes that it takes less
than a thousand operations, counting a loop's work once, and hands others to a thread: `cheap_computation_` in
xla/pjrt/cpu/cpu_client.cc (openxla/xla, 0284c9c). Seen with 0.10.2."""


_asked: bool | None = None


def use_xla_hints(on: bool | None) -> contextlib.AbstractContextManager[Any]:
    """Switches the private hints to XLA on a CPU on or off, from now on or for a ``with`` block.

    Results are the same either way, up to rounding. With the hints, programs are several times as fast on a CPU; without them,
    nothing reaches XLA that is not public. The switch is for the whole process, all threads included. Where it changes
    anything, JAX forgets its compiled programs, those of other libraries too. Programs that were compiled by hand, as by
    ``jax.jit(f).lower(...).compile()``, stay as they are. Don't turn it within a function that JAX traces, nor while another
    thread compiles.

    Args:
        on: True, False, or None for what holds by default: on with a jaxlib that fastscan was tested with, otherwise off.

    Returns:
        A context manager, at whose end what held before holds again. Without a ``with`` block it does nothing more.

    Raises:
        TypeError: ``on`` is neither a bool nor None.
    """
    if on is not None and not isinstance(on, bool):
        raise TypeError(f"on: {on!r} given, wanted True, False or None.")
    until = contextlib.ExitStack()
    until.callback(_ask, _asked)
    _ask(on)
    return until


def _ask(wanted: bool | None) -> None:
    global _asked
    before, after = (is_tested(_jaxlib_version()) if asked is None else asked for asked in (_asked, wanted))
    _asked = wanted
    if before != after:
        jax.clear_caches()


def hints_are_on() -> bool:
    """Tells whether marks are set; warns once if they are not because this jaxlib was not tested."""
    return _by_version(_jaxlib_version()) if _asked is None else _asked


def _jaxlib_version() -> str:
    return jaxlib.__version__  # pyright: ignore[reportPrivateImportUsage]


def is_tested(version: str) -> bool:
    """Tells whether a jaxlib's version is one of `TESTED`, or a new build of one. Previews and nightly builds are not."""
    numbers = re.fullmatch(r"(\d+\.\d+\.\d+)(\.\d+)*", version)
    return numbers is not None and numbers[1] in TESTED


@functools.cache
def _by_version(version: str) -> bool:
    if not is_tested(version):
        warnings.warn(
            f"fastscan was not tested with jaxlib {version}, so it gives XLA no private hints: results are the same up to "
            f"rounding, but slower on a CPU. Tested: {', '.join(TESTED)}. fastscan.use_xla_hints(True) takes the risk, "
            'fastscan.use_xla_hints(False) ends this message; see "Troubleshooting" in fastscan/README.md.',
            stacklevel=2,
        )
    return is_tested(version)


def vectors_at_once(size: int) -> int:
    """Counts the vectors of so many bytes that one operation in one function may add up."""
    return max(min(VECTORS_AT_ONCE, TASK_COST // (BYTE_COST * size)), 1)


def _marked(**marks: str) -> contextlib.AbstractContextManager[Any]:
    """Marks the calls of jitted functions that are traced within it."""
    from jax.experimental.xla_metadata import set_xla_metadata  # only here, so that a JAX without it is slower, and no error

    return set_xla_metadata(**marks)


def own_unit() -> contextlib.AbstractContextManager[Any]:
    """Marks the calls of jitted functions that are traced within it: XLA is not to inline them."""
    return _marked(inlineable="false") if hints_are_on() else contextlib.nullcontext()


def as_one_function(loop: Callable) -> Callable:
    """Compiles a loop, a function of its state and more arrays, to one native function, if hints are on.

    The function must read all its arguments, or XLA aborts: see `_reading`. The constants that the loop closes over become
    arguments, too, and all of them go through an optimization barrier, as XLA would otherwise move constants among them into
    the function, which then reads them no more.
    """
    if not hints_are_on():
        return loop

    def call(state: Any, *args: Any) -> Any:
        closed, out_shape = jax.make_jaxpr(loop, return_shape=True)(state, *args)
        states = len(jax.tree.leaves(state))

        def function(given: list[jax.Array], consts: list[jax.Array]) -> list[jax.Array]:
            read = _reading([*given, *consts], given[:states])
            return jax.core.eval_jaxpr(closed.jaxpr, consts, *read, *given[states:])

        given = jax.tree.leaves((state, args)), closed.consts
        if any(map(varying, jax.tree.leaves(given))):  # under shard_map
            return loop(state, *args)
        with _marked(inlineable="false", xla_cpu_small_call="true"):
            out = jax.jit(function)(*lax.optimization_barrier(given))
        return jax.tree.unflatten(jax.tree.structure(out_shape), out)

    return call


def _reading(given: list[jax.Array], state: list[jax.Array]) -> list[jax.Array]:
    """Returns the same state, made to depend on an entry of every argument, so that one function reads them all.

    Cause: XLA:CPU aborts the process ("All or none of the slices should have an explicit index") where one function leaves an
    argument unread. It lists the function's buffers by what its instructions read and write (`GetAllSlices`,
    xla/backends/cpu/codegen/computation_kernel_emitter.cc of openxla/xla, 187c49e), and then looks up a buffer for every
    argument (`EmitGlobalBufferPointer`, xla/service/cpu/ir_emitter.cc), also for one that is not in the list. Arguments become
    unread where XLA's own simplifications remove what no result needs. XLA's own pass does not meet this: its functions hand
    every argument to the loop in them. Seen with jaxlib 0.10.2.

    Workaround: the state is selected by a condition that reads an entry of every argument, and is never true, which XLA can't
    know. Every result needs some of the state, so nothing that reads is removed. Only the state is selected in this way: each
    selection counts as an operation, and a program that XLA believes takes a thousand or more is handed to a thread (see
    `SUM_BLOCK`).
    """
    first = [x.reshape(-1)[0] for x in given if x.size]
    odd = [x if x.dtype == bool else x != x if jnp.issubdtype(x.dtype, jnp.floating) else x == 7 for x in first]
    impossible = sum(x.astype(jnp.int32) for x in odd) > len(odd)
    return [lax.select(jnp.broadcast_to(impossible, x.shape), blank(x, x.shape), x) for x in state]
