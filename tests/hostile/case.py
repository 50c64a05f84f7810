"""One hostile input, and what counts as an answer to it."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qdrop import QdropError

SECONDS = 60
"""What takes longer hangs: the slowest case takes a few seconds on a busy machine."""
LONGEST = 2000
"""Characters of an answer."""
ADVICE = ("weights_only", "Traceback", "alloc", "frame #")
"""What an answer does not say: advice that makes things worse, and words of other programs."""


@dataclass(frozen=True)
class Case:
    """What is tried, and how."""

    name: str
    call: Callable[[], object]
    """Reads the input."""
    names: str = ""
    """What the answer has to name, such as the file."""
    never: str = ""
    """What the answer must not show."""
    must_refuse: bool = True
    """Otherwise it may also be taken: some changes of a valid file leave it valid."""
    memory: int = 2 << 30
    """Bytes that it may allocate; the networks and files here are of a few kB."""
    errors: tuple[type[Exception], ...] = (QdropError, OSError)
    """What may be raised."""


def written(path: Path, content: str | bytes) -> Path:
    """The file, with this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problem(case: Case) -> str | None:
    """What is wrong with how a case ends; None if it is refused in words, or may be taken and is."""
    try:
        with _limits(case.memory):
            case.call()
    except case.errors as error:
        return _wording(case, str(error))
    except BaseException as error:  # a traceback for the user, whatever it is
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "it was taken" if case.must_refuse else None


def _wording(case: Case, answer: str) -> str | None:
    if not answer or len(answer) > LONGEST:
        return f"an answer of {len(answer)} characters: {answer[:100]}..."
    if case.names not in answer:
        return f"{case.names} is not named: {answer}"
    if case.never and case.never in answer:
        return f"the answer shows {case.never}"
    if told := [word for word in ADVICE if word in answer]:
        return f"the answer says {told}: {answer}"
    return None


@contextmanager
def _limits(memory: int) -> Iterator[None]:
    """Inside: a call that hangs is interrupted, and memory for far more than is needed here is not given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    handler = signal.signal(signal.SIGALRM, _hangs)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, handler)


class Hangs(BaseException):
    """Raised in a call that takes too long."""


def _hangs(*_: object) -> None:
    raise Hangs(f"it hangs: no answer after {SECONDS} s")
