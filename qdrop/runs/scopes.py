"""While a run is at work in its folder: no other is, and its log is written there."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

LOCK, LOG = ".lock", "run.log"
"""What lies in the folder as soon as a run starts."""
log = logging.getLogger("qdrop")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside: no other process runs in this folder, which is made if it is not there.

    The lock ends with the process, however that ends; the file `.lock` stays and means nothing. Where the work fails
    before anything has begun, a folder made here goes again.

    Raises:
        OSError: If another process runs in it, or it cannot be written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"{error.strerror}: no run folder can be made there; set process.out to another one"
        raise OSError(error.errno, told, str(folder)) from error
    try:
        with (folder / LOCK).open("a") as file:
            _lock(file, folder)
            yield
    except BaseException:
        _remove_unused(folder, made)
        raise


def _remove_unused(folder: Path, made: list[Path]) -> None:
    """Remove a run folder in which nothing has begun, and the other folders made with it, innermost first."""
    if folder in made and {path.name for path in folder.iterdir()} <= {LOCK, LOG}:
        for name in (LOCK, LOG):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # someone else has put something into an outer one
            for path in made:
                path.rmdir()


def _lock(file: TextIO, folder: Path) -> None:
    """Lock an open file until it is closed. Not by `flock`: workers that outlive a killed run would keep that."""
    try:
        import fcntl  # not on every platform
    except ModuleNotFoundError:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        told = "another run is at work in this folder; wait for its end, or set process.out to another one"
        raise OSError(errno.EWOULDBLOCK, told, str(folder)) from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): see that no second run is started in it", folder, error)


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Inside: the package's log also goes to `run.log` in a run folder, which is made if it is not there.

    What is in it stays: whether this run gets far enough to replace the one before is not known yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("qdrop")
    handler = logging.FileHandler(folder / LOG, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
