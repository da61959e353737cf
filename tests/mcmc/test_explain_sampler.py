"""Why a log density became a kernel, or not: in words, from Python and from the command line."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastscan
from fastscan.mcmc import api, explain_rw_metropolis, rw_metropolis
from fastscan.profiling import command_line
from fastscan.profiling.verdicts.targets import TARGETS

START = np.zeros((3, 4))
NATIVE, STANDS, KERNEL = "'xla', as native functions", "'xla', as it stands", "'pallas', as one kernel"


def plain(x):
    return -0.5 * (x**2).sum(0)


def with_a_sort(x):
    y = 2 * x
    return -(jnp.sort(y, axis=0)[0] ** 2)


def of_many_operations(x):
    return -sum(jax.lax.lgamma(x[0] + k) for k in range(300))


def of_names(position):
    return -(position["x"] ** 2) - (position["y"] ** 2).sum(0)


def test_a_kernel_is_explained():
    lines = explain_rw_metropolis(plain, START).splitlines()
    assert lines[0] == "rw_metropolis in plain, 3 coordinates of float64:"
    assert lines[1].startswith(f"here, on a CPU: {NATIVE} that each take up to 256 chains")
    assert lines[2].startswith(f"on an NVIDIA GPU: {KERNEL}")
    assert re.fullmatch(
        r"the log density was taken apart into arithmetic on coordinates, \d+ operations for one chain", lines[3]
    )
    assert len(lines) == 4


def test_what_is_in_the_way_is_named_with_its_line():
    lines = explain_rw_metropolis(with_a_sort, START).splitlines()
    assert lines[1].startswith(f"here, on a CPU: {STANDS}")
    assert lines[2].startswith(f"on an NVIDIA GPU: {STANDS}")
    number = with_a_sort.__code__.co_firstlineno + 2
    assert re.search(
        rf"it has sort, which is no arithmetic .*, at \S*{__name__.split('.')[-1]}\.py:{number}\S* \(with_a_sort\)", lines[3]
    )
    assert "so write short loops out in Python" in lines[5]
    with pytest.raises(NotImplementedError, match="log density with sort"):  # and so it is
        rw_metropolis(jax.random.key(0), with_a_sort, START, 5, implementation="pallas_interpret")


def test_other_reasons():
    many = explain_rw_metropolis(plain, np.zeros((17, 2)))
    assert f"here, on a CPU: {STANDS}" in many
    assert "it has 17 coordinates, more than 16" in many
    assert "there is nothing to mend" in many
    large = explain_rw_metropolis(of_many_operations, START)
    assert f"here, on a CPU: {STANDS}" in large
    assert f"on an NVIDIA GPU: {KERNEL}" in large
    assert "more than one of a CPU's native functions takes" in large
    with fastscan.use_xla_hints(False):
        off = explain_rw_metropolis(plain, START)
    assert f"here, on a CPU: {STANDS}" in off
    assert "hints to XLA are off" in off


def test_positions_may_be_trees_or_states_of_runs():
    start = {"x": jnp.zeros(5), "y": jnp.zeros((2, 5))}
    told = explain_rw_metropolis(of_names, start)
    assert told.startswith("rw_metropolis in of_names, 3 coordinates of float64:")
    run = rw_metropolis(jax.random.key(0), of_names, start, 5)
    assert explain_rw_metropolis(of_names, run.state) == told


def test_on_a_gpu_a_kernel_is_what_runs_here(monkeypatch):
    monkeypatch.setattr(api, "device_kind", lambda: "NVIDIA made-up")
    lines = explain_rw_metropolis(plain, START).splitlines()
    assert lines[1].startswith(f"here, on NVIDIA made-up: {KERNEL}")
    assert lines[2].startswith(f"on a CPU: {NATIVE}")
    monkeypatch.setattr(api, "compiled_implementations", lambda _: ("sequential",))
    told = explain_rw_metropolis(plain, START)
    assert f"here, on NVIDIA made-up: {STANDS}" in told
    assert "kernels can't be compiled by this JAX" in told


@pytest.mark.parametrize(
    ("position", "error", "words"), [(np.zeros(3, int), TypeError, "float32"), (np.zeros((0, 3)), ValueError, "no coordinates")]
)
def test_positions_that_are_none_are_refused_as_by_the_sampler(position, error, words):
    with pytest.raises(error, match=words):
        explain_rw_metropolis(plain, position)


MODULE = """
import jax
def loop(x):
    return jax.lax.fori_loop(0, 3, lambda _, total: total - x[0] ** 2, 0 * x[0])
def by_value(x):
    return x[0] if x[0] > 0 else -x[0]
def of_all(x):
    return x.sum()
number = 3
"""


@pytest.fixture
def my_folder(tmp_path, monkeypatch):
    """A user's folder, with modules of theirs."""
    (tmp_path / "a_model_of_mine.py").write_text(MODULE)
    (tmp_path / "a_broken_model.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # which the command adds the folder to


@pytest.mark.usefixtures("my_folder")
def test_a_user_s_function_is_explained_by_its_dotted_path(capsys):
    command_line.main(["explain", "rw_metropolis", "--target", "a_model_of_mine:loop", "--dimension", "2"])
    told = capsys.readouterr().out
    assert told.startswith("rw_metropolis in loop, 2 coordinates of float32:")
    assert re.search(r"it has scan, .*a_model_of_mine\.py:4\S* \(loop\)", told)


@pytest.mark.parametrize("name", TARGETS)
def test_examples_are_explained_in_both_types(name, capsys):
    for dtype in ("float32", "float64"):
        command_line.main(["explain", "rw_metropolis", "--target", name, "--dimension", "1", "--dtype", dtype])
        assert f"rw_metropolis in {name}, 1 coordinate of {dtype}:" in capsys.readouterr().out


@pytest.mark.usefixtures("my_folder")
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("a_model_of_mine:by_value", r".*failed for positions \(2, chains\) of float32: TracerBoolConversionError: .*"),
        ("a_model_of_mine:of_all", r".*log_density: returned \(\) for positions of 3 chains, wanted one array .*"),
        ("a_model_of_mine:number", r".*but a_model_of_mine has a value of type int there; wanted a function\."),
        ("a_model_of_mine:gone", r".*but a_model_of_mine has nothing of that name there; wanted a function\."),
        ("a_broken_model:f", r".*but importing a_broken_model failed: SyntaxError: .*"),
        ("nowhere.at_all:f", r".*but importing nowhere\.at_all failed: ModuleNotFoundError: No module named 'nowhere'"),
        ("nothing", r"--target: 'nothing' given, wanted normal, mixture, ordered or 'package\.module:function'\."),
        ("mixture", r"--target: 'mixture' failed for positions \(2, chains\) of float32: .*"),
    ],
)
def test_what_is_wrong_is_one_line(target, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["explain", "rw_metropolis", "--target", target, "--dimension", "2"])
    assert re.fullmatch(said + "\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rw_metropolis", "Give --dimension, the number of coordinates of a chain.\n"),
        ("rw_metropolis --dimension 0", "--dimension: 0 given, wanted at least 1.\n"),
        ("lgssm_smoother --D 4", "Give --T, the number of time steps.\n"),
    ],
)
def test_what_is_missing_is_one_line(line, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["explain", *line.split()])
    assert capsys.readouterr().err == said
