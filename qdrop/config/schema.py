"""The settings of a run: typed, checked dataclasses. An unknown key or a value out of range is an error.

The docstring below a field is its help text, see ``help.py``. YAML and overrides: ``load.py``. The upper limits
are far above what any run needs: they tell a slip of the finger before it takes the memory or the day.
"""

from dataclasses import field
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass
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


@dataclass(config=STRICT, frozen=True)
class QConfig:
    """How a tensor is quantized."""

    quantizer: Quantizer
    """Which fake quantizer."""
    observer: Observer = "MSEObserver"
    """How the range is found. MinMax: smallest and largest value; MSE: least mean of |error|^2.4 over a grid of
    ranges, as published; MSEFast: the same by golden-section search; MSEBounded: by SciPy's bounded search, as
    published for detectors; Clipping: as MSE with exponent 1.5, which cuts
    off outliers sooner and is not of the paper; Avg: mean of the ranges of all batches."""
    bit: Bits = 4
    """Number of bits."""
    symmetric: bool = False
    """Zero point fixed at 0, integers from -2^(bit-1); otherwise integers from 0 to 2^bit - 1."""
    ch_axis: int = -1
    """Axis with a scale of its own for each channel; -1: one scale for the whole tensor."""


@dataclass(config=STRICT, frozen=True)
class ActivationQConfig(QConfig):
    """How activations are quantized."""

    quantizer: ActivationQuantizer = "LSQFakeQuantize"
    """Fixed: range from the observer; LSQ: scale learned; LSQPlus: scale and zero point learned."""
    ch_axis: Literal[-1, 1] = -1
    """-1: one scale for the whole tensor; 1: one for each channel, wherever the first axis is the images'."""


@dataclass(config=STRICT, frozen=True)
class WeightQConfig(QConfig):
    """How weights are quantized."""

    quantizer: Quantizer = "AdaRoundFakeQuantize"
    """AdaRound: rounding up or down learned by reconstruction, without which it is to the nearest. AdaRoundLSQ: the
    scale learned too (GENIE-M). FlexRound: the scale, and what each element is divided by before rounding."""
    bit: Bits = 2
    """Number of bits."""
    ch_axis: Literal[-1, 0] = 0
    """-1: one scale for the whole tensor; 0: one for each output channel."""


@dataclass(config=STRICT, frozen=True)
class LayerBits:
    """Bits, and quantizer, of the modules whose name matches a pattern."""

    w_bit: Bits | None = None
    """Bits of their weights; null: unchanged."""
    a_bit: Bits | None = None
    """Bits of their activations; null: unchanged."""
    a_quantizer: ActivationQuantizer | None = None
    """Quantizer of their activations, as FixedFakeQuantize, which keeps its calibrated scale; null: unchanged."""


@dataclass(config=STRICT, frozen=True)
class CacheConfig:
    """Where the activations of all calibration images are kept while the units are reconstructed."""

    device: Literal["auto", "gpu", "cpu", "disk"] = "auto"
    """gpu: beside the model; cpu: main memory; disk: memory-mapped files in the run folder, removed afterwards;
    auto: the nearest of these with room. Where memory runs out all the same, one place further away."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision they are stored in; a batch is float32 again."""


PRESETS: dict[str, dict[str, Any]] = {
    "published": {"iters": 20000, "round_lr": 1e-3, "scale_lr": 4e-5},
    "fast": {"iters": 1000, "round_lr": 3e-2, "scale_lr": 4e-5},
    "short": {"iters": 400, "round_lr": 3e-2, "scale_lr": 4e-5},
}
"""Schedules of reconstruction, compared by benchmarks/iterations.py. In a file or on the command line
`quant.recon.preset` names one; in Python it is `ReconConfig(**PRESETS["fast"])`."""


@dataclass(config=STRICT, frozen=True)
class ReconConfig:
    """Reconstruction, unit by unit."""

    batch_size: Batch = 32
    """Calibration images in one iteration, drawn with replacement."""
    scale_lr: NotNegative = 4e-5
    """Learning rate of the activation scales; decays to 0 by a cosine."""
    weight_scale_lr: NotNegative | None = None
    """Learning rate of the weight scales, where w_qconfig.quantizer learns them; decays alike; null: as scale_lr."""
    round_lr: NotNegative = 1e-3
    """Learning rate of the weight rounding."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Fraction of the iterations before the rounding term sets in."""
    objective: Objective = "squared_error"
    """What a unit's outputs are compared by."""
    weight: NotNegative = 0.01
    """Weight of the rounding term in the loss: 0.01 ResNet, RegNet; 0.1 MobileNetV2; 0.2 MNASNet."""
    iters: Count = 20000
    """Iterations for each unit."""
    b_range: tuple[Positive, Positive] = (20.0, 2.0)
    """Exponent of the rounding term, from its first value down to its last."""
    keep_gpu: bool = True
    """Keep the cached activations on the GPU where there is room; false: cache.device = auto means main memory
    or, without room there, disk."""
    round_mode: Literal["learned_hard_sigmoid"] = "learned_hard_sigmoid"
    """How rounding is learned: a clipped sigmoid stretched beyond 0 and 1."""
    drop_prob: Fraction = 0.5
    """Probability of KEEPING the quantized value of an activation (1.0: never drop), otherwise its
    full-precision value is used. The name is that of the published configs."""
    input_prob: Fraction | None = None
    """Probability of KEEPING the quantized value at a unit's input (1.0: never drop); null: as drop_prob."""
    input: Literal["quantized", "weights"] = "quantized"
    """What counts as the quantized value at a unit's input while its rounding learns: quantized, that of the quantized
    network; weights, that of the network with quantized weights and activations in full precision."""
    correct_statistics: Annotated[int, Field(ge=0, le=10**6)] = 0
    """Iterations for each batch in which a unit's full-precision inputs are moved, before it learns, towards what its
    batch norms know of all training images (PD-Quant); 0: none."""
    learn_scales: Literal["with_rounding", "after"] = "with_rounding"
    """When activation scales learn: at the same time as the rounding; or after it, without drop, in as many iterations
    again."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the iteration of a unit; auto: where that saves more time than it takes."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Arithmetic of the layers in an iteration; losses and what is learned stay in float32. tf32: GPU only."""
    granularity: Literal["block", "layer", "mixed"] = "block"
    """A unit is a residual block (or a layer outside any), or a single layer wherever that can be; mixed: a block, or
    several in a row between which the loss swings most."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Where activations are kept, and how precisely."""

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: object) -> object:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("b_range")
    @classmethod
    def _falls(cls, b_range: tuple[float, float]) -> tuple[float, float]:
        if b_range[0] < b_range[1]:
            raise ValueError("expected the larger value first, as in [20, 2]")
        return b_range

    @field_validator("cache")
    @classmethod
    def _agrees_with_keep_gpu(cls, cache: CacheConfig, info: ValidationInfo) -> CacheConfig:
        if cache.device == "gpu" and info.data.get("keep_gpu") is False:
            raise ValueError("device = gpu contradicts quant.recon.keep_gpu = false; remove one of them")
        return cache


