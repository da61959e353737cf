"""What a source distribution holds: all that its own tests import, read and run."""

from collections.abc import Iterable
from pathlib import Path

from setuptools.command.sdist import sdist

FOLDERS = (".ci", "fastscan", "kernels", "profiling", "tests")
FILES = ("CHANGELOG.md",)


class WholeSdist(sdist):
    """Adds what setuptools leaves out: it takes ``tests/test*.py``, and of other folders what is installed."""

    def make_release_tree(self, base_dir: str, files: Iterable[str]) -> None:
        """Puts all files together, but for what Python and pytest leave behind."""
        found = [path for folder in FOLDERS for path in Path(folder).rglob("*") if path.is_file()]
        mine = {str(path) for path in found if not any(part.startswith("__pycache__") for part in path.parts)}
        super().make_release_tree(base_dir, sorted({*files, *mine, *FILES}))
