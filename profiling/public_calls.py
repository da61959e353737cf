"""Public calls whose GPU programs are looked at on machines without one: compiled ahead of time, and their times predicted."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from fastscan import dispatch, lds, mcmc
from fastscan.profiling import operations
from fastscan.profiling.cases import Case
from fastscan.profiling.metropolis_rivals import mixture


class PublicCall(NamedTuple):
    """A function to be jitted, and its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Attributes:
        name: with sizes.
        function: one of the public ones, with ``implementation=None``.
        arguments: of it.
    """

    name: str
    function: Callable
    arguments: tuple


CASES = (
    Case("lgssm_smoother", 4, 2, 100_000),
    Case("lgssm_smoother", 4, 2, 1_000_000),
    Case("lgssm_smoother", 4, 2, 1_000, 1_024),
    Case("lgssm_filter", 4, 2, 100_000),
    Case("lgssm_marginal_loglik", 4, 2, 100_000),
    Case("lgssm_posterior_sample", 4, 2, 100_000),
    Case("hmm_smoother", 5, 0, 1_000_000),
    Case("hmm_posterior_sample", 5, 0, 1_000_000),
    Case("hmm_posterior_mode", 5, 0, 1_000_000),
)
"""Those that the design has a goal for, whose times are predicted."""

GRADIENTS = (Case("hmm_loglik_gradient", 5, 0, 1_000_000), Case("lgssm_loglik_gradient", 4, 2, 100_000))
"""Those that are compiled, too, the slowest last."""

LDS_SIZES = 4, 100_000
CHAINS, METROPOLIS_STEPS = 1_000, 1_000_000


def public_calls(*, gradients: bool = False) -> list[PublicCall]:
    """Lists the calls, with those of gradients at their end if these are wanted."""
    calls = [*map(_of_case, CASES), _lds(*LDS_SIZES), _metropolis(CHAINS, METROPOLIS_STEPS)]
    return [*calls, *map(_of_case, GRADIENTS)] if gradients else calls


@contextlib.contextmanager
def pretending(device: str) -> Iterator[None]:
    """Lets dispatch take the GPU of this name for the one that JAX computes on."""
    with (
        mock.patch.object(dispatch, "device_kind", return_value=device),
        mock.patch.object(mcmc, "device_kind", return_value=device),
    ):
        yield


def _of_case(case: Case) -> PublicCall:
    function = operations.function(case, "default")
    assert function is not None  # only dynamax's may be absent
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), operations.data(case))
    return PublicCall(str(case), function, shapes)


def _lds(D: int, T: int) -> PublicCall:
    def array(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, "float32")

    init, node = lds.InitialPotential(array(D), array(D, D)), lds.NodePotential(array(T, D), array(T, D, D))
    pair = lds.PairPotential(array(D), array(D, D), array(D, D), array(D, D), array(D))
    return PublicCall(f"lds_inference D={D} T={T:,} float32", lds.lds_inference, (node, init, pair))


def _metropolis(chains: int, steps: int) -> PublicCall:
    def run(key: jax.Array, position: jax.Array) -> Any:
        return mcmc.rw_metropolis(key, mixture, position, steps, step_size=6.4, keep="moments")

    arguments = jax.ShapeDtypeStruct((2,), np.uint32), jax.ShapeDtypeStruct((1, chains), "float32")
    return PublicCall(f"rw_metropolis D=1 chains={chains:,} steps={steps:,} float32", run, arguments)
