"""Streams of linear-Gaussian models: a series is read block by block, and the device holds one block at a time.

A stream with a folder writes its results there, as NumPy's ``.npy`` files, and what it has done after every block. One that was
ended, by a signal or a lost machine, goes on from there when it is called again with the same arguments.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastscan.given import ShapeError, count, missing_entries, promoted
from fastscan.lgssm import lgssm_filter
from fastscan.lgssm.check import check_model
from fastscan.lgssm.timing import plain_params
from fastscan.streaming.blocks import Blocks, default_size
from fastscan.streaming.journal import Journal, digest_of
from fastscan.streaming.pieces import pull_piece, smooth_piece
from fastscan.types import GaussianState, ParamsLGSSM, Regimes


class StreamedFilter(NamedTuple):
    """The results of a stream's filter.

    Attributes:
        marginal_loglik: log p(y_1..T), a float, of blocks' added in double precision.
        final_state: the last state's moments, as `fastscan.lgssm_filter` takes them for ``initial_state``.
        filtered_means, filtered_covariances: (T, D) and (T, D, D), on disk; None without a folder, and of an iterator.
    """

    marginal_loglik: float
    final_state: GaussianState
    filtered_means: np.ndarray | None
    filtered_covariances: np.ndarray | None


class StreamedSmoother(NamedTuple):
    """The results of a stream's smoother: the log-likelihood, a float, and on disk smoothed moments (T, D) and (T, D, D)."""

    marginal_loglik: float
    smoothed_means: np.ndarray
    smoothed_covariances: np.ndarray


class _Work(NamedTuple):
    """A stream: its model, blocks and journal, and the options of all blocks' functions."""

    params: ParamsLGSSM
    blocks: Blocks
    journal: Journal
    dtype: Any
    implementation: str | None
    progress: bool | None

    def given(self, block: tuple[int, Any, Any]) -> tuple[Any, Any, bool]:
        """Returns a block's emissions and inputs in the dtype of the work, and whether entries are missing."""
        _, y, u = block
        y = np.asarray(y, self.dtype)
        return jnp.asarray(y), None if u is None else jnp.asarray(u, self.dtype), missing_entries(y, None) is not False

    def state(self, k: int) -> GaussianState | None:
        """Returns the filtered state before a block."""
        if k == 0:
            return None
        kept = self.journal.numbers
        row = k - 1 - int(kept["blocks"])  # of the last ones, as many as are kept
        return GaussianState(*(jnp.asarray(kept[name][row]) for name in ("means", "covs")))


def filter_stream(
    params: ParamsLGSSM,
    emissions: Any,
    inputs: Any = None,
    *,
    folder: str | Path | None = None,
    block_size: int | None = None,
    implementation: str | None = None,
    progress: bool | None = None,
) -> StreamedFilter:
    """Computes the log-likelihood and, with a folder, filtered moments of a series that memory may not hold.

    Args:
        params: a model that does not vary in time; dynamax's own objects work too.
        emissions: (T, m), an array of NumPy, a memory map, or what is sliced like one; or blocks (n, m), in a list or an
            iterator. NaN entries are missing.
        inputs: (T, U) beside an array of emissions, or None.
        folder: for results, and for going on; None keeps neither. Of an iterator, whose length nobody knows, there are no
            results on disk.
        block_size: steps of a block of an array; default some hundred thousand of a small model.
        implementation: as `fastscan.lgssm` has it. Blocks are one series to the bit where each goes "sequential".
        progress: show a bar, which wants the package rich; None shows one where that is installed.

    Returns:
        The log-likelihood and the moments.

    Raises:
        TypeError: blocks that are no arrays of numbers.
        ValueError: parameters that vary, shapes, with the number of a block; a folder that holds another stream.
        ImportError: ``progress=True`` without rich.
    """
    work = _prepared("filter", params, emissions, inputs, folder, block_size, implementation, progress)
    return _filtered(work, results=folder is not None and work.blocks.T is not None, states=False)


