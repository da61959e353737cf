"""Rules for JAX's transformations of a pass: `vmap` makes more sequences of one batch, derivatives have rules of their own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from fastscan.dispatch.choice import How
from fastscan.kernels.arrays import alike, numbers
from fastscan.kernels.plan import Plan


def transformable(how: How, run: Callable[..., Any], count: jax.Array | None = None) -> Callable[..., Any]:
    """Makes ``run(plan, *arguments)``, which takes arrays (B or 1, ...) and returns arrays (B, ...), a function of the
    arguments.

    Under `vmap` it runs once, with the mapped axis part of the batch's: more lanes, and the plan for as many. Derivatives are
    those of the plan as XLA runs it in loops of fixed length; `vmap` takes these as it takes any program. Under `shard_map` all
    results differ between devices where one argument does.

    A program for several lengths is given its ``count`` of rows, which goes into the plan.
    """
    if count is not None:
        counted = transformable(how, lambda plan, count, *args: run(plan._replace(count=count[0]), *args))
        return lambda *args: counted(count[None], *args)
    plain = under_xla(how.plan)._replace(one_function=False, checked=False, vectors=0, in_turn=False)
    same = plain == how.plan
    plain = plain._replace(algebra=f"unrolled {plain.algebra}")
    fast = jax.custom_jvp(in_lanes(how, run))

    @fast.defjvp
    def _(primals, tangents):
        out, change = jax.jvp(lambda *args: run(plain, *args), primals, tangents)
        return (out if same else fast(*primals)), change

    return lambda *args: fast(*alike(args))


def in_lanes(how: How, run: Callable[..., Any]) -> Callable[..., Any]:
    """Does as `transformable`, but for derivatives."""

    @custom_vmap
    def call(*args: Any) -> Any:
        return run(how.plan, *args)

    @call.def_vmap
    def _(size: int, mapped: Any, *args: Any) -> tuple[Any, Any]:
        B = batch_size(jax.tree.map(lambda x, m: x[0] if m else x, args, tuple(mapped)))
        joined = jax.tree.map(lambda x, m: _joined(x, m, size, B), args, tuple(mapped))
        out = in_lanes(how.of_batch(size * B), run)(*joined)
        out = jax.tree.map(lambda x: x.reshape(size, B, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return call


def in_turn(plan: Plan, run: Callable[..., Any], *args: Any) -> Any:
    """Calls ``run(*args)`` with arrays (B or 1, ...): at once, or where the plan says so with one sequence after the other."""
    leaves, tree = jax.tree.flatten(args)
    own = [k for k, x in enumerate(leaves) if x.shape[0] > 1]
    if not plan.in_turn or not own:
        return run(*args)

    def one(arrays: list[jax.Array]) -> Any:
        of_one = dict(zip(own, arrays, strict=True))
        given = [of_one[k][None] if k in of_one else x for k, x in enumerate(leaves)]
        return jax.tree.map(lambda x: x[0], run(*jax.tree.unflatten(tree, given)))

    return lax.map(one, [leaves[k] for k in own])


def for_all(plan: Plan, run: Callable[..., Any], *args: Any) -> Any:
    """Does as `in_turn`, and repeats results that are the same for all sequences: arrays (B, ...)."""
    B = batch_size(args)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), in_turn(plan, run, *args))


def batch_size(arguments: Any) -> int:
    """Returns B of arrays (B or 1, ...)."""
    return max(x.shape[0] for x in jax.tree.leaves(arguments))


def _joined(x: jax.Array, mapped: bool, size: int, B: int) -> jax.Array:
    """Reshapes an array (size, B or 1, ...), or one that is not mapped, (B or 1, ...), to (size B or 1, ...)."""
    if not mapped and x.shape[0] == 1:
        return x
    x = x if mapped else x[None]
    return jnp.broadcast_to(x, (size, B, *x.shape[2:])).reshape(size * B, *x.shape[2:])


@custom_vmap
def any_missing(observed: jax.Array) -> jax.Array:
    """Tells whether an entry is False: under `vmap`, in any of the arrays, so that a `lax.cond` stays one."""
    return ~observed.all()


@any_missing.def_vmap
def _(size: int, mapped: Any, observed: jax.Array) -> tuple[jax.Array, bool]:
    del size, mapped
    return any_missing(observed), False


def under_xla(plan: Plan) -> Plan:
    """Returns the plan for XLA, in loops of fixed length."""
    return plan._replace(launch=None, relay=False)


def scored(score: Callable[[Any], tuple[jax.Array, Any]], loglik: jax.Array, given: Any) -> jax.Array:
    """Gives a log-likelihood (B,) derivatives from a score, in place of those of the program that computed it.

    The rule is linear in the tangents, so forward and reverse mode take the same pass; a second derivative is that of the pass.

    Args:
        score: from what is given to the log-likelihood (B,) and every sequence's derivatives (B, ...) of its `numbers`.
        loglik: the value where no derivative is asked for.
        given: what it is differentiated with respect to: arrays (B or 1, ...).
    """

    @jax.custom_jvp
    def value(loglik: jax.Array, given: Any) -> jax.Array:
        del given
        return loglik

    @value.defjvp
    def _(primals, tangents):
        loglik, derivatives = score(primals[1])
        changes = [_change(d, x) for d, x in zip(numbers(derivatives), numbers(tangents[1]), strict=True)]
        return loglik, sum(changes, jnp.zeros_like(loglik)).astype(loglik.dtype)

    return value(lax.stop_gradient(loglik), given)


def _change(derivative: jax.Array, tangent: jax.Array) -> jax.Array:
    return (derivative * tangent).reshape(len(derivative), -1).sum(1)
