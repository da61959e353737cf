"""Does what instructions do, beside arithmetic: to registers, to memory, and between the threads of a warp or a program."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emulator.arithmetic import TYPES, UnknownInstructionError, bits_type, cast, function, rounded
from emulator.assembly import Address, Instruction, number
from emulator.memory import FaultError, Memory, Shared
from emulator.threads import DIGITS, WARP, Mask, Threads

Step = Callable[[Mask], None]

ENDS = "bra", "ret", "exit"
"""Instructions that end a block; where threads go from there is not told here."""


def compiled(threads: Threads, instruction: Instruction) -> Step:
    """Makes a function that does what an instruction does, for those of the threads that take part."""
    special = _SPECIAL.get(instruction.name)
    if special is not None:
        return special(threads, instruction)
    if instruction.name == "mov" and (vectors := _vectors(threads, instruction)):
        return vectors
    compute, types = function(instruction.name, instruction.modifiers)
    target, *sources = instruction.operands
    assert isinstance(target, str)
    dtype = bits_type(threads.width(target))
    types = [types[min(k, len(types) - 1)] for k in range(len(sources))]
    readers = [_reader(threads, source, t) for source, t in zip(sources, types, strict=True)]

    def step(mask: Mask) -> None:
        out = compute(*[read() for read in readers])
        threads.assign(target, cast(out, dtype), mask)

    return step


def _reader(threads: Threads, source: Any, dtype: np.dtype | None) -> Callable[[], Any]:
    """Makes a function that gives an operand's value."""
    if isinstance(source, str) and (bits := number(source)) is not None:
        size = 8 if dtype is None else dtype.itemsize
        if dtype is not None and dtype.kind == "b":
            known: Any = np.asarray(bool(bits))
        else:
            known = cast(np.asarray(bits % (1 << 8 * size), bits_type(8 * size)), dtype or bits_type(64))
        return lambda: known
    if isinstance(source, str) and source in threads.special:
        return lambda: threads.special[source]
    if isinstance(source, str) and source.startswith("!"):
        return lambda: ~np.asarray(threads.register(source[1:]))
    if isinstance(source, str) and source.rstrip(DIGITS) in threads.kernel.widths:
        if dtype is None:
            return lambda: threads.register(source)
        return lambda: cast(threads.register(source), dtype)
    if isinstance(source, str) and source in threads.kernel.shared:
        place = cast(np.asarray(threads.kernel.shared[source], np.uint64), dtype or bits_type(64))
        return lambda: place
    raise UnknownInstructionError(f"{source!r}: no such operand is known")


def _vectors(threads: Threads, instruction: Instruction) -> Step | None:
    """Packs registers into a larger one, the first lowest, or unpacks one."""
    target, source = instruction.operands
    if isinstance(target, tuple):
        read = _reader(threads, source, TYPES[instruction.modifiers[0]])
        width = TYPES[instruction.modifiers[0]].itemsize * 8 // len(target)

        def unpack(mask: Mask) -> None:
            value = np.asarray(read())
            for k, name in enumerate(target):
                if name != "_":
                    threads.assign(name, cast((value >> value.dtype.type(k * width)), bits_type(width)), mask)

        return unpack
    if isinstance(source, tuple):
        dtype = bits_type(threads.width(target))
        width = dtype.itemsize * 8 // len(source)
        readers = [_reader(threads, part, bits_type(width)) for part in source]

        def pack(mask: Mask) -> None:
            parts = [np.asarray(read()).astype(dtype) << dtype.type(k * width) for k, read in enumerate(readers)]
            threads.assign(target, functools.reduce(np.bitwise_or, parts), mask)

        return pack
    return None


def _space(threads: Threads, modifiers: Sequence[str]) -> Memory | Shared:
    return threads.shared if "shared" in modifiers else threads.memory


def _shape(modifiers: Sequence[str]) -> tuple[int, np.dtype]:
    """Tells how many numbers an access moves, and of what type."""
    unknown = set(modifiers) - TYPES.keys() - {"global", "shared", "v2", "v4", "param"}
    if unknown:
        raise UnknownInstructionError(f"accesses to memory with {', '.join(sorted(unknown))} are not known")
    many = {"v2": 2, "v4": 4}
    return next((many[m] for m in modifiers if m in many), 1), next(TYPES[m] for m in reversed(modifiers) if m in TYPES)


