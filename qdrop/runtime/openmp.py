"""How the threads that compute on a CPU wait for work: asleep, where nobody has said otherwise.

OpenMP lets them spin for a while, which takes cores from whatever else runs on the machine, and then from each other:
with two threads on two cores and another program beside them, everything takes many times as long as with one thread.
OpenMP reads what it shall do from the environment when it is loaded, which is when torch is imported, and cannot be
told later.
"""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import psutil

log = logging.getLogger("qdrop")

VARIABLE, ASLEEP = "OMP_WAIT_POLICY", "PASSIVE"


def wait_asleep() -> None:
    """Have threads wait asleep, unless the user has set the variable; without effect once torch is imported."""
    if "torch" not in sys.modules:
        os.environ.setdefault(VARIABLE, ASLEEP)


def run_program(main: Callable[[], int]) -> NoReturn:
    """What `python -m` of a module does that imports torch: start once more, with the variable set; then `main`.

    Raises:
        SystemExit: With what `main` returns.
    """
    if VARIABLE not in os.environ and os.name == "posix":  # elsewhere the new program would not be waited for
        sys.stdout.flush()
        os.environ[VARIABLE] = ASLEEP
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    sys.exit(main())


def available_cores() -> int:
    """CPU cores that this process may use: more loading processes than that only take turns."""
    if hasattr(os, "sched_getaffinity"):  # not on every platform
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def advise(threads: int) -> None:
    """Log what to set where threads may spin and there are fewer free cores than threads.

    Looks at the machine for a tenth of a second, unless the variable is set or there is a single thread.

    Args:
        threads: Those that will compute, as `torch.get_num_threads()` tells.
    """
    if threads == 1 or VARIABLE in os.environ:
        return
    cores = psutil.cpu_count() or 1
    free = cores * (1 - psutil.cpu_percent(interval=0.1) / 100)
    if free < threads - 0.5:  # the system itself always does a little
        log.warning(
            "torch computes with %d threads, and %.1f of %d cores are free: threads that wait for each other spin, and"
            " all of it may take many times as long. Set %s=%s in the environment before torch is imported, or call"
            " torch.set_num_threads(%d)",
            threads,
            free,
            cores,
            VARIABLE,
            ASLEEP,
            max(1, int(free)),
        )
