"""The iteration as a graph: the same numbers as written out, shared between units, compiled where that pays."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from networks import images, network, quantized
from torch._inductor.exc import InductorError

from qdrop.config import ActivationQConfig, QuantConfig, ReconConfig
from qdrop.quantization.convert import segments
from qdrop.quantization.drop import draw_seeds
from qdrop.quantization.state import dropping, learning_rounding, quantizing
from qdrop.solver import step
from qdrop.solver.cache import run_all
from qdrop.solver.step import COMPILE_SECONDS, Compiler, Inputs, UnitLoss, eager, masks_needed, seconds_saved, traced

CPU = torch.device("cpu")
CONFIG = ReconConfig(batch_size=4, iters=12)


def parts_of(name="residual", quant=None):
    return {p.name: p for p in segments(*quantized(network(name), quant)) if p.unit is not None}


def inputs_of(part, full, seed=0):
    """A batch for a unit, its input in the quantized network a little off."""
    target = run_all(part.module, (full,), 8, CPU)[0]
    seeds = draw_seeds(masks_needed(part.module), torch.Generator().manual_seed(seed))
    return Inputs(full, full * 1.01, target, seeds, torch.tensor(0.1), torch.tensor(3.0))


def blocks(name="residual", quant=None):
    """The two blocks of the network, alike in shape, with a batch for each."""
    parts = parts_of(name, quant)
    full = run_all(parts["stem.0"].module, (images(),), 8, CPU)[0]
    return [(parts[name], inputs_of(parts[name], full)) for name in ("body.0", "body.1")]


def gradients(part, inputs, make, config=CONFIG):
    """What an iteration gives, and the names of what it learns."""
    loss = UnitLoss(part.module, config)
    with quantizing(part.module), dropping(part.module, loss.drop), learning_rounding(part.module):
        return make(loss, inputs)(inputs), list(loss.learned())


def by_graph(loss, inputs):
    graph, values = traced(loss, inputs)
    return lambda batch: graph(values, batch.tensors())


QUANT = [None, QuantConfig(a_qconfig=ActivationQConfig("LSQPlusFakeQuantize", bit=2))]


@pytest.mark.parametrize("quant", QUANT, ids=["lsq", "lsq+"])
@pytest.mark.parametrize("drop_prob", [0.0, 0.3, 1.0])
def test_the_graph_computes_what_autograd_does(drop_prob, quant):
    part, inputs = blocks(quant=quant)[0]
    config = replace(CONFIG, drop_prob=drop_prob)
    expected, learned = gradients(part, inputs, lambda loss, _: eager(loss), config)
    found, _ = gradients(part, inputs, by_graph, config)
    assert len(expected) == len(found) == 2 + len(learned)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_graph_follows_its_inputs():
    """Nothing of the example is baked in: other seeds, another beta and other roundings are taken as they come."""
    part, inputs = blocks()[0]
    loss = UnitLoss(part.module, CONFIG)
    with quantizing(part.module), dropping(part.module, loss.drop), learning_rounding(part.module):
        graph, values = traced(loss, inputs)
        other = replace(
            inputs, seeds=inputs.seeds + 77, beta=torch.tensor(9.0), weight=torch.tensor(0.0), full=inputs.full * 0.5
        )
        with torch.no_grad():
            for parameter in loss.learned().values():
                parameter.mul_(1.1)
        for ours, theirs in zip(graph(values, other.tensors()), eager(loss)(other), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_compiled_iterations_are_those_of_autograd_and_shared(caplog):
    compiler = Compiler("on")
    with caplog.at_level(logging.INFO, "qdrop"):
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

    monkeypatch.setattr(step.torch, "compile", fails)
    compiler = Compiler("on")
    for part, inputs in blocks():
        found, _ = gradients(part, inputs, lambda loss, inputs: compiler(loss, inputs, 1))
        expected, _ = gradients(part, inputs, lambda loss, _: eager(loss))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [r.message for r in caplog.records] == ["going on without compilation, which failed here: no C++ compiler"]


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

    monkeypatch.setattr(step.torch, "compile", fails)
    part, inputs = blocks()[0]
    compiler = Compiler("on")
    with pytest.raises(type(error)):
        gradients(part, inputs, lambda loss, inputs: compiler(loss, inputs, 1))
    assert compiler.mode == "on"


@pytest.mark.parametrize(("mode", "used"), [("on", True), ("auto", False), ("off", False)])
def test_a_compiler_gives_up_all_that_was_compiled(mode, used, monkeypatch):
    """It says whether that can help: for a few iterations `auto` compiles nothing."""
    resets = []
    monkeypatch.setattr(step.torch, "compile", lambda graph, **kwargs: graph)
    monkeypatch.setattr(step.torch.compiler, "reset", lambda: resets.append(1))
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


def test_what_pays_depends_on_sizes_and_not_on_the_clock():
    """An activation of E elements saves 3.5 ns an iteration for each image, a weight 12 ns once."""
    part, _ = blocks()[0]
    specs = [q.spec for q in step.quantizers(part.module)]
    sizes = {kind: sum(torch.Size(s.shape).numel() for s in specs if s.kind is kind) for kind in step.Kind}
    seconds = 1e-9 * (3.5 * 8 * sizes[step.Kind.ACTIVATION] + 12 * sizes[step.Kind.WEIGHT])
    assert seconds_saved(part.module, 8, 1000, CPU) == pytest.approx(1000 * seconds)


def test_bfloat16_computes_the_layers_alone():
    """Losses, roundings and scales stay in float32, and the losses stay near those in float32."""
    part, inputs = blocks()[0]
    seen = []
    handle = step.adarounds(part.module)[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    exact, _ = gradients(part, inputs, lambda loss, _: eager(loss))
    found, _ = gradients(part, inputs, lambda loss, _: eager(loss), replace(CONFIG, precision="bfloat16"))
    handle.remove()
    assert seen == [torch.float32] * 2 and all(value.dtype == torch.float32 for value in found)
    assert not torch.equal(found[0], exact[0]) and torch.equal(found[1], exact[1])
    torch.testing.assert_close(found[0], exact[0], rtol=0.05, atol=0)


def test_a_cuda_graph_is_recorded_before_the_iterations(monkeypatch):
    """Where an error in it can be caught: compiled in the first call, recorded in the second, replayed in the third."""
    done = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("emptied"))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: done.append("step"))
    example = SimpleNamespace(full=SimpleNamespace(is_cuda=True), tensors=tuple)
    step._warm_up(lambda values, inputs: done.append("called"), [], example)
    assert done == ["emptied", *["step", "called"] * 3]
