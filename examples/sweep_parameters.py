"""Sweep a parameter over one big table, which is passed to every task, but copied only once.

The table has a row for each of the two million pixels of a photograph of an eye (from scikit-image), with columns for
red, green and blue.  How many colors does the picture need?  For each number, find the best colors (k-means, on every
tenth pixel), and compute the distance of all pixels from them.

Run it::

    pip install './shmarray[examples]'
    python shmarray/examples/sweep_parameters.py
"""

import time

import numpy as np
from scipy.cluster.vq import kmeans2, vq
from skimage import data

import shmarray

COLORS = range(2, 26, 2)


def error(table: np.ndarray, colors: int) -> float:
    """Runs in a worker: returns the root mean square distance of the pixels from the nearest of the best colors."""
    palette, _ = kmeans2(table[::10], colors, minit="++", seed=0)
    _, distances = vq(table, palette)
    return float(np.sqrt(np.mean(distances**2)))


def main() -> None:
    table = data.retina().reshape(-1, 3).astype(float)

    start = time.perf_counter()
    expected = [error(table, colors) for colors in COLORS]
    serial = time.perf_counter() - start

    with shmarray.Pool() as pool:
        start = time.perf_counter()
        errors = pool.starmap(error, [(table, colors) for colors in COLORS], chunksize=1)
        parallel = time.perf_counter() - start

    print(
        f"{len(COLORS)} tasks over a table of {table.nbytes / 1e6:.0f} MB: {parallel:.2f} s, one by one {serial:.2f} s"
    )
    for colors, distance in zip(COLORS, errors, strict=True):
        print(f"{colors:3} colors: {distance:5.1f} of 255 off")
    if errors != expected:
        raise SystemExit("the workers' results differ from those of one process")
    print("every result equals that of one process")


if __name__ == "__main__":
    main()
