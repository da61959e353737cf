"""Arrays of matrices as the programs of a kernel see them."""

from typing import Any, Literal, NamedTuple

import jax

from fastscan.kernels.algebra import Lanes, Tile
from fastscan.kernels.gpu.arithmetic import matrix_kind
from fastscan.kernels.plan import Launch

MOST_ROWS = 2**31 - 1
"""The most rows of an array, all sequences' together. Lanes and rows are numbered in 32 bits; entries in 64, where an array is
that large."""

Kind = Literal["once", "chunk", "step"]
"""Which rows of an array a lane reads or writes: the only one, its chunk's, or one for every step."""


class MatrixArray(NamedTuple):
    """An array of matrices, (batch, rows, n, p), as lanes see it."""

    kind: Kind
    batch: int
    rows: int
    n: int
    p: int
    dtype: Any

    @classmethod
    def of(cls, kind: Kind, x: Any) -> "MatrixArray":
        """Describes an array."""
        batch, rows, n, p = x.shape
        return cls(kind, batch, rows, n, p, x.dtype)

    @property
    def entries(self) -> int:
        """The number of a matrix's entries."""
        return self.n * self.p

    def matrix(self, how: Launch) -> Lanes | Tile:
        """Returns the form of a matrix that lanes read, without the numbers."""
        kind = matrix_kind(how)
        if issubclass(kind, Tile):
            return kind.form(self.n, self.p, self.dtype)
        return kind([[jax.ShapeDtypeStruct((how.lanes,), self.dtype)] * self.p] * self.n)


def is_matrix(x: Any) -> bool:
    """Tells whether something is a matrix inside a kernel."""
    return isinstance(x, Lanes | Tile)


def is_matrix_array(x: Any) -> bool:
    """Tells whether something describes an array of matrices."""
    return isinstance(x, MatrixArray)
