"""`python -m curvk` is the command `curvk`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
