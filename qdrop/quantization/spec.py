"""What one quantizer is, as plain data."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from qdrop.quantization.affine import integer_range
from qdrop.quantization.names import identifier, module_path


class Kind(StrEnum):
    """What a quantizer quantizes."""

    WEIGHT = "weight"
    ACTIVATION = "activation"


class Group(StrEnum):
    """What a learned parameter is; those of a group have one learning rate."""

    ROUNDING = "rounding"
    WEIGHT_SCALE = "weight_scale"
    ACTIVATION_SCALE = "activation_scale"
    ZERO_POINT = "zero_point"


@dataclass(frozen=True)
class QuantizerSpec:
    """One quantizer: where it sits and how it rounds."""

    name: str
    """Dotted path of the quantizer module, for example `layer1.0.conv1.weight_quantizer`."""
    kind: Kind
    """Weight or activation."""
    node: str
    """Graph node whose value is quantized: the constant for a weight, the producer for an activation."""
    quantizer: str
    """Name of the quantizer, see :data:`qdrop.registry.QUANTIZERS`."""
    observer: str
    """Name of the observer that sets the range, see :data:`qdrop.registry.OBSERVERS`."""
    bit: int
    """Width, 2 to 8."""
    symmetric: bool
    """Signed integers around zero."""
    ch_axis: int
    """Axis with a scale of its own per index; -1: one scale for the tensor."""
    shape: tuple[int, ...]
    """Shape of the weight, or of the activation of one image (no batch axis)."""

    @property
    def integers(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        return integer_range(self.bit, self.symmetric)

    @property
    def channels(self) -> int:
        """How many scales the quantizer holds."""
        if self.ch_axis == -1:
            return 1
        batch_axes = 0 if self.kind is Kind.WEIGHT else 1
        return self.shape[self.ch_axis - batch_axes]

    @property
    def layer(self) -> str:
        """Path of the layer or of what else produces the value: the quantizer's name without its last part."""
        if self.kind is Kind.WEIGHT:
            return self.tensor.removesuffix(".weight")
        return self.name.removesuffix("output_quantizer")[:-1]

    @property
    def tensor(self) -> str:
        """Of a weight's quantizer: path of the weight."""
        return self.name.removesuffix("_quantizer")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or YAML; :meth:`from_dict` reads it back."""
        return asdict(self) | {"kind": str(self.kind), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "QuantizerSpec":
        """The spec that :meth:`to_dict` wrote.

        Raises:
            ValueError: If a name in it is none.
        """
        module_path(data["name"])
        identifier(data["node"])
        return cls(**(data | {"kind": Kind(data["kind"]), "shape": tuple(data["shape"])}))
