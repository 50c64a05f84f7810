"""The plan: what is quantized where, and the units that are reconstructed one after another. Plain data.

graph = trace(model, images[:1])
plan = make_plan(graph, config.quant)
print(plan)
"""

import difflib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import fx

from qdrop.config import QConfig, QuantConfig
from qdrop.errors import QdropError
from qdrop.quantization.graph import GraphError, check_supported
from qdrop.quantization.ops import Role, module_of
from qdrop.quantization.sites import Site, Wiring
from qdrop.quantization.spec import Kind, QuantizerSpec
from qdrop.quantization.units import UnitSpec, find_units, has_a_row_per_image


class PlanError(QdropError, ValueError):
    """A quantization configuration that does not fit the network."""


@dataclass(frozen=True)
class Plan:
    """Every quantizer in execution order and every unit in reconstruction order."""

    quantizers: tuple[QuantizerSpec, ...]
    units: tuple[UnitSpec, ...]
    notes: tuple[str, ...] = field(default=())
    """What fell back to a simpler treatment, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or YAML; :meth:`from_dict` reads it back."""
        return {
            "quantizers": [spec.to_dict() for spec in self.quantizers],
            "units": [asdict(unit) | {"nodes": list(unit.nodes)} for unit in self.units],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        """The plan that :meth:`to_dict` wrote."""
        return cls(
            tuple(QuantizerSpec.from_dict(spec) for spec in data["quantizers"]),
            tuple(UnitSpec(**(unit | {"nodes": tuple(unit["nodes"])})) for unit in data["units"]),
            tuple(data["notes"]),
        )

    def __str__(self) -> str:
        """A table: a line per unit, its quantizers below it."""
        lines = [f"{'unit / quantizer':<44} {'kind':<11} {'bit':>3}  shape"]
        unit_of = {node: unit.module for unit in self.units for node in unit.nodes}
        counts = {unit.module: f"{unit.weights}w {unit.activation_quantizers}a" for unit in self.units}
        kinds = {unit.module: unit.kind for unit in self.units}
        last = None
        for spec in self.quantizers:
            unit = unit_of.get(spec.node, "")
            if unit != last:
                lines.append(f"{unit or '(between units)':<44} {kinds.get(unit, ''):<11} {counts.get(unit, '')}")
            last = unit
            shape = "x".join(str(n) for n in spec.shape)
            lines.append(f"  {spec.name:<42} {spec.kind:<11} {spec.bit:>3}  {shape}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def make_plan(graph: fx.GraphModule, config: QuantConfig, granularity: str = "block") -> Plan:
    """Place every quantizer and find every unit of a traced graph.

    An activation is quantized once, where it is produced; a branch that goes straight into an add, the
    network's output and its input are not. First and last layer follow `config`'s own fields.

    Args:
        graph: What :func:`qdrop.quantization.graph.trace` returned.
        config: Bits, quantizer and observer names, overrides.
        granularity: `block`, or `layer` to make every weighted layer a unit of its own where that can be.

    Returns:
        The plan.

    Raises:
        GraphError: If part of the network cannot be quantized; names the module and the reason.
        PlanError: If an override's pattern matches nothing.
    """
    check_supported(graph)
    wiring = Wiring(graph)
    if not wiring.layers:
        raise GraphError("the model has no convolution or linear layer; there is nothing to quantize")
    specs = list(_specs(graph, wiring, config))
    _check_overrides(config, specs)
    units, notes = find_units(graph, wiring, [spec.node for spec in specs], granularity)
    return Plan(tuple(specs), tuple(units), tuple(notes))


def _specs(graph: fx.GraphModule, wiring: Wiring, config: QuantConfig) -> Iterator[QuantizerSpec]:
    """Quantizers in execution order: a layer's weight before what it produces."""
    sites = {site.node: site for site in wiring.sites if site.needed or (site.branch and config.branch_bit)}
    for node in graph.graph.nodes:
        if wiring.roles[node] is Role.WEIGHTED:
            yield _weight_spec(node, wiring, config)
        if node in sites and config.a_qconfig is not None:
            yield _activation_spec(sites[node], wiring, config, config.a_qconfig)


def _weight_spec(node: fx.Node, wiring: Wiring, config: QuantConfig) -> QuantizerSpec:
    layer, q = str(node.target), config.w_qconfig
    bit = q.bit
    if node is wiring.layers[0]:
        bit = config.first_w_bit or bit
    if node is wiring.layers[-1]:
        bit = config.last_w_bit or bit
    bit = _override(config, layer, "w_bit") or bit
    module = module_of(node)
    assert module is not None
    shape = tuple(module.get_parameter("weight").shape)
    return _spec(f"{layer}.weight_quantizer", Kind.WEIGHT, node, q, bit, shape)


def _activation_spec(site: Site, wiring: Wiring, config: QuantConfig, q: QConfig) -> QuantizerSpec:
    bit = q.bit if site.needed else config.branch_bit or q.bit
    if wiring.layers[-1] in site.readers:
        bit = config.last_a_bit or bit
    bit = _override(config, site.name, "a_bit") or bit
    shape = tuple(site.node.meta["tensor_meta"].shape[1:])
    if not has_a_row_per_image(site.node):
        q = replace(q, ch_axis=-1)  # axis 1 may be the images'
    return _spec(f"{site.name}.output_quantizer", Kind.ACTIVATION, site.node, q, bit, shape)


def _spec(name: str, kind: Kind, node: fx.Node, q: QConfig, bit: int, shape: tuple[int, ...]) -> QuantizerSpec:
    return QuantizerSpec(name, kind, node.name, q.quantizer, q.observer, bit, q.symmetric, q.ch_axis, shape)


def _override(config: QuantConfig, name: str, key: str) -> int | None:
    """The width the last matching override gives `name`, or None. Patterns match a name or a parent of it."""
    bits = [getattr(o, key) for pattern, o in config.overrides.items() if _matches(pattern, name)]
    return next((bit for bit in reversed(bits) if bit is not None), None)


def _matches(pattern: str, name: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def _check_overrides(config: QuantConfig, specs: list[QuantizerSpec]) -> None:
    """Refuse a pattern that matches nothing of the kind it gives bits for; without bits, nothing at all."""
    for pattern, override in config.overrides.items():
        bits = {Kind.WEIGHT: override.w_bit, Kind.ACTIVATION: override.a_bit}
        given: list[tuple[Kind, ...]] = [(kind,) for kind, bit in bits.items() if bit is not None]
        for kinds in given or [tuple(bits)]:
            names = [spec.layer for spec in specs if spec.kind in kinds]
            if not any(_matches(pattern, name) for name in names):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
                raise PlanError(
                    f"quant.overrides: the pattern '{pattern}' matches no quantized {' or '.join(kinds)};"
                    f" names here look like {', '.join(near)}"
                )
