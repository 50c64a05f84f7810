"""Accuracy against iterations on ImageNet: MobileNetV2, the published rates and those of the preset `fast`.

W2A4 and W2A2, 512 calibration images, 16 of them in an iteration, and the ranges of ClippingObserver, as MSEObserver
leaves nothing of this network at 4 bits. Compared on training images that were not calibrated on. Needs real data:

    python -m benchmarks.iterations_mobilenetv2 --data DATA/imagenet --weights MOBILENETV2.safetensors

The rates of `fast` were chosen on ResNet-20 (benchmarks.iterations); this network confirms them or does not, and says
whether a faster rate of the rounding would suit it better. Parts of it can be run one after the other, as there.
"""

import sys

from benchmarks.study import FAST, FASTER, PUBLISHED, Study, main
from qdrop.config import PRESETS, ActivationQConfig, DataConfig, QuantConfig, ReconConfig

STUDY = Study(
    name="iterations_mobilenetv2",
    title="MobileNetV2, 1,200 ImageNet validation images (squashed)",
    network="mobilenetv2",
    data=DataConfig("imagenet", num_workers=0, test_resize=227),
    quant=QuantConfig(
        a_qconfig=ActivationQConfig(observer="ClippingObserver"),
        calibrate=512,
        calibrate_range=64,
        recon=ReconConfig(**PRESETS["published"] | {"batch_size": 16, "weight": 0.1}),
    ),
    held_out=488,
    schedules={"published": PUBLISHED, "rounding 3e-2": FAST},
    factors={"rounding 1e-1": FASTER},
)

if __name__ == "__main__":
    sys.exit(main(__doc__, STUDY))
