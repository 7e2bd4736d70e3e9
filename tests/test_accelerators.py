"""What `benchmarks.hlo` reads of compiled programs, and what `benchmarks.models.accelerators` says of them."""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo
from benchmarks.models import accelerators
from benchmarks.models.accelerators import Found, Program, Row, Target

#: As compilers for several GPUs and TPUs write it, by hand: 3 rounds of a loop, tiles in types, asynchronous gathers.
SPLIT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused (p.0: bf16[2,8,8,4], p.1: bf16[3,3,4,4], p.2: f32[4,4]) -> bf16[2,8,8,4] {
  %p.0 = bf16[2,8,8,4]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[3,3,4,4]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %p.2 = f32[4,4]{1,0:T(8,128)} parameter(2)
  %product = f32[4,4]{1,0:T(8,128)} convolution(%p.2, %p.2), dim_labels=bf_io->bf
  ROOT %conv = bf16[2,8,8,4]{3,2,1,0} convolution(%p.0, %p.1), window={size=3x3}, dim_labels=b01f_01io->b01f
}

%body (s: (s32[], f32[100])) -> (s32[], f32[100]) {
  %s = (s32[]{:T(128)}, f32[100]{0:T(128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = f32[100]{0:T(128)S(1)} get-tuple-element(%s), index=1
  %r = f32[100]{0:T(128)} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add, metadata={op_name="jit(step)/grad"}
  ROOT %t = (s32[]{:T(128)}, f32[100]{0:T(128)}) tuple(%i, %r)
}

%cond (s.1: (s32[], f32[100])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, f32[100]{0:T(128)}) parameter(0)
  ROOT %less = pred[]{:T(512)} constant(true)
}

ENTRY %main (x.1: f32[100], k: bf16[3,3,4,4], y: bf16[2,8,8,4], w: f32[4,4]) -> (f32[100], bf16[2,8,8,4]) {
  %x.1 = f32[100]{0:T(128)} parameter(0)
  %k = bf16[3,3,4,4]{3,2,1,0} parameter(1)
  %y = bf16[2,8,8,4]{3,2,1,0} parameter(2)
  %w = f32[4,4]{1,0} parameter(3)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[100]{0:T(128)}) tuple(%zero, %x.1)
  %loop = (s32[], f32[100]{0:T(128)}) while(%start), condition=%cond, body=%body, \
metadata={op_name="jit(step)/while"}, backend_config={"known_trip_count":{"n":"3"}}
  %gather-start = (bf16[2,8,8,4]{3,2,1,0}, bf16[4,8,8,4]{3,2,1,0}) all-gather-start(%y), dimensions={0}
  %fusion.1 = bf16[2,8,8,4]{3,2,1,0} fusion(%y, %k, %w), kind=kOutput, calls=%fused
  %gather-done = bf16[4,8,8,4]{3,2,1,0} all-gather-done(%gather-start), metadata={op_name="jit(step)/sort"}
  %wide = f32[2,8,8,4]{3,2,1,0} fusion(%gather-done), kind=kLoop, calls=%add
  %wide.1 = f32[3,3,4,4]{3,2,1,0} copy(%k)
  %conv.2 = (f32[2,8,8,4], u8[0]{0}) custom-call(f32[2,8,8,4]{3,2,1,0} %wide, f32[3,3,4,4]{3,2,1,0} %wide.1), \
custom_call_target="__cudnn$convForward"
  %out = f32[100]{0} get-tuple-element(%loop), index=1
  ROOT %result = (f32[100]{0}, bf16[2,8,8,4]{3,2,1,0}) tuple(%out, %fusion.1)
}
"""


def test_a_program_for_several_devices() -> None:
    found = hlo.contents(SPLIT)
    assert found.kernels == Counter({"fusion": 2, "all-gather": 1, "copy": 1, "__cudnn$convForward": 1})
    assert (found.launches, found.beside) == (5 + 3, 0)
    y, k, gathered = 2 * 8 * 8 * 4 * 2, 3 * 3 * 4 * 4 * 2, 4 * 8 * 8 * 4 * 2
    kernels = {"gather": y + y + gathered, "fusion.1": y + k + 64 + y, "wide": gathered + 2 * y, "wide.1": k + 2 * k}
    assert found.bytes == sum(kernels.values()) + 2 * y + 2 * k + 2 * y + 3 * 800
    assert found.loops == [hlo.Loop(3, 1, "jit(step)/while", 0)]
    assert found.collectives == [
        hlo.Collective("all-reduce", 3 * 400, "jit(step)/grad"),
        hlo.Collective("all-gather", gathered, "jit(step)/sort"),
    ]
    assert (found.moved(), found.moved("all-reduce")) == (1200 + gathered, 1200)
    # The product of matrices is none.
    assert found.convolutions == Counter({"bf16": 1, "f32": 1})
    assert found.callbacks == []


def test_a_loop_that_asks_all_devices_whether_to_go_on() -> None:
    less = "%less = pred[]{:T(512)} constant(true)"
    asked = "%less = pred[]{:T(512)} all-reduce(%mine), to_apply=%add"
    before, after = (hlo.contents(SPLIT.replace(less, condition)) for condition in (less, asked))
    new = [each for each in after.collectives if each not in before.collectives]
    assert new == [hlo.Collective("all-reduce", 3 * 1, "")]
    # It is known how often this one turns; of others the data decide.
    assert accelerators.waits_in_loops(after) == []
    (message,) = accelerators.waits_in_loops(hlo.contents(SPLIT.replace("known_trip_count", "unknown")))
    assert message.startswith("in 1 loops, whose length the data decide")
    assert "first in 'jit(step)/while'" in message


def test_kernels_beside_a_large_collective() -> None:
    text = SPLIT.replace("y: bf16[2,8,8,4]", "y: bf16[2,800,800,4]").replace("bf16[4,8,8,4]", "bf16[4,800,800,4]")
    assert hlo.contents(text).beside == 1


def test_a_program_of_this_machine() -> None:
    """With a loop of unknown length, in it one of a known length, and a call of the host."""

    def step(x: jax.Array) -> jax.Array:
        def turn(x: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, 5, lambda _, x: jnp.sin(x) * 2, x)

        jax.debug.callback(lambda _: None, x[0])
        return jax.lax.while_loop(lambda x: x.sum() < 9, turn, x)

    found = hlo.contents(jax.jit(step).lower(jnp.ones(8)).compile().as_text())
    assert [(each.rounds, each.depth) for each in found.loops] == [(None, 0), (5, 1)]
    assert found.launches == sum(found.kernels.values()) + found.loops[0].kernels + 5 * found.loops[1].kernels
    (name,) = found.callbacks
    (message,) = accelerators.calls_of_the_host(found)
    assert "callback" in name
    assert message.startswith(f"it calls the host ({name})")
    assert "leave out jax.debug.print" in message


@pytest.mark.parametrize(("test", "rounds"), [("%i.1, %most", 7), ("%most, %i.1", None), ("%i.1, %other", None)])
def test_a_loop_that_counts_to_a_number_has_so_many_rounds(test: str, rounds: int | None) -> None:
    """Where the compiler does not write it down."""
    direction = "LT" if test.startswith("%i") else "GT"
    condition = f"""%cond (s.1: (s32[], f32[100])) -> pred[] {{
  %s.1 = (s32[], s32[], f32[100]) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %other = s32[] get-tuple-element(%s.1), index=1
  {"%most = s32[] constant(7)" if "most" in test else ""}
  ROOT %less = pred[] compare({test}), direction={direction}
}}
"""
    begin, end = SPLIT.index("%cond"), SPLIT.index("ENTRY")
    text = (SPLIT[:begin] + condition + SPLIT[end:]).replace("known_trip_count", "unknown")
    assert [each.rounds for each in hlo.contents(text).loops] == [rounds]


def test_bytes_of_types() -> None:
    assert hlo.size("f32[2,3]{1,0:T(8,128)}") == 24
    assert hlo.size("(bf16[5]{0}, pred[3]{0}, s32[], f8e4m3fn[7]{0})") == 10 + 3 + 4 + 7


def test_other_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected the text of a compiled program"):
        hlo.contents("module @jit_step {}")


def test_what_may_not_be_has_a_message() -> None:
    found = hlo.contents(SPLIT)
    (message,) = accelerators.wide_convolutions(found, "bfloat16")
    assert message.startswith("1 of 2 convolutions read float32")
    assert accelerators.wide_convolutions(found, "float32") == []
    assert accelerators.moved_too_much(found, 1200, 0) == []
    found.collectives += [hlo.Collective("all-to-all", 3 * 2**20, "here"), hlo.Collective("all-reduce", 2**22, "there")]
    (sums,) = accelerators.moved_too_much(found, 2**21, 2**22)  # the all-to-all may be variables that are gathered
    assert accelerators.moved_too_much(found, 2**21, 2**20) == [sums, *accelerators.moved_too_much(found, 2**23, 0)]
    (others,) = accelerators.moved_too_much(found, 2**23, 0)
    assert sums.startswith("it sums 4.2 MB over the devices, where the gradient has 2.1")
    assert "all-to-all at 'here'" in others
    assert accelerators.too_large(int(17e9), Target("h200")) == []
    (message,) = accelerators.too_large(int(18e9), Target("v5e:2x4"))
    assert message.startswith("it needs 18.0 GB of a device that has 17.2: take fewer images")


def step_of(function: Any, *state: Any) -> tuple[Program, Any]:
    traced = jax.jit(function).trace(state, 1)
    return Program(traced, state, state, 0), traced.lower().compile()


def test_a_state_that_changes_its_type_is_compiled_again() -> None:
    array = jnp.ones(3)
    assert accelerators.compiled_again(*step_of(lambda s, _: (s, 0), array, array)) == []
    for change in (lambda x: x.astype(jnp.bfloat16), lambda x: x[:2], lambda _: 1.0):
        (message,) = accelerators.compiled_again(*step_of(lambda s, _, c=change: ((s[0], c(s[1])), 0), array, array))
        assert "1 arrays of the state" in message
        assert "the first is [1]" in message


@pytest.mark.parametrize("name", ["h100", "h200x", "v5e", "v5e:2", "v9:2x4"])
def test_unknown_devices_are_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="expected h200, h200x8 or a slice such as v5e:2x4"):
        Target(name)


def test_what_a_failed_process_says() -> None:
    aborted = "I0000 something\nF0000 triton_tiling_propagation.cc:12] Check failed: a == b\n*** stack\n"
    assert "aborted with signal 6: F0000 triton_tiling_propagation.cc:12] Check failed" in accelerators.failure(
        -6, aborted
    )
    full = "Traceback\njax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: ran out of memory in memory space hbm\n"
    assert "does not fit into the memory of its device: jax.errors.JaxRuntimeError" in accelerators.failure(1, full)
    assert accelerators.failure(1, "Traceback\nValueError: no\n") == "it ended with exit code 1: ValueError: no"
    assert accelerators.failure(-9, "").startswith("the compiler aborted with signal 9: without a word")


ROW = Row("tiny", "training", "bfloat16", "h200", 4)


def test_a_compiler_that_is_not_there(tmp_path: Path) -> None:
    said = accelerators.run_row(ROW, tmp_path, 1)
    assert said == f"there is no compiler for it in {tmp_path / 'cuda12'}: make accelerators installs it"


def test_the_table_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    good = Found(10**9, 2 * 10**9, 55, [[0, None, 7, "there"]], {"all-reduce": [10**6, 2]}, 9, 2e9, 3 * 10**9, 1.5, [])
    answers = {"bfloat16": good, "float32": "the compiler aborted"}
    monkeypatch.setattr(accelerators, "run_row", lambda row, *_: answers[row.dtype])
    words = ["--configs", "tiny", "--targets", "v5e:2x4", "--programs", "training", "--loops"]
    accelerators.main([*words, "--dtypes", "bfloat16"])
    out = capsys.readouterr().out
    assert "| tiny, training, bfloat16, v5e:2x4 | 2 | 1,000 | 2,000 | 17% | 55 | 1 | 1 | 1 | 2 | 3 | 1.5 |" in out
    assert "an unknown number of rounds of 7 kernels: there" in out
    assert "all-reduce: 1.00 MB in 2\n  9 of 55 kernels run beside that" in out
    with pytest.raises(SystemExit, match="1 of 2 programs are wrong"):
        accelerators.main([*words, "--dtypes", "bfloat16", "float32"])
    assert "tiny, training, float32, v5e:2x4: the compiler aborted" in capsys.readouterr().err
