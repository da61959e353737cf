"""Holds what the threads of a launch hold, and which of them take part in what."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from emulator.assembly import Instruction, Kernel
from emulator.memory import FaultError, Memory, Shared

WARP = 32
DIGITS = "0123456789"
_AXES = "xyz"

Mask = np.ndarray | None
"""Which threads take part; None is all of those that there are."""


class Threads:
    """All threads of a launch, and what they hold."""

    def __init__(
        self, kernel: Kernel, grid: Sequence[int], arguments: Sequence[int], memory: Memory, shared: int, programs: Any
    ):
        self.kernel, self.memory = kernel, memory
        grid = (*grid, 1, 1)[:3]
        per = kernel.threads
        self.count = len(programs) * per
        self.thread = np.arange(self.count)
        self.program, self.own = self.thread // per, self.thread % per
        self.shared = Shared(len(programs), per, kernel.shared_bytes + shared)
        self.nobody = np.zeros(self.count, bool)
        self.live = np.ones(self.count, bool)
        self.parameters = dict(zip(kernel.parameters, [*arguments, *[0] * len(kernel.parameters)], strict=False))
        at = programs[self.program]
        places = at % grid[0], at // grid[0] % grid[1], at // (grid[0] * grid[1])
        self.special: dict[str, Any] = {"%laneid": self.own % WARP, "%warpid": self.own // WARP}
        for axis, place, size in zip(_AXES, places, grid, strict=True):
            self.special[f"%ctaid.{axis}"], self.special[f"%nctaid.{axis}"] = place, size
            self.special[f"%tid.{axis}"] = self.own if axis == "x" else 0
            self.special[f"%ntid.{axis}"] = per if axis == "x" else 1
        self.special = {name: np.asarray(x, np.uint32) for name, x in self.special.items()}
        self.registers: dict[str, Any] = {}

    def divided(self, instruction: Instruction, mask: Mask) -> tuple[Mask, Mask]:
        """Divides threads into those that an instruction is for, and the others."""
        nobody = self.nobody
        if instruction.guard is None:
            return mask, nobody
        name, wanted = instruction.guard
        found = np.asarray(self.register(name)) == wanted
        if found.ndim == 0:
            return (mask, nobody) if found else (nobody, mask)
        if mask is None:
            return (None, nobody) if found.all() else (found, ~found)
        return mask & found, mask & ~found

    def where(self, mask: Mask) -> np.ndarray:
        """Turns a mask into an array."""
        return np.ones(self.count, bool) if mask is None else mask

    def register(self, name: str) -> Any:
        """Reads a register."""
        try:
            return self.registers[name]
        except KeyError:
            raise FaultError(f"reads what nobody wrote: register {name}") from None

    def assign(self, name: str, value: Any, mask: Mask) -> None:
        """Writes a register of the threads that take part."""
        if mask is not None:
            value = np.where(mask, value, self.registers.get(name, np.zeros((), np.asarray(value).dtype)))
        self.registers[name] = value

    def width(self, name: str) -> int:
        """Tells a register's width in bits."""
        return self.kernel.widths[name.rstrip(DIGITS)]

    def chosen(self, mask: Mask, *values: Any) -> tuple[np.ndarray, ...]:
        """Lists the threads that take part, and values of theirs."""
        among = self.thread if mask is None else np.flatnonzero(mask)
        return among, *(np.broadcast_to(x, (self.count,))[among] for x in values)

    def whole(self, mask: Mask, parts: int, text: str) -> tuple[np.ndarray, ...]:
        """Lists the groups of so many threads that have come, all of them, to an instruction which wants them together."""
        groups = self.where(mask).reshape(-1, parts)
        living = self.live.reshape(-1, parts)
        here = groups.any(1)
        if (groups != living)[here].any():
            raise FaultError(f"threads that should meet did not all come: {text}")
        return np.flatnonzero(here)
