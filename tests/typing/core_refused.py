"""Misuses of named arrays, each with mypy's expected error for the line."""

import numpy as np
from numpy.typing import NDArray

import shmarray

shmarray.create()  # error: call-overload
shmarray.create("x")  # error: call-overload
shmarray.create(b"x", 3)  # error: call-overload
shmarray.create("x", "3")  # error: arg-type
shmarray.create("x", 3.0)  # error: call-overload
shmarray.create("x", 3, np.float64, [1, 2])  # error: call-overload
shmarray.create("x", 3, order="A")  # error: call-overload
shmarray.create("x", 3, permissions="rw-------")  # error: call-overload
shmarray.require("x")  # error: call-overload
shmarray.require("x", 3, order="K")  # error: call-overload
shmarray.attach("x", "w+")  # error: arg-type
shmarray.attach("x", "r", 3)  # error: call-arg
shmarray.delete(np.zeros(3))  # error: arg-type
shmarray.list("prefix")  # error: call-arg
shmarray.list()[0].nbytes = 3  # error: misc
shmarray.lock("x", True)  # error: call-arg
shmarray.lock(np.zeros(3), timeout="1")  # error: arg-type
shmarray.msync("x")  # error: arg-type
shmarray.mlock("x")  # error: arg-type

wrong: NDArray[np.int64] = shmarray.create("x", 3)  # error: assignment
