"""What a config may name, and where it lies: observers, quantizers, objectives, tasks. docs/extending.md adds to each.

Whatever a table names is imported when it is used, so that a config is checked without importing torch.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from pkgutil import resolve_name
from typing import Any


class Registry(MutableMapping[str, Any]):
    """Things by the names used in YAML.

    Args:
        places: Where each lies, `package.module:name`.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._entries: dict[str, Any] = dict(places)

    def __getitem__(self, name: str) -> Any:
        found = self._entries[name]
        return resolve_name(found) if isinstance(found, str) else found

    def __setitem__(self, name: str, thing: Any) -> None:
        self._entries[name] = thing

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __str__(self) -> str:
        """All names, in the words of help and errors: `one | another`."""
        return " | ".join(self)


def _of_module(module: str, *names: str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in names}


OBSERVERS = Registry(
    _of_module(
        "qdrop.quantization.observer",
        "MinMaxObserver",
        "AvgMinMaxObserver",
        "MSEObserver",
        "AvgMSEObserver",
        "MSEFastObserver",
        "AvgMSEFastObserver",
        "MSEBoundedObserver",
        "AvgMSEBoundedObserver",
        "ClippingObserver",
    )
)
"""How the range of a quantizer is found: subclasses of `Observer`."""

QUANTIZERS = Registry(
    _of_module(
        "qdrop.quantization.fake_quant",
        "FixedFakeQuantize",
        "LSQFakeQuantize",
        "LSQPlusFakeQuantize",
        "AdaRoundFakeQuantize",
        "AdaRoundLSQFakeQuantize",
        "FlexRoundFakeQuantize",
    )
)
"""What of a grid is learned, with which rounding: each makes a `FakeQuantize` of a `QuantizerSpec`."""

OBJECTIVES = Registry(
    {
        "squared_error": "qdrop.solver.objectives.squared_error:SquaredError",
        "fisher": "qdrop.solver.objectives.fisher:Fisher",
        "prediction_difference": "qdrop.solver.objectives.prediction_difference:PredictionDifference",
    }
)
"""What a unit's outputs are compared by: subclasses of `Objective`."""

TASKS = Registry(
    dict.fromkeys(("imagenet", "cifar10", "digits"), "qdrop.tasks.classification.task:Classification")
    | {"coco": "qdrop.tasks.detection.task:DetectionTask"}
)
"""What each type of data is for: a `Task`, made of all settings."""
