"""Blocks of a series: of an array that may lie on disk, of a sequence of arrays, or of an iterator of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastscan.given import ShapeError, array, emissions_array

BLOCK_ENTRIES = 1 << 22
"""The entries of emissions and covariances in a block, unless its size is given: some passes take fifty times as many bytes."""


class Blocks:
    """A series, block by block: `read` one by its number where `again` is True, or iterate once.

    Attributes:
        lengths: of a list's blocks, else empty.
        T: time steps, or None if only the end of an iterator will tell.
        count: blocks, or None likewise.
        again: whether a block can be read more than once.
    """

    def __init__(self, emissions: Any, inputs: Any, m: int, size: int):
        self.m, self.size, self.inputs = m, size, inputs
        self.emissions: Any = emissions
        self.whole = hasattr(emissions, "shape")
        self.again = self.whole or isinstance(emissions, Sequence)
        self.T = self.count = None
        self.lengths: list[int] = []
        if self.whole:
            shape = tuple(self.emissions.shape)
            if len(shape) != 2 or shape[1] != m or not shape[0]:
                raise ShapeError(f"emissions: shape {shape} given, wanted (T, {m}) with T at least 1.")
            self.T = shape[0]
            self.count = -(-self.T // size)
        elif self.again:
            self.lengths = [len(self.checked(k, x)) for k, x in enumerate(emissions)]
            self.starts = np.cumsum([0, *self.lengths])
            self.T, self.count = int(self.starts[-1]), len(emissions)
            if not self.count:
                raise ShapeError("emissions: no blocks given, wanted at least one.")
        if inputs is not None and (not self.whole or np.shape(inputs)[:1] != (self.T,)):
            raise ShapeError(
                f"inputs: shape {np.shape(inputs)} given, wanted (T, U) beside emissions that are one array (T, m)."
            )

    def read(self, k: int) -> tuple[int, Any, Any]:
        """Returns a block's first time step, its emissions (n, m), and its inputs."""
        if not self.whole:
            return int(self.starts[k]), self.checked(k, self.emissions[k]), None
        part = slice(k * self.size, min((k + 1) * self.size, self.T or 0))
        inputs = None if self.inputs is None else np.asarray(array("inputs", self.inputs[part]))
        return part.start, self.checked(k, self.emissions[part]), inputs

    def numbered(self, first: int) -> Iterator[tuple[int, tuple[int, Any, Any]]]:
        """Iterates over blocks, from a number on, and over the first and the last of those before it; an iterator over all of
        them.
        """
        if self.again:
            before = sorted({0, first - 1}) if first else []
            yield from ((k, self.read(k)) for k in (*before, *range(first, self.count or 0)))
            return
        t = 0
        for k, x in enumerate(self.emissions):
            block = self.checked(k, x)
            yield k, (t, block, None)
            t += len(block)
        if not t:
            raise ShapeError("emissions: no blocks given, wanted at least one.")

    def checked(self, k: int, x: Any) -> Any:
        """Returns a block's emissions as an array.

        Raises:
            TypeError: what is no array of numbers.
            ValueError: a shape, with the block's name.
        """
        name = f"emissions, block {k}"
        x = array(name, emissions_array(x) if isinstance(x, np.ma.MaskedArray) else x)
        if len(x.shape) != 2 or x.shape[1] != self.m or not x.shape[0]:
            raise ShapeError(f"{name}: shape {tuple(x.shape)} given, wanted (n, {self.m}) with n at least 1.")
        return x


def default_size(D: int, m: int) -> int:
    """Returns the steps of a block."""
    return max(BLOCK_ENTRIES // (D * D + m), 1)
