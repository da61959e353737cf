"""A log density as random-walk Metropolis takes it: of coordinates one by one, or as it stands."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import Lanes, Stacked
from fastscan.kernels.mcmc import entrywise

MOST_COORDINATES = 16
"""The most coordinates of a position where each is a vector of its own: in a kernel, whose lane holds it and a proposal in
registers, and in native functions, which take XLA half a minute to compile for 32."""

LogDensity = Callable[[Any], Any]
"""A function of a position, (..., chains), to (chains,)."""


class Form(NamedTuple):
    """How a position's coordinates are arranged: a pytree of arrays of these shapes, each with an axis of chains after them."""

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtype: str

    @property
    def size(self) -> int:
        """D, the number of coordinates."""
        return sum(map(math.prod, self.shapes))

    def rows(self, position: Any) -> jax.Array:
        """Returns a position as (D, chains)."""
        return jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in jax.tree.leaves(position)])

    def position(self, rows: jax.Array) -> Any:
        """Returns arrays (..., D, chains) as positions with as many axes before them."""
        ends = np.cumsum([math.prod(s) for s in self.shapes])
        parts = jnp.split(rows, ends[:-1], -2)
        shapes = [(*x.shape[:-2], *shape, x.shape[-1]) for x, shape in zip(parts, self.shapes, strict=True)]
        return jax.tree.unflatten(self.tree, [x.reshape(shape) for x, shape in zip(parts, shapes, strict=True)])

    def of_chains(self, chains: int) -> Any:
        """Returns the shapes and types of positions."""
        return jax.tree.unflatten(self.tree, [jax.ShapeDtypeStruct((*shape, chains), self.dtype) for shape in self.shapes])


class Analysis(NamedTuple):
    """The outcome of taking a log density apart.

    Attributes:
        hindrance: why it can't be taken apart, or None.
        known: whether it closes over nothing that is being traced.
        cost: of taking it apart, for one chain: operations, transcendental ones counted three times, as XLA counts.
        source: where the hindrance is, as `entrywise.place` takes it; None if it is no line's.
    """

    hindrance: str | None
    known: bool
    cost: int = 0
    source: Any = None


@functools.lru_cache(maxsize=64)
def analysis(log_density: LogDensity, form: Form) -> Analysis:
    """Finds out whether a log density can be taken apart, and what that costs.

    Raises:
        ValueError: it returns something else than a number for each chain.
    """
    traced = _checked_trace(log_density, form)
    if form.size > MOST_COORDINATES:
        return Analysis(f"{form.size} coordinates, more than {MOST_COORDINATES}", not traced.unknown)
    number = jax.ShapeDtypeStruct((1,), form.dtype)
    constants = tuple(Lanes([[jax.ShapeDtypeStruct((), c.dtype)]] * c.size) for c in traced.unknown)
    try:
        lowered = jax.jit(_of_entries(traced, form)).lower(constants, Lanes([[number]] * form.size))
    except entrywise.NotEntrywiseError as error:
        return Analysis(str(error), not traced.unknown, source=error.source)
    counts = lowered.cost_analysis() or {}
    cost = counts.get("flops", 0) + 3 * counts.get("transcendentals", 0)
    return Analysis(None, not traced.unknown, int(cost))


def of_coordinates(log_density: LogDensity, form: Form) -> tuple[Callable[[tuple[Lanes, ...], Lanes], Lanes], list[jax.Array]]:
    """Turns a log density into a function of matrices, from constants as columns and a position (D, 1) to (1, 1); and returns
    these constants' arrays.
    """
    traced = entrywise.trace(log_density, form.of_chains(1))
    return _of_entries(traced, form), traced.unknown


def of_positions(log_density: LogDensity, form: Form) -> Callable[[tuple[Lanes, ...], Stacked], Stacked]:
    """Does the same with a log density that is run as it stands, and needs no constants."""

    def as_it_stands(_: tuple[Lanes, ...], position: Stacked) -> Stacked:
        value = log_density(form.position(position.array[:, 0]))
        return Stacked(lax.convert_element_type(value, position.dtype)[None, None])

    return as_it_stands


def _checked_trace(log_density: LogDensity, form: Form) -> entrywise.Traced:
    """Traces the log density for one chain, and checks that for more it returns a number for each of them."""
    traced = entrywise.trace(log_density, form.of_chains(1))
    several = jax.eval_shape(log_density, form.of_chains(3))
    for chains, outs in ((3, jax.tree.leaves(several)), (1, [v.aval for v in traced.jaxpr.outvars])):
        shapes = [x.shape for x in outs]
        if shapes != [(chains,)]:
            raise ValueError(
                f"log_density: returned {', '.join(map(str, shapes)) or 'nothing'} for positions of {chains} chains, wanted "
                f"one array ({chains},): chains are on the last axis, and each has a log density of its own."
            )
    return traced


def _of_entries(traced: entrywise.Traced, form: Form) -> Callable[[tuple[Lanes, ...], Lanes], Lanes]:
    ends = np.cumsum([math.prod(s) for s in form.shapes])

    def log_density(constants: tuple[Lanes, ...], position: Lanes) -> Lanes:
        given = zip(constants, traced.unknown, strict=True)
        unknown = [entrywise.entries([x for (x,) in column.rows], c.shape) for column, c in given]
        values = [x for (x,) in position.rows]
        leaves = [
            entrywise.entries(values[end - math.prod(shape) : end], (*shape, 1))
            for end, shape in zip(ends, form.shapes, strict=True)
        ]
        (out,) = traced(unknown, *leaves)
        value = jnp.broadcast_to(out[0], jnp.shape(values[0]))
        return type(position)([[lax.convert_element_type(value, position.dtype)]])

    return log_density
