"""What goes wrong in kernels, planted in their instructions: the emulator finds it, in launches that are right without it."""

import functools
import re

import pytest

from emulator.launches import Emulator, emulate
from emulator.memory import FaultError
from fastscan import hmm_filter, lgssm_smoother
from oracles.hmm import random_model
from oracles.lgssm import cast, random_params, simulate

pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")

T = 294
"""Of 293 rows, the last chunk is not full."""
STORE = re.compile(r"(@%p\d+ )?st\.global\.\S+ \[ %rd\d+ \+ 0 \], [^;]*;")
LOAD = re.compile(r"ld\.global\.\S+ \{[^}]*\}, \[ %rd\d+ \+ 0 \];")


def first(pattern, change):
    """The first place where a pattern holds, changed."""

    def mend(text):
        mended = pattern.sub(lambda match: change(match[0]), text, count=1)
        assert mended != text
        return mended

    return mend


def every(pattern, change):
    def mend(text):
        mended = pattern.sub(lambda match: change(match[0]), text)
        assert mended != text
        return mended

    return mend


def last_in_the_loop(pattern, change):
    """The last place where a pattern holds."""

    def mend(text):
        *_, match = pattern.finditer(text)
        return text[: match.start()] + change(match[0]) + text[match.end() :]

    return mend


def from_an_output(text):
    """A pointer to an input is one to the first output instead."""
    pointers = re.findall(r"\.param \.u64 [^,)]*?(\w+_param_\d+)", text)
    return text.replace(f"[{pointers[0]}]", f"[{pointers[-3]}]")  # the last two are Triton's own


FAULTS = {
    "a mask left out": (
        "kalman_filter_sweep",
        every(STORE, lambda s: re.sub(r"^@%p\d+ ", "", s)),
        "race: two threads write different numbers|out of bounds",
    ),
    "an index of what is written is off by one": (
        "rts_smoother_sweep",
        first(STORE, lambda s: s.replace("+ 0", "+ 4")),
        "out of bounds|nobody wrote|two threads",
    ),
    "an index of what is read is off by one": (
        "rts_smoother_begin",
        last_in_the_loop(LOAD, lambda s: s.replace("+ 0", "+ 4")),
        "out of bounds",
    ),
    "an index in the other direction": (
        "first_observation",
        first(LOAD, lambda s: s.replace("+ 0", "+ -4")),
        "out of bounds",
    ),
    "an output that is not written": ("kalman_filter_summarise", first(STORE, lambda _: ""), "nobody wrote"),
    "a row that is not written": (
        "first_observation",
        first(STORE, lambda s: "setp.ne.b64 %p0, 0, 0; @%p0 " + s[s.index("st.") :]),
        "nobody wrote",
    ),
    "a stale read": ("kalman_filter_sweep", from_an_output, "reads what nobody wrote|reads what another thread wrote"),
}


@functools.cache
def smoother_of(dtype="float32"):
    params = cast(random_params(0, 1, 1), dtype)
    return functools.partial(lgssm_smoother, params, simulate(params, T, 0).astype(dtype), implementation="pallas")


@functools.cache
def filter_of_states():
    hmm = (x.astype("float32") for x in random_model(3, T, 3))
    return functools.partial(hmm_filter, *hmm, implementation="pallas")


def planted(kernel, mend):
    """An emulator that runs a kernel other than it is, and whether it did."""
    seen = []

    def change(name, text):
        if name != kernel:
            return text
        seen.append(name)
        return mend(text)

    return Emulator(mend=change), seen


def test_without_a_fault_nothing_is_found():
    for function in (smoother_of(), filter_of_states()):
        emulate(function)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    kernel, mend, message = FAULTS[fault]
    emulator, seen = planted(kernel, mend)
    with pytest.raises(FaultError, match=message) as caught:
        emulate(smoother_of(), emulator=emulator)
    assert seen
    assert caught.value.__notes__ == [f"in the kernel {kernel}"]


def test_a_barrier_left_out_is_found():
    """Of shared memory, by which threads exchange what they move in other shapes than they compute with."""
    emulator, seen = planted("hmm_filter_summarise", every(re.compile(r"bar\.(warp\.)?sync[^;]*;"), lambda _: ""))
    with pytest.raises(FaultError, match="with no barrier between"):
        emulate(filter_of_states(), emulator=emulator)
    assert seen
