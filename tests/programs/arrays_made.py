"""The arrays that a program makes, as far as its trace tells: nothing is compiled."""

import jax
import numpy as np


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for one in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(one, "jaxpr", one)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def large_arrays(function, *args, entries, by=None):
    """The shapes of arrays of so many entries or more; or of those alone that some primitives make."""
    found = set()
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        if by is None or equation.primitive.name in by:
            found |= {v.aval.shape for v in equation.outvars if np.prod(v.aval.shape) >= entries}
    return found