def _load(threads: Threads, instruction: Instruction) -> Step:
    count, dtype = _shape(instruction.modifiers)
    target, place = instruction.operands
    names = target if isinstance(target, tuple) else (target,)
    assert isinstance(place, Address)
    assert len(names) == count
    types = [bits_type(threads.width(name)) for name in names]
    if "param" in instruction.modifiers:
        value = np.asarray(threads.parameters[place.base], np.uint64)
        return lambda mask: threads.assign(names[0], cast(value, types[0]), mask)
    space, base, text = _space(threads, instruction.modifiers), _base(threads, place), instruction.text

    def step(mask: Mask) -> None:
        address = base()
        together = address.ndim == 0 and space is threads.memory
        if together:  # one number for all
            among, address = threads.chosen(mask)[0], address[None]
        else:
            among, address = threads.chosen(mask, address)
        loaded = _wide(count, dtype, lambda at, width: space.load(at, width, among, text), address, text)
        for k, (name, t) in enumerate(zip(names, types, strict=True)):
            value = loaded[k].view(dtype)
            value = value.astype(t.str.replace("u", "i")).view(t) if dtype.kind == "i" else cast(value, t)
            if together:
                threads.assign(name, value[0], mask)
            elif mask is None:
                threads.assign(name, value, None)
            else:
                full = np.zeros(threads.count, t)
                full[among] = value
                threads.assign(name, full, mask)

    return step


def _store(threads: Threads, instruction: Instruction) -> Step:
    count, dtype = _shape(instruction.modifiers)
    place, source = instruction.operands
    assert isinstance(place, Address)
    parts = source if isinstance(source, tuple) else (source,)
    assert len(parts) == count
    space, base, text = _space(threads, instruction.modifiers), _base(threads, place), instruction.text
    bits = bits_type(8 * dtype.itemsize)
    readers = [_reader(threads, part, bits) for part in parts]

    def step(mask: Mask) -> None:
        among, address, *values = threads.chosen(mask, base(), *(read() for read in readers))
        _aligned(address, count * dtype.itemsize, text)
        for k, value in enumerate(values):
            space.store(address + np.uint64(k * dtype.itemsize), value.astype(bits), dtype.itemsize, among, text)

    return step


def _wide(count: int, dtype: np.dtype, load: Callable, address: np.ndarray, text: str) -> list[np.ndarray]:
    _aligned(address, count * dtype.itemsize, text)
    return [load(address + np.uint64(k * dtype.itemsize), dtype.itemsize) for k in range(count)]


def _aligned(address: np.ndarray, width: int, text: str) -> None:
    if (address % np.uint64(width)).any():
        raise FaultError(f"misaligned: an access of {width} bytes, in {text}")


def _base(threads: Threads, place: Address) -> Callable[[], np.ndarray]:
    read, offset = _reader(threads, place.base, None), np.uint64(place.offset % (1 << 64))
    return lambda: np.asarray(read()).astype(np.uint64) + offset


