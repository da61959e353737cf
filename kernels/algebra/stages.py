"""Operators as stages: what XLA is to compute once and keep, where it would compute it anew for all that it feeds.

Each is the operator of its name on matrices of one representation, marked as a `stage`; with matrices that are not staged it is
the operator and nothing else.
"""

import jax.numpy as jnp

from fastscan.kernels.algebra import multiply_add, select, stage, symmetric


@stage
def add(a, b):
    """Adds two matrices."""
    return a + b


@stage
def subtract(a, b):
    """Subtracts the second matrix from the first."""
    return a - b


@stage
def negate(a):
    """Changes every entry's sign."""
    return a * -1.0


@stage
def hadamard(a, b):
    """Multiplies entry by entry; a row, a column or a 1 x 1 matrix is repeated."""
    return a * b


@stage
def matmul(a, b):
    """Multiplies two matrices. One stage, however many terms the sums have (see `algebra.product`)."""
    return a @ b


@stage
def matmul_add(a, b, c):
    """Computes ``a @ b + c``."""
    return multiply_add(a, b, c)


@stage
def symmetrized(a):
    """Removes the antisymmetric part that rounding leaves."""
    return symmetric(a)


@stage
def minimum(a, b):
    """Takes the smaller one, entry by entry."""
    return type(a).elementwise(jnp.minimum, a, b)


@stage
def maximum(a, b):
    """Takes the larger one, entry by entry."""
    return type(a).elementwise(jnp.maximum, a, b)


@stage
def where(flag, x, y):
    """Takes x where the flag (1, 1) is 1, else y."""
    return type(x).elementwise(lambda x, y, flag: select(flag == 1, x, y), x, y, flag)
