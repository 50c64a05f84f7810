"""A quantized network as one small file: integers at their real width, and all that is needed to rebuild it.

    qdrop.save(quantized, "resnet18-w2a4.safetensors")
    quantized = qdrop.load("resnet18-w2a4.safetensors")    # the same outputs, bit for bit

The format is described in docs/format.md, and read without this package by docs/read_quantized.py.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, fx

from qdrop.checkpoint.container import CheckpointError, read_container, write_container
from qdrop.checkpoint.packed import Checkpoint, check_grid, reason
from qdrop.checks import usable_device
from qdrop.graph.data import GraphDataError, constants_of, graph_to_data
from qdrop.graph.insert import QuantizedWeight, quantized_weights
from qdrop.graph.plan import Plan
from qdrop.quantization.fake_quant import FakeQuantize
from qdrop.quantization.packing import pack
from qdrop.quantization.spec import Kind

FORMAT = "qdrop"
VERSION = 2
"""Of the format; version 1, of qdrop before it captured networks with `torch.export`, is refused."""
LARGEST = 1 << 24
"""Bytes that the description of a network may take: what unpacks to more is refused."""
_PLAN = TypeAdapter(Plan)


def describe(
    model: fx.GraphModule, config: Mapping[str, Any] | None = None, metrics: Mapping[str, Any] | None = None
) -> Checkpoint:
    """What a file of `model` holds; nothing is written.

    Args:
        model: A quantized network, calibrated: from `qdrop.quantize`, `quantize_graph` or `qdrop.load`.
        config: Settings to record, plain data.
        metrics: Figures to record, plain data.

    Raises:
        CheckpointError: If it is no such network, or uses what a file may not hold; names it.
    """
    graph, plan = check_graph(model), model.meta["plan"]
    tensors = _quantized(model, plan) | _not_quantized(model, plan)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    checkpoint = Checkpoint(graph, plan, tensors, config or {}, metrics or {})
    _check_loads(checkpoint, model)
    return checkpoint


def _check_loads(checkpoint: Checkpoint, model: fx.GraphModule) -> None:
    """Refuse values that :func:`load` would refuse, and types that part of the network was turned into."""
    try:
        checkpoint.check_tensors()
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    unquantized = checkpoint.unquantized()
    for name, value in model.named_parameters():
        if name in unquantized and value.is_floating_point() and value.dtype != torch.float32:
            raise CheckpointError(
                f"the network cannot be saved: '{name}' is {value.dtype}; expected torch.float32, in which the network"
                " was quantized"
            )


def _quantized(model: fx.GraphModule, plan: Plan) -> dict[str, Tensor]:
    """Grids of the quantizers, and the packed weights."""
    tensors: dict[str, Tensor] = {}
    for spec in plan.quantizers:
        quantizer = model.get_submodule(spec.name)
        assert isinstance(quantizer, FakeQuantize)
        try:  # what would not load is not written
            check_grid(spec, quantizer.scale, quantizer.zero_point)
        except ValueError as error:
            raise CheckpointError(f"{error}; was the network calibrated?") from error
        tensors[f"{spec.name}.scale"] = quantizer.scale
        tensors[f"{spec.name}.zero_point"] = _smallest(quantizer.zero_point)
    for found in quantized_weights(model):
        tensors[f"{found.name}.packed"] = torch.from_numpy(pack(_integers(found), found.quantizer.spec.bit))
    return tensors


def _not_quantized(model: fx.GraphModule, plan: Plan) -> dict[str, Tensor]:
    """Constants that stay as they are, by their own paths."""
    quantized = {spec.tensor for spec in plan.quantizers if spec.kind is Kind.WEIGHT}
    return {path: value for path, value in constants_of(model).items() if path not in quantized}


def check_graph(model: fx.GraphModule) -> dict[str, Any]:
    """The graph of a quantized network as plain data: whether it can be saved is known before it is calibrated.

    Raises:
        CheckpointError: If it is no such network, or uses what a file may not hold; names it.
    """
    if not isinstance(getattr(model, "meta", {}).get("plan"), Plan):
        raise CheckpointError(
            f"{type(model).__name__} is not a quantized network; expected what qdrop.quantize returns"
        )
    try:
        return graph_to_data(model)
    except GraphDataError as error:
        raise CheckpointError(str(error)) from error


def save(
    model: fx.GraphModule,
    path: str | Path,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a quantized network as one file, whole or not at all.

    Args:
        model: What `qdrop.quantize` returned, on any device.
        path: The file, by convention `*.safetensors`.
        config: Settings to record, plain data.
        metrics: Figures to record, plain data.

    Raises:
        CheckpointError: If `model` is no quantized network or uses what a file may not hold; names it.
        OSError: If the file cannot be written; what was there before is then still there.
    """
    write(describe(model, config, metrics), path)


