"""The two orders of axes that matrices come in: of series, a row a matrix, and of lanes, whose axes are the last ones."""

from typing import Any

import jax


def as_rows(tree: Any) -> Any:
    """Arrays (n, p, C, B) as (B, C, n, p)."""
    return jax.tree.map(lambda x: x.transpose(3, 2, 0, 1), tree)


def as_lanes(tree: Any) -> Any:
    """Arrays (B, C, n, p) as (n, p, C, B)."""
    return jax.tree.map(lambda x: x.transpose(2, 3, 1, 0), tree)
