"""Ceilings of a device: what it can do at best, and what it takes to start something on it. Measurements are held against
them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from fastscan.profiling.measure.timing import Clock, clock


def measure_ceilings(*, toy: bool = False) -> dict[str, float | str]:
    """Measures rates and seconds; in place of a number the error of what could not run.

    ``copy_bytes_per_second`` counts bytes read and written; ``call_seconds`` is that of a tiny program waited for,
    ``call_in_flight_seconds`` that of one among many, ``kernel_seconds`` that of each of a program's 100 Pallas kernels, and
    ``loop_step_seconds`` that of each step of a loop under XLA, which holds one small kernel.

    Args:
        toy: small arrays, and the kernels in the interpreter.
    """
    size = 1 << (16 if toy else 28)
    found: dict[str, float | str] = {}

    def add(function: Callable, n: int, **figures: Callable[[Clock], float]) -> None:
        try:
            call = functools.partial(jax.jit(function), jnp.ones(n, "float32"))
            jax.block_until_ready(call())
            times = clock({0: call}, in_flight=True, repeats=3 if toy else 15)[0]
            found.update({name: figure(times) for name, figure in figures.items()})
        except Exception as error:
            found.update(dict.fromkeys(figures, f"{type(error).__name__}: {error}"[:200]))

    with jax.enable_x64(False):
        add(lambda x: x + 1, size, copy_bytes_per_second=lambda c: 8 * size / _in_flight(c))
        add(lambda x: x + 1, 1, call_seconds=lambda c: float(np.median(c.waited)), call_in_flight_seconds=_in_flight)
        add(functools.partial(_chain, interpret=toy), 128, kernel_seconds=lambda c: _in_flight(c) / 100)
        add(_loop, 128, loop_step_seconds=lambda c: _in_flight(c) / 1000)
    return found


def _in_flight(times: Clock) -> float:
    return float(np.median(times.in_flight))


def _chain(x: jax.Array, interpret: bool) -> jax.Array:
    from jax.experimental.pallas import triton

    def kernel(x: Any, out: Any) -> None:
        out[...] = x[...] + 1

    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    how = None if interpret else triton.CompilerParams(num_warps=1)
    add_one = pl.pallas_call(kernel, out_shape=shape, interpret=interpret, compiler_params=how)
    return functools.reduce(lambda x, _: add_one(x), range(100), x)


def _loop(x: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 1000, lambda _, x: jnp.sin(x), x)
