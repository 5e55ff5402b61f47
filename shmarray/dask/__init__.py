"""Arrays on a Dask cluster, one copy on each host.  Needs `distributed` (the extra ``dask``).

From top to bottom; each module imports only those below it::

    executor    ProcessPoolExecutor on a cluster
    pool        Pool on a cluster
    results     the results that its methods return
    calls       calls as they are sent: a pickle, with arrays beside it
    sharing     share: an array with one copy on each host; the client's part
    plugin      prepares the workers
    handle      ClusterHandle: a small reference to such an array
    site        the worker's part: fetch, pass on, release
    copies      the copies in this process and on this host
    hooks       the undocumented parts of distributed that are used
"""

from shmarray.dask.executor import ProcessPoolExecutor
from shmarray.dask.handle import ClusterHandle
from shmarray.dask.plugin import dask_setup, dask_teardown
from shmarray.dask.pool import Pool
from shmarray.dask.sharing import Share, install, share

__all__ = ["ClusterHandle", "Pool", "ProcessPoolExecutor", "Share", "dask_setup", "dask_teardown", "install", "share"]
