"""The published method's own numbers for detectors: calibration on batches, and ten iterations of the first units.

Two batches of two images are kept as they are, and iteration k draws batch (k - 1) mod 2. Scales of weights follow the
fixture to 1e-6, those of activations to 1e-3: the bounded search ends where rounding errors take it. The first units'
losses follow it as far as these scales do. The units of the pyramid learn right after backbone.layer2.0, those between
being calibrated alone.
"""

from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from golden import GOLDEN_DETECTORS, fill_detector, load_fixture

from qdrop.config import ActivationQConfig, LayerBits, QuantConfig, ReconConfig, WeightQConfig
from qdrop.graph.capture import capture
from qdrop.graph.insert import quantize_graph
from qdrop.graph.plan import make_plan
from qdrop.graph.split import segments
from qdrop.models import build_model
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizing
from qdrop.solver.activations.cache import ActivationCache, Separate, run_all
from qdrop.solver.calibrate import calibrate
from qdrop.solver.unit import reconstruct_unit

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
FROZEN = LayerBits(a_quantizer="FixedFakeQuantize")
PUBLISHED = {"backbone.conv1": FROZEN, "backbone.layer1": FROZEN}
"""The published code's stage freezing, which also keeps the scales of the stem and the first stage."""
VARIANTS = {
    True: "reconstruction_as_published",
    False: "reconstruction_if_stem_and_layer1_scales_were_trained",
}
RECON = ReconConfig(batch_size=2, iters=10, drop_prob=1.0)


def batches():
    values = np.random.RandomState(1).standard_normal((4, 3, 160, 192)).astype(np.float32)
    return list(torch.from_numpy(values).split(2))


@cache
def captured(name):
    return capture(fill_detector(build_model(GOLDEN_DETECTORS[name])).features(), batches()[0])


def calibrated(name, overrides):
    config = QuantConfig(
        a_qconfig=ActivationQConfig(observer="AvgMSEBoundedObserver"),
        w_qconfig=WeightQConfig(bit=2),
        **{"last_w_bit": None, "last_a_bit": None, "placement": "units", "divide": ["neck"], "overrides": overrides},
    )
    graph = deepcopy(captured(name))
    plan = make_plan(graph, config)
    quantize_graph(graph, plan)
    calibrate(graph, [{"input": batch} for batch in batches()], 2, CPU)
    return graph, plan


def published_name(spec):
    """The quantizer's name in the fixture."""
    *path, layer = spec.layer.removesuffix(".0").split(".")
    in_block = len(path) == 3 and path[1].startswith("layer")
    layer = {"conv1": "conv1_relu", "conv2": "conv2_relu", "add": "block"}.get(layer, layer) if in_block else layer
    if spec.kind is Kind.WEIGHT:
        return ".".join([*path, layer, "module.weight_fake_quant"])
    return ".".join(
        [*path, "block_post_act_fake_quantize" if layer == "block" else f"{layer}.layer_post_act_fake_quantize"]
    )


def golden(name, section):
    """A section of the fixture by its first column; RetinaNet's backbone is told where Faster R-CNN's is."""
    models = load_fixture("detection_golden")["models"]
    backbone = models[name.replace("retinanet", "faster_rcnn")].get(section, [])
    rows = [row for row in backbone if key_of(row).startswith("backbone")] + models[name].get(section, [])
    return {key_of(row): row for row in rows}


def key_of(row):
    return row["unit"] if isinstance(row, dict) else row[0]


@pytest.mark.parametrize("name", GOLDEN_DETECTORS)
def test_calibration(name):
    graph, plan = calibrated(name, {})
    expected = golden(name, "calibration")
    found = {published_name(spec): graph.get_submodule(spec.name) for spec in plan.quantizers}
    assert set(expected) == set(found)
    for key, (_, kind, bit, count, scales, zero_points, mean, *_) in expected.items():
        quantizer = found[key]
        assert (str(quantizer.spec.kind), quantizer.spec.bit, quantizer.spec.channels) == (kind, bit, count)
        assert quantizer.zero_point[:4].tolist() == zero_points, key
        limit = 1e-6 if kind == "weight" else 1e-3
        assert quantizer.scale[:4].tolist() == pytest.approx(scales, rel=limit), key
        # Of rows with so many weights the search may take a range beside the best, with nearly the same error.
        assert quantizer.scale.mean().item() == pytest.approx(mean, rel=1e-3), key


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", GOLDEN_DETECTORS)
def test_reconstruction(name, frozen):
    expected = golden(name, VARIANTS[frozen])
    graph, plan = calibrated(name, PUBLISHED if frozen else {})
    scales = {key: row[4][0] for key, row in golden(name, "calibration").items()}
    for spec in plan.quantizers:  # the same start: the search of activation scales amplifies rounding
        if spec.kind is Kind.ACTIVATION:
            graph.get_submodule(spec.name).scale.data.fill_(scales[published_name(spec)])

    parts = segments(graph, plan)
    values = ActivationCache({parts[0].inputs[0]: Separate(batches())}, parts)
    for index, part in enumerate(parts):
        inputs = [values[name] for name in part.inputs]
        full = run_all(part.module, [pair.full for pair in inputs], 2, CPU)
        if (told := expected.get(part.name)) is not None:
            steps = []
            draws = iter([torch.tensor([i % 2]) for i in range(10)])
            reconstruct_unit(part.module, inputs, full, RECON, torch.Generator(), draws, steps.append)
            losses = [float(step.reconstruction) for step in steps]
            totals = [float(step.reconstruction + step.rounding) for step in steps]
            # The pyramid reads what the units between give: one channel of layer2.1 has a range beside the best.
            limits = {"backbone.conv1": 1e-6, "backbone.layer1.0": 1e-5}
            limit = 3e-3 if part.name.startswith("neck") else limits.get(part.name, 1e-4)
            assert losses == pytest.approx(told["rec_loss_10"], rel=limit), part.name
            assert totals == pytest.approx(told["total_loss_10"], rel=limit), part.name
            after = told["activation_scales_after"]
            for spec in plan.quantizers:
                if (layer := published_name(spec).removeprefix(f"{part.name}.")) in after:
                    scale = graph.get_submodule(spec.name).scale.item()
                    assert scale == pytest.approx(after[layer], rel=1e-4), spec.name
        with quantizing(part.module):
            quantized = run_all(part.module, [pair.quantized for pair in inputs], 2, CPU)
        values.advance(index, part, full, quantized)
