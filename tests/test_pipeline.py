"""One pipeline, two callers: the same settings and images give the same bytes, from the command and from Python."""

from pathlib import Path

import pytest

import qdrop
from qdrop.checkpoint import read
from qdrop.config import load_config
from qdrop.solver.imagenet_util import calibration_images
from qdrop.solver.main_imagenet import run

CONFIG = Path(__file__).parents[1] / "exp" / "quickstart" / "config.yaml"
SHORT = [
    "quant.calibrate=64",
    "quant.calibrate_range=64",
    "data.val_limit=50",
    "quant.recon.iters=6",
    "quant.network.iters=2",
]


def tensors(file: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of everything in a file: packed weights, scales, zero points, biases."""
    return {name: (str(value.dtype), value.numpy().tobytes()) for name, value in read(file).tensors.items()}


def by_command(folder: Path, *overrides: str) -> dict[str, tuple[str, bytes]]:
    run(load_config(CONFIG, [*SHORT, *overrides]), folder)
    return tensors(folder / "quantized.safetensors")


def by_api(file: Path, *overrides: str) -> dict[str, tuple[str, bytes]]:
    config = load_config(CONFIG, [*SHORT, *overrides])
    model = qdrop.build_model(config.model.type, path=config.model.path)
    images = calibration_images(config.data, config.quant.calibrate, config.process.seed)
    quantized, _ = qdrop.quantize(model, images, config.quant, seed=config.process.seed)
    qdrop.save(quantized, file)
    return tensors(file)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["quant.recon=null"],
        ["quant.network.iters=4"],
        ["quant.a_qconfig.observer=AvgMinMaxObserver", "quant.calibrate_batch=24", "data.batch_size=10"],
        ["quant.a_qconfig.observer=AvgMSEFastObserver", "quant.recon.batch_size=16", "quant.recon.granularity=layer"],
    ],
)
def test_the_command_and_the_api_give_the_same_bytes(overrides, tmp_path):
    assert by_command(tmp_path, *overrides) == by_api(tmp_path / "api.safetensors", *overrides)


def test_one_setting_decides_how_many_images_are_calibrated_on_at_a_time(tmp_path):
    """And not one of the two that say how images are loaded and how many are learned from."""
    average = ["quant.recon=null", "quant.a_qconfig.observer=AvgMinMaxObserver"]
    settings = ("data.batch_size=64", "data.batch_size=7", "quant.calibrate_batch=32")
    whole, others, halves = (by_command(tmp_path / setting, *average, setting) for setting in settings)
    assert whole == others != halves
