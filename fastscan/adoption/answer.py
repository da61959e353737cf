"""An answer in the place of one of dynamax's functions, and results in dynamax's own types."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp


class Answer(NamedTuple):
    """An attribute of a module or a class that is replaced, and the function that answers in its place.

    Attributes:
        owner: the module or class.
        name: of the attribute.
        function: ours.
        note: what users have to know of it: where it answers otherwise than dynamax's, or calls that.
    """

    owner: Any
    name: str
    function: Callable
    note: str = ""


def as_theirs(kind: Any, result: Any) -> Any:
    """Returns a result in dynamax's type, of the fields that it has."""
    return kind(**{name: getattr(result, name) for name in kind._fields if hasattr(result, name)})


def size(mean: Any) -> tuple[int, Any]:
    """Returns the states of a model, and the dtype of what is drawn of them, from the first one's mean."""
    mean = jnp.asarray(mean)
    return mean.shape[-1], jnp.result_type(mean.dtype, float) if not jnp.issubdtype(mean.dtype, jnp.floating) else mean.dtype
