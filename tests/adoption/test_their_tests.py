"""dynamax's own tests, which come with it, under adoption. All of them pass without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def of_dynamax(*more):
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
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": path},
    )


@pytest.mark.slow
def test_dynamax_under_adoption():
    done = of_dynamax("--pyargs", "dynamax")
    assert done.returncode == 0, done.stdout[-4_000:]
    assert " failed" not in done.stdout


@pytest.mark.slow
def test_the_plugin_adopts():
    done = of_dynamax("-v", "--pyargs", "dynamax.linear_gaussian_ssm.input_timing_test")
    assert "dynamax is adopted: 55 references" in done.stdout
    assert done.returncode == 0, done.stdout[-4_000:]
