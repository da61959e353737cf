"""Maps [K] -> [K] and their composition, as words of bits in which every value has its place.

The values of a map lie side by side, as few bits each as hold K - 1, as many to a word of 32 bits as it has room for: up to
K = 8 one word is the whole map. Composing two is shifts and masks in all lanes at once, where indexing would go through
memory one value at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.kernels.algebra import select, stage
from fastscan.kernels.scan.recurrence import InChunks, Recurrence, Seam
from fastscan.kernels.scan.seams import numbers_apart

WORD = 32


class Packing(NamedTuple):
    """How maps of K states lie in words: ``bits`` a value, ``room`` values a word, ``words`` a map."""

    K: int
    bits: int
    room: int
    words: int

    @classmethod
    def of(cls, K: int) -> "Packing":
        """Returns the packing of K states."""
        bits = max((K - 1).bit_length(), 1)
        room = WORD // bits
        return cls(K, bits, room, -(-K // room))

    def places(self, word: int) -> np.ndarray:
        """Returns where the values of a word begin, as a column."""
        return self.bits * np.arange(min(self.room, self.K - word * self.room))[:, None]

    def identity(self) -> np.ndarray:
        """Returns the words (W, 1) of the map that changes nothing."""
        states = np.arange(self.K).reshape(-1, 1)
        parts = [states[i * self.room :][: len(self.places(i))] << self.places(i) for i in range(self.words)]
        return np.array([[part.sum()] for part in parts], np.uint32)


def pack(values) -> Any:
    """Packs values (K, 1), uint32, into words (W, 1)."""
    packing = Packing.of(values.shape[0])
    words = []
    for word in range(packing.words):
        places = packing.places(word)
        block = values.block(word * packing.room, word * packing.room + len(places))
        words.append(type(values).elementwise(jnp.left_shift, block, values.constant(places)).T.reduce(jnp.bitwise_or))
    return type(values).vstack(words)


def unpack(K: int, words) -> Any:
    """Inverts `pack`."""
    packing = Packing.of(K)
    kind, mask = type(words), (1 << packing.bits) - 1
    return kind.vstack(
        [
            kind.elementwise(lambda w, place: (w >> place) & mask, words.block(i, i + 1), words.constant(packing.places(i)))
            for i in range(packing.words)
        ]
    )


def look_up(K: int, words, states) -> Any:
    """Looks up the values of a map (W, 1) at states (n, 1)."""
    packing = Packing.of(K)

    def value(state: jax.Array, *words: jax.Array) -> jax.Array:
        word, first = words[0], jnp.zeros_like(state)
        for i, other in enumerate(words[1:], 1):
            beyond = state >= i * packing.room
            word, first = select(beyond, other, word), select(beyond, np.uint32(i * packing.room), first)
        return (word >> ((state - first) * packing.bits)) & ((1 << packing.bits) - 1)

    return type(words).elementwise(value, states, *(words.block(i, i + 1) for i in range(packing.words)))


def identity(K: int, like) -> Any:
    """Returns the words (W, 1) of the map that changes nothing, in the representation of ``like``."""
    numbers = type(like).elementwise(lambda x: jnp.zeros(jnp.shape(x), np.uint32), like.block(0, 1))
    return numbers.columns(0, 1).constant(Packing.of(K).identity())


class Composed(NamedTuple):
    """The state of a recurrence that reports maps, and what those of a whole chunk come to: first its own, then the later."""

    state: Any
    path: Any


class Choosing(NamedTuple):
    """A model whose way through time makes a path's choices, which are followed the other way.

    Attributes:
        recurrence: reports a map (W, 1) of K states in every row, and may report more: a tuple.
        in_chunks: the same, see `composing`.
        ahead: for one chunk, where no maps are composed, of matrices with addressable columns (see `Phases`): reports what a
            choice needs in a map's place.
        back: likewise; its state is the path's (1, 1), and so is its output, as `signed` has it.
        rows: ``(rows, needed) -> rows`` of ``back``, from those of ``ahead`` and what it reports.
    """

    recurrence: Recurrence
    in_chunks: InChunks
    ahead: Recurrence
    back: Recurrence
    rows: Callable[[Any, Any], Any]


def composing(recurrence: Recurrence) -> InChunks:
    """Makes a recurrence over chunks that also composes a chunk's maps.

    Args:
        recurrence: whose state has a row for each of K states, and which reports a tuple of a map (W, 1) of them and more.
    """

    def step(params: Any, state: Composed, x: Any) -> tuple[Composed, Any]:
        after, out = recurrence.step(params, state.state, x)
        return Composed(after, paths(after.shape[0]).combine(out[0], state.path)), out

    def begin(state: Any) -> Composed:
        return Composed(state, identity(state.shape[0], state))

    return InChunks(recurrence._replace(name=f"{recurrence.name}_in_chunks", step=step), begin)


def signed(states) -> Any:
    """Converts states to int32, as users have them."""
    return type(states).elementwise(lambda x: jnp.asarray(x).astype(np.int32), states)


def sequential_path(name: str, choose: Callable[[Any, Any, Any], Any]) -> Recurrence:
    """Makes the recurrence of a path (1, 1), of which ``choose(params, state, x)`` makes the next state. It has no summaries
    and runs in one chunk.
    """

    def step(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        state = choose(params, state, x)
        return state, signed(state)

    def none(*_: Any) -> Any:
        raise NotImplementedError(f"{name} runs in one chunk.")

    return Recurrence(name, identity=none, append=none, combine=none, enter=none, step=step, seam=Seam(numbers_apart))


@functools.cache
def paths(K: int) -> Recurrence:
    """Makes the recurrence of states (1, 1) under maps of K states, one map a row; states are reported as int32."""

    @stage
    def compose(first, then):
        return pack(look_up(K, then, unpack(K, first)))

    def step(_: Any, state: Any, words: Any) -> tuple[Any, Any]:
        state = look_up(K, words, state)
        return state, signed(state)

    return Recurrence(
        name=f"paths_of_{K}",
        identity=lambda state: state.constant(Packing.of(K).identity()),
        append=lambda _, summary, x: compose(summary, x),
        combine=compose,
        enter=lambda state, summary: look_up(K, summary, state),
        step=step,
        seam=Seam(numbers_apart),
    )
