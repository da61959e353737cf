"""The READMEs: their Python runs as pasted, their commands exist, their links lead somewhere."""

import ast
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastscan.profiling import __main__ as all_commands
from fastscan.profiling import command_line

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / folder / "README.md" for folder in ("", "fastscan", "kernels", "profiling")]
each = pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = """
import ast, contextlib, io, sys
namespace = {"__name__": "__main__"}
for statement in ast.parse(sys.stdin.read(), sys.argv[1]).body:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(ast.Module([statement], []), sys.argv[1], "exec"), namespace)
    for line in out.getvalue().splitlines():
        print(statement.end_lineno, line)
"""
"""Runs the statements of standard input one by one, and prints what each printed with the line where it ends."""


def python_of(text):
    """Keeps the lines of Python blocks, and leaves the others empty: line numbers are those of the README."""
    kept = [""] * len(text.splitlines())
    for found in FENCED.finditer(text):
        if found[1] == "python":
            first = text[: found.start(2)].count("\n")
            kept[first : first + found[2].count("\n")] = found[2].splitlines()
    return "\n".join(kept)


def shown_outputs(code):
    """Finds what lines that begin with "print(" are said to print, in the comment at their end, by line."""
    pairs = ((number, line.rpartition("  # ")) for number, line in enumerate(code.splitlines(), 1))
    return {number: said for number, (before, mark, said) in pairs if mark and before.startswith("print(")}


def check_python(text, name):
    """Runs it in order, in one fresh interpreter on a CPU, in some other folder."""
    code = python_of(text)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", RUN, name]
    ran = subprocess.run(command, input=code, capture_output=True, text=True, env=environment, cwd="/", check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    printed = dict(line.split(" ", 1) for line in ran.stdout.splitlines())
    assert printed == {str(number): said for number, said in shown_outputs(code).items()}
    assert not re.search("warning", ran.stderr, re.IGNORECASE), ran.stderr[-3000:]


@each
def test_python_runs_as_pasted(readme):
    check_python(readme.read_text(), str(readme))


def test_python_that_is_wrong_is_found():
    right = "```python\nx = 1\n```\ntext\n```python\nprint(x, {2: 3})  # 1 {2: 3}\n```\n"
    check_python(right, "right")
    for old, new in (("x = 1", "x = 2"), ("x = 1", "y = 1"), ("x = 1", "import warnings; x = 1; warnings.warn('x')")):
        with pytest.raises(AssertionError):
            check_python(right.replace(old, new), "wrong")


def test_the_first_page_has_an_example_and_is_short():
    text = READMES[0].read_text()
    assert len(text.splitlines()) <= 120
    assert shown_outputs(python_of(text))


def commands_of(text):
    """Lists every command: the lines of blocks that are not Python, and code in prose that begins like one."""
    blocks = [found[2] for found in FENCED.finditer(text) if found[1] != "python"]
    prose = re.findall(r"`((?:fastscan |python -m |\.ci/)[^`]*)`", FENCED.sub("", text).replace("\n", " "))
    prose = [line for line in prose if " " in line.strip() and line != "python -m fastscan.profiling"]  # else names of programs
    lines = [*(line for block in blocks for line in block.splitlines()), *prose]
    return [part.strip() for line in lines for part in line.split("#")[0].split("&&") if part.strip() and "..." not in part]


def check(command, monkeypatch):
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "fastscan.profiling"]:
        main, module, arguments = all_commands.main, all_commands, words[3:]
    elif words[0] == "fastscan":
        main, module, arguments = command_line.main, command_line, words[1:]
    elif words[0] == ".ci/gpu":
        assert os.access(ROOT / words[0], os.X_OK)
        known = re.findall(r"^ +(--[\w-]+)\)", (ROOT / words[0]).read_text(), re.MULTILINE)
        assert {word for word in words if word.startswith("--")} <= {*known, "--stage"}
        return
    elif words[:4] == ["python", "-m", "pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {extra for word in words for extra in re.findall(r"\[([\w,]+)\]", word)} <= extras.keys()
        return
    else:
        assert words[:3] == ["python", "-m", "pytest"], f"no such command: {command}"
        markers = {"slow", "not slow"}
        assert all(after in markers for word, after in itertools.pairwise(words[3:]) if word == "-m")
        assert all((ROOT / word.split("::")[0]).exists() for word in words if word.startswith("tests/"))
        return
    parsed = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "run", lambda parser, given: parsed.append(parser.parse_args(given)))
        main(arguments)
    assert parsed


@each
def test_commands_exist(readme, monkeypatch):
    """And take the arguments that they are given there."""
    for command in commands_of(readme.read_text()):
        check(command, monkeypatch)


def test_commands_are_found_and_checked(monkeypatch):
    """A README whose command is misspelt would not pass."""
    text = (
        "so `fastscan explain lgssm_smoother --D 4 --T 9`:\n```bash\npython -m pip install -e '.[test]' && fastscan demo\n```\n"
    )
    assert commands_of(text) == [
        "python -m pip install -e '.[test]'",
        "fastscan demo",
        "fastscan explain lgssm_smoother --D 4 --T 9",
    ]
    for wrong in ("fastscan demos", "fastscan explain lgssm_smoother --T", "python -m fastscan.profiling tables --all"):
        with pytest.raises(SystemExit, match="2"):
            check(wrong, monkeypatch)
    for wrong in ("python -m pip install '.[everything]'", ".ci/gpu out --fast", "python -m pytest -m quick", "fastskan demo"):
        with pytest.raises(AssertionError):
            check(wrong, monkeypatch)


def test_ci_finds_its_commands():
    """The first line that begins like a command after the mark of each one's name, as .ci/run reads the first page."""
    names = re.findall(r"^run_from_readme (\w+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert {"demo", "tests"} <= set(names)
    for name in names:
        _, mark, after = READMES[0].read_text().partition(f"\n<!-- ci: {name} -->\n")
        assert mark
        assert re.match(r"```bash\n(python|pip) ", after)


def anchors(text):
    """Makes the anchors of headings as GitHub does."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each
def test_links_lead_to_files_and_headings(readme):
    found = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", readme.read_text()))
    inside = [link for link in found if not link.startswith("https://")]
    assert inside
    for link in inside:
        path, _, anchor = link.partition("#")
        target = (readme.parent / path).resolve() if path else readme
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_readme_is_linked_from_the_first():
    text = READMES[0].read_text()
    assert all(f"]({readme.relative_to(ROOT)}" in text for readme in READMES[1:])


@each
def test_words_that_readers_do_not_know(readme):
    """The fastest is not proven for every row; seeds are of random numbers."""
    text = readme.read_text().lower()
    assert "the seed" not in text
    assert "fastest exact" not in text


def test_package_metadata_begins_with_the_first_page():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["readme"] == "README.md"
    assert "fastest" not in project["description"]
    assert ast.get_docstring(ast.parse((ROOT / "fastscan/__init__.py").read_text())).startswith("Fast exact inference")
