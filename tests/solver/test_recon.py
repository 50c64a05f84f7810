"""Reconstruction on small networks: what learns, what it depends on, what it leaves alone."""

import math
from collections import Counter
from dataclasses import replace
from weakref import WeakSet

import pytest
import torch
from networks import NETWORKS, Network, OpenWindows, Windowed, bits, filled, images, network, quantized

from qdrop.config import ActivationQConfig, CacheConfig, QuantConfig, ReconConfig
from qdrop.graph.insert import quantized_weights
from qdrop.graph.split import segments
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers, quantizing
from qdrop.solver import recon
from qdrop.solver.activations import batches
from qdrop.solver.activations.cache import Pair, run_all
from qdrop.solver.activations.storage import Storage
from qdrop.solver.activations.stored import Stored
from qdrop.solver.compiler import Compiler
from qdrop.solver.recon import reconstruct
from qdrop.solver.unit import ReconstructionError, draw_batches, reconstruct_unit, unit_generator

CPU = torch.device("cpu")
CONFIG = ReconConfig(batch_size=4, iters=12, drop_prob=0.5, weight=0.01)


class Recording(Compiler):
    """Computes the iterations as they are, and keeps the gradients of each by the parameter's name in the unit."""

    def __init__(self):
        super().__init__("off")
        self.gradients = []

    def __call__(self, loss, example, iters):
        run = super().__call__(loss, example, iters)
        names = [name.removeprefix("unit.") for name in loss.learned()]

        def gradients(inputs):
            error, penalty, *found = run(inputs)
            self.gradients.append({name: g.clone() for name, g in zip(names, found, strict=True)})
            return error, penalty, *found

        return gradients


def a_unit(name="residual", config=None):
    """A calibrated block, its inputs and its full-precision output."""
    graph, plan = quantized(network(name), config)
    parts = segments(graph, plan)
    (stem,), block = [p for p in parts if p.name == "stem.0"], next(p for p in parts if p.name == "body.0")
    full = run_all(stem.module, (images(),), 8, CPU)[0]
    with quantizing(stem.module):
        inputs = Pair(full, run_all(stem.module, (images(),), 8, CPU)[0])
    return block.module, inputs, run_all(block.module, (full,), 8, CPU)[0]


def learned(module):
    """What reconstruction changes: roundings and grids, by name."""
    return {
        key: value.clone()
        for key, value in module.state_dict().items()
        if key.rpartition(".")[2] in ("alpha", "levels", "scale", "zero_point")
    }


def rows(value):
    """All of a cached value, as it is now."""
    return value[:].clone()


def differing(a, b):
    return {key.rpartition(".")[2] for key in a if not torch.equal(a[key], b[key])}


def fixed_batches(count=12):
    return iter([(torch.arange(4) + 4 * i) % 8 for i in range(count)])


def walk(name="residual", config=CONFIG, seed=0, quant=None, granularity="block", **kwargs):
    graph, plan = quantized(network(name), quant, granularity)
    reports = list(reconstruct(graph, plan, {"x": images()}, config, seed, CPU, **kwargs))
    return graph, plan, reports


# ---- the drop ----


@pytest.mark.parametrize("seed", [0, 1])
def test_never_dropping_uses_no_randomness(seed):
    """drop_prob 1.0 keeps every quantized value, so that the generator does not matter."""
    results = []
    for generator in (torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)):
        unit, inputs, target = a_unit()
        reconstruct_unit(unit, [inputs], [target], replace(CONFIG, drop_prob=1.0), generator, fixed_batches())
        results.append(learned(unit))
    assert differing(*results) == set()


def test_dropping_does_use_randomness():
    results = []
    for seed in (0, 99):
        unit, inputs, target = a_unit()
        reconstruct_unit(unit, [inputs], [target], CONFIG, torch.Generator().manual_seed(seed), fixed_batches())
        results.append(learned(unit))
    assert {"alpha", "scale"} <= differing(*results)


