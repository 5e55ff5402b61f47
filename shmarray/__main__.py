"""``python -m shmarray`` is the command ``shmarray``."""

import sys

from shmarray.command import run

if __name__ == "__main__":
    sys.exit(run())
