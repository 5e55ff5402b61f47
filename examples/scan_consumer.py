"""Consumer: counts the bright pixels of a scan as its lines arrive.

`scan_producer.py` is the other program; its docstring says how to run both.  This one deletes the arrays.
"""

import sys
import time

import numpy as np
from skimage import data

import shmarray

SHAPE = (872, 1000, 3)
BRIGHT = 500  # red + green + blue
PATIENCE = 60.0  # seconds


def main(name: str) -> None:
    # Created by the program that starts first.
    scan = shmarray.require(name, SHAPE, "uint8")
    progress = shmarray.require(f"{name}-progress", 1, "int64")

    seen = bright = 0
    deadline = time.monotonic() + PATIENCE
    while seen < len(scan):
        with shmarray.lock(progress, shared=True):
            done = int(progress[0])
            lines = scan[seen:done].copy()  # keep this short: the producer waits meanwhile
        bright += count(lines)
        seen = done
        if time.monotonic() > deadline:
            raise SystemExit(f"only {seen} lines arrived in {PATIENCE:.0f} s; is scan_producer.py running?")
        time.sleep(0.005)
    shmarray.delete(name)
    shmarray.delete(f"{name}-progress")

    print(f"{bright} bright pixels in {seen} lines")
    if bright != count(data.hubble_deep_field()):
        raise SystemExit("the picture has a different number of bright pixels")
    print("the same number as in the picture")


def count(lines: np.ndarray) -> int:
    return int((lines.sum(axis=2) > BRIGHT).sum())


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["sky"]))