def load(path: str | Path, device: torch.device | str = "cpu") -> fx.GraphModule:
    """The network that :func:`save` wrote, its quantizers on. Needs no other file, and executes nothing from it.

    The settings and figures that were recorded with it are in its `meta["config"]` and `meta["metrics"]`.

    Args:
        path: The file.
        device: Where to put it.

    Raises:
        CheckpointError: If the file is truncated, changed, of a newer format or of something else.
        InputError: If there is no such device.
        OSError: If it cannot be read.
    """
    target, checkpoint = usable_device(device), read(path)
    try:
        return checkpoint.build().to(target)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint as one file, whole or not at all.

    Raises:
        OSError: If it cannot be written.
        TypeError: If config or metrics are no plain data.
    """
    metadata = {
        "graph": _compress(json.dumps(checkpoint.graph, separators=(",", ":"))),
        "plan": _compress(json.dumps(checkpoint.plan.to_dict(), separators=(",", ":"))),
        "config": json.dumps(dict(checkpoint.config)),
        "metrics": json.dumps(dict(checkpoint.metrics)),
    }
    write_container(Path(path), FORMAT, VERSION, metadata, checkpoint.tensors)


def read(path: str | Path) -> Checkpoint:
    """What a file holds, checked against its checksum; nothing is built.

    Raises:
        CheckpointError: If the file is truncated, changed, of a newer format or of something else.
        OSError: If it cannot be read.
    """
    metadata, tensors = read_container(Path(path), FORMAT, VERSION)
    try:
        return Checkpoint(
            graph=_object("graph", _decompress(metadata["graph"])),
            plan=_plan(_decompress(metadata["plan"])),
            tensors=tensors,
            config=_object("config", metadata["config"]),
            metrics=_object("metrics", metadata["metrics"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, zlib.error) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read: {reason(error)}") from error


def _object(key: str, text: str | bytes) -> dict[str, Any]:
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError(f"{key} is a JSON {type(data).__name__}; expected an object")
    return data


def _plan(text: bytes) -> Plan:
    """A plan whose every field has its type: what reads it need not expect another."""
    try:
        _PLAN.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"plan.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return Plan.from_dict(json.loads(text))


def _compress(text: str) -> str:
    """Description of a network: repetitive, and in a small network more than its 2-bit weights."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _decompress(text: str) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(base64.b64decode(text), LARGEST)
    if not stream.eof:
        raise ValueError(f"the description of the network is cut off, or takes more than {LARGEST} bytes")
    return data


def _integers(found: QuantizedWeight) -> NDArray[np.uint8]:
    try:
        steps: NDArray[np.uint8] = found.quantizer.integers(found.weight).numpy(force=True)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return steps


def _smallest(zero_point: Tensor) -> Tensor:
    """Zero points as int16 where that is exact: all but those that LSQ+ learns."""
    zero_point = zero_point.detach()
    small = zero_point.to(torch.int16)
    return small if torch.equal(small.to(zero_point.dtype), zero_point) else zero_point
