"""The arithmetic of matrices inside kernels, where a compiler has words of its own for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import Lanes, StagedLanes, Tile
from fastscan.kernels.gpu import lowerings
from fastscan.kernels.plan import Launch


def matrix_kind(how: Launch) -> Any:
    """Returns the class of matrices inside kernels."""
    if how.whole:
        return InterpretedTile if how.interpret else FusedTile
    return StagedLanes if how.interpret else FusedLanes if how.lowering == "triton" else Lanes


@jax.tree_util.register_pytree_node_class
class FusedLanes(Lanes):
    """Lanes for Triton, which XLA tells not to contract a product and a sum into one instruction: here they are one."""

    __slots__ = ()

    @staticmethod
    def fused(x: Any, y: Any, z: Any) -> Any:
        """Computes ``x y + z`` by one instruction."""
        return _instruction("fma.rn", x, y, z)

    @staticmethod
    def negative(x: Any) -> Any:
        """Computes ``-x`` by one instruction."""
        return _instruction("neg", x)


@jax.tree_util.register_pytree_node_class
class FusedTile(Tile):
    """Tiles for Triton, likewise; matrix units multiply float32 as three products of TF32."""

    __slots__ = ()

    @staticmethod
    def fused(x: Any, y: Any, z: Any) -> Any:
        """Computes ``x y + z``, with arrays repeated to the shape of z, by one instruction."""
        if not np.shape(z):
            return x * y + z
        return _instruction("fma.rn", x, y, z)

    @classmethod
    def dot(cls, a: jax.Array, b: jax.Array) -> jax.Array:
        """Multiplies two arrays. Of float32, about 22 of 24 bits of every product count: see `_split`.

        Triton has the same by name, but looks for numbers that are none in every sum, which takes a third of its instructions.
        """
        if a.dtype != np.float32:
            return Tile.dot(a, b)
        (a, a_rest), (b, b_rest) = _split(a), _split(b)
        return cls.units(a_rest, b) + cls.units(a, b_rest) + cls.units(a, b)

    @staticmethod
    def units(a: jax.Array, b: jax.Array) -> jax.Array:
        """Multiplies what is TF32, or is read as such, by matrix units."""
        return lax.dot(a, b, precision=lax.DotAlgorithmPreset.TF32_TF32_F32, preferred_element_type=jnp.float32)

    @staticmethod
    def times(n: int) -> Any:
        """Returns how often a loop over a matrix's rows is passed, as a number that is not known when it is compiled: unrolled,
        such loops would need more registers than there are.
        """
        return _hidden("mov.b32 $0, $1;", n)

    @staticmethod
    def nothing(t: Any) -> Any:
        """Returns 0 as a number that the compiler takes to depend on t."""
        return _hidden("and.b32 $0, $1, 0;", t)


@jax.tree_util.register_pytree_node_class
class InterpretedTile(FusedTile):
    """Tiles for Pallas's interpreter, which reads a product's factors as matrix units do."""

    __slots__ = ()
    fused, times = staticmethod(Tile.fused), staticmethod(Tile.times)

    @staticmethod
    def nothing(t: Any) -> Any:
        """Returns 0."""
        del t
        return np.int32(0)

    @staticmethod
    def units(a: jax.Array, b: jax.Array) -> jax.Array:
        """Multiplies what is TF32, or is read as such."""
        return Tile.dot(_truncated(a), _truncated(b))


_BITS = 13
"""Bits of float32's fraction that TF32 has not."""


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits float32 into the nearest TF32, and the rest, which has two bits more than TF32 has room for.

    The product of two rests, which is left out, and what matrix units do not read of a rest are about 2^-22 of the whole.
    """
    bits = lax.bitcast_convert_type(x, jnp.int32) + np.int32(1 << (_BITS - 1))
    nearest = _truncated(lax.bitcast_convert_type(bits, jnp.float32))
    return nearest, x - nearest


def _truncated(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int32) & np.int32(-1 << _BITS), jnp.float32)


def _instruction(name: str, *operands: Any) -> Any:
    dtype, shape = operands[0].dtype, np.broadcast_shapes(*map(np.shape, operands))
    bits, register = (32, "f") if dtype == np.float32 else (64, "d")
    (out,) = lowerings.triton().elementwise_inline_asm(
        f"{name}.f{bits} {', '.join(f'${k}' for k in range(len(operands) + 1))};",
        args=[x if np.shape(x) == shape else jnp.broadcast_to(x, shape) for x in operands],
        constraints=",".join([f"={register}"] + [register] * len(operands)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, dtype)],
    )
    return out


def _hidden(text: str, number: Any) -> Any:
    """Computes an integer of another by PTX, into which compilers before the last do not look."""
    (out,) = lowerings.triton().elementwise_inline_asm(
        text,
        args=[jnp.full((1,), number, jnp.int32)],
        constraints="=r,r",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct((1,), jnp.int32)],
    )
    return out.sum(dtype=jnp.int32)
