"""Accuracy against iterations on ImageNet at 112x112: MobileNetV2 with many iterations.

As benchmarks.iterations_mobilenetv2, with images of half the size, which the network was not trained on: a third of the
work, so that 20,000 iterations of each unit take two hours or three on a CPU. Needs real data:

    python -m benchmarks.iterations_mobilenetv2_112 --data DATA/imagenet --weights MOBILENETV2.safetensors
"""

import sys
from dataclasses import replace

from benchmarks import iterations_mobilenetv2
from benchmarks.study import main

STUDY = replace(
    iterations_mobilenetv2.STUDY,
    name="iterations_mobilenetv2_112",
    title="MobileNetV2 at 112x112, 1,200 ImageNet validation images (squashed)",
    data=replace(iterations_mobilenetv2.STUDY.data, input_size=112, test_resize=114),
    iters=(1000, 10000, 20000),
)

if __name__ == "__main__":
    sys.exit(main(__doc__, STUDY))
