"""The verdict on a fit: whether it converged, and what it found singular on the way."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np

KINDS = {
    "redundant": "redundant regressors",
    "floored": "noise at its floor",
    "unvisited": "without data",
}
"""The notes that a step of EM may make, in words."""


class Verdict(NamedTuple):
    """The verdict of `fit_em` on its result: its ``str`` is one line. It is made of arrays, so that `jit` returns it, too.

    Attributes:
        iterations: how many were run.
        converged: the last one gained less than was asked for.
        finite: all log-likelihoods are numbers.
        worst_fall: the most that the log-likelihood fell by in one iteration, at least 0. It is rounding.
        notes: of the last iteration, ``{kind: {field: whether}}``. "redundant" has the columns of coefficients that others
            could stand for, so that only what they do together is known; "floored" the channels, or the states, whose noise
            was raised to `fastscan.learn.floors.FLOOR`; "unvisited" the states without data, which keep their parameters.
    """

    iterations: jax.Array
    converged: jax.Array
    finite: jax.Array
    worst_fall: jax.Array
    notes: dict[str, dict[str, jax.Array]]

    def __str__(self) -> str:
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(self)):
            return repr(self)
        shape = np.shape(self.iterations)
        each = (str(jax.tree.map(lambda x, i=i: x[i], self)) for i in np.ndindex(shape))
        if shape:
            return " | ".join(f"{list(i)} {line}" for i, line in zip(np.ndindex(shape), each, strict=True))
        end = "converged" if self.converged else "not converged yet"
        end = end if self.finite else "a log-likelihood that is no finite number: impossible data, or covariances that are none"
        parts = [f"{end} after {int(self.iterations)} iterations"]
        for kind, fields in self.notes.items():
            named = [where for field, mask in fields.items() for where in _names(field, np.asarray(mask), kind == "redundant")]
            if named:
                parts.append(f"{KINDS.get(kind, kind)}: {', '.join(named)}")
        return "; ".join(parts)


def _names(field: str, mask: np.ndarray, columns: bool) -> Iterator[str]:
    """Writes where a mask is true."""
    for index in np.argwhere(mask):
        inside = ", ".join([":"] * (columns and mask.ndim == 1) + [str(i) for i in index])
        yield f"{field}[{inside}]" if inside else field


class Fit(tuple):
    """``params, log_likelihoods``, and what became of the fit.

    A tuple of these two, which may be unpacked, as dynamax's.

    Attributes:
        params: what was found.
        log_likelihoods: before every iteration, with the priors' log densities if there are any.
        verdict: a `Verdict`.
    """

    verdict: Verdict

    def __new__(cls, params: Any, log_likelihoods: Any, verdict: Any) -> "Fit":
        """Make one of its three parts, which need be no arrays: JAX makes trees of other things, too."""
        self = super().__new__(cls, (params, log_likelihoods))
        self.verdict = verdict
        return self

    @property
    def params(self) -> Any:
        """The parameters that were found."""
        return self[0]

    @property
    def log_likelihoods(self) -> jax.Array:
        """The log-likelihood before every iteration."""
        return self[1]

    def __getnewargs__(self) -> tuple[Any, Any, Any]:
        return *self, self.verdict

    def __repr__(self) -> str:
        return f"Fit(params={self[0]!r}, log_likelihoods={self[1]!r}, verdict={self.verdict!r})"


jax.tree_util.register_pytree_with_keys(
    Fit,
    lambda fit: (
        tuple((jax.tree_util.GetAttrKey(name), getattr(fit, name)) for name in ("params", "log_likelihoods", "verdict")),
        None,
    ),
    lambda _, children: Fit(*children),
)
