"""The plan of the house: which way imports run, and how large a room may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_one_file_knows_pallas():
    users = [f for f in FILES if any(name.startswith("jax.experimental.pallas") for name in imports(f))]
    assert {str(f.relative_to(ROOT)) for f in users} <= {"kernels/launch.py", "profiling/gpu/ceilings.py"}  # and the ceilings


def test_one_file_knows_xla_metadata():
    """By any name: imports, attributes of modules, and the marks themselves."""
    private = ("xla_metadata", "xla_cpu_small_call", "inlineable")
    users = {str(f.relative_to(ROOT)) for f in FILES if any(name in f.read_text() for name in private)}
    assert users == {"kernels/xla_hints.py"}


def test_importing_changes_no_configuration():
    code = "import jax; before = dict(jax.config.values); import fastscan; assert dict(jax.config.values) == before"
    subprocess.run([sys.executable, "-c", code], check=True)
