"""The emulator itself: every instruction that it knows, one by one, against Python's own whole and rational numbers."""

import itertools
import math

import numpy as np
import pytest

from emulator import arithmetic, steps
from emulator.arithmetic import TYPES, UnknownInstructionError, bits_type
from emulator.assembly import Address, parse
from emulator.instructions import KNOWN, ULPS, values
from emulator.machine import run
from emulator.memory import Array, FaultError, Memory


def evaluate(text, types, out, columns):
    """An instruction's results for columns of operands, one thread each; ``$0`` is its result, ``$1``... operands."""
    count = len(columns[0])
    threads = -(-count // 32) * 32
    lines = ["mov.u32 %r0, %tid.x;", f"setp.ge.u32 %p0, %r0, {count};", "@%p0 bra $END;"]
    prefix = {1: "%p", 32: "%r", 64: "%rd"}
    arrays, names = [], []
    for k, (dtype, column) in enumerate(zip(types, columns, strict=True), start=1):
        bits = 8 * TYPES[dtype].itemsize
        kind = TYPES[dtype] if dtype != "pred" else np.dtype("u4")
        bits = 32 if dtype == "pred" else bits
        arrays.append(Array(f"operand {k}", np.array(column, kind), written=False))
        lines += [f"ld.param.u64 %rd{10 + k}, [p{k}];", f"mad.wide.u32 %rd{20 + k}, %r0, {bits // 8}, %rd{10 + k};"]
        name = f"{prefix[bits]}{30 + k}"
        lines.append(f"ld.global.b{bits} {name}, [%rd{20 + k}];")
        if dtype == "pred":
            lines.append(f"setp.ne.b32 %p{k}, {name}, 0;")
            name = f"%p{k}"
        names.append(name)
    bits = 1 if out == "pred" else 8 * TYPES[out].itemsize
    result = f"{prefix[bits]}40"
    for k, name in enumerate([result, *names]):
        text = text.replace(f"${k}", name)
    lines += [text, *(["selp.b32 %r41, 1, 0, %p40;"] if out == "pred" else [])]
    bits = max(bits, 32)
    stored = "%r41" if out == "pred" else result
    lines += [
        "ld.param.u64 %rd10, [p0];",
        f"mad.wide.u32 %rd20, %r0, {bits // 8}, %rd10;",
        f"st.global.b{bits} [%rd20], {stored};",
    ]
    given = run_text(lines, [*arrays], np.zeros(count, "u4" if out == "pred" else TYPES[out]), threads)
    return given.tolist()


def run_text(lines, inputs, output, threads=32, grid=(1,), shared=0):
    """What a kernel writes to its first parameter, from its others."""
    array = Array("output", output, written=True)
    parameters = ", ".join(f".param .u64 p{k}" for k in range(len(inputs) + 1))
    registers = "".join(f".reg .{kind} {name}<99>; " for kind, name in (("pred", "%p"), ("b32", "%r"), ("b64", "%rd")))
    text = f".extern .shared .align 16 .b8 common[]; .visible .entry test({parameters}) .reqntid {threads} {{ {registers}\n"
    kernel = parse(text + "\n".join(lines) + "\n$END:\nret;\n}")
    arrays = [array, *inputs]
    run(kernel, grid, [int(Memory.address(k)) for k in range(len(arrays))], Memory(arrays), shared_bytes=shared)
    return array.bytes.view(output.dtype)


def bits_of(x, dtype):
    return int(np.array(x, TYPES[dtype]).view(bits_type(8 * TYPES[dtype].itemsize)))


SIGN_OF_ZERO = ("min", "max", "fma", "sqrt", "cvt.r")
"""Where it is not looked at."""


@pytest.mark.parametrize("text", KNOWN)
def test_an_instruction(text):
    types, out, function = KNOWN[text]
    pools = [values(t) for t in types]
    if len(pools) == 3 and "f" in types[0]:
        pools = [pool[:13] for pool in pools]
    rows = list(itertools.product(*pools))
    given = evaluate(text, types, out, list(zip(*rows, strict=True)))
    flush = ".ftz" in text
    for row, x in zip(rows, given, strict=True):
        if flush:
            row = [math.copysign(0.0, v) if abs(v) < 2.0**-126 else v for v in row]
        wanted = function(*row)
        if wanted is None:
            continue
        if out not in ("f32", "f64"):
            assert x == wanted, (text, row)
        elif math.isnan(wanted):
            assert math.isnan(x), (text, row, x)
        else:
            with np.errstate(over="ignore"):
                wanted = TYPES[out].type(wanted)
            if flush and abs(wanted) < 2.0**-126:
                wanted = TYPES[out].type(0)
            allowed = ULPS.get(text, 0) * np.spacing(np.abs(wanted)) if np.isfinite(wanted) else 0
            assert x == wanted or abs(x - wanted) <= allowed, (text, row, x, wanted)
            assert x or wanted or text.startswith(SIGN_OF_ZERO) or flush or bits_of(x, out) == bits_of(wanted, out), (text, row)


def test_a_float64s_inverse_is_that_of_its_upper_half():
    (given,) = evaluate("rcp.approx.ftz.f64 $0, $1;", ["f64"], "f64", [[3.0]])
    assert given != 1 / 3
    assert abs(given - 1 / 3) < 1e-6


def test_all_that_is_known_is_tested():
    tested = {(text.split(".")[0], sum(m in TYPES for m in text.split(" ")[0].split("."))) for text in KNOWN}
    assert tested == arithmetic._KNOWN.keys()
    assert {"ld", "st", "shfl", "bar", "ldmatrix", "stmatrix", "mma", "bra", "ret", "exit"} == steps._SPECIAL.keys()


@pytest.mark.parametrize(
    "line", ["wgmma.fence.sync.aligned;", "add.cc.s32 %r1, %r0, 1;", "ld.global.nc.b32 %r1, [%rd1];", "mov.u32 %r1, %clock;"]
)
def test_an_unknown_instruction_is_an_error(line):
    with pytest.raises(UnknownInstructionError, match=r"known|%clock"):
        run_text(["mov.u32 %r0, 1;", "ld.param.u64 %rd1, [p0];", line], [], np.zeros(1, "u4"))


def test_text_is_read():
    kernel = parse(
        """
        .version 8.0 // a comment: ret;
        .visible .entry some_name(.param .u64 .ptr .global .align 1 some_name_param_0, .param .u32 n)
        .reqntid 64
        { .reg .pred %p<3>; .reg .b32 %r<4>;
        $L1: { .reg .b32 tmp; mov.b64 {tmp, %r2}, %rd1; }
        @!%p1 bra.uni $L1; /* another */ st.global.v2.b32 [ %rd1 + 8 ], { %r1, %r2 };
        ret; }
        """
    )
    assert (kernel.name, kernel.parameters, kernel.threads) == ("some_name", ("some_name_param_0", "n"), 64)
    assert kernel.widths == {"%p": 1, "%r": 32, "tmp": 32}
    assert kernel.labels == {"$L1": 0}
    move, branch, store, end = (i for block in kernel.blocks for i in block)
    assert move.operands == (("tmp", "%r2"), "%rd1")
    assert branch.guard == ("%p1", False)
    assert store.operands == (Address("%rd1", 8), ("%r1", "%r2"))
    assert (store.modifiers, end.name) == (("global", "v2", "b32"), "ret")


ADDRESS = ["mov.u32 %r0, %tid.x;", "ld.param.u64 %rd0, [p0];", "mad.wide.u32 %rd2, %r0, 4, %rd0;"]
STORE = "st.global.b32 [%rd2], %r9;"


def test_threads_that_go_apart_meet_again():
    """Loops of as many passes as a thread's number modulo 5, then a barrier that all must come to."""
    lines = [*ADDRESS, "rem.u32 %r1, %r0, 5;", "mov.u32 %r9, 0;", "mov.u32 %r2, 0;", "$LOOP:", "setp.ge.u32 %p1, %r2, %r1;"]
    lines += [
        "@%p1 bra $OUT;",
        "add.s32 %r9, %r9, %r0;",
        "add.s32 %r2, %r2, 1;",
        "bra.uni $LOOP;",
        "$OUT:",
        "bar.sync 0;",
        STORE,
    ]
    n = np.arange(64)
    np.testing.assert_array_equal(run_text(lines, [], np.zeros(64, "u4"), threads=64), n * (n % 5))


def test_a_guarded_instruction_leaves_the_others_alone():
    lines = [
        *ADDRESS,
        "mov.u32 %r9, 7;",
        "setp.gt.u32 %p1, %r0, 10;",
        "@%p1 mov.u32 %r9, %r0;",
        "@!%p1 add.s32 %r9, %r9, 1;",
        STORE,
    ]
    n = np.arange(32)
    np.testing.assert_array_equal(run_text(lines, [], np.zeros(32, "u4")), np.where(n > 10, n, 8))


def test_programs_know_their_places():
    lines = ["mov.u32 %r1, %ctaid.x;", "mov.u32 %r2, %ctaid.y;", "mov.u32 %r3, %nctaid.x;", "mov.u32 %r4, %ntid.x;"]
    lines += [
        "mov.u32 %r5, %tid.x;",
        "mad.lo.s32 %r6, %r2, %r3, %r1;",
        "mad.lo.s32 %r6, %r6, %r4, %r5;",
        "ld.param.u64 %rd0, [p0];",
    ]
    lines += ["mad.wide.u32 %rd2, %r6, 4, %rd0;", "mad.lo.s32 %r9, %r2, 100, %r1;", STORE]
    given = run_text(lines, [], np.zeros(6 * 32, "u4"), grid=(3, 2))
    np.testing.assert_array_equal(given, np.repeat([0, 1, 2, 100, 101, 102], 32))


def test_registers_are_packed_and_unpacked():
    lines = ["mov.b64 %rd3, {%r1, %r2};", "add.s64 %rd3, %rd3, 1;", "mov.b64 {_, %r9}, %rd3;"]
    lines = [*ADDRESS, "mov.b32 %r1, -1;", "mov.u32 %r2, %r0;", *lines, STORE]
    np.testing.assert_array_equal(run_text(lines, [], np.zeros(32, "u4")), np.arange(32) + 1)


SHUFFLES = {
    "idx.b32 %r9, %r0, 3, 31, -1": lambda _: 3,
    "bfly.b32 %r9, %r0, 4, 31, -1": lambda n: n ^ 4,
    "up.b32 %r9, %r0, 2, 0, -1": lambda n: n - 2 if n >= 2 else n,
    "down.b32 %r9, %r0, 2, 31, -1": lambda n: n + 2 if n < 30 else n,
    "idx.b32 %r9, %r0, 1, 6175, -1": lambda n: n // 8 * 8 + 1,
}


@pytest.mark.parametrize("how", SHUFFLES)
def test_shuffles(how):
    given = run_text([*ADDRESS, f"shfl.sync.{how};", STORE], [], np.zeros(64, "u4"), threads=64)
    np.testing.assert_array_equal(given, [32 * (n // 32) + SHUFFLES[how](n % 32) for n in range(64)])


def test_a_shuffle_says_who_was_out_of_range():
    lines = [*ADDRESS, "shfl.sync.up.b32 %r8|%p1, %r0, 2, 0, -1;", "selp.b32 %r9, 1, 0, %p1;", STORE]
    np.testing.assert_array_equal(run_text(lines, [], np.zeros(32, "u4")), np.arange(32) >= 2)


def test_matrices_in_shared_memory():
    """What `stmatrix` puts into rows of 16 bytes, `ld.shared` and `ldmatrix` find there: the manual's figure of m8n8."""
    put = [*ADDRESS, "mov.b32 %r1, common;", "mad.lo.s32 %r2, %r0, 16, %r1;"]
    put += ["mad.lo.s32 %r10, %r0, 4, 0;", *(f"add.s32 %r{10 + k}, %r10, {k};" for k in (1, 2, 3))]
    store = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r2], {%r10, %r11, %r12, %r13};"
    whole = [*put, store, "bar.warp.sync -1;", "ld.shared.v4.b32 {%r20, %r21, %r22, %r23}, [%r2];"]
    lines = [*whole, "mad.wide.u32 %rd2, %r0, 16, %rd0;", "st.global.v4.b32 [%rd2], {%r20, %r21, %r22, %r23};"]
    given = run_text(lines, [], np.zeros(128, "u4"), shared=512).reshape(32, 4)
    for j in range(4):
        for i in range(8):
            for k in range(4):
                assert given[8 * j + i, k] == 4 * (4 * i + k) + j
    back = [
        *put,
        store,
        "bar.warp.sync -1;",
        store.replace("stmatrix", "ldmatrix").replace("[%r2], {%r10, %r11, %r12, %r13}", "{%r9, %r20, %r21, %r22}, [%r2]"),
        STORE,
    ]
    np.testing.assert_array_equal(run_text(back, [], np.zeros(32, "u4"), shared=512), 4 * np.arange(32))


MMA = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r50, %r51, %r52, %r53}, {%r30, %r31, %r32, %r33}, "
MMA += "{%r34, %r35}, {%r36, %r37, %r38, %r39};"


def test_products_of_matrices():
    """By the manual's figures of m16n8k8: where in a warp entries lie, what TF32 reads of them, and that sums are float32."""
    r = np.random.default_rng(0)
    a, b, c = (r.normal(size=shape).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    lane = np.arange(32)
    group, within = lane // 4, lane % 4
    registers = [a[group + i, within + j] for j in (0, 4) for i in (0, 8)]
    registers += [b[within + j, group] for j in (0, 4)]
    registers += [c[group + i, 2 * within + j] for i in (0, 8) for j in (0, 1)]
    given = Array("registers", np.stack(registers, 1), written=False)
    lines = ["mov.u32 %r0, %tid.x;", "ld.param.u64 %rd0, [p0];", "ld.param.u64 %rd1, [p1];"]
    lines += ["mad.wide.u32 %rd2, %r0, 16, %rd0;", "mad.wide.u32 %rd3, %r0, 40, %rd1;"]
    lines += [f"ld.global.b32 %r{30 + k}, [%rd3 + {4 * k}];" for k in range(10)]
    lines += [MMA, "st.global.v4.b32 [%rd2], {%r50, %r51, %r52, %r53};"]
    out = run_text(lines, [given], np.zeros((32, 4), np.float32)).reshape(32, 4)
    cut = [(x.view(np.uint32) & 0xFFFFE000).view(np.float32).astype(float) for x in (a, b)]
    wanted = cut[0] @ cut[1] + c
    for k in range(4):
        found = wanted[group + 8 * (k // 2), 2 * within + k % 2]
        assert (np.abs(out[:, k] - found) <= np.spacing(np.abs(found).astype(np.float32))).all()
    assert np.abs(out[:, 0] - (a.astype(float) @ b + c)[group, 2 * within]).max() > 1e-5
    with pytest.raises(UnknownInstructionError, match="of this kind"):
        run_text([*lines[:-2], MMA.replace("m16n8k8", "m16n8k4"), lines[-1]], [given], np.zeros((32, 4), np.float32))


FAULTS = {
    "out of bounds": [*ADDRESS, "mov.u32 %r9, 1;", "st.global.b32 [%rd2 + 4], %r9;"],
    "lies in no array": [*ADDRESS, "mov.u32 %r9, 1;", "mov.b64 %rd2, 64;", STORE],
    "misaligned": [*ADDRESS, "mov.u32 %r9, 1;", "st.global.b32 [%rd2 + 2], %r9;"],
    "writes to an input": [*ADDRESS, "ld.param.u64 %rd2, [p1];", "mov.u32 %r9, 1;", STORE],
    "reads what nobody wrote: output": [*ADDRESS, "ld.global.b32 %r9, [%rd2];"],
    "reads what nobody wrote: register": [*ADDRESS, STORE],
    "reads what nobody wrote: shared": ["mov.b32 %r1, common;", "ld.shared.b32 %r2, [%r1];"],
    "race: reads what another thread wrote: output": [
        *ADDRESS, "mov.u32 %r9, %r0;", STORE, "bar.sync 0;", "ld.global.b32 %r9, [%rd0];"
    ],
    "race: two threads write different numbers": [*ADDRESS, "st.global.b32 [%rd0], %r0;"],
    "race: reads what another thread wrote, with no barrier": [
        *ADDRESS, "shl.b32 %r1, %r0, 2;", "st.shared.b32 [%r1], %r0;", "ld.shared.b32 %r9, [0];", STORE
    ],
    "race: overwrites what another thread wrote": [
        *ADDRESS, "shl.b32 %r1, %r0, 2;", "st.shared.b32 [%r1], %r0;", "xor.b32 %r1, %r1, 4;", "st.shared.b32 [%r1], %r0;"
    ],
    "race: overwrites what another thread reads": [
        *ADDRESS, "shl.b32 %r1, %r0, 2;", "st.shared.b32 [%r1], %r0;", "bar.sync 0;", "ld.shared.b32 %r9, [0];",
        "st.shared.b32 [%r1], %r9;"
    ],
    "did not all come": [*ADDRESS, "setp.gt.u32 %p1, %r0, 3;", "@%p1 bar.sync 0;"],
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    unread = Array("input", np.zeros(32, "u4"), written=False)
    with pytest.raises(FaultError, match=fault):
        run_text(FAULTS[fault], [unread], np.zeros(32, "u4"), shared=128)


def test_barriers_order_what_warps_share():
    """A barrier of a warp is none for the others; one of the program is for all."""
    lines = [*ADDRESS, "shl.b32 %r1, %r0, 2;", "st.shared.b32 [%r1], %r0;", "bar.sync 0;", "xor.b32 %r1, %r1, 128;"]
    lines += ["ld.shared.b32 %r9, [%r1];", STORE]
    np.testing.assert_array_equal(run_text(lines, [], np.zeros(64, "u4"), threads=64, shared=256), np.arange(64) ^ 32)
    lines[lines.index("bar.sync 0;")] = "bar.warp.sync -1;"
    with pytest.raises(FaultError, match="no barrier between"):
        run_text(lines, [], np.zeros(64, "u4"), threads=64, shared=256)


def test_what_was_not_written_is_known():
    array = Array("output", np.zeros(8, "f8"), written=True)
    memory = Memory([array])
    memory.store(memory.address(0) + np.array([8, 16], "u8"), np.array([1, 2], "u8"), 8, np.arange(2), "")
    np.testing.assert_array_equal(array.unwritten // 2, [0, 0, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7])


def test_a_window_holds_an_arrays_end():
    array = Array("input", np.arange(4, dtype="u4"), written=False, size=1 << 36)
    memory = Memory([array])
    end = memory.address(0) + np.uint64(1 << 36)
    np.testing.assert_array_equal(memory.load(end - np.array([4, 16], "u8"), 4, np.arange(2), ""), [3, 0])
    with pytest.raises(FaultError, match="outside of the window"):
        memory.load(end - np.array([20], "u8"), 4, np.arange(1), "")
