"""Derivatives of what kernels compute."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from fastscan.kernels.plan import Plan


def differentiable(plan: Plan, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` of a plan. Kernels have no derivatives of their own: theirs are those of the same plan under XLA."""
    run_plan = functools.partial(run, plan)
    if plan.launch is None:
        return run_plan
    kernels = jax.custom_jvp(run_plan)

    @kernels.defjvp
    def _(primals, tangents):
        return kernels(*primals), jax.jvp(functools.partial(run, plan._replace(launch=None)), primals, tangents)[1]

    return kernels
