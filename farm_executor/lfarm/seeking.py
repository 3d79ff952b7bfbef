"""Cognates that look for elements: parallel any, all, find, count and remove.

This module owns what a part of a sequence looks for on a worker, and how the parts' results are combined. It must
not know how parts are made and run: `parts` does that. See `cognate` for what all cognates have in common.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, compress
from typing import TYPE_CHECKING, Any, TypeVar, overload

from farm_executor.lfarm.checks import check_bool
from farm_executor.lfarm.parts import bounds, columns, divide, first_found, interval, run_all, sliceable
from farm_executor.lfarm.tasks import TaskLike, sendable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from farm_executor.lfarm.parts import OfPart, OfSearch

    class _OfCount(OfPart, total=False):
        key: TaskLike | None

    class _OfFind(OfSearch, total=False):
        key: TaskLike | None


__all__ = [
    "pcount",
    "pcount_if",
    "pevery",
    "pfind",
    "pfind_if",
    "pnotany",
    "pnotevery",
    "premove",
    "premove_if",
    "psome",
]

T = TypeVar("T")
K = TypeVar("K")

# -- asking ------------------------------------------------------------------------------------------


def pevery(task: TaskLike, *sequences: Iterable[Any], parts: int | None = None) -> bool:
    """Return ``all(map(task, *sequences))``, computed in parallel.

    Args:
        task: Called with one element of each sequence, until the shortest ends. A part ends at its first false
            value.
        sequences: At least one sequence.
        parts: The number of tasks to make.

    Raises:
        TaskExecutionError: The task failed before the answer was known.
        TypeError, ValueError, InvalidTaskError, NoKernelError: As `cognate.pmap`.
    """
    return _first(_find_false, task, sequences, parts) is None


@overload
def psome(task: Callable[..., T], *sequences: Iterable[Any], parts: int | None = None) -> T | None: ...
@overload
def psome(task: str, *sequences: Iterable[Any], parts: int | None = None) -> Any: ...
def psome(task: TaskLike, *sequences: Iterable[Any], parts: int | None = None) -> Any:
    """Return the first true value that ``map(task, *sequences)`` yields; None if there is none.

    Args:
        task: Called with one element of each sequence, until the shortest ends. A part ends at its first true
            value.
        sequences: At least one sequence.
        parts: The number of tasks to make.

    Raises:
        TaskExecutionError: The task failed before the answer was known.
        TypeError, ValueError, InvalidTaskError, NoKernelError: As `cognate.pmap`.
    """
    found = _first(_find_true, task, sequences, parts)
    return None if found is None else found[1]


def pnotany(task: TaskLike, *sequences: Iterable[Any], parts: int | None = None) -> bool:
    """Return ``not any(map(task, *sequences))``, computed in parallel; see `psome`."""
    return _first(_find_true, task, sequences, parts) is None


def pnotevery(task: TaskLike, *sequences: Iterable[Any], parts: int | None = None) -> bool:
    """Return ``not all(map(task, *sequences))``, computed in parallel; see `pevery`."""
    return _first(_find_false, task, sequences, parts) is not None


# -- searching ---------------------------------------------------------------------------------------


@overload
def pfind_if(
    predicate: Callable[[T], object] | str,
    sequence: Iterable[T],
    *,
    key: None = None,
    **options: Unpack[OfSearch],
) -> T | None: ...
@overload
def pfind_if(
    predicate: Callable[[K], object] | str,
    sequence: Iterable[T],
    *,
    key: Callable[[T], K],
    **options: Unpack[OfSearch],
) -> T | None: ...
@overload
def pfind_if(predicate: TaskLike, sequence: Iterable[T], *, key: str, **options: Unpack[OfSearch]) -> T | None: ...
def pfind_if(
    predicate: TaskLike,
    sequence: Iterable[Any],
    *,
    key: TaskLike | None = None,
    start: int = 0,
    end: int | None = None,
    from_end: bool = False,
    parts: int | None = None,
) -> Any:
    """Return the first element for which the predicate is true; None if there is none.

    Args:
        predicate: Called with elements; a part ends at the first element that it finds.
        sequence: The elements. The one returned is the same object, not a copy.
        key: Called with each element to get the predicate's argument.
        start: The index of the first element.
        end: The index after the last element; None for the end.
        from_end: Whether to find the last element instead.
        parts: The number of tasks to make.

    Raises:
        TaskExecutionError: The predicate or the key failed before the answer was known.
        TypeError, ValueError, InvalidTaskError, NoKernelError: As `cognate.preduce`.
    """
    check_bool("from_end", from_end)
    elements = interval(sequence, start, end)
    if from_end:
        elements = elements[::-1]
    found = _first(_find_true, _with_key(predicate, key), [elements], parts)
    return None if found is None else elements[found[0]]


def pfind(item: object, sequence: Iterable[T], **options: Unpack[_OfFind]) -> T | None:
    """Return the first element that equals the item; None if there is none. The options are those of `pfind_if`."""
    return pfind_if(partial(operator.eq, item), sequence, **options)  # type: ignore[arg-type]  # any key


@overload
def pcount_if(
    predicate: Callable[[T], object] | str,
    sequence: Iterable[T],
    *,
    key: None = None,
    **options: Unpack[OfPart],
) -> int: ...
@overload
def pcount_if(
    predicate: Callable[[K], object] | str,
    sequence: Iterable[T],
    *,
    key: Callable[[T], K],
    **options: Unpack[OfPart],
) -> int: ...
@overload
def pcount_if(predicate: TaskLike, sequence: Iterable[T], *, key: str, **options: Unpack[OfPart]) -> int: ...
def pcount_if(
    predicate: TaskLike,
    sequence: Iterable[Any],
    *,
    key: TaskLike | None = None,
    start: int = 0,
    end: int | None = None,
    parts: int | None = None,
) -> int:
    """Return the number of elements for which the predicate is true.

    Args:
        predicate: Called with each element.
        sequence: The elements.
        key: Called with each element to get the predicate's argument.
        start: The index of the first element.
        end: The index after the last element; None for the end.
        parts: The number of tasks to make.

    Raises:
        TaskExecutionError, TypeError, ValueError, InvalidTaskError, NoKernelError: As `cognate.preduce`.
    """
    call = _with_key(predicate, key)
    elements = interval(sequence, start, end)
    return sum(run_all(partial(_count_part, call), divide([elements], bounds(len(elements), parts))))


def pcount(item: object, sequence: Iterable[Any], **options: Unpack[_OfCount]) -> int:
    """Return the number of elements that equal the item. The options are those of `pcount_if`."""
    return pcount_if(partial(operator.eq, item), sequence, **options)  # type: ignore[arg-type]  # any key


@overload
def premove_if(
    predicate: Callable[[T], object] | str,
    sequence: Iterable[T],
    *,
    key: None = None,
    **options: Unpack[OfPart],
) -> list[T]: ...
@overload
def premove_if(
    predicate: Callable[[K], object] | str,
    sequence: Iterable[T],
    *,
    key: Callable[[T], K],
    **options: Unpack[OfPart],
) -> list[T]: ...
@overload
def premove_if(predicate: TaskLike, sequence: Iterable[T], *, key: str, **options: Unpack[OfPart]) -> list[T]: ...
def premove_if(
    predicate: TaskLike,
    sequence: Iterable[Any],
    *,
    key: TaskLike | None = None,
    start: int = 0,
    end: int | None = None,
    parts: int | None = None,
) -> list[Any]:
    """Return a list of the elements without those for which the predicate is true.

    Args:
        predicate: Called with each element.
        sequence: The elements. The list holds the same objects, not copies.
        key: Called with each element to get the predicate's argument.
        start: The index of the first element that may be removed; those before it stay.
        end: The index after the last element that may be removed; None for the end.
        parts: The number of tasks to make.

    Raises:
        TaskExecutionError, TypeError, ValueError, InvalidTaskError, NoKernelError: As `cognate.preduce`.
    """
    call = _with_key(predicate, key)
    whole = sliceable(sequence)
    elements = interval(whole, start, end)
    kept = run_all(partial(_keep_part, call), divide([elements], bounds(len(elements), parts)))
    behind = start + len(elements)
    return [*whole[:start], *compress(elements, chain.from_iterable(kept)), *whole[behind:]]


def premove(item: object, sequence: Iterable[T], **options: Unpack[_OfCount]) -> list[T]:
    """Return a list of the elements without those that equal the item. The options are those of `premove_if`."""
    return premove_if(partial(operator.eq, item), sequence, **options)  # type: ignore[arg-type]  # any key


# -- what parts compute, on a worker -----------------------------------------------------------------


def _find_true(task: Callable[..., Any], *columns: Any) -> tuple[int, Any] | None:
    return next(((index, value) for index, value in enumerate(map(task, *columns)) if value), None)


def _find_false(task: Callable[..., Any], *columns: Any) -> tuple[int, Any] | None:
    return next(((index, value) for index, value in enumerate(map(task, *columns)) if not value), None)


def _count_part(task: Callable[[Any], Any], elements: Any) -> int:
    return sum(1 for value in map(task, elements) if value)


def _keep_part(task: Callable[[Any], Any], elements: Any) -> bytes:
    return bytes(not value for value in map(task, elements))


def _of_key(task: Callable[[Any], Any], key: Callable[[Any], Any], value: Any) -> Any:
    return task(key(value))


# -- what several of them need -----------------------------------------------------------------------


def _with_key(task: TaskLike, key: TaskLike | None) -> Callable[..., Any]:
    return sendable(task) if key is None else partial(_of_key, sendable(task), sendable(key, "key"))


def _first(
    find: Callable[..., Any], task: TaskLike, sequences: Iterable[Iterable[Any]], parts: int | None
) -> tuple[int, Any] | None:
    """Return the first value that a search finds, with its index in the sequences; None if there is none."""
    call = sendable(task)
    if not sequences:
        raise TypeError("at least one sequence is needed")
    all_columns, count = columns(sequences, None)
    cuts = bounds(count, parts)
    found = first_found(partial(find, call), divide(all_columns, cuts))
    if found is None:
        return None
    part, (index, value) = found
    return cuts[part] + index, value
