"""Sharpen photographs: the same program with the standard library's pools and with shmarray's.

Twelve photographs of 24 MB each (the fundus of an eye, from scikit-image, as float32) are sent to
two workers, which sharpen them with an unsharp mask.  The pools are kept, as in a longer program,
and sharpen all photographs several times.  The results are compared with those of one process.

Run it::

    pip install './shmarray[examples]'  # the clone; PyPI's shmarray is another project
    python shmarray/examples/sharpen_photo.py            # writes sharpened.png: before, after

With ``--quick`` it processes some of the photographs, once, and writes no picture.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import starmap
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter
from skimage import data, io

import shmarray

WORKERS = 2
PHOTOGRAPHS = 12
ROUNDS = 5
BLUR = (5, 5, 1)  # rows, columns, channels
STRENGTH = 1.5
PICTURE = Path("sharpened.png")

Photographs = list[np.ndarray]
Job = Callable[[], Iterable[np.ndarray]]


def sharpened(photo: np.ndarray) -> np.ndarray:
    """The function of a program that does not use shmarray."""
    blurred = uniform_filter(photo, BLUR)
    return np.clip(photo + STRENGTH * (photo - blurred), 0, 1)


def sharpened_in_place(photo: np.ndarray) -> np.ndarray:
    """The same, computed in memory from which the result is returned without a copy."""
    result = shmarray.empty_like(photo)
    uniform_filter(photo, BLUR, output=result)
    np.subtract(photo, result, out=result)
    result *= np.float32(STRENGTH)
    result += photo
    return np.clip(result, 0, 1, out=result)


def photographs(*, quick: bool) -> Photographs:
    photo = (data.retina() / 255).astype(np.float32)
    if quick:
        photo = photo[: len(photo) // 4]
    return [np.roll(photo, 40 * number, axis=1) for number in range(PHOTOGRAPHS)]


def seconds(job: Job, expected: Photographs, rounds: int) -> float:
    """Return the median time of some rounds after the first, which includes starting and importing."""
    times = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        results = list(job())
        times.append(time.perf_counter() - start)
        if not number and not all(starmap(np.allclose, zip(results, expected, strict=True))):
            raise SystemExit("a pool's results differ from those of one process")
        del results  # so that the next round can reuse the memory
    return statistics.median(times[1:])


def report(name: str, time_: float, serial: float) -> None:
    print(f"{name:52}{time_:7.2f} s{serial / time_:8.1f} times")


def main(*, quick: bool) -> None:
    photos = photographs(quick=quick)
    rounds = 1 if quick else ROUNDS
    expected = [sharpened(photo) for photo in photos]
    megabytes = photos[0].nbytes / 1e6
    print(f"{len(photos)} photographs of {megabytes:.0f} MB, {WORKERS} workers, {multiprocessing.get_start_method()}")
    print(f"\n{'':52}{'a round':>9}{'as fast as one process':>25}")
    serial = seconds(lambda: map(sharpened, photos), expected, rounds)
    report("one process", serial, serial)
    with multiprocessing.Pool(WORKERS) as pool, ProcessPoolExecutor(WORKERS) as executor:
        stock = seconds(lambda: pool.imap(sharpened, photos), expected, rounds)
        report("multiprocessing.Pool", stock, serial)
        report(
            "concurrent.futures.ProcessPoolExecutor",
            seconds(lambda: executor.map(sharpened, photos), expected, rounds),
            serial,
        )
    with shmarray.Pool(WORKERS) as pool, shmarray.ProcessPoolExecutor(WORKERS) as executor:
        ours = seconds(lambda: pool.imap(sharpened, photos), expected, rounds)
        report("shmarray.Pool: only the import has changed", ours, serial)
        report(
            "shmarray.ProcessPoolExecutor: likewise",
            seconds(lambda: executor.map(sharpened, photos), expected, rounds),
            serial,
        )
        in_place = seconds(lambda: pool.imap(sharpened_in_place, photos), expected, rounds)
        report("shmarray.Pool, results in shmarray.empty_like", in_place, serial)
    print(
        f"\nWith only the import changed, this job is {stock / ours:.1f} times as fast as with multiprocessing.Pool, "
        f"and\nwith results in shared memory {stock / in_place:.1f} times; all results are the same."
    )
    if not quick:
        half = np.concatenate([photos[0][500:900, 500:900], expected[0][500:900, 500:900]], axis=1)
        io.imsave(PICTURE, (255 * half).astype(np.uint8))
        print(f"A part of the first photograph, before and after: {PICTURE.resolve()}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
