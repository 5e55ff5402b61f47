"""Sharpen a photograph in tiles: workers read one shared image and write into one shared result.

The photograph is the fundus of an eye, 1411 x 1411 pixels, from scikit-image.  Every tile is
sharpened (unsharp mask) by a worker of a stock `multiprocessing.Pool` and of a stock
`concurrent.futures.ProcessPoolExecutor`: by value; with handles of shared arrays; and with
the by-value program unchanged but for the import, through shmarray's own `Pool` and
`ProcessPoolExecutor`.  All under every start method, and checked against one process doing
it all.

Run it::

    pip install './shmarray[examples]'  # the clone; PyPI's shmarray is another project
    python shmarray/examples/sharpen_photo.py            # or with --quick: a quarter of it, once
"""

import multiprocessing
import statistics
import sys
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
Mapper = Callable[..., Iterable]


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


def timed(job: Callable[[], np.ndarray], runs: int) -> tuple[np.ndarray, float]:
    """The result, and the median time of some runs after the first: that pays for starting and importing."""
    job()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        result = job()
        times.append(time.perf_counter() - start)
    return result, 1000 * statistics.median(times)


def all_by_value(mapper: Mapper, image: np.ndarray, spans: list[Span]) -> np.ndarray:
    return np.concatenate(list(mapper(by_value, [with_margin(image, span) for span in spans])))


def all_by_handle(mapper: Mapper, image: np.ndarray, spans: list[Span], result: np.ndarray) -> np.ndarray:
    tasks = [(shmarray.SharedHandle(image), shmarray.SharedHandle(result), span) for span in spans]
    list(mapper(by_handle, tasks))
    return result


def compare(name: str, stock: Mapper, ours: Mapper, shared: np.ndarray, expected: np.ndarray, runs: int) -> None:
    """Three ways for one kind of pool, checked and timed."""
    edges = np.linspace(0, len(shared), TILES + 1, dtype=int).tolist()
    spans = list(pairwise(edges))
    plain = np.array(shared)  # not in shared memory
    with shmarray.scoped(shared.shape, shared.dtype) as result:
        answers = [
            timed(lambda: all_by_value(stock, plain, spans), runs),
            timed(lambda: all_by_handle(stock, shared, spans, result), runs),
            timed(lambda: all_by_value(ours, plain, spans), runs),
        ]
        same = all(np.array_equal(answer, expected) for answer, _ in answers)
    times = "".join(f"{milliseconds:11.0f} ms" for _, milliseconds in answers)
    print(f"{name:32}{times}   {'same' if same else 'WRONG'}")
    if not same:
        raise SystemExit("a pool's answer is not the serial answer")


def main(*, quick: bool) -> None:
    photo = data.retina() / 255.0  # float64, as most filters make it
    if quick:
        photo = photo[: len(photo) // 4]
    runs = 1 if quick else 3
    start = time.perf_counter()
    expected = sharpened(photo)
    serial_ms = 1000 * (time.perf_counter() - start)
    print(f"a photograph of {photo.shape}, {photo.nbytes / 1e6:.0f} MB, {TILES} tiles, {WORKERS} workers")
    print(f"one process: {serial_ms:.0f} ms; other programs on the machine disturb these times\n")
    print(f"{'':32}{'by value':>14}{'handles':>14}{'our pool':>14}   result")
    with shmarray.scoped(data=photo) as image:
        for method in ("fork", "spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            with context.Pool(WORKERS) as stock, shmarray.Pool(WORKERS, context=context) as ours:
                compare(f"Pool.map, {method}", stock.map, ours.map, image, expected, runs)
            with (
                ProcessPoolExecutor(WORKERS, mp_context=context) as stock_executor,
                shmarray.ProcessPoolExecutor(WORKERS, mp_context=context) as our_executor,
            ):
                compare(f"ProcessPoolExecutor, {method}", stock_executor.map, our_executor.map, image, expected, runs)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
