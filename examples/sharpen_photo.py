"""Sharpen a photograph in tiles: workers read one shared image and write into one shared result.

The photograph is the fundus of an eye, 1411 x 1411 pixels, from scikit-image.  Every tile is
sharpened (unsharp mask) by a worker of a stock `multiprocessing.Pool` and of a stock
`concurrent.futures.ProcessPoolExecutor`, once with shared memory and once by value, under
every start method, and the results are checked against one process doing it all.

Run it::

    pip install './shmarray[examples]'  # the clone; PyPI's shmarray is another project
    python shmarray/examples/sharpen_photo.py
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage import data

import shmarray

SIGMA = 2.0
RADIUS = 8  # pixels that a tile needs beyond its edges: gaussian_filter looks at 4 sigma
TILES = 16
WORKERS = 2

Span = tuple[int, int]


def sharpened(image: np.ndarray) -> np.ndarray:
    blurred = gaussian_filter(image, (SIGMA, SIGMA, 0))
    return np.clip(image + 1.5 * (image - blurred), 0, 1)


def with_margin(image: np.ndarray, span: Span) -> tuple[np.ndarray, Span]:
    """The rows that a tile depends on, and where the tile is among them."""
    start = max(span[0] - RADIUS, 0)
    return image[start : span[1] + RADIUS], (span[0] - start, span[1] - start)


def by_handle(task: tuple[shmarray.SharedHandle, shmarray.SharedHandle, Span]) -> None:
    """Runs in a worker: nothing but two handles and two numbers came, nothing goes back."""
    image, result, (start, stop) = task[0].array, task[1].array, task[2]
    rows, inner = with_margin(image, (start, stop))
    result[start:stop] = sharpened(rows)[slice(*inner)]


def by_value(task: tuple[np.ndarray, Span]) -> np.ndarray:
    """Runs in a worker: the rows came through a pipe, and the tile goes back through one."""
    rows, inner = task
    return sharpened(rows)[slice(*inner)]


def timed(job: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    job()  # the first call pays for starting the workers and their imports
    start = time.perf_counter()
    result = job()
    return result, 1000 * (time.perf_counter() - start)


def compare(name: str, mapper: Callable[..., Iterable], image: np.ndarray, expected: np.ndarray) -> None:
    """Both ways through one pool's `map`, checked and timed."""
    edges = np.linspace(0, len(image), TILES + 1, dtype=int).tolist()
    spans = list(pairwise(edges))

    def value() -> np.ndarray:
        return np.concatenate(list(mapper(by_value, [with_margin(image, span) for span in spans])))

    def handle() -> np.ndarray:
        tasks = [(shmarray.SharedHandle(image), shmarray.SharedHandle(result), span) for span in spans]
        list(mapper(by_handle, tasks))
        return result

    with shmarray.scoped(image.shape, image.dtype) as result:
        values, value_ms = timed(value)
        handles, handle_ms = timed(handle)
        same = np.array_equal(values, expected) and np.array_equal(handles, expected)
    print(
        f"{name:34}{value_ms:9.0f} ms{handle_ms:9.0f} ms{value_ms / handle_ms:8.2f} x   {'same' if same else 'WRONG'}"
    )
    if not same:
        raise SystemExit("a pool's answer is not the serial answer")


def main() -> None:
    photo = data.retina() / 255.0  # float64, as most filters make it
    start = time.perf_counter()
    expected = sharpened(photo)
    serial_ms = 1000 * (time.perf_counter() - start)
    print(f"a photograph of {photo.shape}, {photo.nbytes / 1e6:.0f} MB, {TILES} tiles, {WORKERS} workers")
    print(f"one process: {serial_ms:.0f} ms\n")
    print(f"{'':34}{'by value':>12}{'shared':>12}{'faster':>10}   result")
    with shmarray.scoped(data=photo) as image:
        for method in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            with context.Pool(WORKERS) as pool:
                compare(f"Pool.map, {method}", pool.map, image, expected)
            with ProcessPoolExecutor(WORKERS, mp_context=context) as executor:
                compare(f"ProcessPoolExecutor.map, {method}", executor.map, image, expected)


if __name__ == "__main__":
    main()
