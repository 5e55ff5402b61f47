"""Uses of named arrays that a type checker accepts, and the types that it infers."""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import shmarray


def created_by_shape() -> None:
    assert_type(shmarray.create("x", 10), NDArray[np.float64])
    assert_type(shmarray.create("x", (2, 3), order="F", permissions=0o644), NDArray[np.float64])
    assert_type(shmarray.create("x", np.zeros(3).shape), NDArray[np.float64])
    assert_type(shmarray.create("x", np.int64(3)), NDArray[np.float64])
    assert_type(shmarray.create("x", 10, np.uint8), NDArray[np.uint8])
    assert_type(shmarray.create("x", 10, dtype=np.dtype(np.int32)), NDArray[np.int32])
    assert_type(shmarray.create("x", 10, "f4"), NDArray[Any])
    assert_type(shmarray.create("x", 10, float), NDArray[Any])
    assert_type(shmarray.create("x", 10, [("a", "i4"), ("b", "f8")]), NDArray[Any])


def created_from_data(image: NDArray[np.uint8], some: NDArray[Any]) -> None:
    assert_type(shmarray.create("x", data=image), NDArray[np.uint8])
    assert_type(shmarray.create("x", (4, 4), data=image), NDArray[np.uint8])
    assert_type(shmarray.create("x", data=image, dtype=np.float32), NDArray[np.float32])
    assert_type(shmarray.create("x", None, np.float32, data=[1, 2]), NDArray[np.float32])
    assert_type(shmarray.create("x", data=some), NDArray[Any])
    assert_type(shmarray.create("x", data=[[1, 2], [3, 4]]), NDArray[Any])
    assert_type(shmarray.create("x", 4, data=[1, 2, 3, 4]), NDArray[Any])
    assert_type(shmarray.create("x", data=image, dtype="f4", order="K"), NDArray[Any])


def required() -> None:
    assert_type(shmarray.require("x", (2, 3)), NDArray[np.float64])
    assert_type(shmarray.require("x", 3, np.int16, order="F"), NDArray[np.int16])
    assert_type(shmarray.require("x", 3, "i8"), NDArray[Any])


def attached() -> None:
    assert_type(shmarray.attach("x"), NDArray[Any])
    pixels: NDArray[np.uint8] = shmarray.attach("x", "r")
    shmarray.attach("x", mode="c")
    with shmarray.lock(pixels, shared=True, timeout=1), shmarray.lock("x", timeout=0.5):
        shmarray.msync(pixels, shmarray.MS_ASYNC | shmarray.MS_INVALIDATE)
        shmarray.mlock(pixels)
        shmarray.munlock(pixels)
    assert_type(shmarray.delete("x"), None)


def listed() -> None:
    for info in shmarray.list():
        assert_type(info, shmarray.ArrayInfo)
        assert_type(info.name, str)
        assert_type(info.shape, tuple[int, ...])
        assert_type(info.nbytes, int)


def handed_on(error: shmarray.SharedMemoryFullError) -> OSError | MemoryError:
    assert_type(error.name, str)
    assert_type(error.asked, int)
    return error
