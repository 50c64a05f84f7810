"""Packages that only a part of qdrop needs: `pip install 'qdrop[timm]'`. setup.py has the list of extras."""

from collections.abc import Iterator
from contextlib import contextmanager

from qdrop.errors import QdropError


class MissingPackageError(QdropError, ModuleNotFoundError):
    """A package that is not installed. The message says how to install it."""


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Inside: imports of packages that come with an extra.

        with extra("timm", "networks of timm"):
            import timm

    Args:
        name: The extra, as in setup.py.
        what: What needs it, in the plural: the subject of the error.

    Raises:
        MissingPackageError: If one is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "qdrop"):
            raise
        told = f"{what} need the package {error.name}, which is not installed: pip install 'qdrop[{name}]'"
        raise MissingPackageError(told, name=error.name) from None