def smooth_stream(
    params: ParamsLGSSM,
    emissions: Any,
    inputs: Any = None,
    *,
    folder: str | Path,
    block_size: int | None = None,
    implementation: str | None = None,
    progress: bool | None = None,
) -> StreamedSmoother:
    """Computes smoothed moments of a series that memory may not hold, by a pass forward, which keeps one state a block, and one
    back.

    Arguments and errors are those of `filter_stream`; emissions are read twice, so no iterator.

    Returns:
        The log-likelihood and the moments.
    """
    if folder is None:
        raise TypeError("folder: None given, wanted a path for smoothed moments.")
    work = _prepared("smoother", params, emissions, inputs, folder, block_size, implementation, progress)
    _refuse_iterators(work)
    found, blocks, journal = _filtered(work), work.blocks, work.journal
    total, T, state = blocks.count or 0, blocks.T or 0, found.final_state
    done = int(journal.numbers.get("smoothed_blocks", 0))
    after = (
        None if not 0 < done < total else GaussianState(*(jnp.asarray(journal.numbers[n]) for n in ("after_mean", "after_cov")))
    )
    for k in _bar(range(total - done - 1, -1, -1), "smoothing", total, work.progress):
        start, *_ = block = blocks.read(k)
        y, u, missing = work.given(block)
        moments, before = smooth_piece(work.params, y, u, work.state(k), after, missing, work.implementation)
        for name, x in zip(_SMOOTHED, moments, strict=True):
            journal.put(name, T, start, x)
        kept = {} if before is None else {"after_mean": before.mean, "after_cov": before.cov}
        journal.write(smoothed_blocks=total - k, **kept)
        after = before
    return StreamedSmoother(found.marginal_loglik, *map(journal.array, _SMOOTHED, (T, T), state))


def value_and_grad_stream(
    params: ParamsLGSSM,
    emissions: Any,
    inputs: Any = None,
    *,
    folder: str | Path | None = None,
    block_size: int | None = None,
    implementation: str | None = None,
    progress: bool | None = None,
) -> tuple[float, Any]:
    """Computes the log-likelihood of a series that memory may not hold, and its derivatives, by a pass forward and one back.

    Arguments and errors are those of `filter_stream`; emissions are read twice, so no iterator.

    Returns:
        The log-likelihood, a float, and derivatives in the form of the parameters, of blocks' added in double precision; those
        with respect to covariances are symmetric.
    """
    work = _prepared("gradient", params, emissions, inputs, folder, block_size, implementation, progress)
    _refuse_iterators(work)
    found, blocks, journal = _filtered(work), work.blocks, work.journal
    leaves, tree = jax.tree.flatten(work.params)
    total, done = blocks.count or 0, int(journal.numbers.get("differentiated_blocks", 0))
    sums = [journal.numbers.get(f"sum_{i}", np.zeros(np.shape(x))) for i, x in enumerate(leaves)]
    change = jax.tree.map(jnp.zeros_like, found.final_state)
    if 0 < done < total:
        change = GaussianState(*(jnp.asarray(journal.numbers[n]) for n in ("change_mean", "change_cov")))
    for k in _bar(range(total - done - 1, -1, -1), "differentiating", total, work.progress):
        y, u, missing = work.given(blocks.read(k))
        of_params, change = pull_piece(work.params, y, u, work.state(k), change, missing, work.implementation)
        sums = [s + np.asarray(x, np.float64) for s, x in zip(sums, jax.tree.leaves(of_params), strict=True)]
        kept = {} if change is None else {"change_mean": change.mean, "change_cov": change.cov}
        journal.write(differentiated_blocks=total - k, **kept, **{f"sum_{i}": x for i, x in enumerate(sums)})
    gradients = jax.tree.unflatten(tree, [np.asarray(s, x.dtype) for s, x in zip(sums, leaves, strict=True)])
    parts = (part._replace(cov=(part.cov + part.cov.T) / 2) if part.cov.ndim == 2 else part for part in gradients)
    return found.marginal_loglik, type(gradients)(*parts)


