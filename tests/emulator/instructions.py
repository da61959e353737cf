"""What PTX's instructions are to compute, in Python's own whole and rational numbers."""

import math
import struct
from fractions import Fraction

import mpmath
import numpy as np

from emulator.arithmetic import TYPES

WHOLE = {
    "s32": [0, 1, -1, 7, -13, 31, 2**31 - 1, -(2**31), 0x1234567],
    "u32": [0, 1, 7, 13, 31, 32, 200, 2**31, 2**32 - 1, 0x12345678],
    "s64": [0, 1, -1, 45, -(2**40), 2**63 - 1, -(2**63)],
    "u64": [0, 1, 45, 2**40 + 3, 2**63, 2**64 - 1],
}
WHOLE |= {"b32": WHOLE["u32"], "b64": WHOLE["u64"], "pred": [0, 1]}
FLOATING = [0.0, -0.0, 1.0, -1.5, 3.25, 1 / 3, -7e-5, 1e10, -2.5, 0.5, 123.456, math.inf, -math.inf, math.nan, 1e-41]


def values(dtype):
    if dtype in WHOLE:
        return WHOLE[dtype]
    more = [2**-1060, 1e300] if dtype == "f64" else [3e38, 2.0**-149]
    return [TYPES[dtype].type(x).item() for x in [*FLOATING, *more]]


def wrapped(dtype):
    bits, signed = 8 * TYPES[dtype].itemsize, dtype[0] == "s"

    def wrap(n):
        n %= 1 << bits
        return n - (1 << bits) if signed and n >= 1 << bits - 1 else n

    return wrap


def rounded(exact, dtype, rounding="n"):
    """A rational number as the nearest floating one, or one of its neighbours."""
    if dtype == "f64":
        try:
            return float(exact)
        except OverflowError:
            return math.inf if exact > 0 else -math.inf
    least = Fraction(1, 2**149)
    size = mpmath.frexp(mpmath.fdiv(exact.numerator, exact.denominator))[1] if exact else 0
    if size - 1 >= -126:
        out = float(mpmath.fdiv(exact.numerator, exact.denominator, prec=24, rounding=rounding))
    else:
        out = float({"n": round, "f": math.floor, "c": math.ceil, "d": int}[rounding](exact / least) * least)
    out = math.inf if abs(out) > float(np.finfo("f4").max) else abs(out)
    return out if exact > 0 else -out


def exactly(function, dtype, rounding="n"):
    """A function of rational numbers, rounded once; of those that are none, NumPy's."""

    def compute(*operands):
        if all(map(math.isfinite, operands)):
            exact = function(*map(Fraction, operands))
            if exact:
                return rounded(exact, dtype, rounding)
        with np.errstate(all="ignore"):
            return function(*(TYPES[dtype].type(x) for x in operands)).item()

    return compute


def divided(x, y):
    return x / y if not isinstance(y, Fraction) or y else Fraction(0)


def nearest(function, dtype):
    """Of one number, in mpmath's own arithmetic."""

    def compute(x):
        with mpmath.workprec(80):
            return TYPES[dtype].type(float(function(mpmath.mpf(x)))).item()

    return compute


def shift(x, by, bits, left):
    return (x << by if left else x >> by) if by < bits else 0 if left or x >= 0 else -1


def funnel(low, high, by, left, wrap):
    by = by & 31 if wrap else min(by, 32)
    both = high << 32 | low
    return (both << by >> 32 if left else both >> by) & 0xFFFFFFFF


def field(x, start, length, bits, signed):
    start, length = start & 255, length & 255
    taken = [(x >> min(start + k, bits - 1)) & 1 if start + k < bits else 0 for k in range(min(length, bits))]
    n = sum(bit << k for k, bit in enumerate(taken))
    length = min(length, max(bits - start, 0))
    return n - (1 << length) if signed and length and n >> length - 1 else n


def permuted(low, high, which):
    source = struct.pack("<II", low, high)
    out = bytes(
        (255 if source[n & 7] >> 7 else 0) if n & 8 else source[n & 7] for n in ((which >> 4 * k) & 15 for k in range(4))
    )
    return struct.unpack("<I", out)[0]


def whole(function, low, high):
    """Of a floating number: a whole one, in a range."""

    def convert(x):
        if math.isnan(x):
            return 0 if high < 2**32 else low if low else 2**63
        return low if x <= low else high if x >= high else function(x)

    return convert


