"""A backend for joblib; importing this module registers it as "shmarray".

From top to bottom; each module imports only those below it::

    backend     what joblib asks of a backend
    workers     the processes, kept from one call to the next
    calls       calls that travel together, each with arguments of its own

Needs joblib 1.4 or later.  What scikit-learn and others run through `joblib.Parallel` then
goes through a `shmarray.Pool`::

    import joblib
    import shmarray.joblib

    with joblib.parallel_config(backend="shmarray", n_jobs=4):
        ...
"""

from joblib.parallel import register_parallel_backend

from shmarray.joblib.backend import ShmarrayBackend
from shmarray.joblib.workers import end_idle_workers

__all__ = ["ShmarrayBackend", "end_idle_workers"]

register_parallel_backend("shmarray", ShmarrayBackend)
