"""Runs shared by a CPU's cores: outside of any trace, a thread for each, all by one compiled program."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastscan.kernels.mcmc.metropolis import Schedule
from fastscan.kernels.xla_hints import VECTOR
from fastscan.mcmc.inference import Outcome, Task, Walkers, groups, run

THREAD_STEPS = 1_000_000
"""From how many steps of all chains together on a CPU's cores share them: some milliseconds."""


def run_on_all_cores(
    task: Task, schedule: Schedule, records: int, words: jax.Array, factor: jax.Array, walkers: Walkers
) -> Outcome:
    """Calls `run` outside of any trace, with a thread for each core of a CPU, and waits until all is done."""
    chains = walkers.position.shape[-1]
    most = min(cores(), -(-chains // VECTOR))
    count, size = groups(chains, task.group, most)
    parts = min(most, count)
    shares = _shares(walkers, parts, count // parts * size)
    program = _program(task, schedule, records, jax.tree.map(_form_of, (words, factor, shares[0])))
    outs = list(_threads(parts).map(lambda share: jax.block_until_ready(program(words, factor, share)), shares))
    return _together(outs, chains)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _shares(walkers: Walkers, parts: int, chains: int) -> list[Walkers]:
    """Cuts walkers into parts of so many chains; the last part is repeated."""

    def part(x: jax.Array, k: int) -> jax.Array:
        filled = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, parts * chains - x.shape[-1])], mode="edge")
        return filled[..., k * chains : (k + 1) * chains]

    return [jax.tree.map(functools.partial(part, k=k), walkers) for k in range(parts)]


@functools.partial(jax.jit, static_argnums=1)
def _together(outs: list[Outcome], chains: int) -> Outcome:
    """Puts together the outcomes of `_shares`."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs, -1)[..., :chains], *outs)


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="fastscan")


@functools.lru_cache(maxsize=32)
def _program(task: Task, schedule: Schedule, records: int, forms: Any) -> Callable[..., Outcome]:
    """Compiles the program in this thread, as another would not know of this one's settings of JAX."""
    shapes = jax.tree.map(lambda form: jax.ShapeDtypeStruct(*form), forms, is_leaf=_is_form)
    return run.lower(task, schedule, records, *shapes).compile()


def cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _ArrayForm(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


def _form_of(x: jax.Array) -> _ArrayForm:
    return _ArrayForm(x.shape, str(x.dtype))


def _is_form(x: Any) -> bool:
    return isinstance(x, _ArrayForm)
