"""Affine maps as recurrences: forward in time, and back as derivatives go."""

import functools
from typing import Any, NamedTuple

from fastscan.kernels.affine.structures import DENSE, Structure
from fastscan.kernels.algebra import zeros
from fastscan.kernels.algebra.stages import add, where
from fastscan.kernels.scan.recurrence import Recurrence, Seam, merge
from fastscan.kernels.scan.seams import vectors_apart


class AffineMap(NamedTuple):
    """A row, z <- E z + e; and a stretch of rows, which is such a map, too. The same container holds what is the same in every
    row (see `recurrence.merge`).

    Attributes:
        E: a matrix, as its structure has it.
        e: a vector.
        begin: (1, 1), 1 where a new sequence begins and z is `fresh` before the row; None if none does. Of rows.
        fresh: a vector.
    """

    E: Any = None
    e: Any = None
    begin: Any = None
    fresh: Any = None


@functools.cache
def affine_maps(structure: Structure) -> Recurrence:
    """Makes the recurrence of vectors under affine maps, whose outputs are the vectors after every row."""

    def append(params: AffineMap, summary: AffineMap, x: AffineMap) -> AffineMap:
        row = merge(params, x)
        E, e = summary.E, summary.e
        if row.begin is not None:
            E, e = where(row.begin, zeros(E, *E.shape), E), where(row.begin, row.fresh, e)
        return _then(structure, AffineMap(E, e), row)

    def step(params: AffineMap, state: Any, x: AffineMap) -> tuple[Any, Any]:
        row = merge(params, x)
        before = state if row.begin is None else where(row.begin, row.fresh, state)
        after = structure.apply(row.E, before, row.e)
        return after, after

    return _recurrence(f"{structure.name}_maps", structure, append, step)


@functools.cache
def adjoint_maps(structure: Structure) -> Recurrence:
    """Makes the recurrence of derivatives back through `affine_maps`, to be run in reverse, with derivatives with respect to
    its outputs in place of ``e``. Its outputs are those with respect to the maps' ``e``; its state is that with respect to the
    vector before a row.
    """

    def append(params: AffineMap, summary: AffineMap, x: AffineMap) -> AffineMap:
        row = merge(params, x)
        back = structure.transpose(row.E)
        E, e = structure.compose(back, summary.E), structure.apply(back, add(summary.e, row.e), zeros(row.e, *row.e.shape))
        if row.begin is None:
            return AffineMap(E, e)
        return AffineMap(*(where(row.begin, zeros(m, *m.shape), m) for m in (E, e)))

    def step(params: AffineMap, state: Any, x: AffineMap) -> tuple[Any, Any]:
        row = merge(params, x)
        here = add(state, row.e)
        before = structure.apply(structure.transpose(row.E), here, zeros(here, *here.shape))
        if row.begin is not None:
            before = where(row.begin, zeros(before, *before.shape), before)
        return before, here

    return _recurrence(f"{structure.name}_adjoints", structure, append, step)


def _recurrence(name: str, structure: Structure, append: Any, step: Any) -> Recurrence:
    return Recurrence(
        name,
        lambda state: AffineMap(structure.identity(state), zeros(state, *state.shape)),
        append,
        functools.partial(_then, structure),
        lambda state, summary: structure.apply(summary.E, state, summary.e),
        step,
        seam=Seam(vectors_apart),
    )


def _then(structure: Structure, earlier: AffineMap, later: AffineMap) -> AffineMap:
    return AffineMap(structure.compose(later.E, earlier.E), structure.apply(later.E, earlier.e, later.e))


AFFINE_MAPS = affine_maps(DENSE)
"""Vectors under dense affine maps."""
