"""QDrop: post-training quantization of vision networks to 2-4 bits.

quantized, report = qdrop.quantize(model, images, {"w_qconfig": {"bit": 2}, "recon": {"iters": 2000}})
qdrop.save(quantized, "model.safetensors")    # and qdrop.load("model.safetensors")
"""

from qdrop.api import Report, quantize
from qdrop.checkpoint import CheckpointError, load, save
from qdrop.config import QuantConfig, ReconConfig
from qdrop.errors import QdropError
from qdrop.models import build_model
from qdrop.quantization.graph import GraphError, trace
from qdrop.quantization.plan import Plan, make_plan
from qdrop.quantization.state import quantizing

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "GraphError",
    "Plan",
    "QdropError",
    "QuantConfig",
    "ReconConfig",
    "Report",
    "build_model",
    "load",
    "make_plan",
    "quantize",
    "quantizing",
    "save",
    "trace",
]
