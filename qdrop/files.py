"""Files that are there whole or not at all, whatever happens while they are written."""

import os
from pathlib import Path


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, also after a crash, finds the old content or the new, never half of it.

    The data goes to a temporary name beside `path`, onto the disk, and is renamed over `path`.

    Args:
        path: The file; its folder exists.
        data: Its content; text is written as UTF-8.

    Raises:
        OSError: If it cannot be written, such as on a full disk; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # always the same: what a killed run left is written over
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the renaming itself onto the disk; not every system can open a folder, and it matters least there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
