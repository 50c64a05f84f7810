"""Where weights are found, how they are read, and what is said when they cannot be used."""

import hashlib
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from golden import GOLDEN_DETECTORS
from safetensors.torch import save_file
from torch import nn

from qdrop.config import DataConfig
from qdrop.models import WeightsError, WeightsInfo, build_model, weights
from qdrop.models.state_dict import KEYS_SHOWN, load_weights, read_state_dict
from qdrop.models.weights import resolve_weights
from qdrop.solver.imagenet_util import validation_loader
from qdrop.tasks.classification.accuracy import accuracy


class Custom:
    """Not a tensor: a file that holds one is refused."""


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))


def info(path):
    return resolve_weights(str(path), "resnet18")


def equal(model, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def twin():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))


# Finding


def test_a_local_file_is_described_as_plain_data(tmp_path, network):
    path = tmp_path / "net.pth"
    torch.save(network.state_dict(), path)
    found = resolve_weights(str(path), "resnet18")
    assert found == WeightsInfo(str(path), None, hashlib.sha256(path.read_bytes()).hexdigest())
    assert json.loads(json.dumps(asdict(found)))["path"] == str(path)  # goes into env.json of the run folder


def test_a_relative_file_is_recorded_absolute(tmp_path, network, monkeypatch):
    torch.save(network.state_dict(), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    assert resolve_weights("net.pt", "resnet18").path == str(tmp_path / "net.pt")


def test_a_file_url_is_read_in_place(tmp_path, network, hub):
    path = tmp_path / "a net.pth"
    torch.save(network.state_dict(), path)
    assert info(path.as_uri()).path == str(path)
    assert not hub.exists()


def test_a_url_is_downloaded_once(served, requests, hub, network):
    folder, address = served
    torch.save(network.state_dict(), folder / "net.pth")
    url = f"{address}/net.pth"
    first = info(url)
    second = info(url)
    assert first == second
    assert requests == ["/net.pth"]
    assert first.url == url
    assert [str(path) for path in hub.iterdir()] == [first.path]  # no temporary file is left
    model = twin()
    load_weights(model, first)
    assert equal(model, network)


def test_files_of_one_name_at_two_addresses_stay_apart(served, hub):
    folder, address = served
    for name in ("a", "b"):
        (folder / name).mkdir()
        save_file({"x": torch.full((1,), float(ord(name)))}, folder / name / "model.safetensors")
    found = [info(f"{address}/{name}/model.safetensors") for name in ("a", "b")]
    assert [read_state_dict(Path(i.path))["x"].item() for i in found] == [97.0, 98.0]


def test_auto_is_the_published_checkpoint(served, hub, monkeypatch):
    folder, address = served
    monkeypatch.setitem(weights.PUBLISHED, "mobilenetv2", f"{address}/mobilenetv2.pth.tar")
    torch.save({"model": build_model("mobilenetv2").state_dict()}, folder / "mobilenetv2.pth.tar")
    found = resolve_weights("auto", "mobilenetv2")
    assert found.path == str(hub / "mobilenetv2.pth.tar")
    assert found.url == f"{address}/mobilenetv2.pth.tar"
    build_model("mobilenetv2", path="auto")


def test_published_addresses():
    release = "https://github.com/yhhhli/BRECQ/releases/download/v1.0/"
    published = [url for url in weights.PUBLISHED.values() if url.startswith(release)]
    assert [url.removeprefix(release) for url in published] == [
        "resnet18_imagenet.pth.tar",
        "resnet50_imagenet.pth.tar",
        "mobilenetv2.pth.tar",
        "regnet_600m.pth.tar",
        "regnet_3200m.pth.tar",
        "mnasnet.pth.tar",
    ]


@pytest.mark.parametrize("name", GOLDEN_DETECTORS.values())
def test_detectors_come_from_the_model_zoo(name, hub, monkeypatch):
    asked = []

    def offline(url, dst, hash_prefix, **_):
        asked.append((url, hash_prefix))
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError) as error:
        resolve_weights("auto", name)
    ((url, digits),) = asked
    network, config, file = url.removeprefix("https://download.openmmlab.com/mmdetection/v2.0/").split("/")
    assert name.startswith(network) and config == f"{name}_2x_coco" and file.endswith(f"-{digits}.pth")
    assert len(digits) == 8 and int(digits, 16)
    assert url in str(error.value) and str(hub / file) in str(error.value)


