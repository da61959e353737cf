"""First calls: parts of the whole, in a process of their own, and the text of their programs."""

import csv
import json

import pytest

from fastscan.profiling.compiled import first_calls
from fastscan.profiling.compiled.first_calls import COMPLETE, WAYS, FirstCall, count_text, from_cold_start, run_first_calls
from fastscan.profiling.measure.cases import Case
from fastscan.profiling.report.first_call_table import first_call_table

CASE = Case("hmm_filter", 2, 0, 3)
HLO = """\
%fused (a: f32[2]) -> f32[2] {
  ROOT %x = f32[2] add(%a, %a), metadata={op_name="jit(f)/sweep_forward/while/body/add"}
}
ENTRY %main (a: f32[2]) -> f32[2] {
  %y = f32[2] fusion(%a), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/sweep_forward/while/body/add"}
  %z = f32[2] call(%y), to_apply=%g, metadata={op_name="jit(f)/summarise/jit(g)"}
  ROOT %w = f32[2] while(%z), condition=%c, body=%b
}
"""


def test_text_is_counted_by_kind_and_phase():
    assert count_text(HLO) == (8, 1, 1, 1, {"sweep_forward": 2, "summarise": 1})


@pytest.mark.parametrize("way", WAYS)
def test_parts_of_a_first_call_are_no_more_than_the_whole(way):
    found = from_cold_start(CASE, way)
    assert (found.case, found.way) == (str(CASE), way)
    assert 0 < found.lowering + found.compiling + found.running < found.total
    assert found.tracing == pytest.approx(found.total - found.lowering - found.compiling - found.running)
    for part in (found.passes, found.emission, found.codegen):
        assert part is None or 0 < part < found.compiling
    assert found.running < 0.5 * found.total  # compiled once
    assert (found.lines is None) == (way == "called")


def test_what_fails_says_so():
    with pytest.raises(RuntimeError, match=r"lgssm_smoother_with_gaps .*dynamax has no such function"):
        from_cold_start(Case("lgssm_smoother_with_gaps", 1, 1, 3), "dynamax, in jit")


def test_the_median_process_counts_and_is_written_down(tmp_path, monkeypatch, capsys):
    totals = iter([3.0, 1.0, 9.0, 2.0, 0.5, 8.0, 1.0, 2.0, 0.5])  # in turns: called, in jit, dynamax
    monkeypatch.setattr(first_calls, "CASES", (CASE, Case("lgssm_filter", 1, 1, 3)))
    monkeypatch.setattr(first_calls, "from_cold_start", lambda case, way: FirstCall(str(case), way, next(totals), *[0.1] * 6))
    found = run_first_calls(tmp_path, "hmm", repeats=3)
    assert [call.total for call in found] == [2.0, 1.0, 8.0]
    (path,) = tmp_path.glob("*.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert COMPLETE not in {row["way"] for row in rows}  # a hidden Markov model
    assert [(row["way"], float(row["total"])) for row in rows] == [("called", 2.0), ("in jit", 1.0), ("dynamax, in jit", 8.0)]
    assert json.loads(path.with_suffix(".json").read_text())["repeats"] == 3
    assert "0.1" in capsys.readouterr().out  # of dynamax's eight seconds


def test_the_table_compares_within_records(tmp_path):
    for stamp, commit, ours in (("2026-01-01-0900", "old", 6.0), ("2026-01-01-1000", "new", 3.0)):
        rows = [("lgssm_filter D=1 float32", way, total) for way, total in (("called", ours), ("dynamax, in jit", 2.0))]
        rows += [("only in the new one", "dynamax, in jit", 1.0)] if commit == "new" else []
        path = tmp_path / f"{stamp}-first-calls.csv"
        path.write_text("case,way,total\n" + "".join(f'{case},"{way}",{total}\n' for case, way, total in rows))
        about = {"machine": "here", "versions": {"jax": "1"}, "date": "2026-01-01", "commit": commit, "repeats": 3}
        path.with_suffix(".json").write_text(json.dumps(about))
    table = first_call_table(tmp_path)
    assert "here, jax 1, 2026-01-01, commit new; median of 3 processes." in table
    assert "| lgssm_filter D=1 | 2.00 s | 1.50 | - | 3.00 |" in table
    assert "| only in the new one | 1.00 s | - | - | - |" in table
    assert first_call_table(tmp_path / "none") == "Not measured yet."
