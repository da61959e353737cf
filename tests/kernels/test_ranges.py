"""What profilers are told: NVTX ranges, heard by a small profiler of our own, and names in what XLA compiles."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fastscan import hmm_smoother, lgssm_smoother
from oracles.lgssm import random_params

SOURCE = Path(__file__).with_name("nvtx_injection.c")
PROGRAM = """
import numpy as np
from fastscan import lgssm_smoother
from oracles.lgssm import random_params
params, y = random_params(1, 2, 1, "float32"), np.zeros((9, 1), np.float32)
for _ in range(2):
    lgssm_smoother(params, y, implementation="associative")
"""


@pytest.mark.skipif(shutil.which("cc") is None or not sys.platform.startswith("linux"), reason="wants a C compiler on Linux")
def test_ranges_are_heard(tmp_path):
    """A call is a range; phases are ranges inside of it as it is traced, which the second call is not."""
    pytest.importorskip("nvtx")
    library = tmp_path / "injection.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, SOURCE], check=True)
    more = {"NVTX_INJECTION64_PATH": str(library), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=os.environ | more)
    heard = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("nvtx")]
    assert {domain for _, domain, _ in heard} == {"fastscan"}
    calls = [i for i, (depth, _, name) in enumerate(heard) if (depth, name) == ("0", "lgssm_smoother")]
    assert len(calls) == 2
    inside = [(int(depth), name) for depth, _, name in heard[calls[0] + 1 : calls[1]]]
    assert {(1, "summarise"), (1, "scan_summaries"), (1, "sweep_forward"), (1, "sweep_backward")} <= set(inside)
    assert heard[calls[1] + 1 :] == []


def test_without_nvtx():
    """It is optional."""
    code = "import sys; sys.modules['nvtx'] = None\n" + PROGRAM + "print('fine')"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.parametrize("implementation", ["chunked", "associative", "pallas_interpret"])
def test_compiled_programs_know_the_phases(implementation):
    sweeps = ("sweep_forward", "sweep_backward")
    phases = sweeps if implementation == "chunked" else ("summarise", "scan_summaries", *sweeps)
    T = 200

    def names(function, *arguments):
        program = jax.jit(lambda *xs: function(*xs, implementation=implementation)).lower(*arguments)
        return program.as_text(debug_info=True)

    params = random_params(1, 2, 1, "float32")
    texts = (
        names(lgssm_smoother, params, np.zeros((T, 1), np.float32)),
        names(hmm_smoother, *(np.ones(s) for s in ((2,), (2, 2), (T, 2)))),
    )
    for text in texts:
        for phase in phases:
            assert re.search(f'["/]{phase}["/]', text), phase


def test_a_trace_of_a_call_holds_the_phases(tmp_path):
    """JAX's own profiler, for those without NVIDIA's."""
    params, y = random_params(1, 2, 1, "float32"), np.zeros((200, 1), np.float32)
    smooth = jax.jit(lambda y: lgssm_smoother(params, y, implementation="chunked"))
    smooth(y)
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(smooth(y))
    (trace,) = tmp_path.rglob("*.xplane.pb")
    held = trace.read_bytes()
    for phase in (b"sweep_forward", b"sweep_backward"):
        assert phase in held, phase
