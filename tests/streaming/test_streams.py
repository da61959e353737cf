"""Streams are the series at once, block by block; one that was killed goes on where it was."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import fastscan as fs
from fastscan.streaming import filter_stream, smooth_stream, value_and_grad_stream
from oracles.lgssm import random_params, simulate

T, D, M = 50, 3, 2
QUIET = {"progress": False}


def case(inputs=False):
    params, y = random_params(0, D, M), simulate(random_params(0, D, M), T, 0)
    y[5:9] = y[20, 0] = np.nan
    if not inputs:
        return params, y, None
    r = np.random.default_rng(0)
    return params._replace(dynamics=params.dynamics._replace(input_weights=r.normal(size=(D, 2)))), y, r.normal(size=(T, 2))


def on_disk(folder, x):
    np.save(folder / "y.npy", x)
    return np.load(folder / "y.npy", mmap_mode="r")


@pytest.mark.parametrize("block_size", [1, 16, 49, 50, None])
@pytest.mark.parametrize("inputs", [False, True])
def test_an_array(tmp_path, inputs, block_size):
    params, y, u = case(inputs)
    y = on_disk(tmp_path, y)
    options = {"block_size": block_size, "progress": False}
    whole = fs.lgssm_smoother(params, y, u)
    found = filter_stream(params, y, u, folder=tmp_path / "filter", **options)
    np.testing.assert_allclose(found.marginal_loglik, whole.marginal_loglik, rtol=1e-10)
    np.testing.assert_allclose(found.filtered_means, whole.filtered_means, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.filtered_covariances, whole.filtered_covariances, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.final_state.mean, whole.final_state.mean, rtol=1e-8)
    smoothed = smooth_stream(params, y, u, folder=tmp_path / "smoother", **options)
    np.testing.assert_allclose(smoothed.smoothed_means, whole.smoothed_means, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(smoothed.smoothed_covariances, whole.smoothed_covariances, rtol=1e-7, atol=1e-9)
    if block_size in (16, 50):
        value, gradients = value_and_grad_stream(params, y, u, **options)
        wanted = jax.grad(lambda p: fs.lgssm_marginal_loglik(p, y, u))(jax.tree.map(np.asarray, params))
        np.testing.assert_allclose(value, whole.marginal_loglik, rtol=1e-10)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8), gradients, wanted)


def test_a_list_and_an_iterator(tmp_path):
    params, y, _ = case()
    blocks = [y[:7], y[7:8], y[8:40], y[40:]]
    whole = fs.lgssm_smoother(params, y)
    for given in (blocks, iter(blocks), (x for x in blocks)):
        found = filter_stream(params, given, **QUIET)
        np.testing.assert_allclose(found.marginal_loglik, whole.marginal_loglik, rtol=1e-10)
        assert found.filtered_means is None
    smoothed = smooth_stream(params, blocks, folder=tmp_path, **QUIET)
    np.testing.assert_allclose(smoothed.smoothed_means, whole.smoothed_means, rtol=1e-7, atol=1e-9)
    for function in (smooth_stream, value_and_grad_stream):
        with pytest.raises(ValueError, match=r"emissions: an iterator given.*two passes"):
            function(params, iter(blocks), folder=tmp_path / function.__name__, **QUIET)
    for n in (2, 4, 4):  # it goes on where it was, past the blocks that it has seen
        found = filter_stream(params, iter(blocks[:n]), folder=tmp_path / "iterator", **QUIET)
    np.testing.assert_allclose(found.marginal_loglik, whole.marginal_loglik, rtol=1e-10)
    assert found.filtered_means is None


class EndedError(Exception):
    pass


class Ending(list):
    """Blocks, of which one ends the program when it is read for the n-th time."""

    def __init__(self, blocks, n):
        super().__init__(blocks)
        self.left, self.read = n, []

    def __getitem__(self, k):
        self.left -= 1
        if not self.left:
            raise EndedError
        self.read.append(k)
        return super().__getitem__(k)


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("function", [filter_stream, smooth_stream, value_and_grad_stream])
def test_going_on(tmp_path, function, n):
    """Results are those of a stream that was not ended, and no block is read again that was done."""
    params, y, _ = case()
    blocks = [y[:10], y[10:25], y[25:40], y[40:]]
    wanted = function(params, blocks, folder=tmp_path / "whole", **QUIET)
    ending = Ending(blocks, n)
    try:
        function(params, ending, folder=tmp_path / "ended", **QUIET)
    except EndedError:
        assert n <= len(ending.read) + 1
    again = Ending(blocks, 0)
    found = function(params, again, folder=tmp_path / "ended", **QUIET)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), found, wanted)
    passes = 1 if function is filter_stream else 2
    assert (
        4 * passes <= len(ending.read) + len(again.read) <= 4 * passes + 2
    )  # two at most are read to see that they are the same
    done = Ending(blocks, 0)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b), function(params, done, folder=tmp_path / "ended", **QUIET), wanted
    )


@pytest.mark.parametrize("function", [smooth_stream, value_and_grad_stream])
def test_a_stream_of_one_block_is_asked_for_again(tmp_path, function):
    params, y, _ = case()
    first, second = (function(params, y, folder=tmp_path, **QUIET) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_other_data_in_the_folder(tmp_path):
    """Are told from those that the stream was begun with: emissions, inputs, and where a list's blocks end."""
    params, y, u = case(inputs=True)
    filter_stream(params, y, u, folder=tmp_path / "a", block_size=20, **QUIET)
    for other in ((y + 1, u), (y, u + 1)):
        with pytest.raises(ValueError, match="block 0 of emissions or inputs is another"):
            filter_stream(params, *other, folder=tmp_path / "a", block_size=20, **QUIET)
    params, y, _ = case()
    filter_stream(params, [y[:20], y[20:]], folder=tmp_path / "b", **QUIET)
    with pytest.raises(ValueError, match="holds a stream of other lengths"):
        filter_stream(params, [y[:30], y[30:]], folder=tmp_path / "b", **QUIET)
    blocks = iter([y[:20], y[20:30], y[30:]])
    filter_stream(params, [y[:20]], **QUIET)
    filter_stream(params, (next(blocks) for _ in range(2)), folder=tmp_path / "c", **QUIET)
    with pytest.raises(ValueError, match="block 0 of emissions or inputs is another"):
        filter_stream(params, blocks, folder=tmp_path / "c", **QUIET)
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "filtered_means.npy", y)
    with pytest.raises(ValueError, match=r"holds filtered_means.npy of no stream"):
        filter_stream(params, y, folder=tmp_path / "d", **QUIET)


