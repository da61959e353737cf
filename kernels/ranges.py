"""Names by which profilers know our work: ranges on the host, for NVIDIA's tools, and scopes in what XLA compiles.

Ranges need the package nvtx; without it, or with nobody listening, they cost nothing to speak of.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import TypeVar

import jax

try:
    import nvtx
except ImportError:
    nvtx = None

DOMAIN = "fastscan"

Function = TypeVar("Function", bound=Callable)


def ranged(function: Function) -> Function:
    """Wraps a public function, so that every call of it is a range on the host."""
    return function if nvtx is None else nvtx.annotate(function.__name__, domain=DOMAIN)(function)


def phase(name: str, *, directed: bool = False) -> Callable[[Function], Function]:
    """Names a phase of a recurrence's run: a scope of what is compiled, and a range on the host while it is traced.

    Args:
        name: of the phase.
        directed: add "_forward" or, where the function is called with ``reverse``, "_backward".
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args, **kwargs):
            label = f"{name}_{'backward' if kwargs.get('reverse') else 'forward'}" if directed else name
            host = contextlib.nullcontext() if nvtx is None else nvtx.annotate(label, domain=DOMAIN)
            with jax.named_scope(label), host:
                return function(*args, **kwargs)

        return run

    return decorate  # pyright: ignore[reportReturnType]
