"""The section `quant`: what is quantized, to how many bits, and how it is learned."""

from dataclasses import field
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from qdrop.config.types import (
    STRICT,
    ActivationQuantizer,
    Batch,
    Bits,
    Count,
    Fraction,
    NotNegative,
    Objective,
    Observer,
    Positive,
    Quantizer,
    Text,
)


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
    round_rate: NotNegative = 3e-3
    """Learning rate of the weights' integers, in steps of their grids; 0: they stay as the units learned them. That was
    better with 128 images, and worse with 1,024."""
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
