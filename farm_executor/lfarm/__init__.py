"""lfarm for Python: kernels, channels, promises and cognates, under their names in Lisp.

::

    from farm_executor import lfarm

    kernel = lfarm.make_kernel([("127.0.0.1", 11111), ("127.0.0.1", 22222)])
    with lfarm.use_kernel(kernel):
        channel = lfarm.make_channel()
        lfarm.submit_task(channel, pow, 2, 10)
        lfarm.receive_result(channel)  # 1024

This is a thin adapter over any `concurrent.futures.Executor`; broadcasting, killing and priorities need a
`FarmExecutor`. This module holds the names and nothing else.
"""

from __future__ import annotations

from farm_executor.errors import (
    BroadcastError,
    InvalidTaskError,
    KernelCreationError,
    NoKernelError,
    TaskExecutionError,
    TaskKilledError,
)
from farm_executor.lfarm.channel import (
    Channel,
    Timeout,
    cancel_timeout,
    do_fast_receives,
    make_channel,
    receive_result,
    submit_task,
    submit_timeout,
    try_receive_result,
)
from farm_executor.lfarm.cognate import (
    plet,
    pmap,
    pmap_into,
    pmap_reduce,
    preduce,
    preduce_partial,
    psort,
)
from farm_executor.lfarm.kernel import (
    Kernel,
    broadcast_task,
    check_kernel,
    end_kernel,
    kernel_name,
    kernel_worker_count,
    kill_tasks,
    make_kernel,
    set_kernel,
    task_categories_running,
    use_kernel,
)
from farm_executor.lfarm.log import log_level, log_stream
from farm_executor.lfarm.promise import (
    Chain,
    Promise,
    chain,
    delay,
    force,
    fulfill,
    fulfilledp,
    future,
    promise,
    speculate,
)
from farm_executor.lfarm.seeking import (
    pcount,
    pcount_if,
    pevery,
    pfind,
    pfind_if,
    pnotany,
    pnotevery,
    premove,
    premove_if,
    psome,
)
from farm_executor.lfarm.servers import (
    end_local_servers,
    end_remote_servers,
    end_server,
    ping,
    start_local_servers,
    start_remote_servers,
    start_server,
)
from farm_executor.lfarm.sharing import share
from farm_executor.lfarm.streams import stream_task
from farm_executor.lfarm.task_options import task_category, task_priority
from farm_executor.lfarm.tasks import Task, deftask

__all__ = [
    # kernel
    "Kernel",
    "make_kernel",
    "end_kernel",
    "check_kernel",
    "set_kernel",
    "use_kernel",
    "kernel_name",
    "kernel_worker_count",
    # tasks and channels
    "Task",
    "deftask",
    "Channel",
    "make_channel",
    "submit_task",
    "stream_task",
    "share",
    "receive_result",
    "try_receive_result",
    "do_fast_receives",
    "Timeout",
    "submit_timeout",
    "cancel_timeout",
    # all workers, categories and priorities
    "broadcast_task",
    "task_category",
    "task_priority",
    "task_categories_running",
    "kill_tasks",
    # promises
    "Promise",
    "Chain",
    "promise",
    "fulfill",
    "fulfilledp",
    "force",
    "future",
    "speculate",
    "delay",
    "chain",
    # cognates
    "plet",
    "pmap",
    "pmap_into",
    "preduce",
    "preduce_partial",
    "pmap_reduce",
    "pevery",
    "psome",
    "pnotany",
    "pnotevery",
    "pcount",
    "pcount_if",
    "pfind",
    "pfind_if",
    "premove",
    "premove_if",
    "psort",
    # servers and logging
    "start_server",
    "ping",
    "end_server",
    "start_local_servers",
    "end_local_servers",
    "start_remote_servers",
    "end_remote_servers",
    "log_level",
    "log_stream",
    # errors
    "NoKernelError",
    "KernelCreationError",
    "InvalidTaskError",
    "TaskExecutionError",
    "TaskKilledError",
    "BroadcastError",
]
