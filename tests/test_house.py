"""The plan of the house: which way imports run, and how large a file and a room may be."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

import fastscan

ROOT = Path(__file__).resolve().parent.parent
FILES = [f for folder in ("fastscan", "kernels", "profiling") for f in (ROOT / folder).rglob("*.py")]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES, MOST_MODULES = 400, 12
PACKAGES = {"fastscan": "fastscan", "kernels": "fastscan.kernels", "profiling": "fastscan.profiling"}

LAYERS = {
    "kernels": (
        {"arrays", "functions", "plan", "ranges"},
        {"xla_hints", "tables"},
        {"algebra"},  # small matrices, a matrix per lane
        {"gpu"},  # what launches kernels
        {"scan"},  # what runs a recurrence, which it knows by its five functions
        {"affine"},  # what moves by matrices, of vectors alone
        {"lgssm", "hmm", "mcmc"},  # families, which know nothing of one another
        {"lds", "converged"},  # whose states are Gaussian, too
    ),
    "fastscan": (
        {"types", "values", "draws"},
        {"given"},
        {"arrays", "regimes"},
        {"functions", "dispatch", "sequences"},
        {"transforms", "lengths"},
        {"lgssm", "hmm", "lds", "mcmc", "scans"},
        {"slds", "nonlinear", "streaming"},
        {"learn", "adoption"},
    ),
    "profiling": (
        {"measure"},
        {"verdicts", "compiled", "demos", "peers"},
        {"report"},
        {"gpu"},
        {"command_line"},
        {"__main__"},
    ),
}
"""From the bottom, the rooms of each package: folders, and modules that lie in none. A room imports itself, and those below."""


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def module_of(path):
    """Its dotted name, and whether it is a package."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = [PACKAGES[folder], *(part for part in rest if part != "__init__")]
    return ".".join(parts), path.name == "__init__.py"


MODULES = dict(map(module_of, FILES))


