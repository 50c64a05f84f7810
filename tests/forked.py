"""Programs that each need an interpreter of their own, without the seconds in which each would import torch."""

import subprocess
import sys
from collections.abc import Sequence

PROGRAM = """
import os, sys
import qdrop.pipeline  # and torch with it, once
for code in {programs!r}:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        sys.path.insert(0, "")
        try:
            exec(code, {{"__name__": "__main__"}})
        except BaseException as error:
            import traceback
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def forked(programs: Sequence[str], folder=None) -> tuple[list[int], str]:
    """Exit codes of programs, each in a copy of one process that has imported the package; what went to stderr."""
    command = [sys.executable, "-c", PROGRAM.format(programs=list(programs))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()], done.stderr