@dataclass(config=STRICT, frozen=True)
class NetworkConfig:
    """Learning over the whole network, after its units."""

    iters: Count = 800
    """Iterations."""
    batch_size: Batch = 32
    """Calibration images in one iteration, drawn with replacement."""
    scale_rate: NotNegative = 1e-2
    """Learning rate of the scales of weights and activations, as a share of each one's size divided by the largest
    integer of the coarsest grid, which is 3 at 2 bits and 15 at 4; decays to 0 by a cosine."""
    bias_rate: NotNegative = 3e-2
    """The same of the biases, as a share of the standard deviation of each layer's."""
    features: NotNegative = 1.0
    """Weight of the error of what the last layer reads, beside that of the outputs."""
    augment: bool = True
    """Shift and mirror images at random; what they should give is then worked out anew in every iteration."""


@dataclass(config=STRICT, frozen=True)
class QuantConfig:
    """What is quantized, to how many bits, and how it is learned."""

    a_qconfig: ActivationQConfig | None = field(default_factory=ActivationQConfig)
    """Activations; null: only weights are quantized."""
    w_qconfig: WeightQConfig = field(default_factory=WeightQConfig)
    """Weights."""
    calibrate: Count = 1024
    """Number of calibration images."""
    calibrate_range: Count = 256
    """How many of them, at most, set the activation ranges."""
    calibrate_batch: Batch = 64
    """Images in a batch of these: the Avg observers take the mean over batches. Also bounds the memory it takes."""
    first_w_bit: Bits | None = 8
    """Bits of the first layer's weights; null: same as the others."""
    last_w_bit: Bits | None = 8
    """Bits of the last layer's weights; null: same as the others."""
    last_a_bit: Bits | None = 8
    """Bits of the last layer's input; null: same as the others."""
    placement: Literal["published", "units", "integer"] = "published"
    """published: what layers and other products read, where it is produced; not the image, nor what only goes into
    adds, gates and norms. units: what each block and each layer outside of blocks gives, unless the network returns
    it, as published for detectors. integer: as published, and all else in 8 bits, so that integer kernels can run it
    all."""
    divide: list[Text] = field(default_factory=list)
    """Patterns of modules that are no block, as in [neck]: the blocks and layers inside are quantized, and learned, one
    by one."""
    overrides: dict[str, LayerBits] = field(default_factory=dict)
    """Bits for patterns of names, as in {"layer4.*": {w_bit: 4, a_bit: 8}}; names are those of plan.json without
    .weight_quantizer and .output_quantizer. A star also matches dots, the name of a module covers all inside, and of
    several patterns that match the last counts."""
    recon: ReconConfig | None = field(default_factory=ReconConfig)
    """Reconstruction, by default as published; null: nothing is learned, weights are rounded to the
    nearest."""
    network: NetworkConfig | None = None
    """Learning over the whole network, after its units, which is not of the paper; null: none."""

    @model_validator(mode="after")
    def _a_batch_can_be_drawn(self) -> Self:
        if self.recon is not None and self.calibrate < self.recon.batch_size:
            raise ValueError(
                f"calibrate = {self.calibrate} images are fewer than one batch, recon.batch_size = "
                f"{self.recon.batch_size}: expected calibrate >= recon.batch_size"
            )
        return self

    @field_validator("recon")
    @classmethod
    def _has_rounding_to_learn(cls, recon: ReconConfig | None, info: ValidationInfo) -> ReconConfig | None:
        weights = info.data.get("w_qconfig")
        if recon and weights and weights.quantizer in get_args(ActivationQuantizer):  # all of them to the nearest
            raise ValueError(
                "reconstruction learns the rounding of weights: expected quant.w_qconfig.quantizer = "
                f"AdaRoundFakeQuantize, got {weights.quantizer}; or set quant.recon = null"
            )
        return recon


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
