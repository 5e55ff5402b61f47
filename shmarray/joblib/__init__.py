"""A backend for joblib; importing this module registers it as "shmarray".

From top to bottom; each module imports only those below it::

    backend     the interface that joblib requires
    workers     the processes, which are kept between calls
    calls       calls that are sent together, each with its own arguments

Requires joblib 1.4 or later.  scikit-learn and other users of `joblib.Parallel` can then run
their calls in a `shmarray.Pool`::

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
