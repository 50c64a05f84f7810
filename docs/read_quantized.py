"""Read a quantized network's weights with NumPy alone; the format is described in format.md.

python docs/read_quantized.py quantized.safetensors      # a line per weight: bits, shape, range, scales
"""

import base64
import json
import math
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = {f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
DTYPES = NUMBERS | {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?"}


def read_file(path: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and tensors, but for types NumPy lacks: 8 bytes with the header's length, the header, the data."""
    raw = Path(path).read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in ((name, entry) for name, entry in header.items() if entry["dtype"] in DTYPES):
        start, stop = (end + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[start:stop], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return metadata, tensors


def weights(path: str) -> dict[str, tuple[Any, Any, Any, Any]]:
    """By each quantized weight's path: integers, scale and zero point, broadcastable to them, the plan's entry."""
    metadata, tensors = read_file(path)
    if metadata.get("format") != "qdrop" or metadata["format_version"] != "2":
        raise ValueError(f"{path}: expected format qdrop, version 2")
    found = {}
    for spec in json.loads(zlib.decompress(base64.b64decode(metadata["plan"])))["quantizers"]:
        if spec["kind"] != "weight":
            continue
        name, bit = spec["name"].removesuffix("_quantizer"), spec["bit"]
        count = math.prod(spec["shape"])
        bits = np.unpackbits(tensors[f"{name}.packed"], count=count * bit, bitorder="little")
        steps = bits.reshape(count, bit).astype(np.int16) @ (1 << np.arange(bit, dtype=np.int16))
        integers = steps.reshape(spec["shape"]) - (2 ** (bit - 1) if spec["symmetric"] else 0)
        axes = [1] * integers.ndim
        axes[spec["ch_axis"] if spec["ch_axis"] >= 0 else 0] = -1
        scale, zero_point = (tensors[f"{spec['name']}.{part}"].reshape(axes) for part in ("scale", "zero_point"))
        found[name] = integers, scale, zero_point, spec
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: python docs/read_quantized.py quantized.safetensors")
    for name, (q, scale, zero_point, spec) in weights(sys.argv[1]).items():
        w = scale * (q - np.round(zero_point).astype(np.float32))  # the weight, [O, I/groups, kH, kW] or [O, I]
        print(f"{name:<40} {spec['bit']} bits  {q.shape!s:<18} {w.min():+.4f}..{w.max():+.4f}  {scale.size} scales")
