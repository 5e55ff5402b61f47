"""What people type at a prompt, for both kinds of pool; a program for -c, standard input and ``python -i``.

Because it is typed, blocks contain no empty lines and end with one.
"""

PROMPT = """
import multiprocessing
import numpy as np
import shmarray
BIG = 100_000
SCALE = 2
state = None

class Point:
    def __init__(self, x):
        self.x = x
    def scaled(self):
        return self.x * SCALE

class RedefinedError(Exception):
    pass

def helper(x):
    return x

def f(x):
    return x * SCALE + helper(x)

def fail(x):
    raise RedefinedError(x)

def move(point):
    return Point(point.x + point.scaled())

def init(values):
    global state
    state = values

def read(i):
    return state[i]

options = dict(initializer=init, initargs=([5, 6, 7],))
context = multiprocessing.get_context(METHOD)
pools = [shmarray.Pool(2, context=context, **options)]
pools.append(shmarray.ProcessPoolExecutor(2, mp_context=context, **options))

def each(func, items):
    return [list(pool.map(func, items)) for pool in pools]

assert each(f, [1, 2]) == [[3, 6]] * 2
SCALE = 3
assert each(f, [1, 2]) == [[4, 8]] * 2

def helper(x):
    return 10 * x

assert each(f, [1, 2]) == [[13, 26]] * 2

def f(x):
    return -x

assert each(f, [1, 2]) == [[-1, -2]] * 2
assert each(lambda x: f(x) + 1, [1, 2]) == [[0, -1]] * 2
moved = each(move, [Point(1), Point(2)])
assert [[type(p) for p in row] for row in moved] == [[Point] * 2] * 2
assert [[p.x for p in row] for row in moved] == [[4, 8]] * 2
assert Point.scaled.__globals__ is globals()
assert each(read, [0, 1, 2]) == [[5, 6, 7]] * 2
big = np.ones(BIG)
assert each(lambda i: float(big.sum()) + i, [1, 2]) == [[BIG + 1, BIG + 2]] * 2
big[:] = 2
assert each(lambda i: float(big.sum()) + i, [1, 2]) == [[2 * BIG + 1, 2 * BIG + 2]] * 2
caught = 0
for pool in pools:
    try:
        list(pool.map(fail, [7]))
    except RedefinedError as error:
        caught += error.args == (7,) and "in fail" in str(error.__cause__)

assert caught == 2
pools[0].close()
pools[0].join()
pools[1].shutdown()
print("fine")
"""

WITHOUT_THE_EXTRA = """
import multiprocessing, pickle
import shmarray

def double(x):
    return 2 * x

context = multiprocessing.get_context(METHOD)
for make in (lambda: shmarray.Pool(1, context=context), lambda: shmarray.ProcessPoolExecutor(1, mp_context=context)):
    with make() as pool:
        for function in (double, lambda x: x):
            try:
                print(list(pool.map(function, [1, 2])))
            except (pickle.PicklingError, AttributeError) as error:
                print(type(error).__name__, error)
        assert list(pool.map(abs, [-1])) == [1]
        assert list(pool.map(str, ["__main__"])) == ["__main__"]
"""
