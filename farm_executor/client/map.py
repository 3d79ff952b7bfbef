"""`FarmExecutor.map`: turns iterables into tasks, and their outcomes into results in order.

This module owns the contract of `concurrent.futures.Executor.map` as it is in Python 3.14, and how items become
tasks. It must not know how tasks are sent.

With a chunk size of 1 every item behaves as a task of its own. But many items travel together as one block (see
`blocks`), because the round trip costs more than a short call:

* The first items go alone, four for each worker; after that a block takes a share of the number already submitted,
  small enough to leave work for all workers.
* Items that are slow to arrive do not wait for others.
* If a block takes long, the items that its worker has not begun go on at once, before all that is queued.
* If a block's worker dies, or an item cannot be pickled, the items go on alone, so that each has its own outcome.

Items that may be attempted only once, or that are counted to recycle workers, always go alone.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from farm_executor.client.backing import Backing
from farm_executor.client.farm.functions import Function
from farm_executor.client.farm.future import FarmFuture
from farm_executor.client.farm.wording import culprit, unreadable_value
from farm_executor.client.protocol import Farm
from farm_executor.core.frames import Payload, payload_size
from farm_executor.core.options import TaskOptions
from farm_executor.data import payload
from farm_executor.data.atoms import ATOMS
from farm_executor.data.blocks import BlockOutcome, call_each, call_with_each, portable, run_block
from farm_executor.data.byvalue import OwnObjects
from farm_executor.data.failure import Origin, load_failure
from farm_executor.errors import TaskExecutionError, WorkerLostError
from farm_executor.progress import ProgressLike, Tally, shown, tally_for

__all__ = ["map_calls"]

SHARE = 4  # a block's size is the number of items submitted so far, divided by this and by the workers
MAX_ITEMS = 512  # of a block
MAX_BYTES = 64 * 1024  # of arguments, after which a block takes no more
PATIENCE = 0.001  # seconds that an item waits for others

_SIZED = {str, bytes}

Call = tuple[Any, ...]


def map_calls(
    backing: Backing,
    options: TaskOptions,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
    progress: ProgressLike,
) -> Iterator[Any]:
    """Submit the calls that may go now; return the iterator that submits the rest. See `FarmExecutor.map`."""
    deadline = None if timeout is None else time.monotonic() + timeout
    items: Iterator[Any]
    call: Callable[..., Any]
    if chunksize > 1 and len(iterables) == 1:
        # The items themselves: a tuple around each would take as long as all else that it costs.
        items, call = iter(iterables[0]), partial(call_with_each, fn)
    else:
        items = zip(*iterables)  # noqa: B905 - the contract is the shortest one's end
        call = partial(call_each, fn) if chunksize > 1 else fn
    engine = backing.start_engine()
    with contextlib.suppress(Exception):  # else each call holds the error
        options = engine.laden(options)
    observer = backing.observer
    tally = None
    # Who looks at the farm sees how far its maps are, whether or not the program shows that itself.
    if progress is not None or observer is not None:
        tally = tally_for(progress, fn, _total(iterables), None if observer is None else observer.mapping)
    try:
        results = _submitted(engine, backing, options, call, items, deadline, chunksize, buffersize, tally)
    except BaseException:
        if tally is not None:
            tally.stop()
        raise
    if tally is not None:
        # Around the results, so that a map that shows nothing has nothing more to do.
        results = shown(results, tally, tally.finish)
        if buffersize is not None:  # what has not been submitted never will be, once nobody can take it
            weakref.finalize(results, tally.stop)
    return itertools.chain.from_iterable(results) if chunksize > 1 else results


def _submitted(
    engine: Farm,
    backing: Backing,
    options: TaskOptions,
    fn: Callable[..., Any],
    items: Iterator[Any],
    deadline: float | None,
    chunksize: int,
    buffersize: int | None,
    tally: Tally | None,
) -> Iterator[Any]:
    """Submit the calls that may go now; return the iterator over the results of all tasks."""
    one_by_one = options.max_attempts == 1 or options.timeout is not None or engine.counts_tasks
    if chunksize == 1 and buffersize is None and not one_by_one:
        mapping = _Mapping(engine, options, fn, tally)
        mapping.submit_all(items, backing.max_workers)
        if tally is not None:
            tally.complete()
        return mapping.results(deadline)
    if chunksize > 1:
        calls: Iterator[Call] = ((chunk,) for chunk in _chunks(items, chunksize))
    else:
        calls = items
    function = _prepared(engine, fn)
    chunked = chunksize > 1
    futures: deque[FarmFuture] = deque(
        engine.submit(function, call, {}, options, before_settling=_counted(tally, call, chunked))
        for call in itertools.islice(calls, buffersize)
    )
    if buffersize is None:
        if tally is not None:
            tally.complete()
        return _results(futures, deadline, None)
    # The iterator must not keep the executor alive: once that is collected, it submits nothing more.
    return _results(futures, deadline, (calls, function, options, weakref.ref(backing), tally, chunked))


def _total(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """Return the number of calls, if the iterables tell before they are read."""
    # Not by `length_hint`, which may be wrong: a bar would end early, or never.
    try:
        return min(map(len, iterables), default=0)  # type: ignore[arg-type]
    except TypeError:
        return None


def _counted(
    tally: Tally | None, call: Call, chunked: bool
) -> Callable[[Any, BaseException | None, Origin], None] | None:
    """Return what counts a call's items once they have ended; None without a tally."""
    if tally is None:
        return None
    # In items, chunked or not: that is what its caller has given, and waits for.
    items = len(call[0]) if chunked else 1
    tally.expect(items)
    return partial(_count, tally, items)


