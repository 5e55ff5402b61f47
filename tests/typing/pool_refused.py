"""Misuses of pools, each with mypy's expected error for the line."""

import numpy as np

import shmarray


def length(text: str) -> int:
    return len(text)


pool = shmarray.Pool("2")  # error: arg-type
shmarray.Pool(2, timeout=3)  # error: call-arg
shmarray.Pool(2, tasks_ahead="2")  # error: arg-type
pool.map(length, [1, 2])  # error: arg-type
pool.map(length)  # error: call-arg
pool.imap(length, ["a"], buffersize="4")  # error: arg-type
pool.map(3, ["a"])  # error: arg-type
words: list[str] = pool.map(length, ["a"])  # error: arg-type
pool.starmap(length, 3)  # error: arg-type

executor = shmarray.ProcessPoolExecutor(2, task_timeout="1")  # error: arg-type
executor.submit(length, 3)  # error: arg-type
executor.submit()  # error: call-arg
word: str = executor.submit(length, "a").result()  # error: assignment
executor.shutdown(False, True)  # error: call-arg

shmarray.SharedHandle(np.zeros(3), "x")  # error: call-arg
shmarray.scoped(3, mode="r")  # error: call-arg
