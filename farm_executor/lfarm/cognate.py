"""Parallel counterparts of Python's functions on sequences: map, reduce, sorted and the like.

This module owns what a part of a sequence computes on a worker, and how the parts' results are combined. It must
not know how parts are made and run: `parts` does that. Cognates that look for elements are in `seeking`.

All cognates have this in common: only a part's own elements travel with it. ``parts`` is the number of parts to
make, by default the kernel's number of workers. Sequences may be any iterables; those that can be sliced (lists,
tuples, ranges, strings, arrays) are sliced, the others are first made into lists. The result is the same as the
serial counterpart's. The error of the part that fails first is raised, and the parts that have not begun are then
cancelled, as they are once the result is known.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, MutableSequence
from functools import partial, reduce
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, TypeVar, overload

from farm_executor.arguments import checked
from farm_executor.data.awaiting import all_awaited
from farm_executor.lfarm.checks import check_bool, check_callable, checked_index
from farm_executor.lfarm.parts import bounds, columns, divide, interval, run_all, sliceable
from farm_executor.lfarm.tasks import TaskLike, sendable
from farm_executor.progress import tally_for

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison, SupportsRichComparisonT
    from typing_extensions import TypedDict, Unpack

    from farm_executor.lfarm.parts import OfSearch
    from farm_executor.progress import ProgressLike

    class _OfMap(TypedDict, total=False):
        parts: int | None
        size: int | None
        progress: ProgressLike

    class _OfReduction(OfSearch, total=False):
        recurse: bool


__all__ = [
    "plet",
    "pmap",
    "pmap_into",
    "pmap_reduce",
    "preduce",
    "preduce_partial",
    "psort",
]

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
K = TypeVar("K")
Target = TypeVar("Target", bound=MutableSequence[Any])

_NOTHING: Any = object()

# -- mapping -----------------------------------------------------------------------------------------


@overload
def pmap(
    task: Callable[[T1], Coroutine[Any, Any, T]], s1: Iterable[T1], /, **options: Unpack[_OfMap]
) -> list[T]: ...
@overload
def pmap(task: Callable[[T1], T], s1: Iterable[T1], /, **options: Unpack[_OfMap]) -> list[T]: ...
@overload
def pmap(
    task: Callable[[T1, T2], Coroutine[Any, Any, T]],
    s1: Iterable[T1],
    s2: Iterable[T2],
    /,
    **options: Unpack[_OfMap],
) -> list[T]: ...
@overload
def pmap(
    task: Callable[[T1, T2], T], s1: Iterable[T1], s2: Iterable[T2], /, **options: Unpack[_OfMap]
) -> list[T]: ...
@overload
def pmap(
    task: Callable[[T1, T2, T3], Coroutine[Any, Any, T]],
    s1: Iterable[T1],
    s2: Iterable[T2],
    s3: Iterable[T3],
    /,
    **options: Unpack[_OfMap],
) -> list[T]: ...
@overload
def pmap(
    task: Callable[[T1, T2, T3], T],
    s1: Iterable[T1],
    s2: Iterable[T2],
    s3: Iterable[T3],
    /,
    **options: Unpack[_OfMap],
) -> list[T]: ...
@overload
def pmap(
    task: Callable[..., Coroutine[Any, Any, T]],
    s1: Iterable[Any],
    s2: Iterable[Any],
    s3: Iterable[Any],
    s4: Iterable[Any],
    /,
    *sequences: Iterable[Any],
    **options: Unpack[_OfMap],
) -> list[T]: ...
@overload
def pmap(
    task: Callable[..., T],
    s1: Iterable[Any],
    s2: Iterable[Any],
    s3: Iterable[Any],
    s4: Iterable[Any],
    /,
    *sequences: Iterable[Any],
    **options: Unpack[_OfMap],
) -> list[T]: ...
@overload
def pmap(task: str, *sequences: Iterable[Any], **options: Unpack[_OfMap]) -> list[Any]: ...
def pmap(
    task: TaskLike,
    *sequences: Iterable[Any],
    parts: int | None = None,
    size: int | None = None,
    progress: ProgressLike = None,
) -> list[Any]:
    """Return ``list(map(task, *sequences))``, computed in parallel.

    Args:
        task: Called with one element of each sequence, until the shortest ends.
        sequences: At least one sequence.
        parts: The number of tasks to make.
        size: The most elements to take of each sequence.
        progress: As in `FarmExecutor.map`. The elements of a part count when all of them have ended, so a fine bar
            needs more ``parts`` than workers.

    Raises:
        TaskExecutionError: The task failed for one of the elements.
        TypeError: There is no sequence, or an argument has a wrong type.
        ValueError: ``parts`` is less than 1, or ``size`` less than 0.
        InvalidTaskError, NoKernelError: As for `future`.
    """
    call = sendable(task)
    if not sequences:
        raise TypeError("pmap needs at least one sequence")
    (progress,) = checked("FarmExecutor.map", progress=progress)
    taken, count = columns(sequences, _checked_size(size))
    at = bounds(count, parts)
    calls = divide(taken, at)
    tally = tally_for(progress, task, count)
    if tally is None:
        results = run_all(partial(_map_part, call), calls)
    else:
        lengths = [end - start for start, end in pairwise(at)]
        try:
            results = run_all(
                partial(_map_part, call),
                calls,
                lambda part, failed: tally.add(lengths[part], lengths[part] if failed else 0),
            )
        finally:
            tally.finish()
    return list(chain.from_iterable(results))


def pmap_into(
    target: Target,
    task: TaskLike,
    *sequences: Iterable[Any],
    parts: int | None = None,
    size: int | None = None,
) -> Target:
    """Store the results of ``map(task, *sequences)`` in an existing sequence, from its beginning.

    Args:
        target: The sequence to change. As many elements as there are results are replaced, the rest is left alone;
            nothing is replaced if a task fails.
        task: Called with one element of each sequence, until the shortest or the target ends.
        sequences: The sequences. Without any, the task is called without arguments for each element of the target.
        parts: The number of tasks to make.
        size: The most elements to replace.

    Returns:
        The target.

    Raises:
        TypeError: The target cannot be changed, or an argument has a wrong type.
        TaskExecutionError, ValueError, InvalidTaskError, NoKernelError: As `pmap`.
    """
    call = sendable(task)
    if not hasattr(target, "__setitem__") or not hasattr(target, "__len__"):
        raise TypeError(f"pmap_into needs a sequence that can be changed, not a {type(target).__qualname__}")
    size = _checked_size(size)
    room = len(target) if size is None else min(size, len(target))
    if sequences:
        results = _mapped(partial(_map_part, call), *columns(sequences, room), parts)
    else:
        results = _mapped(partial(_repeat_part, call), [range(room)], room, parts)
    for index, value in enumerate(results):
        target[index] = value
    return target


def plet(body: Callable[..., T], /, **bindings: Any) -> T:
    """Compute values in parallel and call a function with them.

    ``plet(lambda x, y: x + y, x=lambda: f(3), y=lambda: g(4))`` is Lisp's ``(plet ((x (f 3)) (y (g 4))) (+ x y))``.

    Args:
        body: Called here, with the values as keyword arguments.
        bindings: For each name, a function without arguments, which becomes a task, or any other value.

    Returns:
        The body's result.

    Raises:
        TaskExecutionError: One of the bindings failed; the body has not been called.
        TypeError: The body cannot be called.
        NoKernelError: There is no current kernel.
        Exception: The body's own exception.
    """
    check_callable("body", body)
    calls = {name: sendable(value) for name, value in bindings.items() if callable(value)}
    values = run_all(_call, [(call,) for call in calls.values()])
    return body(**{**bindings, **dict(zip(calls, values, strict=True))})


# -- reducing ----------------------------------------------------------------------------------------


@overload
def preduce(
    task: Callable[[T, T], T] | str,
    sequence: Iterable[T],
    *,
    initial_value: T = ...,
    key: None = None,
    **options: Unpack[_OfReduction],
) -> T: ...
@overload
def preduce(
    task: Callable[[K, K], K] | str,
    sequence: Iterable[T],
    *,
    initial_value: K = ...,
    key: Callable[[T], K],
    **options: Unpack[_OfReduction],
) -> K: ...
@overload
def preduce(
    task: TaskLike,
    sequence: Iterable[Any],
    *,
    initial_value: Any = ...,
    key: str,
    **options: Unpack[_OfReduction],
) -> Any: ...
def preduce(
    task: TaskLike,
    sequence: Iterable[Any],
    *,
    initial_value: Any = _NOTHING,
    key: TaskLike | None = None,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
    recurse: bool = False,
) -> Any:
    """Reduce like `functools.reduce` with an associative function: first each part, then the parts' results.

    Args:
        task: The function of two arguments.
        sequence: The sequence to reduce.
        initial_value: Placed before the first element, or with ``from_end`` after the last one. It is used once.
        key: Called with each element to get the value to reduce.
        start: The index of the first element.
        end: The index after the last element; None for the end.
        from_end: Whether to reduce from the right: ``task(a, task(b, c))``.
        parts: The number of tasks to make of the elements.
        recurse: Whether to reduce the parts' results in parallel, too, as long as there are four or more. If not,
            one more task reduces them.

    Returns:
        The result. Without elements, it is the initial value, or without that, the task's result without arguments.

    Raises:
        TaskExecutionError: The task or the key failed.
        TypeError: An argument has a wrong type.
        ValueError: ``parts`` is less than 1, or there is no such interval.
        InvalidTaskError, NoKernelError: As for `future`.
    """
    call, key_call = sendable(task), _sendable_key(key)
    check_bool("from_end", from_end)
    check_bool("recurse", recurse)
    elements = interval(sequence, start, end)
    if not len(elements):
        bounds(0, parts)  # only to check the argument
        return run_all(call, [()])[0] if initial_value is _NOTHING else initial_value
    partials = _reduced(call, key_call, elements, initial_value, from_end, parts)
    while recurse and len(partials) >= 4:
        partials = _reduced(call, None, partials, _NOTHING, from_end, len(partials) // 2)
    return partials[0] if len(partials) == 1 else _reduced(call, None, partials, _NOTHING, from_end, 1)[0]


@overload
def preduce_partial(
    task: Callable[[T, T], T] | str,
    sequence: Iterable[T],
    *,
    initial_value: T = ...,
    key: None = None,
    **options: Unpack[OfSearch],
) -> list[T]: ...
@overload
def preduce_partial(
    task: Callable[[K, K], K] | str,
    sequence: Iterable[T],
    *,
    initial_value: K = ...,
    key: Callable[[T], K],
    **options: Unpack[OfSearch],
) -> list[K]: ...
@overload
def preduce_partial(
    task: TaskLike,
    sequence: Iterable[Any],
    *,
    initial_value: Any = ...,
    key: str,
    **options: Unpack[OfSearch],
) -> list[Any]: ...
def preduce_partial(
    task: TaskLike,
    sequence: Iterable[Any],
    *,
    initial_value: Any = _NOTHING,
    key: TaskLike | None = None,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
) -> list[Any]:
    """Do the first half of `preduce`: return the result of each part, in the order of the parts.

    Args:
        task: The function of two arguments.
        sequence: The sequence to reduce.
        initial_value: Used in the first part, or with ``from_end`` in the last one.
        key: Called with each element to get the value to reduce.
        start: The index of the first element.
        end: The index after the last element; None for the end.
        from_end: Whether to reduce each part from the right.
        parts: The number of tasks, and so of results.

    Raises:
        ValueError: There are no elements, or as `preduce`.
        TaskExecutionError, TypeError, InvalidTaskError, NoKernelError: As `preduce`.
    """
    call, key_call = sendable(task), _sendable_key(key)
    check_bool("from_end", from_end)
    elements = interval(sequence, start, end)
    if not len(elements):
        raise ValueError("preduce_partial needs at least one element")
    return _reduced(call, key_call, elements, initial_value, from_end, parts)


@overload
def pmap_reduce(
    map_task: Callable[[T], K],
    reduce_task: Callable[[K, K], K] | str,
    sequence: Iterable[T],
    *,
    initial_value: K = ...,
    **options: Unpack[_OfReduction],
) -> K: ...
@overload
def pmap_reduce(
    map_task: str,
    reduce_task: TaskLike,
    sequence: Iterable[Any],
    *,
    initial_value: Any = ...,
    **options: Unpack[_OfReduction],
) -> Any: ...
def pmap_reduce(
    map_task: TaskLike,
    reduce_task: TaskLike,
    sequence: Iterable[Any],
    *,
    initial_value: Any = _NOTHING,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
    recurse: bool = False,
) -> Any:
    """Return ``reduce(reduce_task, map(map_task, sequence))``, computed in parallel by `preduce`.

    Args:
        map_task: Called with each element.
        reduce_task: The function of two arguments, which must be associative.
        sequence: The elements.
        initial_value: As in `preduce`, like all the others.
        start: The index of the first element.
        end: The index after the last element.
        from_end: Whether to reduce from the right.
        parts: The number of tasks to make of the elements.
        recurse: Whether to reduce the parts' results in parallel.

    Raises:
        TaskExecutionError, TypeError, ValueError, InvalidTaskError, NoKernelError: As `preduce`.
    """
    sendable(map_task, "map_task")
    return preduce(
        reduce_task,
        sequence,
        initial_value=initial_value,
        key=map_task,
        start=start,
        end=end,
        from_end=from_end,
        parts=parts,
        recurse=recurse,
    )


# -- sorting -----------------------------------------------------------------------------------------


@overload
def psort(
    sequence: Iterable[SupportsRichComparisonT],
    *,
    key: None = None,
    reverse: bool = False,
    parts: int | None = None,
) -> list[SupportsRichComparisonT]: ...
@overload
def psort(
    sequence: Iterable[T],
    *,
    key: Callable[[T], SupportsRichComparison] | str,
    reverse: bool = False,
    parts: int | None = None,
) -> list[T]: ...
def psort(
    sequence: Iterable[Any], *, key: TaskLike | None = None, reverse: bool = False, parts: int | None = None
) -> list[Any]:
    """Return a sorted list of the elements, like `sorted`; the sort is stable.

    Tasks sort the parts, which are merged here: comparing costs less than sending everything once more.

    Args:
        sequence: The elements. The list holds the same objects, not copies.
        key: Called once with each element, in the tasks, to get the value to compare.
        reverse: Whether to sort in descending order.
        parts: The number of tasks to make.

    Raises:
        TaskExecutionError: The key failed, or two elements could not be compared.
        TypeError, ValueError, InvalidTaskError, NoKernelError: As `pmap`.
    """
    key_call = _sendable_key(key)
    check_bool("reverse", reverse)
    elements = sliceable(sequence)
    cuts = bounds(len(elements), parts)
    ranks: Any = elements if key is None else []
    order: list[int] = []
    for begin, (part_order, part_keys) in zip(
        cuts, run_all(partial(_sort_part, key_call, reverse), divide([elements], cuts)), strict=False
    ):
        order.extend(begin + index for index in part_order)
        if key is not None:
            ranks.extend(part_keys)
    order.sort(key=ranks.__getitem__, reverse=reverse)  # timsort finds the sorted runs and merges them
    return [elements[index] for index in order]


# -- what parts compute, on a worker -----------------------------------------------------------------


def _call(task: Callable[..., Any], *args: Any) -> Any:
    return task(*args)


def _map_part(task: Callable[..., Any], *columns: Any) -> list[Any]:
    return all_awaited(list(map(task, *columns)))


def _repeat_part(task: Callable[[], Any], times: range) -> list[Any]:
    return [task() for _ in times]


def _reduce_part(
    task: Callable[[Any, Any], Any],
    key: Callable[[Any], Any] | None,
    from_end: bool,
    elements: Any,
    initial: tuple[Any, ...],
) -> Any:
    values = elements if key is None else map(key, elements)
    if from_end:
        return reduce(lambda right, left: task(left, right), reversed(list(values)), *initial)
    return reduce(task, values, *initial)


def _sort_part(
    key: Callable[[Any], Any] | None, reverse: bool, elements: Any
) -> tuple[list[int], list[Any] | None]:
    """Return the order of the elements, as indexes, and the elements' keys, or None without a key function."""
    keys = elements if key is None else list(map(key, elements))
    order = sorted(range(len(keys)), key=keys.__getitem__, reverse=reverse)
    return order, None if key is None else keys


# -- what several of them need -----------------------------------------------------------------------


def _checked_size(size: int | None) -> int | None:
    return None if size is None else checked_index("size", size, 0)


def _sendable_key(key: TaskLike | None) -> Callable[..., Any] | None:
    return None if key is None else sendable(key, "key")


def _mapped(function: Callable[..., Any], columns: list[Any], count: int, parts: int | None) -> list[Any]:
    return list(chain.from_iterable(run_all(function, divide(columns, bounds(count, parts)))))


def _reduced(
    task: Callable[..., Any],
    key: Callable[..., Any] | None,
    elements: Any,
    initial_value: Any,
    from_end: bool,
    parts: int | None,
) -> list[Any]:
    calls: list[tuple[Any, ...]] = [(part, ()) for (part,) in divide([elements], bounds(len(elements), parts))]
    if initial_value is not _NOTHING:
        at = -1 if from_end else 0
        calls[at] = calls[at][0], (initial_value,)
    return run_all(partial(_reduce_part, task, key, from_end), calls)
