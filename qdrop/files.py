"""Files that are there whole or not at all, whatever happens while they are written; and paths as users write them."""

import errno
import os
from contextlib import suppress
from glob import escape
from pathlib import Path


def expanded(path: str) -> Path:
    """A path as a user writes it: `~` is the home folder, `~NAME` that of another user.

    Raises:
        FileNotFoundError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such home folder", path) from error


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, also after a crash, finds the old content or the new, never half of it.

    The data goes to a temporary name beside `path`, onto the disk, and is renamed over `path`. Of several processes
    that write it, the last one's stays.

    Args:
        path: The file; its folder exists.
        data: Its content; text is written as UTF-8.

    Raises:
        OSError: If it cannot be written, such as on a full disk; names `path`, which is then as it was.
    """
    temporary = _beside(path, "tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # often there is no such file, or not even its folder
            temporary.unlink()
        if isinstance(error, OSError):
            raise _of(path, error) from error
        raise
    _sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """See, before long work, that :func:`write_file` can write a file; nothing is left behind.

    Raises:
        OSError: If it cannot; names `path`, or the folder that is not there.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))
    probe = _beside(path, "probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _of(path, error) from error


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside a file they were writing; no other process may be writing it now.

    Raises:
        OSError: If they cannot be removed.
    """
    for leftover in path.parent.glob(f".{escape(path.name)}.[0-9]*.tmp"):
        leftover.unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    """A hidden name beside `path`; that of this process alone, for another one may be writing `path`, too."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a folder; expected the name of a file", str(path))
    return path.with_name(f".{path.name}.{os.getpid()}.{suffix}")


def _of(path: Path, error: OSError) -> OSError:
    """The same error about `path`: nobody has asked for the temporary file."""
    return OSError(error.errno, error.strerror, str(path))


def _sync_folder(folder: Path) -> None:
    """Put the renaming itself onto the disk; not every system can open a folder, and it matters least there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
