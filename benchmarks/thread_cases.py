"""One thread and all threads in turns, in a process that only does that; a part of benchmarks/threads.py.

How threads wait for each other is decided when torch is imported, so that each way needs a process of its own. Prints
the seconds of each case as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

import torch

import qdrop
from benchmarks.step import CASES, candidates
from benchmarks.timing import interleaved
from qdrop.quantization.affine import fake_quantize
from qdrop.quantization.drop import Drop, stream
from qdrop.runtime.memory import keeping_freed_memory
from qdrop.runtime.precision import layer_arithmetic

Work = Callable[[], object]
CPU = torch.device("cpu")


def quantizers() -> dict[str, Work]:
    """An activation of 4 bits, `[32, 16, 32, 32]`: as a finished network rounds it, and as reconstruction does."""
    values = torch.randn(32, 16, 32, 32).to(memory_format=torch.channels_last)
    scale, zero_point = torch.tensor([0.3], requires_grad=True), torch.tensor([8.0])
    drop = Drop(0.5, stream(torch.Generator().manual_seed(0)))

    def learned() -> None:
        fake_quantize(values, scale, zero_point, 0, 15, drop.mask(values)).sum().backward()

    def finished() -> None:
        with torch.no_grad():
            fake_quantize(values, scale, zero_point, 0, 15)

    return {"a quantizer": finished, "the same, learned": learned}


def networks(name: str, size: int, batch: int) -> dict[str, Work]:
    """A forward of a network with random weights, in float and rounded to 4 bits."""
    torch.manual_seed(0)
    float_network, images = qdrop.build_model(name, {}, None).eval(), torch.randn(batch, 3, size, size)
    bits = {"w_qconfig": {"bit": 4}, "a_qconfig": {"bit": 4}, "calibrate": batch, "recon": None}
    quantized, _ = qdrop.quantize(float_network, images, bits)

    def forward(network: torch.nn.Module) -> Work:
        return torch.no_grad()(lambda: network(images))

    return {f"{name}, float": forward(float_network), f"{name}, W4A4": forward(quantized)}


def cases(quick: bool) -> dict[str, Work]:
    """What is timed, by name."""
    made = quantizers() | networks("resnet20", 32, 8 if quick else 32)
    if quick:
        return made
    step = candidates(CASES[0], CPU, rounds=10**6)["eager"]
    return made | networks("mobilenetv2", 224, 4) | {"a step of reconstruction": step}


def timed(work: Work, threads: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, on `one` thread and on `all`, in turns until so many seconds have passed."""

    def on(count: int) -> Work:
        def call() -> None:
            torch.set_num_threads(count)
            work()

        return call

    turns = {"one": on(1), "all": on(threads)}
    turns["one"]()  # whatever is done the first time alone
    found: dict[str, list[float]] = {name: [] for name in turns}
    end = time.perf_counter() + seconds
    while not found["one"] or time.perf_counter() < end:
        for name, taken in interleaved(turns, 2, warm_up=0).seconds.items():
            found[name] += taken
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thread_cases", description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="for each case")
    parser.add_argument("--quick", action="store_true", help="the small cases")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # until it is measured
    with layer_arithmetic(), keeping_freed_memory():
        print(json.dumps({name: timed(work, args.threads, args.seconds) for name, work in cases(args.quick).items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
