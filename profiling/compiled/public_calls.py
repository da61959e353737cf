"""Public calls whose GPU programs are looked at on machines without one: compiled ahead of time, and their times predicted."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax

from fastscan import Regimes, lgssm_posterior_sample
from fastscan.dispatch import choice as dispatch
from fastscan.mcmc import api as mcmc
from fastscan.profiling.measure import operations
from fastscan.profiling.measure.cases import METROPOLIS, Case, large
from fastscan.profiling.measure.models import random_params


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
    """Lists the calls of `CASES`, whose times are predicted, too."""
    return [of_case(case) for case in CASES]


def large_calls() -> list[PublicCall]:
    """Lists calls with models that no thread holds, by kernels."""
    return [*(of_case(case, "pallas") for case in large()), of_regimes()]


def of_case(case: Case, implementation: str = "default") -> PublicCall:
    """Makes a case's call, of shapes in place of arrays."""
    function = operations.function(case, implementation)
    assert function is not None  # only dynamax's may be absent
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), operations.data(case))
    return PublicCall(str(case), function, shapes)


def of_regimes(
    implementation: str = "pallas", *, D: int = 30, m: int = 16, T: int = 10_000, B: int = 32, R: int = 100
) -> PublicCall:
    """Makes a posterior sample of sequences whose dynamics follow discrete states, as behaviour models have them."""
    static = random_params(D, m, "float32")

    def sample(F: Any, Q: Any, bias: Any, index: Any, noise: Any, emissions: Any, key: Any) -> jax.Array:
        regimes = dict(zip(("weights", "cov", "bias"), (Regimes(x, index) for x in (F, Q, bias)), strict=True))
        params = static._replace(dynamics=static.dynamics._replace(**regimes), emissions=static.emissions._replace(cov=noise))
        return lgssm_posterior_sample(key, params, emissions, missing=False, implementation=implementation)

    floats = (R, D, D), (R, D, D), (R, D), (T, m), (B, T, m)
    F, Q, bias, noise, emissions = (jax.ShapeDtypeStruct(shape, "float32") for shape in floats)
    index, key = jax.ShapeDtypeStruct((B, T), "int32"), jax.eval_shape(jax.random.PRNGKey, 0)
    name = f"lgssm_posterior_sample D={D} m={m} T={T:,} B={B} of {R} regimes"
    return PublicCall(name, sample, (F, Q, bias, index, noise, emissions, key))


@contextlib.contextmanager
def pretending(device: str) -> Iterator[None]:
    """Lets dispatch take the GPU of this name for the one that JAX computes on."""
    with (
        mock.patch.object(dispatch, "device_kind", return_value=device),
        mock.patch.object(mcmc, "device_kind", return_value=device),
    ):
        yield
