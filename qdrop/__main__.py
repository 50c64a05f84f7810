"""`python -m qdrop`: the command `qdrop`."""

import sys

from qdrop.cli import main

if __name__ == "__main__":
    sys.exit(main())
