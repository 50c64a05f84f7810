"""How long a reconstruction takes on this machine, from what its first iterations took."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx

from qdrop.config import PRESETS
from qdrop.graph.inputs import Arguments, between, by_node, to_device
from qdrop.graph.plan import Plan
from qdrop.graph.split import Segment, segments
from qdrop.quantization.state import quantizing
from qdrop.solver.activations.cache import ActivationCache, run_all

IMAGES = 8
"""How many images the units are compared on."""
PASSES, SECONDS = 3, 0.3
"""How often, and how long, at least; the shortest counts: at first much is done only once."""
FASTER = "fast"
"""The preset that is offered where a run is long."""


def unit_costs(model: fx.GraphModule, plan: Plan, inputs: Arguments, device: torch.device) -> dict[str, float]:
    """Seconds that each unit takes for a few images, quantized and forward only: what iterations cost in proportion.

    Args:
        model: A calibrated quantized graph, on `device`.
        plan: Its plan.
        inputs: The network's arguments, tensors `[N, ...]`.
        device: Where to compute.
    """
    parts = segments(model, plan)
    few = by_node(model.graph, to_device(between(inputs, 0, IMAGES), device))
    costs = {unit.module: math.inf for unit in plan.units}
    began = time.perf_counter()
    with quantizing(model):
        passes = 0
        while passes < PASSES or time.perf_counter() - began < SECONDS:
            passes += 1
            for name, seconds in _one_pass(parts, few, device):
                costs[name] = min(costs[name], seconds)
    return costs


def _one_pass(parts: list[Segment], inputs: dict[str, Tensor], device: torch.device) -> Iterator[tuple[str, float]]:
    """Each unit with the seconds that it takes for some rows: on a CPU those of this process alone."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    cache = ActivationCache(inputs, parts)
    for index, part in enumerate(parts):
        started = clock()
        out = run_all(part.module, [cache[name].quantized for name in part.inputs], IMAGES, device)
        wait_for(device)
        if part.unit is not None:
            yield part.name, clock() - started
        cache.advance(index, part, out, out)


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Estimate:
    """How long is left, known once some iterations are done.

    Args:
        total: What all of the work costs, in any measure.
        iterations: How many of them, at least, are measured; the first is not, in which much is done only once.
        seconds: How long they take, at least.
    """

    def __init__(self, total: float, iterations: int = 10, seconds: float = 3.0) -> None:
        self._total, self._iterations, self._seconds = total, iterations, seconds
        self._seen = 0
        self._first = (0.0, 0.0)  # when, and what was done by then

    def left(self, done: float, wait: Callable[[], object]) -> float | None:
        """Seconds that the rest takes, once; None before that can be known, and ever after.

        Args:
            done: What the work done so far costs; called after each iteration.
            wait: Waits for the device.
        """
        self._seen += 1
        if self._seen == 1:
            wait()
            self._first = time.perf_counter(), done
        started, before = self._first
        if self._seen <= self._iterations or time.perf_counter() - started < self._seconds:
            return None
        wait()
        self._seconds = math.inf  # told once
        return (self._total - done) * (time.perf_counter() - started) / (done - before)


def in_words(seconds: float, iters: int, units: int) -> str:
    """How long a reconstruction still takes, and with how many iterations it would be faster.

    Args:
        seconds: What is left of it.
        iters: Iterations for each unit.
        units: Number of units.
    """
    told = f"some {duration(seconds)} to go on this machine: {iters:,} iterations for each of {units} units"
    fewer = PRESETS[FASTER]["iters"]
    if iters <= fewer:
        return told
    return f"{told}; recon.preset={FASTER} takes {fewer:,}, some {duration(seconds * fewer / iters)}"


def duration(seconds: float) -> str:
    """A time as people say it: `0.4 s`, `40 s`, `12 min`, `3 h 20 min`, `2 days 5 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
