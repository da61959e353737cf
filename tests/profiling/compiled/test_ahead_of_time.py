"""What is read off optimised HLO. Compiling it takes the CUDA plugin: see the module's docstring."""

from fastscan.profiling.compiled import ahead_of_time

HLO = """
HloModule jit_f, is_scheduled=true

%fused_slice (p.1: f32[100,4]) -> f32[99,4] {
  %p.1 = f32[100,4]{1,0} parameter(0)
  %bitcast.1 = f32[1,100,4]{2,1,0} bitcast(%p.1)
  %slice.1 = f32[1,99,4]{2,1,0} slice(%bitcast.1), slice={[0:1], [1:100], [0:4]}
  ROOT %bitcast.2 = f32[99,4]{1,0} bitcast(%slice.1)
}

%fused_update (p.2: f32[100,4], p.3: f32[1,4]) -> f32[100,4] {
  %p.2 = f32[100,4]{1,0} parameter(0)
  %p.3 = f32[1,4]{1,0} parameter(1)
  %zero = s32[] constant(0)
  ROOT %update = f32[100,4]{1,0} dynamic-update-slice(%p.2, %p.3, %zero, %zero)
}

%turn (t: (s32[], f32[100,4])) -> (s32[], f32[100,4]) {
  %t = (s32[], f32[100,4]{1,0}) parameter(0)
  %x = f32[100,4]{1,0} get-tuple-element(%t), index=1
  %copy.1 = f32[100,4]{1,0} copy(%x), metadata={op_name="jit(f)/while/body"}
  %kernel.1 = f32[100,4]{1,0} custom-call(%copy.1), custom_call_target="__gpu$xla.gpu.triton", backend_config={name = "k"}
}

%again (t.1: (s32[], f32[100,4])) -> (s32[], f32[100,4]) {
  %t.1 = (s32[], f32[100,4]{1,0}) parameter(0)
  %kernel.2 = f32[100,4]{1,0} custom-call(%t.1), custom_call_target="__gpu$xla.gpu.triton"
}

%more (t.2: (s32[], f32[100,4])) -> pred[] {
  %t.2 = (s32[], f32[100,4]{1,0}) parameter(0)
}

ENTRY %main.1 (a.1: f32[100,4], b.1: f32[1,4]) -> f32[100,4] {
  %a.1 = f32[100,4]{1,0} parameter(0)
  %b.1 = f32[1,4]{1,0} parameter(1)
  %fusion.1 = f32[99,4]{1,0} fusion(%a.1), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(f)/slice"}
  %fusion-start.2 = ((f32[100,4]{1,0}), f32[100,4]{1,0}) fusion-start(%a.1, %b.1), kind=kLoop, calls=%fused_update
  %fusion-done.2 = f32[100,4]{1,0} fusion-done(%fusion-start.2)
  %tuple.1 = (s32[], f32[100,4]{1,0}) tuple(%a.1)
  %while.1 = (s32[], f32[100,4]{1,0}) while(%tuple.1), condition=%more, body=%turn, config={"known_trip_count":{"n":"7"}}
  %while.2 = (s32[], f32[100,4]{1,0}) while(%while.1), condition=%more, body=%again
  %kernel.3 = (f32[100,4]{1,0}, /*index=1*/f32[1]{0}) custom-call(%fusion.1), custom_call_target="__gpu$xla.gpu.triton"
  ROOT %transpose.1 = f32[4,100]{1,0} transpose(%a.1), dimensions={1,0}
}
"""


def test_launches_of_a_program_are_counted():
    found = ahead_of_time.count(HLO)
    assert (found.kernels, found.loops, found.waits) == (7 + 1, 2, 1)
    assert {(p.name, p.opcode, p.times, p.bytes) for p in found.passes} == {
        ("fusion.1", "fusion", 1, 2 * 4 * 99 * 4),  # what it slices, and what it writes
        ("fusion-start.2", "fusion-start", 1, 2 * 16),  # a row read, and written in place
        ("copy.1", "copy", 7, 2 * 1600),
        ("transpose.1", "transpose", 1, 2 * 1600),
    }
    assert {p.source for p in found.passes} == {"jit(f)/slice", "", "jit(f)/while/body"}


THUNKS = """
000: kCommandBuffer [source       | next=043 (1)]
    001: kCustomKernel [source       | next=002 (1)] wrapped_dot grid: [1, 1, 1] threads: [16, 1, 1]
    002: kCopy         [prev=001 (1) | next=003 (1)] kCopy
003: kWhile         [prev=000 (1) | next=000 (1)]
condition:
    004: kCustomKernel [source | sink] input_reduce_fusion grid: [1, 1, 1] threads: [64, 1, 1]
  body:
    000: kCommandBuffer [source | sink]
        005: kCustomKernel [prev=045 (1) | next=047 (1)] kalman_filter_sweep grid: [184, 1, 1]
006: kCustomKernel [source | sink] loop_fusion grid: [1, 1, 1] threads: [64, 1, 1]
"""


def test_launches_outside_of_graphs_are_counted():
    assert ahead_of_time.count_graphs(THUNKS) == (2, 2)
    assert ahead_of_time.count_graphs("") == (0, 0)


def test_a_record_is_read_as_it_was_written(tmp_path, monkeypatch):
    def compiled(call, device):
        if "lds" in call.name:
            raise NotImplementedError("no rule\nand more")
        row = ahead_of_time.CompiledProgram(call.name, device, 1.5, 2.5, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
        return row, [ahead_of_time.Pass("copy.1", "copy", 2, 1 << 20, "")], "HLO"

    monkeypatch.setattr(ahead_of_time, "compiled", compiled)
    ahead_of_time.run_ahead_of_time(tmp_path / "ahead-of-time", "T=100,000", ["NVIDIA H200"], tmp_path / "hlo")
    path = ahead_of_time.newest_record(tmp_path)
    assert path is not None
    rows = ahead_of_time.read_rows(path)
    good = next(row for row in rows if "smoother" in row.call)
    assert good == ahead_of_time.CompiledProgram(good.call, "NVIDIA H200", 1.5, 2.5, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    assert [(row.compile_seconds, row.error) for row in rows if "lds" in row.call] == [(None, "NotImplementedError: no rule")]
    assert (tmp_path / "hlo" / "lgssm_smoother_D_4_m_2_T_100_000_float32.hlo").read_text() == "HLO"
    assert "copy.1" in path.with_suffix(".json").read_text()
