"""Many sequences on one time axis, and sequences in pieces.

Where one of many begins, the state before is forgotten, and the state is the first one's anew.
That is a transition like others: with F = 0, the first state's mean for a bias, and its covariance for Q. So every
implementation, every derivative and every sampler knows of sequences already; chunks of time may end anywhere.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fastscan.given import ShapeError, array
from fastscan.lgssm.check import Model
from fastscan.lgssm.covariances import check_covariance
from fastscan.lgssm.layout import known_terms
from fastscan.sequences.packing import begun
from fastscan.types import GaussianState


def with_starts(model: Model, starts: jax.Array | None, *, resumed: bool) -> Model:
    """Returns a model whose state begins anew at some steps.

    Args:
        model: checked.
        starts: bool (T,) or (B, T), checked, True where a sequence begins; None for one sequence.
        resumed: whether there is a state before the first step, which may begin anew, too.
    """
    if starts is None or (starts.shape[-1] == 1 and not resumed):
        return model
    marks = starts.reshape(-1, starts.shape[-1])
    drift, _ = known_terms(model)  # of inputs, too: those at a beginning are not read
    return model._replace(
        F=begun(model.F, jnp.zeros_like(model.initial_cov), marks),
        b=jnp.where(marks[..., None, None], model.initial_mean, drift),
        B=None,
        Q=begun(model.Q, model.initial_cov, marks),
    )


def checked_state(state: Any) -> GaussianState:
    """Returns a state before the first step as arrays.

    Raises:
        TypeError: no `GaussianState`, nor what has its fields.
        ValueError: a covariance that is none, as far as its values are known.
    """
    if not (hasattr(state, "mean") and hasattr(state, "cov")) or hasattr(state, "shape"):
        raise TypeError(
            f"initial_state: {type(state).__name__} given, wanted a fastscan.GaussianState, such as a posterior's final_state."
        )
    mean, cov = (array(f"initial_state.{name}", getattr(state, name)) for name in GaussianState._fields)
    if cov.ndim == 2:
        check_covariance("initial_state.cov", cov)
    return GaussianState(mean, cov)


def going_on_from(state: GaussianState | None, model: Model, batch: int | None) -> Model:
    """Returns a model whose initial state is one before the first emission.

    Args:
        state: mean (D,) or (B, D) and covariance (D, D) or (B, D, D); None leaves the model as it is.
        model: checked.
        batch: B, or None.

    Raises:
        ValueError: shapes other than these.
    """
    if state is None:
        return model
    D, arrays = model.F.shape[-1], []
    for name, x, own in (("mean", state.mean, (D,)), ("cov", state.cov, (D, D))):
        allowed = [own] if batch is None else [own, (batch, *own)]
        if jnp.shape(x) not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ShapeError(f"initial_state.{name}: shape {jnp.shape(x)} given, wanted {wanted}.")
        arrays.append(jnp.asarray(x, model.F.dtype).reshape(-1, 1, D, own[-1] if len(own) == 2 else 1))
    return model._replace(initial_mean=arrays[0], initial_cov=arrays[1])
