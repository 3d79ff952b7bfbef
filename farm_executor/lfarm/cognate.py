"""Parallel counterparts of what Python does with sequences: map, reduce, sorted and their like.

This module owns what a part of a sequence computes, on a worker, and how the answer is made of the parts' answers.
It must not know how parts are made and run: `parts` does that. Cognates that look for elements are in `seeking`.

What holds for all cognates: only a part's own elements travel with it. ``parts`` is how many parts to make, by
default the kernel's number of workers. Sequences are anything that can be iterated over; what can be sliced (lists,
tuples, ranges, strings, arrays) is, the rest is first made a list of. The answer is the one that the serial
counterpart gives. The first part that fails, in time, decides: its error is raised, and the parts that have not
begun are cancelled, as they are once the answer is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence
from functools import partial, reduce
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, overload

from farm_executor.lfarm.checks import check_bool, check_callable, checked_index
from farm_executor.lfarm.parts import bounds, columns, divide, interval, run_all, sliceable
from farm_executor.lfarm.tasks import TaskLike, sendable

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison, SupportsRichComparisonT
    from typing_extensions import Unpack

    from farm_executor.lfarm.parts import OfSearch

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
    task: Callable[[T1], T], s1: Iterable[T1], /, *, parts: int | None = None, size: int | None = None
) -> list[T]: ...
@overload
def pmap(
    task: Callable[[T1, T2], T],
    s1: Iterable[T1],
    s2: Iterable[T2],
    /,
    *,
    parts: int | None = None,
    size: int | None = None,
) -> list[T]: ...
@overload
def pmap(
    task: Callable[[T1, T2, T3], T],
    s1: Iterable[T1],
    s2: Iterable[T2],
    s3: Iterable[T3],
    /,
    *,
    parts: int | None = None,
    size: int | None = None,
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
    parts: int | None = None,
    size: int | None = None,
) -> list[T]: ...
@overload
def pmap(task: str, *sequences: Iterable[Any], parts: int | None = None, size: int | None = None) -> list[Any]: ...
def pmap(task: TaskLike, *sequences: Iterable[Any], parts: int | None = None, size: int | None = None) -> list[Any]:
    """As ``list(map(task, *sequences))``.

    Args:
        task: Called with one element of each sequence, until the shortest ends.
        sequences: At least one.
        parts: How many tasks to make of them.
        size: The most elements to take of each.

    Raises:
        TaskExecutionError: The task failed for one of the elements.
        TypeError: There is no sequence, or an argument is of a wrong kind.
        ValueError: ``parts`` is less than 1, or ``size`` less than 0.
        InvalidTaskError, NoKernelError: As for `future`.
    """
    call = sendable(task)
    if not sequences:
        raise TypeError("pmap needs at least one sequence")
    return _mapped(partial(_map_part, call), *columns(sequences, _checked_size(size)), parts)


def pmap_into(
    target: Target,
    task: TaskLike,
    *sequences: Iterable[Any],
    parts: int | None = None,
    size: int | None = None,
) -> Target:
    """Put what ``map(task, *sequences)`` yields into a sequence that is there, from its beginning.

    Args:
        target: As much of it as there are results is replaced, the rest is left alone; all of it if a task fails.
        task: Called with one element of each sequence, until the shortest or the target ends.
        sequences: None of them: the task is called without arguments, for each place of the target.
        parts: How many tasks to make of them.
        size: The most places to fill.

    Returns:
        The target.

    Raises:
        TypeError: The target cannot be changed, or an argument is of a wrong kind.
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
    """Compute values in parallel, and then call a function with them.

    ``plet(lambda x, y: x + y, x=lambda: f(3), y=lambda: g(4))`` is Lisp's ``(plet ((x (f 3)) (y (g 4))) (+ x y))``.

    Args:
        body: Called here, with the values by name.
        bindings: For each name a function without arguments, which becomes a task, or a value that is no function.

    Returns:
        What the body returns.

    Raises:
        TaskExecutionError: One of the bindings failed; the body has not been called.
        TypeError: The body cannot be called.
        NoKernelError: There is no current kernel.
        Exception: What the body raises.
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
    """As `functools.reduce`, for a function that is associative: the parts are reduced first, then their results.

    Args:
        task: The function of two arguments.
        sequence: What to reduce.
        initial_value: Stands before the first element, or with ``from_end`` behind the last one. It is used once.
        key: Called with each element to get what is reduced.
        start: The first element's index.
        end: The index behind the last element; None for the end.
        from_end: Whether to reduce from the right: ``task(a, task(b, c))``.
        parts: How many tasks to make of the elements.
        recurse: Whether the parts' results are themselves reduced in parallel, while there are four or more. Else
            one more task does it.

    Returns:
        The result. Of no elements, the initial value; without one, what the task returns without arguments.

    Raises:
        TaskExecutionError: The task or the key failed.
        TypeError: An argument is of a wrong kind.
        ValueError: ``parts`` is less than 1, or there is no such interval.
        InvalidTaskError, NoKernelError: As for `future`.
    """
    call, key_call = sendable(task), _sendable_key(key)
    check_bool("from_end", from_end)
    check_bool("recurse", recurse)
    elements = interval(sequence, start, end)
    if not len(elements):
        bounds(0, parts)  # it checks them
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
    """The first half of `preduce`: the result of each part, in the order of the parts.

    Args:
        task: The function of two arguments.
        sequence: What to reduce.
        initial_value: Goes into the first part, or with ``from_end`` into the last one.
        key: Called with each element to get what is reduced.
        start: The first element's index.
        end: The index behind the last element; None for the end.
        from_end: Whether to reduce each part from the right.
        parts: How many tasks, and results.

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
    """`preduce` of what the first task makes of each element: as ``reduce(reduce_task, map(map_task, sequence))``.

    Args:
        map_task: Called with each element.
        reduce_task: The function of two arguments, which must be associative.
        sequence: The elements.
        initial_value: As in `preduce`; so are all the others.
        start: The first element's index.
        end: The index behind the last element.
        from_end: Whether to reduce from the right.
        parts: How many tasks to make of the elements.
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
    """As `sorted`: a list of the elements in ascending order, those that compare equal in their own.

    The parts are sorted by tasks and merged here: comparing costs less than sending everything once more.

    Args:
        sequence: The elements. Those in the list are the same, no copies.
        key: Called once with each element, in the tasks, to get what is compared.
        reverse: Whether to sort in descending order.
        parts: How many tasks to make of them.

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
    order.sort(key=ranks.__getitem__, reverse=reverse)  # it finds the sorted runs, and merges them
    return [elements[index] for index in order]


# -- what parts compute, on a worker -----------------------------------------------------------------


def _call(task: Callable[..., Any], *args: Any) -> Any:
    return task(*args)


def _map_part(task: Callable[..., Any], *columns: Any) -> list[Any]:
    return list(map(task, *columns))


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
    """The order of the elements, as their indexes, and their keys if these are not the elements."""
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
