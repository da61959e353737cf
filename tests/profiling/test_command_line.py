"""The command lines: what they say of what is missing, and where an installed fastscan keeps its records."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastscan.profiling import __main__ as all_commands
from fastscan.profiling import command_line

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("blackjax", "optax", "rich", "jinja2", "matplotlib", "nvtx", "triton", "statsmodels", "dynamax")
BARE = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # as if none of them were installed
from fastscan.profiling.__main__ import main
for line in sys.argv[1:]:
    try:
        main(line.split())
    except SystemExit as end:
        assert end.code == 2, line
    else:
        print("ran", line)
"""
NEEDS_PROFILE = r"This needs \w+, which is not installed here: pip install 'fastscan\[profile\]'"


def run(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture
def installed(tmp_path):
    """As a wheel leaves it, away from any checkout: where to import it from, and a user's folders."""
    site = tmp_path / "site" / "fastscan"
    for folder, place in (("fastscan", site), ("kernels", site / "kernels"), ("profiling", site / "profiling")):
        shutil.copytree(ROOT / folder, place, ignore=shutil.ignore_patterns("__pycache__", "records"))
    home = {name: str(tmp_path / name) for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME")}
    return {"PYTHONPATH": str(site.parent), "PYTHONSAFEPATH": "1", **home}


def test_without_extras_commands_say_what_to_install():
    """Each in one line, and none with a traceback; explaining needs none of them."""
    needing = ["demo", "demo hmc", "demo slds", "demo metropolis", "measure", "judge", "tables", "compare a b", "report"]
    needing.append("nonlinear")
    explained = "explain lgssm_smoother --D 4 --T 100", "explain rw_metropolis --dimension 2"
    ended = run(BARE, *needing, "kernels", *explained)
    assert re.fullmatch(f"({NEEDS_PROFILE}\n){{{len(needing) + 1}}}", ended.stderr), ended.stderr
    assert "lgssm_smoother runs as " in ended.stdout
    assert "rw_metropolis in normal, 2 coordinates" in ended.stdout
    assert ended.stdout.count("ran ") == 2


def test_without_triton_statsmodels_a_gpu_or_what_was_named(tmp_path, capsys, monkeypatch):
    for name in ("triton", "statsmodels", "statsmodels.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    for line, said in (
        (["kernels", "--sizes", "1,1", "--out", str(tmp_path)], r".*pip install triton\n"),
        (["demo", "slds", "--out", str(tmp_path / "out")], r"The series is .*: pip install statsmodels\.\n"),
        (["gpu", "--out", str(tmp_path)], r"JAX computes on 'cpu' here, which is no NVIDIA GPU\. Take --dry-run .*\n"),
        (["keep", str(tmp_path / "nothing")], r".*nothing.*\n"),
        (["measure", "--only", "hmm_smother"], r"--only: 'hmm_smother' given, which is in no case, for one .*\n"),
        (["fit", str(tmp_path / "no.csv")], r".*no\.csv: no such record\.\n"),
    ):
        with pytest.raises(SystemExit, match="2"):
            all_commands.main(line)
        assert re.fullmatch(said, capsys.readouterr().err), line
    assert not (tmp_path / "out").exists()


def test_an_error_of_our_own_keeps_its_traceback(monkeypatch):
    for error in (
        ModuleNotFoundError("No module named 'fastscan.x'", name="fastscan.x"),
        RecursionError("deep"),
        KeyError("x"),
    ):

        def fail(_, error=error):
            raise error

        monkeypatch.setattr(command_line, "_explain", fail)
        with pytest.raises(type(error)):
            command_line.main(["explain", "lgssm_smoother", "--D", "4", "--T", "5"])


def test_the_command_is_what_is_installed():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["fastscan"]
    assert script == f"{command_line.main.__module__}:{command_line.main.__name__}"
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["judge"])  # is none of a user's commands


def test_an_installed_fastscan_keeps_records_among_the_users_files(installed, tmp_path):
    lines = [
        "measure --cases toy --only hmm_smoother --implementations sequential",
        "judge",
        "fit",
    ]
    code = "import sys; from fastscan.profiling.__main__ import main\nfor line in sys.argv[1:]: main(line.split())"
    ended = run(code, *lines, **installed)
    assert ended.returncode == 0, ended.stderr
    (record,) = (tmp_path / "XDG_DATA_HOME").rglob("*.csv")
    assert re.fullmatch(r"measured-cpu-\d+-cores-v0\.1\.0\.csv", record.name)
    assert f"record: {record}" in ended.stdout
    assert (tmp_path / "XDG_CACHE_HOME/fastscan/crossover.json").exists()
    assert not list((tmp_path / "site").rglob("*.csv.begun"))
    assert not (tmp_path / "site/fastscan/profiling/records").exists()


def test_without_a_record_it_says_so(installed, tmp_path):
    code = "import sys; from fastscan.profiling.__main__ import main; main(sys.argv[1:])"
    ended = run(code, "judge", **installed)
    wanted = f"{tmp_path}/XDG_DATA_HOME/fastscan/records has no record of 'cpu'. Run `fastscan measure`.\n"
    assert (ended.returncode, ended.stderr) == (2, wanted)
