"""The sampler: states from the last to the first, given what the filter says of each and the state after it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastscan.kernels.algebra import eye
from fastscan.kernels.arrays import at, matmul, put
from fastscan.kernels.converged.filtering import all_covs, run_filter
from fastscan.kernels.converged.vectors import as_series, vectors
from fastscan.kernels.lgssm.gaussian import Gaussian, smoothing_gain, square_root
from fastscan.kernels.lgssm.kalman import FilterInputs
from fastscan.kernels.plan import Plan
from fastscan.kernels.scan.xla import OnXLA


def sample(
    plan: Plan, state: Gaussian, params: FilterInputs, rows: FilterInputs, noise: jax.Array, jitter: jax.Array
) -> jax.Array:
    """Draws states (B, T, D, 1), from standard normal noise (B, T, D, 1); ``jitter`` (1, 1, 1, 1) is added to variances."""
    by, R = OnXLA(plan), plan.steps
    way, given = run_filter(plan, state, params, rows, moments=True), by.matrices(params)
    covs, means, shocks = all_covs(plan, way), way.means, noise.transpose(1, 2, 3, 0)[:, :, :, None]
    F, extra = params.F[:, :, 0, 0], by.matrices(jitter)

    def conditional(cov: Any) -> tuple[jax.Array, jax.Array]:
        G, L = smoothing_gain(by.matrices(cov), given.F, given.Q)
        return G.to_array()[:, :, 0, 0], square_root(L + eye(L, L.shape[0]) * extra).to_array()[:, :, 0, 0]

    def back(G: jax.Array, root: jax.Array, z: jax.Array, m: jax.Array, c: jax.Array, shock: jax.Array) -> jax.Array:
        return m + matmul(G, z - matmul(F, m) - c) + matmul(root, shock)

    last = means[R][:, 0, 0] + matmul(square_root(by.matrices(covs[R])).to_array()[:, :, 0, 0], shocks[R][:, 0, 0])
    G, root = conditional(by.arrays(way.settled.cov))

    def later(z: jax.Array, row: FilterInputs) -> tuple[jax.Array, tuple]:
        z = back(G, root, z, row.y, row.c, row.noise)
        return z, (z,)

    series = FilterInputs(c=rows.c, y=as_series(means[:R]), noise=noise[:, :R])
    (states,) = vectors(plan, later, G, last, FilterInputs(c=params.c), series, way.begin, reverse=True)
    states = jnp.concatenate([states, last[None, :, None, None]])
    split = None if rows.c is None else by.split(rows.c)

    def before(n: Any, carry: tuple) -> tuple:
        z, states = carry
        t = way.begin - 1 - n
        c = params.c if split is None else by.matrices(by.row(split, t)[0]).to_array()
        cov, m, shock = at((covs, means, shocks), t)
        z = back(*conditional(cov), z, m[:, 0, 0], c[:, 0, 0], shock[:, 0, 0])
        return z, put(states, z[:, None, None], t)

    z = at(states, way.begin)[:, 0, 0]
    return as_series(lax.fori_loop(0, way.begin, before, (z, states))[1])