def _count(tally: Tally, items: int, value: Any, error: BaseException | None, origin: Origin) -> None:
    tally.add(items, 0 if error is None else items)


def _prepared(engine: Farm, fn: Callable[..., Any]) -> Callable[..., Any] | Function:
    """Return the function as it is now, pickled once for all calls."""
    try:
        return engine.prepare(fn)
    except BaseException as error:  # the futures will raise it, as those of submit do
        culprit(error, [fn])
        return fn


def _results(futures: deque[FarmFuture], deadline: float | None, more: Any) -> Iterator[Any]:
    """Yield the results in order; cancel the rest when the iterator is closed."""
    try:
        while futures:
            if more is not None:
                calls, function, options, backing, tally, chunked = more
                owner = backing()
                if owner is not None and (call := next(calls, None)) is not None:
                    count = _counted(tally, call, chunked)
                    engine = owner.start_engine()
                    futures.append(engine.submit(function, call, {}, options, before_settling=count))
                    del call, count, engine
                elif tally is not None:
                    tally.complete()
                del owner
            yield _take(futures.popleft(), deadline)
    finally:
        for future in futures:
            # Without waiting for workers: the garbage collector may be closing the iterator.
            future._cancel_unsent()


def _take(future: Future[Any], deadline: float | None) -> Any:
    """Return the result, and keep no reference to it, here or in any frame, while it is used."""
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()  # if it is late; otherwise this has no effect
        del future


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


# -- items in blocks ----------------------------------------------------------------------------------


class _Part:
    """One submitted task: a block of items, or a single item.

    Attributes:
        size: The number of items of a block; 0 for an item on its own, whose future has its result.
        items: The items of a block, until its outcome is known.
        pickled: Whether the items are payloads.
        last_attempts: Whether it is an item that goes alone because the worker of its block has died.
        rest: The parts that go on after its outcome, known before the future is settled.
        origin: Where the outcome came from.
    """

    __slots__ = ("future", "items", "last_attempts", "origin", "pickled", "rest", "size")

    def __init__(self, items: Sequence[Any] = (), pickled: bool = False, last_attempts: bool = False) -> None:
        self.size = len(items)
        self.items = items
        self.pickled = pickled
        self.last_attempts = last_attempts
        self.rest: list[_Part] = []
        self.origin = Origin()
        self.future: FarmFuture


