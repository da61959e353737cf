"""Planted machine code whose time is known by the table of pipes. No GPU was asked: these are the model's sums, not facts."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastscan.profiling.compiled import latency
from fastscan.profiling.compiled.machine_code import Code

FLOAT, SPECIAL = latency.PIPES["float32"], latency.PIPES["special"]


def path(*lines):
    """Instructions as nvdisasm prints them."""
    text = "\n".join(f"        /*{16 * n:04x}*/                   {line} ;" for n, line in enumerate(lines))
    code = Code(text)
    assert len(code.lines) == len(lines)
    return latency.instructions(code, range(len(lines)))


def test_a_chain_takes_its_latencies():
    walk = latency.walk(path(*["FFMA R1, R1, R2, R3"] * 10))
    assert walk.cycles == walk.chain == 10 * FLOAT.latency
    assert (walk.busy, walk.busiest) == (10, "issue")


def test_independent_instructions_issue_one_a_cycle():
    walk = latency.walk(path(*[f"FADD R{n}, R100, R101" for n in range(10)]))
    assert walk.cycles == 9 + FLOAT.latency
    assert walk.chain == FLOAT.latency


def test_a_loop_of_much_is_bound_by_issue_and_one_of_a_chain_by_latency():
    much = latency.walk_loop(path(*[f"FFMA R{n}, R{n}, R100, R101" for n in range(20)]))
    assert (much.cycles, much.chain, much.busy) == (20, FLOAT.latency, 20)
    chain = latency.walk_loop(path(*["FFMA R1, R1, R100, R101"] * 5))
    assert (chain.cycles, chain.chain, chain.busy) == (5 * FLOAT.latency, 5 * FLOAT.latency, 5)


def test_a_warp_waits_at_the_first_use_of_what_it_loads():
    load, use = "LDG.E.128 R4, desc[UR4][R2.64]", "FADD R0, R7, R7"
    filling = [f"FADD R{n}, R100, R101" for n in range(20, 60)]
    assert latency.walk(path(load, use), 500).cycles == 500 + FLOAT.latency
    assert latency.walk(path(load, *filling, use), 500).cycles == 500 + FLOAT.latency
    assert latency.walk(path(load, use, *filling), 500).cycles == 500 + len(filling) + FLOAT.latency
    assert latency.walk(path(load, "FADD R0, R8, R8"), 500).chain == 500  # R8 is none of the four that are loaded


@pytest.mark.parametrize(
    ("line", "reads", "writes"),
    [
        ("LDG.E.64 R16, desc[UR6][R38.64+0x10]", {"UR6", "R38", "R39"}, {"R16", "R17"}),
        ("STG.E.128 desc[UR6][R70.64+0x30], R24", {"UR6", "R70", "R71", "R24", "R25", "R26", "R27"}, set()),
        ("FSETP.GT.AND P0, PT, R1, RZ, !P2", {"R1", "P2"}, {"P0"}),
        ("@!P3 FSEL R5, R6, RZ, P1", {"R6", "P1", "P3", "R5"}, {"R5"}),
        ("IADD3.X R1, R2, UR5, RZ, P4, !PT", {"R2", "UR5", "P4"}, {"R1"}),
        ("IADD3 R1, P4, R2, R3, RZ", {"R2", "R3"}, {"R1", "P4"}),
        ("LOP3.LUT P1, RZ, R2, 0x1, RZ, 0xc0, !PT", {"R2"}, {"P1"}),
        ("IMAD.WIDE R2, R3, 0x4, R6", {"R3", "R6", "R7"}, {"R2", "R3"}),
        ("DFMA R4, R6, R8, R4", {"R4", "R5", "R6", "R7", "R8", "R9"}, {"R4", "R5"}),
        ("FFMA R9, R1, UR7, -R3", {"R1", "UR7", "R3"}, {"R9"}),
    ],
)
def test_registers_are_read_off_a_line(line, reads, writes):
    (found,) = path(line)
    assert (found.reads, found.writes) == (reads, writes)


def test_special_functions_are_the_busiest_pipe_of_code_full_of_them():
    walk = latency.walk(path(*[f"MUFU.RCP R{n}, R100" for n in range(4)], *[f"FADD R{n}, R100, R100" for n in range(10, 30)]))
    assert (walk.busy, walk.busiest) == (4 * SPECIAL.busy, "special")


LINES = st.sampled_from(
    [*(f"FFMA R{a}, R{b}, R{c}, R{a}" for a, b, c in ((1, 2, 3), (2, 1, 4), (3, 3, 3))), "MUFU.RCP R1, R2",
     "LDG.E R2, desc[UR4][R6.64]", "STG.E desc[UR4][R6.64], R3", "ISETP.GE.AND P0, PT, R1, R2, PT", "@P0 FADD R3, R3, R1"]
)  # fmt: skip


@given(st.lists(LINES, min_size=1, max_size=30), st.integers(0, 29), st.sampled_from([40.0, 270.0, 550.0]))
def test_what_never_makes_code_sooner(lines, place, load):
    whole, part = (latency.walk(path(*x), load) for x in (lines, [*lines[:place], *lines[place + 1 :]] or lines))
    assert whole.chain <= whole.cycles  # order costs nothing less than no order
    assert part.busy <= whole.busy <= whole.cycles + SPECIAL.busy
    assert latency.walk(path(*lines), load + 100).cycles >= whole.cycles
    assert latency.walk_loop(path(*lines), load).cycles >= len(lines)
