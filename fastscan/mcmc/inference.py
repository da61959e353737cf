"""The compiled part of random-walk Metropolis: checked positions in, chains, moments and samples out.

Here coordinates are in one row: positions are (D, chains), samples (num_samples, D, chains).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from fastscan.kernels.algebra import Lanes, Stacked, stage
from fastscan.kernels.arrays import alike
from fastscan.kernels.mcmc import metropolis
from fastscan.kernels.mcmc.metropolis import ChainState, Moments, Params, Schedule, Walk
from fastscan.kernels.plan import Launch, Plan
from fastscan.kernels.xla_hints import BYTE_COST, TASK_COST, VECTOR
from fastscan.mcmc.target import Form, LogDensity, of_coordinates, of_positions

GROUP = 256
"""Chains, at most, that go through a run together on a CPU: what a step makes of them stays in the nearest cache."""


class Task(NamedTuple):
    """The settings that a program is compiled for; fields as `fastscan.mcmc.rw_metropolis` and `metropolis.Walk` have them.

    Attributes:
        launch: of kernels; None for XLA.
        group: under XLA, how many chains at most go through native functions together; 0: positions are whole arrays, and the
            log density runs as it stands.
    """

    log_density: LogDensity
    form: Form
    launch: Launch | None
    group: int = 0


class Walkers(NamedTuple):
    """Chains between runs: position (D, chains), log density, scale, number and count of steps made (chains,)."""

    position: Any
    log_density: Any
    scale: Any
    number: Any
    step: Any


class Outcome(NamedTuple):
    """The walkers after a run, how many of their steps moved them (chains,), and what is kept of records."""

    walkers: Walkers
    accepted: jax.Array
    moments: tuple[jax.Array, jax.Array] | None
    samples: jax.Array | None


@functools.partial(jax.jit, static_argnames="task")
def begin(task: Task, key: jax.Array, position: Any, log_density: Any, step: Any, scale: Any) -> tuple[jax.Array, Walkers]:
    """Returns a key's two words, and walkers at a position; a log density that is None is computed as a run computes it."""
    rows, dtype = task.form.rows(position), task.form.dtype
    chains, bits = rows.shape[-1], jax.random.bits(key, (2,), jnp.uint32)
    if log_density is None:
        function, constants = _density(task)
        kind = Stacked if as_it_stands(task) else Lanes
        columns = tuple(Lanes.from_array(c.reshape(-1, 1)) for c in constants)
        log_density = function(columns, kind.from_array(rows[:, None])).to_array()[0, 0]
    numbers = jnp.arange(chains, dtype=jnp.uint32)
    scale, step = jnp.full(chains, scale, dtype), jnp.full(chains, step, jnp.uint32)
    return bits, Walkers(rows, log_density.astype(dtype), scale, numbers, step)


@jax.jit
def of_common_scale(walkers: Walkers) -> Walkers:
    """Walkers whose scale is the geometric mean of theirs; those that are nowhere, and never move, have no say."""
    able = jnp.isfinite(walkers.log_density) & jnp.isfinite(walkers.scale) & (walkers.scale > 0)
    total = jnp.where(able, jnp.log(jnp.where(able, walkers.scale, 1)), 0).sum()
    return walkers._replace(scale=jnp.full_like(walkers.scale, jnp.exp(total / jnp.maximum(able.sum(), 1).astype(total.dtype))))


def as_it_stands(task: Task) -> bool:
    """Tells whether positions are whole arrays, and the log density runs as it was written."""
    return not task.group and task.launch is None


def _density(task: Task) -> tuple[Callable[[tuple[Lanes, ...], Any], Any], list[jax.Array]]:
    if as_it_stands(task):
        return of_positions(task.log_density, task.form), []
    return of_coordinates(task.log_density, task.form)


