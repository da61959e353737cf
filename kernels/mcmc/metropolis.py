"""Random-walk Metropolis, a chain a lane: proposals, their log densities and random numbers are made where they are used.

A run is blocks of records of steps. Under XLA, a group of chains goes through all of it in one native function; in a kernel, a
lane through a block. A chain's random words are a function of the key, the chain's number and the step's, so they are the same
however chains are grouped and runs are cut.

Metropolis, Rosenbluth, Rosenbluth, Teller & Teller (1953); Robbins & Monro (1951) for the scale's adaptation, as in Andrieu &
Thoms (2008), A tutorial on adaptive MCMC, algorithm 4.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import Lanes, Matrix, Stacked, StagedLanes
from fastscan.kernels.gpu.launch import Program, form, launch
from fastscan.kernels.gpu.matrix_arrays import Kind
from fastscan.kernels.mcmc.random_numbers import StepNumbers, drawn, words_of, words_of_step
from fastscan.kernels.mcmc.threefry import threefry_2x32
from fastscan.kernels.plan import Plan
from fastscan.kernels.ranges import phase
from fastscan.kernels.xla_hints import as_one_function

Keep = Literal["samples", "moments", "last"]


class ChainState(NamedTuple):
    """A chain's state, of matrices.

    Attributes:
        position: (D, 1).
        log_density: there, (1, 1).
        scale: of proposals, (1, 1).
        key: of its random words, (2, 1), uint32.
        step: how many steps it has made, (1, 1), uint32.
        accepted: how many of them moved it, (1, 1), uint32.
    """

    position: Any
    log_density: Any
    scale: Any
    key: Any
    step: Any
    accepted: Any


class Moments(NamedTuple):
    """Moments of a chain's records: how many, their means, and sums of squares about them; (1, 1), (D, 1), (D, 1)."""

    count: Any
    mean: Any
    squares: Any


class Params(NamedTuple):
    """Parameters that all chains share.

    Attributes:
        factor: of proposals: a column of standard deviations, or a lower triangular matrix; (1, 1), (D, 1) or (D, D).
        constants: of the log density, those known only as the program runs, each as a column.
    """

    factor: Any
    constants: tuple[Any, ...]


class Schedule(NamedTuple):
    """The steps of a run.

    Attributes:
        thin: steps to a record.
        keep: what is kept of records.
        target: of the acceptance rate, if the scale adapts to it.
        decay: with which power of the step's number the scale adapts less.
    """

    thin: int = 1
    keep: Keep = "last"
    target: float | None = None
    decay: float = 0.6


class Walk(NamedTuple):
    """The static part of a run: a schedule, and ``(constants, position) -> log density`` of matrices."""

    schedule: Schedule
    log_density: Callable[[tuple[Any, ...], Any], Any]


def chain_keys(words: Any, chains: Any) -> tuple[Any, Any]:
    """Makes a key of two words for each chain, from the caller's two words and the chains' numbers, uint32."""
    return threefry_2x32((words[0], words[1]), (chains, jnp.zeros_like(chains)))


def move(walk: Walk, params: Params, chain: ChainState, draws: StepNumbers) -> ChainState:
    """Takes one step."""
    factor, kind = params.factor, type(chain.position)
    noise = draws.normal * factor if factor.shape[1] == 1 else _lower(factor) @ draws.normal
    proposal = chain.position + noise * chain.scale
    log_density = walk.log_density(params.constants, proposal)
    change = log_density - chain.log_density
    accept = kind.elementwise(jnp.less, draws.log_uniform, change)
    position, log_density = (
        kind.elementwise(jnp.where, accept, new, old)
        for new, old in ((proposal, chain.position), (log_density, chain.log_density))
    )
    step = _next(chain.step)
    accepted = kind.elementwise(lambda n, a: n + lax.convert_element_type(a, jnp.uint32), chain.accepted, accept)
    scale = chain.scale if walk.schedule.target is None else _adapted(walk.schedule, chain.scale, change, step)
    return ChainState(position, log_density, scale, chain.key, step, accepted)


def _next(step: Any) -> Any:
    return type(step).elementwise(lambda n: n + np.uint32(1), step)