def imported_modules(path):
    """The modules of ours that a file imports, and not what it takes of them."""
    for name in imports(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            yield name


def room_of(module):
    """Package and room of a module; a package's own `__init__` is in none."""
    package = max((p for p in PACKAGES.values() if f"{module}.".startswith(f"{p}.")), key=len)
    folder = next(folder for folder, name in PACKAGES.items() if name == package)
    inside = module.removeprefix(package).strip(".")
    return folder, inside.split(".")[0]


def cycle(arrows):
    """A way from a node back to itself, or None."""
    done, way = set(), []

    def visit(node):
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return None
        way.append(node)
        found = next((c for other in sorted(arrows.get(node, ())) if (c := visit(other))), None)
        way.pop()
        done.add(node)
        return found

    return next((found for node in sorted(arrows) if (found := visit(node))), None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        if folder == "kernels" and name.split(".")[0] == "fastscan":
            assert name.startswith("fastscan.kernels"), name
        if folder != "profiling":
            assert not name.startswith("fastscan.profiling"), name
            more = {"blackjax", "optax", "rich"} if "learn" in path.parts else set()
            more |= {"rich"} if "streaming" in path.parts else set()
            more |= {"tensorflow_probability"} if "adoption" in path.parts else set()
            more |= {"ranges.py": {"nvtx"}, "crossovers.py": {"platformdirs"}}.get(path.name, set())
            more |= {"jaxlib"} if path.name in ("xla_hints.py", "lowerings.py") else set()
            assert name.split(".")[0] in {*sys.stdlib_module_names, "jax", "numpy", "fastscan", *more}, name
            assert "learn" in path.parts or not name.startswith("fastscan.learn"), name


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_passes_400_lines(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_no_folder_has_more_than_a_dozen_modules():
    rooms = defaultdict(set)
    for path in (*FILES, *TESTS):
        rooms[path.parent].add(path.name)
    assert not {str(room.relative_to(ROOT)): len(names) for room, names in rooms.items() if len(names) > MOST_MODULES}


def test_layers_are_those_that_there_are():
    """Every room has its place, so that a new one is thought about."""
    for folder, layers in LAYERS.items():
        rooms = [room for layer in layers for room in layer]
        assert len(rooms) == len(set(rooms))
        found = {room for package, room in map(room_of, MODULES) if package == folder}
        assert found - {"", *(["kernels", "profiling"] if folder == "fastscan" else [])} == set(rooms), folder


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_runs_upward(path):
    """Within a package, only to lower layers; of a layer's rooms, none imports another."""
    module, _ = module_of(path)
    folder, room = room_of(module)
    height = {name: i for i, layer in enumerate(LAYERS[folder]) for name in layer}
    for other in imported_modules(path):
        package, wanted = room_of(other)
        if package == folder and room and wanted != room:
            assert wanted, f"{module} imports all of {other}"
            assert height[wanted] < height[room], f"{module} imports {other}"


def test_no_modules_import_one_another():
    """Also within a room, and between packages. What a package's `__init__` takes from its own modules is there for users."""
    arrows = {}
    for path in FILES:
        module, is_package = module_of(path)
        inner = f"{module}." if is_package else "/"
        arrows[module] = {other for other in imported_modules(path) if other != module and not other.startswith(inner)}
    assert cycle(arrows) is None
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_folders_import_one_another():
    """Modules that lie in a package's own folder count by themselves."""
    arrows = defaultdict(set)

    def node(module):
        home = module if MODULES[module] else module.rpartition(".")[0]
        return module if home in PACKAGES.values() else home

    for path in FILES:
        module, is_package = module_of(path)
        if not is_package:
            arrows[node(module)] |= {node(other) for other in imported_modules(path)} - {node(module)}
    assert cycle(arrows) is None


def docstrings(path):
    """Those of modules, classes and functions, and strings that stand below an attribute."""
    for node in ast.walk(ast.parse(path.read_text())):
        for line in getattr(node, "body", []) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) else []:
            if isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str):
                yield line.lineno, line.value.value


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_begin_with_what_they_are_about(path):
    """With a verb, or with a noun: "Of" and "What" leave the reader to guess."""
    found = [(line, text) for line, text in docstrings(path) if text.split()[0] in ("Of", "What")]
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_docstrings_of_functions_begin_with_a_verb(path):
    """Not with an article, a bracket or a pronoun, as those of classes and properties may."""
    others = {
        "The",
        "A",
        "An",
        "All",
        "Both",
        "Every",
        "Some",
        "So",
        "These",
        "This",
        "Those",
        "As",
        "How",
        "Where",
        "Whether",
        "With",
    }
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    functions = [node for node in nodes if not any(ast.unparse(x).endswith("property") for x in node.decorator_list)]
    found = {node.name: (ast.get_docstring(node) or "Has").split()[0] for node in functions}
    assert not {name: word for name, word in found.items() if word in others or not word[0].isalpha()}


def test_docstrings_are_found(tmp_path):
    path = tmp_path / "module.py"
    path.write_text('"""What."""\nX = 1\n"""Of X."""\nclass A:\n    """A."""\n    def f(self):\n        """Of f."""\n')
    assert sorted(docstrings(path)) == [(1, "What."), (3, "Of X."), (5, "A."), (7, "Of f.")]


def test_tests_that_are_slow_exist():
    for line in (ROOT / "tests/slow.txt").read_text().splitlines():
        file, name = line.split("[")[0].split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), line


def test_what_ci_runs_on_a_newer_python_exists():
    (names,) = re.findall(r'^NEWER_PART="(.*?)"', (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert set(names.split()) <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def test_one_file_knows_pallas():
    """It imports Pallas for two others. And the ceilings have a kernel that is none of ours."""
    found = {str(f.relative_to(ROOT)): set(imports(f)) for f in FILES}
    users = {f for f, names in found.items() if any(name.startswith("jax.experimental.pallas") for name in names)}
    assert users <= {"kernels/gpu/lowerings.py", "profiling/gpu/ceilings.py"}
    users = {f for f, names in found.items() if any(name.startswith("jax._src") for name in names)}
    assert users == {"kernels/gpu/lowerings.py"}
    users = {f for f, names in found.items() if "fastscan.kernels.gpu.lowerings" in names}
    assert users == {"kernels/gpu/arithmetic.py", "kernels/gpu/layouts.py"}


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
        "import sys, fastscan; parts = ('lds', 'learn', 'mcmc', 'nonlinear', 'slds'); "
        "assert not [p for p in parts if f'fastscan.{p}' in sys.modules]; assert set(parts) <= set(dir(fastscan)); "
        "assert fastscan.mcmc.rw_metropolis and fastscan.slds.slds_inference; "
        "assert fastscan.lds.lds_sample and fastscan.learn.fit_em and fastscan.nonlinear.extended_kalman_filter; "
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
    assert {f"{folder}/README.md" for folder in ("fastscan", "kernels", "profiling")} <= set(held)
    assert not [name for name in held if "__pycache__" in name]


def test_slow_tests_exist():
    """Names of tests that were renamed would slow a suite down unnoticed."""
    for line in (ROOT / "tests/slow.txt").read_text().splitlines():
        path, name = line.split("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / path).read_text(), line
