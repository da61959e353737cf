"""A stream's journal, of what it has done so far, in a folder: a stream that was ended goes on from there."""

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

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
        digest, path = digest_of(*identity), folder / _NAME
        if path.exists():
            with np.load(path) as found:
                self.numbers = dict(found)
            if str(self.numbers.pop("identity")) != digest:
                raise ValueError(
                    f"folder: {folder} holds a stream of other lengths, parameters or options. Take another, or remove it."
                )
        self.digest = digest
        if not path.exists():
            found = [x.name for x in folder.glob("*.npy")]
            if found:
                raise ValueError(f"folder: {folder} holds {', '.join(found)} of no stream. Take another, or remove it.")
            self.write()

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

    def array(self, name: str, T: int, row: Any, mode: Literal["r", "r+"] = "r") -> np.ndarray:
        """Opens an array (T, ...) of results on disk, or makes it, with rows like one.

        Raises:
            ValueError: a file that holds something else.
        """
        assert self.folder is not None, "results want a folder"
        path, shape = self.folder / f"{name}.npy", (T, *row.shape)
        if not path.exists():
            new = path.with_suffix(".new")  # which takes its name when it is whole
            np.lib.format.open_memmap(new, "w+", row.dtype, shape).flush()
            new.replace(path)
        found = np.load(path, mmap_mode=mode)
        if found.shape != shape or found.dtype != row.dtype:
            raise ValueError(
                f"folder: {path} holds {found.dtype} {found.shape}, wanted {row.dtype} {shape}. Remove the folder."
            )
        return found

    def put(self, name: str, T: int, start: int, rows: Any) -> None:
        """Writes rows of such an array, and has them on disk. It is closed again, as pages that were written stay in memory as
        long as they are mapped.
        """
        rows = np.asarray(rows)
        on_disk: Any = self.array(name, T, rows[0], "r+")
        on_disk[start : start + len(rows)] = rows
        on_disk.flush()


def digest_of(*arrays: Any) -> str:
    """Digests arrays and words."""
    of = hashlib.sha256()
    for x in jax.tree.leaves(arrays):
        x = np.asarray(x)
        of.update(f"{x.dtype} {x.shape}".encode() + x.tobytes())
    return of.hexdigest()