def test_always_dropping_leaves_the_activations_alone():
    """drop_prob 0.0 keeps no quantized value: as if activations had no quantizers at all."""
    config = replace(CONFIG, drop_prob=0.0)
    losses = []
    states = []
    for quant in (None, bits(2, None)):
        unit, inputs, target = a_unit(config=quant)
        before = learned(unit)
        found, recording = [], Recording()

        def watch(step, found=found):
            found.append(step.reconstruction.item())

        reconstruct_unit(unit, [inputs], [target], config, torch.Generator(), fixed_batches(), watch, recording)
        losses.append(found)
        states.append({key: value for key, value in learned(unit).items() if "weight_quantizer" in key})
        assert differing(before, learned(unit)) == {"alpha"} or differing(before, learned(unit)) == {"alpha", "levels"}
        grids = {f"{q.spec.name}.scale" for q in quantizers(unit, Kind.ACTIVATION)}
        assert len(recording.gradients) == 12 and grids <= recording.gradients[0].keys()
        assert not any(step[scale].any() for step in recording.gradients for scale in grids)
    assert losses[0] == losses[1]
    assert differing(*states) == set()


@pytest.mark.parametrize(("prob", "side"), [(1.0, "quantized"), (0.0, "full")])
def test_the_input_is_dropped_too(prob, side):
    unit, inputs, target = a_unit()
    seen = []
    handle = unit.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    reconstruct_unit(unit, [inputs], [target], replace(CONFIG, drop_prob=prob), torch.Generator(), fixed_batches())
    handle.remove()
    assert torch.equal(seen[0], getattr(inputs, side)[torch.arange(4)])


def test_input_probability_of_its_own():
    unit, inputs, target = a_unit()
    seen = []
    unit.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    config = replace(CONFIG, drop_prob=0.5, input_prob=1.0)
    reconstruct_unit(unit, [inputs], [target], config, torch.Generator().manual_seed(0), fixed_batches())
    assert torch.equal(seen[0], inputs.quantized[:4])


def test_half_of_the_input_is_dropped():
    unit, inputs, target = a_unit()
    seen = []
    unit.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    reconstruct_unit(unit, [inputs], [target], CONFIG, torch.Generator().manual_seed(0), fixed_batches())
    differs = inputs.full[:4] != inputs.quantized[:4]
    kept = seen[0] == inputs.quantized[:4]
    assert torch.equal(seen[0], torch.where(kept, inputs.quantized[:4], inputs.full[:4]))
    share = kept[differs].float().mean().item()
    assert share == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / differs.sum().item()))


# ---- what learns ----


def test_everything_of_the_unit_learns():
    unit, inputs, target = a_unit()
    before = learned(unit)
    reconstruct_unit(unit, [inputs], [target], CONFIG, torch.Generator().manual_seed(0))
    after = learned(unit)
    for key in before:
        leaf = key.rpartition(".")[2]
        moves = leaf == "alpha" or (leaf == "scale" and "output_quantizer" in key)
        assert leaf == "levels" or torch.equal(before[key], after[key]) is not moves, key


def test_fewer_batches_than_iterations():
    unit, inputs, target = a_unit()
    with pytest.raises(ValueError, match="3 batches are given; expected as many as iterations, 12"):
        reconstruct_unit(unit, [inputs], [target], CONFIG, torch.Generator(), fixed_batches(3))


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_batch_is_let_go_of_before_the_next_is_brought(place, monkeypatch, tmp_path):
    """Alive are the one that is worked on and, from disk, those on their way."""
    unit, inputs, target = a_unit()
    storage, living, most = Storage(CacheConfig(place), CPU, folder=tmp_path), WeakSet(), []
    stored = [storage.new(tuple(v.shape), v.dtype) for v in (inputs.full, inputs.quantized, target)]
    for value, rows in zip(stored, (inputs.full, inputs.quantized, target), strict=True):
        value[0 : len(rows)] = rows

    def watched(value, count, pin=False, room=Stored.room):
        if value is stored[0]:
            living.add(made := room(value, count, pin))
            most.append(len(living))
            return made
        return room(value, count, pin)

    monkeypatch.setattr(Stored, "room", watched)
    config = replace(CONFIG, compile="off")
    reconstruct_unit(unit, [Pair(*stored[:2])], [stored[2]], config, torch.Generator().manual_seed(0))
    assert len(most) == 12 and max(most) == (1 if place == "cpu" else 1 + batches.AHEAD)


