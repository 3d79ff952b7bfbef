"""Objects that are sent once for many tasks: lfarm's view of a farm's shared objects.

This module owns the function. It must not know how objects get to servers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from farm_executor.lfarm.kernel import check_kernel

if TYPE_CHECKING:
    from farm_executor.client.farm.shared import Shared

__all__ = ["share"]

T = TypeVar("T")


def share(value: T, *, frozen: bool = False) -> Shared[T]:
    """Share a large object with all workers of the current kernel; see `FarmExecutor.share`.

    The handle that this returns may stand wherever a task of this kernel has a value: among the arguments of
    `submit_task` and the sequences of `pmap`, in what a function closes over, in futures and cognates of all kinds.

    Args:
        value: The object.
        frozen: Whether the tasks on a worker share one object, whose buffers are read-only.

    Raises:
        NoKernelError: There is no current kernel.
        RuntimeError: The kernel has ended.
        TypeError: The kernel's executor is not a `FarmExecutor`.
        Exception: The object cannot be pickled, or this machine has no memory for it.
    """
    return check_kernel().share(value, frozen=frozen)
