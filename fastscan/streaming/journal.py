"""A stream's journal, of what it has done so far, in a folder: a stream that was ended goes on from there."""

import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

_NAME = "progress.npz"


class Journal:
    """Numbers that are kept beside results, written as one file that replaces the one before: it is whole at any time.

    Without a folder they are kept in memory alone.
    """

    def __init__(self, folder: Path | None, *identity: Any):
        """Opens a folder's journal, or begins one.

        Args:
            folder: for results, made if it is not there; or None.
            identity: arrays and words that tell this work from another.

        Raises:
            ValueError: the folder holds other work.
        """
        self.folder, self.numbers = folder, {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        digest, path = _digest(identity), folder / _NAME
        if path.exists():
            with np.load(path) as found:
                self.numbers = dict(found)
            if str(self.numbers.pop("identity")) != digest:
                raise ValueError(
                    f"folder: {folder} holds a stream of other lengths, parameters or options. Take another, or remove it."
                )
        self.digest = digest

    def write(self, **numbers: Any) -> None:
        """Keeps numbers, beside those that were kept before."""
        self.numbers |= {name: np.asarray(x) for name, x in numbers.items()}
        if self.folder is None:
            return
        path = self.folder / f"{_NAME}.new"
        with path.open("wb") as file:
            np.savez(file, identity=np.asarray(self.digest), **self.numbers)
            file.flush()
            os.fsync(file.fileno())
        path.replace(self.folder / _NAME)

    def array(self, name: str, T: int, row: Any) -> np.ndarray:
        """Opens an array (T, ...) of results on disk, or makes it, with rows like one."""
        assert self.folder is not None, "results want a folder"
        path = self.folder / f"{name}.npy"
        if path.exists():
            return np.load(path, mmap_mode="r+")
        return np.lib.format.open_memmap(path, "w+", row.dtype, (T, *row.shape))

    def put(self, name: str, T: int, start: int, rows: Any) -> None:
        """Writes rows of such an array, and has them on disk. It is closed again, as pages that were written stay in memory as
        long as they are mapped.
        """
        rows = np.asarray(rows)
        on_disk: Any = self.array(name, T, rows[0])
        on_disk[start : start + len(rows)] = rows
        on_disk.flush()


def _digest(identity: tuple[Any, ...]) -> str:
    """Digests arrays and words."""
    of = hashlib.sha256()
    for x in jax.tree.leaves(identity):
        x = np.asarray(x)
        of.update(f"{x.dtype} {x.shape}".encode() + x.tobytes())
    return of.hexdigest()
