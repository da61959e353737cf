"""Public calls whose GPU programs are looked at on machines without one: compiled ahead of time, and their times predicted."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import jax

from fastscan.dispatch import choice as dispatch
from fastscan.mcmc import api as mcmc
from fastscan.profiling.measure import operations
from fastscan.profiling.measure.cases import METROPOLIS, Case, large


class PublicCall(NamedTuple):
    """A function to be jitted, and its arguments, arrays or `jax.ShapeDtypeStruct`s.

    Attributes:
        name: that of its case.
        function: one of the public ones, with ``implementation=None``, or "pallas" where None takes no kernels yet.
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
    Case("lds_inference", 4, 0, 100_000),
    Case(f"{METROPOLIS}_moments", 1, 0, 1_000_000, 1_000),
    Case("hmm_loglik_gradient", 5, 0, 100_000),
    Case("lgssm_loglik_gradient", 4, 2, 100_000),
)
"""Those that the design has a goal for, and others that `.ci/gpu` times first; what takes longest to compile is the last."""


def public_calls() -> list[PublicCall]:
    """Lists the calls of `CASES`, and of large models."""
    return [*map(of_case, CASES), *(of_case(case, "pallas") for case in large())]


def of_case(case: Case, implementation: str = "default") -> PublicCall:
    """Makes a case's call, of shapes in place of arrays."""
    function = operations.function(case, implementation)
    assert function is not None  # only dynamax's may be absent
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), operations.data(case))
    return PublicCall(str(case), function, shapes)


@contextlib.contextmanager
def pretending(device: str) -> Iterator[None]:
    """Lets dispatch take the GPU of this name for the one that JAX computes on."""
    with (
        mock.patch.object(dispatch, "device_kind", return_value=device),
        mock.patch.object(mcmc, "device_kind", return_value=device),
    ):
        yield
