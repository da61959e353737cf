"""Pallas and its two ways to an NVIDIA GPU, imported where a kernel is launched and not before.

Importing them takes nearly as long as importing all of fastscan but JAX, and what runs through XLA needs none of them. JAX has
said that it will drop the Triton backend: without it everything else goes on, and who asks for kernels is told what to do.
"""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

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
def assembly() -> Callable[[str, int, Sequence[jax.Array]], Sequence[jax.Array]] | None:
    """Makes inline assembly of several results; None with a JAX that has no place for it.

    By what it says of itself, Triton's `elementwise_inline_asm` is that. But JAX 0.10 to 0.12 take its results for one.

    Returns:
        ``(text, results, operands) -> results``: see `blocks.Assemble`.
    """
    try:
        from jax._src.pallas.triton.lowering import register_lowering
        from jax.extend.core import Primitive
        from jaxlib.triton import dialect
    except ImportError:
        return None
    primitive = Primitive("fastscan_assembly")
    primitive.multiple_results = True

    @primitive.def_abstract_eval
    def _types(first: Any, *_: Any, results: int, **how: Any) -> list[Any]:
        del how
        return [first] * results

    @register_lowering(primitive)
    def _lower(_: Any, *operands: Any, text: str, results: int) -> list[Any]:
        register = "d" if "f64" in str(operands[0].type) else "f"
        constraints = [f"=&{register}"] * results + [register] * len(operands)  # &: written while operands are yet to be read
        how = {"constraints": ",".join(constraints), "pure": True, "packed_element": 1}
        out: Any = dialect.elementwise_inline_asm([operands[0].type] * results, text, args=operands, **how)
        return [out] if results == 1 else list(out)

    return lambda text, results, operands: primitive.bind(*operands, text=text, results=results)


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