def _lower(factor: Any) -> Any:
    """Marks zeros of a triangular factor: on `Lanes`, what is known to be zero takes no part in products."""
    if not isinstance(factor, Lanes):
        return factor
    zero = factor.dtype.type(0)
    return type(factor)([[x if j <= i else zero for j, x in enumerate(row)] for i, row in enumerate(factor.rows)])


def _adapted(schedule: Schedule, scale: Any, change: Any, step: Any) -> Any:
    """Adapts a scale: its logarithm changes by step^-decay (probability of acceptance - target)."""
    dtype = scale.dtype

    def new(scale: Any, change: Any, step: Any) -> Any:
        chance = jnp.exp(jnp.minimum(change, dtype.type(0)))
        chance = jnp.where(chance == chance, chance, dtype.type(0))  # a log density that is no number is never accepted
        n = lax.convert_element_type(lax.convert_element_type(step, jnp.int32), dtype)
        return scale * jnp.exp(jnp.exp(-dtype.type(schedule.decay) * jnp.log(n)) * (chance - dtype.type(schedule.target)))

    return type(scale).elementwise(new, scale, change, step)


class _Carry(NamedTuple):
    """Within a block: a chain, the words of its next step, and sums of how far its records lie from where it began.

    Words are made a step ahead: a lane then need not wait for them, and XLA makes them once, where it would make anew what
    several of its loops take.
    """

    chain: ChainState
    words: Any
    sums: tuple[Any, ...]


def _words(chain: ChainState) -> int:
    return words_of(chain.position.dtype) * (chain.position.shape[0] + 1)


def _begin(walk: Walk, chain: ChainState) -> _Carry:
    zero = type(chain.position).elementwise(jnp.zeros_like, chain.position)
    return _Carry(
        chain, words_of_step(chain.key, chain.step, _words(chain)), (zero, zero) if walk.schedule.keep == "moments" else ()
    )


def _record(walk: Walk, params: Params, origin: Any, carry: _Carry, _: Any) -> tuple[_Carry, Any]:
    """Takes ``thin`` steps, and returns what is kept of the last one."""

    def step(carry: _Carry) -> _Carry:
        chain = carry.chain
        ahead = words_of_step(chain.key, _next(chain.step), _words(chain))
        draws = drawn(carry.words, chain.position.shape[0], chain.position.dtype)
        return carry._replace(chain=move(walk, params, chain, draws), words=ahead)

    carry = (
        step(carry) if walk.schedule.thin == 1 else lax.fori_loop(0, walk.schedule.thin, lambda _, carry: step(carry), carry)
    )
    position = carry.chain.position
    if walk.schedule.keep == "moments":
        away = position - origin
        carry = carry._replace(sums=(carry.sums[0] + away, carry.sums[1] + away * away))
    return carry, position if walk.schedule.keep == "samples" else ()


def _merged(moments: Moments, origin: Any, sums: tuple[Any, ...], records: int) -> Moments:
    """Adds the moments of one more block: Chan, Golub & LeVeque (1983)."""
    n = float(records)
    mean, squares = origin + sums[0] * (1 / n), sums[1] - sums[0] * sums[0] * (1 / n)
    kind = type(origin)
    count = kind.elementwise(lambda c: c + c.dtype.type(n), moments.count)
    share = kind.elementwise(lambda c: c.dtype.type(n) / c, count)
    change = mean - moments.mean
    between = change * change * (moments.count * share)
    return Moments(count, moments.mean + change * share, moments.squares + squares + between)


BLOCK = 1024
"""Records whose deviations are summed before their moments are merged with those before: few enough for float32."""


def blocks(keep: Keep, records: int) -> tuple[int, int, int]:
    """Counts the whole blocks that records make, of how many each, and how many remain."""
    size = min(BLOCK, records) if keep == "moments" else records
    return records // size, size, records % size


