"""The model of time: its counts are held against machine code and plans, its times against properties. None is measured."""

import csv

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastscan.kernels.gpu.sectors import tiles
from fastscan.profiling.compiled import ahead_of_time, latency, predict, predictions, public_calls
from fastscan.profiling.compiled.kernel_report import program
from fastscan.profiling.compiled.machine_code import Code, TritonKernel, examine, lower_for_gpu, triton_kernels
from fastscan.profiling.measure.cases import Case

H100, H200 = predict.CARDS
WALK = latency.WarpTime(cycles=800.0, chain=300.0, busy=500.0, busiest="issue")


@pytest.mark.parametrize(
    ("entries", "itemsize", "stored", "loaded"),
    [
        (16, 4, 2, 2),
        (4, 4, 1, 0.5),
        (2, 4, 1, 0.25),
        (1, 4, 1, 0.125),
        (5, 4, 1.5, 0.625),  # 20 bytes, which four of eight times cross from one sector to the next
        (9, 4, 1.875 + 1, 1.125),
        (6, 4, 1.5, 0.75),
        (2, 8, 1, 0.5),
    ],
)
def test_sectors_of_a_record(entries, itemsize, stored, loaded):
    assert predict.sectors(entries, itemsize, store=True) == stored
    assert predict.sectors(entries, itemsize, store=False) == loaded