def test_first_steps_are_those_of_adam():
    """After one iteration each rounding moved by round_lr and each scale by scale_lr, against its gradient."""
    unit, inputs, target = a_unit()
    before = learned(unit)
    config = replace(CONFIG, iters=1, drop_prob=1.0)
    recording = Recording()
    reconstruct_unit(unit, [inputs], [target], config, torch.Generator(), fixed_batches(), compiler=recording)
    after, (gradients,) = learned(unit), recording.gradients
    assert all(p.grad is None for p in unit.parameters())
    for rounding in quantizers(unit, Kind.WEIGHT):
        key = f"{rounding.spec.name}.rounding.alpha"
        step, gradient = after[key] - before[key], gradients[key]
        strong = gradient.abs() > 1e-5
        assert strong.float().mean() > 0.5
        torch.testing.assert_close(step[strong], -1e-3 * gradient[strong].sign(), rtol=1e-2, atol=1e-6)
    for quantizer in quantizers(unit, Kind.ACTIVATION):
        key = f"{quantizer.spec.name}.scale"
        step = (after[key] - before[key]).item()
        assert step == pytest.approx(-4e-5 * gradients[key].sign().item(), rel=0.05)


def test_rate_of_the_scales_falls_to_zero_by_a_cosine():
    """The step of a scale at iteration t is at most that of Adam with scale_lr * (1 + cos(pi t/T)) / 2."""
    unit, inputs, target = a_unit()
    (scale, *_) = (q.scale for q in quantizers(unit, Kind.ACTIVATION))
    seen = [scale.item()]
    config = replace(CONFIG, iters=50, scale_lr=1e-3, drop_prob=1.0)
    same = iter([torch.arange(8)] * 50)  # all images: a steady gradient, so that Adam's steps are the rate

    def watch(step):
        seen.append(scale.item())

    reconstruct_unit(unit, [inputs], [target], config, torch.Generator(), same, watch)
    steps = torch.tensor(seen).diff().abs()
    rates = 1e-3 * (1 + torch.cos(math.pi * torch.arange(50) / 50)) / 2
    assert steps[0].item() == pytest.approx(1e-3, rel=0.01)
    assert (steps <= 1.1 * rates + 1e-6).all()


def test_watched_losses():
    unit, inputs, target = a_unit()
    steps = []
    reconstruct_unit(unit, [inputs], [target], CONFIG, torch.Generator().manual_seed(0), watch=steps.append)
    assert [step.iteration for step in steps] == list(range(1, 13))
    assert [step.rounding.item() == 0 for step in steps] == [t < 0.2 * 12 for t in range(1, 13)]
    assert all(not step.reconstruction.requires_grad for step in steps)


def test_first_loss_is_that_of_the_calibrated_unit():
    """Soft weights, quantized activations and input, sum over channels and mean over the rest."""
    unit, inputs, target = a_unit()
    with quantizing(unit, weights=False), torch.no_grad():
        (out,) = unit(inputs.quantized[:4])
    steps = []
    config = replace(CONFIG, drop_prob=1.0, iters=1)
    for rounding in quantizers(unit, Kind.WEIGHT):  # so wide that soft weights are the weights
        rounding.scale.mul_(4)
        rounding.zero_point.fill_(2)
    for found in quantized_weights(unit):
        found.quantizer.prepare(found.weight)
    reconstruct_unit(unit, [inputs], [target], config, torch.Generator(), fixed_batches(), steps.append)
    assert steps[0].reconstruction.item() == pytest.approx(((out - target[:4]) ** 2).sum(1).mean().item(), rel=1e-3)


def test_share_of_flipped_weights():
    unit, inputs, target = a_unit()
    nearest = {q.spec.name: q.rounding.levels.clone() for q in quantizers(unit, Kind.WEIGHT)}
    config = replace(CONFIG, iters=60, round_lr=0.05)
    share = reconstruct_unit(unit, [inputs], [target], config, torch.Generator().manual_seed(0))
    flipped = sum((q.rounding.levels != nearest[q.spec.name]).sum().item() for q in quantizers(unit, Kind.WEIGHT))
    assert share == pytest.approx(flipped / sum(q.rounding.levels.numel() for q in quantizers(unit, Kind.WEIGHT)))
    assert share > 0


def test_nothing_is_left_switched_on():
    graph, _, _ = walk()
    assert not any(q.active or q.drop or q.observer for q in quantizers(graph))
    assert all(q.rounding.start is None for q in quantizers(graph, Kind.WEIGHT))