def test_a_failed_download_says_what_from_where_and_where_to(hub, monkeypatch):
    def offline(url, dst, **_):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError) as error:
        resolve_weights("auto", "resnet18")
    assert "network is unreachable" in str(error.value)
    assert weights.PUBLISHED["resnet18"] in str(error.value)
    assert str(hub / "resnet18_imagenet.pth.tar") in str(error.value)


def test_an_address_without_file_leaves_nothing(served, hub):
    with pytest.raises(WeightsError, match="404"):
        info(f"{served[1]}/absent.pth")
    assert list(hub.iterdir()) == []


def test_a_missing_file_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as error:
        info("absent.pth")
    assert str(tmp_path / "absent.pth") in str(error.value)


@pytest.mark.parametrize("path", ["net.onnx", "http://127.0.0.1/net.zip", "http://127.0.0.1/"])
def test_an_unknown_kind_of_file(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"\.pth, \.pth\.tar, \.pt, \.safetensors"):
        info(path)


def test_an_address_that_is_none():
    with pytest.raises(WeightsError, match=r"model\.path 'http://\[bad/x\.pth' is no URL: Invalid IPv6 URL"):
        resolve_weights("http://[bad/x.pth", "resnet18")


@pytest.mark.parametrize("end", range(1, 200, 7))
def test_a_file_of_an_old_torch_that_was_cut_off(end, tmp_path, network):
    path = tmp_path / "old.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-end])
    with pytest.raises(WeightsError, match=r"old\.pth, \d+ bytes, cannot be read as a checkpoint"):
        read_state_dict(path)


def test_an_unknown_scheme():
    with pytest.raises(WeightsError, match=r"s3://bucket/net\.pth.*expected a file"):
        info("s3://bucket/net.pth")


@pytest.mark.parametrize("path, model_type", [("auto", "resnet20"), ("embedded", "resnet18")])
def test_weights_that_a_model_does_not_have(path, model_type):
    with pytest.raises(WeightsError, match=f"'{path}'.*'{model_type}'"):
        resolve_weights(path, model_type)


def test_the_embedded_weights_fit_and_classify():
    model = build_model("digits_resnet", path="embedded")
    held_out = validation_loader(DataConfig(type="digits", num_workers=0))
    assert accuracy(model, held_out, "cpu") > 95


# Reading


@pytest.mark.parametrize("name", ["net.pth", "net.pth.tar", "net.pt", "net.safetensors"])
def test_every_kind_of_file_restores_the_tensors(tmp_path, network, name):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(network.state_dict(), path)
    model = twin()
    load_weights(model, info(path))
    assert equal(model, network)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "best": 0.5},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    ],
)
def test_wrappings_are_removed(tmp_path, network, wrap):
    torch.save(wrap(network.state_dict()), tmp_path / "net.pth")
    model = twin()
    load_weights(model, info(tmp_path / "net.pth"))
    assert equal(model, network)


def test_a_prefix_of_some_keys_only_is_part_of_the_name(tmp_path):
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "net.pth")
    assert set(read_state_dict(tmp_path / "net.pth")) == {"module.a", "b"}