def _prepared(
    kind: str,
    params: Any,
    emissions: Any,
    inputs: Any,
    folder: Any,
    size: Any,
    implementation: str | None,
    progress: bool | None,
) -> _Work:
    """Checks what is given, and opens the folder."""
    if progress and importlib.util.find_spec("rich") is None:
        raise ImportError("progress: True given, which needs rich: pip install 'fastscan[learn]'")
    for part in (params.initial, params.dynamics, params.emissions):
        if any(callable(x) or isinstance(x, Regimes) for x in part):
            raise ValueError("params: functions of t, or Regimes, given; streams want a model that does not vary in time.")
    params = plain_params(params, 1)
    D, m = jnp.shape(params.dynamics.weights)[-1], jnp.shape(params.emissions.weights)[-2]
    blocks = Blocks(emissions, inputs, m, default_size(D, m) if size is None else count("block_size", size))
    given = [emissions] if blocks.whole else emissions if blocks.again else []
    dtypes = [x.dtype for x in (params.initial.mean, params.dynamics.weights, params.emissions.weights)]
    dtype = promoted(jax.dtypes.canonicalize_dtype(d) for d in (*dtypes, *(np.asarray(x[:0]).dtype for x in given)))
    model, _ = check_model(params, 2, None, dtype, None if inputs is None else np.zeros((2, np.shape(inputs)[-1])))
    varying = [name for name, x in model._asdict().items() if name != "u" and x is not None and x.shape[1] > 1]
    if varying:
        raise ValueError(f"params: {', '.join(varying)} vary in time given; streams want a model that does not.")
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    identity = (
        kind,
        params,
        -1 if blocks.T is None else blocks.T,
        blocks.size if blocks.whole else 0,
        blocks.lengths,
        implementation or "",
    )
    return _Work(params, blocks, Journal(None if folder is None else Path(folder), *identity), dtype, implementation, progress)


def _refuse_iterators(work: _Work) -> None:
    if not work.blocks.again:
        raise ValueError("emissions: an iterator given, wanted an array or a list of blocks, for two passes.")


def _filtered(work: _Work, *, results: bool = False, states: bool = True) -> StreamedFilter:
    """Runs the filter over all blocks that it has not run over, and keeps the states after each, or after the last alone; and
    moments, if they are to be results.

    Raises:
        ValueError: data that are not those that were filtered before.
    """
    blocks, journal = work.blocks, work.journal
    done, loglik = int(journal.numbers.get("blocks", 0)), float(journal.numbers.get("loglik", 0.0))
    seen = list(journal.numbers.get("digests", []))
    total = None if blocks.count is None else blocks.count - max(done - 2, 0)
    for k, block in _bar(blocks.numbered(done), "filtering", total, work.progress):
        digest = digest_of(*(x for x in block[1:] if x is not None))
        if k < done:
            if digest != seen[k]:
                raise ValueError(f"folder: block {k} of emissions or inputs is another than when its stream was begun.")
            continue
        y, u, missing = work.given(block)
        options = {"initial_state": work.state(k), "missing": missing, "implementation": work.implementation}
        posterior = lgssm_filter(work.params, y, u, **options)
        if results:
            for name in _FILTERED:
                journal.put(name, blocks.T or 0, block[0], getattr(posterior, name))
        loglik += float(posterior.marginal_loglik)
        seen.append(digest)
        kept = {n: x[None] for n, x in zip(("means", "covs"), map(np.asarray, posterior.final_state), strict=True)}
        if states and k:
            kept = {n: np.concatenate([journal.numbers[n], x]) for n, x in kept.items()}
        journal.write(blocks=k + 1, loglik=loglik, digests=np.array(seen), **kept)
    if "means" not in journal.numbers:
        raise ShapeError("emissions: no blocks given, wanted at least one.")
    final = GaussianState(*(jnp.asarray(journal.numbers[n][-1]) for n in ("means", "covs")))
    if not results:
        return StreamedFilter(loglik, final, None, None)
    return StreamedFilter(loglik, final, *map(journal.array, _FILTERED, (blocks.T or 0,) * 2, final))


_FILTERED, _SMOOTHED = (tuple(f"{kind}_{name}" for name in ("means", "covariances")) for kind in ("filtered", "smoothed"))
"""Names of results, and of their files."""


def _bar(blocks: Iterable[Any], what: str, total: int | None, progress: bool | None) -> Iterator[Any]:
    """Iterates with a bar, if there is to be one."""
    show: Callable[..., Any] | None = None
    with contextlib.suppress(ImportError):
        from rich.progress import track as show
    if progress is False or show is None:
        yield from blocks
    else:
        yield from show(blocks, what, total)
