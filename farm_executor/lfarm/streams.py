"""Tasks whose items come one by one: lfarm's view of a farm's streams.

This module owns the function. It must not know how items travel.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from farm_executor.lfarm.kernel import check_kernel

if TYPE_CHECKING:
    from farm_executor.client.stream import Stream

__all__ = ["stream_task"]

P = ParamSpec("P")
T = TypeVar("T")


@overload
def stream_task(
    task: Callable[P, Iterable[T] | AsyncIterable[T]], /, *args: P.args, **kwargs: P.kwargs
) -> Stream[T]: ...
@overload
def stream_task(task: str, /, *args: Any, **kwargs: Any) -> Stream[Any]: ...
def stream_task(task: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> Stream[Any]:
    """Run a task of the current kernel, and give what it yields as it yields it; see `FarmExecutor.stream`.

    Args:
        task: As for `submit_task`; a generator function, an asynchronous one, or one that returns an iterable.
        args: Its arguments.
        kwargs: Its arguments by name.

    Raises:
        InvalidTaskError: The task is not one that can be submitted.
        NoKernelError: There is no current kernel.
        TypeError: The kernel's executor is not a `FarmExecutor`.
    """
    return check_kernel().stream(task, *args, **kwargs)
