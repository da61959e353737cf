"""The score: derivatives of the log density, by the formulas of the module `lgssm.scoring`.

Where the filter has settled, r moves back by one matrix, and N settles from the end on. Derivatives with respect to what all
rows share are linear in N, and otherwise sums over time of products of r, u and means: a few products of matrices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import stable_carry
from fastscan.kernels.arrays import blank, matmul, put
from fastscan.kernels.converged.checkpoints import back_over, rows_apart
from fastscan.kernels.converged.filtering import Way, innovations, run_filter, steady_gain
from fastscan.kernels.converged.vectors import as_series, vectors
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.kernels.lgssm.kalman import FilterInputs, Message
from fastscan.kernels.lgssm.scoring import KALMAN_SCORE, ScoreRow
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.settling import until_settled
from fastscan.kernels.scan.xla import OnXLA


def score(
    plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs
) -> tuple[jax.Array, Message, FilterInputs, FilterInputs]:
    """Computes the rows' log densities (B, T - 1, 1, 1), and the derivatives of their sum.

    Returns:
        The log densities; r and N of the state before the first row, (D, 1, 1, B) and (D, D, 1, B or 1); derivatives with
        respect to what all rows share, with lanes (1, B); and to what they do not (B, T - 1, n, p).
    """
    by, R = OnXLA(plan), plan.steps
    apart = rows_apart(R)
    way, given = run_filter(plan, state, params, rows, moments=True, apart=apart), by.matrices(params)
    gain, begin = steady_gain(given, way.settled), way.begin
    F, H, P, K, E = (m.to_array()[:, :, 0, 0] for m in (given.F, given.H, way.settled.cov, gain.moved, gain.whitening))
    precision = matmul(E.T * gain.inverse.to_array()[:, 0, 0, 0], E)
    keep = jnp.eye(len(F), dtype=F.dtype) - matmul(K, H)
    closed, informed = matmul(keep, F), matmul(H.T, matmul(precision, H))

    def back(r: jax.Array, row: FilterInputs) -> tuple[jax.Array, tuple]:
        u = matmul(precision, row.y) - matmul(K.T, r)
        predicted = r + matmul(H.T, u)
        return matmul(F.T, predicted), (r, u, predicted)

    nothing = blank(F, (len(F), way.means.shape[-1]))
    seen = FilterInputs(y=innovations(params, rows, as_series(way.means[:R])))
    there = (jnp.arange(R) >= begin)[:, None, None]
    r_after, u, r = (
        jnp.where(there, x[:, :, 0, 0], 0)
        for x in vectors(plan, back, closed.T, nothing, FilterInputs(), seen, begin, reverse=True)
    )
    N, N_sum = _information(closed, matmul(F.T, matmul(informed, F)), R - begin)
    n, before, after = (R - begin).astype(F.dtype), way.means[:R, :, 0, 0], way.means[1:, :, 0, 0]
    smoothed = after + jnp.einsum("ij,tjb->tib", P, r_after, precision="highest")
    of_cov = _over_time(r, r) - (matmul(keep.T, matmul(N_sum, keep)) + n * informed)[..., None]
    seen_twice = n * jnp.diagonal(precision) + jnp.diagonal(matmul(K.T, matmul(N_sum, K)))
    late = FilterInputs(
        F=_over_time(r, before) + jnp.einsum("ijb,jk->ikb", of_cov, matmul(F, P), precision="highest"),
        c=r.sum(0)[:, None],
        Q=of_cov / 2,
        H=_over_time(u, smoothed) + (matmul(K.T, matmul(N_sum, P)) - n * K.T)[..., None],
        noise=((u * u).sum(0) - seen_twice[:, None])[:, None] / 2,
    )
    shared = FilterInputs(*(None if p is None else x[:, :, None] for p, x in zip(params, late, strict=True)))
    own = FilterInputs(c=r[:, :, None, None], y=-u[:, :, None, None])
    own = FilterInputs(*(None if x is None else one for x, one in zip(rows, own, strict=True)))
    first = lax.dynamic_index_in_dim(r, jnp.minimum(begin, R - 1), keepdims=False)
    message = Message(matmul(F.T, jnp.where(begin < R, first, 0))[:, None, None], N[..., None, None])
    message, shared, own = _before(plan, way, apart, given, by.split(rows), message, shared, own)
    return way.densities, message, shared, jax.tree.map(as_series, own)


def _before(
    plan: Plan, way: Way, apart: int, params: FilterInputs, rows: Any, message: Message, shared: Any, own: Any
) -> tuple[Message, FilterInputs, FilterInputs]:
    """Goes back over the rows before the filter had settled, by the ordinary recursion."""
    by = OnXLA(plan)

    def step(state: tuple, row: ScoreRow) -> tuple:
        return KALMAN_SCORE.step(params, state, by.matrices(row))

    def back(carry: tuple, t: Any, filtered: Gaussian, x: FilterInputs) -> tuple:
        state, own = carry
        state, out = step(state, ScoreRow(filtered, x))
        return state, put(own, by.arrays(out), t)

    row = ScoreRow(Gaussian(way.means[0], way.covs[0]), by.row(rows, 0)[0])
    start = stable_carry(step, by.matrices((message, shared)), row)
    (message, shared), own = back_over(plan, way, apart, params, rows, back, (start, own))
    return *by.arrays((message, shared)), own


def _information(closed: jax.Array, informed: jax.Array, rows: Any) -> tuple[jax.Array, jax.Array]:
    """Computes N before so many rows, from zeros after them; and the sum of N after each."""

    def back(N: jax.Array, total: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        before = matmul(closed.T, matmul(N, closed)) + informed
        return (before + before.T) / 2, total + N

    nothing = blank(informed, informed.shape)
    done = until_settled(back, lambda N: N, nothing, nothing, rows)
    return done.state, done.outputs + (rows - done.rows).astype(informed.dtype) * done.state


def _over_time(x: jax.Array, y: jax.Array) -> jax.Array:
    """Adds up the products of two series of columns (T, n, B) and (T, p, B): (n, p, B)."""
    return jnp.einsum("tib,tjb->ijb", x, y, precision="highest")