def test_python_objects_are_refused_by_name(tmp_path):
    torch.save({"model": {}, "extra": Custom()}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"Python objects .*Custom") as error:
        read_state_dict(tmp_path / "net.pth")
    assert error.value.__suppress_context__  # torch's own traceback is not shown


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 50, b"PK\x03\x04 cut off"])
def test_damaged_files(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint") as error:
        read_state_dict(path)
    assert str(path) in str(error.value)
    assert error.value.__suppress_context__


def test_a_file_cut_off_in_the_middle(tmp_path, network):
    path = tmp_path / "net.pth"
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(WeightsError, match="700 bytes, cannot be read"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content, kind",
    [
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
        ({}, "nothing"),
        ({"epoch": 3}, r"'epoch' \(int\)"),
    ],
)
def test_content_that_is_no_dictionary_of_tensors(tmp_path, content, kind):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=kind):
        read_state_dict(tmp_path / "net.pth")


# Fitting


def test_counters_may_be_missing(tmp_path, network):
    state = {k: v for k, v in network.state_dict().items() if k != "1.num_batches_tracked"}
    torch.save(state, tmp_path / "net.pth")
    model = twin()
    load_weights(model, info(tmp_path / "net.pth"))
    assert equal(model, network)


def test_what_does_not_fit_is_listed_and_nothing_is_changed(tmp_path, network):
    state = network.state_dict()
    state["extra.weight"] = state.pop("1.running_mean")
    state["2.weight"] = torch.zeros(10, 4)
    torch.save(state, tmp_path / "net.pth")
    model = twin()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(model, info(tmp_path / "net.pth"))
    lines = str(error.value).splitlines()
    assert lines[1:4] == [
        "  missing (1): 1.running_mean",
        "  unexpected (1): extra.weight",
        "  wrong shape (1): 2.weight [10, 4] instead of [3, 4]",
    ]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_long_lists_are_cut_with_a_count(tmp_path, network):
    state = {f"extra{i}": torch.zeros(1) for i in range(KEYS_SHOWN + 5)} | network.state_dict()
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError) as error:
        load_weights(twin(), info(tmp_path / "net.pth"))
    shown = ", ".join(f"extra{i}" for i in range(KEYS_SHOWN))
    assert f"  unexpected (13): {shown} and 5 more" in str(error.value).splitlines()


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize(
    ("key", "change", "told"),
    [
        (
            "0.weight",
            lambda w: w.to(torch.int64),
            r"wrong type \(1\): 0\.weight torch\.int64 instead of torch\.float32",
        ),
        ("0.weight", lambda w: w.to(torch.uint8), r"0\.weight torch\.uint8 instead of torch\.float32"),
        ("0.weight", lambda w: w.to(torch.complex64), r"0\.weight torch\.complex64 instead of torch\.float32"),
        ("2.bias", lambda w: w.index_fill(0, torch.tensor(1), torch.nan), r"2\.bias holds nan; expected"),
        ("0.weight", lambda w: w.index_fill(0, torch.tensor(0), torch.inf), r"0\.weight holds inf; expected"),
        ("2.bias", lambda w: w.double().fill_(1e300), r"2\.bias holds inf; expected"),
    ],
)
def test_weights_that_would_be_cast_or_are_not_finite(tmp_path, network, name, key, change, told):
    state = network.state_dict()
    state[key] = change(state[key])
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(state, path)
    model = twin()
    before = twin()
    before.load_state_dict(model.state_dict())
    with pytest.raises(WeightsError, match=told) as caught:
        load_weights(model, info(path))
    assert str(path) in str(caught.value) and equal(model, before)


def test_torchs_advice_to_run_what_is_in_a_file_is_not_passed_on(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"net\.pt, \d+ bytes, cannot be read as a checkpoint") as caught:
        read_state_dict(tmp_path / "net.pt")
    assert "weights_only" not in str(caught.value)


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "net.pth", "w", 8) as packed:
        for name in good.namelist():
            packed.writestr(name, good.read(name) + bytes(100_000))
    with pytest.raises(WeightsError, match="an archive that unpacks to"):
        read_state_dict(tmp_path / "net.pth")
