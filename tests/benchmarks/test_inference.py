import pytest
from networks import bits, images, network, quantized

from benchmarks.inference import Contestant, _open, profile
from qdrop.export import export_onnx
from qdrop.quantization.state import quantizing


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A quantized network with residual blocks, all of whose convolutions compute in integers."""
    model, _ = quantized(network("residual"), bits(4, 4, placement="integer"))
    with quantizing(model):
        return export_onnx(model, images(1), tmp_path_factory.mktemp("network") / "model.onnx", "int8")


def test_the_graph_that_ran_is_the_fused_one(path):
    contestant = _open(path, threads=1)
    assert isinstance(contestant, Contestant)
    assert contestant.operators["QLinearConv"] == 5
    assert contestant.operators["QLinearAdd"] == 2
    assert contestant.operators["Conv"] == 0


def test_shares_of_a_profile_add_up(path):
    shares = profile(path, images(2), threads=1)
    assert sum(shares.values()) == pytest.approx(1)
    assert {"QLinearConv", "QLinearAdd"} <= shares.keys()
