"""Sends arrays between processes.  Handles blocks of memory, pickles and bytes; starts no processes.

From top to bottom; each module imports only those below it::

    run_task         the worker's side of a task: unpack, call, pack the result
    result_memory    arrays that a task creates in its result's memory
    lending          the caller's side: pack tasks, unpack results, track the blocks in use
    argument_memory  arrays that a caller creates in the memory for arguments
    allocator        allocates and releases blocks, and frees their memory
    free_list        blocks, in use and free
    leased_arrays    the arrays in leased blocks
    blocks           a pool's shared memory, as one process sees it; forks
    calls            calls in pickled form
    pickling         objects -> (pickle, buffers) -> objects
    by_value         lambdas, and functions defined in a notebook or at a prompt
    by_reference     arrays that are sent by reference
    dedup            finds the arrays that are copied once for all tasks of a call
    messages         tasks and answers as bytes
    buffers          the layout of buffers, and copying arrays into them

The engine only uses the names that this module exports.
"""

from shmarray.pool.arrays import messages
from shmarray.pool.arrays.allocator import BlockAllocator
from shmarray.pool.arrays.blocks import BlockMap
from shmarray.pool.arrays.by_value import begin_worker, for_start
from shmarray.pool.arrays.calls import Call, FunctionCache, compact, users_function
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
    "users_function",
]
