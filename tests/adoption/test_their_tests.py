"""dynamax's own tests, which come with it, under adoption. All of them pass without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def of_dynamax(folder, *more):
    """In a folder of its own: beside this one, tests/conftest.py would have them in float64, where some fail by themselves."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            os.devnull,
            "-q",
            "-W",
            "ignore",
            "-p",
            "no:cacheprovider",
            "-p",
            "adopting",
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
    )


@pytest.mark.slow
def test_dynamax_under_adoption(tmp_path):
    done = of_dynamax(tmp_path, "--pyargs", "dynamax")
    assert done.returncode == 0, done.stdout[-4_000:]
    assert " failed" not in done.stdout


@pytest.mark.slow
def test_the_plugin_adopts(tmp_path):
    done = of_dynamax(tmp_path, "-v", "--pyargs", "dynamax.linear_gaussian_ssm.input_timing_test")
    assert "dynamax is adopted: 56 references" in done.stdout
    assert done.returncode == 0, done.stdout[-4_000:]