def half_to_even(x):
    return round(x) if math.isfinite(x) else x


def inverse_root(x):
    return 1 / math.sqrt(x) if x > 0 else math.copysign(math.inf, x) if x == 0 else math.nan


def compared(test, unordered):
    return lambda x, y: int(unordered if math.isnan(x) or math.isnan(y) else test(x, y))


W = {d: wrapped(d) for d in ("s32", "u32", "s64", "u64", "b32", "b64")}
ORDER = {"eq": lambda x, y: x == y, "ne": lambda x, y: x != y, "lt": lambda x, y: x < y, "le": lambda x, y: x <= y,
         "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y}  # fmt: skip
KNOWN = {
    **{f"add.{d} $0, $1, $2;": ([d, d], d, lambda x, y, d=d: W[d](x + y)) for d in ("s32", "u32", "s64", "u64")},
    **{f"sub.{d} $0, $1, $2;": ([d, d], d, lambda x, y, d=d: W[d](x - y)) for d in ("s32", "s64")},
    **{f"mul.lo.{d} $0, $1, $2;": ([d, d], d, lambda x, y, d=d: W[d](x * y)) for d in ("s32", "s64")},
    **{f"mul.hi.{d} $0, $1, $2;": ([d, d], d, lambda x, y: x * y >> 32) for d in ("s32", "u32")},
    **{f"mul.wide.{d} $0, $1, $2;": ([d, d], w, lambda x, y: x * y) for d, w in (("s32", "s64"), ("u32", "u64"))},
    **{f"mad.lo.{d} $0, $1, $2, $3;": ([d] * 3, d, lambda x, y, z, d=d: W[d](x * y + z)) for d in ("s32", "s64")},
    "mad.wide.s32 $0, $1, $2, $3;": (["s32", "s32", "s64"], "s64", lambda x, y, z: W["s64"](x * y + z)),
    "mad.wide.u32 $0, $1, $2, $3;": (["u32", "u32", "u64"], "u64", lambda x, y, z: W["u64"](x * y + z)),
    **{f"neg.{d} $0, $1;": ([d], d, lambda x, d=d: W[d](-x)) for d in ("s32", "s64")},
    **{f"neg.{d} $0, $1;": ([d], d, lambda x: -x) for d in ("f32", "f64")},
    "abs.s32 $0, $1;": (["s32"], "s32", lambda x: W["s32"](abs(x))),
    **{f"abs.{d} $0, $1;": ([d], d, abs) for d in ("f32", "f64")},
    **{f"min.{d} $0, $1, $2;": ([d, d], d, min) for d in ("s32", "u32", "u64")},
    **{f"max.{d} $0, $1, $2;": ([d, d], d, max) for d in ("s32", "u32")},
    "div.s32 $0, $1, $2;": (["s32", "s32"], "s32", lambda x, y: W["s32"](int(Fraction(x, y))) if y else None),
    "rem.s32 $0, $1, $2;": (["s32", "s32"], "s32", lambda x, y: W["s32"](x - y * int(Fraction(x, y))) if y else None),
    "div.u32 $0, $1, $2;": (["u32", "u32"], "u32", lambda x, y: x // y if y else None),
    **{
        f"{name}.{d} $0, $1, $2;": ([d, d], d, exactly(f, d.split(".")[-1]))
        for d in ("f32", "f64")
        for name, f in (("add.rn", lambda x, y: x + y), ("sub.rn", lambda x, y: x - y), ("mul.rn", lambda x, y: x * y))
    },
    "mul.f32 $0, $1, $2;": (["f32"] * 2, "f32", exactly(lambda x, y: x * y, "f32")),
    "fma.rn.f32 $0, $1, $2, $3;": (["f32"] * 3, "f32", exactly(lambda x, y, z: x * y + z, "f32")),
    "fma.rm.f32 $0, $1, $2, $3;": (["f32"] * 3, "f32", exactly(lambda x, y, z: x * y + z, "f32", "f")),
    "fma.rp.f32 $0, $1, $2, $3;": (["f32"] * 3, "f32", exactly(lambda x, y, z: x * y + z, "f32", "c")),
    "fma.rz.f32 $0, $1, $2, $3;": (["f32"] * 3, "f32", exactly(lambda x, y, z: x * y + z, "f32", "d")),
    "fma.rn.f64 $0, $1, $2, $3;": (["f64"] * 3, "f64", exactly(lambda x, y, z: x * y + z, "f64")),
    **{f"div.{how}.f32 $0, $1, $2;": (["f32"] * 2, "f32", exactly(divided, "f32")) for how in ("full", "rn")},
    "div.rn.f64 $0, $1, $2;": (["f64"] * 2, "f64", exactly(divided, "f64")),
    "rcp.rn.f32 $0, $1;": (["f32"], "f32", exactly(lambda x: divided(1, x), "f32")),
    **{
        f"{name}.approx{flush}.f32 $0, $1;": (["f32"], "f32", f)
        for flush in ("", ".ftz")
        for name, f in {
            "ex2": nearest(lambda x: mpmath.power(2, x), "f32"),
            "lg2": lambda x: math.log2(x) if x > 0 else -math.inf if x == 0 else math.nan,
            "rsqrt": inverse_root,
            "sqrt": lambda x: math.sqrt(x) if x > 0 or x == 0 else math.nan,
            "sin": lambda x: math.sin(x) if math.isfinite(x) else math.nan,
            "cos": lambda x: math.cos(x) if math.isfinite(x) else math.nan,
        }.items()
    },
    "tanh.approx.f32 $0, $1;": (["f32"], "f32", math.tanh),
    "rsqrt.approx.f64 $0, $1;": (["f64"], "f64", inverse_root),
    "sqrt.rn.f64 $0, $1;": (["f64"], "f64", lambda x: math.sqrt(x) if x > 0 or x == 0 else math.nan),
    **{
        f"{name}{nan}.{d} $0, $1, $2;": (
            [d, d],
            d,
            lambda x, y, f=f, nan=nan: (math.nan if nan else y if math.isnan(x) else x) if x != x or y != y else f(x, y),
        )
        for d in ("f32", "f64")
        for name, f in (("min", min), ("max", max))
        for nan in ("", ".NaN")
        if d == "f32" or not nan
    },
    **{f"and.{d} $0, $1, $2;": ([d, d], d, lambda x, y: x & y) for d in ("b32", "b64", "pred")},
    **{f"or.{d} $0, $1, $2;": ([d, d], d, lambda x, y: x | y) for d in ("b32", "b64", "pred")},
    **{f"xor.{d} $0, $1, $2;": ([d, d], d, lambda x, y: x ^ y) for d in ("b32", "b64", "pred")},
    **{f"not.{d} $0, $1;": ([d], d, lambda x, d=d: W[d](~x)) for d in ("b32", "b64")},
    "not.pred $0, $1;": (["pred"], "pred", lambda x: 1 - x),
    **{
        f"shl.{d} $0, $1, $2;": ([d, "u32"], d, lambda x, y, d=d: W[d](shift(x, y, int(d[1:]), True)))
        for d in ("b32", "b64")
    },
    **{
        f"shr.{d} $0, $1, $2;": ([d, "u32"], d, lambda x, y, d=d: shift(x, y, int(d[1:]), False))
        for d in ("s32", "u32", "s64", "u64")
    },
    **{
        f"shf.{side}.{how}.b32 $0, $1, $2, $3;": (
            ["b32"] * 3,
            "b32",
            lambda x, y, z, side=side, how=how: funnel(x, y, z, side == "l", how == "wrap"),
        )
        for side in "lr"
        for how in ("wrap", "clamp")
    },
    **{
        f"bfe.{d} $0, $1, $2, $3;": ([d, "u32", "u32"], d, lambda x, s, n, d=d: field(x, s, n, int(d[1:]), d[0] == "s"))
        for d in ("u32", "s32", "u64")
    },
    "prmt.b32 $0, $1, $2, $3;": (["b32"] * 3, "b32", permuted),
    **{f"selp.{d} $0, $1, $2, $3;": ([d, d, "pred"], d, lambda x, y, p: x if p else y) for d in ("b32", "f32", "b64", "f64")},
    **{
        f"setp.{name}.{d} $0, $1, $2;": ([d, d], "pred", lambda x, y, f=f: int(f(x, y)))
        for name, f in ORDER.items()
        for d in ("s32", "u32", "s64")
    },
    "setp.lo.u32 $0, $1, $2;": (["u32"] * 2, "pred", lambda x, y: int(x < y)),
    "setp.ls.u32 $0, $1, $2;": (["u32"] * 2, "pred", lambda x, y: int(x <= y)),
    "setp.hi.u32 $0, $1, $2;": (["u32"] * 2, "pred", lambda x, y: int(x > y)),
    "setp.hs.u32 $0, $1, $2;": (["u32"] * 2, "pred", lambda x, y: int(x >= y)),
    **{
        f"setp.{name}{u}.{d} $0, $1, $2;": ([d, d], "pred", compared(f, bool(u)))
        for name, f in ORDER.items()
        for u in ("", "u")
        for d in ("f32", "f64")
    },
    "setp.num.f32 $0, $1, $2;": (["f32"] * 2, "pred", lambda x, y: int(x == x and y == y)),
    "setp.nan.f64 $0, $1, $2;": (["f64"] * 2, "pred", lambda x, y: int(x != x or y != y)),
    "setp.lt.and.s32 $0, $1, $2, $3;": (["s32", "s32", "pred"], "pred", lambda x, y, p: int(x < y and p)),
    "setp.lt.or.s32 $0, $1, $2, $3;": (["s32", "s32", "pred"], "pred", lambda x, y, p: int(x < y or p)),
    "setp.lt.xor.s32 $0, $1, $2, $3;": (["s32", "s32", "pred"], "pred", lambda x, y, p: (x < y) ^ p),
    **{f"mov.{d} $0, $1;": ([d], d, lambda x: x) for d in ("b32", "u32", "f32", "b64", "pred")},
    "cvt.s64.s32 $0, $1;": (["s32"], "s64", lambda x: x),
    "cvt.u64.u32 $0, $1;": (["u32"], "u64", lambda x: x),
    "cvt.u32.u64 $0, $1;": (["u64"], "u32", lambda x: W["u32"](x)),
    **{f"cvt.rn.f32.{d} $0, $1;": ([d], "f32", lambda x: rounded(Fraction(x), "f32")) for d in ("s32", "u32", "s64")},
    **{f"cvt.rn.f64.{d} $0, $1;": ([d], "f64", lambda x: rounded(Fraction(x), "f64")) for d in ("s32", "u32", "s64", "u64")},
    "cvt.f64.f32 $0, $1;": (["f32"], "f64", lambda x: x),
    "cvt.rn.f32.f64 $0, $1;": (["f64"], "f32", exactly(lambda x: x, "f32")),
    "cvt.sat.f32.f32 $0, $1;": (["f32"], "f32", lambda x: 0.0 if x != x else min(max(x, 0.0), 1.0)),
    "cvt.rmi.f32.f32 $0, $1;": (["f32"], "f32", lambda x: math.floor(x) if math.isfinite(x) else x),
    "cvt.rmi.f64.f64 $0, $1;": (["f64"], "f64", lambda x: math.floor(x) if math.isfinite(x) else x),
    "cvt.rpi.f32.f32 $0, $1;": (["f32"], "f32", lambda x: math.ceil(x) if math.isfinite(x) else x),
    "cvt.rzi.s32.f32 $0, $1;": (["f32"], "s32", whole(int, -(2**31), 2**31 - 1)),
    "cvt.rni.s32.f32 $0, $1;": (["f32"], "s32", whole(half_to_even, -(2**31), 2**31 - 1)),
    "cvt.rzi.u32.f32 $0, $1;": (["f32"], "u32", whole(int, 0, 2**32 - 1)),
    "cvt.rzi.s64.f64 $0, $1;": (["f64"], "s64", whole(int, -(2**63), 2**63 - 1)),
    "popc.b32 $0, $1;": (["b32"], "u32", int.bit_count),
    "popc.b64 $0, $1;": (["b64"], "u32", int.bit_count),
    "clz.b32 $0, $1;": (["b32"], "u32", lambda x: 32 - x.bit_length()),
    "copysign.f32 $0, $1, $2;": (["f32"] * 2, "f32", lambda x, y: math.copysign(y, x)),
}  # fmt: skip
"""Of an instruction: its operands' types, its result's, and the same in Python; None is where PTX says nothing."""
ULPS = {name: 2 for name in KNOWN if "approx" in name or "full" in name}
