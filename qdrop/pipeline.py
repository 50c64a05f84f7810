"""The method in its steps, each of them once: the command and `qdrop.quantize` call them in this order.

    inputs = arguments(model, images)
    graph = capture(model, inputs)
    plan = make_plan(graph, config.quant)
    network = insert(graph, plan, device)
    calibrate(network, inputs, config.quant, device)
    for report in reconstruct(network, plan, inputs, config.quant, seed, device):
        ...
    learn_network(network, inputs, config.quant, seed, device)
    freeze(network)

All of it runs inside :func:`arithmetic`.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from qdrop.config import QuantConfig
from qdrop.config.summary import summary
from qdrop.graph.capture import capture as capture_graph
from qdrop.graph.inputs import Calibration, by_node, first, rows, split, to_device
from qdrop.graph.insert import quantize_graph
from qdrop.graph.plan import Plan
from qdrop.graph.plan import make_plan as place
from qdrop.quantization.state import quantizers
from qdrop.runtime.console import track
from qdrop.runtime.memory import keeping_freed_memory
from qdrop.runtime.precision import layer_arithmetic
from qdrop.solver import network as network_stage
from qdrop.solver import recon
from qdrop.solver.calibrate import calibrate as find_ranges
from qdrop.solver.estimate import duration, unit_costs
from qdrop.solver.granularity import mixed
from qdrop.solver.network import NAME, NetworkReport
from qdrop.solver.phases import phases
from qdrop.solver.progress import UnitProgress, timed
from qdrop.solver.recon import Finished, UnitReport

log = logging.getLogger("qdrop")


@contextmanager
def arithmetic() -> Iterator[None]:
    """Inside: layers compute in true float32, also within `torch.autocast`, and freed memory is kept."""
    with ExitStack() as scopes:
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            scopes.enter_context(torch.autocast(kind, enabled=False))
        scopes.enter_context(layer_arithmetic())
        scopes.enter_context(keeping_freed_memory())
        yield


def capture(model: nn.Module, inputs: Calibration) -> fx.GraphModule:
    """The network as a graph in evaluation mode, batch norm folded; the model is left as it was.

    Args:
        model: Any network that `torch.export` can follow.
        inputs: Its arguments, see :func:`qdrop.graph.inputs.arguments`; the first two rows are run.

    Raises:
        GraphError: If it cannot be captured, or the graph computes something else.
    """
    parameter = next(model.parameters(), torch.empty(0))
    return capture_graph(model, to_device(rows(inputs, [0, 1]), parameter.device))


def make_plan(graph: fx.GraphModule, quant: QuantConfig) -> Plan:
    """What is quantized where, and the units; the log says by which method, and what stays in full precision.

    Raises:
        PlanError: If a pattern of `quant.overrides` matches no layer.
        GraphError: If something in the graph cannot be quantized.
    """
    plan = place(graph, quant, "layer" if quant.recon and quant.recon.granularity == "layer" else "block")
    log.info(summary(quant, len(plan.units)))
    for note in plan.notes:
        log.warning(note)
    return plan


def insert(graph: fx.GraphModule, plan: Plan, device: torch.device) -> fx.GraphModule:
    """Put the plan's quantizers into a graph, in place, and all of it on `device`.

    They are off until a step switches them on. Its tensors are its own: the model may be trained on, or loaded anew.
    """
    network = quantize_graph(graph, plan).to(device)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network


def calibrate(network: fx.GraphModule, inputs: Calibration, quant: QuantConfig, device: torch.device) -> None:
    """Give every quantizer its range: of weights from the weights, of activations from the first images.

    Args:
        network: What :func:`insert` returned, changed in place.
        inputs: Its arguments for all calibration images; `quant.calibrate_range` of them are run.
        quant: Also says how many at a time.
        device: Where the network is.

    Raises:
        CalibrationError: If a value in the network is not finite.
    """
    find_ranges(network, first(inputs, quant.calibrate_range), quant.calibrate_batch, device)


def reconstruct(
    network: fx.GraphModule,
    plan: Plan,
    inputs: Calibration,
    quant: QuantConfig,
    seed: int,
    device: torch.device,
    scratch: Path | None = None,
    finished: Finished | None = None,
) -> Iterator[UnitReport]:
    """Unit by unit, learn the rounding of the weights and the scales of the activations; see `solver/recon.py`.

    Args:
        network: A calibrated network on `device`, changed in place.
        plan: Its plan.
        inputs: The network's arguments for all calibration images.
        quant: Without `recon` nothing is learned: everything is rounded to the nearest.
        seed: Seed of the batches and of the drop.
        device: Where to compute.
        scratch: Folder for values that are kept on disk; None: the system's temporary folder.
        finished: Units of an interrupted run; each one finished here is added.

    Yields:
        A report for each unit, in order.

    Raises:
        ReconstructionError: If a loss is not finite; names the unit.
        CacheError: If memory ran out wherever activations were kept.
        OSError: If they are to be kept on disk and there is no room.
    """
    if quant.recon is None:
        return
    given = by_node(network.graph, inputs)
    if quant.recon.granularity == "mixed":
        each = [by_node(network.graph, batch) for batch in split(inputs, quant.calibrate_batch)]
        plan = mixed(network, plan, each, device)
    few = split(inputs, quant.calibrate_batch)[0]  # as many as fitted before
    costs = unit_costs(network, plan, few, device)
    with UnitProgress(costs, quant.recon.iters, len(phases(quant.recon))) as progress:
        for report in recon.reconstruct(network, plan, given, quant.recon, seed, device, progress, scratch, finished):
            progress.finish(report)
            yield report


def learn_network(
    network: fx.GraphModule, inputs: Calibration, quant: QuantConfig, seed: int, device: torch.device
) -> NetworkReport | None:
    """Learn over the whole network, where `quant.network` asks for it; see `solver/network/stage.py`.

    Args:
        network: A network on `device` whose units are learned, changed in place.
        inputs: Its arguments for all calibration images.
        quant: Without `network`, or without `recon`, nothing is done.
        seed: Seed of the batches and of how images are varied.
        device: Where to compute.

    Returns:
        What it did; None where it is not asked for.

    Raises:
        ReconstructionError: If a loss is not finite.
    """
    if quant.recon is None or quant.network is None:
        return None
    iters = quant.network.iters
    assert isinstance(inputs, dict)  # images of several sizes were refused at the start

    def watch(batches: Iterator[Tensor]) -> Iterator[Tensor]:
        return timed(track(batches, NAME, iters), NAME, iters, device)

    report = network_stage.learn_network(network, inputs, quant.network, seed, device, watch)
    told = (report.loss_before, report.loss_after, duration(report.seconds))
    log.info("%s: loss %.5g -> %.5g, %s", NAME, *told)
    return report


def freeze(network: fx.GraphModule) -> fx.GraphModule:
    """Leave every quantizer on, and nothing to be learned: the network as one that is loaded from a file."""
    for quantizer in quantizers(network):
        quantizer.active = True
    return network.requires_grad_(False)
