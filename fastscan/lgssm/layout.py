"""From a checked model to what the passes take: noise becomes independent, and what is known is taken away."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.arrays import matmul_by_entries
from fastscan.functions import written_for
from fastscan.kernels.algebra import UNROLLED_TERMS
from fastscan.kernels.arrays import as_lanes, as_rows, blank, matmul
from fastscan.kernels.lgssm import in_place
from fastscan.kernels.lgssm.decorrelation import decorrelate_rows
from fastscan.kernels.lgssm.definiteness import (
    indefinite,
    indefinite_beside,
    indefinite_model,
    magnitudes,
    moved_variances,
    surely_definite,
)
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.kernels.lgssm.kalman import FilterInputs
from fastscan.kernels.lgssm.passes import Series
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan import driver
from fastscan.kernels.scan.xla import OnXLA
from fastscan.kernels.tables import Table, is_computed, is_table, values_of
from fastscan.lgssm.check import Model
from fastscan.regimes import as_series, over_blocks, over_rows, products


def series(plan: Plan, model: Model, emissions: jax.Array, missing: bool) -> Series:
    """Returns the input of the passes.

    Args:
        plan: which they will run.
        model: checked.
        emissions: (B, T, m).
        missing: whether NaN entries are to be looked for; without, emissions are taken as they are.

    With as many emissions as rows, the initial state is one before all of them, of which nothing else is known.
    """
    resumed = emissions.shape[1] == plan.steps
    model = written_for(plan, model)
    y = emissions[..., None]
    observed = ~jnp.isnan(y) if missing else None
    drift, offset = known_terms(model)
    y = y - offset
    if observed is not None:
        y = jnp.where(observed, y, 0)
    H, noise, y = _independent(plan, model, y, observed)
    weight = None if observed is None else observed.astype(y.dtype)
    Q, initial_cov = _unless_indefinite(plan, model)
    F, Q, H = (x.filled() if is_table(x) else x for x in (model.F, Q, H))
    inputs = FilterInputs(F, drift, Q, H, noise, y, weight)
    params, rows = _divide(inputs, 0 if resumed else 1)
    if in_place.applies(plan):  # which reads them where they are
        rows = rows._replace(**{k: getattr(inputs, k) for k in ("F", "Q") if getattr(rows, k) is not None})
    prior = Gaussian(model.initial_mean, initial_cov)
    first = FilterInputs(*(None if x is None else as_series(rows_of(x, slice(1))) for x in inputs))
    if resumed:
        first = first._replace(y=jnp.zeros_like(first.y), weight=jnp.zeros_like(first.y))
    return Series(prior, first, params, rows)


def known_terms(model: Model) -> tuple[jax.Array, jax.Array]:
    """Biases and inputs: of the transitions (B or 1, T or 1, D, 1), of the emissions (B or 1, T or 1, m, 1)."""
    # zeros are of as many sequences as what they go with, for derivatives are
    drift = _known(model.b, model.B, model.u, _column(model.F))
    offset = _known(model.d, model.D, model.u, _column(model.H))
    return drift, offset


def noise_of(model: Model) -> Any:
    """Returns the emissions' noise R, a table with its index."""
    shared = is_table(model.R) and model.R.index is None
    return model.R._replace(index=model.H.index) if shared else model.R


def _column(x: Any) -> jax.Array:
    """Returns zeros (B or 1, 1, n, 1), for matrices (B or 1, T or 1, n, p)."""
    B, _, n, _ = x.shape
    return jnp.zeros_like(jax.tree.leaves(x)[0], x.dtype, shape=(B, 1, n, 1))


def _known(bias: jax.Array | None, weights: Any, inputs: jax.Array | None, zeros: jax.Array) -> jax.Array:
    """Bias + weights @ inputs."""
    known = zeros if bias is None else bias
    if weights is None or inputs is None:
        return known
    return known + products(weights, inputs)


def _independent(plan: Plan, model: Model, y: jax.Array, observed: jax.Array | None) -> tuple[Any, jax.Array, jax.Array]:
    """Transforms the emissions to coordinates with independent noise; missing ones stay apart.

    There are as many changes of coordinates as regimes, where nothing is missing, and H and R go together.
    """
    H, R = model.H, model.R
    if (R.shape[-1] == 1 and H.shape[-2] > 1) or H.shape[-2] == 1:
        return H, jnp.where(R < 0, jnp.nan, R), y
    shared = is_table(R) and R.index is None
    one_index = not is_computed(H) and (shared or (is_table(H) and R.shape[1] == 1) or (is_table(R) and H.shape[1] == 1))
    if one_index and observed is None:
        index, of_each = H.index if is_table(H) else R.index, decorrelate_rows(plan, values_of(H), values_of(R))
        regimes = max(x.shape[1] for x in of_each)
        H, noise, change = (Table(x, index) if x.shape[1] == regimes else x for x in of_each)
        return H, as_series(noise), products(change, y)
    H, R = as_series(H), as_series(noise_of(model))
    if observed is not None:
        R = jnp.where(observed & jnp.swapaxes(observed, -1, -2), R, 0)
    apart = decorrelate_rows(plan, H, R)
    product = matmul if plan.launch is None else matmul_by_entries
    return apart.H, apart.noise, product(apart.change, y)


