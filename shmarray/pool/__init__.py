"""Carrying arrays between processes.  Imports core through its facade only.

From top to bottom; each module imports only those below it::

    scope     scoped: a shared array for the length of a with-block
    handle    SharedHandle: a view of shared memory, as something small to send
"""

from shmarray.pool.handle import SharedHandle
from shmarray.pool.scope import scoped

__all__ = ["SharedHandle", "scoped"]
