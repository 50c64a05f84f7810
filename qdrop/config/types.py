"""Types of the settings: what values each may have.

The upper limits are far above what any run needs: they tell a slip of the finger before it takes the memory or the day.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from qdrop.registry import OBJECTIVES, OBSERVERS, QUANTIZERS, TASKS, Registry

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which no file may have in its name")
    return text


def _known(registry: Registry) -> AfterValidator:
    """Accepts the names of a registry, also those that are added to it later."""

    def check(name: str) -> str:
        if name not in registry:
            raise PydanticCustomError("unknown_name", "expected one of its names")
        return name

    return AfterValidator(check)


Bits = Annotated[int, Field(ge=2, le=8)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Processes = Annotated[int, Field(ge=0, le=1024)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Batch = Annotated[int, Field(ge=1, le=2**20)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
Text = Annotated[str, AfterValidator(_without_nul)]
# A text among the annotations is what help and errors say of the type.
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$"), "auto | cpu | cuda | cuda:N"]

ActivationQuantizer = Literal["FixedFakeQuantize", "LSQFakeQuantize", "LSQPlusFakeQuantize"]
Quantizer = Annotated[str, _known(QUANTIZERS), QUANTIZERS]
Observer = Annotated[str, _known(OBSERVERS), OBSERVERS]
Objective = Annotated[str, _known(OBJECTIVES), OBJECTIVES]
DataType = Annotated[str, _known(TASKS), TASKS]
