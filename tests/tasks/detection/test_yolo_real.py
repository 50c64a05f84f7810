"""Yolo-FastestV2 on real pictures, and out of PyTorch."""

import pytest
import torch
from real_data import real_folder

import qdrop
from qdrop.config import config_from_dict
from qdrop.models import build_model
from qdrop.models.yolo_fastestv2 import YoloFastestV2
from qdrop.tasks.task import make_task


@pytest.mark.data
def test_full_precision_has_its_average_precision():
    folder = real_folder() / "coco"
    weights = folder / "weights" / "yolo_fastestv2.safetensors"
    config = config_from_dict({"data": {"type": "coco", "path": str(folder), "num_workers": 0, "batch_size": 20}})
    task = make_task(config)
    network = task.network(build_model("yolo_fastestv2", path=str(weights)))
    figures = task.evaluate(network, torch.device("cpu"))
    assert figures == pytest.approx({"AP": 15.44, "AP50": 28.81, "AP75": 13.99}, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("container", ["native", "int8"])
def test_onnx_runtime_gives_the_same_outputs_by_name(container, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    images = torch.rand(4, 3, 64, 64)
    bits = {"w_qconfig": {"bit": 4}, "a_qconfig": {"bit": 8, "observer": "MinMaxObserver"}, "recon": None}
    network, _ = qdrop.quantize(YoloFastestV2().eval(), images, bits)
    from qdrop.export import export_onnx

    session = onnxruntime.InferenceSession(export_onnx(network, images, tmp_path / "yolo.onnx", container))
    expected = network(images)
    assert [output.name for output in session.get_outputs()] == list(expected)
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    for value, of_torch in zip(found, expected.values(), strict=True):
        difference = (torch.from_numpy(value) - of_torch).abs()
        assert difference.mean() < 0.01 * of_torch.std() + 1e-3  # a value at the edge of two steps may take the other
