"""Hints to XLA: off, nothing private reaches it; with a jaxlib that was not tested, they are; and it does what they say."""

import contextlib
import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

import fastscan
from fastscan import use_xla_hints
from fastscan.dispatch.choice import choose
from fastscan.kernels import xla_hints
from fastscan.kernels.algebra import Staged, stage
from fastscan.kernels.xla_hints import TESTED, as_one_function, hints_are_on, is_tested
from fastscan.mcmc import rw_metropolis
from fastscan.profiling.measure import operations
from fastscan.profiling.measure.cases import Case
from programs.public_functions import FUNCTIONS, without
from programs.xla_canary import PROGRAMS

MARKS = "inlineable", "xla_cpu_small_call", "frontend_attributes"
NEW = "0.99.0"


@pytest.fixture(autouse=True)
def as_before():
    yield
    use_xla_hints(None)
    xla_hints._by_version.cache_clear()


@pytest.fixture
def new_jaxlib(monkeypatch):
    """Pretends that jaxlib is a newer one."""
    monkeypatch.setattr(jaxlib, "__version__", NEW)
    xla_hints._by_version.cache_clear()
    jax.clear_caches()
    yield
    jax.clear_caches()


def text_of(function, *args):
    return jax.jit(lambda *args: function(*args)).lower(*args).as_text()


def metropolis(x):
    return rw_metropolis(jax.random.key(0), lambda x: -0.5 * (x**2).sum(0), x, 20).samples


def programs():
    for operation in ("lgssm_smoother", "lgssm_loglik_gradient", "hmm_smoother", "hmm_posterior_mode", "hmm_posterior_sample"):
        case = Case(operation, 2, 0 if operation.startswith("hmm") else 1, 150, 1, "float32")
        for name in ("sequential", "chunked:2"):
            yield f"{operation} {name}", operations.function(case, name), operations.data(case)
    yield "rw_metropolis", metropolis, (np.zeros((2, 20), np.float32),)


@pytest.mark.parametrize(("function", "args"), [pytest.param(*x, id=name) for name, *x in programs()])
def test_off_nothing_private_is_lowered(function, args):
    assert all(mark in text_of(function, *args) for mark in MARKS[:2])
    with use_xla_hints(False):
        text = text_of(function, *args)
        assert not any(mark in text for mark in MARKS)
    assert MARKS[0] in text_of(function, *args)


def test_off_plans_that_want_marks_have_none():
    def loop(x):
        return as_one_function(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: x * x, x))(x)

    def unit(x):
        return stage(lambda a: a @ a)(Staged.from_array(x)).to_array()

    for function, x in ((loop, jnp.ones(3)), (unit, jnp.ones((2, 2, 1, 1)))):
        assert MARKS[0] in text_of(function, x)
        with use_xla_hints(False):
            assert not any(mark in text_of(function, x) for mark in MARKS)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "args"), [pytest.param(*x, id=name) for name, *x in programs()])
def test_off_long_series_have_the_same_results(function, args):
    wanted = function(*args)
    with use_xla_hints(False):
        given = function(*args)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), given, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_off_every_function_has_the_same_results(name, monkeypatch):
    wanted = without(name)
    with use_xla_hints(False):
        monkeypatch.setattr(xla_hints, "_marked", None)  # what asks for marks all the same fails
        given = FUNCTIONS[name](jax.random.key(0))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), given, wanted)


def test_off_plans_say_so():
    def plan(name):
        return choose(name, T=100, D=2, m=1, B=1, dtype="float32", device="cpu").plan

    on = plan("sequential")
    assert (on.one_function, on.algebra) == (True, "staged")
    with use_xla_hints(False):
        for name in ("sequential", "chunked:4", "associative", None):
            assert (plan(name).one_function, plan(name).algebra) == (False, "stacked")
        assert choose("chunked:4", T=2_000, D=2, B=1, dtype="float32", family="hmm", device="cpu").plan.algebra == "stacked"
    assert plan("sequential") == on


def test_programs_are_compiled_anew_where_the_switch_changes_anything():
    traced = []

    @jax.jit
    def smooth(y):
        traced.append(hints_are_on())
        return fastscan.lgssm_marginal_loglik(PARAMS, y)

    for on in (None, True, False, False, True):
        use_xla_hints(on)
        smooth(Y)
        smooth(Y)
    assert traced == [True, False, True]


