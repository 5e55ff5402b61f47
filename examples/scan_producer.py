"""Producer: scans a picture of the sky, line by line, into an array that any program can open.

`scan_consumer.py` is the other program.  They share only the array's name.  Start them
in two terminals, in any order::

    pip install './shmarray[examples]'
    python shmarray/examples/scan_producer.py
    python shmarray/examples/scan_consumer.py
"""

import sys
import time

from skimage import data

import shmarray

LINES_AT_A_TIME = 8
SECONDS_PER_SCAN = 0.5


def main(name: str) -> None:
    picture = data.hubble_deep_field()
    height = len(picture)
    # Created by the program that starts first.
    scan = shmarray.require(name, picture.shape, picture.dtype)
    progress = shmarray.require(f"{name}-progress", 1, "int64")

    for line in range(0, height, LINES_AT_A_TIME):
        with shmarray.lock(progress):
            scan[line : line + LINES_AT_A_TIME] = picture[line : line + LINES_AT_A_TIME]
            progress[0] = min(line + LINES_AT_A_TIME, height)
        time.sleep(SECONDS_PER_SCAN * LINES_AT_A_TIME / height)  # the telescope moves on
    print(f"scanned {height} lines into {name!r}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["sky"]))
