"""Derivatives by rule: of log-likelihoods, of kernels, and of loops that find out their length as they run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fastscan.kernels.plan import Plan


def differentiable(plan: Plan, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` of a plan. Its derivatives are those of the same plan as XLA runs it, in loops of fixed length."""
    run_plan, plain = functools.partial(run, plan), under_xla(plan)
    if plan == plain:
        return run_plan
    fast = jax.custom_jvp(run_plan)

    @fast.defjvp
    def _(primals, tangents):
        return fast(*primals), jax.jvp(functools.partial(run, plain), primals, tangents)[1]

    return fast


def under_xla(plan: Plan) -> Plan:
    """The plan whose loops JAX can differentiate."""
    return plan._replace(launch=None, forgetting=False)


def scored(score: Callable[[Any], tuple[jax.Array, Any]], loglik: jax.Array, given: Any) -> jax.Array:
    """A log-likelihood (B,) whose derivatives come from a score, in place of those of the program that computed it.

    The rule is linear in the tangents, so forward and reverse mode take the same pass; a second derivative is that of the pass.

    Args:
        score: from what is given to the log-likelihood (B,) and every sequence's derivatives (B, ...), in the same form.
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
        changes = jax.tree.map(_change, derivatives, tangents[1])
        return loglik, sum(jax.tree.leaves(changes), jnp.zeros_like(loglik))

    return value(jax.lax.stop_gradient(loglik), given)


def _change(derivative: jax.Array, tangent: jax.Array) -> jax.Array:
    return (derivative * tangent).reshape(len(derivative), -1).sum(1)