@given(st.integers(1, 64), st.sampled_from([4, 8]))
def test_stores_touch_no_fewer_sectors_than_they_fill(entries, itemsize):
    stored = predict.sectors(entries, itemsize, store=True)
    assert entries * itemsize / 32 <= stored <= 2 * entries
    pieces = [(4 * start, 4 * min(width, entries - start)) for start, width in tiles(entries, "float32", past_the_end=True)]
    addresses = [range(4 * entries * r + at, 4 * entries * r + at + length) for r in range(64) for at, length in pieces]
    if itemsize == 4:
        assert stored == sum(len({byte // 32 for byte in piece}) for piece in addresses) / 64


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([4, 16, 32, 64]), st.integers(1, 2_000))
def test_more_warps_or_more_steps_never_take_less(warps, more, active, passes):
    few, many = (predict.seconds(active, (WALK, WALK), passes, n, H100) for n in (warps, warps + more))
    longer = predict.seconds(active, (WALK, WALK), passes + 1, warps, H100)
    crowded = predict.seconds(4, (WALK, WALK), passes, warps, H100)
    assert all(a <= b for a, b in zip(few, many, strict=True))
    assert all(a < b for a, b in zip(few, longer, strict=True))
    assert crowded[1] >= few[1]  # fewer warps at a time
    assert few[0] == pytest.approx(-(-warps // 528) * passes * 500 / 1.98e9)


def test_chunks_of_half_the_length_take_half_the_latency_while_schedulers_are_free():
    whole, half = (predict.seconds(32, (WALK, WALK), passes, warps, H100) for passes, warps in ((32, 264), (16, 528)))
    assert half[1] == pytest.approx(whole[1] / 2)
    full, over = (predict.seconds(32, (WALK, WALK), passes, warps, H100) for passes, warps in ((8, 5280), (4, 10_560)))
    assert over[0] == pytest.approx(full[0])  # all are busy: the same work


def test_the_ladder_of_a_plan():
    case = Case("lgssm_smoother", 1, 1, 10_000)
    found, waits = predict.launches(public_calls.of_case(case))
    plan = case.choice(None, device=H100.name).plan
    steps, levels = plan.chunks, []
    while steps > plan.launch.group:
        levels.append(steps)
        steps = -(-steps // plan.launch.group)
    names = [one.name for one in found]
    assert len(levels) > 1
    assert names.count("kalman_filter_summaries_summarise") == len(levels)
    assert names.count("kalman_filter_summaries_sweep") == names.count("kalman_filter_hindsight_sweep") == len(levels) + 1
    assert waits == 2  # a sweep's seams, forward and back
    sweep = next(one for one in found if one.name == "kalman_filter_sweep")
    assert sweep.steps == plan.length
    assert sweep.grid == -(-plan.chunks // 32)
    assert sum(rows * entries * size for rows, entries, size in sweep.writes) >= 4 * 3 * plan.steps


def test_a_loop_of_launches_counts_its_turns():
    found, waits = predict.launches(public_calls.of_case(Case("metropolis_moments", 1, 0, 5_000, 64)))
    assert [(one.name, one.times, one.steps) for one in found] == [
        ("metropolis", 4, 1_024),
        ("metropolis", 1, 5_000 - 4 * 1_024),
    ]
    assert waits == 0


def test_the_machine_code_stores_what_the_model_counts():
    pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")
    function, arguments = program("smoother", 3, 1)
    kernels = triton_kernels(lower_for_gpu(function, *arguments))
    kernel = next(kernel for kernel in kernels if kernel.name == "kalman_filter_sweep")
    cost, code, loop = examine(kernel, 90)
    assert code.bytes(loop, "STG") / cost.loop_step_ratio == 4 * (4 + 8 + 1 + 1)  # mean, a mask, covariance, log density
    assert any(code.lines[i][0][0] == "STS" for i in loop)  # unaligned, so through shared memory


def test_a_kernel_that_cannot_be_read_is_taken_for_the_widest_of_its_name(monkeypatch):
    narrow, wide, other = (
        TritonKernel(name, f"{name} {grid}", 1, 1, (grid, 1, 1), ((grid, 5),)) for name, grid in (("a", 1), ("a", 9), ("b", 10))
    )
    read = []

    def examined(kernel, _):
        read.append(kernel.grid[0])
        if kernel is narrow:
            raise ValueError("cannot be told")
        return "cost", Code("        /*0000*/                   EXIT ;"), set()

    monkeypatch.setattr(predict, "examine", examined)
    launched = predict.Launched("a", 1, 8, 1, ((1, 5, 4),), (), ((1, 5),))
    candidates = predict._candidates(launched, [other, wide, narrow])
    assert candidates == [narrow, wide]
    compile_once = predict.Compiler()
    assert compile_once(candidates).cost == compile_once(candidates).cost == "cost"
    assert read == [1, 9]  # each once
    with pytest.raises(ValueError, match="a: its loop"):
        compile_once([narrow])


def test_predictions_add_up_and_are_written_down(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="Triton's compiler, which pip has for Linux only")
    toy = public_calls.of_case(Case("lgssm_marginal_loglik", 1, 1, 200))
    bad = public_calls.PublicCall("bad", lambda: 1 / 0, ())
    monkeypatch.setattr(predictions, "public_calls", lambda: [bad, toy])
    counted = ahead_of_time.CompiledProgram(toy.name, H100.name, 1.0, 1.0, 9, 5, 2, 1, 1, 1, 1, 0, 4_000, 0)
    (tmp_path / "ahead-of-time").mkdir()
    with (tmp_path / "ahead-of-time" / "2026-01-01.csv").open("w", newline="") as file:
        csv.writer(file).writerows([ahead_of_time.CompiledProgram._fields, counted])
    rows = predictions.run_predict(tmp_path / "predictions", tmp_path, "")
    (path,) = tmp_path.rglob("*-predictions.csv")
    assert len(path.read_text().splitlines()) == 1 + len(rows)
    assert "not measured" in path.with_suffix(".json").read_text()
    for card in predict.CARDS:
        mine = {row.part: row for row in rows if row.card == card.name}
        kernels = [row for row in rows if row.card == card.name and row.registers]
        assert mine["XLA"].launches == 8
        assert mine["launches, least"].launches == 8 + sum(row.launches for row in kernels)
        parts = [*kernels, mine["XLA"], mine["launches, least"], mine["waits, least"]]
        assert mine["all, least"].us == pytest.approx(sum(row.us for row in parts))
        assert mine["all, least"].us < mine["all, most"].us
        assert all(row.us == max(row.issue_us, row.latency_us, row.memory_us, row.cache_us) > 0 for row in kernels)
    read = predictions.read_predictions(tmp_path, H100.name)
    assert read.keys() == {toy.name}
    least, most = read[toy.name]
    assert least == pytest.approx(1e-6 * next(r.us for r in rows if r.part == "all, least" and r.card == H100.name), rel=1e-3)
    assert least < most
    assert predictions.read_predictions(tmp_path / "nowhere", H100.name) == predictions.read_predictions(tmp_path, "cpu") == {}