def test_the_end_of_a_block_restores_what_held():
    with use_xla_hints(False):
        with use_xla_hints(True):
            assert hints_are_on()
        assert not hints_are_on()
        with contextlib.suppress(ZeroDivisionError), use_xla_hints(None):
            assert hints_are_on()
            1 / 0  # noqa: B018
        assert not hints_are_on()
    assert hints_are_on()
    use_xla_hints(False)
    assert not hints_are_on()
    for wrong in ("off", 0):
        with pytest.raises(TypeError, match=f"on: {wrong!r} given, wanted True, False or None"):
            use_xla_hints(wrong)


PARAMS = fastscan.make_lgssm_params(np.zeros(2), np.eye(2), 0.9 * np.eye(2), np.eye(2), np.ones((1, 2)), np.eye(1))
Y = np.linspace(-1, 1, 20)[:, None]


@pytest.mark.usefixtures("new_jaxlib")
def test_a_jaxlib_that_was_not_tested_gets_none_and_one_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("sequential", "chunked:2"):
            text = text_of(functools.partial(fastscan.lgssm_smoother, implementation=name), PARAMS, Y)
            assert not any(mark in text for mark in MARKS)
        assert MARKS[0] not in text_of(metropolis, np.zeros((2, 20), np.float32))
        fastscan.lgssm_filter(PARAMS, Y)
    (warning,) = caught
    assert f"not tested with jaxlib {NEW}" in str(warning.message)
    assert "fastscan.use_xla_hints(True)" in str(warning.message)


@pytest.mark.usefixtures("new_jaxlib")
@pytest.mark.parametrize("on", [True, False])
def test_who_asks_is_not_warned(on):
    with warnings.catch_warnings(), use_xla_hints(on):
        warnings.simplefilter("error")
        assert (MARKS[1] in text_of(fastscan.lgssm_smoother, PARAMS, Y)) == on


@pytest.mark.usefixtures("new_jaxlib")
def test_what_runs_on_a_gpu_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose("chunked:4", T=100, D=2, m=1, B=1, dtype="float32", device="NVIDIA H200")


def test_which_versions_count_as_tested():
    for version in TESTED:
        assert is_tested(version)
        assert is_tested(version + ".1")
        assert not any(
            map(is_tested, (version + "0", version + ".dev20261126", version + "rc1", version + "+local", "1" + version))
        )
    assert not is_tested(NEW)


def test_this_jaxlib_is_in_the_list():
    """Where the canary below passes with a new one, `TESTED` takes it."""
    assert is_tested(jaxlib.__version__)


def test_the_readme_has_the_same_list():
    readme = (Path(__file__).parents[2] / "fastscan/README.md").read_text()
    assert f"the jaxlibs that were tested ({', '.join(TESTED)})" in " ".join(readme.split())


def canary(folder, mode, *names):
    """What `xla_canary` prints, and how many functions XLA compiled for each program."""
    file = Path(__file__).parents[1] / "programs" / "xla_canary.py"
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_module_re=.*canary.*"
    run = subprocess.run(
        [sys.executable, file, mode, *names],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, f"of {names} this jaxlib compiles and runs:\n{run.stdout}\nand then ends:\n{run.stderr[-3000:]}"
    printed = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in run.stdout.splitlines()}
    functions = {name: len(list(Path(folder).glob(f"*canary_{name}_end*.obj-file.*.o"))) for name in names}
    assert all(functions.values()), "XLA's dumps are called otherwise now"
    return printed, functions


ONE = "lgssm_smoother", "of_constants", "metropolis"


@pytest.mark.slow
def test_the_canary(tmp_path):
    """Fails with a jaxlib that ignores marks, or aborts: small loops are one function, and units are not inlined.

    How many functions a program becomes is counted in what XLA has compiled, beside the same program without the mark: a third
    of them with jaxlib 0.10.2, half with 0.12.0, and as many where the mark is ignored.
    """
    printed, functions = canary(tmp_path / "on", "on", *PROGRAMS)
    without_the_mark, more = canary(tmp_path / "ignored", "ignored", *ONE)
    for name in ONE:
        assert 3 * functions[name] < 2 * more[name]
        np.testing.assert_allclose(printed[name], without_the_mark[name], rtol=1e-4)
    assert printed["unit"][0] == 1
