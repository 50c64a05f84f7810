"""The errors of this package, both a `ValueError`: something in the configuration cannot be used."""

import difflib
from collections.abc import Iterable


class ModelError(ValueError):
    """A model that cannot be built: an unknown type, or options it does not take."""


class WeightsError(ValueError):
    """Weights that cannot be found, downloaded, read, or fitted into the model."""


def nearest(name: str, valid: Iterable[str], count: int = 5) -> str:
    """The valid names most like `name`, best first, or the first few where nothing is alike; comma-separated."""
    names = sorted(valid)
    alike = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if alike:
        return "nearest: " + ", ".join(alike)
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return "valid: " + ", ".join(names[:count]) + rest
