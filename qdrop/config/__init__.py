"""The settings of a run: what there is (schema), from files and the command line (load), in words (help)."""

from qdrop.config.errors import ConfigError
from qdrop.config.load import (
    HOW,
    config_from_dict,
    config_to_dict,
    flat,
    load_config,
    save_config,
    what_counts,
)
from qdrop.config.methods import METHODS, Method
from qdrop.config.quant import (
    PRESETS,
    ActivationQConfig,
    CacheConfig,
    LayerBits,
    NetworkConfig,
    QConfig,
    QuantConfig,
    ReconConfig,
    WeightQConfig,
)
from qdrop.config.schema import Config, DataConfig, ModelConfig, ProcessConfig

__all__ = [
    "HOW",
    "METHODS",
    "PRESETS",
    "ActivationQConfig",
    "CacheConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "LayerBits",
    "Method",
    "ModelConfig",
    "NetworkConfig",
    "ProcessConfig",
    "QConfig",
    "QuantConfig",
    "ReconConfig",
    "WeightQConfig",
    "config_from_dict",
    "config_to_dict",
    "flat",
    "load_config",
    "save_config",
    "what_counts",
]
