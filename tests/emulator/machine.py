"""A GPU in NumPy: all threads of a launch go through a kernel's blocks together, those that are elsewhere masked out.

Of the blocks that threads have come to, the first in the text is next, so that those who went apart meet again where a compiler
lets them. What differs between no two threads is one number.
"""

from collections.abc import Sequence

import numpy as np

from emulator.assembly import Kernel
from emulator.memory import Memory
from emulator.steps import ENDS, compiled
from emulator.threads import Mask, Threads


def run(
    kernel: Kernel,
    grid: Sequence[int],
    arguments: Sequence[int],
    memory: Memory,
    *,
    shared_bytes: int = 0,
    programs: np.ndarray | None = None,
) -> int:
    """Runs a kernel.

    Args:
        kernel: what.
        grid: of programs, along up to three axes.
        arguments: what its parameters hold, as many as there are; further ones are 0.
        memory: that it reads and writes.
        shared_bytes: of each program, beside what the kernel declares.
        programs: the numbers of those that run; by default all.

    Returns:
        How many instructions were executed, of all threads together.

    Raises:
        FaultError: it does what no kernel may do.
        UnknownInstructionError: it has an instruction that the emulator has not learned.
    """
    if programs is None:
        programs = np.arange(int(np.prod(grid)))
    with np.errstate(all="ignore"):
        return _run(kernel, Threads(kernel, grid, arguments, memory, shared_bytes, programs))


def _run(kernel: Kernel, threads: Threads) -> int:
    """Goes from the first block to the end, for all threads."""
    waiting: dict[int, Mask] = {0: None}
    steps = [[compiled(threads, i) for i in block] for block in kernel.blocks]
    executed = 0
    while waiting:
        block = min(waiting)
        mask = waiting.pop(block)
        for step, instruction in zip(steps[block], kernel.blocks[block], strict=True):
            executed += threads.count if mask is None else int(mask.sum())
            taken, rest = threads.divided(instruction, mask)
            if instruction.name not in ENDS:
                if taken is None or taken.any():
                    step(taken)
                continue
            if instruction.name == "bra":
                _arrive(threads, waiting, kernel.labels[str(instruction.operands[-1])], taken)
            else:
                threads.live &= ~threads.where(taken)
            mask = rest
        _arrive(threads, waiting, block + 1, mask)
    return executed


def _arrive(threads: Threads, waiting: dict[int, Mask], block: int, mask: Mask) -> None:
    """Notes that threads have come to a block."""
    if block >= len(threads.kernel.blocks) or (mask is not None and not mask.any()):
        return
    if block in waiting and mask is not None:
        mask = mask | threads.where(waiting[block])
    waiting[block] = None if mask is None or mask.all() else mask
