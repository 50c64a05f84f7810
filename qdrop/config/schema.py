"""The settings of a run: typed, checked dataclasses. An unknown key or a value out of range is an error.

The docstring below a field is its help text, see ``help.py``. The section `quant` is in ``quant.py``, the types are in
``types.py``. YAML and overrides: ``load.py``.
"""

from dataclasses import field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from qdrop.config.quant import QuantConfig
from qdrop.config.types import (
    STRICT,
    Batch,
    Count,
    DataType,
    Deviation,
    Device,
    Mean,
    Pixels,
    Processes,
    Text,
    Threads,
)


@dataclass(config=STRICT, frozen=True)
class ModelConfig:
    """Which network, and its trained weights."""

    type: Text = "resnet18"
    """resnet18, resnet50, mobilenetv2, regnetx_600m, regnetx_3200m, mnasnet, resnet20 to resnet110 (CIFAR),
    digits_resnet; detectors: faster_rcnn_r50_fpn, faster_rcnn_r101_fpn, retinanet_r50_fpn, retinanet_r101_fpn,
    yolo_fastestv2; or timm:NAME, torchvision:NAME."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of its builder, as in {num_classes: 1000}."""
    path: Text | None = "auto"
    """Weights: a file, a URL, auto (the paper's checkpoint; of timm: and torchvision: their own), embedded (the
    digits network that comes with the package); null: random."""


@dataclass(config=STRICT, frozen=True)
class DataConfig:
    """Images to calibrate and to evaluate on."""

    type: DataType = "imagenet"
    """Which data set; digits comes with scikit-learn and needs no path; coco is for detectors."""
    name: Text | None = None
    """What results call it, for example "ImageNet, 1,200 images"; null: the type."""
    path: Text | None = None
    """Its folder; for imagenet the one that holds train and val, for coco train2017, val2017 and annotations."""
    batch_size: Batch = 64
    """Images in a batch when they are loaded and when evaluating."""
    num_workers: Processes = 4
    """Processes that load images; 0: the main one."""
    pin_memory: bool = True
    """Load into pinned memory, for a faster copy to a GPU."""
    input_size: Pixels = 224
    """Height and width of the network's input (imagenet). This and how images are resized, mean and std are by default
    those of the paper's networks; with model.type = timm:NAME or torchvision:NAME those that the network brings."""
    test_resize: Pixels = 256
    """Shorter side of a validation image before the centre is cropped to input_size (imagenet)."""
    crop_mode: Literal["center", "squash"] = "center"
    """center: a validation image keeps its proportions when it is resized; squash: both its sides become test_resize
    (imagenet)."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bilinear"
    """How pixels are interpolated where an image is resized (imagenet)."""
    val_limit: Count | None = None
    """Evaluate only that many validation images; null: all."""
    calib_from: Text = "train"
    """Where calibration images come from: a sub-folder of path, or a path of its own."""
    classes: Text | None = None
    """A file with all class folder names, one a line, in the order of the network's outputs; null: the
    sorted train folder."""
    augment: bool = True
    """Vary calibration images at random: imagenet, resized crop and flip; cifar10, shifted crop and flip; digits,
    shifted by a pixel; coco, flip. False: as in validation."""
    mean: tuple[Mean, Mean, Mean] = (0.485, 0.456, 0.406)
    """Mean of each channel, subtracted from the image."""
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, by which the image is divided."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.test_resize < self.input_size:
            raise ValueError(
                f"input_size {self.input_size} cannot be cropped from test_resize {self.test_resize}: "
                "expected test_resize >= input_size"
            )
        return self


@dataclass(config=STRICT, frozen=True)
class ProcessConfig:
    """How the run is carried out."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1005
    """Seed of every random choice."""
    device: Device = "auto"
    """Where to compute; auto: the GPU if there is one."""
    threads: Threads | None = None
    """CPU threads; null: torch decides."""
    out: Text | None = None
    """Folder of the run's results; null: runs/NETWORK-wXaY-HASH beside the config file."""


@dataclass(config=STRICT, frozen=True)
class Config:
    """All settings of a run."""

    quant: QuantConfig = field(default_factory=QuantConfig)
    """What is quantized, to how many bits, and how it is learned."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which network, and its trained weights."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images to calibrate and to evaluate on."""
    process: ProcessConfig = field(default_factory=ProcessConfig)
    """How the run is carried out."""
