"""Arrays on a Dask cluster, one copy on each host.  Needs `distributed` (the extra ``dask``).

From top to bottom; each module imports only those below it::

    executor    ProcessPoolExecutor on a cluster
    pool        Pool on a cluster
    results     what its methods return
    calls       calls as they travel: a pickle, and arrays beside it
    sharing     share: an array that each host has once; the client's part
    plugin      how workers come to know of it
    handle      ClusterHandle: such an array, as something small to send
    site        a worker's part: fetch, hand on, let go
    copies      what this process and this host have
    hooks       what is used of distributed beyond its documentation
"""

from shmarray.dask.executor import ProcessPoolExecutor
from shmarray.dask.handle import ClusterHandle
from shmarray.dask.plugin import dask_setup, dask_teardown
from shmarray.dask.pool import Pool
from shmarray.dask.sharing import Share, install, share

__all__ = ["ClusterHandle", "Pool", "ProcessPoolExecutor", "Share", "dask_setup", "dask_teardown", "install", "share"]
