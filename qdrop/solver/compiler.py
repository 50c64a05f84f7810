"""The iteration of a unit compiled, where that pays; units of equal shape share the compiled code."""

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qdrop.errors import first_line
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import quantizers
from qdrop.runtime.memory import is_out_of_memory
from qdrop.solver.step import Gradients, Inputs, UnitLoss, eager, traced

log = logging.getLogger("qdrop")

NANOSECONDS_SAVED = {Kind.ACTIVATION: 9.0, Kind.WEIGHT: 15.0}
"""What compilation saves for each element quantized, in one iteration on one CPU thread: benchmarks/step.py, where
five blocks save 7 to 13 ns for an activation, and the one with most weights 16 for a weight."""
SECONDS_SAVED_ON_GPU = 1e-3
"""What a CUDA graph saves in an iteration: 200 launches of 5 microseconds; an estimate, not measured."""
COMPILE_SECONDS = 15.0
"""What it costs once for all units of a shape, on one CPU core, the first time on a machine; benchmarks/step.py."""


class Compiler:
    """Decides whether to compile a unit's iteration, and keeps what was compiled for units of equal shape.

    Args:
        mode: `on`, `off`, or `auto`: where the iterations to come save more time than compiling takes. That is
            estimated from the sizes of the unit, not measured, so that a run that is repeated decides alike.
        units: All units of the run: what is compiled for one serves all that are alike.
    """

    def __init__(self, mode: Literal["auto", "on", "off"], units: Iterable[nn.Module] = ()) -> None:
        self.mode = mode
        self._alike = Counter(map(_shapes, units))
        self._tried = False
        self._compiled: dict[str, Callable[..., Any]] = {}

    def __call__(self, loss: UnitLoss, example: Inputs, iters: int) -> Gradients:
        """The iteration of a unit, compiled where that pays.

        Args:
            loss: The unit's losses; its quantizers must be in the state they will be in.
            example: Inputs of the shapes it will have.
            iters: How often it will run.
        """
        if not self.pays(loss.unit, len(example.full[0]), iters, example.device):
            return eager(loss)
        try:
            return self._compile(loss, example)
        except Exception as error:  # whatever is wrong with a compiler: it is not needed
            if is_out_of_memory(error):
                raise
            self.mode = "off"
            log.warning("going on without compilation, which failed here: %s", first_line(error))
            return eager(loss)

    def pays(self, unit: nn.Module, batch: int, iters: int, device: torch.device) -> bool:
        """Whether the iteration of a unit is to be compiled; arguments as of :func:`seconds_saved`."""
        if self.mode != "auto":
            return self.mode == "on"
        alike = max(1, self._alike[_shapes(unit)])
        return alike * seconds_saved(unit, batch, iters, device) > COMPILE_SECONDS

    def outline(self, units: Sequence[nn.Module], batch: int, iters: int, device: torch.device) -> str:
        """What will be compiled, in a line, before it is; arguments as of :func:`seconds_saved`."""
        compiled = [unit for unit in units if self.pays(unit, batch, iters, device)]
        if self.mode == "off":
            return "no unit is compiled: recon.compile = off"
        if not compiled:
            return f"no unit is compiled: that takes some {COMPILE_SECONDS:.0f} s for each shape, and would save less"
        shapes = len(set(map(_shapes, compiled)))
        return (
            f"{len(compiled)} of {len(units)} units are compiled as they come, those of equal shape once:"
            f" some {shapes * COMPILE_SECONDS:.0f} s in all"
        )

    def give_up(self) -> bool:
        """Where memory ran out: compile no more and let go of all compiled code and CUDA graphs of the process.

        Returns:
            Whether there can be any, so that it is worth another try; not a second time.
        """
        tried, self._tried, self.mode = self._tried, False, "off"
        self._compiled.clear()
        torch.compiler.reset()
        return tried

    def _compile(self, loss: UnitLoss, example: Inputs) -> Gradients:
        self._tried = True
        graph, values = traced(loss, example)
        tensors = (*values, *example.tensors())
        shapes = [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in tensors]
        key = hashlib.sha256(f"{graph.code}{shapes}".encode()).hexdigest()
        if key not in self._compiled:
            mode = "reduce-overhead" if example.device.type == "cuda" else None  # CUDA graphs
            compiled = torch.compile(graph, mode=mode, dynamic=False, fullgraph=True)
            started = time.perf_counter()
            _warm_up(compiled, values, example)
            log.debug("compiled the iteration in %.0f s", time.perf_counter() - started)
            self._compiled[key] = compiled
        else:
            log.debug("compiled code shared with a unit of equal shape")
        run = self._compiled[key]

        def gradients(inputs: Inputs) -> tuple[Tensor, ...]:
            found, count = _call(run, values, inputs), len(loss.terms)
            # A CUDA graph writes the next ones in the same place.
            return *(term.clone() for term in found[:count]), *found[count:]

        return gradients


def _call(compiled: Callable[..., Any], values: list[Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    """Compiled code for one iteration; on a GPU what it gave for the one before is overwritten."""
    if inputs.device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()
    found: tuple[Tensor, ...] = compiled(values, inputs.tensors())
    return found


def _warm_up(compiled: Callable[..., Any], values: list[Tensor], example: Inputs) -> None:
    """Have the code compiled; on a GPU the second call records a CUDA graph and the third replays it.

    All of that here, where an error means to go on without.
    """
    if example.device.type == "cuda":
        torch.cuda.empty_cache()  # the graph has memory of its own, and cannot take what tracing has left in the cache
    for _ in range(3 if example.device.type == "cuda" else 1):
        _call(compiled, values, example)


def _shapes(unit: nn.Module) -> tuple[tuple[object, ...], ...]:
    """What units that share compiled code have in common."""
    return tuple((q.spec.kind, q.spec.bit, q.spec.shape) for q in quantizers(unit))


def seconds_saved(unit: nn.Module, batch: int, iters: int, device: torch.device) -> float:
    """Time that compiling a unit is expected to save, in seconds.

    Args:
        unit: The unit.
        batch: Images in an iteration.
        iters: Iterations to come.
        device: Where it runs.
    """
    if device.type != "cpu":
        return iters * SECONDS_SAVED_ON_GPU
    nanoseconds = 0.0
    for quantizer in quantizers(unit):
        spec = quantizer.spec
        elements = math.prod(spec.shape) * (batch if spec.kind is Kind.ACTIVATION else 1)
        nanoseconds += elements * NANOSECONDS_SAVED[spec.kind]
    return iters * nanoseconds * 1e-9
