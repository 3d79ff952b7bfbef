"""Run several items of one `map` as a single task, with an outcome for each item.

This module owns what a worker does with a block, and the form of its answer. It must not know how blocks are
assembled, nor what happens to the items that are handed back: `client.map` decides both.

A block is a bet that its items are short. Losing the bet must cost nothing, so a worker stops once a block has used
up its time, and hands back the rest.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import Any

from farm_executor._record import NamedTuple
from farm_executor.core.frames import BULK_THRESHOLD, Payload
from farm_executor.data import payload
from farm_executor.data.atoms import ATOMS
from farm_executor.data.awaiting import all_awaited, awaited
from farm_executor.data.failure import dump_failure, dump_unsendable, explain_unreadable

__all__ = ["BLOCK_SECONDS", "BlockOutcome", "call_each", "call_with_each", "portable", "run_block"]

BLOCK_SECONDS = 0.01  # once a block has taken this long, no further item of it is started


def portable(data: Payload) -> Payload:
    """Wrap a payload for use inside another one. Large parts stay out of band."""
    return [pickle.PickleBuffer(part) if len(part) >= BULK_THRESHOLD else bytes(part) for part in data]  # type: ignore[misc]


listener: Callable[[int, BaseException | None], None] | None = None
"""Told how many items of a block have returned, and which error has ended it, while somebody traces the task."""


class BlockOutcome(NamedTuple):
    """The outcomes of the first items of a block.

    Attributes:
        count: The number of items that returned a value. The item after them failed if ``failure`` is set; all
            others were not started.
        together: Whether the values share one pickle, a list; otherwise there is one pickle for each. Values that
            may fail to unpickle travel alone, so that one failure does not affect the others.
        pickles: The pickled values.
        failure: The exception of the item that failed, as returned by `dump_failure`, or None.
    """

    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody misses
    together: bool
    pickles: list[Payload]
    failure: Payload | None


def run_block(fn: Callable[..., Any], items: Sequence[Any], pickled: bool) -> BlockOutcome:
    """Call the function with each item until one fails or the block has used up its time.

    Args:
        fn: The function.
        items: The arguments of each call, or their payload if ``pickled``.
        pickled: Whether the arguments are unpickled separately for each call, because a call might change them.
    """
    values: list[Any] = []
    failure: Payload | None = None
    wrong: BaseException | None = None
    until = time.perf_counter() + BLOCK_SECONDS
    for item in items:
        try:
            args = payload.loads(item) if pickled else item
        except BaseException as error:  # unpickling runs the user's code, which may raise anything
            failure, wrong = dump_failure(error, explain_unreadable(error)), error
            break
        try:
            value = fn(*args)
            values.append(awaited(value) if type(value) is CoroutineType else value)
        except BaseException as error:  # any exception is the item's outcome, as it would be a task's
            failure, wrong = dump_failure(error, skip_frames=1), error
            BaseException.with_traceback(error, None)
            break
        if time.perf_counter() > until:
            break
    if listener is not None:
        listener(len(values), wrong)
    return _outcome(values, failure)


def _outcome(values: list[Any], failure: Payload | None) -> BlockOutcome:
    if ATOMS.issuperset(map(type, values)):
        return BlockOutcome(len(values), True, [portable(payload.dumps(values))], failure)
    pickles = []
    for value in values:
        try:
            pickles.append(portable(payload.dumps(value)))
        except BaseException as error:  # pickling runs the user's code
            failure = dump_unsendable(error, value)
            break
    return BlockOutcome(len(pickles), False, pickles, failure)


# -- chunks -------------------------------------------------------------------------------------------
# Their size is the user's, so unlike blocks they are never cut, and one failure is the outcome of all. They are
# here so that a worker need not import the client for them.


def call_with_each(fn: Callable[[Any], Any], chunk: list[Any]) -> list[Any]:
    """Call the function with each item."""
    # Not `list(map(fn, chunk))`, which would take a StopIteration that the function raises for the end.
    return all_awaited([fn(item) for item in chunk])


def call_each(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    """Call the function with each tuple of arguments."""
    return all_awaited([fn(*args) for args in chunk])
