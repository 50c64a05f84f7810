"""The published method's own numbers: calibration, round-to-nearest, and 20 iterations of every unit.

ResNet-18 follows the fixture to 5e-4 in every unit. MobileNetV2 does to 1e-3 up to features.5, where one of 6144
weights ends within a last digit of alpha = 0, the tie between rounding down and up; from the next unit on the losses
differ by up to 4 percent. With images changed by 1e-7 that weight hardens as the fixture's did, and all 20 units agree
to 7e-4. `test_drift_is_that_of_a_last_digit` shows as much: images changed by 1e-6 move our own losses as far as
they are from the fixture's. The rounding term hardly sees the activations and stays within 1e-4 in every unit,
within 2e-6 in the first: it is what finds a gradient or a range that is slightly wrong.
"""

from dataclasses import dataclass

import pytest
import torch
from golden import GOLDEN_MODELS, fill_by_rule, golden_images, load_fixture
from networks import bits
from torch import Tensor, fx

from qdrop.config import ReconConfig
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph
from qdrop.graph.plan import Plan, make_plan
from qdrop.graph.scopes import calibrating
from qdrop.graph.split import segments
from qdrop.models import build_model
from qdrop.quantization.state import quantizing
from qdrop.solver.activations.cache import ActivationCache, run_all
from qdrop.solver.unit import reconstruct_unit

CPU = torch.device("cpu")
ROUNDING_WEIGHT = {"res18": 0.01, "mnv2": 0.1}
DRIFT = {"res18": 0.005, "mnv2": 0.06}
"""How far the losses of later units may be from the fixture's."""


@dataclass
class Run:
    """A calibrated network on the images of the fixture."""

    model: fx.GraphModule
    plan: Plan
    images: Tensor
    full: Tensor

    @classmethod
    def calibrated(cls, name: str, images: Tensor) -> "Run":
        model = capture(fill_by_rule(build_model(GOLDEN_MODELS[name])), images[:2])
        plan = make_plan(model, bits(2, 4))
        quantize_graph(model, plan)
        with calibrating(model):
            full = model(images)
        return cls(model, plan, images, full)

    @torch.no_grad()
    def error(self) -> float:
        """Mean squared error of the logits with everything quantized."""
        with quantizing(self.model):
            return (self.model(self.images) - self.full).square().mean().item()

    def reconstruct(self, weight: float, units: int | None = None) -> list[Tensor]:
        """Losses `[20, 2]` (reconstruction, rounding) of each unit, with the fixture's batches."""
        config = ReconConfig(batch_size=8, iters=20, weight=weight, drop_prob=1.0)
        parts = segments(self.model, self.plan)
        cache = ActivationCache({parts[0].inputs[0]: self.images}, parts)
        traces: list[Tensor] = []
        for index, part in enumerate(parts):
            inputs = [cache[name] for name in part.inputs]
            full = run_all(part.module, tuple(pair.full for pair in inputs), 32, CPU)
            if part.unit is not None:
                steps = []
                batches = iter([(torch.arange(8) + 8 * i) % 32 for i in range(20)])
                reconstruct_unit(part.module, inputs, full, config, torch.Generator(), batches, steps.append)
                losses = [[s.reconstruction, s.rounding] for s in steps]
                traces.append(torch.tensor(losses, dtype=torch.float64))
            if len(traces) == units:
                break
            with quantizing(part.module):
                quantized = run_all(part.module, tuple(pair.quantized for pair in inputs), 32, CPU)
            cache.advance(index, part, full, quantized)
        return traces


def expected_traces(fixture: dict) -> list[Tensor]:
    units = fixture["reconstruction"]
    return [torch.tensor(unit["reconstruction_and_rounding_loss"], dtype=torch.float64) for unit in units]


def apart(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Largest relative difference of the reconstruction and of the rounding loss."""
    difference = (ours - theirs).abs() / theirs.abs().clamp(min=1e-9)
    return tuple(difference.amax(0).tolist())


@pytest.mark.parametrize("name", ROUNDING_WEIGHT)
def test_calibration_and_reconstruction(name):
    fixture = load_fixture("golden_reconstruction")[name]
    run = Run.calibrated(name, golden_images(32, 64))

    assert len(run.plan.quantizers) == len(fixture["calibration"])
    for spec, expected in zip(run.plan.quantizers, fixture["calibration"], strict=True):
        quantizer = run.model.get_submodule(spec.name)
        assert (str(spec.kind), spec.bit) == (expected["kind"], expected["bit"])
        assert quantizer.scale[:4].tolist() == pytest.approx(expected["scale"], rel=1e-5), spec.name
        assert quantizer.zero_point[:4].tolist() == expected["zero_point"], spec.name
    assert run.full.square().mean().item() == pytest.approx(fixture["rtn_output"]["fp_power"], rel=1e-5)
    assert run.error() == pytest.approx(fixture["rtn_output"]["mse"], rel=0.01)

    traces, expected = run.reconstruct(ROUNDING_WEIGHT[name]), expected_traces(fixture)
    assert [unit.module for unit in run.plan.units] == [unit["unit"] for unit in fixture["reconstruction"]]
    for index, (ours, theirs) in enumerate(zip(traces, expected, strict=True)):
        reconstruction, rounding = apart(ours, theirs)
        assert reconstruction < {0: 5e-6, 1: 3e-4}.get(index, DRIFT[name]), run.plan.units[index]
        assert rounding < {0: 5e-6, 1: 5e-6}.get(index, 1e-4), run.plan.units[index]
    assert run.error() == pytest.approx(fixture["reconstructed_output_mse"], rel=DRIFT[name] / 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUNDING_WEIGHT)
def test_drift_is_that_of_a_last_digit(name):
    """Images changed by 1e-6 move the losses as the fixture's differ: not in the first unit, more in later ones."""
    weight, images = ROUNDING_WEIGHT[name], golden_images(32, 64)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    ours = Run.calibrated(name, images).reconstruct(weight)
    moved = Run.calibrated(name, images * (1 + 1e-6 * noise)).reconstruct(weight)
    theirs = expected_traces(load_fixture("golden_reconstruction")[name])
    from_fixture, from_ours = (
        [apart(a, b)[0] for a, b in zip(ours, others, strict=True)] for others in (theirs, moved)
    )
    assert from_ours[0] < 5e-6 and max(from_ours[2:]) > 100 * from_ours[0]
    assert max(from_fixture) < 4 * max(from_ours)
