"""Compiled iterations: the same numbers, shared between units of equal shape, compiled where that pays."""

import logging
from types import SimpleNamespace

import pytest
import torch
from one_step import CONFIG, CPU, blocks, gradients
from torch._inductor.exc import InductorError

from qdrop.config import QuantConfig
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers
from qdrop.solver import compiler as compilation
from qdrop.solver.compiler import COMPILE_SECONDS, Compiler, seconds_saved
from qdrop.solver.step import UnitLoss, eager


def test_compiled_iterations_are_those_of_autograd_and_shared(caplog):
    compiler = Compiler("on")
    with caplog.at_level(logging.DEBUG, "qdrop"):
        for part, inputs in blocks(quant=QuantConfig(last_a_bit=None)):
            found, _ = gradients(part, inputs, lambda loss, inputs: compiler(loss, inputs, 1))
            expected, _ = gradients(part, inputs, lambda loss, _: eager(loss))
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    ours = [r.message for r in caplog.records if r.name == "qdrop"]
    assert [message.partition(" in ")[0] for message in ours] == [
        "compiled the iteration",
        "compiled code shared with a unit of equal shape",
    ]


def test_a_compiler_that_fails_is_mentioned_once(caplog, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nsecond line")

    monkeypatch.setattr(torch, "compile", fails)
    compiler = Compiler("on")
    for part, inputs in blocks():
        found, _ = gradients(part, inputs, lambda loss, inputs: compiler(loss, inputs, 1))
        expected, _ = gradients(part, inputs, lambda loss, _: eager(loss))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [r.message for r in caplog.records if r.name == "qdrop"] == [
        "going on without compilation, which failed here: no C++ compiler"
    ]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        InductorError(torch.OutOfMemoryError("CUDA out of memory"), None),
    ],
)
def test_out_of_memory_is_not_taken_for_a_compiler_that_fails(error, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "compile", fails)
    part, inputs = blocks()[0]
    compiler = Compiler("on")
    with pytest.raises(type(error)):
        gradients(part, inputs, lambda loss, inputs: compiler(loss, inputs, 1))
    assert compiler.mode == "on"


@pytest.mark.parametrize(("mode", "used"), [("on", True), ("auto", False), ("off", False)])
def test_a_compiler_gives_up_all_that_was_compiled(mode, used, monkeypatch):
    """It says whether that can help: for a few iterations `auto` compiles nothing."""
    resets = []
    monkeypatch.setattr(torch, "compile", lambda graph, **kwargs: graph)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    compiler = Compiler(mode)
    part, inputs = blocks()[0]
    gradients(part, inputs, lambda loss, inputs: compiler(loss, inputs, 1))
    assert compiler.give_up() is used and len(resets) == 1
    assert gradients(part, inputs, lambda loss, inputs: compiler(loss, inputs, 10**9))
    assert compiler.mode == "off" and not compiler.give_up()


def test_auto_compiles_where_the_iterations_save_more_than_it_takes(monkeypatch):
    compiled = []
    monkeypatch.setattr(Compiler, "_compile", lambda self, loss, example: compiled.append(loss) or eager(loss))
    part, inputs = blocks()[0]
    loss = UnitLoss(part.module, CONFIG)
    few = next(n for n in (10**k for k in range(12)) if seconds_saved(part.module, 8, n, CPU) > COMPILE_SECONDS)
    for mode, iters, expected in (("auto", few // 10, 0), ("auto", few, 1), ("off", few, 1), ("on", 1, 2)):
        Compiler(mode)(loss, inputs, iters)
        assert len(compiled) == expected


def test_what_is_compiled_for_one_unit_pays_for_all_that_are_alike(monkeypatch):
    """Each of two blocks of equal shape saves two thirds of what compiling takes."""
    compiled = []
    monkeypatch.setattr(Compiler, "_compile", lambda self, loss, example: compiled.append(loss) or eager(loss))
    pairs = blocks(quant=QuantConfig(last_a_bit=None))
    units, (_, inputs) = [part.module for part, _ in pairs], pairs[0]
    monkeypatch.setattr(compilation, "COMPILE_SECONDS", 1.5 * seconds_saved(units[0], 8, 1000, CPU))
    for alike, expected in (([], 0), (units[:1], 0), (units, 1)):
        Compiler("auto", alike)(UnitLoss(units[0], CONFIG), inputs, 1000)
        assert len(compiled) == expected


def test_what_will_be_compiled_is_said_in_one_line(monkeypatch):
    units = [part.module for part, _ in blocks(quant=QuantConfig(last_a_bit=None))]  # of equal shape
    assert Compiler("off", units).outline(units, 8, 1000, CPU) == "no unit is compiled: recon.compile = off"
    line = Compiler("on", units).outline(units, 8, 1000, CPU)
    assert line.startswith("2 of 2 units are compiled") and line.endswith("some 15 s in all")
    monkeypatch.setattr(compilation, "COMPILE_SECONDS", 1.5 * seconds_saved(units[0], 8, 1000, CPU))
    assert Compiler("auto", units).outline(units, 8, 1000, CPU).startswith("2 of 2 units are compiled")
    assert Compiler("auto", units).outline(units, 8, 500, CPU).startswith("no unit is compiled")


def test_what_pays_depends_on_sizes_and_not_on_the_clock():
    """An activation of E elements saves 9 ns an iteration for each image, a weight 15 ns once."""
    part, _ = blocks()[0]
    specs = [q.spec for q in quantizers(part.module)]
    sizes = {kind: sum(torch.Size(s.shape).numel() for s in specs if s.kind is kind) for kind in Kind}
    seconds = 1e-9 * (9 * 8 * sizes[Kind.ACTIVATION] + 15 * sizes[Kind.WEIGHT])
    assert seconds_saved(part.module, 8, 1000, CPU) == pytest.approx(1000 * seconds)


def test_a_cuda_graph_is_recorded_before_the_iterations(monkeypatch):
    """Where an error in it can be caught: compiled in the first call, recorded in the second, replayed in the third."""
    done = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: done.append("step"))
    example = SimpleNamespace(device=torch.device("cuda"), tensors=tuple)
    compilation._warm_up(lambda values, inputs: done.append("called"), [], example)
    assert done == ["emptied", *["step", "called"] * 3]
