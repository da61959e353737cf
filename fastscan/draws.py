"""Random numbers of samplers: drawn from a key, or given in its place by those who draw them otherwise."""

from typing import Any, NamedTuple

import jax


class Drawn(NamedTuple):
    """Numbers that take a key's place, in arrays as large as what would be drawn; two arrays where a key is split in two."""

    numbers: tuple[Any, ...]


def normal(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns standard normal numbers."""
    return _given(key, shape, dtype) if isinstance(key, Drawn) else jax.random.normal(key, shape, dtype)


def uniform(key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns numbers of [0, 1)."""
    return _given(key, shape, dtype) if isinstance(key, Drawn) else jax.random.uniform(key, shape, dtype)


def two(key: Any) -> tuple[Any, Any]:
    """Splits a key in two."""
    if not isinstance(key, Drawn):
        first, second = jax.random.split(key)
        return first, second
    first, second = key.numbers
    return Drawn((first,)), Drawn((second,))


def _given(drawn: Drawn, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    (numbers,) = drawn.numbers
    return numbers.reshape(shape).astype(dtype)
