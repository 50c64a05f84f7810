"""Which file a command takes, and what it says of another."""

import pytest
import torch
from safetensors.torch import save_file

from qdrop.checkpoint.network_file import FileKind, NetworkFileError, find_network


def written(kind, path):
    """A file of a kind, under a name that says nothing."""
    if kind is FileKind.CHECKPOINT:
        save_file({"x": torch.ones(2)}, path)
    elif kind is FileKind.ONNX:
        onnx = pytest.importorskip("onnx")
        graph = onnx.helper.make_graph([], "graph", [], [])
        path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    elif kind is FileKind.ARCHIVE:
        torch.save({}, path)
    else:
        path.write_bytes(b"" if kind is FileKind.EMPTY else b"text")
    return path


@pytest.mark.parametrize("kind", FileKind)
def test_the_kind_is_told_by_the_content(kind, tmp_path):
    found = find_network(written(kind, tmp_path / "file"), *FileKind)
    assert (found.path, found.kind) == (tmp_path / "file", kind)


@pytest.mark.parametrize("kind", FileKind)
def test_another_kind_is_named_with_those_that_are_taken(kind, tmp_path):
    path = written(kind, tmp_path / "file")
    others = [other for other in FileKind if other is not kind][:2]
    with pytest.raises(NetworkFileError) as caught:
        find_network(path, *others)
    said, _, expected = str(caught.value).partition("expected")
    assert str(path) in said and kind in said and all(other in expected for other in others)


def test_a_run_folder_stands_for_its_checkpoint(tmp_path):
    with pytest.raises(NetworkFileError, match=r"no quantized\.safetensors in this folder"):
        find_network(tmp_path, FileKind.CHECKPOINT)
    written(FileKind.CHECKPOINT, tmp_path / "quantized.safetensors")
    assert find_network(tmp_path, FileKind.CHECKPOINT).path == tmp_path / "quantized.safetensors"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        find_network(tmp_path / "none", *FileKind)