def _unless_indefinite(plan: Plan, model: Model) -> tuple[Any, jax.Array]:
    """Returns Q and the initial covariance, NaN where they are no covariances, so that no result can look right.

    Q is judged beside its own variances at any time, and those of an initial state moved on: who computes Q by subtraction, as
    Gaussian processes have it, has it up to a rounding of these. A Q that does not vary is judged once, beside the initial
    state that any F moves on, and so is a regime's, and every Q beside a table of F.
    """
    if is_computed(model.Q) or is_computed(model.F):
        return _unless_indefinite_anywhere(plan, model)
    Q, F, P = values_of(model.Q), values_of(model.F), model.initial_cov
    by = driver.phases(plan)
    judge, given = indefinite_model, lax.stop_gradient((Q, F, P))
    if not Q.shape[1] == F.shape[1] == 1:
        largest = _largest(jnp.abs(jnp.diagonal(given[0], axis1=-2, axis2=-1))[..., None])
        given = *given, largest
        if Q.shape[1] == 1 or is_table(model.Q) or is_table(model.F):
            moved = by.each_row("moved_variances", moved_variances, given[1:3])
            judge, given = indefinite_beside, (given[0], given[2], largest + _largest(moved))

    def judged() -> tuple[jax.Array, jax.Array]:
        of_Q, of_P = by.each_row("indefinite", judge, given)
        return of_Q, of_P[:, :1]

    of_Q, of_P = _judged(plan, judged, lambda: surely_definite(Q) & surely_definite(P), Q.shape[-1])
    return _marked(model.Q, of_Q), P + of_P


def _unless_indefinite_anywhere(plan: Plan, model: Model) -> tuple[Any, jax.Array]:
    """Does as `_unless_indefinite` where F or Q is a function of t: row by row, of which no matrix is kept."""
    F, Q, P = lax.stop_gradient((model.F, model.Q, model.initial_cov))
    by = OnXLA(plan.in_lanes)

    def of_each(name: str, function: Any, x: Any, *more: jax.Array) -> jax.Array:
        if not is_computed(x):
            return by.each_row(name, function, (values_of(x), *more))
        return over_blocks(lambda M: by.arrays(function(*by.matrices((M, *as_lanes(more))))), x)

    def judged() -> tuple[jax.Array, jax.Array]:
        scale = _largest(of_each("variances", magnitudes, Q)) + _largest(of_each("moved_variances", moved_variances, F, P))
        of_P = of_each("indefinite_initial", indefinite, P, of_each("initial_variances", magnitudes, P))
        return of_each("indefinite", indefinite, Q, scale), of_P

    def sure() -> jax.Array:
        if not is_computed(Q):
            return surely_definite(values_of(Q)) & surely_definite(P)
        rows = over_rows(lambda M: jnp.reshape(surely_definite(as_rows(M)), (1, 1, 1, 1)), Q)
        return rows[:, 1:].all() & surely_definite(P)

    of_Q, of_P = _judged(plan, judged, sure, P.shape[-1])
    return _marked(model.Q, of_Q), model.initial_cov + of_P


def _marked(Q: Any, verdict: jax.Array) -> Any:
    """Returns Q, NaN where its verdict is."""
    if is_computed(Q):
        return Q.replaced(index=jnp.where(jnp.isnan(verdict), -1, Q.index))
    return Q._replace(values=Q.values + verdict) if is_table(Q) else Q + verdict


def _judged(plan: Plan, judged: Callable[[], Any], sure: Callable[[], jax.Array], D: int) -> Any:
    """Returns verdicts; on a CPU of large covariances not before a library's factors have said that they are needed."""
    if plan.launch is not None or "staged" not in plan.algebra or D <= UNROLLED_TERMS:
        return judged()
    nothing = jax.tree.map(lambda x: blank(x, x.shape), jax.eval_shape(judged))
    return lax.cond(sure(), lambda: nothing, judged)  # a library takes less time, and what it does one by one is no loss


def _largest(variances: jax.Array) -> jax.Array:
    """Returns the largest over time (B or 1, 1, D, 1). The first entry of dynamics, which is not read, may be NaN."""
    return jnp.where(jnp.isnan(variances), 0, variances).max(1, keepdims=True)


def rows_of(x: Any, part: slice) -> Any:
    """Returns some rows of a series, or of a table."""
    return x.rows(part) if is_table(x) else x[:, part]


def _divide(container: Any, start: int) -> tuple[Any, Any]:
    """Divides a container's fields into what is the same in every row and what is not (entries ``start`` to T - 1): a field is
    None in one of the two.
    """
    kind = type(container)
    same = kind(*(as_lanes(x) if x is not None and x.shape[1] == 1 else None for x in container))
    varying = kind(*(None if x is None or x.shape[1] == 1 else rows_of(x, slice(start, None)) for x in container))
    return same, varying