@functools.partial(jax.jit, static_argnames=("task", "schedule", "records"))
def run(task: Task, schedule: Schedule, records: int, words: jax.Array, factor: jax.Array, walkers: Walkers) -> Outcome:
    """Runs all chains in one program.

    Args:
        task: what is compiled.
        schedule: what is done.
        records: how many.
        words: the key's two.
        factor: of proposals, (1, 1), (D, 1) or (D, D).
        walkers: where chains are.
    """
    log_density, constants = _density(task)
    words, factor, walkers, constants = alike((words, factor, walkers, constants))
    none = jnp.zeros_like(walkers.step)
    columns = (walkers.position, walkers.log_density[None], walkers.scale[None],
               jnp.stack(metropolis.chain_keys(words, walkers.number)), walkers.step[None], none[None])  # fmt: skip
    params = Params(factor, tuple(c.reshape(-1, 1) for c in constants))
    by = _kernels if task.launch else _xla
    chain, moments, samples = by(
        task, Walk(schedule, stage(log_density) if task.group else log_density), records, params, ChainState(*columns)
    )
    after = walkers._replace(
        position=chain.position, log_density=chain.log_density[0], scale=chain.scale[0], step=chain.step[0]
    )
    if moments is not None:
        moments = moments.mean, moments.squares / records
    return Outcome(after, chain.accepted[0], moments, samples)


def most_in_group(form: Form, cost: int) -> int:
    """Counts the chains that a CPU takes together, for a log density of so many operations; 0 if not even a vector of them."""
    moved = BYTE_COST * np.dtype(form.dtype).itemsize * (form.size + 4)
    return min(GROUP, TASK_COST // (cost + moved)) // VECTOR * VECTOR


def groups(chains: int, most: int, parts: int = 1) -> tuple[int, int]:
    """Divides chains into groups: how many groups, of how many chains, with as many groups in each of some parts."""
    count = -(-chains // most)
    count = -(-count // parts) * parts
    return count, -(-chains // (count * VECTOR)) * VECTOR


def _xla(task: Task, walk: Walk, records: int, params: Params, chain: ChainState) -> tuple[ChainState, Moments | None, Any]:
    """Runs chains, given as columns (n, chains), under XLA. Results are columns, too; samples are (records, D, chains)."""
    chains = chain.position.shape[-1]
    count, size = groups(chains, task.group) if task.group else (1, chains)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, count * size - chains)), mode="edge")
        return x.reshape(-1, count, 1, size).transpose(1, 0, 2, 3)

    def join(x: jax.Array) -> jax.Array:  # (groups, ..., n, 1, chains)
        x = jnp.moveaxis(x[..., 0, :], 0, -2)
        return x.reshape(*x.shape[:-2], count * size)[..., :chains]

    out = _mapped(task, walk, records)(jax.tree.map(split, chain), params)
    return jax.tree.map(join, out)


def _mapped(task: Task, walk: Walk, records: int) -> Callable[[ChainState, Params], Any]:
    """Makes a run of groups of chains, in native functions where they are not mapped over."""

    def plain(chain: ChainState, params: Params) -> Any:
        kind = Lanes if task.group else Stacked
        return lax.map(lambda group: metropolis.in_lanes(walk, params, group, records, kind), chain)

    if not task.group:
        return plain

    @custom_vmap
    def native(chain: ChainState, params: Params) -> Any:
        return metropolis.in_native_function(walk, params, chain, records)

    @native.def_vmap
    def _(size: int, mapped: Any, *args: Any) -> tuple[Any, Any]:
        del size
        out = jax.vmap(plain, jax.tree.map(lambda m: 0 if m else None, tuple(mapped)))(*args)
        return out, jax.tree.map(lambda _: True, out)

    return native


def _kernels(task: Task, walk: Walk, records: int, params: Params, chain: ChainState) -> tuple[ChainState, Moments | None, Any]:
    """Runs chains as kernels; arguments and results are those of `_xla`."""
    plan = Plan(records, 1, launch=task.launch)

    @custom_vmap
    def launch(chain: ChainState, params: Params) -> Any:
        rows = jax.tree.map(lambda x: x.T[:, None, :, None], chain)
        chain, moments, samples = metropolis.in_kernels(plan, walk, jax.tree.map(lambda x: x[None, None], params), rows)
        chain, moments = jax.tree.map(lambda x: x[:, 0, :, 0].T, (chain, moments))
        return chain, moments, None if samples is None else samples[..., 0].transpose(1, 2, 0)

    @launch.def_vmap
    def _(size: int, mapped: Any, *args: Any) -> tuple[Any, Any]:
        args = jax.tree.map(lambda x, m: x if m else jnp.broadcast_to(x, (size, *x.shape)), args, tuple(mapped))
        out = lax.map(lambda args: launch(*args), args)
        return out, jax.tree.map(lambda _: True, out)

    return launch(chain, params)
