"""What the commands share: messages on the terminal, and users' mistakes in one line instead of a traceback."""

import logging
from collections.abc import Callable

from qdrop.errors import QdropError, first_line
from qdrop.solver.memory import is_out_of_memory

log = logging.getLogger("qdrop")
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def exit_status(work: Callable[[], None]) -> int:
    """Do the work of a command: 0, or, after a message, 1 where it fails through settings, files, data or memory."""
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        work()
    except KeyboardInterrupt:
        log.error("interrupted")
        return INTERRUPTED
    except (QdropError, OSError) as error:
        log.error("error: %s", error)
        return 1
    except (RuntimeError, MemoryError) as error:  # torch has a type of its own for a GPU's memory only
        if not is_out_of_memory(error):
            raise
        log.error("error: memory ran out; lower data.batch_size or quant.recon.batch_size: %s", first_line(error))
        return 1
    return 0