@phase("walk")
def in_lanes(walk: Walk, params: Params, chain: ChainState, records: int, kind: type[Matrix]) -> tuple[ChainState, Any, Any]:
    """Runs under XLA, with chains as lanes.

    Args:
        walk: what is done.
        params: arrays (n, p).
        chain: arrays (n, 1, chains).
        records: how many.
        kind: of matrices.

    Returns:
        The chains after it, their moments, both as ``chain``, and their records (records, D, 1, chains); None in place of what
        is not kept.
    """
    lanes = functools.partial(jax.tree.map, kind.from_array)
    params = lanes(params if issubclass(kind, Lanes) else jax.tree.map(lambda x: x[..., None], params))

    def record(origin: Any, carry: _Carry, _: None) -> tuple[_Carry, Any]:
        carry, out = _record(walk, params, origin, carry, None)
        return carry, jax.tree.map(lambda x: x.to_array(), out, is_leaf=_is_matrix)

    def block(size: int, state: Any, _: Any = None) -> tuple[Any, Any]:
        chain, moments = state
        origin = chain.position
        carry, out = lax.scan(functools.partial(record, origin), _begin(walk, chain), None, size)
        return (carry.chain, moments and _merged(moments, origin, carry.sums, size)), out

    whole, size, rest = blocks(walk.schedule.keep, records)
    state = lanes((chain, _no_moments(chain.position) if walk.schedule.keep == "moments" else None))
    if whole == 1:
        state, out = block(size, state)
    else:
        state, out = lax.scan(functools.partial(block, size), state, None, whole)
    if rest:
        state, _ = block(rest, state)
    after, moments = jax.tree.map(lambda x: x.to_array(), state, is_leaf=_is_matrix)
    return after, moments, out if walk.schedule.keep == "samples" else None


def in_native_function(walk: Walk, params: Params, chain: ChainState, records: int) -> tuple[ChainState, Any, Any]:
    """Runs `in_lanes` on one group of chains after the other, in one native function: arrays (groups, n, 1, chains) of each."""

    def run(chain: ChainState, params: Params) -> Any:
        return lax.map(lambda group: in_lanes(walk, params, group, records, StagedLanes), chain)

    return as_one_function(run)(chain, params)


@phase("walk")
def in_kernels(plan: Plan, walk: Walk, params: Params, chain: ChainState) -> tuple[ChainState, Any, Any]:
    """Runs on a GPU, a chain a lane, with one launch for each block of records.

    Args:
        plan: of as many steps as there are records, and one chunk.
        walk: what is done.
        params: arrays (1, 1, n, p).
        chain: arrays (chains, 1, n, 1).

    Returns:
        The chains after it, their moments, both as ``chain``, and their records (chains, records, D, 1); None in place of what
        is not kept.
    """
    whole, size, rest = blocks(walk.schedule.keep, plan.steps)
    block = functools.partial(_launched, plan._replace(steps=size), walk, params)
    moments = _no_moments(chain.position, -2) if walk.schedule.keep == "moments" else None
    if whole == 1:
        chain, moments, out = block((chain, moments))
    else:
        (chain, moments), out = lax.fori_loop(0, whole, lambda _, state: block(state)[:2], (chain, moments)), None
    if rest:
        chain, moments, out = _launched(plan._replace(steps=rest), walk, params, (chain, moments))
    return chain, moments, out


def _launched(plan: Plan, walk: Walk, params: Params, state: tuple[ChainState, Moments | None]) -> tuple[ChainState, Any, Any]:
    kept = state[1] is not None, walk.schedule.keep == "samples"

    def kernel(program: Program) -> None:
        params, (chain, moments) = program.read(0), program.read(1)
        origin = chain.position
        record = functools.partial(_record, walk, params, origin)
        carry = program.loop(record, _begin(walk, chain), 2, 1 if kept[1] else None, False)
        program.write(0, (carry.chain, _merged(moments, origin, carry.sums, plan.steps) if kept[0] else None))

    inputs: list[tuple[Kind, Any]] = [("once", params), ("chunk", state), ("step", ())]
    after = form(plan, state)
    outputs: list[tuple[Kind, Any, Any]] = [("chunk", after, False)]
    if kept[1]:
        outputs.append(("step", after[0].position, False))
    (chain, moments), *out = launch(plan, "metropolis", kernel, inputs, outputs)
    return chain, moments, out[0] if out else None


def _no_moments(position: jax.Array, axis: int = 0) -> Moments:
    """Returns the moments of no records, for positions whose coordinates are on an axis."""
    zero = jnp.zeros_like(position)
    return Moments(lax.index_in_dim(zero, 0, axis), zero, zero)


def _is_matrix(x: Any) -> bool:
    return isinstance(x, Lanes | Stacked)
