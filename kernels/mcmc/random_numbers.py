"""The random numbers of a step: words of a counter, and of them numbers, by inverse distribution functions.

A uniform number is the middle of one of 2^31 intervals of equal width, in float64 of 2^52. Normal numbers are made of twice as
many, told from both ends, so their tails reach as far as the intervals do: to 6.3 standard deviations, in float64 to 8.3.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from fastscan.kernels.algebra import Lanes, stage
from fastscan.kernels.mcmc.threefry import threefry_2x32


class StepNumbers(NamedTuple):
    """A step's random numbers: normal ones (D, 1), and the logarithm of a uniform one (1, 1)."""

    normal: Any
    log_uniform: Any


class _Quantile(NamedTuple):
    """Wichura (1988), Algorithm AS 241, the percentage points of the normal distribution.

    Numerators and denominators of its rational functions, lowest powers first: of the middle, and of the tails up to and beyond
    sqrt(-log p) = 5.
    """

    middle: tuple[tuple[float, ...], tuple[float, ...]]
    tail: tuple[tuple[float, ...], tuple[float, ...]]
    far: tuple[tuple[float, ...], tuple[float, ...]] | None = None


_QUANTILES = {
    "float32": _Quantile(  # its PPND7; no number of 32 bits lies in the far tail
        ((3.3871327179, 50.434271938, 159.29113202, 59.109374720), (1, 17.895169469, 78.757757664, 67.187563600)),
        ((1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103), (1, 0.73700164250, 0.12021132975)),
    ),
    "float64": _Quantile(  # its PPND16
        (
            (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
             45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
            (1, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
             21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
        ),
        (
            (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
             1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
            (1, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
             0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
        ),
        (
            (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230,
             0.0265321895265761230930, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
            (1, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
             7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
        ),
    ),
}  # fmt: skip
_SPLIT, _TAIL, _FAR = 0.425, 1.6, 5.0


def words_of(dtype: Any) -> int:
    """Counts the words of 32 bits that a number takes."""
    return np.dtype(dtype).itemsize // 4


def words_of_step(key: Any, step: Any, count: int) -> Any:
    """Makes so many random words (n, 1), or one more, from a key (2, 1) and a step's number (1, 1): all matrices of uint32."""
    blocks = -(-count // 2)
    if isinstance(key, Lanes):
        (x,), (y,) = key.rows
        pairs = [threefry_2x32((x, y), (step.rows[0][0], np.uint32(block))) for block in range(blocks)]
        return type(key)([[word] for pair in pairs for word in pair])
    numbers = np.arange(blocks, dtype=np.uint32).reshape(-1, *[1] * (key.array.ndim - 1))
    pairs = jnp.stack(threefry_2x32((key.array[:1], key.array[1:]), (step.array, numbers)), 1)
    return type(key)(pairs.reshape(2 * blocks, 1, *pairs.shape[3:]))


def drawn(words: Any, D: int, dtype: Any) -> StepNumbers:
    """Turns words into a step's numbers for D coordinates of a type."""
    each, fused = words_of(dtype), getattr(words, "fused", Lanes.fused)
    normals = _each(words.block(0, each * D), dtype, functools.partial(normal, fused=fused))
    return StepNumbers(normals, _each(words.block(each * D, each * (D + 1)), dtype, log_uniform))


def _each(words: Any, dtype: Any, transform: Callable[[Sequence[Any], Any], Any]) -> Any:
    """Turns words into numbers (n, 1), with as many words for each as a number takes; a stage."""
    each = words_of(dtype)

    def numbers(words: Any) -> Any:
        if isinstance(words, Lanes):
            column = [word for (word,) in words.rows]
            return type(words)([[transform(column[k : k + each], dtype)] for k in range(0, len(column), each)])
        return type(words)(transform([words.array[k::each] for k in range(each)], dtype))

    return stage(numbers)(words)


def normal(words: Sequence[Any], dtype: Any, fused: Callable) -> Any:
    """Turns as many words as `words_of` says into a standard normal number; ``fused`` is ``(x, y, z) -> x y + z``."""
    negative = words[0] >> np.uint32(31) == np.uint32(1)
    p = _fraction(words[0] & np.uint32(0x7FFFFFFF), words[1:], 31, dtype) * np.dtype(dtype).type(0.5)
    magnitude = _upper_quantile(p, dtype, fused)
    return jnp.where(negative, -magnitude, magnitude)


def log_uniform(words: Sequence[Any], dtype: Any) -> Any:
    """Turns as many words as `words_of` says into the logarithm of a uniform number, below zero."""
    below_one = np.nextafter(np.ones((), dtype), np.zeros((), dtype))
    return jnp.log(jnp.minimum(_fraction(words[0] >> np.uint32(1), words[1:], 31, dtype), below_one))


def _fraction(high: Any, low: Sequence[Any], bits: int, dtype: Any) -> Any:
    """Returns the middle of the interval of [0, 1] that is named by the bits of ``high``, and 21 of another word."""
    number = np.dtype(dtype).type
    x = lax.convert_element_type(lax.convert_element_type(high, jnp.int32), dtype)
    if low:
        x = x * number(2.0**21) + lax.convert_element_type(lax.convert_element_type(low[0] >> np.uint32(11), jnp.int32), dtype)
        bits += 21
    return (x + number(0.5)) * number(2.0**-bits)


def _upper_quantile(p: Any, dtype: Any, fused: Callable) -> Any:
    """Computes where the standard normal distribution has p above it, for p from 2^-54, in float32 2^-33, to 1/2."""
    number, table = np.dtype(dtype).type, _QUANTILES[str(np.dtype(dtype))]
    q = number(0.5) - p
    middle = q <= number(_SPLIT)
    minus_log = -jnp.log(p)
    root = minus_log * lax.rsqrt(minus_log)  # Mosaic knows no square root
    above, below = _rational(fused, table.tail, root - number(_TAIL))
    if table.far:
        far = root > number(_FAR)
        above, below = _chosen(far, _rational(fused, table.far, root - number(_FAR)), (above, below))
    central, under = _rational(fused, table.middle, number(_SPLIT**2) - q * q)
    above, below = _chosen(middle, (q * central, under), (above, below))
    return above / below


def _rational(fused: Callable, parts: tuple[Sequence[float], ...], x: Any) -> tuple[Any, ...]:
    """Computes a numerator and a denominator, by Horner's rule."""
    number = x.dtype.type
    return tuple(functools.reduce(lambda sum_, c: fused(sum_, x, number(c)), part[-2::-1], number(part[-1])) for part in parts)


def _chosen(condition: Any, these: tuple[Any, ...], others: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(jnp.where(condition, x, y) for x, y in zip(these, others, strict=True))
