"""Arrays on their way between processes.  Knows blocks of memory, pickles and bytes; starts no process.

From top to bottom; each module imports only those below it::

    run_task       the worker's side of a task: unpack, call, pack the result
    result_memory  arrays that a task makes where its result goes
    lending        the caller's side: pack tasks, unpack results, blocks in use meanwhile
    argument_memory  arrays that a caller makes where arguments go
    allocator      blocks: handed out, taken back, their memory released
    leased_arrays  which arrays lie in blocks that somebody has
    blocks         the shared memory of a pool, as one process sees it; forks
    calls          calls as they are pickled
    pickling       objects -> (pickle, buffers) -> objects
    by_value       lambdas, and what a notebook or a prompt defines
    by_reference   arrays that travel by reference
    dedup          which arrays of a call are copied once for all its tasks
    messages       tasks and answers as bytes
    buffers        where buffers lie, and how arrays are copied there

The engine uses the names that this module exports, and nothing else of it.
"""

from shmarray.pool.arrays import messages
from shmarray.pool.arrays.allocator import BlockAllocator
from shmarray.pool.arrays.blocks import BlockMap
from shmarray.pool.arrays.by_value import begin_worker, for_start
from shmarray.pool.arrays.calls import Call, FunctionCache, compact
from shmarray.pool.arrays.dedup import RepeatedArrays, repeated_arrays
from shmarray.pool.arrays.lending import Lending, RetainedBlocks, TaskBlocks
from shmarray.pool.arrays.pickling import PickledObject, dumps, is_plain
from shmarray.pool.arrays.result_memory import allocate
from shmarray.pool.arrays.run_task import ExceptionEncoder, TaskRunner

__all__ = [
    "BlockAllocator",
    "BlockMap",
    "Call",
    "ExceptionEncoder",
    "FunctionCache",
    "Lending",
    "PickledObject",
    "RepeatedArrays",
    "RetainedBlocks",
    "TaskBlocks",
    "TaskRunner",
    "allocate",
    "begin_worker",
    "compact",
    "dumps",
    "for_start",
    "is_plain",
    "messages",
    "repeated_arrays",
]
