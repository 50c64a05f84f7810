"""Nested settings, one over the other."""

from typing import Any


def merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """`upper` over `lower`, mapping by mapping; anything else is replaced whole."""
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(lower.get(key), dict) and isinstance(value, dict)
        merged[key] = merge(lower[key], value) if both else value
    return merged
