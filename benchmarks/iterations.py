"""Accuracy against iterations: the published schedule and faster ones.

ResNet-20 on CIFAR-10 at W2A4 and W2A2, 1,024 calibration images. Schedules are compared, and one is chosen, on
training images that were not calibrated on; the test images are only reported. Needs real data:

    python -m benchmarks.iterations --data DATA/cifar10 --weights DATA/cifar10/weights/resnet20.safetensors

It takes hours, so runs that are on record are not repeated, and parts of it can be run one after the other
(`--iters 20000 --schedules published --seeds 1`); Ctrl-C ends it with the runs that are finished. Delete
benchmarks/results/iterations.json to start afresh.
"""

import sys
from typing import Any

from benchmarks.study import FAST, FASTER, PUBLISHED, Study, main
from qdrop.config import PRESETS, DataConfig, QuantConfig, ReconConfig

SCHEDULES: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "rounding 3e-2": FAST,
}
"""What is compared."""
FACTORS: dict[str, dict[str, Any]] = {
    "rounding 1e-2": FAST | {"round_lr": 1e-2},
    "rounding 1e-1": FASTER,
    "scales 4e-4": FAST | {"scale_lr": 4e-4},
    "rounding weight 1e-1": FAST | {"weight": 1e-1},
    "rounding weight 1e-3": FAST | {"weight": 1e-3},
    "exponent from 10": FAST | {"b_range": (10.0, 2.0)},
    "no warm-up": FAST | {"warm_up": 0.0},
    "half warm-up": FAST | {"warm_up": 0.5},
    "batch 16": FAST | {"batch_size": 16},
    "batch 64": FAST | {"batch_size": 64},
    "drops 1 of 4": FAST | {"drop_prob": 0.75},
    "no drop": FAST | {"drop_prob": 1.0},
}
"""One setting of the fast schedule after the other, changed; compared at few iterations."""
STUDY = Study(
    name="iterations",
    title="ResNet-20, CIFAR-10 (JPEG copies)",
    network="resnet20",
    data=DataConfig("cifar10", augment=False, num_workers=0, input_size=32, test_resize=32),
    quant=QuantConfig(calibrate=1024, recon=ReconConfig(**PRESETS["published"])),
    held_out=3072,
    schedules=SCHEDULES,
    factors=FACTORS,
    iters=(100, 300, 1000, 2000, 20000),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, STUDY))
