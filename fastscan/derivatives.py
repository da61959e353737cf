"""Derivatives of what has none of its own: kernels, and loops that find out their length as they run."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from fastscan.kernels.plan import Plan


def differentiable(plan: Plan, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` of a plan. Its derivatives are those of the same plan as XLA runs it, in loops of fixed length."""
    run_plan, plain = functools.partial(run, plan), plan._replace(launch=None, forgetting=False)
    if plan == plain:
        return run_plan
    fast = jax.custom_jvp(run_plan)

    @fast.defjvp
    def _(primals, tangents):
        return fast(*primals), jax.jvp(functools.partial(run, plain), primals, tangents)[1]

    return fast
