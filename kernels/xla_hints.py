"""What is private to XLA on a CPU: marks that it reads, and the numbers by which it decides. No other file knows either.

Two attributes of a call are set here with `set_xla_metadata`, for which neither JAX nor XLA promises anything.

* ``inlineable="false"``: the call stays a call (`own_unit`). XLA:CPU otherwise fuses what it computes into all that is made of
  it, and computes it anew for each. JAX tests the mark on a CPU (tests/xla_metadata_test.py of jax-ml/jax, "inlineable").
* ``xla_cpu_small_call="true"``: the call becomes one native function, with every loop in it (`compiled`), and not a list of
  operations that a runtime starts one by one (`ThunkEmitter::EmitCallThunk`, xla/service/cpu/thunk_emitter.cc of openxla/xla).
  XLA's own pass sets it where it finds a small loop without custom calls, scatters, sorts, Fourier transforms and collectives
  (xla/service/cpu/small_while_loop_hoisting_pass.cc). We set it before, and so must keep to that ourselves.

Numbers were measured with jaxlib 0.10.2, unless they say otherwise. Where the same limits stand in XLA, they say so.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from fastscan.kernels.arrays import blank, varying
from fastscan.kernels.plan import Plan

ONE_FUNCTION_BYTES = 4096
"""Of a matrix in every lane, at most, where a loop is compiled to one function; of a vector, if the matrices of which products
are made are the same in all lanes. XLA:CPU can't give a part of one to its threads or to a library. It would where an operation
computes more than it moves, and moves some five times as much as this, or else moves half a megabyte; and it would a dot, by
which larger matrices are multiplied. Threads: xla/service/cpu/parallel_task_assignment.cc, two tasks or more of 100,000, an
operation being 1 and a byte 10, or of 256 KiB; read at openxla/xla 1656956."""

TASK_COST = 150_000
"""Of an operation in one function, at most, as the same file of XLA counts it, who would give a part of 200,000 to a thread."""
BYTE_COST = 10
"""Of a byte that is moved, by the same count."""

STAGED_TERMS = 3
"""Of a product, in one unit. XLA:CPU hands a loop with more operations than bytes to its thread pool, which for the few
thousand numbers of a step takes longer than to compute them. The test is that of the same file."""

STAGED_LANES = 32
"""From how many sequences on it pays to stage an HMM's vectors in one chunk that are no one function."""

VECTOR = 16
"""Numbers in a CPU's widest vector: loops over a multiple of them have no rest."""

MOST_OPERATIONS, MOST_PRODUCTS = 1_000, 256
"""On vectors, of one function, and of one product of matrices: XLA takes minutes, and all memory, for some of 600 products."""

SUM_BLOCK = 32
"""Terms of a sum that are added within a step of a loop. XLA:CPU runs a program at once that it believes takes less than a
thousand operations, counting a loop's work once, and hands others to a thread."""


def own_unit() -> Any:
    """Marks the calls of jitted functions that are traced within it: XLA is not to inline them."""
    return set_xla_metadata(inlineable="false")


def compiled(plan: Plan, loop: Callable) -> Callable:
    """Takes a loop, a function of its state and more arrays, and returns it compiled as the plan says."""
    if not plan.one_function:
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
        with set_xla_metadata(inlineable="false", xla_cpu_small_call="true"):
            out = jax.jit(function)(*lax.optimization_barrier(given))
        return jax.tree.unflatten(jax.tree.structure(out_shape), out)

    return call


def _reading(given: list[jax.Array], state: list[jax.Array]) -> list[jax.Array]:
    """Returns the same state, which seems to depend on an entry of everything given.

    XLA:CPU aborts where one function leaves an argument unread, as its own simplifications may, of what no result needs; and of
    constants, which it therefore must not see through a barrier. Every result needs some of the state. Nothing else is made
    dependent, as XLA hands a program of more than a thousand operations, which it believes that takes, to a thread.
    """
    first = [x.reshape(-1)[0] for x in given if x.size]
    odd = [x if x.dtype == bool else x != x if jnp.issubdtype(x.dtype, jnp.floating) else x == 7 for x in first]
    impossible = sum(x.astype(jnp.int32) for x in odd) > len(odd)
    return [lax.select(jnp.broadcast_to(impossible, x.shape), blank(x, x.shape), x) for x in state]
