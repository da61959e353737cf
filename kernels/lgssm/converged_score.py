"""The score of a time-invariant model whose covariances converge: see the modules `converged` and `scoring`.

Where the filter has settled, r moves back by one matrix, and N settles from the end on. Derivatives with respect to what all
rows share are linear in N, and otherwise sums over time of products of r, u and means: a few products of matrices.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import stable_carry
from fastscan.kernels.lgssm.converged import as_series, dot, innovations, run_filter, steady_gain, vectors
from fastscan.kernels.lgssm.gaussian import Gaussian
from fastscan.kernels.lgssm.kalman import FilterInputs, Message
from fastscan.kernels.lgssm.scoring import KALMAN_SCORE, ScoreRow
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.settling import put, until_settled
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
    way, given = run_filter(plan, state, params, rows, moments=True), by.matrices(params)
    gain, begin = steady_gain(given, way.settled), way.begin
    F, H, P, K, E = (m.array[:, :, 0, 0] for m in (given.F, given.H, way.settled.cov, gain.moved, gain.whitening))
    precision = dot(E.T * gain.inverse.array[:, 0, 0, 0], E)
    keep = jnp.eye(len(F), dtype=F.dtype) - dot(K, H)
    closed, informed = dot(keep, F), dot(H.T, dot(precision, H))

    def back(r: jax.Array, row: tuple) -> tuple[jax.Array, tuple]:
        u = dot(precision, row[0]) - dot(K.T, r)
        predicted = r + dot(H.T, u)
        return dot(F.T, predicted), (r, u, predicted)

    nothing = jnp.zeros((len(F), way.means.shape[-1]), F.dtype)
    seen = innovations(params, rows, as_series(way.means[:R]))
    there = (jnp.arange(R) >= begin)[:, None, None]
    r_after, u, r = (
        jnp.where(there, x[:, :, 0, 0], 0) for x in vectors(plan, back, closed.T, nothing, (seen,), begin, reverse=True)
    )
    N, N_sum = _information(closed, dot(F.T, dot(informed, F)), R - begin)
    n, before, after = (R - begin).astype(F.dtype), way.means[:R, :, 0, 0], way.means[1:, :, 0, 0]
    smoothed = after + jnp.einsum("ij,tjb->tib", P, r_after, precision="highest")
    of_cov = _over_time(r, r) - (dot(keep.T, dot(N_sum, keep)) + n * informed)[..., None]
    seen_twice = n * jnp.diagonal(precision) + jnp.diagonal(dot(K.T, dot(N_sum, K)))
    late = FilterInputs(
        F=_over_time(r, before) + jnp.einsum("ijb,jk->ikb", of_cov, dot(F, P), precision="highest"),
        c=r.sum(0)[:, None],
        Q=of_cov / 2,
        H=_over_time(u, smoothed) + (dot(K.T, dot(N_sum, P)) - n * K.T)[..., None],
        noise=((u * u).sum(0) - seen_twice[:, None])[:, None] / 2,
    )
    shared = FilterInputs(*(None if p is None else x[:, :, None] for p, x in zip(params, late, strict=True)))
    own = FilterInputs(c=r[:, :, None, None], y=-u[:, :, None, None])
    own = FilterInputs(*(None if x is None else one for x, one in zip(rows, own, strict=True)))
    first = lax.dynamic_index_in_dim(r, jnp.minimum(begin, R - 1), keepdims=False)
    message = Message(dot(F.T, jnp.where(begin < R, first, 0))[:, None, None], N[..., None, None])
    message, shared, own = _before(
        plan, begin, given, ScoreRow(Gaussian(way.means[:R], way.covs[:R]), by.split(rows)), message, shared, own
    )
    return way.densities, message, shared, jax.tree.map(as_series, own)


def _before(plan: Plan, begin: Any, params: FilterInputs, series: ScoreRow, message: Message, shared: Any, own: Any) -> tuple:
    """Goes back over the rows before ``begin``, by the ordinary recursion."""
    by = OnXLA(plan)

    def step(state: tuple, t: Any) -> tuple:
        return KALMAN_SCORE.step(params, state, by.matrices(by.row(series, t)[0]))

    def run(state: tuple, own: Any, series: ScoreRow) -> tuple:
        del series

        def row(n: Any, carry: tuple) -> tuple:
            state, own = carry
            t = begin - 1 - n
            state, out = step(state, t)
            return state, jax.tree.map(lambda x, new: put(x, new, t), own, by.arrays(out))

        return lax.fori_loop(0, begin, row, (state, own))

    start = stable_carry(step, by.matrices((message, shared)), jnp.int32(0))
    state, own = run(start, own, series)
    return *by.arrays(state), own


def _information(closed: jax.Array, informed: jax.Array, rows: Any) -> tuple[jax.Array, jax.Array]:
    """Computes N before so many rows, from zeros after them; and the sum of N after each."""

    def back(N: jax.Array, total: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        before = dot(closed.T, dot(N, closed)) + informed
        return (before + before.T) / 2, total + N

    done = until_settled(back, lambda N: N, jnp.zeros_like(informed), jnp.zeros_like(informed), rows)
    return done.state, done.outputs + (rows - done.rows).astype(informed.dtype) * done.state


def _over_time(x: jax.Array, y: jax.Array) -> jax.Array:
    """Adds up the products of two series of columns (T, n, B) and (T, p, B): (n, p, B)."""
    return jnp.einsum("tib,tjb->ijb", x, y, precision="highest")
