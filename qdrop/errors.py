"""The base of the errors that settings, files, data or a foreign network lead to, and their short form."""

from collections.abc import Sequence


class QdropError(Exception):
    """What whoever called can put right; the message says what is wrong and what was expected.

    Each class is also the built-in one that fits it, such as ValueError.
    """


LONGEST = 300
"""Characters of a message that is passed on, at most: it may hold whatever a file does."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, its start if it is long; of an empty one the name of its class."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
