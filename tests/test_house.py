"""The plan of the house: which way imports run, and how large a room may be."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastscan

ROOT = Path(__file__).resolve().parent.parent
FILES = [f for folder in ("fastscan", "kernels", "profiling") for f in (ROOT / folder).rglob("*.py")]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        if folder == "kernels" and name.split(".")[0] == "fastscan":
            assert name.startswith("fastscan.kernels"), name
        if folder != "profiling":
            assert not name.startswith("fastscan.profiling"), name
            more = {"blackjax", "optax", "rich"} if path.parent.name == "learn" else set()
            more |= {"ranges.py": {"nvtx"}, "crossovers.py": {"platformdirs"}, "xla_hints.py": {"jaxlib"}}.get(path.name, set())
            assert name.split(".")[0] in {*sys.stdlib_module_names, "jax", "numpy", "fastscan", *more}, name
            assert path.parent.name == "learn" or not name.startswith("fastscan.learn"), name


@pytest.mark.parametrize("path", [*FILES, *(ROOT / "tests").glob("*.py")], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_passes_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_tests_that_are_slow_exist():
    for line in (ROOT / "tests/slow.txt").read_text().splitlines():
        file, name = line.split("[")[0].split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), line


def test_what_ci_runs_on_a_newer_python_exists():
    (names,) = re.findall(r'^NEWER_PART="(.*?)"', (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert set(names.split()) <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def test_one_file_knows_pallas():
    """It launches; another one imports Pallas for it. And the ceilings have a kernel that is none of ours."""
    found = {str(f.relative_to(ROOT)): set(imports(f)) for f in FILES}
    users = {f for f, names in found.items() if any(name.startswith("jax.experimental.pallas") for name in names)}
    assert users <= {"kernels/lowerings.py", "profiling/gpu/ceilings.py"}
    users = {f for f, names in found.items() if "fastscan.kernels.lowerings" in names}
    assert users == {"kernels/launch.py"}


def run(code):
    """In a process of its own, with 64-bit types off and nothing imported."""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_file_knows_xla_metadata():
    """By any name: imports, attributes of modules, and the marks themselves."""
    private = ("xla_metadata", "xla_cpu_small_call", "inlineable")
    users = {str(f.relative_to(ROOT)) for f in FILES if any(name in f.read_text() for name in private)}
    assert users == {"kernels/xla_hints.py"}


def test_importing_changes_no_configuration():
    run("import jax; before = dict(jax.config.values); import fastscan; assert dict(jax.config.values) == before")


def test_importing_brings_no_pallas():
    """Which takes as long as all else, and which jax may drop; if jax brings it itself, that is not ours to see."""
    run(
        "import sys, jax, jax.numpy; before = set(sys.modules); import fastscan, fastscan.slds, fastscan.mcmc; "
        "new = [name for name in set(sys.modules) - before if name.startswith('jax') and 'pallas' in name]; assert not new, new"
    )


def test_importing_brings_no_parts_until_they_are_asked_for():
    run(
        "import sys, fastscan; parts = ('lds', 'learn', 'mcmc', 'slds'); "
        "assert not [p for p in parts if f'fastscan.{p}' in sys.modules]; assert set(parts) <= set(dir(fastscan)); "
        "assert fastscan.mcmc.rw_metropolis and fastscan.slds.slds_inference; "
        "assert fastscan.lds.lds_sample and fastscan.learn.fit_em; "
        "assert not hasattr(fastscan, 'leam')"
    )


def test_learning_without_its_extra_says_what_to_install():
    """A None among the modules is one that can't be imported."""
    run(
        "import sys; sys.modules['optax'] = None\n"
        "import fastscan\n"
        "try: fastscan.learn\n"
        "except ModuleNotFoundError as error: assert str(error).endswith(\"pip install 'fastscan[learn]'\"), error\n"
        "else: raise AssertionError"
    )


def test_what_is_installed_is_there():
    """Every package by its folder, and every pattern of data that goes with it."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = setup["package-dir"]

    def folder_of(name):
        known = max((p for p in places if f"{name}.".startswith(f"{p}.")), key=len)
        return ROOT / places[known] / name.removeprefix(known).strip(".").replace(".", "/")

    assert {folder_of(name) for name in setup["packages"]} == {f.parent for f in FILES}
    for name, patterns in setup["package-data"].items():
        assert all(list(folder_of(name).glob(pattern)) for pattern in patterns), (name, patterns)


def test_the_version_is_one_and_has_its_changes():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == fastscan.__version__
    (newest, *_) = re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == version


def test_no_page_that_is_generated_is_kept():
    """`python -m fastscan.profiling report` writes it anew, under ``out``."""
    assert not [path for folder in ("fastscan", "kernels", "profiling", "tests") for path in (ROOT / folder).rglob("*.html")]


def test_a_source_distribution_holds_what_its_tests_need(monkeypatch):
    pytest.importorskip("setuptools")
    from setuptools import Distribution
    from setuptools.command.sdist import sdist

    from sdist import WholeSdist

    held = []
    monkeypatch.setattr(sdist, "make_release_tree", lambda _, __, files: held.extend(files))
    monkeypatch.chdir(ROOT)
    WholeSdist(Distribution()).make_release_tree("", ["README.md"])
    wanted = {str(f.relative_to(ROOT)) for f in [*FILES, *(ROOT / "tests").rglob("*.py")]}
    assert wanted | {"README.md", "CHANGELOG.md", "tests/slow.txt", ".ci/gpu"} <= set(held)
    assert not [name for name in held if "__pycache__" in name]
