"""Pallas and its two ways to an NVIDIA GPU, imported where a kernel is launched and not before.

Importing them takes nearly as long as importing all of fastscan but JAX, and what runs through XLA needs none of them. JAX has
said that it will drop the Triton backend: without it everything else goes on, and who asks for kernels is told what to do.
"""

import functools
from types import ModuleType

import jax


def pallas() -> ModuleType:
    """Imports Pallas.

    Raises:
        ImportError: this JAX has none.
    """
    try:
        from jax.experimental import pallas
    except ImportError as error:
        raise ImportError(_gone("jax.experimental.pallas")) from error
    return pallas


def triton() -> ModuleType:
    """Imports Pallas's Triton backend.

    Raises:
        ImportError: this JAX has none.
    """
    try:
        from jax.experimental.pallas import triton
    except ImportError as error:
        raise ImportError(f"{_gone('jax.experimental.pallas.triton')} {_OTHER_LOWERING}") from error
    return triton


def mosaic() -> ModuleType:
    """Imports Pallas's Mosaic backend.

    Raises:
        ImportError: this JAX has none, or a package that it needs and JAX does not install is missing.
    """
    try:
        from jax.experimental.pallas import mosaic_gpu
    except ImportError as error:
        raise ImportError("Launch.lowering is 'mosaic', which needs absl-py: pip install absl-py") from error
    return mosaic_gpu


@functools.cache
def hindrance(lowering: str) -> str:
    """Says why no kernel can be lowered by "triton" or "mosaic" here; "" if nothing stands against it."""
    try:
        _LOWERINGS[lowering]()
    except ImportError as error:
        return str(error)
    return ""


def _gone(module: str) -> str:
    return f"Kernels want {module}, which jax {jax.__version__} lacks. Take implementation=None or 'chunked', which XLA runs."


_LOWERINGS = {"triton": triton, "mosaic": mosaic}
_OTHER_LOWERING = """Or take Pallas's other backend, by a crossover table whose entry of your device says \
"launch": {"lowering": "mosaic", "lanes": 128, "warps": 4}."""
