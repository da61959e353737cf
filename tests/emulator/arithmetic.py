"""Computes what instructions do: functions of bits, arrays of unsigned integers with a number per thread, or one for all.

An instruction's modifiers say what its operands' bits stand for. Where PTX leaves the last bits open (``approx``, ``full``),
results are those of float64, rounded. A float64's sum of a product is that of NumPy's long double, rounded: it can be another
one in the last bit, or where what is left of a difference is smaller than that holds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

TYPES = {
    **{f"{letter}{8 * size}": np.dtype(f"{'i' if letter == 's' else 'u'}{size}") for letter in "usb" for size in (1, 2, 4, 8)},
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "pred": np.dtype(bool),
}  # fmt: skip
_UNSIGNED = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}
_WIDER = {np.dtype(x): np.dtype(y) for x, y in (("u2", "u4"), ("i2", "i4"), ("u4", "u8"), ("i4", "i8"))}


class UnknownInstructionError(NotImplementedError):
    """An instruction that the emulator has not learned."""


def bits_type(width: int) -> np.dtype:
    """Gives the type of registers of a width in bits."""
    return np.dtype(bool) if width == 1 else _UNSIGNED[width // 8]


def cast(value: Any, dtype: np.dtype) -> Any:
    """Bits read as numbers of a type, or numbers as bits: the lowest ones, filled up with zeros where there are too few."""
    value = np.asarray(value)
    if value.dtype == dtype or bool in (value.dtype, dtype):
        return value
    if value.dtype.itemsize == dtype.itemsize:
        return value.view(dtype)
    return value.view(_UNSIGNED[value.dtype.itemsize]).astype(_UNSIGNED[dtype.itemsize]).view(dtype)


def function(name: str, modifiers: Sequence[str]) -> tuple[Callable[..., Any], list[np.dtype]]:
    """Finds what an instruction computes.

    Returns:
        A function of numbers, and the types of its operands; the last one's holds for all further ones.

    Raises:
        UnknownInstructionError: it is none of those below.
    """
    types = [TYPES[m] for m in modifiers if m in TYPES]
    how = frozenset(m for m in modifiers if m not in TYPES)
    known = _KNOWN.get((name, len(types)))
    if known is None:
        raise UnknownInstructionError(f"{'.'.join([name, *modifiers])}: no such instruction is known")
    make, allowed = known
    if not how <= set(allowed.split()):
        raise UnknownInstructionError(f"{'.'.join([name, *modifiers])}: of its modifiers, {allowed or 'none'} are known")
    compute, operands = make(how, *types)
    return _flushing(compute) if "ftz" in how else compute, operands


def _flushing(compute: Callable) -> Callable:
    """Takes numbers that are too small for a leading one for zero, before and after."""

    def flush(x: Any) -> Any:
        if np.asarray(x).dtype.kind != "f":
            return x
        return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)

    return lambda *operands: flush(compute(*map(flush, operands)))


def rounded(exact: Any, dtype: np.dtype, how: frozenset[str]) -> Any:
    """Rounds to the nearest number of a type, or down (rm), up (rp) or to zero (rz)."""
    nearest = exact.astype(dtype)
    below, above = dtype.type(-np.inf), dtype.type(np.inf)
    if "rm" in how or "rz" in how:
        too_large = (nearest > exact) & (("rm" in how) | (exact > 0))
        nearest = np.where(too_large, np.nextafter(nearest, below), nearest)
    if "rp" in how or "rz" in how:
        too_small = (nearest < exact) & (("rp" in how) | (exact < 0))
        nearest = np.where(too_small, np.nextafter(nearest, above), nearest)
    return nearest


def _plain(compute: Callable) -> Callable:
    """Makes a function of numbers of one type, with a result of that type."""
    return lambda _, dtype: (compute, [dtype])


def _fused(how: frozenset[str], dtype: np.dtype) -> Any:
    """``x y + z``, rounded once."""
    compute = _fused_in_float64 if dtype == np.float32 else _fused_in_longdouble
    return lambda x, y, z: rounded(compute(x, y, z), dtype, how), [dtype]


def _fused_in_float64(x: Any, y: Any, z: Any) -> Any:
    """Rounds to odd: where float64 does not hold the sum, its last bit is 1, so that rounding again gives what is right."""
    product, z = np.asarray(x, np.float64) * np.asarray(y, np.float64), np.asarray(z, np.float64)
    total = np.asarray(product + z)
    of_z = total - product
    error = (product - (total - of_z)) + (z - of_z)
    further = np.nextafter(total, np.copysign(np.inf, error))
    return np.where((error != 0) & np.isfinite(error) & (total.view(np.uint64) % 2 == 0), further, total)


def _fused_in_longdouble(x: Any, y: Any, z: Any) -> Any:
    return np.asarray(x, np.longdouble) * np.asarray(y, np.longdouble) + np.asarray(z, np.longdouble)


def _least(compute: Callable, of_numbers: Callable) -> Callable:
    """A minimum or maximum: of a NaN and a number the number, unless ``NaN`` is asked for."""
    return lambda how, dtype: (compute if dtype.kind != "f" or "NaN" in how else of_numbers, [dtype])


def _product(how: frozenset[str], dtype: np.dtype) -> Any:
    return (np.multiply, [dtype]) if dtype.kind == "f" else _integer_product(how, dtype)


def _integer_product(how: frozenset[str], dtype: np.dtype) -> Any:
    """Takes the lower half of a product, its upper half, or all of it."""
    if "wide" in how:
        wide = _WIDER[dtype]
        return lambda x, y: x.astype(wide) * y.astype(wide), [dtype]
    if "hi" in how:
        return lambda x, y: _upper_half(x, y, dtype), [dtype]
    return np.multiply, [dtype]


def _upper_half(x: Any, y: Any, dtype: np.dtype) -> Any:
    whole = np.asarray(x).astype(object) * np.asarray(y).astype(object)
    return np.asarray(whole >> (8 * dtype.itemsize)).astype(dtype)


def _product_and_sum(how: frozenset[str], dtype: np.dtype) -> Any:
    multiply, _ = _integer_product(how, dtype)
    return lambda x, y, z: multiply(x, y) + z, [dtype, dtype, _WIDER[dtype] if "wide" in how else dtype]


def _quotient(_: frozenset[str], dtype: np.dtype) -> Any:
    if dtype.kind == "f":
        return np.divide, [dtype]

    def towards_zero(x: Any, y: Any) -> Any:
        sizes = (np.asarray(np.abs(n)).view(_UNSIGNED[dtype.itemsize]) for n in (x, y))
        size = np.floor_divide(*sizes).view(dtype)
        return np.where((x < 0) != (y < 0), -size, size)

    return towards_zero, [dtype]


def _remainder(how: frozenset[str], dtype: np.dtype) -> Any:
    divide = _quotient(how, dtype)[0]
    return lambda x, y: (x - divide(x, y) * y).astype(dtype), [dtype]


def _shift(left: bool) -> Callable:
    """Shifts by as many places as an unsigned number says; by more than there are, by all."""

    def make(_: frozenset[str], dtype: np.dtype) -> Any:
        places = 8 * dtype.itemsize

        def shifted(x: Any, by: Any) -> Any:
            within = np.minimum(by, places - 1).astype(dtype)
            moved = np.left_shift(x, within) if left else np.right_shift(x, within)
            beyond = 0 if left or dtype.kind == "u" else np.where(x < 0, -1, 0)
            return np.where(by >= places, beyond, moved).astype(dtype)

        return shifted, [dtype, np.dtype("u4")]

    return make


def _funnel(how: frozenset[str], dtype: np.dtype, left: bool) -> Any:
    """Shifts the 64 bits of two registers, the lower one first; takes the upper 32 after one to the left, else the lower."""

    def shifted(low: Any, high: Any, by: Any) -> Any:
        by = (by & np.uint32(31) if "wrap" in how else np.minimum(by, 32)).astype(np.uint64)
        both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        moved = (both << by) >> np.uint64(32) if left else both >> by
        return (moved & np.uint64(0xFFFFFFFF)).astype(np.uint32)

    return shifted, [dtype]


def _funnel_shift(how: frozenset[str], dtype: np.dtype) -> Any:
    return _funnel(how, dtype, left="l" in how)


def _field(_: frozenset[str], dtype: np.dtype) -> Any:
    """``length`` bits from bit ``start`` on, those of a signed number filled up with its sign."""

    def extract(x: Any, start: Any, length: Any) -> Any:
        places = 8 * dtype.itemsize
        start, length = (np.asarray(n & np.uint32(255)) for n in (start, length))
        length = np.minimum(length, np.where(start < places, places - start, 0)).astype(object)
        taken = (np.asarray(x).view(_UNSIGNED[dtype.itemsize]).astype(object) >> start.astype(object)) & ((1 << length) - 1)
        if dtype.kind == "i":
            taken = np.where((length > 0) & ((taken >> np.maximum(length - 1, 0)) % 2 == 1), taken - (1 << length), taken)
        return np.asarray(taken).astype(dtype)

    return extract, [dtype, np.dtype("u4")]


def _permuted_bytes(_: frozenset[str], dtype: np.dtype) -> Any:
    """Four of eight bytes, as the lowest nibbles of a number say; a nibble's upper bit repeats the byte's sign."""

    def permute(low: Any, high: Any, which: Any) -> Any:
        both = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
        out = np.zeros(np.broadcast(low, high, which).shape, np.uint64)
        for k in range(4):
            nibble = (which >> np.uint32(4 * k)).astype(np.uint64)
            byte = (both >> ((nibble & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
            sign = np.where(byte >> np.uint64(7), np.uint64(255), np.uint64(0))
            out |= np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * k)
        return out.astype(np.uint32)

    return permute, [dtype]


def _select(_: frozenset[str], dtype: np.dtype) -> Any:
    return lambda x, y, p: np.where(p, x, y), [dtype, dtype, np.dtype(bool)]


_COMPARED: dict[str, Callable] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_NO_NUMBER = {"num": False, "nan": True}
_JOINED = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(how: frozenset[str], dtype: np.dtype) -> Any:
    """Compares; with a NaN that is false, or true if the name ends with ``u``. Joins it with a predicate, if asked to."""
    join = next((_JOINED[m] for m in how if m in _JOINED), None)
    (name,) = how - _JOINED.keys() - {"ftz"}

    def compare(x: Any, y: Any, *predicate: Any) -> Any:
        unordered = (x != x) | (y != y)
        if name in _NO_NUMBER:
            found = unordered if _NO_NUMBER[name] else ~unordered
        elif name in _COMPARED:
            found = _COMPARED[name](x, y) & ~unordered
        else:
            found = _COMPARED[name.removesuffix("u")](x, y) | unordered
        return found if join is None else join(found, *predicate)

    return compare, [dtype, dtype, np.dtype(bool)]


_TO_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _conversion(how: frozenset[str], to: np.dtype, given: np.dtype) -> Any:
    """Converts between types: to whole numbers as it is asked for, and into the range of what they become."""
    whole = next((_TO_WHOLE[m] for m in how if m in _TO_WHOLE), None)

    def convert(x: Any) -> Any:
        x = np.asarray(x)
        if to.kind != "f" and given.kind == "f":
            return _into_range(whole(x), to)
        if to.kind != "f":
            return x.astype(to)
        if whole is not None:
            x = whole(x)
        wide = np.longdouble if given.itemsize == 8 and given.kind != "f" else np.float64
        out = rounded(x.astype(wide), to, how)
        return np.clip(np.where(np.isnan(out), to.type(0), out), 0, 1).astype(to) if "sat" in how else out

    return convert, [given]


def _into_range(x: Any, to: np.dtype) -> Any:
    """A NaN becomes 0 of 32 bits or fewer; of 64, the number of its highest bit."""
    limits, wide = np.iinfo(to), np.longdouble
    nan = 0 if to.itemsize < 8 else (limits.min if to.kind == "i" else 1 << 63)
    exact = np.where(np.isnan(x), wide(0), x.astype(wide))
    inside = (exact > limits.min) & (exact < limits.max)
    out = np.where(inside, exact, 0).astype(to)
    out = np.where(inside, out, np.where(exact <= limits.min, to.type(limits.min), to.type(limits.max)))
    return np.where(np.isnan(x), to.type(nan) if to.kind == "u" else np.array(nan, to), out).astype(to)


def _root(_: frozenset[str], dtype: np.dtype) -> Any:
    return np.sqrt, [dtype]


def _in_float64(compute: Callable) -> Callable:
    return lambda _, dtype: (lambda x: np.asarray(compute(np.asarray(x, np.float64))).astype(dtype), [dtype])


def _inverse(how: frozenset[str], dtype: np.dtype) -> Any:
    """Inverts; of an approximate float64 it keeps the upper half."""
    if dtype == np.float64 and "approx" in how:

        def upper_half(x: Any) -> Any:
            return ((1 / x).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)

        return upper_half, [dtype]
    return lambda x: (1 / x).astype(dtype), [dtype]


def _counted(_: frozenset[str], dtype: np.dtype) -> Any:
    return lambda x: np.bitwise_count(x).astype(np.uint32), [dtype]


def _leading_zeros(_: frozenset[str], dtype: np.dtype) -> Any:
    def count(x: Any) -> Any:
        bits = np.asarray(x).astype(object)
        return np.asarray(np.frompyfunc(lambda n: 8 * dtype.itemsize - int(n).bit_length(), 1, 1)(bits)).astype(np.uint32)

    return count, [dtype]


def _sign_of(_: frozenset[str], dtype: np.dtype) -> Any:
    return lambda x, y: np.copysign(y, x), [dtype]


_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
_ROUNDING = "rn rz rm rp"
_KNOWN: dict[tuple[str, int], tuple[Callable, str]] = {
    ("mov", 1): (_plain(lambda x: x), ""),
    ("add", 1): (_plain(np.add), "rn ftz"),
    ("sub", 1): (_plain(np.subtract), "rn ftz"),
    ("mul", 1): (_product, "lo hi wide rn ftz"),
    ("mad", 1): (_product_and_sum, "lo hi wide"),
    ("fma", 1): (_fused, f"{_ROUNDING} ftz"),
    ("neg", 1): (_plain(np.negative), "ftz"),
    ("abs", 1): (_plain(np.abs), "ftz"),
    ("min", 1): (_least(np.minimum, np.fmin), "NaN ftz"),
    ("max", 1): (_least(np.maximum, np.fmax), "NaN ftz"),
    ("div", 1): (_quotient, "full rn approx ftz"),
    ("rem", 1): (_remainder, ""),
    ("rcp", 1): (_inverse, "approx rn ftz"),
    ("sqrt", 1): (_root, "approx rn ftz"),
    ("rsqrt", 1): (_in_float64(lambda x: 1 / np.sqrt(x)), "approx ftz"),
    ("ex2", 1): (_in_float64(np.exp2), "approx ftz"),
    ("lg2", 1): (_in_float64(np.log2), "approx ftz"),
    ("sin", 1): (_in_float64(np.sin), "approx ftz"),
    ("cos", 1): (_in_float64(np.cos), "approx ftz"),
    ("tanh", 1): (_in_float64(np.tanh), "approx"),
    **{(name, 1): (_plain(f), "") for name, f in _LOGIC.items()},
    ("shl", 1): (_shift(left=True), ""),
    ("shr", 1): (_shift(left=False), ""),
    ("shf", 1): (_funnel_shift, "l r wrap clamp"),
    ("bfe", 1): (_field, ""),
    ("prmt", 1): (_permuted_bytes, ""),
    ("selp", 1): (_select, ""),
    ("setp", 1): (_comparison, " ".join([*_COMPARED, *_NO_NUMBER, *_JOINED, "equ neu ltu leu gtu geu ftz"])),
    ("cvt", 2): (_conversion, f"{_ROUNDING} rni rzi rmi rpi sat ftz"),
    ("popc", 1): (_counted, ""),
    ("clz", 1): (_leading_zeros, ""),
    ("copysign", 1): (_sign_of, ""),
}
"""By name and number of types: what makes the function, and the modifiers that it knows."""