def test_masked_entries_are_missing():
    params, y, _ = case()
    masked = np.ma.masked_array(np.where(np.isnan(y), 1e3, y), mask=np.isnan(y))
    for given in (masked, [masked[:20], masked[20:]]):
        found = filter_stream(params, given, block_size=20, **QUIET)
        np.testing.assert_allclose(found.marginal_loglik, fs.lgssm_marginal_loglik(params, y), rtol=1e-10)


KILLED = """
import sys, time
import numpy as np
from fastscan.streaming import smooth_stream, blocks
sys.path[:0] = [{tests!r}]
from oracles.lgssm import random_params
read = blocks.Blocks.read
def slowly(self, k):
    print(k, flush=True)
    time.sleep(0.2)
    return read(self, k)
blocks.Blocks.read = slowly
y = np.load({path!r}, mmap_mode="r")
smooth_stream(random_params(0, 3, 2), y, folder={folder!r}, block_size=5, progress=False)
"""


def test_a_process_that_is_killed(tmp_path):
    """In the pass back, by a signal that leaves no time to clean up."""
    params, y, _ = case()
    on_disk(tmp_path, y)
    tests = os.path.dirname(os.path.dirname(__file__))
    code = KILLED.format(tests=tests, path=str(tmp_path / "y.npy"), folder=str(tmp_path / "out"))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(15)]  # ten blocks forward, then back
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert [int(x) for x in seen] == [*range(10), 9, 8, 7, 6, 5]
    found = smooth_stream(params, np.load(tmp_path / "y.npy", mmap_mode="r"), folder=tmp_path / "out", block_size=5, **QUIET)
    np.testing.assert_allclose(found.smoothed_means, fs.lgssm_smoother(params, y).smoothed_means, rtol=1e-7, atol=1e-9)


def test_a_block_of_another_shape_is_named():
    params, y, _ = case()
    for given in ([y[:5], y[5:9, :1]], iter([y[:5], y[5:9, :1]])):
        with pytest.raises(ValueError, match=r"emissions, block 1: shape \(4, 1\) given, wanted \(n, 2\)"):
            filter_stream(params, given, **QUIET)
    with pytest.raises(TypeError, match="emissions, block 1"):
        filter_stream(params, [y[:5], None], **QUIET)
    with pytest.raises(ValueError, match=r"emissions, block 0: shape \(0, 2\)"):
        filter_stream(params, [y[:0]], **QUIET)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"emissions": np.zeros((5, 3))}, r"emissions: shape \(5, 3\) given, wanted \(T, 2\)"),
        ({"emissions": []}, "no blocks given"),
        ({"emissions": iter([])}, "no blocks given"),
        ({"inputs": np.zeros((4, 2))}, r"inputs: shape \(4, 2\)"),
        ({"block_size": 0}, "block_size: 0"),
    ],
)
def test_bad_input(change, words):
    params, y, _ = case()
    with pytest.raises(ValueError, match=words):
        filter_stream(params, **({"emissions": y, "inputs": None} | change), **QUIET)


def test_other_work_in_the_folder_and_varying_models(tmp_path):
    params, y, _ = case()
    filter_stream(params, y, folder=tmp_path, **QUIET)
    other = params._replace(initial=params.initial._replace(mean=np.ones(D)))
    with pytest.raises(ValueError, match=r"folder: .* holds a stream of other lengths, parameters"):
        filter_stream(other, y, folder=tmp_path, **QUIET)
    varying = params._replace(dynamics=params.dynamics._replace(weights=np.zeros((2, D, D))))
    with pytest.raises(ValueError, match="F vary in time"):
        filter_stream(varying, y, **QUIET)
    switching = params._replace(dynamics=params.dynamics._replace(weights=fs.Regimes(np.zeros((2, D, D)), np.zeros(T, int))))
    with pytest.raises(ValueError, match="functions of t, or Regimes"):
        filter_stream(switching, y, **QUIET)
    with pytest.raises(TypeError, match="folder: None"):
        smooth_stream(params, y, folder=None, **QUIET)


def test_single_precision_and_a_bar(capsys):
    params, y, _ = jax.tree.map(lambda x: np.asarray(x, "float32"), case())
    found = filter_stream(params, y, block_size=20, progress=True)
    assert found.final_state.mean.dtype == np.float32
    assert "filtering" in capsys.readouterr().out
    np.testing.assert_allclose(found.marginal_loglik, fs.lgssm_marginal_loglik(params, y), rtol=1e-5)
