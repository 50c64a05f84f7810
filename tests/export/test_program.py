import warnings
from dataclasses import replace

import pytest
import torch
from golden import fill_by_rule, golden_images
from networks import NETWORKS, bits, images, network, quantized

import qdrop
from qdrop.export import export_program
from qdrop.export.program import save_program
from qdrop.models import build_model
from qdrop.quantization.state import quantizers, quantizing


@pytest.mark.parametrize(
    "name, quantizer", [*((name, "LSQFakeQuantize") for name in NETWORKS), ("residual", "LSQPlusFakeQuantize")]
)
def test_runs_from_the_program_with_any_batch(name, quantizer):
    config = bits(2, 4)
    config = replace(config, a_qconfig=replace(config.a_qconfig, quantizer=quantizer))
    model, _ = quantized(network(name), config)
    with quantizing(model), torch.no_grad():
        program = export_program(model, images(1))
        for count in (1, 2, 7):
            assert torch.equal(program.module()(images(count)), model(images(count)))


def test_a_whole_network_survives_saving(tmp_path):
    x = golden_images(4, 32)
    quick = {"observer": "MinMaxObserver"}
    config = {"w_qconfig": quick | {"bit": 2}, "a_qconfig": quick, "calibrate": 4, "recon": None}
    model, _ = qdrop.quantize(fill_by_rule(build_model("resnet20")), x, config)
    program = export_program(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_program(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    for name, value in program.state_dict.items():
        saved = loaded.state_dict[name]
        assert torch.equal(saved, value) and saved.stride() == value.stride()  # also of channels-last weights
    with torch.no_grad():
        assert torch.equal(loaded.module()(x), model(x))


def test_gradients_are_on_as_before():
    model, _ = quantized(network("residual"))
    with quantizing(model):
        export_program(model, images(1))
        model(images(2)).sum().backward()
    learned = [p for q in quantizers(model) for p in q.param_groups().get("activation_scale", [])]
    assert learned
    assert all(p.grad is not None for p in learned)
