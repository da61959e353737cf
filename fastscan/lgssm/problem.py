"""A problem of linear-Gaussian inference, checked, and how to run it."""

from typing import Any, NamedTuple

import jax

from fastscan import lengths
from fastscan.dispatch import large
from fastscan.dispatch.choice import How, Problem, device_kind
from fastscan.kernels.tables import Computed
from fastscan.lgssm.check import Model, Sizes, check_emission_dim, check_emissions, check_model
from fastscan.lgssm.packed import going_on_from, with_starts
from fastscan.types import GaussianState, ParamsLGSSM


class Given(NamedTuple):
    """A model as it is given: parameters; where sequences begin, (T,) or (B, T), or None; and the state before the first
    emission, or None.
    """

    params: ParamsLGSSM
    starts: Any = None
    state: GaussianState | None = None


def prepare(
    given: Given,
    emissions: jax.Array,
    inputs: jax.Array | None,
    missing: bool | None,
    implementation: str | None,
    count: jax.Array | None = None,
) -> tuple[Model, jax.Array, Sizes, How]:
    """Returns the checked model, the emissions as (B, T, m), the sizes, and how to run them, which may be in wider matrices.

    With a state before the first emission, that is a row more, of the results too.
    """
    check_emissions(emissions)
    batch = emissions.shape[0] if emissions.ndim == 3 else None
    model, sizes = check_model(given.params, emissions.shape[-2], batch, emissions.dtype, inputs)
    model = with_starts(model, given.starts, resumed=given.state is not None)
    model = going_on_from(given.state, model, batch)
    check_emission_dim(emissions, sizes.m)
    emissions = emissions.astype(model.F.dtype)
    matrices = model.initial_cov, model.F, model.Q, model.H, model.R
    shared = missing is False and all(x.shape[0] == 1 for x in matrices)
    family = "lgssm" if model.F.shape[1] == model.Q.shape[1] == 1 else "lgssm_varying"
    fewest = None if count is None else lengths.fewest_rows(sizes.T - 1)
    problem = Problem(
        implementation,
        sizes.T + (given.state is not None),
        large.width(implementation, device_kind(), family, sizes.D),
        sizes.m,
        str(emissions.dtype),
        family,
        shared,
        fewest,
        any(isinstance(x, Computed) and not x.function.plain for x in model),
    )
    plan = problem.plan(batch or 1)
    if plan.launch is not None and model.R.shape[-1] == 1:
        missing = True  # which costs kernels nothing then
    return model, emissions.reshape(-1, sizes.T, sizes.m), sizes, How(plan, problem, missing)
