"""The plan: what is quantized where, and the units that are reconstructed one after another. Plain data.

graph = capture(model, images)
plan = make_plan(graph, config.quant)
print(plan)
"""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import fx

from qdrop.config import QConfig, QuantConfig
from qdrop.errors import QdropError
from qdrop.graph.macs import left_out, multiply_accumulates, share_quantized
from qdrop.graph.ops import GraphError, row
from qdrop.graph.placement import Site, Wiring, layer_path
from qdrop.graph.units import UnitSpec, find_units
from qdrop.graph.units.blocks import Blocks, find_blocks
from qdrop.quantization.spec import Kind, QuantizerSpec

EXTRA_BITS = 8
"""Bits of what `placement: integer` quantizes beyond the published placement."""


class PlanError(QdropError, ValueError):
    """A quantization configuration that does not fit the network."""


@dataclass(frozen=True)
class Plan:
    """Every quantizer in execution order and every unit in reconstruction order."""

    quantizers: tuple[QuantizerSpec, ...]
    units: tuple[UnitSpec, ...]
    notes: tuple[str, ...] = field(default=())
    """What fell back to a simpler treatment or stays in full precision, and why."""
    quantized_macs: float = 1.0
    """Share of the multiply-accumulates, 0 to 1, that have both operands quantized."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or YAML; :meth:`from_dict` reads it back."""
        return {
            "quantizers": [spec.to_dict() for spec in self.quantizers],
            "units": [asdict(unit) | {"nodes": list(unit.nodes)} for unit in self.units],
            "notes": list(self.notes),
            "quantized_macs": self.quantized_macs,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        """The plan that :meth:`to_dict` wrote."""
        return cls(
            tuple(QuantizerSpec.from_dict(spec) for spec in data["quantizers"]),
            tuple(UnitSpec(**(unit | {"nodes": tuple(unit["nodes"])})) for unit in data["units"]),
            tuple(data["notes"]),
            data["quantized_macs"],
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
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, f"{self.quantized_macs:.1%} of multiply-accumulates have both operands quantized"])


def make_plan(graph: fx.GraphModule, config: QuantConfig, granularity: str = "block") -> Plan:
    """Place every quantizer and find every unit of a captured graph.

    First and last layers, those without another before or behind them, follow `config`'s own fields.

    Args:
        graph: What :func:`qdrop.graph.capture.capture` returned.
        config: Bits, quantizer and observer names, placement, overrides.
        granularity: `block`, or `layer` to make every weighted layer a unit of its own where that can be.

    Returns:
        The plan.

    Raises:
        GraphError: If there is nothing to quantize.
        PlanError: If an override's pattern matches nothing.
    """
    wiring = Wiring(graph)
    if not wiring.layers:
        raise GraphError("the model has no convolution, linear layer or other product with a weight to quantize")
    divided = partial(_any_matches, config.divide)
    blocks, notes = find_blocks(graph, wiring, granularity, divided)
    around = blocks if granularity == "block" else find_blocks(graph, wiring, divided=divided)[0]
    specs = list(_specs(wiring, around, config))
    _check_overrides(config, specs)
    units, more = find_units(wiring, blocks, [spec.node for spec in specs])
    macs = multiply_accumulates(wiring)
    share = share_quantized(wiring, macs, {spec.node for spec in specs})
    return Plan(tuple(specs), tuple(units), (*notes, *more, *left_out(wiring, macs)), share)


def _sites(wiring: Wiring, blocks: Blocks, config: QuantConfig) -> dict[fx.Node, tuple[Site, int | None]]:
    """Values to quantize, by node; with bits where they are not those of the config."""
    found = wiring.of_units(blocks.values()) if config.placement == "units" else wiring.published()
    sites: dict[fx.Node, tuple[Site, int | None]] = {site.node: (site, None) for site in found}
    if config.placement == "integer":
        sites |= {site.node: (site, EXTRA_BITS) for site in wiring.integer()}
    return sites


