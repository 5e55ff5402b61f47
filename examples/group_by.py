"""A pandas group-by in parallel: measure every object in a picture of the sky.

The picture is the Hubble deep field, from scikit-image.  Regions brighter than the sky behind them are objects (mostly
galaxies), and the table has a row for each of their pixels.  Objects are independent, so the table is divided between
objects, and each worker groups one part.  The frames' columns are sent through shared memory.

Run it::

    pip install './shmarray[examples]'
    python shmarray/examples/group_by.py
"""

import time

import numpy as np
import pandas as pd
from scipy.ndimage import label
from skimage import data

import shmarray

PARTS = 8
BACKGROUND = 60  # maximum of red + green + blue in the empty sky
SMALLEST = 12  # pixels


def pixels() -> pd.DataFrame:
    """Return a table with a row for each pixel of an object: its object, position and brightness in each color."""
    picture = data.hubble_deep_field().astype(float)
    objects, _ = label(picture.sum(axis=2) > BACKGROUND)
    is_large = np.bincount(objects.ravel()) >= SMALLEST
    rows, columns = np.nonzero(is_large[objects] & (objects > 0))
    colors = dict(zip(("red", "green", "blue"), picture[rows, columns].T, strict=True))
    return pd.DataFrame({"object": objects[rows, columns], "row": rows, "column": columns, **colors})


def measure(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs in a worker: returns one row for each object."""
    return frame.groupby("object").apply(measure_one)


def measure_one(pixels: pd.DataFrame) -> pd.Series:
    light = pixels.red + pixels.green + pixels.blue
    return pd.Series(
        {
            "size": len(pixels),
            "light": light.sum(),
            "row": np.average(pixels.row, weights=light),
            "column": np.average(pixels.column, weights=light),
            "redness": pixels.red.sum() / light.sum(),
        }
    )


def main() -> None:
    table = pixels()

    start = time.perf_counter()
    expected = measure(table)
    serial = time.perf_counter() - start

    with shmarray.Pool() as pool:
        start = time.perf_counter()
        parts = [part for _, part in table.groupby(table.object % PARTS)]
        measured = pd.concat(pool.map(measure, parts, chunksize=1)).sort_index()
        parallel = time.perf_counter() - start

    print(f"{len(table)} pixels of {len(measured)} objects: {parallel:.2f} s, in one process {serial:.2f} s")
    print(measured.nlargest(3, "light").round(2).to_string())
    if not measured.equals(expected):
        raise SystemExit("the workers' measurements differ from those of one process")
    print("every measurement equals that of one process")


if __name__ == "__main__":
    main()
