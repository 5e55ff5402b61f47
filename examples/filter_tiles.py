"""Filter a picture in tiles: every worker writes its tiles to one shared result.

The picture is the fundus of an eye, 1411 x 1411 pixels, from scikit-image.  A median filter removes the
noise; it is slow, but each tile can be filtered separately if it includes a margin.

Run it::

    pip install './shmarray[examples]'
    python shmarray/examples/filter_tiles.py
"""

import time
from itertools import product

import numpy as np
from scipy.ndimage import median_filter
from skimage import data

import shmarray

SIZE = 11  # pixels; the filter uses SIZE // 2 of them on each side
MARGIN = SIZE // 2
TILE = 360


def filter_tile(task: tuple[np.ndarray, np.ndarray, int, int]) -> None:
    """Runs in a worker: reads the shared picture, writes into the shared result, returns nothing."""
    picture, result, row, column = task
    top, left = max(row - MARGIN, 0), max(column - MARGIN, 0)
    seen = picture[top : row + TILE + MARGIN, left : column + TILE + MARGIN]
    tile = result[row : row + TILE, column : column + TILE]
    height, width = tile.shape
    tile[:] = median_filter(seen, SIZE)[row - top :, column - left :][:height, :width]


def main() -> None:
    photo = data.retina()[..., 1]  # the green channel shows the vessels best

    start = time.perf_counter()
    expected = median_filter(photo, SIZE)
    serial = time.perf_counter() - start

    with (
        shmarray.Pool() as pool,
        shmarray.scoped(data=photo) as picture,
        shmarray.scoped(photo.shape, "uint8") as result,
    ):
        corners = product(range(0, photo.shape[0], TILE), range(0, photo.shape[1], TILE))
        tasks = [(picture, result, row, column) for row, column in corners]
        start = time.perf_counter()
        pool.map(filter_tile, tasks, chunksize=1)
        parallel = time.perf_counter() - start
        same = np.array_equal(result, expected)

    print(f"{len(tasks)} tiles of a picture of {photo.shape}: {parallel:.2f} s, in one process {serial:.2f} s")
    if not same:
        raise SystemExit("the tiles differ from the picture that one process filters")
    print("every pixel equals that of one process")


if __name__ == "__main__":
    main()
