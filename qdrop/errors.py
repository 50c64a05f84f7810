"""The base of the errors that settings, files, data or a foreign network lead to, and their short form."""


class QdropError(Exception):
    """What whoever called can put right; the message says what is wrong and what was expected.

    Each class is also the built-in one that fits it, such as ValueError.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message; of an empty one the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
