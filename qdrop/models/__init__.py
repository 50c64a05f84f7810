"""The networks of the paper, two for CIFAR-10, one for digits; and any of torchvision or timm by name."""

from qdrop.models.registry import BUILDERS, ModelError, build_model, build_model_with_info
from qdrop.models.weights import WeightsError, WeightsInfo

__all__ = ["BUILDERS", "ModelError", "WeightsError", "WeightsInfo", "build_model", "build_model_with_info"]
