"""Several items of one `map` as one task, for a worker to run and to answer as it would one by one.

This module owns what a worker does with a block, and how it answers. It must not know how blocks are made up, nor
what becomes of the items that it leaves: that is `client.map`'s.

A block is a bet that its items are short. It must cost nothing when the bet is lost, so a worker stops when a block
has taken its time, and leaves the rest.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from farm_executor.core.frames import BULK_THRESHOLD, Payload
from farm_executor.data import payload
from farm_executor.data.failure import dump_failure, dump_unsendable, explain_unreadable

__all__ = ["BLOCK_SECONDS", "PLAIN", "BlockOutcome", "portable", "run_block"]

BLOCK_SECONDS = 0.01  # after which no more items of a block are begun

PLAIN: set[type] = {type(None), bool, int, float, complex, str, bytes}
"""What may share a pickle: it cannot change, nor fail to be rebuilt."""


def portable(data: Payload) -> Payload:
    """The payload as part of another one, in which large parts stay out of band."""
    return [pickle.PickleBuffer(part) if len(part) >= BULK_THRESHOLD else bytes(part) for part in data]  # type: ignore[misc]


class BlockOutcome(NamedTuple):
    """What came of the first items of a block.

    Attributes:
        count: How many have a value; what is left was not begun, except for one that failed.
        together: Whether the values are one pickle, a list; else each is one. Those that may fail to be rebuilt
            travel alone, so that they cost no other.
        pickles: The pickled values.
        failure: What the next one raised, as `dump_failure` gave it, if it failed.
    """

    count: int  # type: ignore[assignment]  # shadows tuple.count, which nobody misses
    together: bool
    pickles: list[Payload]
    failure: Payload | None


def run_block(fn: Callable[..., Any], items: Sequence[Any], pickled: bool) -> BlockOutcome:
    """Call the function for each of the items, until one fails or the block has taken its time.

    Args:
        fn: The function.
        items: For each call the arguments, or with ``pickled`` the payload of them.
        pickled: Whether each call's arguments are rebuilt for it alone, because it might change them.
    """
    values: list[Any] = []
    failure: Payload | None = None
    until = time.perf_counter() + BLOCK_SECONDS
    for item in items:
        try:
            args = payload.loads(item) if pickled else item
        except BaseException as error:  # unpickling runs code of the user's, which may raise anything
            failure = dump_failure(error, explain_unreadable(error))
            break
        try:
            values.append(fn(*args))
        except BaseException as error:  # all of it belongs to the item, as what a task raises does to its future
            failure = dump_failure(error, skip_frames=1)
            BaseException.with_traceback(error, None)
            break
        if time.perf_counter() > until:
            break
    return _outcome(values, failure)


def _outcome(values: list[Any], failure: Payload | None) -> BlockOutcome:
    if PLAIN.issuperset(map(type, values)):
        return BlockOutcome(len(values), True, [portable(payload.dumps(values))], failure)
    pickles = []
    for value in values:
        try:
            pickles.append(portable(payload.dumps(value)))
        except BaseException as error:  # pickling runs code of the user's
            failure = dump_unsendable(error, value)
            break
    return BlockOutcome(len(pickles), False, pickles, failure)
