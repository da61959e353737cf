"""From what a user of Metropolis passes to checked settings and arrays."""

from typing import Any, get_args

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from fastscan.kernels.mcmc.metropolis import Keep
from fastscan.mcmc.target import Form


def check_settings(num_samples: int, thin: int, warmup: int, keep: str, target: float | None) -> None:
    """Refuses settings that are none."""
    for name, given, least in (("num_samples", num_samples, 1), ("thin", thin, 1), ("warmup", warmup, 0)):
        if not isinstance(given, int | np.integer) or given < least:
            raise ValueError(f"{name}: {given!r} given, wanted a whole number of at least {least}.")
    if keep not in get_args(Keep):
        raise ValueError(f"keep: {keep!r} given, wanted one of {', '.join(get_args(Keep))}.")
    if target is not None and not 0 < target < 1:
        raise ValueError(f"target_acceptance: {target} given, wanted a rate between 0 and 1.")


def checked_form(position: Any) -> Form:
    """Finds the form of a position, and refuses what is none."""
    leaves, tree = jax.tree.flatten(position)
    types = sorted({str(x.dtype) for x in leaves})
    if types not in (["float32"], ["float64"]):
        raise TypeError(f"initial_position: {', '.join(types) or 'nothing'} given, wanted arrays of float32 or of float64.")
    if any(x.ndim == 0 for x in leaves):
        raise ValueError("initial_position: a scalar given, wanted arrays (..., chains).")
    chains = {x.shape[-1] for x in leaves}
    if len(chains) != 1 or 0 in chains:
        shapes = ", ".join(str(x.shape) for x in leaves)
        raise ValueError(
            f"initial_position: shapes {shapes} given, wanted the same number of chains, one or more, on last axes."
        )
    form = Form(tree, tuple(x.shape[:-1] for x in leaves), types[0])
    if form.size == 0:
        raise ValueError("initial_position: no coordinates given.")
    return form


def proposal_factor(step_size: Any, form: Form) -> jax.Array:
    """Takes step sizes as (1, 1), (D, 1), or a lower triangular matrix (D, D)."""
    D = form.size
    if isinstance(step_size, list | tuple) and jax.tree.structure(step_size) != form.tree:
        step_size = jnp.asarray(step_size)
    shapes = tuple(map(jnp.shape, jax.tree.leaves(step_size)))
    if jax.tree.structure(step_size) == form.tree and shapes == form.shapes:
        factor = jnp.concatenate([jnp.ravel(jnp.asarray(x, form.dtype)) for x in jax.tree.leaves(step_size)])[:, None]
    else:
        given = shapes[0] if len(shapes) == 1 else shapes
        if given not in ((), (D,), (D, D)) or isinstance(step_size, dict):
            raise ValueError(
                f"step_size: shape {given} given; wanted a number, ({D},), ({D}, {D}) or a position's form without chains, "
                f"{', '.join(map(str, form.shapes))}."
            )
        factor = jnp.asarray(step_size, form.dtype)
        factor = factor if factor.ndim == 2 else factor.reshape(-1, 1)
    if not isinstance(factor, jax.core.Tracer):
        _check_factor(np.asarray(factor))
    return jnp.tril(factor) if factor.shape[1] > 1 else factor


def _check_factor(factor: np.ndarray) -> None:
    sizes = np.diagonal(factor) if factor.shape[1] > 1 else factor
    if not (np.isfinite(factor).all() and (sizes > 0).all()):
        raise ValueError(f"step_size: {sizes.ravel().tolist()} given, wanted finite numbers above zero.")
    if np.triu(factor, 1).any():
        raise ValueError(
            "step_size: a matrix with numbers above its diagonal given, wanted a lower triangular Cholesky factor."
        )


def check_start(log_density: jax.Array) -> None:
    """Refuses a start where a log density is not finite, as far as that is known."""
    if isinstance(log_density, jax.core.Tracer):
        return
    wrong = np.flatnonzero(~np.isfinite(log_density))
    if len(wrong):
        raise ValueError(
            f"initial_position: the log density of {len(wrong)} of {len(log_density)} chains is not finite there (chain "
            f"{wrong[0]}: {float(log_density[wrong[0]])}); begin where it is."
        )