@pytest.mark.parametrize("quantizer", ["FixedFakeQuantize", "LSQPlusFakeQuantize"])
def test_other_activation_quantizers(quantizer):
    config = QuantConfig(a_qconfig=ActivationQConfig(quantizer))
    unit, inputs, target = a_unit(config=config)
    before = learned(unit)
    reconstruct_unit(unit, [inputs], [target], CONFIG, torch.Generator().manual_seed(0))
    moved = {key for key, value in learned(unit).items() if not torch.equal(value, before[key])}
    leaves = {key.rpartition(".")[2] for key in moved if "output_quantizer" in key}
    assert leaves == (set() if quantizer == "FixedFakeQuantize" else {"scale", "zero_point"})


def test_scales_stay_positive():
    unit, inputs, target = a_unit()
    reconstruct_unit(unit, [inputs], [target], replace(CONFIG, scale_lr=0.5), torch.Generator().manual_seed(0))
    assert all((q.scale > 0).all() for q in quantizers(unit))


# ---- randomness ----


def test_a_seeded_walk_repeats_bit_for_bit():
    first, second = (learned(walk(seed=3)[0]) for _ in range(2))
    assert differing(first, second) == set()
    assert "alpha" in differing(first, learned(walk(seed=4)[0]))


def test_global_randomness_does_not_matter():
    torch.manual_seed(0)
    first = learned(walk()[0])
    torch.manual_seed(1)
    torch.rand(17)
    assert differing(first, learned(walk()[0])) == set()


def test_generators_depend_on_seed_and_name():
    draws = {
        (seed, unit): torch.rand(4, generator=unit_generator(seed, unit)).tolist()
        for seed in (0, 1, 10)
        for unit in ("a", "b", "0:a")
    }
    assert len({tuple(v) for v in draws.values()}) == len(draws)
    assert torch.rand(4, generator=unit_generator(0, "a")).tolist() == draws[0, "a"]


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_a_unit_alone_ends_as_in_the_walk(index, monkeypatch):
    """What a resumed run needs: the same cached values give the same unit, whatever ran before."""
    given = {}
    original = recon.reconstruct_unit

    def record(unit, pairs, targets, *args, **kwargs):
        given[len(given)] = [Pair(rows(pair.full), rows(pair.quantized)) for pair in pairs], [*map(rows, targets)]
        return original(unit, pairs, targets, *args, **kwargs)

    monkeypatch.setattr(recon, "reconstruct_unit", record)
    graph, plan, _ = walk(seed=5)
    unit = plan.units[index].module

    fresh, _ = quantized(network("residual"))
    part = next(p for p in segments(fresh, plan) if p.name == unit)
    original(part.module, *given[index], CONFIG, unit_generator(5, unit))
    inside = learned(part.module)
    assert inside and differing(inside, {key: learned(graph)[key] for key in inside}) == set()


def test_batches_are_drawn_with_replacement():
    batches = list(draw_batches(6, 50, 200, torch.Generator().manual_seed(0)))
    assert len(batches) == 200 and all(b.shape == (50,) for b in batches)
    counts = Counter(torch.cat(batches).tolist())
    assert set(counts) == set(range(6))
    assert all(abs(n - 10_000 / 6) < 5 * math.sqrt(10_000 * 5 / 36) for n in counts.values())


# ---- the walk ----


@pytest.mark.parametrize("granularity", ["block", "layer"])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network(name, granularity):
    graph, plan, reports = walk(name, replace(CONFIG, iters=2), granularity=granularity)
    assert [(r.unit, r.kind) for r in reports] == [(u.module, u.kind) for u in plan.units]
    with quantizing(graph), torch.no_grad():
        assert graph(images()).isfinite().all()


@pytest.mark.parametrize("granularity", ["block", "layer"])
@pytest.mark.parametrize("model", [lambda: Network(Windowed()), OpenWindows], ids=["block", "open"])
def test_windows_folded_into_the_batch(model, granularity):
    graph, plan = quantized(filled(model()), granularity=granularity)
    reports = list(reconstruct(graph, plan, {"x": images()}, replace(CONFIG, iters=2), 0, CPU))
    assert [report.unit for report in reports] == [unit.module for unit in plan.units]
    with quantizing(graph), torch.no_grad():
        assert graph(images()).isfinite().all()


