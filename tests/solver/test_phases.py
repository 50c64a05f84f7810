"""Weights first, then scales: what learns when, and what a unit reads meanwhile."""

from dataclasses import replace

import pytest
import torch
from networks import images, network, quantized

from qdrop.config import QuantConfig, ReconConfig
from qdrop.graph.split import segments
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers, quantizing
from qdrop.solver import recon
from qdrop.solver.activations.cache import Pair, run_all
from qdrop.solver.phases import phases
from qdrop.solver.unit import reconstruct_unit

CPU = torch.device("cpu")
AFTER = ReconConfig(
    batch_size=4, iters=6, round_lr=0.1, scale_lr=1e-2, drop_prob=0.0, input_prob=1.0, learn_scales="after"
)


def learned(module, kind):
    return [p.detach().clone() for q in quantizers(module, kind) for group in q.param_groups().values() for p in group]


def same(before, after):
    return [torch.equal(a, b) for a, b in zip(before, after, strict=True)]


def a_block(quant=None):
    model, plan = quantized(network("residual"), quant)
    part = next(p for p in segments(model, plan) if p.name == "body.0")
    full = torch.randn((8, *run_all(segments(model, plan)[0].module, (images(),), 8, CPU)[0].shape[1:])).relu()
    return part.module, [Pair(full, full * 1.01)], run_all(part.module, (full,), 8, CPU)


def test_after_means_weights_alone_and_then_scales_alone():
    module, inputs, targets = a_block()
    seen = []

    def watch(step):
        seen.append((learned(module, Kind.WEIGHT), learned(module, Kind.ACTIVATION)))

    start = learned(module, Kind.WEIGHT), learned(module, Kind.ACTIVATION)
    iterations = []
    reconstruct_unit(
        module,
        inputs,
        targets,
        AFTER,
        torch.Generator().manual_seed(0),
        watch=lambda step: (iterations.append(step.iteration), watch(step)),
    )
    assert iterations == list(range(1, 13))
    (rounded, scales), (rounded_at_last, scales_at_last) = seen[5], seen[-1]
    assert not any(same(start[0], rounded)) and all(same(start[1], scales))
    assert all(same(rounded, rounded_at_last)) and not any(same(scales, scales_at_last))


def test_at_once_is_one_phase_with_everything():
    (phase,) = phases(ReconConfig())
    assert phase.config == ReconConfig() and phase.learns == tuple(Kind)
    pairs = [Pair(torch.zeros(1), torch.ones(1), torch.full((1,), 2.0))]
    assert phase.inputs(pairs) == pairs


def test_scales_learn_without_drop_on_the_quantized_network():
    config = replace(AFTER, input="weights")
    rounding, scales = phases(config)
    assert (rounding.learns, scales.learns) == ((Kind.WEIGHT,), (Kind.ACTIVATION,))
    assert scales.config == replace(config, input="quantized", drop_prob=1.0, input_prob=None)
    zero, one, two = (torch.full((1,), float(value)) for value in range(3))
    assert rounding.inputs([Pair(zero, one, two)]) == [Pair(zero, two)]
    assert scales.inputs([Pair(zero, one, two)])[0].quantized is one


def test_without_a_drop_to_undo_activations_are_in_full_precision():
    """`drop_prob` 0: no activation quantizer of the unit works while the rounding learns; all do while scales learn."""
    module, inputs, targets = a_block()
    states = []
    reconstruct_unit(
        module,
        inputs,
        targets,
        AFTER,
        torch.Generator().manual_seed(0),
        watch=lambda step: states.append({q.active for q in quantizers(module, Kind.ACTIVATION)}),
    )
    assert states == [{False}] * 6 + [{True}] * 6


def test_without_activations_to_quantize_there_is_no_second_phase():
    module, inputs, targets = a_block(QuantConfig(a_qconfig=None))
    steps = []
    reconstruct_unit(module, inputs, targets, AFTER, torch.Generator().manual_seed(0), watch=steps.append)
    assert len(steps) == 6


@pytest.mark.parametrize("kind", ["weights", "quantized"])
def test_what_a_unit_reads(monkeypatch, kind):
    """With `input: weights`, what the units before give in the network whose activations are in full precision."""
    model, plan = quantized(network("residual"))
    given = []

    def note(module, inputs, targets, config, generator, **others):
        given.append(phases(config)[0].inputs(inputs))
        return 0.0

    monkeypatch.setattr(recon, "reconstruct_unit", note)
    config = replace(AFTER, input=kind)
    list(recon.reconstruct(model, plan, {"x": images()}, config, 0, CPU))
    first, second, *_ = segments(model, plan)
    with quantizing(model, activations=kind == "quantized"):
        expected = run_all(second.module, run_all(first.module, (images(),), 4, CPU), 4, CPU)[0]
    assert torch.equal(given[2][0].quantized[:], expected)
