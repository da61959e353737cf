"""Arithmetic that Triton sees in blocks: the same numbers, in fewer operations."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fastscan.kernels.gpu import blocks, lowerings
from fastscan.kernels.gpu.arithmetic import matrix_kind
from fastscan.kernels.gpu.blocks import Traced
from fastscan.kernels.plan import Launch
from fastscan.profiling.compiled.kernel_report import program
from fastscan.profiling.compiled.machine_code import lower_for_gpu, triton_kernels

MEANINGS = {
    "add.rn": np.add,
    "sub.rn": np.subtract,
    "mul.rn": np.multiply,
    "neg": np.negative,
    "fma.rn": lambda x, y, z: x * y + z,
}
BITS = {"0f": (np.uint32, np.float32), "0d": (np.uint64, np.float64)}
X, Y = np.arange(1.0, 5, dtype=np.float32), np.arange(2.0, 10, 2, dtype=np.float32)


@pytest.fixture(autouse=True)
def short_blocks(request, monkeypatch):
    """But for kernels as they are."""
    if "kernels" not in request.function.__name__:
        monkeypatch.setattr(blocks, "FEWEST", 2)
        monkeypatch.setattr(blocks, "MOST_RESULTS", 1)


class Assembler:
    """Executes blocks, and keeps their text."""

    def __init__(self):
        self.texts = []

    def __call__(self, text, results, operands):
        self.texts.append(text)
        values = {f"${results + k}": np.asarray(x) for k, x in enumerate(operands)}
        for opcode, kind, registers in re.findall(r"^([a-z.]+)\.(f32|f64) (.*);$", text, re.MULTILINE):
            if opcode != ".reg":
                out, *given = registers.split(", ")
                values[out] = MEANINGS[opcode](*(values[x] if x in values else number(x) for x in given))
                assert values[out].dtype == {"f32": np.float32, "f64": np.float64}[kind]
        return [jnp.asarray(values[f"${k}"]) for k in range(results)]


def number(text):
    bits, dtype = BITS[text[:2]]
    return bits(int(text[2:], 16)).view(dtype)


def in_blocks(function, *arguments):
    """Returns a function's results, which are what they are without blocks, and the blocks."""
    assembler = Assembler()
    out = Traced(function).in_blocks(assembler, *arguments)
    wanted = function(*arguments)
    assert jax.tree.structure(out) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(out), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    return out, assembler.texts


def test_what_nothing_else_needs_is_one_block():
    _, (text,) = in_blocks(lambda _, x, y: (x * y + x - y, x * y), (), X, Y)
    assert text.count("mul") == 1, "the product is computed once"
    assert "add.rn.f32 r1, $0, $2;" in text, "two results; the sum is used nowhere else"


def test_few_instructions_are_no_block():
    _, texts = in_blocks(lambda _, x, y: x * y, (), X, Y)
    assert not texts


def test_what_is_no_instruction_stands_between_blocks():
    _, texts = in_blocks(lambda _, x, y: (x + y) / (x * y) + jnp.where(x > 2, x, y) * y, (), X, Y)
    assert len(texts) == 2


def test_instructions_wait_until_they_are_needed():
    """The root needs nothing of the block that is begun, and so does not end it."""
    _, texts = in_blocks(lambda _, x, y: (x + y) * lax.rsqrt(x), (), X, Y)
    assert len(texts) == 1


def test_what_depends_on_parameters_alone_is_apart():
    _, texts = in_blocks(lambda p, x, y: (x * y + (p * p - p), 1 / (p * p - p)), Y, X, Y)
    assert [text.count("mul") for text in texts] == [1, 1]


def test_constants_are_written_out():
    """To the last bit and with their signs."""
    (out, _), (text,) = in_blocks(lambda _, x: (x * np.float32(0.1) * np.float32(-0.0), x), (), X)
    assert "0f3DCCCCCD" in text
    assert "0f80000000" in text
    assert np.signbit(out).all()
    same, texts = in_blocks(lambda _, x: (jnp.full_like(x, 3), x), (), X)
    assert not texts
    assert (same[0] == 3).all()


def test_functions_that_are_called():
    @jax.custom_jvp
    def square(x):
        return x * x

    square.defjvp(lambda x, dx: (square(*x), 2 * x[0] * dx[0]))
    _, texts = in_blocks(lambda _, x, y: square(jax.jit(lambda a: a + y)(x)) - y, (), X, Y)
    assert len(texts) == 1
    _, texts = in_blocks(lambda _, x: lax.fori_loop(0, 3, lambda _, a: a * x, x) * x + x, (), X)
    assert len(texts) == 1


def test_types_are_not_mixed():
    with jax.enable_x64(True):
        _, texts = in_blocks(lambda _, x, y: (x * x - x, y + y * 0.1), (), X, np.float64(Y))
    assert [re.findall("f32|f64", text)[0] for text in texts] == ["f32", "f64"]


def test_scalars_and_integers_are_left_alone():
    _, texts = in_blocks(lambda _, x, n: (x[0] * x[1], n * n + 1), (), X, np.arange(3))
    assert not texts


def test_matrices():
    """In kernels, where multiply-adds and changes of sign are instructions of their own."""
    kind, given = matrix_kind(Launch()), np.arange(16.0, dtype=np.float32).reshape(2, 2, 4)
    matrix = kind(given)
    assembler = Assembler()
    out = Traced(lambda _, a: a @ a.T - a * -1.0).in_blocks(assembler, (), matrix)
    wanted = np.einsum("ikl,jkl->ijl", given, given) + given
    np.testing.assert_array_equal(out.to_array(), wanted)
    assert len(assembler.texts) == 1
    assert assembler.texts[0].count("fma.rn") == 4


def test_traced_once():
    count = []

    def function(params, x):
        count.append(0)
        return params * x

    traced = Traced(function)
    for _ in range(2):
        traced.in_blocks(Assembler(), X, X)
        form = traced.form(X, jax.ShapeDtypeStruct(X.shape, X.dtype))
        assert (form.shape, form.dtype) == (X.shape, X.dtype)
    assert len(count) == 1
    traced.form(X[:2], X[:2])
    assert len(count) == 2


def operations():
    function, arguments = program("likelihood", 4, 2)
    kernels = {kernel.name: kernel.ttir for kernel in triton_kernels(lower_for_gpu(function, *arguments))}
    return kernels["kalman_likelihood_sweep"]


def test_kernels_have_blocks(monkeypatch):
    """Under every JAX that is tested; with one that has no place for them, every instruction is an operation again."""
    blocks = operations()
    monkeypatch.setattr(lowerings, "assembly", lambda: None)
    jax.clear_caches()
    by_themselves = operations()
    jax.clear_caches()
    assert by_themselves.count("elementwise_inline_asm") > 4 * blocks.count("elementwise_inline_asm") > 0
    assert by_themselves.count("fma.rn.f32") > 20


@pytest.mark.parametrize(("D", "most"), [(2, 300), (4, 480)])
def test_kernels_are_short(D, most):
    """In lines of Triton's IR: before there were blocks, up to 1,020 with D = 4, and twice the time to compile them."""
    function, arguments = program("smoother", D, 2)
    for kernel in triton_kernels(lower_for_gpu(function, *arguments)):
        assert kernel.ttir.count("\n") <= most, kernel.name
