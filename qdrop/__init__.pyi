from .api import Report as Report
from .api import quantize as quantize
from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import load as load
from .checkpoint import save as save
from .config import NetworkConfig as NetworkConfig
from .config import QuantConfig as QuantConfig
from .config import ReconConfig as ReconConfig
from .errors import QdropError as QdropError
from .graph.capture import capture as capture
from .graph.ops import GraphError as GraphError
from .graph.plan import Plan as Plan
from .graph.plan import make_plan as make_plan
from .models import build_model as build_model
from .quantization.state import quantizing as quantizing

__version__: str
__all__ = [
    "CheckpointError",
    "GraphError",
    "NetworkConfig",
    "Plan",
    "QdropError",
    "QuantConfig",
    "ReconConfig",
    "Report",
    "build_model",
    "capture",
    "load",
    "make_plan",
    "quantize",
    "quantizing",
    "save",
]