def _specs(wiring: Wiring, blocks: Blocks, config: QuantConfig) -> Iterator[QuantizerSpec]:
    """Quantizers in execution order: a layer's weight, where it is first read, before what the layer produces."""
    sites = _sites(wiring, blocks, config)
    ends = _Ends(wiring)
    constants = {str(node.target) for node in wiring.nodes if node.op == "get_attr"}
    seen: set[fx.Node] = set()
    for node in wiring.nodes:
        weight = wiring.weight(node) if node in wiring.layers else None
        if weight is not None and weight not in seen:
            seen.add(weight)
            yield _weight_spec(weight, node, ends, config)
        if node in sites and config.a_qconfig is not None:
            yield _activation_spec(*sites[node], ends, constants, config, config.a_qconfig)


class _Ends:
    """First and last layers of a network: those that no other lies before, or behind."""

    def __init__(self, wiring: Wiring) -> None:
        before: set[fx.Node] = set()
        behind: set[fx.Node] = set()
        layers = set(wiring.layers)
        for node in wiring.nodes:
            if any(n in layers or n in before for n in node.all_input_nodes):
                before.add(node)
        for node in reversed(wiring.nodes):
            if any(n in layers or n in behind for n in node.users):
                behind.add(node)
        self.first = layers - before
        self.last = layers - behind


def _weight_spec(weight: fx.Node, product: fx.Node, ends: _Ends, config: QuantConfig) -> QuantizerSpec:
    layer, q = layer_path(weight), config.w_qconfig
    bit = q.bit
    if product in ends.first:
        bit = config.first_w_bit or bit
    if product in ends.last:
        bit = config.last_w_bit or bit
    bit = _override(config, layer, "w_bit") or bit
    (shape,) = weight.meta["shapes"]
    axis = -1 if q.ch_axis == -1 or len(shape) < 2 else _channel_axis(weight, product) % len(shape)
    return _spec(f"{weight.target}_quantizer", Kind.WEIGHT, weight, q, bit, axis, shape)


def _channel_axis(weight: fx.Node, product: fx.Node) -> int:
    """Axis of a weight along which the output channels of the product lie."""
    operator = row(product)
    return operator.channels if product.args[operator.operands[1]] is weight else -2


def _activation_spec(
    site: Site, bit: int | None, ends: _Ends, constants: set[str], config: QuantConfig, q: QConfig
) -> QuantizerSpec:
    width = bit or q.bit
    if ends.last.intersection(site.readers):
        width = config.last_a_bit or width
    width = _override(config, site.name, "a_bit") or width
    shape = site.node.meta["shapes"][0][1:]
    joint = "_" if site.name in constants else "."  # a tensor holds no module
    axis = q.ch_axis if site.node.meta["rows"] else -1  # else axis 1 may be the images'
    name = f"{site.name}{joint}output_quantizer"
    q = replace(q, quantizer=_override(config, site.name, "a_quantizer") or q.quantizer)
    return _spec(name, Kind.ACTIVATION, site.node, q, width, axis, shape)


def _spec(
    name: str, kind: Kind, node: fx.Node, q: QConfig, bit: int, axis: int, shape: tuple[int, ...]
) -> QuantizerSpec:
    return QuantizerSpec(name, kind, node.name, q.quantizer, q.observer, bit, q.symmetric, axis, tuple(shape))


def _override(config: QuantConfig, name: str, key: str) -> Any:
    """What the last matching override gives `name`, or None. Patterns match a name or a parent of it."""
    found = [getattr(o, key) for pattern, o in config.overrides.items() if _matches(pattern, name)]
    return next((value for value in reversed(found) if value is not None), None)


def _matches(pattern: str, name: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: i + 1]), pattern) for i in range(len(parts)))


def _any_matches(patterns: Iterable[str], name: str) -> bool:
    return any(_matches(pattern, name) for pattern in patterns)


def _check_overrides(config: QuantConfig, specs: list[QuantizerSpec]) -> None:
    """Refuse a pattern that matches nothing of the kind it says something of; if it says nothing, nothing at all."""
    for pattern, override in config.overrides.items():
        says = {Kind.WEIGHT: override.w_bit, Kind.ACTIVATION: override.a_bit or override.a_quantizer}
        given: list[tuple[Kind, ...]] = [(kind,) for kind, value in says.items() if value is not None]
        for kinds in given or [tuple(says)]:
            names = [spec.layer for spec in specs if spec.kind in kinds]
            if not any(_matches(pattern, name) for name in names):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
                raise PlanError(
                    f"quant.overrides: the pattern '{pattern}' matches no quantized {' or '.join(kinds)};"
                    f" names here look like {', '.join(near)}"
                )
