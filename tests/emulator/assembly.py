"""PTX as text, read into blocks of instructions: as much of the language as compilers write for our kernels."""

import re
from typing import NamedTuple

from emulator.arithmetic import TYPES

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+[^,]*?([\w$]+)\s*(?:,|$)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%?\w+?)(?:<\d+>)?$")
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)(?:\[(\d*)\])?\s*;")
_GUARD = re.compile(r"@(!?)(%\w+)\s+")
_LABEL_OR_BRACES = re.compile(r"(?:([$\w]+):|[{}]+)\s*")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_ADDRESS = re.compile(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\w+))?\s*\]$")


class Address(NamedTuple):
    """``[base + offset]``, the base a register or a name."""

    base: str
    offset: int


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        name: its first word.
        modifiers: the words after it, which say of what type it is and how it rounds.
        operands: registers, names and numbers as text; a tuple of these; an `Address`.
        guard: a predicate register and what it must be, if the instruction has one.
        text: as it was written.
    """

    name: str
    modifiers: tuple[str, ...]
    operands: tuple["str | tuple[str, ...] | Address", ...]
    guard: tuple[str, bool] | None
    text: str


class Kernel(NamedTuple):
    """A kernel.

    Attributes:
        name: of its entry.
        parameters: their names, in order.
        threads: of one program.
        shared: names of what lies in shared memory, and where it begins.
        shared_bytes: of these, without what the launch adds at the end.
        widths: of the registers whose names begin so, in bits.
        blocks: instructions that run from the first to the last; a branch ends a block.
        labels: the blocks that branches go to.
    """

    name: str
    parameters: tuple[str, ...]
    threads: int
    shared: dict[str, int]
    shared_bytes: int
    widths: dict[str, int]
    blocks: tuple[tuple[Instruction, ...], ...]
    labels: dict[str, int]


def parse(text: str) -> Kernel:
    """Reads the one kernel of a module.

    Raises:
        ValueError: there is none, or it has registers of an unknown type.
    """
    text = _COMMENT.sub("", text)
    entry = _ENTRY.search(text)
    if entry is None:
        raise ValueError("The text holds no kernel: no .entry is found.")
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", entry[3])
    shared, at = {}, 0
    for name, size in _SHARED.findall(text):
        shared[name] = at = -(-at // 16) * 16
        at += int(size or 0)
    widths: dict[str, int] = {}
    blocks: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for statement in _statements(_body(text, entry.end())):
        while match := _LABEL_OR_BRACES.match(statement):  # braces only say where names of registers are known
            if match[1] and blocks[-1]:
                blocks.append([])
            if match[1]:
                labels[match[1]] = len(blocks) - 1
            statement = statement[match.end() :]
        if match := _REGISTERS.match(statement):
            widths[match[2]] = 1 if match[1] == "pred" else 8 * TYPES[match[1]].itemsize
        elif statement and not statement.startswith("."):
            blocks[-1].append(_instruction(statement))
            if blocks[-1][-1].name in ("bra", "ret", "exit"):
                blocks.append([])
    parameters = tuple(_PARAMETER.findall(" ".join(entry[2].split())))
    count = int(threads[1]) if threads else 1
    return Kernel(entry[1], parameters, count, shared, at, widths, tuple(map(tuple, blocks)), labels)


def number(text: str) -> int | None:
    """The bits of a number that is written out, or None for a name: 31, -1, 0x1F, 7U, 0f3F800000, 0d3FF0000000000000."""
    if match := re.fullmatch(r"0[fdFD]([0-9a-fA-F]+)", text):
        return int(match[1], 16)
    return int(text.removesuffix("U"), 0) if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text) else None


def _body(text: str, start: int) -> str:
    """Takes what stands between a brace that is open at ``start`` and the one that closes it."""
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[start : start + match.start()]
    raise ValueError("The kernel's body has no end.")


def _statements(body: str) -> list[str]:
    """Without directives of debuggers, which end with their line."""
    lines = [line for line in body.splitlines() if not re.match(r"\s*\.(loc|file|section|pragma)\b", line)]
    return [" ".join(statement.split()) for statement in "\n".join(lines).split(";")]


def _instruction(statement: str) -> Instruction:
    guard, text = None, statement
    if match := _GUARD.match(text):
        guard, text = (match[2], match[1] != "!"), text[match.end() :]
    opcode, _, rest = text.partition(" ")
    name, *modifiers = opcode.replace("shared::cta", "shared").split(".")  # of the program itself, as on older GPUs
    return Instruction(name, tuple(m for m in modifiers if m), tuple(map(_operand, _OPERAND.findall(rest))), guard, statement)


def _operand(text: str) -> "str | tuple[str, ...] | Address":
    text = text.strip()
    if text.startswith("{"):
        return tuple(part.strip() for part in text[1:-1].split(","))
    if text.startswith("["):
        match = _ADDRESS.match(text)
        if match is None:
            raise ValueError(f"{text} is no address of a kind that is known.")
        return Address(match[1], int(match[2] or "0", 0))
    return text