class _Mapping:
    """One call of `map`.

    Thread safety: `_on_outcome` is called by the thread that settles futures, all else by the caller of `map`.
    """

    def __init__(self, engine: Farm, options: TaskOptions, fn: Callable[..., Any], tally: Tally | None) -> None:
        self._engine = engine
        self._tally = tally
        self._options = options
        # If a block's worker dies, each of its items has its own attempts; the block was the first of them.
        self._block_options = options._replace(max_attempts=1)
        # Ahead of all tasks of this priority, behind those of the next: users' priorities are integers.
        self._rest_options = self._block_options._replace(priority=options.priority + 0.5)
        self._alone_options = self._rest_options._replace(max_attempts=options.max_attempts - 1)
        self._fn = fn
        self._function = _prepared(engine, fn)
        self._block_function: Callable[..., Any] | Function | None = None
        self._parts: deque[_Part] = deque()
        self._closed = False

    def submit_all(self, items: Iterator[Call], workers: int) -> None:
        """Submit the items as the iterables yield them."""
        share = SHARE * workers
        submitted = 0
        block: list[Call] = []
        since = 0.0
        size = 1
        for item in items:
            if size == 1:
                self._submit_alone(item)
                submitted += 1
            else:
                if not block:
                    since = time.perf_counter()
                block.append(item)
                if len(block) < size and time.perf_counter() - since < PATIENCE:
                    continue
                submitted += len(block)
                self._submit_items(block)
                block = []
            size = max(1, min(submitted // share, MAX_ITEMS))
        self._submit_items(block)

    def _submit_alone(self, item: Call) -> None:
        part = _Part()
        count = _counted(self._tally, item, chunked=False)
        part.future = self._engine.submit(self._function, item, {}, self._options, before_settling=count)
        self._parts.append(part)

    def _submit_items(self, items: list[Call]) -> None:
        """Submit items as blocks. Values that a call might change are pickled for that call alone."""
        kinds = set(map(type, itertools.chain.from_iterable(items)))
        plain = kinds <= ATOMS
        if plain and not kinds & _SIZED:
            self._submit_block(items, pickled=False)
            return
        block: list[Any] = []
        weight = 0
        for item in items:
            entry, size = (item, _size(item)) if plain else _pickled(item)
            if plain and size >= MAX_BYTES:
                entry = None  # it would be a block of its own, and stay in memory beside its pickle
            if entry is not None:
                block.append(entry)
                weight += size
            if entry is None or weight >= MAX_BYTES:
                self._submit_block(block, pickled=not plain)
                block, weight = [], 0
            if entry is None:
                self._submit_alone(item)
        self._submit_block(block, pickled=not plain)

    def _submit_block(self, items: list[Any], *, pickled: bool) -> None:
        if items:
            if self._tally is not None:
                self._tally.expect(len(items))
            self._parts.append(self._block(items, pickled, self._block_options))

    def _block(self, items: list[Any], pickled: bool, options: TaskOptions) -> _Part:
        if self._block_function is None:
            self._block_function = _prepared(self._engine, partial(run_block, self._fn))
        part = _Part(items, pickled, options is self._alone_options)
        part.future = self._engine.submit(
            self._block_function,
            (items, pickled),
            {},
            options,
            goes_on=options is not self._block_options,
            calls=len(items),
            before_settling=partial(self._on_outcome, part),
        )
        return part

    def _on_outcome(
        self, part: _Part, value: Any, error: BaseException | None, origin: Origin
    ) -> dict[str, int] | None:
        """Submit the items of a block that go on, before it is settled; return how the other calls have ended.

        Before, because a caller that has the outcome must find the rest in ``part.rest``.
        """
        items, part.items = part.items, ()  # they may be large, and the result may not be taken for long
        part.origin = origin
        if type(error) is WorkerLostError and not part.last_attempts and not self._closed:
            part.rest = [self._block([item], part.pickled, self._alone_options) for item in items]
            return {}
        # Only what ends here is counted: the items that go on are, once their own parts end.
        tally = self._tally
        if type(value) is not BlockOutcome:
            if tally is not None:
                tally.add(part.size, part.size)
            return None
        failed = int(value.failure is not None)
        if tally is not None:
            tally.add(value.count + failed, failed)
        left = part.size - value.count - failed
        if left and not failed and not self._closed:
            rest = iter(items[value.count :])
            # In blocks of as many items as the worker had time for.
            part.rest = [self._block(some, part.pickled, self._rest_options) for some in _chunks(rest, value.count)]
            left = 0
        return {"succeeded": value.count, "failed": failed, "cancelled": left}

    def results(self, deadline: float | None) -> Iterator[Any]:
        """Yield the results in order; cancel the rest when the iterator is closed."""
        parts = self._parts
        try:
            while parts:
                if not parts[0].size:
                    yield _take(parts.popleft().future, deadline)
                    continue
                part = parts.popleft()
                try:
                    outcome: BlockOutcome = _take(part.future, deadline)
                except WorkerLostError:
                    if not part.rest:
                        raise
                else:
                    yield from _values(outcome, part.origin)
                    if outcome.count < part.size and not part.rest:
                        raise TaskExecutionError("the rest of a block of items could not be sent again")
                parts.extendleft(reversed(part.rest))
        finally:
            self._closed = True
            for part in parts:
                _cancel(part)


def _size(item: Call) -> int:
    return sum([len(value) for value in item if type(value) in _SIZED])


def _pickled(item: Call) -> tuple[Payload | None, int]:
    """Return the item's payload and its size; None as the payload if it must go alone."""
    try:
        data = payload.dumps(item)
    except BaseException as error:  # its future will raise it
        culprit(error, item)
        return None, 0
    if payload.by_value(data):  # only the worker's own task loop can read that
        return None, 0
    return portable(data), payload_size(data)


def _cancel(part: _Part) -> None:
    # Without waiting for workers: the garbage collector may be closing the iterator.
    part.future._cancel_unsent()
    for more in part.rest:
        _cancel(more)


def _values(outcome: BlockOutcome, origin: Origin) -> Iterator[Any]:
    values: list[Any] = payload.loads(outcome.pickles[0]) if outcome.together else outcome.pickles
    values.reverse()  # `pop` takes from the end, so none is kept alive after it has been taken
    while values:
        yield values.pop() if outcome.together else _rebuilt(values.pop(), origin)
    if outcome.failure is not None:
        raise load_failure(outcome.failure, origin, OwnObjects)


def _rebuilt(value: Payload, origin: Origin) -> Any:
    try:
        return payload.loads(value, OwnObjects)
    except (Exception, SystemExit) as problem:  # rebuilding runs the user's code, which may even try to exit
        raise unreadable_value(origin, problem) from problem
