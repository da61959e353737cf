"""A hundred million steps on one machine: a position and its velocity, smoothed from disk to disk with memory for one block."""

import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fastscan import GaussianState, ParamsLGSSM, lgssm_smoother, make_lgssm_params
from fastscan.streaming import smooth_stream
from fastscan.streaming.blocks import default_size
from fastscan.streaming.pieces import smooth_piece

STEPS = 100_000_000
CHECKED = 200_000
"""Steps at the beginning that are smoothed at once, too; what is later than these tells nothing of the first half of them."""


def model() -> ParamsLGSSM:
    """Makes the model: an object that is pulled back, and seen with noise."""
    F, Q = np.array([[0.99, 0.1], [-0.05, 0.98]]), 0.01 * np.eye(2)
    params = make_lgssm_params(np.zeros(2), np.eye(2), F, Q, np.array([[1.0, 0.0]]), np.array([[0.25]]))
    return jax.tree.map(lambda x: np.asarray(x, "float32"), params)


def write_emissions(path: Path, steps: int, block: int = 1_000_000, seed: int = 0) -> np.ndarray:
    """Draws emissions (T, 1) of the model's kind into a file, if it does not hold as many, and maps them.

    White noise through a filter of its own is as hard to smooth; a file is written in seconds.
    """
    if path.exists() and np.load(path, mmap_mode="r").shape == (steps, 1):
        return np.load(path, mmap_mode="r")
    y = np.lib.format.open_memmap(path, "w+", "float32", (steps, 1))
    r = np.random.default_rng(seed)
    for start in range(0, steps, block):
        y[start : start + block] = r.standard_normal((min(block, steps - start), 1), "float32")
    y.flush()
    return np.load(path, mmap_mode="r")


def run_streams(folder: Path, steps: int = STEPS, block_size: int | None = None) -> dict[str, float]:
    """Smooths so many steps, and says how long that takes, with how much memory, and how far from doing it at once.

    Args:
        folder: for emissions and results, 28 bytes a step. Results that are there are taken as they are, or gone on with.
        steps: T.
        block_size: as `fastscan.streaming.smooth_stream`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    y, params = write_emissions(folder / "emissions.npy", steps), model()
    lgssm_smoother(params, np.asarray(y[:1_000]))  # JAX itself takes memory
    before, started = _most_memory(), time.perf_counter()
    found = smooth_stream(params, y, folder=folder / "smoothed", block_size=block_size)
    seconds, memory = time.perf_counter() - started, _most_memory() - before
    count = min(steps, CHECKED)
    wanted = np.asarray(lgssm_smoother(params, np.asarray(y[:count])).smoothed_means)[: count // 2]
    apart = float(np.abs(found.smoothed_means[: count // 2] - wanted).max() / np.abs(wanted).max())
    device = device_memory(params, block_size or default_size(2, 1))
    print(f"{steps:,} steps in {seconds:.1f} s, {1e9 * seconds / steps:.0f} ns a step; {device / 2**20:.0f} MiB on the device,")
    print(f"{memory / 2**20:.0f} MiB more of the process at most, pages of mapped files among them.")
    print(f"log-likelihood {found.marginal_loglik:.8g}; the first {count // 2:,} means within {apart:.1e} of those at once")
    return {"seconds": seconds, "device": device, "memory": memory, "apart": apart}


def device_memory(params: ParamsLGSSM, block: int) -> int:
    """Returns the bytes that XLA plans for a block of the pass back, which takes most: what goes in, comes out, and what is
    between.
    """
    state = GaussianState(jnp.zeros(2), jnp.eye(2))
    given = params, jnp.zeros((block, 1)), None, state, state, False, None
    found = smooth_piece.lower(*given).compile().memory_analysis()
    assert found is not None, "XLA says what memory a program for a CPU takes"
    return found.temp_size_in_bytes + found.output_size_in_bytes + found.argument_size_in_bytes


def _most_memory() -> int:
    """Returns the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