def test_weights_are_never_written():
    graph, plan = quantized(network("residual"))
    before = {key: v.clone() for key, v in graph.state_dict().items() if "quantizer" not in key}
    list(reconstruct(graph, plan, {"x": images()}, CONFIG, 0, CPU))
    after = graph.state_dict()
    assert before and all(torch.equal(after[key], value) for key, value in before.items())
    with torch.no_grad():
        expected = quantized(network("residual"))[0](images())
        assert torch.equal(graph(images()), expected)


def test_images_are_never_written():
    given = images()
    graph, plan = quantized(network("residual"))
    list(reconstruct(graph, plan, {"x": given}, CONFIG, 0, CPU))
    assert torch.equal(given, images())


@pytest.mark.parametrize("keep_gpu", [True, False])
def test_each_unit_reads_what_the_ones_before_wrote(keep_gpu, monkeypatch):
    """The full-precision input and target are the full-precision network's, the other is the quantized one's."""
    seen = []
    original = recon.reconstruct_unit

    def record(unit, pairs, targets, *args, **kwargs):
        with quantizing(graph), torch.no_grad():  # quantized so far: later units do not matter
            values = {}
            hooks = hook_outputs(graph, values)
            graph(images())
        for hook in hooks:
            hook.remove()
        (inputs,), (target,) = pairs, targets
        seen.append((rows(inputs.full), rows(inputs.quantized), rows(target), values))
        return original(unit, pairs, targets, *args, **kwargs)

    def hook_outputs(model, values):
        return [
            q.register_forward_hook(lambda q, x, out: values.__setitem__(q.spec.name, out))
            for q in quantizers(model, Kind.ACTIVATION)
        ]

    monkeypatch.setattr(recon, "reconstruct_unit", record)
    graph, plan = quantized(network("residual"))
    full = {}
    hooks = hook_outputs(graph, full)
    with torch.no_grad():
        full["head"] = graph(images())
    for hook in hooks:
        hook.remove()
    list(reconstruct(graph, plan, {"x": images()}, replace(CONFIG, keep_gpu=keep_gpu), 0, CPU))
    outputs = ["stem.0.output_quantizer", "body.0.add.output_quantizer", "body.1.add.output_quantizer", "head"]
    assert len(seen) == 4
    for index, (full_input, quantized_input, target, values) in enumerate(seen):
        torch.testing.assert_close(target, full[outputs[index]], rtol=1e-5, atol=1e-5)
        if index == 0:
            assert torch.equal(full_input, images()) and torch.equal(quantized_input, images())
        elif index < 3:
            torch.testing.assert_close(full_input, full[outputs[index - 1]], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(quantized_input, values[outputs[index - 1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_run_again_from_the_image(name, monkeypatch):
    """Each unit sees every image three times (full precision, before, after) and the drawn batches."""
    config = replace(CONFIG, iters=5, batch_size=2)
    graph, plan = quantized(network(name))
    seen = Counter()

    def watched(*args):
        parts = segments(*args)
        for part in parts:
            part.module.register_forward_hook(
                lambda module, args, out, name=part.name: seen.update({name: len(args[0])})
            )
        return parts

    monkeypatch.setattr(recon, "segments", watched)
    list(reconstruct(graph, plan, {"x": images(8)}, config, 0, CPU))
    units = {unit.module for unit in plan.units}
    assert units < seen.keys() or units == seen.keys()
    assert {seen[name] for name in units} == {3 * 8 + 5 * 2}
    assert {seen[name] for name in seen.keys() - units} <= {2 * 8}


def test_values_are_dropped_after_their_last_reader(monkeypatch):
    held = []
    original = recon.ActivationCache.advance

    def advance(self, *args):
        original(self, *args)
        held.append(len(self._values))

    monkeypatch.setattr(recon.ActivationCache, "advance", advance)
    walk("residual", replace(CONFIG, iters=1))
    assert max(held) == 1 and held[-1] == 0
    held.clear()
    walk("unet", replace(CONFIG, iters=1))
    assert max(held) == 2 and held[-1] == 0


def test_loss_falls_below_round_to_nearest():
    config = ReconConfig(batch_size=8, iters=300, round_lr=1e-2, scale_lr=1e-3)
    graph, _, reports = walk("residual", config)
    assert all(report.loss_after < report.loss_before for report in reports[:-1])
    nearest, _ = quantized(network("residual"))
    with torch.no_grad():
        full = graph(images())
        with quantizing(graph), quantizing(nearest):
            ours, theirs = ((model(images()) - full).square().mean() for model in (graph, nearest))
    assert ours < 0.7 * theirs


def test_reports_say_what_the_unit_does():
    graph, plan = quantized(network("residual"))
    parts = {part.name: part for part in segments(graph, plan)}
    full, quantized_input = images(), images()
    for report in reconstruct(graph, plan, {"x": images()}, CONFIG, 0, CPU):
        module = parts[report.unit].module
        assert 0 <= report.flipped <= 1 and report.seconds > 0
        if report.unit != "head":  # the pooling before it is not in a unit
            target = run_all(module, (full,), 8, CPU)[0]
            with quantizing(module):
                out = run_all(module, (quantized_input,), 8, CPU)[0]
            assert report.loss_after == pytest.approx((out - target).square().sum(1).mean().item(), rel=1e-4)
            full, quantized_input = target, out


def test_loss_before_is_round_to_nearest():
    graph, plan = quantized(network("residual"))
    part = segments(graph, plan)[0]
    with torch.no_grad():
        (target,) = part.module(images())
        with quantizing(part.module):
            expected = (part.module(images())[0] - target).square().sum(1).mean().item()
    report = next(reconstruct(graph, plan, {"x": images()}, CONFIG, 0, CPU))
    assert report.loss_before == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("batch_size", "count"), [(4, 8), (3, 8), (8, 8), (5, 7)])
def test_any_number_of_images(batch_size, count):
    graph, plan = quantized(network("residual"))
    config = replace(CONFIG, iters=2, batch_size=batch_size)
    assert len(list(reconstruct(graph, plan, {"x": images(count)}, config, 0, CPU))) == 4


def test_watch_names_the_unit():
    seen = []
    walk(watch=lambda unit, step: seen.append(unit))
    assert list(dict.fromkeys(seen)) == ["stem.0", "body.0", "body.1", "head"]
    assert len(seen) == 4 * 12


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_that_are_not_finite(value):
    graph, plan = quantized(network("residual"))
    broken = images()
    broken[:, 0, 0, 0] = value
    with pytest.raises(ReconstructionError, match=r"unit 'stem\.0': the loss is"):
        list(reconstruct(graph, plan, {"x": broken}, CONFIG, 0, CPU))
    assert not any(q.active for q in quantizers(graph))


def test_weights_that_are_not_finite_name_their_unit():
    graph, plan = quantized(network("residual"))
    layer = graph.get_submodule("body.1.conv1")
    layer.weight.data = torch.full_like(layer.weight, math.nan)
    reports = reconstruct(graph, plan, {"x": images()}, CONFIG, 0, CPU)
    assert [next(reports).unit, next(reports).unit] == ["stem.0", "body.0"]
    with pytest.raises(ReconstructionError, match=r"unit 'body\.1'.*iteration"):
        next(reports)


def test_stops_within_a_hundred_iterations():
    unit, inputs, _ = a_unit()
    steps = []
    config = replace(CONFIG, iters=250)
    target = torch.full((8, 6, 8, 8), math.nan)
    with pytest.raises(ReconstructionError, match="iteration 100"):
        reconstruct_unit(unit, [inputs], [target], config, torch.Generator().manual_seed(0), watch=steps.append)
    assert len(steps) < 101
    assert not any(q.active or q.drop for q in quantizers(unit))


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_is_for_the_iterations_alone(precision, monkeypatch):
    seen = {"passed on": [], "stepped": []}

    def noting(when, original):
        def note(*args, **kwargs):
            seen[when].append(torch.backends.cuda.matmul.allow_tf32)
            return original(*args, **kwargs)

        return note

    monkeypatch.setattr(recon, "run_all", noting("passed on", recon.run_all))
    monkeypatch.setattr(recon, "reconstruct_unit", noting("stepped", recon.reconstruct_unit))
    walk(config=replace(CONFIG, iters=1, precision=precision))
    assert set(seen["passed on"]) == {False} and set(seen["stepped"]) == {precision == "tf32"}


def test_tf32_on_a_cpu_is_announced(caplog):
    graph, plan = quantized(network("residual"))
    next(iter(reconstruct(graph, plan, {"x": images()}, replace(CONFIG, precision="tf32"), 0, CPU)))
    assert "recon.precision = tf32 needs a GPU" in caplog.text
