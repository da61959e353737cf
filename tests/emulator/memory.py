"""Memory that knows who wrote what: of arrays on the device, and of a program's own, which its threads share.

Every array lies far from all others, so that an access beyond its ends meets none of them. A race is an access to what another
thread has written, or has read, where nothing says which of the two comes first.
"""

from typing import Any, NamedTuple

import numpy as np

from emulator.arithmetic import bits_type

NOBODY = -1
_APART = 40
"""Addresses' bits below those that number the arrays."""
_WORD = 4


class FaultError(Exception):
    """A kernel did what no kernel may do."""


class Array:
    """An array on the device, or a window of one: its last bytes, of ``size``, where it is too large to be held.

    Attributes:
        name: for faults.
        bytes: what it holds.
        writer: for every word the thread that wrote it, or `NOBODY`; None for an input.
    """

    def __init__(self, name: str, held: np.ndarray, *, written: bool, size: int | None = None):
        self.name = name
        self.bytes = np.ascontiguousarray(held).reshape(-1).view(np.uint8)
        self.size = size or self.bytes.size
        self.word = min(held.dtype.itemsize, _WORD)
        self.writer = np.full(self.bytes.size // self.word, NOBODY, np.int64) if written else None

    @property
    def unwritten(self) -> np.ndarray:
        """Lists the numbers of the words of an output that nobody wrote."""
        return np.flatnonzero(self.writer == NOBODY) if self.writer is not None else np.zeros(0, int)

    def offsets(self, addresses: np.ndarray, width: int, text: str) -> np.ndarray:
        """Finds where in the window accesses of a width in bytes lie."""
        at = addresses & np.uint64((1 << _APART) - 1)
        bad = at + np.uint64(width) > np.uint64(self.size)
        if bad.any():
            raise FaultError(f"out of bounds: byte {at[bad][0]:,} of the {self.size:,} of {self.name}, in {text}")
        if (at % np.uint64(width)).any():
            raise FaultError(f"misaligned: byte {at[at % np.uint64(width) > 0][0]:,} of {self.name}, in {text}")
        at = at - np.uint64(self.size - self.bytes.size)
        if (at >= np.uint64(self.bytes.size)).any():
            raise FaultError(
                f"outside of the window: {self.name}, of which the last {self.bytes.size:,} bytes are held, in {text}"
            )
        return at


class Memory:
    """Holds a device's arrays, for one launch."""

    def __init__(self, arrays: list[Array]):
        self.arrays = arrays

    @staticmethod
    def address(number: int) -> np.uint64:
        """Tells where an array begins."""
        return np.uint64((number + 1) << _APART)

    def load(self, addresses: np.ndarray, width: int, thread: np.ndarray, text: str) -> np.ndarray:
        """Reads bits at addresses, by threads."""
        array = self._array(addresses, text)
        at = array.offsets(addresses, width, text)
        if array.writer is not None:
            writers = array.writer[_words(at, width, array.word)]
            if (writers == NOBODY).any():
                raise FaultError(f"reads what nobody wrote: {array.name}, in {text}")
            if (writers != thread[:, None]).any():
                raise FaultError(f"race: reads what another thread wrote: {array.name}, in {text}")
        return array.bytes.view(bits_type(8 * width))[at // np.uint64(width)]

    def store(self, addresses: np.ndarray, values: np.ndarray, width: int, thread: np.ndarray, text: str) -> None:
        """Writes bits to addresses, by threads. Several may write one number to one place, but no two."""
        array = self._array(addresses, text)
        if array.writer is None:
            raise FaultError(f"writes to an input: {array.name}, in {text}")
        at = array.offsets(addresses, width, text)
        held, places, words = array.bytes.view(bits_type(8 * width)), at // np.uint64(width), _words(at, width, array.word)
        before = array.writer[words]
        others = ((before != NOBODY) & (before != thread[:, None])).any(1) & (held[places] != values)
        held[places] = values
        if others.any() or (held[places] != values).any():
            raise FaultError(f"race: two threads write different numbers to one place of {array.name}, in {text}")
        array.writer[words] = thread[:, None]

    def _array(self, addresses: np.ndarray, text: str) -> Array:
        numbers = (addresses >> np.uint64(_APART)).astype(np.int64) - 1
        number = int(numbers[0]) if numbers.size else 0
        if (numbers != number).any() or not 0 <= number < len(self.arrays):
            raise FaultError(f"out of bounds: address {int(addresses[0]):#x} lies in no array, in {text}")
        return self.arrays[number]


class _Access(NamedTuple):
    """Who touched words last: thread (`NOBODY`, or `_MANY`), and the programs' and warps' numbers of barriers by then."""

    thread: np.ndarray
    program: np.ndarray
    warp: np.ndarray


_MANY = -2


class Shared:
    """Holds what the threads of each program share, and the barriers that order their accesses."""

    def __init__(self, programs: int, threads: int, size: int):
        self.threads, self.size = threads, size
        self.bytes = np.zeros((programs, -(-size // 16) * 16), np.uint8)
        self.barriers = np.zeros(programs, np.int64)
        self.warp_barriers = np.zeros((programs, -(-threads // 32)), np.int64)
        words = (programs, self.bytes.shape[1] // _WORD)
        self.written, self.read = (_Access(np.full(words, NOBODY), np.zeros(words, int), np.zeros(words, int)) for _ in "wr")

    def load(self, addresses: np.ndarray, width: int, thread: np.ndarray, text: str) -> np.ndarray:
        """Reads bits at addresses, by threads, which are numbered through all programs."""
        program, own, words = self._places(addresses, width, thread, text)
        if (self.written.thread[program, words] == NOBODY).any():
            raise FaultError(f"reads what nobody wrote: shared memory, in {text}")
        self._ordered(self.written, program, own, words, f"reads what another thread wrote, with no barrier between, in {text}")
        before = self.read.thread[program, words]
        recent = (before != NOBODY) & (before != own) & self._since(self.read, program, own, words)
        self._note(self.read, program, own, words, np.where(recent, _MANY, own))
        columns = (addresses // np.uint64(width)).astype(np.int64)
        return self.bytes.view(bits_type(8 * width))[program[:, 0], columns]

    def store(self, addresses: np.ndarray, values: np.ndarray, width: int, thread: np.ndarray, text: str) -> None:
        """Writes bits to addresses, by threads."""
        program, own, words = self._places(addresses, width, thread, text)
        for access, what in ((self.written, "wrote"), (self.read, "reads")):
            self._ordered(
                access, program, own, words, f"overwrites what another thread {what}, with no barrier between, in {text}"
            )
        self._note(self.written, program, own, words, own)
        held, columns = self.bytes.view(bits_type(8 * width)), (addresses // np.uint64(width)).astype(np.int64)
        held[program[:, 0], columns] = values
        if (held[program[:, 0], columns] != values).any():
            raise FaultError(f"race: two threads write different numbers to one place of shared memory, in {text}")

    def barrier(self, programs: np.ndarray) -> None:
        """Notes that all threads of programs have come here."""
        self.barriers[programs] += 1

    def warp_barrier(self, programs: np.ndarray, warps: np.ndarray) -> None:
        """Notes that all threads of warps have."""
        self.warp_barriers[programs, warps] += 1

    def _places(self, addresses: np.ndarray, width: int, thread: np.ndarray, text: str) -> Any:
        if (addresses + np.uint64(width) > np.uint64(self.size)).any() or (addresses % np.uint64(width)).any():
            raise FaultError(
                f"out of bounds or misaligned: byte {int(addresses.max()):,} of {self.size:,} shared ones, in {text}"
            )
        words = _words(addresses, width, _WORD)
        return np.broadcast_to((thread // self.threads)[:, None], words.shape), (thread % self.threads)[:, None], words

    def _since(self, access: _Access, program: Any, own: Any, words: Any) -> np.ndarray:
        """Tells whether there was no barrier since an access, for those who ask."""
        same_warp = access.thread[program, words] // 32 == own // 32
        no_barrier = access.program[program, words] == self.barriers[program]
        return no_barrier & ~(same_warp & (access.warp[program, words] != self.warp_barriers[program, own // 32]))

    def _ordered(self, access: _Access, program: Any, own: Any, words: Any, what: str) -> None:
        by = access.thread[program, words]
        if ((by != NOBODY) & (by != own) & self._since(access, program, own, words)).any():
            raise FaultError(f"race: {what}")

    def _note(self, access: _Access, program: Any, own: Any, words: Any, by: Any) -> None:
        access.thread[program, words] = by
        access.program[program, words] = self.barriers[program]
        access.warp[program, words] = self.warp_barriers[program, own // 32]


def _words(at: np.ndarray, width: int, word: int) -> np.ndarray:
    """Lists the words that accesses touch, a row of them each."""
    return (at // np.uint64(word)).astype(np.int64)[:, None] + np.arange(max(width // word, 1))