def _shuffle(threads: Threads, instruction: Instruction) -> Step:
    """Reads registers of other threads of the warp; see the manual's text of shfl.sync."""
    _, how, *_ = instruction.modifiers
    target, *sources = instruction.operands
    name, _, predicate = str(target).partition("|")
    value, by, clamp, members = (_reader(threads, source, bits_type(32)) for source in sources)

    def step(mask: Mask) -> None:
        threads.whole(mask, WARP, instruction.text)
        if (np.asarray(members()) != np.uint32(0xFFFFFFFF)).any():
            raise UnknownInstructionError(f"{instruction.text}: of some of a warp's threads, which is not known")
        lane = threads.own.astype(np.int64) % WARP
        b, c = (np.asarray(read()).astype(np.int64) for read in (by, clamp))
        segment, limit = c >> 8 & 31, c & 31
        most = (lane & segment) | (limit & ~segment)
        if how == "idx":
            source = (lane & segment) | (b & 31 & ~segment)
        else:
            source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b}[how]
        inside = source >= most if how == "up" else source <= most
        source = np.where(inside, source, lane)
        given = np.broadcast_to(value(), (threads.count,))
        taken = given[threads.thread // WARP * WARP + np.broadcast_to(source, (threads.count,))]
        threads.assign(name.strip(), taken, mask)
        if predicate:
            threads.assign(predicate.strip(), np.broadcast_to(inside, (threads.count,)), mask)

    return step


def _barrier(threads: Threads, instruction: Instruction) -> Step:
    """Waits for all threads of a warp, or of a program."""
    text, per = instruction.text, threads.kernel.threads // WARP
    if instruction.modifiers == ("warp", "sync"):

        def meet_in_warps(mask: Mask) -> None:
            warps = threads.whole(mask, WARP, text)
            threads.shared.warp_barrier(warps // per, warps % per)

        return meet_in_warps
    if instruction.operands != ("0",) or instruction.modifiers not in (("sync",), ("sync", "aligned")):
        raise UnknownInstructionError(f"{text}: no such barrier is known")
    return lambda mask: threads.shared.barrier(threads.whole(mask, threads.kernel.threads, text))


def _matrices(threads: Threads, instruction: Instruction, load: bool) -> Step:
    """Moves 8 x 8 matrices of 16 bits: lane 8 j + i knows where row i of matrix j lies, and has two neighbours of each."""
    counts = {"x1": 1, "x2": 2, "x4": 4}
    if not {"sync", "aligned", "m8n8", "shared", "b16"} <= set(instruction.modifiers) or "trans" in instruction.modifiers:
        raise UnknownInstructionError(f"{instruction.text}: of matrices of this kind nothing is known")
    count = next(counts[m] for m in instruction.modifiers if m in counts)
    registers, place = instruction.operands if load else reversed(instruction.operands)
    assert isinstance(place, Address)
    registers = registers if isinstance(registers, tuple) else (registers,)
    assert len(registers) == count
    base, text, lane = _base(threads, place), instruction.text, threads.own % WARP
    first = threads.thread // WARP * WARP
    readers = [_reader(threads, name, bits_type(32)) for name in registers] if not load else []

    def step(mask: Mask) -> None:
        threads.whole(mask, WARP, text)
        rows = np.broadcast_to(base(), (threads.count,))
        among = threads.chosen(mask)[0]
        for j, name in enumerate(registers):
            address = (rows[first + 8 * j + lane // 4] + (lane % 4 * 4).astype(np.uint64))[among]
            if load:
                full = np.zeros(threads.count, np.uint32)
                full[among] = threads.shared.load(address, 4, among, text)
                threads.assign(name, full, mask)
            else:
                values = np.broadcast_to(readers[j](), (threads.count,))[among]
                threads.shared.store(address, values, 4, among, text)

    return step


def _product_of_tiles(threads: Threads, instruction: Instruction) -> Step:
    """Multiplies a matrix of TF32 (16, 8) by another (8, 8), and adds a third one.

    A warp holds them as the manual's figures say. Of float32 it reads what TF32 has. How the sum is rounded is left open; here
    towards zero, once.
    """
    text = instruction.text
    if instruction.modifiers != ("sync", "aligned", "m16n8k8", "row", "col", "f32", "tf32", "tf32", "f32"):
        raise UnknownInstructionError(f"{text}: of products of this kind nothing is known")
    target, *sources = instruction.operands
    assert isinstance(target, tuple)
    readers = [[_reader(threads, name, bits_type(32)) for name in source] for source in sources]
    group, within = np.divmod(np.arange(WARP), 4)
    of_a = np.stack([(group + 8 * (k % 2)) * 8 + within + 4 * (k // 2) for k in range(4)])
    of_b = np.stack([(within + 4 * k) * 8 + group for k in range(2)])
    of_c = np.stack([(group + 8 * (k // 2)) * 8 + 2 * within + k % 2 for k in range(4)])

    def step(mask: Mask) -> None:
        threads.whole(mask, WARP, text)

        def matrix(registers: list, places: np.ndarray, rows: int, tf32: bool) -> np.ndarray:
            bits = np.stack([np.broadcast_to(read(), (threads.count,)) for read in registers])
            numbers = (bits & np.uint32(0xFFFFE000) if tf32 else bits).view(np.float32).astype(np.float64)
            out = np.zeros((threads.count // WARP, rows * 8))
            for part, place in zip(numbers.reshape(len(registers), -1, WARP), places, strict=True):
                out[:, place] = part
            return out.reshape(-1, rows, 8)

        a, b, c = (matrix(*of) for of in zip(readers, (of_a, of_b, of_c), (16, 8, 16), (True, True, False), strict=True))
        exact = a @ b + c
        total = rounded(exact, np.dtype(np.float32), frozenset({"rz"})).astype(np.float32).reshape(-1, 128)
        for name, place in zip(target, of_c, strict=True):
            threads.assign(name, total[:, place].reshape(-1).view(np.uint32), mask)

    return step


_SPECIAL: dict[str, Callable[[Threads, Instruction], Step]] = {
    "ld": _load,
    "st": _store,
    "shfl": _shuffle,
    "bar": _barrier,
    "ldmatrix": functools.partial(_matrices, load=True),
    "stmatrix": functools.partial(_matrices, load=False),
    "mma": _product_of_tiles,
    **dict.fromkeys(ENDS, lambda *_: lambda _: None),
}
